"""Runs checks: which there are, at which moment each is due, and that none of them leaves a trace on the run."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from sightline.checks.finding import Finding
from sightline.config import RunConfig
from sightline.engine.build import Built
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.records import kept_random_state
from sightline.errors import ConfigError
from sightline.schema import nearest
from sightline.types import Batch

__all__ = ["Check", "Context", "all_checks", "check", "run_all", "run_quick"]

Moment = Literal["static", "preflight"]
SEVERITY_ORDER = {"error": 0, "warning": 1, "note": 2}


class Check(NamedTuple):
    """A registered check: its stable code, when it runs, and about how long it may take."""

    code: str
    moment: Moment
    is_quick: bool
    run: Callable[[Context], list[Finding]]


@dataclass(frozen=True)
class Context:
    """What a check may look at. It must leave model, data and random states as they are: copy what it changes."""

    built: Built
    world: World

    @property
    def config(self) -> RunConfig:
        return self.built.config

    def train_batch(self, step: int = 0) -> Batch:
        """The first micro-batch of a training step, on the run's device, read anew."""
        keys = self.built.job.stream.plan.parts(step)[0][0]
        return to_device(
            self.built.data.train.reader(keys), self.world.device, floats=self.built.job.precision.parameters
        )


_CHECKS: dict[str, Check] = {}


def check(*, code: str, moment: Moment, is_quick: bool = True) -> Callable[..., Any]:
    """Register a check. Quick ones also run at the start of every training."""

    def register(function: Callable[[Context], list[Finding]]) -> Callable[[Context], list[Finding]]:
        known = _CHECKS.get(code)
        assert known is None or known.run.__module__ == function.__module__, f"check '{code}' is registered twice"
        _CHECKS[code] = Check(code, moment, is_quick, function)
        return function

    return register


def all_checks() -> list[Check]:
    """Every check, in the order of their moments and codes."""
    import sightline.checks as room

    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"sightline.checks.{module.name}")
    return sorted(_CHECKS.values(), key=lambda each: (each.moment != "static", each.code))


def run_quick(built: Built, world: World) -> list[Finding]:
    """The checks that every training starts with."""
    return _run([each for each in all_checks() if each.is_quick], built, world)


def run_all(built: Built, world: World) -> list[Finding]:
    """Every check of a run that has not begun."""
    return _run(all_checks(), built, world)


def _run(checks: Sequence[Check], built: Built, world: World) -> list[Finding]:
    """Findings, the gravest first. Every process runs the same checks and so meets the same collectives."""
    skipped = set(built.config.checks.skip)
    unknown = sorted(skipped - {each.code for each in all_checks()})
    if unknown:
        where = built.config.origins.get("checks.skip", "checks.skip")
        raise ConfigError(f"{where}: there is no check '{unknown[0]}'{nearest(unknown[0], [c.code for c in all_checks()])}")
    context = Context(built, world)
    findings: list[Finding] = []
    for each in checks:
        if each.code in skipped:
            continue
        started = time.perf_counter()
        with _untouched(built):
            found = each.run(context)
        seconds = time.perf_counter() - started
        findings += [dataclasses.replace(finding, phase=each.moment, seconds=seconds) for finding in found]
    return sorted(findings, key=lambda finding: SEVERITY_ORDER[finding.severity])


@contextmanager
def _untouched(built: Built) -> Iterator[None]:
    """Random states and training flags are as before, whatever a check did."""
    model = built.job.model
    flags = {name: module.training for name, module in model.named_modules()}
    with kept_random_state(), torch.enable_grad():
        try:
            yield
        finally:
            for name, module in model.named_modules():
                module.training = flags[name]
