"""Trial of a case with one seed: the moments of a run in turn, up to the first that finds something."""

from __future__ import annotations

import functools
import logging
import re
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from sightline.config import RunConfig, read_config
from sightline.contract.errors import UserError
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.doctor.finding import Finding, finding_from_dict
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.training import train_run as training
from sightline.training.train_result import Reporter
from sightline.training.train_run import train_run
from sightline.workbench.check import suite
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
    """Message of the doctor at a moment: a finding, a refusal of the config, or a warning with a code in the log.

    `severity` is that of the finding; `failed` is a measurement that ended in an error, whose name is the code.
    """

    moment: str
    text: str
    code: str
    severity: str
    causes: tuple[str, ...] = ()
    step: int | None = None
    summary: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Code and first cause: alarms of a healthy twin with the same key are not due to the fault."""
        return self.code, next(iter(self.causes), "")


class _LogCollector(logging.Handler):
    """Log handler that keeps the warnings that begin with a code."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        code = _LOGGED_CODE.match(text := record.getMessage())
        if code is not None:
            self.lines.append((code[1], text))


def run_case(case: HealthyCase, *, seed: int, known: Container[tuple[str, str]] = ()) -> tuple[Alarm, ...]:
    """Run a case; return every alarm once. Of a fault, those of the first moment that has new ones.

    `known` are the keys of alarms that the case without its fault raises, too: they are not due to it.
    """
    listed: dict[tuple[str, str], Alarm] = {}
    with Planter() as planter:
        case.plant_into(planter)
        loop = case.loop if isinstance(case, FaultCase) else None
        for _, alarms in _list_moments(case.bench, planter, seed=seed, loop=loop):
            for alarm in alarms:
                if alarm.key not in known:
                    listed.setdefault(alarm.key, alarm)
            if listed and isinstance(case, FaultCase):
                break
    return tuple(listed.values())


def rank_cause(alarms: Sequence[Alarm], causes: Sequence[str], *, names: str = "") -> int | None:
    """Return the place of a true cause among the distinct causes of alarms, in the order in which they are printed.

    An alarm without causes counts as one place, and names the first of `causes` if `names` matches its text.
    """
    places: list[str] = []
    for alarm in alarms:
        named = causes[0] if names and re.search(names, alarm.text) else alarm.code
        places += [cause for cause in alarm.causes or (named,) if cause not in places]
    return min((places.index(cause) + 1 for cause in causes if cause in places), default=None)


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
        yield "start", [*make_alarms("start", started), *_take_logged(log, "start")]
        yield "check", [*make_alarms("check", run_all(make(), World())), *_take_logged(log, "check")]
        while_training, at_end = _train(config, planter, folder / "run", started)
        yield "training", [*while_training, *_take_logged(log, "training")]
        yield "end", at_end
        yield "deep", make_alarms("deep", run_all(make(), World(), deep=True))


def _run_loop(loop: Loop, seed: int) -> Iterator[tuple[str, list[Alarm]]]:
    """Run a plain loop, which is watched; yield the alarms while it trains."""
    with _quiet_log():
        findings = loop(seed)
    yield "training", make_alarms("training", findings)


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
            alarms = make_alarms("training", [finding_from_dict(document) for document in documents])
            return alarms or [Alarm("training", str(error), "stopped", "error")], []
    later = [finding for finding in result.findings if finding.phase not in ("static", "preflight")]
    at_end = [finding for finding in later if finding.phase == "offline"]
    while_training = [finding for finding in later if finding.phase != "offline"]
    return make_alarms("training", while_training), make_alarms("end", at_end)


def make_alarms(moment: str, findings: Iterable[Finding], *, with_notes: bool = False) -> list[Alarm]:
    """Convert findings to alarms, notes aside unless they are asked for."""
    return [
        Alarm(moment, str(f), f.code, f.severity, (f.cause, *f.alternatives), f.where.step, f.summary)
        for f in findings
        if with_notes or f.severity != "note"
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
