"""Context of checks, the rules that are registered, and the subjects that rules are about."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import nn

from sightline.config import RunConfig
from sightline.config.run_config import Init
from sightline.contract.errors import CheckpointError, PluginError, summarise_error
from sightline.contract.members import TaskMembers
from sightline.contract.plugins import find_plugin
from sightline.contract.types import Batch
from sightline.doctor.finding import CAUSES, SEVERITIES, Finding, FindingLocation, Severity
from sightline.engine.build import TrainingSetup, build
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric
from sightline.ops.numba_kernels import compute_seconds
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.core.assigned_boxes import AssignedBoxes, assigned_boxes
from sightline.workbench.check.core.dry_evaluation import DryEvaluation, rehearse_evaluations
from sightline.workbench.check.core.dry_run import (
    DryRun,
    Outputs,
    dry_run,
    error_location,
    first_outputs,
    isolated_copy,
)
from sightline.workbench.check.core.examination import Examination, find_subject
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import (
    ClassCounts,
    PartStatistics,
    collect_statistics,
    count_classes,
    distinct_parts,
    evenly_spaced_keys,
)
from sightline.workbench.check.oracles.examine import examine
from sightline.workbench.check.oracles.results import OracleResult

Moment = Literal["static", "preflight", "deep", "offline"]
MOMENTS: tuple[str, ...] = get_args(Moment)
T = TypeVar("T")

TO_END = "every check of this run to finish"
"""Expected value in the finding of a check that could not run."""
_CPU = torch.device("cpu")
_MAX_ASSIGNED = 64
_QUICK_PASS_S = 0.05
_READING_S, _QUICK_READING_S = 0.5, 0.125
_THOROUGH_S = 1.5  # CPU time of this thread for the samples of one split


def share(subject: str) -> Callable[[Callable[[Context], T]], cached_property[T]]:
    """Make a measurement that is computed on first use, in the time of its subject, whichever check uses it."""

    def decorate(measure: Callable[[Context], T]) -> cached_property[T]:
        @functools.wraps(measure)
        def measure_once(context: Context) -> T:
            with context.examination.count_time(subject):
                return measure(context)

        return cached_property(measure_once)

    return decorate


@dataclass(frozen=True)
class Context:
    """Model, data and cached measurements that a check may read, but not change: it must copy what it modifies.

    `run` is the run directory, for checks of the moment `offline`.
    """

    built: TrainingSetup
    world: World
    forward_s: float = math.inf
    run: Path | None = None
    examination: Examination = field(default_factory=Examination, compare=False)

    @property
    def config(self) -> RunConfig:
        return self.built.config

    @share("model")
    def dry_run(self) -> DryRun:
        """One training step on copies (cached; computed on first use)."""
        return dry_run(self.built.job, self.world.device, forward_s=self.forward_s)

    @share("model")
    def first_outputs(self) -> tuple[Batch, Outputs]:
        """Batch of the first step and its outputs before any update (cached); at least the samples of the dry run."""
        return first_outputs(self.built.job, self.dry_run, self.world.device, is_quick=not self.is_thorough)

    @share("data")
    def assignments(self) -> AssignedBoxes | None:
        """Assign boxes in samples of the first step, under `sightline check` also in 64 other samples (cached).

        None for a task without boxes, and if the dry run did not succeed.
        """
        task = unwrap_distillation(self.built.job.task)
        if TaskMembers.get_priors.get(task) is None or not self.dry_run.is_sound:
            return None
        part, batches = self.built.data.train, iter([self.first_outputs[0]])
        if self.is_thorough:
            key_chunks = evenly_spaced_keys(part, epoch=0, seed=self.config.seed, most_samples=_MAX_ASSIGNED)
            batches = itertools.chain(batches, map(part.reader, key_chunks))
        return assigned_boxes(task, self.built.job.model, (to_device(batch, _CPU) for batch in batches))

    @share("metric")
    def dry_evaluations(self) -> list[DryEvaluation]:
        """Evaluate a few samples on copies, once per evaluated split with another batch form (cached)."""
        is_slow = bool(self.dry_run.skipped)
        return rehearse_evaluations(self.built, self.world.device, forward_s=self.forward_s, is_slow=is_slow)

    @share("data")
    def statistics(self) -> list[PartStatistics]:
        """Statistics of samples of each split (cached; samples are read on first use)."""
        parts, seed = distinct_parts(self.built.data), self.config.seed
        return [collect_statistics(part, seed=seed, most_seconds=self.reading_s) for part in parts]

    @share("data")
    def class_counts(self) -> list[ClassCounts | None]:
        """Class counts of each split, in the order of `statistics` (cached); None for a split without class labels."""
        return [count_classes(statistics, self.thorough_statistics) for statistics in self.statistics]

    @share("model")
    def oracle_results(self) -> list[OracleResult]:
        """Comparison of every kind of layer with finite differences, and with the type it derives from (cached)."""
        is_sound = self.dry_run.is_sound
        return examine(self.built.job, to_device(self.dry_run.batch, _CPU)) if is_sound else []

    @share("compression")
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

    def thorough_statistics(self, survey: PartStatistics) -> PartStatistics:
        """Return the statistics of a split; under `sightline check`, of all that 1.5 s allow."""
        if survey.is_whole or not self.is_thorough:
            return survey
        statistics = self._thorough.get(id(survey))
        if statistics is None:
            seed, size = self.config.seed, len(survey.part.indices)
            statistics = collect_statistics(survey.part, seed=seed, most_samples=size, most_seconds=_THOROUGH_S)
            self._thorough[id(survey)] = statistics
        return statistics

    @cached_property
    def _thorough(self) -> dict[int, PartStatistics]:
        return {}

    @property
    def reading_s(self) -> float:
        """CPU time of this thread for the samples that a check reads of a split."""
        return _READING_S if self.is_thorough else _QUICK_READING_S

    @property
    def is_thorough(self) -> bool:
        """True under `sightline check`, False at the start of a training."""
        return math.isinf(self.forward_s)

    @cached_property
    def pass_s(self) -> float:
        """Processor time of a pass on the inputs of the first step; that of a rehearsed one, if that was slow.

        A pass of the dry evaluation takes 0.7 to 1.6 times as long as one of the probe, with what is recorded of it.
        """
        if not self.is_thorough:
            forward_s = [self.dry_run.forward_s, *(each.forward_s for each in self.dry_evaluations[:1])]
            if min(forward_s) > _QUICK_PASS_S:
                return min(forward_s)
        seconds, model = 0.0, isolated_copy(self.built.job.model).eval()
        for _ in range(2):
            start_seconds = compute_seconds()
            try:
                with torch.no_grad():
                    model(**self.dry_run.inputs)
            except Exception:  # noqa: BLE001 - a network may reject a batch in evaluation mode
                return math.inf
            seconds = compute_seconds() - start_seconds
            if seconds > 4 * _QUICK_PASS_S:
                break
        return seconds

    def place(self, path: str, **more: Any) -> FindingLocation:
        """Return the location of a dotted config path: its file and line, or those of the block that contains it."""
        origins, known_path = self.config.origins, path
        while known_path:
            for key in (known_path, f"{known_path}.name"):
                if key in origins and (origins[key].line is not None or origins[key].source == "command line"):
                    return FindingLocation(file=origins[key].source, line=origins[key].line, config_path=path, **more)
            known_path = known_path.rpartition(".")[0]
        return FindingLocation(config_path=path, **more)

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


def get_loss_path(config: RunConfig, name: str) -> str:
    """Return the dotted config path of the loss of this name."""
    names = [component.name for component in config.losses]
    return f"losses.{names.index(name)}" if name in names else "losses"


@dataclass(frozen=True, kw_only=True)
class FindingBuilder:
    """Builder of findings of one code; the other fields are the defaults of its findings.

    `causes` are of `CAUSES`, the most likely first; `at` is a dotted path of the config.
    """

    code: str
    severity: Severity = "error"
    causes: tuple[str, ...] = ()
    at: str = ""
    expected: str = ""
    action: str = ""

    def is_skipped(self, config: RunConfig) -> bool:
        """Return True if `checks.skip` of a config names this check."""
        return self.code in config.checks.skip

    def finding(self, where: Context | FindingLocation, summary: str, **fields: Any) -> Finding:
        """Build the finding of a fault in a context, or at a location; `fields` are those of `Fault`."""
        if isinstance(where, Context):
            return self.build(Fault(summary, **fields), where)
        return self.build(Fault(summary, where=where, **fields))

    def build(self, fault: Fault, context: Context | None = None, *, at: str = "", split: str = "") -> Finding:
        """Build the finding of a fault; a config path and a split are those of its subject."""
        causes = fault.causes or self.causes
        assert causes, f"check '{self.code}' gives a finding no cause; give `causes` to its Fault or to @check"
        cause, *alternatives = dict.fromkeys(causes)
        return Finding(
            code=self.code,
            severity=fault.severity or self.severity,
            summary=fault.summary,
            cause=cause,
            where=self._locate(fault, context, at, split),
            measured=fault.measured_text,
            expected=fault.bound_text or self.expected,
            action=fault.action or self.action,
            alternatives=tuple(alternatives),
            evidence=dict(fault.evidence),
            value=fault.value,
            bound=fault.bound,
            sureness=fault.sureness,
        )

    def _locate(self, fault: Fault, context: Context | None, at: str, split: str) -> FindingLocation:
        if fault.where is not None:
            has_more = bool(fault.at or fault.split or fault.place)
            assert not has_more, f"check '{self.code}' gives a finding two places"
            return fault.where
        assert context is not None, f"check '{self.code}' gives a finding no place"
        split = fault.split or split
        dataset = {"dataset": f"{context.config.data.name}/{split}"} if split else {}
        return context.place(fault.at or self.at or at, **dataset, **fault.place)

    def not_run(
        self,
        context: Context,
        error: Exception,
        *,
        severity: Severity = "note",
        action: str = "nothing, if that component may reject the check's inputs; checks.skip leaves the check out",
    ) -> Finding:
        """Build the finding that the check could not run, with the error and its location: a note by default."""
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
class Rule(FindingBuilder):
    """Registered rule: its moment, whether every training judges it, and the function that returns its findings."""

    moment: Moment
    is_quick: bool
    run: Callable[[Context], list[Finding]]

    @property
    def subject(self) -> str:
        """Subject that the rule examines."""
        return find_subject(self.run.__module__)

    def __call__(self, context: Context) -> list[Finding]:
        return list(self.run(context))

    def judge(self, context: Context, subject: Any, faults: Faults) -> Iterator[Finding]:
        """Yield the findings of a subject's faults; a split, and a config path, are taken from the subject."""
        is_several = isinstance(faults, Iterable) and not isinstance(faults, str)
        found: Any = () if faults is None else faults if is_several else [faults]
        part, path = getattr(subject, "part", subject), getattr(subject, "path", "")
        for fault in found:
            if isinstance(fault, Fault):
                yield self.build(fault, context, at=path, split=getattr(part, "split", ""))
            elif isinstance(fault, Finding):
                yield fault
            else:
                raise TypeError(f"{self.run.__name__} returned {fault!r:.60}; return a Fault, several, or None")


Faults = Fault | Finding | Iterable[Fault | Finding] | None
"""Result of a rule for a subject; None where it holds."""
Subjects = Callable[[Context], Iterable[Any]]
"""Function that lists what a rule is about: each must hold. Without any, the rule does not apply to the run."""

_MISSING = {
    "first_steps": "the first step fails",
    "initialisations": "no init",
    "assignments": "no boxes",
    "box_losses": "no codes of boxes",
    "evaluations": "no evaluation",
    "logs": "no log",
}
"""Reasons why a rule does not apply, by the name of the function that lists no subject."""


CHECKS: dict[str, Rule] = {}
"""Registered rules of all imported modules, by code."""


def check(
    code: str,
    moment: Moment,
    *,
    each: Subjects | None = None,
    is_quick: bool = True,
    severity: Severity = "error",
    causes: tuple[str, ...] = (),
    config_path: str = "",
    expected: str = "",
    action: str = "",
) -> Callable[[Callable[..., Faults]], Rule]:
    """Register a function as a rule: it takes the context, and one of the subjects of `each` if given.

    It returns or yields the faults of the subject. Quick rules also run at the start of every training; deep ones are
    never quick. The arguments from `severity` on are the defaults of the findings.
    """

    def register(function: Callable[..., Faults]) -> Rule:
        registered = CHECKS.get(code)
        is_new = registered is None or registered.run.__module__ == function.__module__
        if registered is not None and not is_new and (plugin := find_plugin(registered.run)) is not None:
            owner = "another plugin" if find_plugin(function) else "sightline"
            raise PluginError(f"--plugin {plugin}: {owner} has a check '{code}', too; take another code")
        assert is_new, f"check '{code}' is registered twice; take another code"
        assert moment in MOMENTS, f"check '{code}': moment={moment!r}; allowed: {', '.join(MOMENTS)}"
        assert severity in SEVERITIES, f"check '{code}': severity={severity!r}; allowed: {', '.join(SEVERITIES)}"
        unknown = sorted(set(causes) - CAUSES)
        assert not unknown, f"check '{code}': there are no causes {', '.join(unknown)}; CAUSES lists all"

        @functools.wraps(function)
        def run(context: Context) -> list[Finding]:
            subjects = [()] if each is None else [(subject,) for subject in each(context)]
            if each is not None and not subjects:
                name = getattr(each, "__name__", code)
                reason = _MISSING.get(name, f"no {name.replace('_', ' ')}")
                context.examination.add(rule.subject, code, idle=reason)
            return [
                finding
                for subject in subjects
                for finding in rule.judge(context, next(iter(subject), None), function(context, *subject))
            ]

        rule = CHECKS[code] = Rule(
            code=code,
            severity=severity,
            causes=causes,
            at=config_path,
            expected=expected,
            action=action,
            moment=moment,
            is_quick=is_quick and moment != "deep",
            run=run,
        )
        return rule

    return register


# --- subjects ---------------------------------------------------------------------------------------------------------


class JudgedMetric(NamedTuple):
    """Metric of the evaluation that chooses the checkpoint, with its name and its config path."""

    meter: BoundMetric
    name: str
    path: str


def first_steps(context: Context) -> list[DryRun]:
    """List the first training step, if it succeeds."""
    return [context.dry_run] if context.dry_run.is_sound else []


def initialisations(context: Context) -> list[Init]:
    """List the weights that the run starts from; a resumed run has its weights from its own checkpoint."""
    is_loaded = context.config.init is not None and context.built.init_report is not None
    return [context.config.init] if context.config.init is not None and is_loaded else []


def evaluations(context: Context) -> Iterator[DryEvaluation]:
    """List the dry evaluations that succeed."""
    return (evaluation for evaluation in context.dry_evaluations if evaluation.failure is None)


def metrics(context: Context) -> Iterator[JudgedMetric]:
    """List the metrics of the evaluation that chooses the checkpoint."""
    names = [component.name for component in context.config.metrics]
    for index, meter in enumerate(context.built.selection_evaluator.metrics):
        name = names[index] if index < len(names) else type(meter.metric).__name__
        yield JudgedMetric(meter, name, f"metrics.{index}")


def assignments(context: Context) -> list[AssignedBoxes]:
    """List the assignment of boxes to priors, if the task has one."""
    return [] if context.assignments is None else [context.assignments]
