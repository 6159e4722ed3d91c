"""The server on the loopback: silent connections, bodies that are too large or never whole, and its stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline
from sightline.contract.errors import UserError
from sightline.engine.distributed import World
from sightline.workbench.serve import connections
from sightline.workbench.serve.app import Limits
from sightline.workbench.serve.connections import choose_max_connections, make_server
from sightline.workbench.serve.server import open_app, open_listener
from tests.cases import run_each
from tests.trained import copy_run

GOOD = json.dumps({"points": (np.random.default_rng(0).random((32, 3)) - 0.5).tolist()}).encode()
HALF_BODY = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
HALF_HEADER = b"POST /predict HTTP/1.1\r\nHost: a\r\n"


class Running:
    """A server in a thread: its port, and its application, which counts what a stop did."""

    def __init__(self, app: Any, port: int, stop: Callable[[], None]) -> None:
        self.app, self.port, self.stop = app, port, stop

    def post(self, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", "/predict", body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    @contextlib.contextmanager
    def opened(self, *texts: bytes) -> Iterator[list[socket.socket]]:
        """Connections that have sent these texts, and send no more."""
        with contextlib.ExitStack() as stack:
            address = ("127.0.0.1", self.port)
            sockets = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in texts]
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


def test_good_requests_are_answered_while_silent_connections_take_all_places(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The silent ones are closed for them, and the log has one line of it; asyncio would write six every turn."""
    monkeypatch.setattr(connections, "choose_max_connections", lambda _: 8)
    with serving(loaded, Limits()) as server, server.opened(*[b"", HALF_HEADER] * 6), caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert server.post(GOOD)[0] == 200
    assert [record.getMessage() for record in caplog.records] == [
        "all 8 connections are in use: silent ones are closed, new ones wait"
    ]


def test_silent_connections_are_closed_and_busy_ones_are_not(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS_OF_SILENCE", 0.5)
    answered = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    with (
        serving(loaded, Limits(max_seconds=4)) as server,
        server.opened(b"", HALF_HEADER, answered, HALF_BODY) as opened,
    ):
        began = time.monotonic()
        mute, half, idle, busy = opened
        assert mute.recv(1) == half.recv(1) == b""
        while part := idle.recv(1000):
            assert part
        assert time.monotonic() - began < 3.5
        assert busy.recv(100).startswith(b"HTTP/1.1 504")


@run_each(
    "limit, num_open, max_requests, expected",
    [
        (resource.RLIM_INFINITY, 10, 64, 1000),
        (20_000, 10, 64, 1000),
        (256, 10, 64, 166),  # 256 - 10 - 16 - 64
        (100, 10, 64, 37),  # half of 100 - 10 - 16: each may ask for one file
        (28, 10, 64, 1),
    ],
)
def test_connections_leave_handles_for_the_files_of_requests(
    limit: int, num_open: int, max_requests: int, expected: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: (limit, limit))
        patch.setattr(connections.os, "listdir", lambda _: ["handle"] * num_open)
        assert choose_max_connections(max_requests) == expected
        patch.setattr(resource, "getrlimit", lambda _: (27, 27))
        with pytest.raises(UserError, match="'ulimit -n' is 27, which leaves no connection to a client"):
            choose_max_connections(max_requests)


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}])
def test_a_body_far_above_the_limit_gets_413_and_not_a_reset_connection(loaded: Any, headers: dict[str, str]) -> None:
    """It is larger than what the system's buffers take, so the client still sends when the answer is known."""
    with serving(loaded, Limits(max_bytes=2_000_000)) as server:
        assert server.post(b" " * 20_000_000, **headers) == (
            413,
            {"error": "body: has more than 2,000,000 bytes, the limit"},
        )
        assert server.post(GOOD)[0] == 200


def test_a_stop_ends_half_requests(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SECONDS_TO_FINISH", 1)
    with serving(loaded, Limits()) as server, server.opened(HALF_BODY, HALF_BODY, HALF_HEADER) as opened:
        while len(server.app.places) < 2:
            time.sleep(0.01)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 6
        answers = [each.recv(1000) for each in opened]
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 503", b"HTTP/1.1 503", b""]
        assert not server.app.places


def test_begun_requests_are_answered_when_the_server_stops(loaded: Any) -> None:
    head = HALF_BODY.replace(b"999", str(len(GOOD)).encode())[:-1]
    with serving(loaded, Limits()) as server, server.opened(head + GOOD[:10]) as (opened,):
        while not server.app.places:
            time.sleep(0.01)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while not server.app.is_stopping:
            time.sleep(0.01)
        opened.sendall(GOOD[10:])
        assert opened.recv(1000).startswith(b"HTTP/1.1 200")
        stopping.join()


def test_the_folder_of_inputs_is_empty_after_a_body_that_was_never_whole(loaded: Any, tmp_path: Path) -> None:
    with serving(loaded, Limits(max_seconds=0.3)) as server, server.opened(HALF_BODY) as (opened,):
        assert b"504" in opened.recv(1000)
        while server.app.places:
            time.sleep(0.01)
        assert not list(server.app.folder.iterdir())
