"""Socket of a server, and uvicorn around its application until a signal ends it."""

from __future__ import annotations

import errno
import logging
import resource
import signal
import socket
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sightline.contract.errors import UserError

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1000
_NUM_OWN_FILES = 128
"""Open files that are kept for all but connections: inputs, uploads, libraries, folders."""

_SECONDS_OF_SILENCE = 10.0
"""A connection that has no request in work at two looks of this distance is closed."""

_SECONDS_TO_FINISH = 20
"""Longest time of begun requests after a signal; ending them and the threads takes some more."""


class Listener(socket.socket):
    """Listening socket that has at most so many connections open; one above them takes the place of one that waits.

    That is the one that has waited longest for its client; where all are in work, the new one is closed at once.

    One that is left waiting would wake the loop of events again and again, and one that finds no file free is a
    traceback in the log.
    """

    def __init__(self, listening: socket.socket, max_connections: int) -> None:
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self.max_connections = max_connections
        self._accepted: list[socket.socket] = []
        self._has_warned = False

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises BlockingIOError if none waits, or those accepted last have not begun yet, which may soon wait themselves;
        ConnectionAbortedError for one above the limit.
        """
        if len(self._accepted) >= self.max_connections:
            self._accepted = [accepted for accepted in self._accepted if accepted.fileno() != -1]
        has_room = len(self._accepted) < self.max_connections or _Connection.end_longest()
        if not has_room and _Connection.count() < len(self._accepted):
            raise BlockingIOError
        connection, address = super().accept()
        if has_room:
            self._accepted.append(connection)
            return connection, address
        connection.close()
        if not self._has_warned:
            logger.warning("%d connections are in work, the most; others are closed", self.max_connections)
            self._has_warned = True
        raise ConnectionAbortedError


def count_connections() -> int:
    """Count the connections that the limit of open files allows. Raises UserError where it allows none."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    if most <= _NUM_OWN_FILES:
        raise UserError(f"ulimit -n {most}: allows too few open files; give more than {_NUM_OWN_FILES}, as 1024")
    return min(_MAX_CONNECTIONS, most - _NUM_OWN_FILES)


class _Connection(H11Protocol):
    """Connection of a client that is closed when it stays silent, or never ends the head of a request."""

    _open: ClassVar[dict[_Connection, None]] = {}
    """Connections in the order in which they began to wait for their client."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._open[self] = None
        self._look = self.loop.call_later(_SECONDS_OF_SILENCE, self._end_if_silent, self._find_silence())

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        self._open.pop(self, None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait for the client's next request."""
        if self in self._open:
            self._open[self] = self._open.pop(self)
        super().on_response_complete()

    @classmethod
    def count(cls) -> int:
        """Count the connections that are open."""
        return len(cls._open)

    @classmethod
    def end_longest(cls) -> bool:
        """Close the connection that has waited longest for a whole request; return False if none waits."""
        longest = next((each for each in cls._open if each._is_waiting), None)
        if longest is None:
            return False
        cls._open.pop(longest)
        longest.transport.abort()
        return True

    @property
    def _is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _find_silence(self) -> tuple[bool, Any]:
        """Return whether no request is in work, and the last one."""
        return self.cycle is None or self.cycle.response_complete, self.cycle

    def _end_if_silent(self, before: tuple[bool, Any]) -> None:
        now = self._find_silence()
        if now[0] and now == before:
            self.transport.close()
            return
        self._look = self.loop.call_later(_SECONDS_OF_SILENCE, self._end_if_silent, now)


def open_listener(host: str, port: int) -> Listener:
    """Open the socket of a server, with as many connections as open files allow.

    Raises UserError for an address that this machine lacks, for a port in use, and for a limit of too few open files.
    """
    if not host:
        raise UserError("--host: is empty; give an address of this machine, as 127.0.0.1")
    max_connections = count_connections()
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return Listener(socket.create_server(address, family=family, backlog=2048), max_connections)
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(f"--port {port}: another program listens there; give another port") from None
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}: cannot be listened on ({reason}); give an address of this machine, as "
            "127.0.0.1, and a free port"
        ) from None


def make_server(app: Any) -> uvicorn.Server:
    """Make the server of an application; it ends connections that stay silent."""
    config = uvicorn.Config(
        app,
        http=_Connection,
        loop="asyncio",  # others accept without the listener
        log_level="warning",
        server_header=False,
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
