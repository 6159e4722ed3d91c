"""Hostile load on `sightline serve` over the loopback: `python -m benchmarks.serve_siege RUN [--requests N]`.

Silent connections beside good requests, JSON that would fill the memory, bodies that come too slowly, and a stop while
uploads are open. Nothing is written; the figures are printed, one line of JSON each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.serve_load import Server, make_cloud, measure, post_json

BOMBS = {
    "mappings": b"{}",
    "lists": b"[]",
    "nested": b"[[[[7]]]]",
    "keys": b'{"a":1}',
    "texts": '"\U0001f600"'.encode(),
}
"""Items of JSON that take many times their text."""


def make_bomb(item: bytes, num_bytes: int) -> bytes:
    """Make a document of about so many bytes, a list of the item under the key of points."""
    return b'{"points":[' + b",".join([item] * (num_bytes // (len(item) + 1))) + b"]}"


@contextlib.contextmanager
def open_silent(server: Server, count: int, text: bytes = b"") -> Iterator[list[socket.socket]]:
    """Context of connections that send this text and nothing more."""
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60)) for _ in range(count)
        ]
        for connection in opened:
            connection.sendall(text)
        yield opened


def count_closed(connections: list[socket.socket]) -> int:
    """Count the connections that the server has closed."""
    num_closed = 0
    for connection in connections:
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            try:
                num_closed += connection.recv(1) == b""
            except ConnectionError:
                num_closed += 1
    return num_closed


def crowd(server: Server, *, silent: int, count: int, num_clients: int, num_points: int = 64) -> dict[str, Any]:
    """Measure good requests beside connections that send nothing, or half a header."""
    with (
        open_silent(server, silent // 2) as mute,
        open_silent(server, silent - silent // 2, b"POST /predict HTTP/1.1\r\nHost: a\r\n") as half,
    ):
        time.sleep(0.5)
        figures = measure(server, count=count, num_clients=num_clients, num_points=num_points)
        return {"silent": silent, **figures, "closed": count_closed([*mute, *half])}


def bomb(server: Server, bodies: list[bytes]) -> dict[str, Any]:
    """Send documents at once; measure the memory, and good requests beside and after them."""
    send_good(server)
    before = read_rss(server)
    statuses: Counter[int] = Counter()
    threads = start_each(lambda body: statuses.update([post_json(server, body)]), bodies)
    peak, seconds = before, []
    while any(thread.is_alive() for thread in threads):
        seconds.append(send_good(server))
        peak = max(peak, read_rss(server))
        time.sleep(0.02)
    after = [send_good(server) for _ in range(5)]
    return {
        "bodies": len(bodies),
        "bytes": len(bodies[0]),
        "statuses": dict(statuses),
        "rss_mb": [round(value / 1e6) for value in (before, peak, read_rss(server))],
        "slowest_s_beside": round(max(seconds, default=0.0), 2),
        "slowest_s_after": round(max(after), 2),
    }


def stop_busy(server: Server, uploads: list[tuple[bytes, dict[str, str]]], *, half: int) -> dict[str, Any]:
    """Stop a server while uploads are open and others are half sent; measure how long it takes."""
    answers: Counter[str] = Counter()

    def send(upload: tuple[bytes, dict[str, str]]) -> None:
        try:
            answers.update([str(server.send("POST", "/predict", *upload)[0])])
        except OSError as error:
            answers.update([type(error).__name__])

    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
    with open_silent(server, half, head) as cut:
        threads = start_each(send, uploads)
        time.sleep(1.0)
        began = time.perf_counter()
        code = server.stop()
        seconds = time.perf_counter() - began
        for thread in threads:
            thread.join()
        said = [connection.recv(100)[9:12].decode() for connection in cut]
    return {"seconds": round(seconds, 1), "exit_code": code, "uploads": dict(answers), "half": said}


def read_rss(server: Server) -> int:
    """Read how many bytes of memory the server holds."""
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start_each(function: Callable[[Any], Any], items: list[Any]) -> list[threading.Thread]:
    """Start a thread for each item."""
    threads = [threading.Thread(target=function, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    return threads


def send_good(server: Server) -> float:
    """Send a good request; return its seconds. Raises RuntimeError if it is not answered by 200."""
    body, headers = make_cloud(1, 64)
    began = time.perf_counter()
    status, answer = server.send("POST", "/predict", body, headers)
    if status != 200:
        raise RuntimeError(f"a good request got {status}: {answer[:200]!r}")
    return time.perf_counter() - began


def main() -> None:
    """Run the siege of a run's server, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    for num_handles in (None, 256):
        server = Server(arguments.run, num_handles=num_handles)
        for silent in (0, 150):
            figures = crowd(server, silent=silent, count=arguments.requests, num_clients=50)
            _show({"ulimit": num_handles, **figures})
        server.stop()
        _show({"log_lines": server.log.count("\n")})
    server = Server(arguments.run)
    for name, item in BOMBS.items():
        for num_bytes in (31_000_000, 1_400_000):
            _show({"bomb": name, **bomb(server, [make_bomb(item, num_bytes)] * 8)})
    _show({"stop": stop_busy(server, [make_cloud(2, 1_000_000)] * 12, half=2), "log": server.log.splitlines()[1:]})


def _show(figures: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(figures)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
