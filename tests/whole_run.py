"""What the end of a whole run judges, in pytest's main process: numbers that no test opened, rooms of tests that grew.

A run is whole if it has all tests of `make test`, or all of `make test-long`; of single files nothing is judged.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.golden_files import LONG, UNREAD, WAITING, list_golden

__all__ = ["WholeRun", "list_opened", "room_of"]

ROOT = Path(__file__).resolve().parents[1]
BUDGET = Path(__file__).with_name("budget.yaml")
LONGEST = 1.25
"""Seconds of a room, in those of its line, above which a run fails."""
HIGHEST_LOAD = 2.5
"""Of other programs, when the run begins and in the middle of its looks; above it seconds are printed, not judged."""

_OPENED: set[str] = set()


def _note_golden(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and "/golden/" in arguments[0]:
        area, _, name = arguments[0].rpartition("/golden/")[2].partition("/")
        _OPENED.add(f"{area}/{name.rpartition('.')[0]}")


sys.addaudithook(_note_golden)


def list_opened() -> set[str]:
    """Return the files of numbers that this process has opened, each as area/name."""
    return set(_OPENED)


def room_of(node_id: str) -> str:
    """Return the folder of a test below `tests/`, or the file of one that is in none."""
    first = node_id.removeprefix("tests/").split("::")[0].split("/")
    return first[0]


class Budget(NamedTuple):
    """Seconds that the tests of each room take over all workers, in a run whose calibration is `calibration_s`."""

    calibration_s: float
    rooms: Mapping[str, float]

    def scale(self, seconds: float, calibration_s: float) -> float:
        """Convert seconds on a machine, as it is now, to those on the machine of the lines."""
        return seconds * self.calibration_s / calibration_s

    def find_dear(self, seconds: Mapping[str, float], times: float = 1.0) -> dict[str, tuple[float, float]]:
        """Return the rooms above `times` their line: their seconds, scaled, and their line."""
        spent: Counter[str] = Counter()
        for room, value in seconds.items():
            spent[room if room in self.rooms else "others"] += value
        return {room: (value, self.rooms[room]) for room, value in spent.items() if value > times * self.rooms[room]}


def read_budget() -> Budget:
    """Read tests/budget.yaml."""
    stated = yaml.safe_load(BUDGET.read_text(encoding="utf-8"))
    return Budget(stated["calibration_s"], stated["rooms"])


_NUM_RECENT = 12


class Calibration:
    """Seconds of a fixed small work, measured every few seconds of a run: what slows the machine slows it, too.

    `loads` are those of the machine at these times.
    """

    def __init__(self) -> None:
        import torch

        self.seconds: list[float] = []
        self.loads: list[float] = []
        self._matrix = torch.ones(128, 128)
        self._next = 0.0

    def measure(self) -> None:
        """Do the work, if the last time was five seconds ago."""
        if (start := time.perf_counter()) < self._next:
            return
        counts: Counter[int] = Counter()
        for number in range(40_000):
            counts[number % 97] += number
        for _ in range(60):
            self._matrix = (self._matrix @ self._matrix).clamp(max=1.0)
        self.seconds.append(time.perf_counter() - start)
        self.loads.append(os.getloadavg()[0])
        self._next = start + 5.0

    @property
    def mean_s(self) -> float:
        """Mean of all measurements but the first, which imports."""
        return _mean(self.seconds[1:] or self.seconds)

    @property
    def recent_s(self) -> float:
        """Mean of the last measurements, of about a minute."""
        return _mean((self.seconds[1:] or self.seconds)[-_NUM_RECENT:])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def judge_golden(opened: Collection[str], files: Collection[str], *, is_long: bool) -> list[str]:
    """Return a sentence for each file that the run had to open and did not, and for each listed one that it opened."""
    expected = set(LONG) if is_long else set(files) - set(LONG) - set(UNREAD) - set(WAITING)
    said = [f"{name}: no test opened it" for name in sorted(expected - set(opened))]
    listed = (set(UNREAD) | set(WAITING)) & set(opened)
    return said + [
        f"{name}: a test opened it, and tests/golden_files.py says that none does" for name in sorted(listed)
    ]


class WholeRun:
    """Plugin of pytest: workers pass on what they opened, and the main process judges a whole run at its end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.opened: set[str] = set()
        self.seconds: Counter[str] = Counter()
        """Of rooms, each test's scaled by what the small work took around it: bursts of other programs do not count."""
        self.plain_seconds: Counter[str] = Counter()
        """Of rooms, as they were taken: a processor that is fast in the small work alone makes no room dear."""
        self.total_s = 0.0
        self.budget = read_budget()
        self.calibration: Calibration | None = None
        self.load = 0.0
        self.faults: list[str] = []
        self.dear: list[str] = []

    @property
    def is_worker(self) -> bool:
        """Whether this is one of several processes that run tests."""
        return hasattr(self.config, "workerinput")

    @property
    def kind(self) -> str | None:
        """`daily` or `long` for a whole run."""
        options = self.config.option
        asked = [Path(word).resolve() for word in self.config.args]
        is_all = asked in ([ROOT / "tests"], [ROOT]) and not options.keyword and not options.collectonly
        kind = {"not long": "daily", "long": "long"}.get(options.markexpr)
        return kind if is_all and not options.third and not getattr(options, "lf", False) else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Note the load before workers start."""
        if not self.is_worker and self.kind == "daily":
            self.load, self.calibration = os.getloadavg()[0], Calibration()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker opened."""
        self.opened |= set(getattr(node, "workeroutput", {}).get("opened", ()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the seconds of a test to its room, and measure the machine now and then."""
        if self.calibration is not None:
            self.calibration.measure()
            self.total_s += report.duration
            self.plain_seconds[room_of(report.nodeid)] += report.duration
            self.seconds[room_of(report.nodeid)] += self.budget.scale(report.duration, self.calibration.recent_s)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Judge a whole run that has passed; a fault is a failure of the run."""
        if self.is_worker:
            self.config.workeroutput["opened"] = sorted(_OPENED)  # type: ignore[attr-defined]
            return
        if self.kind is None or session.exitstatus != pytest.ExitCode.OK:
            return
        self.opened |= _OPENED
        if (files := list_golden()) is not None:
            self.faults += judge_golden(self.opened, files, is_long=self.kind == "long")
        if self.kind == "daily":
            self._judge_seconds()
        if self.faults:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _judge_seconds(self) -> None:
        for room, (seconds, line) in sorted(self.budget.find_dear(self.seconds).items()):
            self.dear.append(f"{room}: {seconds:.0f} s, scaled, line {line:.0f} s")
        if self.find_load() < HIGHEST_LOAD:
            plain = self.budget.find_dear(self.plain_seconds, LONGEST)
            for room, (seconds, line) in self.budget.find_dear(self.seconds, LONGEST).items():
                if room in plain:
                    self.faults.append(
                        f"{room}: its tests take {plain[room][0]:.0f} s, {seconds:.0f} s scaled, above {LONGEST} of "
                        f"their line of {line:.0f} s"
                    )

    def find_load(self) -> float:
        """Return the load of other programs: at the start, or in the middle of the run beside its workers."""
        loads = sorted(self.calibration.loads) if self.calibration is not None else []
        num_workers = getattr(self.config.option, "numprocesses", None) or 1
        return max(self.load, loads[len(loads) // 2] - num_workers if loads else 0.0)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print rooms above their line, what the lines are scaled by, and the seconds of all rooms."""
        if self.is_worker or self.kind is None:
            return
        if self.kind == "daily":
            total = self.total_s
            terminalreporter.write_sep("=", "rooms above their line of tests/budget.yaml")
            mean_s = 0.0 if self.calibration is None else self.calibration.mean_s
            measured = f"calibration {mean_s:.4f} s, load of others {self.find_load():.1f}, all {total:.0f} s"
            terminalreporter.write_line(measured)
            terminalreporter.write_line("\n".join(self.dear))
            terminalreporter.write_sep("=", "seconds of each room: scaled (as taken)")
            terminalreporter.write_line(", ".join(self._list_seconds()))

    def _list_seconds(self) -> list[str]:
        return [
            f"{room} {seconds:.0f} ({self.plain_seconds[room]:.0f})" for room, seconds in self.seconds.most_common()
        ]

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Write faults as the last lines, as the end of the output may be all that is kept of it."""
        if self.faults and not self.is_worker:
            sys.stdout.write("\n".join(["faults of the whole run:", *self.faults, ""]))
