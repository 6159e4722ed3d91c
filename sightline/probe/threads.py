"""Long calls of libraries beside the thread that waits: a signal ends the wait at once, whatever they still do."""

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
    """Begin a call in a thread that no end of the process waits for, as those of an executor do."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], *, num_threads: int) -> list[Result]:
    """`function` of every item, in order. Left by an exception, the items that have not been begun never are."""
    waiting = deque(enumerate(items))
    results: dict[int, Result] = {}

    def work() -> None:
        while True:
            try:
                place, item = waiting.popleft()
            except IndexError:
                return
            results[place] = function(item)

    started = [start(work) for _ in range(min(num_threads, len(items)))]
    try:
        for each in started:
            each.result()
    finally:
        waiting.clear()
    return [results[place] for place in range(len(items))]
