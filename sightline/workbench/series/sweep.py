"""Sweep: trials of a search space, each a training run; workers on any machine share one storage of Optuna."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import TrialState

from sightline.commands.look import SweepOptions
from sightline.commands.run import TrainOptions
from sightline.config import RunConfig
from sightline.config.plain_values import flatten, to_plain
from sightline.contract.errors import UserError
from sightline.engine.distributed import assert_device
from sightline.engine.launcher import launched_world_size
from sightline.runs.folder_lock import find_holder
from sightline.runs.output_files import write_document
from sightline.runs.run_directory import LOCK
from sightline.runs.run_files import assert_no_run
from sightline.training.config_source import read_with_plugins, reread
from sightline.training.resume import MAY_DIFFER
from sightline.training.train_run import Reporter
from sightline.workbench.series.loop import SIGNALS, Entry, Results, run_series
from sightline.workbench.series.search_space import check_space, read_space
from sightline.workbench.series.storage import explain_storage, open_study
from sightline.workbench.series.study import resolve_metric_mode
from sightline.workbench.series.training import Training, digest_inputs, get_sources
from sightline.workbench.series.trials import SharedTrials

NAME = "sweep"
MAX_FAILURES = 3
"""Number of failed trials of a call after which a sweep without a finished one ends: its config is at fault."""
_NEEDED_BY = "sweep: storage"
_FIXED = ("--sampler", "--seed", "--space")
_STATES = {"COMPLETE": "finished", "FAIL": "failed"}


class Sweep:
    """Sweep in a storage; a call runs trials until none is left, and returns the document and an exit code.

    The space is tried on the config, and the folder's sweep compared with this one, before anything is trained.
    Raises UserError and ConfigError for what cannot run.
    """

    def __init__(self, options: SweepOptions, reporter: Reporter) -> None:
        if (launched_world_size() or 1) > 1:
            raise UserError("sweep: a worker is one process; start it several times, not by a launcher (--storage)")
        self._options, self._reporter, self._num_failed = options, reporter, 0
        self._space = read_space(options.space)
        self._read = read_with_plugins(options.config, options.overrides, options.plugins)
        self.notes, config = self._read.notes, self._read.config
        tried = check_space(self._space, options.overrides, partial(reread, options.config))
        self._metric = config.evaluate.metric
        self._mode = resolve_metric_mode(config, self._metric)
        assert_device(options.device)
        assert_no_run(options.out)
        self._storage = str(options.out / f"{NAME}.journal") if options.storage is None else options.storage
        direction: Literal["maximize", "minimize"] = "maximize" if self._mode == "max" else "minimize"
        study = open_study(self._storage, name=config.name, directions=[direction], needed_by=_NEEDED_BY)
        study.pruner = optuna.pruners.NopPruner() if options.no_prune else optuna.pruners.MedianPruner()
        self._trials = SharedTrials(study, reporter)
        with explain_storage(self._storage, needed_by=_NEEDED_BY):
            self._assert_same_sweep(self._describe(tried))
        options.out.mkdir(parents=True, exist_ok=True)

    def __call__(self) -> tuple[dict[str, Any], int]:
        with explain_storage(self._storage, needed_by=_NEEDED_BY):
            document, code = run_series(self._propose(), self._write, self._reporter)
        return document, code if code > SIGNALS else int(document["best"] is None and document["num_running"] == 0)

    def _describe(self, tried: Mapping[str, RunConfig]) -> dict[str, Any]:
        """Describe what trials read: their config, plugins, and digests of data and weights.

        Those of a value of the space stand beside them if it reads others.
        """
        config = self._read.config
        request: dict[str, Any] = {"--sampler": self._options.sampler, "--seed": self._options.seed}
        request |= {f"--space {dimension.key}": dimension.describe() for dimension in self._space}
        request |= {f"--plugin {name}": sha for plugin in self._read.plugins for name, sha in plugin.digests().items()}
        request |= {k: v for k, v in flatten(to_plain(config)).items() if not k.startswith(MAY_DIFFER)}
        tried_values = {
            f" with {override}": c for override, c in tried.items() if get_sources(c) != get_sources(config)
        }
        for at, other in {"": config, **tried_values}.items():
            request |= {f"contents of {name}{at}": digest for name, digest in digest_inputs(other).items()}
        return request

    def _assert_same_sweep(self, request: Mapping[str, Any]) -> None:
        """Note what is searched in the storage, or raise UserError if it holds a sweep of something else.

        While all its trials have failed, what they failed by may be mended: config, plugins, data and weights.
        """
        study, attempts = self._trials.study, self._trials.list()
        stored = study.user_attrs.get(NAME, request)
        differing = sorted(key for key in stored.keys() | request.keys() if stored.get(key) != request.get(key))
        is_mended = bool(attempts) and all(attempt.state == TrialState.FAIL for attempt in attempts)
        if differing and (not is_mended or any(key.startswith(_FIXED) for key in differing)):
            raise UserError(
                f"sweep: storage: {self._storage}: holds a sweep of this name that differs in "
                f"{', '.join(differing[:5])}; give the same, or another --out or --storage"
            )
        study.set_user_attr(NAME, request)

    def _propose(self) -> Iterator[Entry[int]]:
        """Yield trials until none is left, or a config is at fault by which the first ones have failed."""
        most, sampler, seed = self._options.trials, self._options.sampler, self._options.seed
        while self._num_failed < MAX_FAILURES or self._trials.list(TrialState.COMPLETE, TrialState.PRUNED):
            if (started := self._trials.start(self._space, most=most, sampler=sampler, seed=seed)) is None:
                return
            number, trial = started
            path, title = self._get_folder(number), f"trial {number}: {shlex.join(_list_overrides(trial))}"
            yield Entry(number, title, path, partial(self._train, trial, path))

    def _train(self, trial: Any, path: Path) -> None:
        source, overrides = self._options.config, (*self._options.overrides, *_list_overrides(trial))
        with self._trials.told(trial, path, self._metric) as observer:
            trial.set_user_attr("run", str(path.absolute()))
            if find_holder(path) not in (None, socket.gethostname()):  # that worker was silent, and lost the trial
                (path / LOCK).unlink(missing_ok=True)
            read = self._read._replace(config=reread(source, overrides))
            device = self._options.device
            command = TrainOptions(config=source, overrides=overrides, out=path, resume="auto", device=device)
            Training(read, command).train(self._reporter, stop=observer.stop, observers=[observer])

    def _get_folder(self, number: int) -> Path:
        return self._options.out / "trials" / f"{number:04d}"

    def _write(self, results: Results[int]) -> dict[str, Any]:
        """Write the document of all trials so far into the folder, and return it."""
        self._num_failed = len(results.failed)
        rows = [self._describe_trial(number, attempt) for number, attempt in self._trials.by_number().items()]
        finished = [row for row in rows if row["state"] == "finished"]
        document = {
            "config": str(self._options.config),
            "overrides": list(self._options.overrides),
            "storage": self._storage,
            "metric": self._metric,
            "mode": self._mode,
            "part": self._read.config.evaluate.select,
            "sampler": self._options.sampler,
            "space": {dimension.key: dimension.describe() for dimension in self._space},
            "num_trials": self._options.trials,
            "num_running": sum(row["state"] in ("running", "waiting") for row in rows),
            "trials": rows,
            "best": (max if self._mode == "max" else min)(finished, key=lambda row: row["value"], default=None),
        }
        write_document(self._options.out / f"{NAME}.json", document)
        return document

    def _describe_trial(self, number: int, attempt: Any) -> dict[str, Any]:
        attributes, trial_folder, here = attempt.user_attrs, self._get_folder(number), socket.gethostname()
        run, host = attributes.get("run", str(trial_folder)), attributes.get("worker", {}).get("host")
        is_moved = host == here and not Path(run).exists()
        is_own = run == str(trial_folder.absolute()) or is_moved  # else of another --out
        return {
            "trial": number,
            "state": _STATES.get(attempt.state.name, attempt.state.name.lower()),
            "value": attempt.value if attempt.state.name in ("COMPLETE", "PRUNED") else None,
            "epoch": attributes.get("epoch", attempt.last_step),
            "overrides": _list_overrides(attempt),
            "run": str(trial_folder) if is_own else run,
            "host": host,
            "reason": attributes.get("reason"),
        }


def _list_overrides(trial: Any) -> list[str]:
    return [f"{key}={text}" for key, text in trial.user_attrs.get("values", {}).items()]
