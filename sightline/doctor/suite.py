"""Runs checks: which there are, at which moment each is due, and that none of them leaves a trace on the run."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import pkgutil
import time
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from sightline.config import RunConfig
from sightline.config.renames import RENAMED_CHECKS
from sightline.doctor.context import CHECKS, TO_END, Check, Context, FindingBuilder, Moment
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.merge import gather_findings, merge_findings
from sightline.doctor.core.object_graph import find_generators, preserve_generators
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.records import preserve_rng_state
from sightline.errors import ConfigError
from sightline.schema import suggest

__all__ = ["all_checks", "assert_known", "run_after", "run_all", "run_quick"]

logger = logging.getLogger(__name__)

_SKIPPED = FindingBuilder(
    guard="G6",
    code="check-skipped",
    severity="warning",
    causes=("sys.resource",),
    at="model",
    expected=TO_END,
    action="run `sightline check`, which takes its time",
)

_FORWARD_S = 1.5  # of the quick checks' one step; with its backward pass and all that is sampled they stay below ten
_ROOM = "sightline.doctor.checks"
_MOMENTS = typing.get_args(Moment)


def all_checks() -> list[Check]:
    """Every check, in the order of their moments and codes."""
    room = importlib.import_module(_ROOM)
    for module in pkgutil.walk_packages(room.__path__, f"{_ROOM}."):
        importlib.import_module(module.name)
    return sorted(CHECKS.values(), key=lambda each: (_MOMENTS.index(each.moment), each.code))


def run_quick(built: TrainingSetup, world: World) -> list[Finding]:
    """The checks that every training starts with."""
    chosen = [each for each in all_checks() if each.is_quick and each.moment in ("static", "preflight")]
    return _run(chosen, Context(built, world, _FORWARD_S))


def run_all(built: TrainingSetup, world: World, *, run: Path | None = None, deep: bool = False) -> list[Finding]:
    """Every check of a run that has not begun; with the directory of a `run`, also those of what it left there.

    `deep` takes the oracles along, which hold every layer and loss against what is known of it.
    """
    left_out = ({"offline"} if run is None else set()) | (set() if deep else {"deep"})
    chosen = [each for each in all_checks() if each.moment not in left_out]
    return _run(chosen, Context(built, world, run=run))


def run_after(built: TrainingSetup, world: World, *, run: Path, first_loss: float | None = None) -> list[Finding]:
    """The checks of what a training left in its directory, and in its model; `first_loss` is that of its first step."""
    chosen = [each for each in all_checks() if each.moment == "offline"]
    return _run(chosen, Context(built, world, _FORWARD_S, run, first_loss))


def _run(checks: Sequence[Check], context: Context) -> list[Finding]:
    """Findings, the gravest first; every process returns the same list, after one collective at the end."""
    assert_known(context.config)
    findings: list[Finding] = []
    with _untouched(context.built):
        for each in checks:
            if each.is_skipped(context.config):
                continue
            started = time.perf_counter()
            found = _run_one(each, context)
            seconds = time.perf_counter() - started
            findings += [dataclasses.replace(finding, phase=each.moment, seconds=seconds) for finding in found]
        findings += _of_short_time(context)
    return merge_findings(gather_findings(findings, context.world))


def _run_one(each: Check, context: Context) -> list[Finding]:
    """A check's findings. One that fails must not end the run on one process alone; that it failed is a finding."""
    try:
        return each(context)
    except Exception as error:
        logger.warning("check-failed: '%s' did not run, so it has no finding for this run", each.code, exc_info=True)
        action = "look at the traceback above, or leave the check out with checks.skip"
        return [each.not_run(context, error, severity="warning", action=action)]


def _of_short_time(context: Context) -> list[Finding]:
    """The first step, or else an evaluation, where a check asked for it and there was no time for one."""
    if _SKIPPED.is_skipped(context.config):
        return []
    rehearsal = vars(context).get("dry_run")  # where no check asked for it there is none
    rehearsed = [*([] if rehearsal is None else [rehearsal]), *vars(context).get("dry_evaluations", ())]
    skipped = [each.skipped for each in rehearsed if each.skipped][:1]
    return [_SKIPPED.finding(context, f"check could not run: {reason}", measured=reason) for reason in skipped]


def assert_known(config: RunConfig) -> None:
    """Raises ConfigError for a check that the config would skip and that there is not; guards have several."""
    known = [name for each in (*all_checks(), _SKIPPED) for name in each.names]
    for code in config.checks.skip:
        where = config.origins.get("checks.skip", "checks.skip")
        if code in RENAMED_CHECKS:
            raise ConfigError(f"{where}: the check '{code}' is called '{RENAMED_CHECKS[code]}'; write that")
        if code not in known:
            raise ConfigError(f"{where}: there is no check '{code}'{suggest(code, known)}")


@contextmanager
def _untouched(built: TrainingSetup) -> Iterator[None]:
    """Random states, those that data sets hold among them, losses and training flags are as before, whatever a check
    did."""
    model, device = built.job.model, built.job.device
    flags = {name: module.training for name, module in model.named_modules()}
    parts = (built.data.train, built.data.selection, built.data.test)
    readers = (
        *parts,
        built.job.stream.reader,
        built.selection_evaluator.voting_reader,
        built.test_evaluator.voting_reader,
    )
    cuda = [device] if device.type == "cuda" else []
    with (
        preserve_rng_state(),
        torch.random.fork_rng(cuda),
        preserve_generators(find_generators(*readers)),
        built.job.losses.preserve_state(),
        torch.enable_grad(),
    ):
        try:
            yield
        finally:
            for name, module in model.named_modules():
                module.training = flags[name]
