"""The server on the loopback: bodies that are too large or never whole, and its stop."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline
from sightline.contract.errors import UserError
from sightline.engine.distributed import World
from sightline.workbench.serve import server as serve_server
from sightline.workbench.serve.app import Limits, open_app
from sightline.workbench.serve.server import count_connections, make_server, open_listener
from tests.cases import run_each
from tests.limits import ENDLESS_S, HANG_S, limited
from tests.trained import copy_run

GOOD = json.dumps({"points": (np.random.default_rng(0).random((32, 3)) - 0.5).tolist()}).encode()
HALF_BODY = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"


class Running:
    """A server in a thread: its port, and its application, which counts what a stop did."""

    def __init__(self, app: Any, port: int, stop: Callable[[], None]) -> None:
        self.app, self.port, self.stop = app, port, stop

    def post(self, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        with contextlib.closing(connection):
            connection.request("POST", "/predict", body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    @contextlib.contextmanager
    def opened(self, *texts: bytes) -> Iterator[list[socket.socket]]:
        """Connections that have sent these texts, and send no more."""
        with contextlib.ExitStack() as stack:
            address = ("127.0.0.1", self.port)
            sockets = [stack.enter_context(socket.create_connection(address, timeout=HANG_S)) for _ in texts]
            for opened, text in zip(sockets, texts, strict=True):
                opened.sendall(text)
            yield sockets


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return sightline.load_run(copy_run("classify", tmp_path_factory.mktemp("classify") / "copy"))


@contextlib.contextmanager
def serving(loaded: Any, limits: Limits) -> Iterator[Running]:
    with open_app(loaded, World(), limits=limits) as app, open_listener("127.0.0.1", 0) as listener:
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})

        def stop() -> None:
            server.should_exit = True
            thread.join()

        port = listener.getsockname()[1]
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Running(app, port, stop)
        finally:
            stop()


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}])
def test_a_body_far_above_the_limit_gets_413_and_not_a_reset_connection(loaded: Any, headers: dict[str, str]) -> None:
    """It is larger than what the system's buffers take, so the client still sends when the answer is known."""
    with serving(loaded, Limits(max_bytes=2_000_000, max_seconds=HANG_S)) as server:
        assert server.post(b" " * 3_900_000, **headers) == (
            413,
            {"error": "body: has more than 250,000 bytes, the limit for JSON; send a file"},
        )
        assert server.post(GOOD)[0] == 200


def test_a_stop_ends_half_requests(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_server, "_SECONDS_TO_FINISH", 1)
    with serving(loaded, Limits(max_seconds=ENDLESS_S)) as server, server.opened(HALF_BODY, HALF_BODY) as opened:
        while len(server.app.state.bodies) < 2:
            time.sleep(0.01)
        with limited():
            server.stop()
        assert not server.app.state.bodies
        assert [each.recv(1000)[:12] for each in opened] == [b"HTTP/1.1 503"] * 2


def test_begun_requests_are_answered_when_the_server_stops(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_server, "_SECONDS_TO_FINISH", int(HANG_S))
    head = HALF_BODY.replace(b"999", str(len(GOOD)).encode())[:-1]
    with serving(loaded, Limits(max_seconds=HANG_S)) as server, server.opened(head + GOOD[:10]) as (opened,):
        while not server.app.state.bodies:
            time.sleep(0.01)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with contextlib.suppress(ConnectionRefusedError):  # once it stops
            while True:
                socket.create_connection(("127.0.0.1", server.port)).close()
                time.sleep(0.01)
        opened.sendall(GOOD[10:])
        assert opened.recv(1000).startswith(b"HTTP/1.1 200")
        stopping.join()


def test_the_folder_of_inputs_is_empty_after_a_body_that_was_never_whole(loaded: Any, tmp_path: Path) -> None:
    with serving(loaded, Limits(max_seconds=0.3)) as server, server.opened(HALF_BODY) as (opened,):
        assert b"504" in opened.recv(1000)
        while server.app.state.bodies:
            time.sleep(0.01)
        assert not list(server.app.state.folder.iterdir())


def as_form(content: bytes, name: str = "a.npy") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n"


FORM = "multipart/form-data; boundary=b"
EMPTY = b"{}" + b",{}" * 66_000
REFUSED: dict[str, tuple[int, str, bytes]] = {
    "mappings for points": (422, "application/json", b'{"points":[' + EMPTY + b"]}"),
    "an unknown key": (422, "application/json", b'{"dots":[' + EMPTY + b"]}"),
    "a list": (422, "application/json", b"[" + EMPTY + b"]"),
    "a cut document": (400, "application/json", b'{"points":[' + EMPTY),
    "half a character": (400, "application/json", b'{"points":[' + EMPTY + rb',"\ud83d"]}'),
    "a text in the last row": (422, "application/json", b'{"points":[' + b"[1,2,3]," * 25_000 + b'["a",2,3]]}'),
    "another kind": (415, "text/plain", EMPTY),
    "a form that is not ended": (400, FORM, as_form(EMPTY)[:-9]),
    "a form without a boundary": (400, "multipart/form-data", EMPTY),
    "a file of no known ending": (415, FORM, as_form(EMPTY, "a.exe")),
    "a file of no array": (422, FORM, as_form(EMPTY)),
    "a failure of the disk": (500, FORM, as_form(EMPTY, "a.ply")),
}


MOST_KEPT = 180_000
"""Bytes: less than the text of one body of four."""


def count_bytes_kept(ask: Callable[[], None], times: int) -> int:
    """Bytes that are allocated after so many requests and were not before, without Python's collector.

    The server's thread may still have some of them for a moment.
    """
    for _ in range(2):
        ask()
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(times):
            ask()
        for _ in range(200):
            if tracemalloc.get_traced_memory()[0] < MOST_KEPT:
                break
            time.sleep(0.05)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        if was_enabled:
            gc.enable()


def make_asker(server: Running, body: bytes, kind: str, status: int) -> Callable[[], None]:
    def ask() -> None:
        assert server.post(body, **{"Content-Type": kind})[0] == status

    return ask


def test_nothing_of_a_refused_body_is_kept(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than the text of one body of four, without the collector of cycles, which comes late or never."""
    write = Path.write_bytes

    def write_unless_ply(path: Path, content: bytes) -> int:
        if path.suffix == ".ply":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_unless_ply)
    with serving(loaded, Limits(max_seconds=HANG_S)) as server:
        kept = {
            name: count_bytes_kept(make_asker(server, body, kind, status), times=4)
            for name, (status, kind, body) in REFUSED.items()
        }
    assert {name: size for name, size in kept.items() if size >= MOST_KEPT} == {}


@pytest.mark.parametrize("is_left", [False, True])
def test_nothing_of_a_body_that_was_never_whole_is_kept(is_left: bool, loaded: Any) -> None:
    """Its time ends, or its client leaves."""
    with serving(loaded, Limits(max_seconds=HANG_S if is_left else 0.2)) as server:

        def ask() -> None:
            with server.opened(HALF_BODY.replace(b"999", b"999999") + EMPTY) as (opened,):
                if not is_left:
                    assert b"504" in opened.recv(1000)
                while is_left and not server.app.state.bodies:
                    time.sleep(0.01)
            while server.app.state.bodies:
                time.sleep(0.01)

        assert count_bytes_kept(ask, times=4) < MOST_KEPT


@run_each("most, expected", [(200, 72), (1127, 999), (20_000, 1000), (resource.RLIM_INFINITY, 1000), (128, None)])
def test_the_number_of_connections_follows_the_limit_of_open_files(
    most: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, most))
    if expected is None:
        with pytest.raises(UserError, match=r"ulimit -n 128: allows too few open files"):
            count_connections()
    else:
        assert count_connections() == expected


SERVE_FEW = """
import asyncio, resource, signal, time
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
from sightline.workbench.serve import server
server._SECONDS_OF_SILENCE = 1000.0
passed_s = [0.0]
asyncio.BaseEventLoop.time = lambda loop: time.monotonic() + sum(passed_s)
signal.signal(signal.SIGUSR1, lambda *_: passed_s.append(1000.0))
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
with server.open_listener("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    server.serve_forever(app, listener)
"""
"""An hour of its clock is a few signals: connections are silent for as long as the test says."""


def ask(port: int) -> bytes:
    """The answer to a small request; nothing where the connection is closed."""
    address = ("127.0.0.1", port)
    with contextlib.suppress(ConnectionError), socket.create_connection(address, timeout=HANG_S) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        return connection.recv(1000)
    return b""


@contextlib.contextmanager
def serving_few() -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """A server of 72 connections: its process, its port, and its log once it has ended."""
    environment = {**os.environ, "PYTHONPATH": str(Path(sightline.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE_FEW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    log: list[str] = []
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline()), log
    finally:
        process.terminate()
        log.append(process.communicate(timeout=HANG_S)[1])


def test_connections_that_wait_make_room_and_leave_a_short_log() -> None:
    """Some say nothing, and some never end their head, also after an answer; whoever asks is answered at once."""
    with serving_few() as (_, port, log):
        assert ask(port).startswith(b"HTTP/1.1 200")
        whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        texts = [b"", whole[:20], whole + whole[:20]]
        with contextlib.ExitStack() as stack:
            for number in range(320):
                silent = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=HANG_S))
                with contextlib.suppress(ConnectionError):  # the one that waited longest is closed
                    silent.sendall(texts[number % 3])
            for _ in range(10):
                assert ask(port).startswith(b"HTTP/1.1 200")
    assert len(log[0]) < 1000, log[0][:1000]
    assert "connections are in work" not in log[0]


def test_silent_connections_end() -> None:
    with serving_few() as (process, port, _), socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as silent:
        silent.settimeout(0.1)
        with limited():
            while True:
                process.send_signal(signal.SIGUSR1)
                with contextlib.suppress(TimeoutError):
                    assert silent.recv(10) == b""
                    break


def test_bodies_that_do_not_come_take_no_place(loaded: Any) -> None:
    limits = Limits(max_seconds=ENDLESS_S, max_requests=2)
    with serving(loaded, limits) as server, server.opened(*[HALF_BODY] * 20):
        while len(server.app.state.bodies) < 20:
            time.sleep(0.01)
        for _ in range(3):
            assert server.post(GOOD)[0] == 200


def test_of_bodies_that_are_too_much_together_the_one_that_stood_longest_goes(loaded: Any) -> None:
    """Each has nearly all that it may have: four are as much as all may have, the fifth ends the first."""
    most = 400_000
    head = HALF_BODY.replace(b"application/json", FORM.encode()).replace(b"999", str(most).encode())
    with serving(loaded, Limits(max_seconds=ENDLESS_S, max_bytes=most)) as server, contextlib.ExitStack() as stack:
        opened = []
        for number in range(5):
            wait_for_bodies(server, number)
            opened += stack.enter_context(server.opened(head + bytes(most - 10)))
        first = opened[0]
        answer = first.recv(1000)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in answer.lower()
        assert b"this body stood longest" in answer + first.recv(1000)
        assert len(server.app.state.bodies) == 4
        assert server.post(GOOD)[0] == 200


def wait_for_bodies(server: Running, number: int) -> None:
    """Wait until so many bodies have come as far as they will."""
    bodies = server.app.state.bodies
    while len(bodies) < number or bodies.num_bytes < number * 399_000:
        time.sleep(0.01)


def test_a_client_that_leaves_is_no_error(loaded: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(loaded, Limits(max_seconds=ENDLESS_S)) as server:
        with server.opened(HALF_BODY):
            while not server.app.state.bodies:
                time.sleep(0.01)
        while server.app.state.bodies:
            time.sleep(0.01)
        assert server.post(GOOD)[0] == 200
    own = [record for record in caplog.records if record.name.startswith("sightline")]
    assert [(record.levelno, record.getMessage()) for record in own] == [
        (logging.INFO, "a client left before its request was whole")
    ]


@pytest.mark.long
def test_two_hundred_large_refused_bodies_leave_the_memory_as_it_was(loaded: Any) -> None:
    """The most memory that was resident, after four of them and after all."""
    body = b'{"points":[' + b",".join([b"{}"] * 1_300_000) + b"]}"
    with serving(loaded, Limits()) as server:
        refuse = make_asker(server, body, "application/json", 422)
        most = []
        for times in (4, 196):
            for _ in range(times):
                refuse()
            most.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert most[1] < 1.5 * most[0]
