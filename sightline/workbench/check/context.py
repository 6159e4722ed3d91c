"""Context of a check: the run that rules read, with its measurements, each made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn

from sightline.config import RunConfig
from sightline.contract.errors import CheckpointError
from sightline.contract.types import Batch
from sightline.doctor.budget import Budget
from sightline.doctor.finding import FindingLocation
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric
from sightline.workbench.check.dry_evaluation import DryEvaluation, rehearse_evaluations
from sightline.workbench.check.dry_run import DryRun, Outputs, dry_run, first_outputs
from sightline.workbench.check.examination import BUDGET_S, QUICK_BUDGET_S, RunExamination
from sightline.workbench.check.sample_statistics import (
    ClassCounts,
    PartStatistics,
    collect_statistics,
    count_classes,
    distinct_parts,
)
from sightline.workbench.check.targets.reaching import Reaching, read_reaching


class TrainedRecords(NamedTuple):
    """Records of a trained run: reads the lines of its metrics.jsonl, and loads its trained network."""

    read_lines: Callable[[], list[dict[str, Any]]]
    load: Callable[[], nn.Module]


@dataclass(frozen=True)
class Context:
    """Model, data and cached measurements that a rule may read, but not change: it must copy what it modifies."""

    built: TrainingSetup
    world: World
    is_quick: bool = False
    examination: RunExamination = field(default_factory=RunExamination, compare=False)
    trained: TrainedRecords | None = None

    @property
    def config(self) -> RunConfig:
        return self.built.config

    @cached_property
    def budget(self) -> Budget:
        """Budget of the relations, which begins when it is first asked for (cached)."""
        if self.is_quick:
            return Budget(QUICK_BUDGET_S, is_patient=False)
        return Budget.allow(self.examination.budget_s, otherwise_s=BUDGET_S)

    @cached_property
    def dry_run(self) -> DryRun:
        """One training step on copies (cached; computed on first use)."""
        result = dry_run(self.built.job, self.world.device, note=self.examination.note_work)
        self.examination.note_work()
        return result

    @cached_property
    def first_outputs(self) -> tuple[Batch, Outputs]:
        """Batch of the first step and its outputs before any update (cached); at least the samples of the dry run."""
        return first_outputs(self.built.job, self.dry_run, self.world.device, is_quick=self.is_quick)

    @cached_property
    def dry_evaluations(self) -> list[DryEvaluation]:
        """Evaluate a few samples on copies, once per evaluated split with another batch form (cached)."""
        return rehearse_evaluations(self.built, self.world.device)

    @cached_property
    def statistics(self) -> list[PartStatistics]:
        """Statistics of samples of each split (cached; samples are read on first use)."""
        parts, seed = distinct_parts(self.built.data), self.config.seed
        return [collect_statistics(part, seed=seed, is_quick=self.is_quick) for part in parts]

    @cached_property
    def reaching(self) -> Reaching:
        """Targets and inputs of the first samples of training (cached; they are read on first use).

        Raises NotApplicableError for a task whose losses name no targets.
        """
        return read_reaching(self.built, is_quick=self.is_quick)

    @cached_property
    def class_counts(self) -> list[ClassCounts | None]:
        """Class counts of each split, in the order of `statistics` (cached); None for a split without class labels."""
        return [count_classes(statistics) for statistics in self.statistics]

    @cached_property
    def float_model(self) -> nn.Module | None:
        """Float model before `compress` (cached); None without `compress`, or if its weights cannot be reloaded."""
        is_resumed = self.config.init is not None and self.built.init_report is None
        if self.config.compress is None or is_resumed:
            return None
        config, world = dataclasses.replace(self.config, compress=None), World(device=self.world.device)
        try:
            return build(config, world, data=self.built.data).job.model
        except CheckpointError:  # `checkpoint-match` reports it
            return None

    @property
    def pass_s(self) -> float:
        """What a pass forward on the inputs of the first step takes a usual processor, as its work is counted."""
        return self.dry_run.nominal_s / 3

    def place(self, path: str, **more: Any) -> FindingLocation:
        """Return the location of a dotted config path: its file and line, or those of the block that contains it."""
        return place_key(self.config, path, **more)

    def locate(self, split: str, **more: Any) -> FindingLocation:
        """Return the location of what is in a split of the run's data set."""
        return FindingLocation(dataset=f"{self.config.data.name}/{split}", **more)

    @property
    def is_fresh(self) -> bool:
        """True for a model that neither weights nor a step has trained."""
        return self.config.init is None and self.built.job.step == 0

    @property
    def last_layer(self) -> str | None:
        """Name of the last module with direct parameters; None if there is none."""
        modules = self.built.job.model.named_modules()
        names = [name for name, module in modules if list(module.parameters(recurse=False))]
        return names[-1] if names else None

    def loss_path(self, name: str) -> str:
        """Return the dotted config path of the loss of this name."""
        return get_loss_path(self.config, name)


def place_key(config: RunConfig, path: str, **more: Any) -> FindingLocation:
    """Return the location of a dotted config path: its file and line, or those of the block that contains it."""
    origins, known_path = config.origins, path
    while known_path:
        for key in (known_path, f"{known_path}.name"):
            if key in origins and (origins[key].line is not None or origins[key].source == "command line"):
                return FindingLocation(file=origins[key].source, line=origins[key].line, config_path=path, **more)
        known_path = known_path.rpartition(".")[0]
    return FindingLocation(config_path=path, **more)


def get_loss_path(config: RunConfig, name: str) -> str:
    """Return the dotted config path of the loss of this name."""
    names = [component.name for component in config.losses]
    return f"losses.{names.index(name)}" if name in names else "losses"


class JudgedMetric(NamedTuple):
    """Metric of the evaluation that chooses the checkpoint, with its name and its config path."""

    meter: BoundMetric
    name: str
    path: str


def metrics(context: Context) -> Iterator[JudgedMetric]:
    """List the metrics of the evaluation that chooses the checkpoint."""
    names = [component.name for component in context.config.metrics]
    for index, meter in enumerate(context.built.selection_evaluator.metrics):
        name = names[index] if index < len(names) else type(meter.metric).__name__
        yield JudgedMetric(meter, name, f"metrics.{index}")
