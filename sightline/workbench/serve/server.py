"""Server of a run: its predictor, its application, and uvicorn around it until a signal ends it."""

from __future__ import annotations

import errno
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sightline.contract.errors import UserError, assert_installed
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.workbench.predict.prediction import build_predictor

_EXTRA = ("fastapi", "uvicorn", "python_multipart")


def assert_servable() -> None:
    """Raise MissingExtraError if a module of the extra `serve` is not installed."""
    assert_installed(*_EXTRA, needed_by="serve")


@contextmanager
def open_app(
    run: TrainedRun,
    world: World,
    *,
    limits: Any = None,
    batch_size: int | None = None,
    wait_ms: float = 5.0,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """Open the application of a run, with a folder of its own for inputs, which is deleted at the end.

    Raises ConfigError for a task without a predictor and for unknown options.
    """
    assert_servable()
    from sightline.workbench.serve.app import Limits, make_app
    from sightline.workbench.serve.batching import MicroBatcher
    from sightline.workbench.serve.inputs import InputStore, describe_inputs

    predictor = build_predictor(run, world=world, **(options or {}))
    batcher = MicroBatcher(
        predictor, world, batch_size=batch_size or min(run.config.evaluate.batch_size, 32), wait_ms=wait_ms
    )
    with tempfile.TemporaryDirectory(prefix="sightline-serve-") as folder:
        store = InputStore(predictor)
        info = {
            "run": run.config.name,
            "task": run.config.task.name,
            "model": run.config.model.name,
            "class_names": list(run.class_names),
            "input": describe_inputs(store, predictor, (options or {}).get("columns")),
            **predictor.about(),
        }
        yield make_app(batcher, store, info, limits or Limits(), Path(folder))


def open_listener(host: str, port: int) -> socket.socket:
    """Open the socket of a server. Raises UserError for an address that this machine lacks, and for a port in use."""
    if not host:
        raise UserError("--host: is empty; give an address of this machine, as 127.0.0.1")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(f"--port {port}: another program listens there; give another port") from None
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: cannot be listened on ({reason}); give an address of this machine, as "
            "127.0.0.1, and a free port"
        ) from None


def serve_forever(app: Any, listener: socket.socket) -> None:
    """Serve an application until SIGINT or SIGTERM; requests that have begun are finished first, within 30 s."""
    from sightline.workbench.serve.connections import make_server

    server = make_server(app)
    # uvicorn sends itself the signal again once it has stopped: it must meet a handler that does not end the process.
    previous = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: Any) -> None:
    """Handle a signal that has been served."""
