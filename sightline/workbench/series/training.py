"""A training of a series: begun, resumed or read in its folder, where a run that has read something else is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.commands.run import TrainOptions
from sightline.config import RunConfig
from sightline.contract.dataset import get_data_digest
from sightline.contract.errors import RunError, UserError
from sightline.engine.records import Observer
from sightline.engine.run_data import build_part
from sightline.runs.lineage import read_lineage
from sightline.runs.run_documents import load_document
from sightline.runs.run_files import RunFiles, is_run
from sightline.runs.trained_weights import assert_sha256
from sightline.runs.weight_sources import open_source
from sightline.training.config_source import ConfigWithPlugins
from sightline.training.launch import launch_training
from sightline.training.resume import assert_same_run
from sightline.training.stop_request import StopRequest, restore_signal_handlers
from sightline.training.train_run import Reporter
from sightline.workbench.series.loop import SIGNALS, StoppedError


@dataclass(frozen=True)
class Training:
    """Training of a series: its config and plugins, read once, and the command that trains or resumes the same."""

    read: ConfigWithPlugins
    command: TrainOptions

    @property
    def path(self) -> Path:
        """The folder of its run."""
        assert self.command.out is not None, "each of a series has a folder of its own"
        return self.command.out

    def train(
        self, reporter: Reporter, *, stop: StopRequest | None = None, observers: Sequence[Observer] = ()
    ) -> Mapping[str, Any]:
        """Train in the folder, resume, or read a finished run; return the metrics of its last weights.

        Raises StoppedError if a signal or `stop` ended it, and RunError if it could not start.
        """
        with restore_signal_handlers():
            code, findings = launch_training(self.command, reporter, read=self.read, stop=stop, observers=observers)
        if code > SIGNALS:
            raise StoppedError(code)
        if code:
            errors = [" ".join(str(finding).split()) for finding in findings if finding.severity == "error"]
            raise RunError(f"not trained (exit code {code}), see above: {'; '.join(errors) or 'its processes failed'}")
        metrics: Mapping[str, Any] = load_document(self.path / "final.json")["metrics"]
        return metrics


def digest_inputs(config: RunConfig) -> dict[str, str | None]:
    """Compute the digests of what a training reads beside its config: its data, and the weights that it names."""
    return {
        "data": get_data_digest(build_part(config, "train").dataset),
        "init.from": None if config.init is None else open_source(config.init.source).compute_sha256(),
        "teacher.from": None if config.teacher is None else assert_sha256(Path(config.teacher.source), None),
    }


def get_sources(config: RunConfig) -> tuple[Any, ...]:
    """Return the parts of a config that name what is read."""
    return config.data, config.init, config.teacher


def assert_same_runs(trainings: Iterable[Training], *, may_go_on: bool = False) -> None:
    """Raise UserError for a run in a training's folder of another config, plugin, data set, or initial weights.

    Unless it `may_go_on` to a later end, also for one that was trained to an earlier end.
    """
    digests: dict[str, Mapping[str, str | None]] = {}
    for training in trainings:
        run, config = training.path, training.read.config
        if not is_run(run):
            continue
        if assert_same_run(run, config, training.read.plugins) and not may_go_on:
            raise UserError(f"{run}: was trained to an earlier end than is asked for; give another --out")
        key = str(get_sources(config))  # of many runs it is the same
        digests[key] = inputs = digests.get(key) or digest_inputs(config)
        change, lineage, current = RunFiles(run).check_data(inputs["data"]), read_lineage(run), inputs["init.from"]
        if config.init is not None and lineage is not None and current not in (None, lineage["sha256"]):
            began, now = f"{lineage['sha256'][:16]}...", f"{config.init.source} has now ({str(current)[:16]}...)"
            change = change or f"started from other weights ({began}) than {now}"
        if change is not None:
            raise UserError(f"{run}: {change}; give another --out")
