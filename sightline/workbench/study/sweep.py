"""Sweep: trials of a search space, each a training run; workers on any machine share one storage of Optuna."""

from __future__ import annotations

import contextlib
import copy
import shlex
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sightline.commands.look import SweepOptions
from sightline.config import RunConfig
from sightline.config.plain_values import to_plain
from sightline.contract.errors import DiskError, UserError, assert_installed
from sightline.engine.distributed import assert_device
from sightline.engine.launcher import launched_world_size
from sightline.engine.records import EvaluationRecord, StepRecord
from sightline.runs.folder_lock import LOCK, find_holder
from sightline.runs.output_files import write_document
from sightline.runs.process_identity import ProcessIdentity
from sightline.runs.run_documents import read_lines
from sightline.runs.run_files import is_run
from sightline.runs.run_records import flatten_config
from sightline.store.files.atomic_write import is_of_disk
from sightline.training.config_source import read_with_plugins, reread
from sightline.training.stop_request import StopRequest, restore_signal_handlers
from sightline.training.train_result import Reporter, TrainResult
from sightline.training.train_run import train_run as train
from sightline.workbench.study.grid import resolve_metric_mode
from sightline.workbench.study.optuna_storage import explain_storage, open_study
from sightline.workbench.study.search_space import check_space, read_space
from sightline.workbench.study.study_runs import describe_failure, digest_inputs

NAME = "sweep"
BEAT_S = 60.0
"""Seconds between two signs of life of a worker."""
MAX_SILENCE_S = 600.0
"""Seconds without a sign of life after which the trial of a worker on another host is taken up again."""
MAX_RETRIES = 4
"""Number of times that a trial is taken up again whose worker has ended, as it may be the cause."""
MAX_FAILURES = 3
"""Number of failed trials of a call after which a sweep without a finished one ends: its config is at fault."""
_NOT_COMPARED = ("data.root", "loader.", "log.", "distributed.", "checkpoint.")
_FIXED = ("--sampler", "--seed", "--space")
_SIGNALS = 128
_SEED_DISTANCE = 100_003
"""Distance of the seeds of two sweeps, above their number of trials."""
_STATES = {"COMPLETE": "finished", "FAIL": "failed"}


class TrialObserver:
    """Observer that reports every evaluation to a trial, and requests a stop where the pruner gives the trial up."""

    def __init__(self, trial: Any, metric: str, stop: StopRequest) -> None:
        self._trial = trial
        self._metric = metric
        self._stop = stop
        self._is_last = False
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
        if not self._is_last and not self._stop and self._trial.should_prune():
            self.is_pruned = True
            self._stop.request()

    def on_end(self, reason: str) -> None:
        """Do nothing: the sweep records the end of a trial."""


class Sweep:
    """Sweep in a storage; a call runs trials until none is left, and returns the document and an exit code.

    The space is tried on the config, and the folder's sweep compared with this one, before anything is trained.
    Raises UserError and ConfigError for what cannot run.
    """

    def __init__(self, options: SweepOptions, reporter: Reporter) -> None:
        assert_installed("optuna", needed_by=NAME)
        if (launched_world_size() or 1) > 1:
            raise UserError("sweep: a worker is one process; start it several times, not by a launcher (--storage)")
        self._options, self._reporter, self._num_failed = options, reporter, 0
        self._dimensions = read_space(options.space)
        read = read_with_plugins(options.config, options.overrides, options.plugins)
        self.notes, self._plugins, config = read.notes, read.plugins, read.config
        tried: dict[str, RunConfig] = {}

        def read_bound(overrides: Sequence[str]) -> None:
            tried[overrides[-1]] = reread(options.config, overrides)

        check_space(self._dimensions, options.overrides, read_bound)
        self._metric, self._select = config.evaluate.metric, config.evaluate.select
        self._mode = resolve_metric_mode(config, self._metric)
        self._sign = 1 if self._mode == "max" else -1
        self._storage = str(options.out / f"{NAME}.journal") if options.storage is None else options.storage
        assert_device(options.device)
        if is_run(options.out):
            raise UserError(f"--out {options.out}: is the folder of a run; give one of the sweep's own")
        direction: Literal["maximize", "minimize"] = "maximize" if self._mode == "max" else "minimize"
        self._study = open_study(self._storage, name=config.name, directions=[direction], needed_by=f"{NAME}: storage")
        inputs = _describe_inputs(config, tried)
        inputs |= {f"--plugin {name}": sha for plugin in self._plugins for name, sha in plugin.digests().items()}
        with self._storage_explained():
            self._assert_same_sweep(flatten_config(to_plain(config)), inputs)
        options.out.mkdir(parents=True, exist_ok=True)

    def __call__(self) -> tuple[dict[str, Any], int]:
        code = 0
        while code == 0:
            with self._storage_explained():
                trial = self._start_trial()
            if trial is None:
                break
            code = self._run_trial(trial)
            self._write()
        document = self._write()
        return document, code or int(document["best"] is None and document["num_running"] == 0)

    # --- storage ----------------------------------------------------------------------------------------------------

    def _storage_explained(self) -> contextlib.AbstractContextManager[None]:
        return explain_storage(self._storage, needed_by=f"{NAME}: storage")

    def _assert_same_sweep(self, config: Mapping[str, str], inputs: Mapping[str, str | None]) -> None:
        """Note what is searched in the storage, or raise UserError if it holds a sweep of something else.

        While all its trials have failed, what they failed by may be mended: config, plugins, data and weights.
        """
        request: dict[str, Any] = {"--sampler": self._options.sampler, "--seed": self._options.seed}
        request |= {f"--space {dimension.key}": dimension.describe() for dimension in self._dimensions}
        request |= {key: value for key, value in config.items() if not key.startswith(_NOT_COMPARED)}
        request |= inputs
        stored, trials = self._study.user_attrs.get(NAME, request), self._list_trials()
        differing = sorted(key for key in stored.keys() | request.keys() if stored.get(key) != request.get(key))
        is_mended = bool(trials) and all(trial.state.name == "FAIL" for trial in trials)
        if differing and (not is_mended or any(key.startswith(_FIXED) for key in differing)):
            raise UserError(
                f"sweep: storage: {self._storage}: holds a sweep of this name that differs in "
                f"{', '.join(differing[:5])}; give the same, or another --out or --storage"
            )
        self._study.set_user_attr(NAME, request)

    def _list_trials(self, *states: str) -> list[Any]:
        """List the trials of these states, of all states if none is given."""
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if not states or trial.state.name in states]

    def _queue_again(self, trial: Any, *, max_retry: int | None) -> None:
        """Queue a trial with the values, folder and figures that it has, for any worker; its checkpoint is resumed."""
        import optuna

        try:
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another worker was faster
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            callback = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry, inherit_intermediate_values=True)
        callback(self._study, copy.deepcopy(trial))  # it appends to the history in place
        is_left_out = max_retry is not None and len(_list_earlier(trial)) >= max_retry
        then = "its workers ended too often; it is left out" if is_left_out else "it waits to be taken up again"
        self._reporter.note(f"trial {self._get_number(trial)}: stopped; {then}")

    def _start_trial(self) -> Any | None:
        """Start the next trial: a queued one, or a new one while there are fewer than the sweep needs; else None."""
        import optuna

        for trial in self._list_trials("RUNNING"):
            if _is_abandoned(trial):
                self._queue_again(trial, max_retry=MAX_RETRIES)
        has_only_failures = self._num_failed >= MAX_FAILURES and not self._list_trials("COMPLETE", "PRUNED")
        is_complete = sum(not _list_earlier(trial) for trial in self._list_trials()) >= self._options.trials
        if has_only_failures or (is_complete and not self._list_trials("WAITING")):
            return None
        self._study.sampler = optuna.samplers.RandomSampler(seed=0)  # draws nothing yet
        self._study.pruner = optuna.pruners.NopPruner() if self._options.no_prune else optuna.pruners.MedianPruner()
        trial = self._study.ask()
        # a seed for each trial: repeated and parallel workers repeat no draw
        seed = (self._options.seed * _SEED_DISTANCE + self._get_number(self._list_trials()[trial.number])) % 2**32
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self._study.sampler = samplers[self._options.sampler](seed=seed)
        trial.set_user_attr("worker", ProcessIdentity.current(socket.gethostname()).to_dict())
        trial.set_user_attr("alive", time.time())
        trial.set_user_attr("values", {dimension.key: dimension.suggest(trial) for dimension in self._dimensions})
        return trial

    # --- trials -----------------------------------------------------------------------------------------------------

    def _run_trial(self, trial: Any) -> int:
        """Train a trial, or go on with it, and record its value; return 0, or the exit code of a signal."""
        import optuna

        state = optuna.trial.TrialState
        options, stop = self._options, StopRequest()
        with self._storage_explained():
            number = self._get_number(self._list_trials()[trial.number])
        overrides = [f"{key}={text}" for key, text in trial.user_attrs["values"].items()]
        self._reporter.note(f"trial {number}: {shlex.join(overrides)}")
        observer = TrialObserver(trial, self._metric, stop)
        path = self._get_folder(number)
        trial.set_user_attr("run", str(path.absolute()))
        if find_holder(path) not in (None, socket.gethostname()):  # that worker was silent, and lost the trial
            (path / LOCK).unlink(missing_ok=True)
        try:
            with _beating(trial), restore_signal_handlers():
                result = train(
                    reread(options.config, [*options.overrides, *overrides]),
                    plugins=self._plugins,
                    out=path,
                    resume="auto",
                    device=options.device,
                    reporter=self._reporter,
                    stop=stop,
                    observers=[observer],
                    shows_progress=True,
                )
        except Exception as error:  # one of a model or a plugin, too, ends its own trial alone
            if isinstance(error, DiskError) or is_of_disk(error):  # which no value of a trial is to blame for
                with contextlib.suppress(Exception):  # else its worker will be found to have ended
                    self._queue_again(self._list_trials()[trial.number], max_retry=None)
                with self._storage_explained():
                    raise
            result, reason = TrainResult(None), describe_failure(error)
        else:
            errors = [" ".join(str(finding).split()) for finding in result.findings if finding.severity == "error"]
            reason = "" if result.path is not None else f"findings of the checks: {'; '.join(errors)}"
        with self._storage_explained():
            if observer.is_pruned:
                self._study.tell(trial, state=state.PRUNED)
            elif result.stopped_by is not None:
                self._queue_again(self._list_trials()[trial.number], max_retry=None)
                return _SIGNALS + result.stopped_by
            elif not reason and (best := self._read_best(path)) is not None:
                trial.set_user_attr("epoch", best[1])
                self._study.tell(trial, best[0])
            else:
                trial.set_user_attr("reason", reason or f"no evaluation has a figure {self._metric}")
                self._study.tell(trial, state=state.FAIL)
                self._num_failed += 1
                self._reporter.note(f"error: trial {number}: {trial.user_attrs['reason']}; the sweep goes on")
        return 0

    def _get_number(self, trial: Any) -> int:
        """Return the number of a trial among those of the sweep: later attempts at one have the number of the first."""
        first = (*_list_earlier(trial), trial.number)[0]
        return sum(not _list_earlier(earlier) for earlier in self._list_trials()[:first])

    def _get_folder(self, number: int) -> Path:
        return self._options.out / "trials" / f"{number:04d}"

    def _read_best(self, path: Path) -> tuple[float, int] | None:
        """Read the best figure of a run's own evaluations, and its epoch: that of its best checkpoint."""
        lines = [line for line in read_lines(path / "metrics.jsonl") if line["split"] != "train"]
        figures = [(line[self._metric], line["epoch"] + 1) for line in lines if line.get(self._metric) is not None]
        return max(figures, key=lambda figure: self._sign * figure[0], default=None)

    # --- result -----------------------------------------------------------------------------------------------------

    def _write(self) -> dict[str, Any]:
        """Write the document of all trials so far into the folder, and return it."""
        with self._storage_explained():
            attempts = {self._get_number(trial): trial for trial in self._list_trials()}
        rows = [self._describe_trial(number, trial) for number, trial in sorted(attempts.items())]
        finished = [row for row in rows if row["state"] == "finished"]
        document = {
            "config": str(self._options.config),
            "overrides": list(self._options.overrides),
            "storage": self._storage,
            "metric": self._metric,
            "mode": self._mode,
            "part": self._select,
            "sampler": self._options.sampler,
            "space": {dimension.key: dimension.describe() for dimension in self._dimensions},
            "num_trials": self._options.trials,
            "num_running": sum(row["state"] in ("running", "waiting") for row in rows),
            "trials": rows,
            "best": max(finished, key=lambda row: self._sign * row["value"], default=None),
        }
        write_document(self._options.out / f"{NAME}.json", document)
        return document

    def _describe_trial(self, number: int, trial: Any) -> dict[str, Any]:
        attributes, own, here = trial.user_attrs, self._get_folder(number), socket.gethostname()
        run, host = attributes.get("run", str(own)), attributes.get("worker", {}).get("host")
        is_own = run == str(own.absolute()) or (host == here and not Path(run).exists())  # else of another --out
        return {
            "trial": number,
            "state": _STATES.get(trial.state.name, trial.state.name.lower()),
            "value": trial.value if trial.state.name in ("COMPLETE", "PRUNED") else None,
            "epoch": attributes.get("epoch", trial.last_step),
            "overrides": [f"{key}={text}" for key, text in attributes.get("values", {}).items()],
            "run": str(own) if is_own else run,
            "host": host,
            "reason": attributes.get("reason"),
        }


def _describe_inputs(config: RunConfig, tried: Mapping[str, RunConfig]) -> dict[str, str | None]:
    """Describe what trials read beside their config by digests, those of a value of the space if it reads others."""
    inputs = {f"contents of {name}": digest for name, digest in digest_inputs(config).items()}
    for override, other in tried.items():
        if (other.data, other.init, other.teacher) != (config.data, config.init, config.teacher):
            inputs |= {f"contents of {name} with {override}": d for name, d in digest_inputs(other).items()}
    return inputs


def _list_earlier(trial: Any) -> list[int]:
    """List the earlier attempts at a trial, the first of which has its number."""
    earlier: list[int] = trial.system_attrs.get("retry_history", [])
    return earlier


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
    return time.time() - attributes.get("alive", trial.datetime_start.timestamp()) > MAX_SILENCE_S
