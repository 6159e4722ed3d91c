"""One request and its answer: a body of bounded size, and an answer that ends after the body did."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from sightline.workbench.serve.inputs import RequestError

T = TypeVar("T")

_MAX_DRAINED = 16
"""Maximum of bytes that are read and dropped, in times of what a body may have."""


class Exchange:
    """Messages of a request that the application receives and sends.

    A client that still sends its body, and whose connection is closed, sees "connection reset" in place of the answer.
    So what remains of the body is read and dropped before the answer ends, for a bounded number of bytes and seconds.
    `status` is that of the answer, 0 until it begins.
    """

    def __init__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any], *, max_bytes: int) -> None:
        self.status = 0
        self._receive, self._send, self._max_bytes = receive, send, max_bytes
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        self._stated_bytes = int(stated[:20]) if stated.isdigit() else 0
        self._num_bytes = 0
        self._is_whole = self._is_unfinished = False

    async def receive(self) -> Any:
        """Receive a part of the body. Raises RequestError once the body is too large, by its header at once."""
        if max(self._stated_bytes, self._num_bytes) <= self._max_bytes:
            message = await self._receive_part()
            if self._num_bytes <= self._max_bytes:
                return message
        raise RequestError(413, f"body: has more than {self._max_bytes:,} bytes, the limit")

    async def send(self, message: Any) -> None:
        """Send a part of the answer; its end waits for `finish` while the body is not whole."""
        self.status = message.get("status", self.status)
        if message["type"] == "http.response.body" and not message.get("more_body") and not self._is_whole:
            self._is_unfinished = True
            message = {**message, "more_body": True}
        await self._send(message)

    async def finish(self, *, seconds: float) -> None:
        """Read and drop the rest of the body, for at most so long, and end the answer."""
        if not self._is_unfinished:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._is_whole and self._num_bytes < _MAX_DRAINED * self._max_bytes:
                    await self._receive_part()
        await self._send({"type": "http.response.body", "body": b""})

    async def _receive_part(self) -> Any:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body")  # also if the client is gone
        return message


class RequestPlace:
    """RequestPlace of a request among those that the server works on, and the folder of its input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._work: Future[Any] = Future()
        self._work.cancel()

    async def wait_for(self, work: Future[T]) -> T:
        """Wait for the work of a thread, which keeps the place until it ends, also if nobody waits any more."""
        self._work = work
        return await asyncio.wrap_future(work)

    def leave(self, places: set[RequestPlace]) -> None:
        """Free the place, and delete the folder, now or when the work has ended: a thread cannot be cancelled."""

        def free(_: Any) -> None:
            shutil.rmtree(self.folder, ignore_errors=True)
            places.discard(self)

        self._work.add_done_callback(free)
