"""Answers of servers that are broken, or hostile, for handlers of requests."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Answer", "dripping", "dripping_headers", "endless", "send", "serve", "start"]

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests on a free port of this machine; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def send(body: bytes, *, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        start(handler, status, {"Content-Length": str(len(body)), **headers})
        handler.wfile.write(body)

    return answer


def start(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.close_connection = True


def endless(handler: BaseHTTPRequestHandler) -> None:
    start(handler, 200, {"Connection": "close"})
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"[" + b" " * (1 << 20))


def dripping(handler: BaseHTTPRequestHandler) -> None:
    start(handler, 200, {"Connection": "close"})
    drip(handler, b" ")


def dripping_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
    drip(handler, b"a")


def drip(handler: BaseHTTPRequestHandler, piece: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(piece)
            time.sleep(0.1)
