"""Sweep: trials of a search space, each a training run; workers on any machine share one storage of Optuna."""

from __future__ import annotations

import contextlib
import datetime
import math
import shlex
import socket
import threading
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.config.run_config import to_plain
from sightline.contract.errors import RunError, UserError, assert_installed, summarise_error
from sightline.engine.distributed import assert_device
from sightline.engine.launcher import launched_world_size
from sightline.engine.records import EvaluationRecord, StepRecord
from sightline.engine.session import StopRequest
from sightline.runs.process_identity import ProcessIdentity
from sightline.runs.run_directory import LOCK, find_holder, read_lines, write_document
from sightline.runs.run_files import is_run
from sightline.runs.run_records import flatten_config
from sightline.training.train_run import Reporter, TrainResult, read_with_plugins, reread, restore_signal_handlers
from sightline.training.train_run import train_run as train
from sightline.workbench.compress.search.baselines import explain_storage, open_study
from sightline.workbench.study.grid import resolve_metric_mode
from sightline.workbench.study.search_space import SearchDimension, check_space, list_grid

NAME = "sweep"
BEAT_S = 60.0
"""Seconds between two signs of life of a worker."""
MAX_SILENCE_S = 600.0
"""Seconds without a sign of life after which the trial of a worker on another host is taken up again."""
MAX_ATTEMPTS = 3
MAX_FAILURES = 3
"""Number of failed trials after which a sweep without a finished one ends: its config is at fault."""
_NOT_COMPARED = ("data.root", "loader.", "log.", "distributed.", "checkpoint.")
_SIGNALS = 128
_SEED_DISTANCE = 100_003
"""Distance of the seeds of two sweeps, above their number of trials."""
Sampler = Literal["tpe", "random", "grid"]


@dataclass(frozen=True)
class SweepSettings:
    """Settings of a sweep: its config, folder and storage, and how trials are chosen.

    `num_trials` is that of all workers together; None is the whole grid, or 20.
    """

    config: Path
    out: Path
    overrides: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    storage: str | None = None
    sampler: Sampler = "tpe"
    num_trials: int | None = None
    seed: int = 0
    is_pruned: bool = True


class TrialObserver:
    """Observer that reports every evaluation to a trial, and requests a stop where the pruner gives the trial up."""

    def __init__(self, trial: Any, metric: str, stop: StopRequest, *, known: Container[int], is_pruned: bool) -> None:
        """`known` are the epochs that were reported already, by an earlier worker of the trial."""
        self._trial = trial
        self._known = known
        self._metric = metric
        self._stop = stop
        self._may_prune = is_pruned
        self._is_last = False
        self.is_given_up = False

    def on_step(self, record: StepRecord) -> None:
        self._is_last = record.step == record.num_steps

    def on_evaluation(self, record: EvaluationRecord) -> None:
        value, epoch = record.metrics[self._metric], record.epoch + 1
        if math.isnan(value):  # nothing was counted
            return
        if epoch not in self._known:
            self._trial.report(value, epoch)
        if self._may_prune and not self._is_last and not self._stop and self._trial.should_prune():
            self.is_given_up = True
            self._stop.request()

    def on_end(self, reason: str) -> None:
        """Do nothing: the sweep records the end of a trial."""


class Sweep:
    """Sweep in a storage; a call runs trials until none is left, and returns the document and an exit code.

    The space is tried on the config, and the folder's sweep compared with this one, before anything is trained.
    Raises UserError and ConfigError for what cannot run.
    """

    def __init__(self, settings: SweepSettings, dimensions: Sequence[SearchDimension], reporter: Reporter) -> None:
        assert_installed("optuna", needed_by=NAME)
        if (launched_world_size() or 1) > 1:
            raise UserError("sweep: a worker is one process; start it several times, not by a launcher (--storage)")
        self._settings, self._dimensions, self._reporter = settings, dimensions, reporter
        read = read_with_plugins(settings.config, settings.overrides, settings.plugins)
        self.notes, self._plugins, config = read.notes, read.plugins, read.config
        check_space(dimensions, settings.overrides, lambda overrides: reread(settings.config, overrides))
        self._grid = list_grid(dimensions) if settings.sampler == "grid" else []
        num_trials = settings.num_trials or len(self._grid) or 20
        self._num_trials = min(num_trials, len(self._grid)) if self._grid else num_trials
        self._metric, self._select = config.evaluate.metric, config.evaluate.select
        self._mode = resolve_metric_mode(config, self._metric)
        self._storage = str(settings.out / f"{NAME}.journal") if settings.storage is None else settings.storage
        self._name = config.name
        assert_device(settings.device)
        if is_run(settings.out):
            raise UserError(f"--out {settings.out}: is the folder of a run; give one of the sweep's own")
        direction: Literal["maximize", "minimize"] = "maximize" if self._mode == "max" else "minimize"
        self._study = open_study(self._storage, name=self._name, directions=[direction], needed_by=f"{NAME}: storage")
        with self._storage_explained():
            self._assert_same_sweep(flatten_config(to_plain(config)))
        settings.out.mkdir(parents=True, exist_ok=True)

    def __call__(self) -> tuple[dict[str, Any], int]:
        code = 0
        while code == 0:
            with self._storage_explained():
                self._take_up_dead_trials()
                trial = None if self._has_only_failures() else self._start_trial()
            if trial is None:
                break
            code = self._run_trial(trial)
            self._write()
        document = self._write()
        return document, code or int(document["best"] is None and document["num_running"] == 0)

    # --- storage ----------------------------------------------------------------------------------------------------

    def _storage_explained(self) -> contextlib.AbstractContextManager[None]:
        return explain_storage(self._storage, needed_by=f"{NAME}: storage")

    def _assert_same_sweep(self, config: Mapping[str, str]) -> None:
        """Note what is searched in the storage, or raise UserError if it holds a sweep of something else."""
        settings = self._settings
        space = {dimension.key: dimension.describe() for dimension in self._dimensions}
        compared = {key: value for key, value in config.items() if not key.startswith(_NOT_COMPARED)}
        wanted = {"space": space, "sampler": settings.sampler, "seed": settings.seed, "config": compared}
        stored = self._study.user_attrs.get(NAME)
        if stored is None:
            self._study.set_user_attr(NAME, wanted)
            return
        differing = [key for key in ("space", "sampler", "seed") if stored[key] != wanted[key]]
        keys = stored["config"].keys() | compared.keys()
        differing += sorted(key for key in keys if stored["config"].get(key) != compared.get(key))
        if differing:
            raise UserError(
                f"sweep: storage: {self._storage}: holds a sweep '{self._name}' that differs in "
                f"{', '.join(differing[:5])}; give the same, or another --out or --storage"
            )

    def _list_trials(self, *states: str) -> list[Any]:
        """List the trials of these states (of all states if none is given), without surplus ones."""
        trials = self._study.get_trials(deepcopy=False)
        return [t for t in trials if (not states or t.state.name in states) and not t.user_attrs.get("is_surplus")]

    def _take_up_dead_trials(self) -> None:
        """Queue the trials of workers that have ended without finishing them."""
        for trial in self._list_trials("RUNNING"):
            if _is_abandoned(trial):
                self._queue_again(trial, is_fault=True)

    def _queue_again(self, trial: Any, *, is_fault: bool) -> None:
        """Queue a trial with the values, folder and figures that it has; its checkpoint is resumed.

        A trial whose worker ended without a word, a fault, is taken up a few times only: it may be the cause.
        """
        import optuna

        state = optuna.trial.TrialState
        try:
            self._study.tell(trial.number, state=state.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another worker was faster
            return
        attributes = dict(trial.user_attrs)
        attributes["attempt"] = attributes.get("attempt", 1) + is_fault
        attributes["retry_of"] = number = attributes.get("retry_of", trial.number)
        if attributes["attempt"] > MAX_ATTEMPTS:
            self._reporter.note(f"trial {number}: {MAX_ATTEMPTS} workers ended while they trained it; it is left out")
            return
        self._study.add_trial(
            optuna.create_trial(
                state=state.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=attributes,
                intermediate_values=trial.intermediate_values,
            )
        )
        ended = "its worker ended; it is taken up again" if is_fault else "stopped; it waits to be taken up again"
        self._reporter.note(f"trial {number}: {ended}")

    def _start_trial(self) -> Any | None:
        """Start the next trial: a queued one, or a new one while there are fewer than the sweep needs; else None."""
        import optuna

        is_complete = self._count_new_trials() >= self._num_trials
        if is_complete and not self._list_trials("WAITING"):
            return None
        self._study.sampler = optuna.samplers.RandomSampler(seed=0)  # draws nothing yet: values are drawn by number
        trial = self._study.ask()
        place = trial.user_attrs.get("place", self._count_new_trials(before=trial.number))
        if "retry_of" not in trial.user_attrs and place >= self._num_trials:  # another worker took the last one
            trial.set_user_attr("is_surplus", True)
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return None
        trial.set_user_attr("worker", ProcessIdentity.current(socket.gethostname()).to_dict())
        trial.set_user_attr("alive", time.time())
        trial.set_user_attr("place", place)
        self._study.sampler = self._make_sampler(place)
        trial.set_user_attr("values", {dimension.key: dimension.suggest(trial) for dimension in self._dimensions})
        self._study.pruner = optuna.pruners.MedianPruner()
        return trial

    def _count_new_trials(self, *, before: int | None = None) -> int:
        """Count the trials that are no further attempt at an earlier one; with `before`, those of lower numbers."""
        trials = [trial for trial in self._list_trials() if "retry_of" not in trial.user_attrs]
        return sum(before is None or trial.number < before for trial in trials)

    def _make_sampler(self, place: int) -> Any:
        """Make the sampler of one trial, with a seed of its own: repeated and parallel workers repeat no draw."""
        import optuna

        seed = (self._settings.seed * _SEED_DISTANCE + place) % 2**32
        if self._settings.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=False)
        if self._settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return _make_point_sampler(self._dimensions, self._grid[place])

    def _has_only_failures(self) -> bool:
        failed = [trial for trial in self._list_trials("FAIL") if "reason" in trial.user_attrs]
        return len(failed) >= MAX_FAILURES and not self._list_trials("COMPLETE", "PRUNED")

    # --- trials -----------------------------------------------------------------------------------------------------

    def _run_trial(self, trial: Any) -> int:
        """Train a trial, or go on with it, and record its value; return 0, or the exit code of a signal."""
        import optuna

        state = optuna.trial.TrialState
        settings, number = self._settings, trial.user_attrs.get("retry_of", trial.number)
        overrides = [f"{key}={text}" for key, text in trial.user_attrs["values"].items()]
        self._reporter.note(f"trial {number}: {shlex.join(overrides)}")
        stop = StopRequest()
        with self._storage_explained():
            known = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        observer = TrialObserver(trial, self._metric, stop, known=known, is_pruned=settings.is_pruned)
        path = settings.out / "trials" / f"{number:04d}"
        holder = find_holder(path)
        if holder is not None and holder != socket.gethostname():  # that worker was silent, and lost the trial
            (path / LOCK).unlink(missing_ok=True)
        try:
            with _beating(trial), restore_signal_handlers():
                result = train(
                    reread(settings.config, [*settings.overrides, *overrides]),
                    plugins=self._plugins,
                    out=path,
                    resume="auto",
                    device=settings.device,
                    reporter=self._reporter,
                    stop=stop,
                    observers=[observer],
                    shows_progress=True,
                )
        except (UserError, RunError) as error:
            result, reason = TrainResult(None), summarise_error(error)
        else:
            reason = "" if result.path is not None else "an error among the findings of the checks"
        with self._storage_explained():
            if observer.is_given_up:
                self._study.tell(trial, state=state.PRUNED)
            elif result.stopped_by is not None:
                self._queue_again(self._study.get_trials(deepcopy=False)[trial.number], is_fault=False)
                return _SIGNALS + result.stopped_by
            elif not reason and (best := self._read_best(path)) is not None:
                trial.set_user_attr("epoch", best[1])
                self._study.tell(trial, best[0])
            else:
                trial.set_user_attr("reason", reason or f"no evaluation has a figure {self._metric}")
                self._study.tell(trial, state=state.FAIL)
                self._reporter.note(f"error: trial {number}: {trial.user_attrs['reason']}; the sweep goes on")
        return 0

    def _read_best(self, path: Path) -> tuple[float, int] | None:
        """Read the best figure of a run's own evaluations, and its epoch: that of its best checkpoint."""
        lines = [line for line in read_lines(path / "metrics.jsonl") if line["split"] != "train"]
        figures = [(line[self._metric], line["epoch"] + 1) for line in lines if line.get(self._metric) is not None]
        sign = 1 if self._mode == "max" else -1
        return max(figures, key=lambda figure: sign * figure[0], default=None)

    # --- result -----------------------------------------------------------------------------------------------------

    def _write(self) -> dict[str, Any]:
        """Write the document of all trials so far into the folder, and return it."""
        with self._storage_explained():
            trials = self._list_trials()
        superseded = {trial.user_attrs.get("retry_of") for trial in trials}
        attempts = {trial.user_attrs.get("retry_of", trial.number): trial for trial in trials}
        rows = [self._describe_trial(number, trial) for number, trial in sorted(attempts.items())]
        finished = [row for row in rows if row["state"] == "finished"]
        sign = 1 if self._mode == "max" else -1
        best = max(finished, key=lambda row: sign * row["value"], default=None)
        document = {
            "config": str(self._settings.config),
            "overrides": list(self._settings.overrides),
            "storage": self._storage,
            "metric": self._metric,
            "mode": self._mode,
            "part": self._select,
            "sampler": self._settings.sampler,
            "space": {dimension.key: dimension.describe() for dimension in self._dimensions},
            "num_trials": self._num_trials,
            "num_running": sum(row["state"] in ("running", "waiting") for row in rows),
            "num_taken_up": len(superseded - {None}),
            "trials": rows,
            "best": best,
        }
        write_document(self._settings.out / f"{NAME}.json", document)
        return document

    def _describe_trial(self, number: int, trial: Any) -> dict[str, Any]:
        attributes, values = trial.user_attrs, trial.intermediate_values
        names = {"COMPLETE": "finished", "FAIL": "failed"}
        state = names.get(trial.state.name, trial.state.name.lower())
        return {
            "trial": number,
            "state": state,
            "value": trial.value if trial.state.name in ("COMPLETE", "PRUNED") else None,
            "epoch": attributes.get("epoch", max(values, default=None)),
            "overrides": [f"{key}={text}" for key, text in attributes.get("values", {}).items()],
            "attempt": attributes.get("attempt", 1),
            "host": attributes.get("worker", {}).get("host"),
            "run": str(self._settings.out / "trials" / f"{number:04d}"),
            "reason": attributes.get("reason"),
        }


def _make_point_sampler(dimensions: Sequence[SearchDimension], point: Mapping[str, str]) -> Any:
    """Make a sampler whose values are those of one point of a grid."""
    import optuna

    class PointSampler(optuna.samplers.RandomSampler):
        """Sampler of one point."""

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            is_number = not next(d for d in dimensions if d.key == param_name).choices
            text = point[param_name]
            whole = isinstance(param_distribution, optuna.distributions.IntDistribution)
            return (int(text) if whole else float(text)) if is_number else text

    return PointSampler()


@contextlib.contextmanager
def _beating(trial: Any) -> Iterator[None]:
    """Context in which a thread writes a sign of life into a trial at intervals."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(OSError, ValueError, SQLAlchemyError, optuna.exceptions.OptunaError):
                trial.set_user_attr("alive", time.time())

    thread = threading.Thread(target=beat, name="sweep: signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_abandoned(trial: Any) -> bool:
    """Return True if the worker of a running trial has ended, or on another host has been silent for too long."""
    attributes = trial.user_attrs
    if "worker" in attributes:
        worker = ProcessIdentity(**attributes["worker"])
        if worker.is_reachable:
            return worker.is_gone
    began = trial.datetime_start
    began_s = began.timestamp() if isinstance(began, datetime.datetime) else 0.0
    return time.time() - attributes.get("alive", began_s) > MAX_SILENCE_S
