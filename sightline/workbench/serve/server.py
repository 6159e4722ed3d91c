"""Socket of a server, and uvicorn around its application until a signal ends it."""

from __future__ import annotations

import errno
import resource
import signal
import socket
from typing import Any

import uvicorn

from sightline.contract.errors import UserError

_MAX_CONNECTIONS = 1000
_SECONDS_TO_FINISH = 20
"""Longest time of begun requests after a signal; ending them and the threads takes some more."""


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


def make_server(app: Any) -> uvicorn.Server:
    """Make the server of an application, with limits of its connections."""
    config = uvicorn.Config(
        app,
        http="h11",
        log_level="warning",
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
        h11_max_incomplete_event_size=16384,
    )
    return uvicorn.Server(config)


def serve_forever(app: Any, listener: socket.socket) -> None:
    """Serve an application until SIGINT or SIGTERM; requests that have begun are finished first, within 30 s."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection is one, and each input
    server = make_server(app)
    # uvicorn sends itself the signal again once it has stopped: a handler that does not end the process takes it.
    previous = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: Any) -> None:
    """Handle a signal that has been served."""
