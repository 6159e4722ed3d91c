"""Long library calls in background threads, so that a signal ends the wait for them at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["map_in_threads", "start"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def start(call: Callable[[], Result]) -> Future[Result]:
    """Start a call in a daemon thread, which, unlike an executor's, does not delay the end of the process."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised by future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], *, num_threads: int) -> list[Result]:
    """Map a function over items in threads, in order; after an exception, no further items are started."""
    waiting = deque(enumerate(items))
    results: dict[int, Result] = {}

    def work() -> None:
        while True:
            try:
                index, item = waiting.popleft()
            except IndexError:
                return
            results[index] = function(item)

    futures = [start(work) for _ in range(min(num_threads, len(items)))]
    try:
        for future in futures:
            future.result()
    finally:
        waiting.clear()
    return [results[index] for index in range(len(items))]
