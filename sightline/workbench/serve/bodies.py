"""Bodies of requests while they are received: bounded together, so that slow clients leave room for others."""

from __future__ import annotations

import asyncio


class Bodies:
    """Bodies that are being received: of at most `most` bytes together. Above that, the one that stood longest goes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.num_bytes = 0
        self._open: dict[Body, None] = {}
        """In the order of their last parts."""

    def __len__(self) -> int:
        """Return the number of bodies of which a part has come."""
        return len(self._open)

    def open(self) -> Body:
        """Begin a body, in the task that receives it."""
        return Body(self)

    def count(self, body: Body, num_bytes: int) -> None:
        """Count a part that has come of a body, and end others if it is too much."""
        self._open.pop(body, None)
        self._open[body] = None
        self.num_bytes += num_bytes
        while self.num_bytes > self._most:
            next(iter(self._open)).drop()

    def forget(self, body: Body) -> None:
        """Count a body no more, which still has its bytes."""
        if body in self._open:
            del self._open[body]
            self.num_bytes -= body.num_bytes


class Body:
    """Body of a request that the current task receives."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._task = asyncio.current_task()
        self._content = bytearray()
        self.is_dropped = False

    @property
    def num_bytes(self) -> int:
        """Number of bytes that have come."""
        return len(self._content)

    def add(self, part: bytes) -> None:
        """Add a part."""
        self._content += part
        self._bodies.count(self, len(part))

    def finish(self) -> bytes:
        """Return the whole body, which is unfinished no more."""
        content = bytes(self._content)
        self.close()
        return content

    def drop(self) -> None:
        """End the task that receives the body, in favour of others."""
        assert self._task is not None
        self.is_dropped = True
        self.close()
        self._task.cancel()

    def resume(self) -> None:
        """Let the task of a dropped body answer."""
        assert self._task is not None
        self._task.uncancel()

    def close(self) -> None:
        """Forget the body and its bytes."""
        self._bodies.forget(self)
        self._content.clear()
