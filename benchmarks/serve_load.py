"""Load test of `sightline serve` on the loopback: `python -m benchmarks.serve_load RUN [--requests N] [--malformed N]`.

The server is a process of its own. Clients, each with one connection at a time, send clouds as uploads and as JSON;
then malformed requests follow, bytes of them changed at random. Nothing is written; the figures are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.malformed_requests import fuzzed

_SECONDS_TO_START = 180


class Server:
    """Server of a run in a process of its own; `log` is what it said, once it has ended."""

    def __init__(self, run: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = [sys.executable, "-m", "sightline", "serve", str(run), "--port", str(self.port), *options]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.pid = self._process.pid
        self.log = ""
        until = time.monotonic() + _SECONDS_TO_START
        while self._process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.send("GET", "/health", b"", {})[0] == 200:
                    return
            time.sleep(0.2)
        self._process.kill()
        raise RuntimeError(f"the server did not start: {self._process.communicate()[0]}")

    def send(self, method: str, address: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Send one request; return the status and the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, address, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def stop(self) -> int:
        """Ask the server to stop; return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        self.log = self._process.communicate(timeout=60)[0]
        return self._process.returncode


@contextlib.contextmanager
def serving(run: Path, *options: str) -> Iterator[Server]:
    """Context of a server, which is stopped at its end."""
    server = Server(run, *options)
    try:
        yield server
    finally:
        server.stop()


def post_json(server: Server, body: bytes) -> int:
    """Post a document of JSON; return the status."""
    return server.send("POST", "/predict", body, {"Content-Type": "application/json"})[0]


def make_cloud(seed: int, num_points: int) -> tuple[bytes, dict[str, str]]:
    """Make a request with a random cloud: every second one is an upload, the others are JSON."""
    points = (np.random.default_rng(seed).random((num_points, 3)) - 0.5).astype(np.float32)
    if seed % 2:
        return json.dumps({"points": points.tolist()}).encode(), {"Content-Type": "application/json"}
    content = io.BytesIO()
    np.save(content, points)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.npy"\r\n\r\n'
    body = head + content.getvalue() + b"\r\n--x--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=x"}


def run_clients(count: int, num_clients: int, send: Callable[[int], int]) -> tuple[list[float], Counter[int], float]:
    """Send `count` requests by several clients; return the seconds of each, the statuses, and the seconds of all."""
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            began = time.perf_counter()
            status = send(number)
            took = time.perf_counter() - began
            with lock:
                seconds.append(took)
                statuses[status] += 1

    clients = [threading.Thread(target=work) for _ in range(num_clients)]
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return seconds, statuses, time.perf_counter() - began


def measure(server: Server, *, count: int, num_clients: int, num_points: int) -> dict[str, Any]:
    """Measure times and throughput of good requests."""
    requests = [make_cloud(seed, num_points) for seed in range(32)]

    def send(number: int) -> int:
        body, headers = requests[number % len(requests)]
        return server.send("POST", "/predict", body, headers)[0]

    send(0)
    seconds, statuses, total = run_clients(count, num_clients, send)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    figures = {
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "requests_per_s": round(count / total, 1),
    }
    return {"clients": num_clients, "requests": count, **figures, "statuses": dict(statuses)}


def attack(server: Server, *, count: int, num_clients: int = 4) -> dict[str, Any]:
    """Send malformed requests; count statuses and tracebacks, and answers that are not JSON with one sentence."""
    odd: list[str] = []

    def send(number: int) -> int:
        request = fuzzed(np.random.default_rng(number))
        status, answer = server.send(request["method"], request["url"], request["content"], request["headers"])
        text = answer.decode("utf-8", "replace")
        if status >= 500 or "Traceback" in text or (status >= 400 and set(json.loads(text)) != {"error"}):
            odd.append(f"{number}: {status} {text[:200]}")
        return status

    _, statuses, total = run_clients(count, num_clients, send)
    return {"requests": count, "seconds": round(total, 1), "statuses": dict(sorted(statuses.items())), "odd": odd}


def main() -> None:
    """Run the load test of a run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=1024)
    arguments = parser.parse_args()
    server = Server(arguments.run)
    for num_clients in (1, 8, 32):
        figures = measure(server, count=arguments.requests, num_clients=num_clients, num_points=arguments.points)
        sys.stdout.write(f"{json.dumps(figures)}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{json.dumps(attack(server, count=arguments.malformed))}\n")
    code = server.stop()
    sys.stdout.write(f"{json.dumps({'exit_code': code, 'tracebacks_in_log': server.log.count('Traceback')})}\n")


if __name__ == "__main__":
    main()
