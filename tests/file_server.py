"""A server of files on this machine, as a project's own is: whole answers and ranges, and wrong ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.answers import Answer, serve, start


class FileServer:
    """Files by their path, answers in place of the server's by path, and the ranges that were asked for in turn."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Answer] = {}
        self.ranges: list[str | None] = []
        self.url = ""


@contextmanager
def serve_files() -> Iterator[FileServer]:
    """Serve no file, at first, on a free port of this machine."""
    served = FileServer()

    class Handler(_Handler):
        pass

    Handler.served = served
    with serve(Handler) as served.url:
        yield served


class _Handler(BaseHTTPRequestHandler):
    served: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):  # a client that went away
            super().handle_one_request()

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.served.ranges.append(asked)
        if (answer := self.served.answers.get(self.path)) is not None:
            answer(self)
            self.close_connection = True
        elif (data := self.served.files.get(self.path)) is None:
            self.send_error(404)
        elif asked is None:
            self._send(200, data)
        else:
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if first >= len(data):
                self.send_error(416)
            else:
                self._send(206, data[first:], {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        start(self, status, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)
