"""Connections of the server: how many are open, how long each may be silent, and how they end when it stops."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import time
from functools import partial
from typing import Any, cast

import uvicorn

from sightline.contract.errors import UserError

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1000
_OTHER_HANDLES = 16
"""Files and sockets that the process may open beside those of connections and requests."""
_SECONDS_OF_SILENCE = 10.0
"""Longest time until the header of a request is whole, and from an answer to the next header."""
_SECONDS_AT_LIMIT = 1.0
"""The same while all connections are in use: the longest silent one makes room for a new one."""
_SECONDS_TO_FINISH = 20
"""Longest time of begun requests after a signal; ending them and the threads takes some more."""
_SECONDS_TO_SAY = 3


def choose_max_connections(max_requests: int) -> int:
    """Choose how many connections may be open, so that those and their requests' files stay below `ulimit -n`.

    Raises UserError if that leaves none.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    num_free = limit - len(os.listdir("/dev/fd")) - _OTHER_HANDLES
    count = max(num_free - max_requests, num_free // 2)  # a request opens at most one file at a time
    if count < 1:
        raise UserError(f"serve: 'ulimit -n' is {limit}, which leaves no connection to a client; raise it to 256")
    return min(count, _MAX_CONNECTIONS)


def make_server(app: Any) -> ConnectionServer:
    """Make the server of an application. Raises UserError if no handle is left for a connection."""
    config = uvicorn.Config(
        app,
        http="h11",
        log_level="warning",
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
        h11_max_incomplete_event_size=16384,
    )
    return ConnectionServer(config, max_connections=choose_max_connections(app.limits.max_requests))


class ConnectionServer(uvicorn.Server):
    """Server that accepts a connection only where it has room for one, and closes silent ones.

    asyncio accepts without a limit, and tries again at once, with a traceback, where the system has no handle left.
    """

    def __init__(self, config: uvicorn.Config, *, max_connections: int) -> None:
        super().__init__(config)
        self._max_connections = max_connections
        self._noted: dict[Any, tuple[float, Any]] = {}
        self._has_warned = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections of one listening socket."""
        await super().startup(sockets=[])
        assert sockets is not None
        sockets[0].setblocking(False)
        self._accepting = asyncio.create_task(self._accept(sockets[0]))

    async def on_tick(self, counter: int) -> bool:
        """Close connections that are silent for too long."""
        if counter % 5 == 0:
            for connection in self._list_silent(_SECONDS_OF_SILENCE):
                connection.transport.abort()
        if self._accepting.done():
            self._accepting.result()  # raises what has ended it: without it the server is of no use
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let begun requests finish, and end those that do not."""
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        app: Any = self.config.app
        app.is_stopping = True
        await super().shutdown(sockets)
        if self.server_state.tasks:  # they were cancelled, and say so to their clients
            await asyncio.wait(self.server_state.tasks, timeout=_SECONDS_TO_SAY)

    async def _accept(self, listener: socket.socket) -> None:
        loop, protocol = asyncio.get_running_loop(), cast(Any, self.config.http_protocol_class)
        make_protocol = partial(
            protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        while True:
            try:
                if len(self.server_state.connections) < self._max_connections:
                    accepted, _ = await loop.sock_accept(listener)
                    await loop.connect_accepted_socket(make_protocol, accepted)
                else:
                    await self._make_room(f"all {self._max_connections} connections are in use")
            except ConnectionError:
                continue  # the client was faster
            except OSError as error:
                await self._make_room(f"no connection can be accepted ({error.strerror})")

    async def _make_room(self, reason: str) -> None:
        """Close the connection that has been silent for longest, or wait for one to end."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning("%s: silent ones are closed, new ones wait", reason)
        silent = self._list_silent(_SECONDS_AT_LIMIT)
        if silent:
            silent[0].transport.abort()
        await asyncio.sleep(0 if silent else 0.05)

    def _list_silent(self, seconds: float) -> list[Any]:
        """Note which connections are silent, and list those that have been so for some time, the longest first."""
        now, previous, self._noted = time.monotonic(), self._noted, {}
        for connection in self.server_state.connections:
            if (state := _describe_state(connection)) is not None:
                since, noted = previous.get(connection, (now, state))
                self._noted[connection] = (since if noted == state else now, state)
        longest_first = sorted(self._noted, key=lambda connection: self._noted[connection][0])
        return [connection for connection in longest_first if now - self._noted[connection][0] >= seconds]


def _describe_state(connection: Any) -> Any:
    """Describe what a silent connection has last done; None while the server works for it.

    Its answer may still be under way: then the state changes with what the client has read of it.
    """
    cycle = connection.cycle
    if cycle is not None and not cycle.response_complete and not connection.transport.is_closing():
        return None
    return cycle, connection.transport.get_write_buffer_size()
