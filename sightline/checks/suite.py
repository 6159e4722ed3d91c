"""Runs checks: which there are, at which moment each is due, and that none of them leaves a trace on the run."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import math
import pkgutil
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from sightline.checks.census import Census, census_of
from sightline.checks.finding import Finding, Place
from sightline.checks.merge import agree, merge
from sightline.checks.oracles.examine import examine
from sightline.checks.oracles.rows import Row
from sightline.checks.oracles.squares import Squares, squares_of
from sightline.checks.owned import generators_of, kept_generators
from sightline.checks.rehearsal import Rehearsal, copy_of, frame_of, rehearse
from sightline.checks.rehearsed_evaluation import RehearsedEvaluation, rehearse_evaluations
from sightline.checks.survey import PartSurvey, distinct_parts, survey_part
from sightline.config import RunConfig
from sightline.engine.build import Built
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.loading import checkpoint_path, load_trained
from sightline.engine.records import kept_random_state
from sightline.errors import ConfigError
from sightline.schema import nearest

__all__ = ["Check", "Context", "all_checks", "assert_known", "check", "run_after", "run_all", "run_quick"]

Moment = Literal["static", "preflight", "deep", "offline"]
logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_FORWARD_S = 1.5  # of the quick checks' one step; with its backward pass and all that is sampled they stay below ten

_THOROUGH_S = 5.0  # of this thread's own time, for the samples of one part


class Check(NamedTuple):
    """A registered check: its stable code, when it runs, and about how long it may take."""

    code: str
    moment: Moment
    is_quick: bool
    run: Callable[[Context], list[Finding]]


@dataclass(frozen=True)
class Context:
    """What a check may look at. It must leave model, data and random states as they are: copy what it changes.

    `run` is the directory of the run where there is one, for the checks whose moment is `offline`.
    """

    built: Built
    world: World
    forward_s: float = math.inf
    run: Path | None = None

    @property
    def config(self) -> RunConfig:
        return self.built.config

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """One training step on copies, taken when the first check asks for it."""
        return rehearse(self.built.job, self.world.device, forward_s=self.forward_s)

    @cached_property
    def evaluations(self) -> list[RehearsedEvaluation]:
        """An evaluation of a few samples on copies, of each evaluated part that has a form of its own."""
        is_slow = bool(self.rehearsal.skipped)
        return rehearse_evaluations(self.built, self.world.device, forward_s=self.forward_s, is_slow=is_slow)

    @cached_property
    def survey(self) -> list[PartSurvey]:
        """Samples of each part, read when the first check asks for them."""
        return [survey_part(part, seed=self.config.seed) for part in distinct_parts(self.built.data)]

    @cached_property
    def census(self) -> list[Census | None]:
        """How often each class occurs in each part of `survey`, in this order."""
        return [census_of(each, self.thoroughly) for each in self.survey]

    @cached_property
    def squares(self) -> dict[str, Squares]:
        """The losses that are sums of squares, on the first outputs: found by what they do."""
        rehearsal, found = self.rehearsal, {}
        if not rehearsal.is_sound:
            return {}
        batch, outputs = to_device(rehearsal.batch, _CPU), to_device(dict(rehearsal.seen_outputs), _CPU)
        for component in self.config.losses:
            try:
                squares = squares_of(self.built.job, batch, outputs, component.name)
            except Exception:  # noqa: BLE001 - a loss of others may refuse outputs that are not its model's
                continue
            if squares is not None:
                found[component.name] = squares
        return found

    @cached_property
    def oracles(self) -> list[Row]:
        """Every kind of layer and every loss, held against what is known of it, when the first deep check asks."""
        rehearsal = self.rehearsal
        if not rehearsal.is_sound:
            return []
        batch, outputs = to_device(rehearsal.batch, _CPU), to_device(dict(rehearsal.seen_outputs), _CPU)
        return examine(self.built.job, self.config, self.built.data.facts, batch, outputs)

    @cached_property
    def trained(self) -> nn.Module | None:
        """A copy of the model with the weights of the run's last checkpoint, in evaluation mode; None without one."""
        if self.run is None or not (self.run / "checkpoints" / "last").exists():
            return None
        copied = copy_of(self.built.job.model)
        load_trained(copied, checkpoint_path(self.run, "last"))
        return copied.eval()

    def thoroughly(self, survey: PartSurvey) -> PartSurvey:
        """The survey of a part; under `sightline check`, one of all samples that five seconds of work suffice for."""
        if survey.is_whole or not self.takes_time:
            return survey
        found = self._thorough.get(id(survey))
        if found is None:
            seed, size = self.config.seed, len(survey.part.indices)
            found = survey_part(survey.part, seed=seed, most_samples=size, most_seconds=_THOROUGH_S)
            self._thorough[id(survey)] = found
        return found

    @cached_property
    def _thorough(self) -> dict[int, PartSurvey]:
        return {}

    @property
    def takes_time(self) -> bool:
        """Whether this is `sightline check`, and not the start of a training."""
        return math.isinf(self.forward_s)

    def place(self, path: str, **more: Any) -> Place:
        """Where the config says something: a dotted path, with the file and line of it or of the block it is in."""
        origins, at = self.config.origins, path
        while at:
            for key in (at, f"{at}.name"):
                if key in origins and (origins[key].line is not None or origins[key].origin == "command line"):
                    return Place(file=origins[key].origin, line=origins[key].line, config_path=path, **more)
            at = at.rpartition(".")[0]
        return Place(config_path=path, **more)

    def loss_path(self, name: str) -> str:
        """The dotted path of the losses block of this name."""
        names = [component.name for component in self.config.losses]
        return f"losses.{names.index(name)}" if name in names else "losses"


_CHECKS: dict[str, Check] = {}
_MOMENTS = typing.get_args(Moment)


def check(*, code: str, moment: Moment, is_quick: bool = True) -> Callable[..., Any]:
    """Register a check. Quick ones also run at the start of every training; those that go deep never are."""

    def register(function: Callable[[Context], list[Finding]]) -> Callable[[Context], list[Finding]]:
        known = _CHECKS.get(code)
        assert known is None or known.run.__module__ == function.__module__, f"check '{code}' is registered twice"
        _CHECKS[code] = Check(code, moment, is_quick and moment != "deep", function)
        return function

    return register


def all_checks() -> list[Check]:
    """Every check, in the order of their moments and codes."""
    import sightline.checks as room

    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"sightline.checks.{module.name}")
    return sorted(_CHECKS.values(), key=lambda each: (_MOMENTS.index(each.moment), each.code))


def run_quick(built: Built, world: World) -> list[Finding]:
    """The checks that every training starts with."""
    chosen = [each for each in all_checks() if each.is_quick and each.moment in ("static", "preflight")]
    return _run(chosen, Context(built, world, _FORWARD_S))


def run_all(built: Built, world: World, *, run: Path | None = None, deep: bool = False) -> list[Finding]:
    """Every check of a run that has not begun; with the directory of a `run`, also those of what it left there.

    `deep` takes the oracles along, which hold every layer and loss against what is known of it.
    """
    left_out = ({"offline"} if run is None else set()) | (set() if deep else {"deep"})
    chosen = [each for each in all_checks() if each.moment not in left_out]
    return _run(chosen, Context(built, world, run=run))


def run_after(built: Built, world: World, *, run: Path) -> list[Finding]:
    """The checks of what a training left in its directory, and in its model."""
    chosen = [each for each in all_checks() if each.moment == "offline"]
    return _run(chosen, Context(built, world, _FORWARD_S, run))


def _run(checks: Sequence[Check], context: Context) -> list[Finding]:
    """Findings, the gravest first; every process returns the same list, after one collective at the end."""
    assert_known(context.config)
    findings: list[Finding] = []
    with _untouched(context.built):
        for each in checks:
            if each.code in context.config.checks.skip:
                continue
            started = time.perf_counter()
            found = _run_one(each, context)
            seconds = time.perf_counter() - started
            findings += [dataclasses.replace(finding, phase=each.moment, seconds=seconds) for finding in found]
        findings += _of_short_time(context)
    return merge(agree(findings, context.world))


def _run_one(each: Check, context: Context) -> list[Finding]:
    """A check's findings. One that fails must not end the run on one process alone; that it failed is a finding."""
    try:
        return each.run(context)
    except Exception as error:
        logger.warning("check-failed: '%s' says nothing about this run", each.code, exc_info=True)
        file, line = frame_of(error)
        where = Place(file=file, line=line) if file else context.place("checks")
        return [_not_run(each.code, _guard_of(each), "sys.environment", where, _told(error))]


def _of_short_time(context: Context) -> list[Finding]:
    """The first step, or else an evaluation, where a check asked for it and there was no time for one."""
    rehearsal = vars(context).get("rehearsal")  # where no check asked for it there is none
    rehearsed = [*([] if rehearsal is None else [rehearsal]), *vars(context).get("evaluations", ())]
    skipped = [each.skipped for each in rehearsed if each.skipped][:1]
    return [_not_run("check-skipped", "G6", "sys.resource", context.place("model"), reason) for reason in skipped]


def _not_run(code: str, guard: str, cause: str, where: Place, reason: str) -> Finding:
    return Finding(
        guard=guard,
        code=code,
        severity="warning",
        summary=f"check could not run: {reason}",
        cause=cause,
        where=where,
        measured=reason,
        expected="every check of this run to end",
        action="run `sightline check`, which takes its time"
        if code == "check-skipped"
        else "look at the traceback above, or leave the check out with checks.skip",
    )


def _guard_of(each: Check) -> str:
    """The guard that the docstring of a check's module names."""
    words = (sys.modules[each.run.__module__].__doc__ or "").split(":")[0].split()
    return words[1] if words[:1] == ["Guard"] and len(words) > 1 else "G0"


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def assert_known(config: RunConfig) -> None:
    """Raises ConfigError for a check that the config would skip and that there is not."""
    known = [each.code for each in all_checks()]
    for code in config.checks.skip:
        if code not in known:
            where = config.origins.get("checks.skip", "checks.skip")
            raise ConfigError(f"{where}: there is no check '{code}'{nearest(code, known)}")


@contextmanager
def _untouched(built: Built) -> Iterator[None]:
    """Random states, those that data sets hold among them, and training flags are as before, whatever a check did."""
    model, device = built.job.model, built.job.device
    flags = {name: module.training for name, module in model.named_modules()}
    parts = (built.data.train, built.data.selection, built.data.test)
    readers = (*parts, built.job.stream.reader, built.selection.voting_reader, built.test.voting_reader)
    cuda = [device] if device.type == "cuda" else []
    with (
        kept_random_state(),
        torch.random.fork_rng(cuda),
        kept_generators(generators_of(*readers)),
        torch.enable_grad(),
    ):
        try:
            yield
        finally:
            for name, module in model.named_modules():
                module.training = flags[name]
