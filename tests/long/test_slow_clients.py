"""Clients that drip, a byte a second, beside one that asks twice a second: it is answered."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT, free_port
from tests.serve.test_connections import GOOD, HALF_BODY
from tests.trained import copy_run

BODY = HALF_BODY.replace(b"999", b"100000")
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Drip: "
SECONDS = 45


@contextlib.contextmanager
def served(run: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    words = [sys.executable, "-m", "sightline", "serve", str(run), "--port", str(port)]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while post(port, timeout_s=60)[0] != 200:
            time.sleep(0.2)
        yield process, port
    finally:
        process.kill()
        process.wait()


def post(port: int, *, timeout_s: float = 2.0) -> tuple[int, bytes]:
    """The status and the answer to a good request; 0 where none comes in time."""
    head = BODY[:-1].replace(b"100000", str(len(GOOD)).encode()).replace(b"Host: a", b"Host: a\r\nConnection: close")
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
            connection.sendall(head + GOOD)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
    except OSError:
        return 0, b""
    return int(answer.split(b" ", 2)[1]) if answer else 0, answer


class Drips(threading.Thread):
    """So many connections that send a byte a second, and begin again when they are closed."""

    def __init__(self, port: int, text: bytes, number: int) -> None:
        super().__init__(daemon=True)
        self._port, self._text, self._number = port, text, number
        self.ended = threading.Event()

    def run(self) -> None:
        sockets: list[socket.socket | None] = [None] * self._number
        while not self.ended.wait(1.0):
            for place, each in enumerate(sockets):
                try:
                    if each is None:
                        each = sockets[place] = socket.create_connection(("127.0.0.1", self._port), timeout=1)
                        each.setblocking(False)
                        each.send(self._text)
                    else:
                        each.send(b" ")
                        with contextlib.suppress(BlockingIOError):
                            if each.recv(65_536) == b"":
                                raise ConnectionError
                except OSError:
                    if each is not None:
                        each.close()
                    sockets[place] = None
        for each in sockets:
            if each is not None:
                each.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, max(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    return copy_run("classify", tmp_path_factory.mktemp("served"))


@pytest.mark.parametrize("number", [64, 256, 1000])
@pytest.mark.parametrize("text", [BODY, HEAD], ids=["bodies", "heads"])
def test_a_good_client_is_answered_beside_those_that_drip(text: bytes, number: int, run: Path) -> None:
    with served(run) as (_, port):
        drips = Drips(port, text, number)
        drips.start()
        statuses = []
        began = time.monotonic()
        for place in range(2 * SECONDS):
            time.sleep(max(0.0, began + place / 2 - time.monotonic()))
            statuses.append(post(port)[0])
        drips.ended.set()
        drips.join()
    assert statuses.count(200) >= 80, statuses


def test_two_thousand_requests_leave_the_memory_as_it_was(run: Path) -> None:
    with served(run) as (process, port):
        memory = []
        for number in (200, 1800):
            for _ in range(number):
                status, answer = post(port, timeout_s=60)
                assert status == 200 or (status == 503 and b"retry-after" in answer.lower())
            memory.append(read_resident_mb(process.pid))
    assert memory[1] <= 1.1 * memory[0], memory


def test_an_idle_server_ends_within_seconds_of_a_signal(run: Path) -> None:
    """Also after an upload of the largest size."""
    with served(run) as (process, port):
        body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.npy"\r\n\r\n' + bytes(30_000_000)
        head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: "
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            text = body + b"\r\n--b--\r\n"
            connection.sendall(f"{head}{len(text)}\r\n\r\n".encode() + text)
            assert connection.recv(1000).startswith(b"HTTP/1.1 4")
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert time.monotonic() - began <= 3


def read_resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
