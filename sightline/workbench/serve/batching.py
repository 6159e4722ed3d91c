"""Micro-batches: requests that arrive together go through the network together, in one thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from sightline.contract.errors import escape_to_one_line, summarise_error
from sightline.engine.distributed import World
from sightline.workbench.predict.prediction import FilePredictor
from sightline.workbench.predict.predictor import Predictor, Refusal

logger = logging.getLogger(__name__)

_SECONDS_TO_STOP = 5.0


class Reply(NamedTuple):
    """Document of a prediction, or the reason of a refusal."""

    document: dict[str, Any] | None
    reason: str = ""


class _Job(NamedTuple):
    path: Path
    result: Future[Reply]


class MicroBatcher:
    """Thread that reads the files of requests and predicts those of a kind together.

    A batch waits for others at most `wait_ms`, and has at most `batch_size` files. A request that is no longer waited
    for is skipped.
    """

    def __init__(self, predictor: Predictor[Any], world: World, *, batch_size: int, wait_ms: float) -> None:
        self._predictor = predictor
        self._predict = FilePredictor(predictor, world, batch_size=batch_size)
        self._batch_size, self._wait_s = batch_size, wait_ms / 1e3
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="sightline-serve", daemon=True)
        self.num_predicted = 0

    @property
    def num_batches(self) -> int:
        """Number of passes of the network."""
        return self._predict.num_batches

    def start(self) -> None:
        """Start the thread."""
        self._predictor.start([])
        self._thread.start()

    def stop(self) -> None:
        """Finish all jobs that are waited for and end the thread; one that does not end in time is left alone."""
        self._jobs.put(None)
        self._thread.join(_SECONDS_TO_STOP)
        if not self._thread.is_alive():
            self._predictor.close()

    def submit(self, path: Path, draw_name: str) -> Future[Reply]:
        """Submit a file, and the name by which it draws; the future has its answer."""
        job, names = _Job(path, Future()), self._predictor.draw_names
        names[path] = draw_name
        job.result.add_done_callback(lambda _: names.pop(path))
        self._jobs.put(job)
        return job.result

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            until = time.monotonic() + self._wait_s
            is_last = False
            while len(jobs) < self._batch_size and not is_last:
                try:
                    following = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if following is None:
                    is_last = True
                else:
                    jobs.append(following)
            self._predict_jobs(jobs)
            if is_last:
                return

    def _predict_jobs(self, jobs: list[_Job]) -> None:
        self._predict_all({job.path: job.result for job in jobs if job.result.set_running_or_notify_cancel()})

    def _predict_all(self, waiting: Mapping[Path, Future[Reply]]) -> None:
        """Set the result of each file; if one fails in an unexpected way, each is done alone."""
        try:
            for path, outcome in self._predict(waiting):
                far = self._predict.far.pop(path, "")
                if isinstance(outcome, Refusal):
                    waiting[path].set_result(Reply(None, _clean(outcome.reason, path)))
                    continue
                self.num_predicted += 1
                document = dict(self._predictor.full_document(outcome))
                document.pop("file", None)
                waiting[path].set_result(Reply(document | ({"warning": far} if far else {})))
        except Exception as error:  # noqa: BLE001 - one request must not end the server
            for path, result in waiting.items():
                if result.done():
                    continue
                if len(waiting) > 1:
                    self._predict_all({path: result})
                    continue
                logger.error("a request failed: %s", summarise_error(error))
                result.set_result(Reply(None, "the input cannot be predicted; its content is unusual"))


def _clean(reason: str, path: Path) -> str:
    """Put 'the input' in place of the server's path."""
    return escape_to_one_line(" ".join(reason.replace(str(path), "the input").split()))[:400]
