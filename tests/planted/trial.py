"""Trial of a case with one seed: the moments of a run in turn, up to the first that finds something."""

from __future__ import annotations

import functools
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from sightline.config import RunConfig, read_config
from sightline.contract.errors import UserError
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.training import train_run as training
from sightline.training.train_run import Reporter, train_run
from sightline.workbench.check import suite
from sightline.workbench.check.core.finding import Finding, finding_from_dict
from sightline.workbench.check.suite import run_all, run_quick
from tests.planted.catalog import FaultCase, HealthyCase
from tests.planted.loops import PLAIN, Loop, train_plainly
from tests.planted.planting import BENCHES, Planter
from tests.planted.ranks import RANKS, train_in_processes

_LOOPS: Mapping[str, Loop] = {PLAIN: train_plainly, RANKS: train_in_processes}
"""Healthy loops of the benches that are not runs of ours."""
_LOGGED_CODE = re.compile(r"([a-z]+(?:-[a-z]+)+): ")


@dataclass(frozen=True)
class Alarm:
    """Message of the doctor at a moment: a finding, a refusal of the config, or a warning with a code in the log."""

    moment: str
    text: str
    code: str
    severity: str
    causes: tuple[str, ...] = ()
    step: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Code and first cause: alarms of a healthy twin with the same key are not due to the fault."""
        return self.code, next(iter(self.causes), "")


@dataclass(frozen=True)
class Trial:
    """Result of a case with one seed.

    `rank` is the place of the true cause among the causes as they are printed, 1 for the first; None if it is not
    named. `crash` is an error that is no message of ours.
    """

    case: str
    seed: int
    seconds: float
    moment: str | None = None
    step: int | None = None
    rank: int | None = None
    alarms: tuple[Alarm, ...] = ()
    crash: str = ""

    @property
    def is_found(self) -> bool:
        """True if an error or a warning was raised that the healthy twin does not raise."""
        return self.moment is not None


class _LogCollector(logging.Handler):
    """Log handler that keeps the warnings that begin with a code."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        code = _LOGGED_CODE.match(text := record.getMessage())
        if code is not None:
            self.lines.append((code[1], text))


def run_trial(case: FaultCase, *, seed: int) -> Trial:
    """Plant a fault and let the doctor look for it, moment after moment, until it raises an alarm."""
    started = _cpu_s()
    try:
        with Planter() as planter:
            case.plant_into(planter)
            moments = _list_moments(case.bench, planter, seed=seed, loop=case.loop)
            for moment, alarms in moments:
                seconds = _cpu_s() - started
                with planter.suspend():
                    known = healthy_alarms(case.bench, moment, seed=seed) if alarms else frozenset()
                new = tuple(alarm for alarm in alarms if alarm.key not in known)
                if new:
                    step = next((alarm.step for alarm in new if alarm.step is not None), None)
                    return Trial(case.id, seed, seconds, moment, step, rank_cause(case, new), new)
    except Exception as error:  # noqa: BLE001 - a crash of the run is a result: the fault was not named
        crash = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return Trial(case.id, seed, _cpu_s() - started, crash=crash)
    return Trial(case.id, seed, _cpu_s() - started)


def _cpu_s() -> float:
    """Processor time of this process and of those that it started and that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def run_healthy(case: HealthyCase, *, seed: int) -> tuple[Alarm, ...]:
    """Run all moments of a healthy case; return every alarm once, at its first moment: each of them is false."""
    with Planter() as planter:
        case.plant_into(planter)
        listed = [alarm for _, alarms in _list_moments(case.bench, planter, seed=seed) for alarm in alarms]
    return tuple({alarm.key: alarm for alarm in reversed(listed)}.values())[::-1]


def rank_cause(case: FaultCase, alarms: Sequence[Alarm]) -> int | None:
    """Return the place of the true cause among the distinct causes of alarms, in the order in which they are printed.

    An alarm without causes counts as one place, and names the cause if the case's `names` matches its text.
    """
    places: list[str] = []
    for alarm in alarms:
        named = case.cause if case.names and re.search(case.names, alarm.text) else alarm.code
        places += [cause for cause in alarm.causes or (named,) if cause not in places]
    return places.index(case.cause) + 1 if case.cause in places else None


def _list_moments(
    bench: str, planter: Planter, *, seed: int, loop: Loop | None = None
) -> Iterator[tuple[str, list[Alarm]]]:
    """Yield the moments of a run on a bench, or those of a plain loop: this one, or the healthy one of the bench."""
    loop = loop or _LOOPS.get(bench)
    return list_alarms(bench, planter, seed=seed) if loop is None else _run_loop(loop, seed)


def list_alarms(bench: str, planter: Planter, *, seed: int) -> Iterator[tuple[str, list[Alarm]]]:
    """Yield each moment of a run with its alarms: warnings and errors.

    Its config is refused, which ends the run; the checks with which `train` starts, those of `sightline check`; while
    it trains; the checks of the finished run; `check --deep`, which users run if they suspect something.
    """
    with tempfile.TemporaryDirectory() as name, _quiet_log() as log:
        folder = Path(name)
        try:
            has_data = any(word.startswith("data=") for word in planter.overrides)
            seeds = [f"seed={seed}", *([] if has_data else [f"data.data_seed={seed}"])]
            config = read_config(BENCHES / f"{bench}.yaml", (*seeds, *planter.overrides))
            make = functools.partial(_build, config, planter)
            make()
        except UserError as error:
            yield "config", [Alarm("config", str(error), "refused", "error")]
            return
        yield "config", _take_logged(log, "config")
        started = run_quick(make(), World())
        yield "start", [*_make_alarms("start", started), *_take_logged(log, "start")]
        yield "check", [*_make_alarms("check", run_all(make(), World())), *_take_logged(log, "check")]
        while_training, at_end = _train(config, planter, folder / "run", started)
        yield "training", [*while_training, *_take_logged(log, "training")]
        yield "end", at_end
        yield "deep", _make_alarms("deep", run_all(make(), World(), deep=True))


def _run_loop(loop: Loop, seed: int) -> Iterator[tuple[str, list[Alarm]]]:
    """Run a plain loop, which is watched; yield the alarms while it trains."""
    with _quiet_log():
        findings = loop(seed)
    yield "training", _make_alarms("training", findings)


@functools.cache
def healthy_alarms(bench: str, moment: str, *, seed: int) -> frozenset[tuple[str, str]]:
    """Return the keys of the alarms that the bench without a fault raises at a moment."""
    with Planter() as planter:
        for name, alarms in _list_moments(bench, planter, seed=seed):
            if name == moment:
                return frozenset(alarm.key for alarm in alarms)
    return frozenset()


def _build(config: RunConfig, planter: Planter) -> TrainingSetup:
    return planter.change(build(config, World()))


def _train(
    config: RunConfig, planter: Planter, path: Path, started: Sequence[Finding]
) -> tuple[list[Alarm], list[Alarm]]:
    """Train a run to its end; return the alarms while it trains, and those of the checks after it.

    The checks of its start have `started` for their findings and are not run again.
    """

    def make(config: RunConfig, world: World, **more: Any) -> TrainingSetup:
        return planter.change(build(config, world, **more))

    is_quick_known = mock.patch.object(suite, "run_quick", return_value=list(started))
    with mock.patch.object(training, "build", make), is_quick_known:
        try:
            result = train_run(config, out=path, device="cpu", reporter=Reporter())
        except UserError as error:
            documents = parse_json(read_regular_file(path / "findings.json")) if path.exists() else []
            alarms = _make_alarms("training", [finding_from_dict(document) for document in documents])
            return alarms or [Alarm("training", str(error), "stopped", "error")], []
    later = [finding for finding in result.findings if finding.phase not in ("static", "preflight")]
    at_end = [finding for finding in later if finding.phase == "offline"]
    while_training = [finding for finding in later if finding.phase != "offline"]
    return _make_alarms("training", while_training), _make_alarms("end", at_end)


def _make_alarms(moment: str, findings: Sequence[Finding]) -> list[Alarm]:
    return [
        Alarm(moment, str(f), f.code, f.severity, (f.cause, *f.alternatives), f.where.step)
        for f in findings
        if f.severity != "note"
    ]


def _take_logged(log: _LogCollector, moment: str) -> list[Alarm]:
    """Return the warnings that were logged since the last call, each code once."""
    lines, log.lines = dict(log.lines), []
    return [Alarm(moment, text, code, "warning") for code, text in lines.items()]


@contextmanager
def _quiet_log() -> Iterator[_LogCollector]:
    """Context in which warnings of sightline are collected, and not shown."""
    logger, collector = logging.getLogger("sightline"), _LogCollector()
    before = logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield collector
    finally:
        logger.removeHandler(collector)
        logger.propagate = before
