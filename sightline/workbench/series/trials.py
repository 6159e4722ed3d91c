"""Trials of Optuna that workers share: each is asked for once, and that of a worker that has ended is handed on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from sightline.contract.errors import RunError
from sightline.engine.records import EvaluationRecord, StepRecord
from sightline.runs.process_identity import ProcessIdentity
from sightline.runs.run_documents import read_lines
from sightline.training.stop_request import StopRequest
from sightline.training.train_run import Reporter
from sightline.workbench.series.loop import StoppedError, describe_failure, is_left
from sightline.workbench.series.search_space import SearchDimension
from sightline.workbench.series.storage import STORAGE_ERRORS

BEAT_S = 60.0
"""Seconds between two signs of life of a worker."""
MAX_SILENCE_S = 600.0
"""Seconds without a sign of life after which the trial of a worker on another host is taken up again."""
MAX_RETRIES = 4
"""Number of times that a trial is taken up again whose worker has ended, as it may be the cause."""
_SEED_DISTANCE = 100_003
"""Distance of the seeds of two sweeps, above their number of trials."""
_SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}


class SharedTrials:
    """Trials of a study of Optuna, by number; a later attempt at a trial has the number of the first."""

    def __init__(self, study: Any, reporter: Reporter) -> None:
        self.study = study
        self._reporter = reporter

    def list(self, *states: TrialState) -> list[Any]:
        """List the attempts of these states, of all states if none is given."""
        attempts: list[Any] = self.study.get_trials(deepcopy=False, states=states or None)
        return attempts

    def by_number(self) -> dict[int, Any]:
        """Return the latest attempt at each trial."""
        attempts = self.list()
        return dict(sorted((_get_number(attempt, attempts), attempt) for attempt in attempts))

    def start(self, space: Sequence[SearchDimension], *, most: int, sampler: str, seed: int) -> tuple[int, Any] | None:
        """Start the next trial, and return it with its number; None once there are `most` of them, and none waits.

        One that waits comes first, with the values, folder and figures that it has.
        """
        for attempt in self.list(TrialState.RUNNING):
            if _is_abandoned(attempt):
                self.hand_on(attempt.number, max_retries=MAX_RETRIES)
        if len(self.by_number()) >= most and not self.list(TrialState.WAITING):
            return None
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)  # draws nothing yet
        trial = self.study.ask()
        attempts = self.list()
        number = _get_number(attempts[trial.number], attempts)
        # a seed for each trial: repeated and parallel workers repeat no draw
        self.study.sampler = _SAMPLERS[sampler](seed=(seed * _SEED_DISTANCE + number) % 2**32)
        trial.set_user_attr("worker", ProcessIdentity.current(socket.gethostname()).to_dict())
        trial.set_user_attr("alive", time.time())
        trial.set_user_attr("values", {dimension.key: dimension.suggest(trial) for dimension in space})
        return number, trial

    @contextlib.contextmanager
    def told(self, trial: Any, path: Path, metric: str) -> Iterator[TrialObserver]:
        """Context in which a trial is trained in `path` and gives signs of life; afterwards the study is told its end.

        Its value is the best of the run's own evaluations, as of its best checkpoint. Raises what ended the training,
        but not its pruning.
        """
        observer = TrialObserver(trial, metric)
        try:
            with _beating(trial):
                yield observer
            lines = [line for line in read_lines(path / "metrics.jsonl") if line["split"] != "train"]
            figures = {line["epoch"] + 1: line[metric] for line in lines if line.get(metric) is not None}
            if not figures:
                raise RunError(f"no evaluation has a figure {metric}")
        except Exception as error:
            if observer.is_pruned and isinstance(error, StoppedError):
                self.study.tell(trial, state=TrialState.PRUNED)
                return
            if is_left(error):
                self.hand_on(trial.number)
            else:
                trial.set_user_attr("reason", describe_failure(error))
                self.study.tell(trial, state=TrialState.FAIL)
            raise
        is_max = self.study.direction == optuna.study.StudyDirection.MAXIMIZE
        epoch = (max if is_max else min)(figures, key=figures.__getitem__)
        trial.set_user_attr("epoch", epoch)
        self.study.tell(trial, figures[epoch])

    def hand_on(self, attempt_number: int, *, max_retries: int | None = None) -> None:
        """Queue a trial again for any worker, which resumes its checkpoint; it has failed after `max_retries`."""
        try:
            self.study.tell(attempt_number, state=TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another worker was faster
            return
        attempts = self.list()
        attempt = attempts[attempt_number]
        earlier, then = [*_list_earlier(attempt), attempt_number], "its workers ended too often; it is left out"
        if max_retries is None or len(earlier) <= max_retries:
            waiting = optuna.create_trial(
                state=TrialState.WAITING,
                params=attempt.params,
                distributions=attempt.distributions,
                user_attrs={**attempt.user_attrs, "earlier": earlier},
                intermediate_values=attempt.intermediate_values,
            )
            self.study.add_trial(waiting)
            then = "it waits to be taken up again"
        self._reporter.note(f"trial {_get_number(attempt, attempts)}: stopped; {then}")


def _list_earlier(attempt: Any) -> list[int]:
    """List the earlier attempts at a trial, the first of which has its number."""
    earlier: list[int] = attempt.user_attrs.get("earlier", [])
    return earlier


def _get_number(attempt: Any, attempts: Sequence[Any]) -> int:
    first = (*_list_earlier(attempt), attempt.number)[0]
    return sum(not _list_earlier(other) for other in attempts[:first])


def _is_abandoned(attempt: Any) -> bool:
    """Return True if the worker of a running trial has ended, or on another host has been silent for too long."""
    attributes = attempt.user_attrs
    if "worker" in attributes:
        worker = ProcessIdentity(**attributes["worker"])
        if worker.is_reachable:
            return worker.is_gone
    return time.time() - attributes.get("alive", attempt.datetime_start.timestamp()) > MAX_SILENCE_S


@contextlib.contextmanager
def _beating(trial: Any) -> Iterator[None]:
    """Context in which a thread writes a sign of life into a trial at intervals."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(*STORAGE_ERRORS):
                trial.set_user_attr("alive", time.time())

    thread = threading.Thread(target=beat, name="sweep: signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class TrialObserver:
    """Observer that reports every evaluation to a trial, and requests a `stop` where the pruner gives the trial up."""

    def __init__(self, trial: Any, metric: str) -> None:
        self._trial = trial
        self._metric = metric
        self._is_last = False
        self.stop = StopRequest()
        self.is_pruned = False

    def on_step(self, record: StepRecord) -> None:
        self._is_last = record.step == record.num_steps

    def on_evaluation(self, record: EvaluationRecord) -> None:
        value = record.metrics[self._metric]
        if value != value:  # nothing was counted
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an epoch that an earlier worker has reported
            self._trial.report(value, record.epoch + 1)
        if not self._is_last and not self.stop and self._trial.should_prune():
            self.is_pruned = True
            self.stop.request()

    def on_end(self, reason: str) -> None:
        """Do nothing: `told` records the end of a trial."""
