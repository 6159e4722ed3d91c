"""What checks are given, and how they are declared."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sightline.aliases import renamed, renamed_keywords
from sightline.config import RunConfig
from sightline.doctor.core.assigned_boxes import AssignedBoxes, assigned_boxes
from sightline.doctor.core.class_counts import ClassCounts, count_classes
from sightline.doctor.core.dry_evaluation import DryEvaluation, rehearse_evaluations
from sightline.doctor.core.dry_run import DryRun, Outputs, dry_run, error_location, first_outputs, isolated_copy
from sightline.doctor.core.finding import Finding, FindingLocation, Severity
from sightline.doctor.core.sample_statistics import (
    PartStatistics,
    collect_statistics,
    distinct_parts,
    evenly_spaced_keys,
)
from sightline.doctor.oracles.examine import examine
from sightline.doctor.oracles.results import OracleResult
from sightline.doctor.oracles.squares import SquaredErrorLoss, find_squared_error
from sightline.engine.build import TrainingSetup, build
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.run_loading import open_run
from sightline.errors import CheckpointError, summarise_error
from sightline.tasks.detect import Detect
from sightline.tasks.distillation import unwrap_distillation
from sightline.types import Batch

__all__ = ["CHECKS", "TO_END", "Check", "Context", "FindingBuilder", "Moment", "check"]

Moment = Literal["static", "preflight", "deep", "offline"]

TO_END = "every check of this run to end"
"""What is expected where a check could not run."""
_CPU = torch.device("cpu")
_MOST_ASSIGNED = 64
_THOROUGH_S = 5.0  # of this thread's own time, for the samples of one part


@renamed(rehearsal="dry_run")
@dataclass(frozen=True)
class Context:
    """What a check may look at. It must leave model, data and random states as they are: copy what it changes.

    `run` is the directory of the run where there is one, for the checks whose moment is `offline`; `first_loss` is the
    whole loss of its first step, where that is known.
    """

    built: TrainingSetup
    world: World
    forward_s: float = math.inf
    run: Path | None = None
    first_loss: float | None = None

    @property
    def config(self) -> RunConfig:
        return self.built.config

    @cached_property
    def dry_run(self) -> DryRun:
        """One training step on copies, taken when the first check asks for it."""
        return dry_run(self.built.job, self.world.device, forward_s=self.forward_s)

    @cached_property
    def first_outputs(self) -> tuple[Batch, Outputs]:
        """Samples of the first step and the outputs for them before any update; at least those of the rehearsal."""
        return first_outputs(self.built.job, self.dry_run, self.world.device)

    @cached_property
    def assignments(self) -> AssignedBoxes | None:
        """What the task assigns in samples of the first step, under `sightline check` also in 64 others.

        None of a task without boxes, and where no step could be taken.
        """
        task = unwrap_distillation(self.built.job.task)
        if not isinstance(task, Detect) or not self.dry_run.is_sound:
            return None
        part, batches = self.built.data.train, iter([self.first_outputs[0]])
        if self.is_thorough:
            more = evenly_spaced_keys(part, epoch=0, seed=self.config.seed, most_samples=_MOST_ASSIGNED)
            batches = itertools.chain(batches, map(part.reader, more))
        return assigned_boxes(task, self.built.job.model, (to_device(each, _CPU) for each in batches))

    @cached_property
    def dry_evaluations(self) -> list[DryEvaluation]:
        """An evaluation of a few samples on copies, of each evaluated part that has a form of its own."""
        is_slow = bool(self.dry_run.skipped)
        return rehearse_evaluations(self.built, self.world.device, forward_s=self.forward_s, is_slow=is_slow)

    @cached_property
    def statistics(self) -> list[PartStatistics]:
        """Samples of each part, read when the first check asks for them."""
        return [collect_statistics(part, seed=self.config.seed) for part in distinct_parts(self.built.data)]

    @cached_property
    def class_counts(self) -> list[ClassCounts | None]:
        """How often each class occurs in each part of `survey`, in this order."""
        return [count_classes(each, self.thorough_statistics) for each in self.statistics]

    @cached_property
    def squared_losses(self) -> dict[str, SquaredErrorLoss]:
        """The losses that are sums of squares, on the first outputs: found by what they do.

        Without those that have no targets in the data: what they draw together is a feature inside the network, or is
        drawn to what the loss itself learns.
        """
        rehearsal, found = self.dry_run, {}
        if not rehearsal.is_sound:
            return {}
        batch, outputs = to_device(rehearsal.batch, _CPU), to_device(dict(rehearsal.seen_outputs), _CPU)
        for component in self.config.losses:
            try:
                squares = find_squared_error(self.built.job, batch, outputs, component.name)
            except Exception:  # noqa: BLE001 - a loss of others may refuse outputs that are not its model's
                continue
            if squares is None:
                continue
            is_of_data = squares.target_key is not None or not (
                squares.is_learned or squares.output_key in rehearsal.hidden
            )
            if is_of_data:
                found[component.name] = squares
        return found

    @cached_property
    def oracle_results(self) -> list[OracleResult]:
        """Every kind of layer and every loss, held against what is known of it, when the first deep check asks."""
        rehearsal = self.dry_run
        if not rehearsal.is_sound:
            return []
        batch, outputs = to_device(rehearsal.batch, _CPU), to_device(dict(rehearsal.seen_outputs), _CPU)
        return examine(self.built.job, self.config, self.built.data.facts, batch, outputs)

    @cached_property
    def trained_model(self) -> nn.Module | None:
        """A copy of the model with the weights of the run's last checkpoint, in evaluation mode; None without one."""
        if self.run is None or not (self.run / "checkpoints" / "last").exists():
            return None
        copied = isolated_copy(self.built.job.model)
        open_run(self.run, config=self.config).load_into(copied)
        return copied.eval()

    @cached_property
    def float_model(self) -> nn.Module | None:
        """The float model that `compress` quantised; None without it, and where its weights cannot be had again."""
        is_resumed = self.config.init is not None and self.built.init_report is None
        if self.config.compress is None or is_resumed:
            return None
        config, world = dataclasses.replace(self.config, compress=None), World(device=self.world.device)
        try:
            return build(config, world, data=self.built.data).job.model
        except CheckpointError:  # `checkpoint-match` reports it
            return None

    def thorough_statistics(self, survey: PartStatistics) -> PartStatistics:
        """The survey of a part; under `sightline check`, one of all samples that five seconds of work suffice for."""
        if survey.is_whole or not self.is_thorough:
            return survey
        found = self._thorough.get(id(survey))
        if found is None:
            seed, size = self.config.seed, len(survey.part.indices)
            found = collect_statistics(survey.part, seed=seed, most_samples=size, most_seconds=_THOROUGH_S)
            self._thorough[id(survey)] = found
        return found

    @cached_property
    def _thorough(self) -> dict[int, PartStatistics]:
        return {}

    @property
    def is_thorough(self) -> bool:
        """Whether this is `sightline check`, and not the start of a training."""
        return math.isinf(self.forward_s)

    def place(self, path: str, **more: Any) -> FindingLocation:
        """A place of the config: a dotted path, with the file and line of it or of the block it is in."""
        origins, at = self.config.origins, path
        while at:
            for key in (at, f"{at}.name"):
                if key in origins and (origins[key].line is not None or origins[key].source == "command line"):
                    return FindingLocation(file=origins[key].source, line=origins[key].line, config_path=path, **more)
            at = at.rpartition(".")[0]
        return FindingLocation(config_path=path, **more)

    def loss_path(self, name: str) -> str:
        """The dotted path of the losses block of this name."""
        names = [component.name for component in self.config.losses]
        return f"losses.{names.index(name)}" if name in names else "losses"


@dataclass(frozen=True, kw_only=True)
class FindingBuilder:
    """Builds findings of one code. The other fields are the defaults of its findings.

    `causes` are of `CAUSES`, the likeliest first; `at` is a dotted path of the config.
    """

    guard: str
    code: str
    severity: Severity = "error"
    causes: tuple[str, ...] = ()
    at: str = ""
    expected: str = ""
    action: str = ""

    @property
    def names(self) -> tuple[str, str, str]:
        """What `checks.skip` may call it: its code, its guard, and both as findings print them."""
        return self.code, self.guard, f"{self.guard} {self.code}"

    def is_skipped(self, config: RunConfig) -> bool:
        """Whether a config leaves it out."""
        return not set(self.names).isdisjoint(config.checks.skip)

    def finding(
        self,
        where: Context | FindingLocation,
        summary: str,
        *,
        measured: str,
        expected: str = "",
        action: str = "",
        causes: Sequence[str] = (),
        severity: Severity | None = None,
        at: str = "",
        split: str = "",
        evidence: Mapping[str, Any] | None = None,
        **place: Any,
    ) -> Finding:
        """A finding at a place, or at the config's path `at` with the further fields of `Place` that are given.

        `causes` begin with the likeliest, and may name it again; `split` names a part of the run's data set.
        """
        if isinstance(where, Context):
            dataset = {"dataset": f"{where.config.data.name}/{split}"} if split else {}
            where = where.place(at or self.at, **dataset, **place)
        else:
            has_more = bool(at or split or place)
            assert not has_more, f"check '{self.code}' gives a finding two places"
        cause, *alternatives = dict.fromkeys(causes or self.causes)
        return Finding(
            guard=self.guard,
            code=self.code,
            severity=severity or self.severity,
            summary=summary,
            cause=cause,
            where=where,
            measured=measured,
            expected=expected or self.expected,
            action=action or self.action,
            alternatives=tuple(alternatives),
            evidence=dict(evidence or {}),
        )

    def not_run(
        self,
        context: Context,
        error: Exception,
        *,
        severity: Severity = "note",
        action: str = "nothing, if that part may refuse what the check gives it; checks.skip leaves the check out",
    ) -> Finding:
        """That the check could not run, with the error in one line and where it was raised: a note by default."""
        file, line = error_location(error)
        reason = summarise_error(error)
        return self.finding(
            FindingLocation(file=file, line=line) if file else context.place("checks"),
            f"check could not run: {reason}",
            measured=reason,
            expected=TO_END,
            action=action,
            causes=("sys.environment",),
            severity=severity,
        )


@dataclass(frozen=True, kw_only=True)
class Check(FindingBuilder):
    """A registered check: when it runs, about how long it may take, and how its findings are built."""

    moment: Moment
    is_quick: bool
    run: Callable[[Context], Iterable[Finding]]

    def __call__(self, context: Context) -> list[Finding]:
        return list(self.run(context))


CHECKS: dict[str, Check] = {}
"""Every check whose module was imported, by its code."""


@renamed_keywords(at="config_path")
def check(
    guard: str,
    code: str,
    moment: Moment,
    *,
    is_quick: bool = True,
    severity: Severity = "error",
    causes: tuple[str, ...] = (),
    config_path: str = "",
    expected: str = "",
    action: str = "",
) -> Callable[[Callable[[Context], Iterable[Finding]]], Check]:
    """Register a check; the function's name is then the check, and `name.finding(...)` builds its findings.

    Quick ones also run at the start of every training; those that go deep never are. The arguments from `severity` on
    are the defaults of its findings.
    """

    def register(function: Callable[[Context], Iterable[Finding]]) -> Check:
        known = CHECKS.get(code)
        assert known is None or known.run.__module__ == function.__module__, f"check '{code}' is registered twice"
        CHECKS[code] = Check(
            guard=guard,
            code=code,
            severity=severity,
            causes=causes,
            at=config_path,
            expected=expected,
            action=action,
            moment=moment,
            is_quick=is_quick and moment != "deep",
            run=function,
        )
        return CHECKS[code]

    return register
