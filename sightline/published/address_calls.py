"""One transfer of a file by its address, as a program of its own, which the system ends when its time is over.

`addresses` runs this file. The first line of standard input is the request, and the end of the input, as when the
process that asked was killed, ends this one. Lines of JSON on standard output are the size that the server states, then
how the transfer ended. A part of the file stays where it is, so that the next transfer goes on there. Progress goes to
standard error.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

_CHUNK_BYTES = 1 << 16
_QUIET_S, _LIVE_PAUSE_S, _PLAIN_PAUSE_S = 2.0, 0.5, 20.0
"""Seconds before progress is shown, and between its lines on a terminal and elsewhere."""
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_MAX_TEXT = 200


class _EndError(Exception):
    """End of the transfer without the file: its kind, and what is known of it."""

    def __init__(self, kind: str, text: str = "", **facts: int) -> None:
        super().__init__(text)
        self.report = {"kind": kind, "text": text[:_MAX_TEXT], **facts}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: its address was not given by the user."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


class _Clock:
    """Alarm that ends the process, at the end of the transfer's time or of that of one piece of the file."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._answer_s, self._rate, self._piece_bytes = (
            request[key] for key in ("answer_s", "bytes_per_s", "piece_bytes")
        )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self._set(self._answer_s)

    def start(self, num_bytes: int) -> None:
        """Begin the time of a body of so many bytes."""
        self._stop, self._piece = time.monotonic() + self._answer_s + num_bytes / self._rate, 0
        self._renew()

    def count(self, num_bytes: int) -> None:
        """Give the next piece its time when one is complete."""
        self._piece += num_bytes
        if self._piece >= self._piece_bytes:
            self._piece = 0
            self._renew()

    def _renew(self) -> None:
        self._set(min(self._stop - time.monotonic(), self._answer_s + self._piece_bytes / self._rate))

    def _set(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))

    def cancel(self) -> None:
        """Let the process write its report, whatever the time."""
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Meter:
    """Progress on standard error, from two seconds on: one line that is overwritten, or elsewhere now and then one."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._is_live = name, total, sys.stderr.isatty()
        self._next = time.monotonic() + _QUIET_S
        self._is_shown = False

    def show(self, received: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (_LIVE_PAUSE_S if self._is_live else _PLAIN_PAUSE_S)
        text = f"{self._name}: {received / 1e6:.1f} of {self._total / 1e6:.1f} MB"
        sys.stderr.write(f"\r{text}\x1b[K" if self._is_live else f"{text}\n")
        sys.stderr.flush()
        self._is_shown = True

    def close(self) -> None:
        if self._is_shown and self._is_live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _transfer(request: dict[str, Any], clock: _Clock, reports: Any) -> None:
    """Transfer what the file at `path` lacks of the address. Raises _EndError."""
    path = Path(request["path"])
    offset = path.stat().st_size if path.exists() else 0
    try:
        response = _open(request["url"], offset)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
            raise
        error.close()
        path.unlink()  # longer than the file that is there now
        offset = 0
        response = _open(request["url"], offset)
    with response:
        if response.status == http.client.OK:
            offset = 0
        total = _read_total(response, offset)
        if total > request["max_bytes"]:
            raise _EndError("size", total=total)
        if total - offset > shutil.disk_usage(path.parent).free:
            raise _EndError("disk", errno=errno.ENOSPC)
        reports.write(json.dumps({"total": total, "offset": offset}) + "\n")
        clock.start(total - offset)
        meter = _Meter(request["name"], total)
        received = offset
        with open(path, "r+b" if offset else "wb", buffering=0) as file:
            file.seek(offset)
            try:
                while received < total and (chunk := response.read1(min(_CHUNK_BYTES, total - received))):
                    _write(file, chunk)
                    received += len(chunk)
                    clock.count(len(chunk))
                    meter.show(received)
            finally:
                meter.close()
            os.fsync(file.fileno())
    if received < total:
        raise _EndError("cut", "it closed the connection")


def _open(url: str, offset: int) -> Any:
    """Ask for the file from this byte on; the environment's proxies are those of urllib, none for this machine."""
    headers = {"User-Agent": "sightline", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    proxies = [urllib.request.ProxyHandler({})] if url.startswith("http:") else []
    opener = urllib.request.build_opener(_NoRedirects, *proxies)
    return opener.open(urllib.request.Request(url, headers=headers))


def _read_total(response: Any, offset: int) -> int:
    """Read the size of the whole file from the headers of an answer that begins at a byte. Raises _EndError."""
    if (packing := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise _EndError("form", f"it packs the file ({packing})")
    if response.length is None:
        raise _EndError("unstated")
    if not offset:
        return int(response.length)
    stated = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    first, last, total = map(int, stated.groups()) if stated else (-1, -1, -1)
    if (first, last, last - first + 1) != (offset, total - 1, response.length):
        raise _EndError("form", f"asked for the bytes from {offset} on, it sends others")
    return total


def _write(file: Any, chunk: bytes) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise _EndError("disk", errno=error.errno or 0) from None


def _describe(error: Exception, url: str) -> dict[str, Any]:
    """Describe an error of the network or of the disk: its kind, and what is known of it."""
    if isinstance(error, _EndError):
        return error.report
    if isinstance(error, urllib.error.HTTPError):
        target = urllib.parse.urljoin(url, error.headers.get("Location", ""))
        is_redirect = 300 <= error.code < 400
        text = target if is_redirect else http.client.responses.get(error.code, "")
        return {"kind": "redirect" if is_redirect else "status", "status": error.code, "text": text[:_MAX_TEXT]}
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = (str(reason).strip().splitlines() or [type(reason).__name__])[0][:_MAX_TEXT]
    if isinstance(error, urllib.error.URLError):
        return {"kind": "network", "text": text}
    if isinstance(error, OSError) and error.filename is not None:
        return {"kind": "disk", "text": text, "errno": error.errno or 0}
    return {"kind": "cut" if isinstance(error, OSError | http.client.IncompleteRead) else "form", "text": text}


def main() -> NoReturn:
    """Run the request of the first line of the input."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what others print
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    clock = _Clock(request)
    try:
        _transfer(request, clock, reports)
        report: dict[str, Any] = {"kind": ""}
    except Exception as error:  # noqa: BLE001  a server may answer anything, and the report says what it did
        report = _describe(error, request["url"])
    clock.cancel()
    with contextlib.suppress(BrokenPipeError):
        reports.write(json.dumps(report) + "\n")
    os._exit(0)


def _end_with_input() -> NoReturn:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
