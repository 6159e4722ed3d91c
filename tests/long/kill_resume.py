"""Kills runs with -9 at random instants, resumes them, and compares what they leave with unbroken runs, bit for bit.

    .venv/bin/python tests/long/kill_resume.py --kills-per-cell 25 --out docs/results/kill_resume.json

A cell is a number of processes and of loader workers. One kill in five falls uniformly between the start of the command
and the end that an unbroken run makes expect, so also into imports and checks; the others between the moment at which
this very run begins to train and that end, so into steps, saves and evaluations however slowly the machine starts. One
resumed run in five is killed again. The victim is the command itself, one of its processes, or all at once. Nobody may
outlive it by 10 s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.runs.broken_off import (  # noqa: E402  a script's folder is on the path, not the project's
    Bench,
    assert_all_end,
    differences,
    last_step,
    living,
    with_variable,
)

CELLS = ((1, 0), (1, 2), (2, 0), (2, 2))
VICTIMS = {1: ("command", "all"), 2: ("command", "process", "all")}
KILLED_AGAIN = 0.2
ANY_TIME = 0.2
POLL_S = 0.02
STEP_S = 0.2
"""Each step waits so long, or else nearly all kills of so small a run would fall into its imports."""
LIMIT_S = 180.0
MOST_DRAWS = 20


class Cell(NamedTuple):
    processes: int
    workers: int

    @property
    def overrides(self) -> tuple[str, ...]:
        kind = "train.ema_decay=0.9" if self.processes == 1 else "train.micro_batches=2"
        return (kind, f"loader.workers={self.workers}")


@dataclass
class Kill:
    """One kill: when, of whom, what the run had reached, and how the resumed run compares with the unbroken one."""

    processes: int
    workers: int
    number: int
    victims: list[str] = field(default_factory=list)
    after_s: list[float] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    slowest_end_s: float = 0.0
    differences: list[str] = field(default_factory=list)


class Timing(NamedTuple):
    """Seconds of an unbroken run: all of it, and from the moment at which it begins to train."""

    total_s: float
    training_s: float


class Attempt:
    """One start of the command, resuming what is there."""

    def __init__(self, bench: Bench, run: Path, cell: Cell) -> None:
        self.log = run.with_suffix(".log")
        self._sessions = run / "sessions.jsonl"
        self._num_sessions = self._count_sessions()
        tag = f"SIGHTLINE_TEST={run.name}.{time.monotonic_ns()}"
        self.is_ours = with_variable(tag)
        words = bench.words(run.name, *cell.overrides, resume="auto")
        words += ["--processes", str(cell.processes)] if cell.processes > 1 else []
        variables = {"OMP_NUM_THREADS": "1", "SLOWED_S": str(STEP_S), "SIGHTLINE_TEST": tag.partition("=")[2]}
        self.started = time.monotonic()
        with self.log.open("ab") as file:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "sightline", *words],
                cwd=ROOT,
                env=os.environ | variables,
                stdout=file,
                stderr=file,
            )

    def finish(self) -> Timing:
        """Wait for the end of a run that nobody kills; how long it took."""
        self.wait_for_training(LIMIT_S)
        training = time.monotonic()
        self.command.wait(LIMIT_S)
        self._assert_done()
        ended = time.monotonic()
        return Timing(ended - self.started, ended - training)

    def wait_for_training(self, within_s: float) -> None:
        """Return when this start has written its line into the run's sessions, or has ended."""
        limit = time.monotonic() + within_s
        while self._count_sessions() == self._num_sessions and self.command.poll() is None:
            assert time.monotonic() < limit, f"does not begin to train:\n{self.log.read_text()[-3000:]}"
            time.sleep(POLL_S)

    def kill(self, victim: str, after_s: float, draw: random.Random) -> bool:
        """Kill so many seconds from now; False where the command had ended by itself."""
        try:
            self.command.wait(after_s)
        except subprocess.TimeoutExpired:
            for pid in self._pids(victim, draw):
                with contextlib.suppress(ProcessLookupError):  # over since we looked
                    os.kill(pid, signal.SIGKILL)
            self.command.wait(LIMIT_S)
            return True
        self._assert_done()
        return False

    def _count_sessions(self) -> int:
        return len(self._sessions.read_bytes().splitlines()) if self._sessions.exists() else 0

    def _assert_done(self) -> None:
        code = self.command.returncode
        assert code == 0, f"exit code {code}:\n{self.log.read_text()[-3000:]}"

    def _pids(self, victim: str, draw: random.Random) -> list[int]:
        ours = living(self.is_ours)
        ranks = [pid for pid in ours if _parent_of(pid) == self.command.pid]
        if victim == "process" and ranks:
            return [draw.choice(ranks)]
        return ours if victim == "all" else [self.command.pid]


def _parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def kill_and_resume(bench: Bench, cell: Cell, number: int, *, seed: int, unbroken: Path, expected: Timing) -> Kill:
    """One run, killed at least once and resumed until it ends; a run that was faster than its kill is drawn anew."""
    draw = random.Random(f"{seed} {cell} {number}")
    kill = Kill(*cell, number)
    for attempt_number in range(MOST_DRAWS):
        run = bench.folder / f"{cell.processes}_{cell.workers}_{number}_{attempt_number}"
        try:
            if _break_off(kill, bench, run, cell, draw, expected):
                Attempt(bench, run, cell).finish()
                kill.differences = differences(run, unbroken)
        except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
            kill.differences = [f"{type(error).__name__}: {error}"]
        if not kill.differences:
            shutil.rmtree(run, ignore_errors=True)
        if kill.victims or kill.differences:
            return kill
    kill.differences = [f"{MOST_DRAWS} runs ended before their kill"]
    return kill


def _break_off(kill: Kill, bench: Bench, run: Path, cell: Cell, draw: random.Random, expected: Timing) -> bool:
    """Kill the run, and some resumed ones again; whether any kill met a run under way."""
    is_due = True
    while is_due:
        victim, is_any_time = draw.choice(VICTIMS[cell.processes]), draw.random() < ANY_TIME
        after_s = draw.uniform(0.0, expected.total_s if is_any_time else expected.training_s)
        attempt = Attempt(bench, run, cell)
        if not is_any_time:
            attempt.wait_for_training(LIMIT_S)
        if attempt.kill(victim, after_s, draw):
            kill.slowest_end_s = max(kill.slowest_end_s, assert_all_end(attempt.is_ours, within_s=10))
            kill.victims.append(victim)
            kill.after_s.append(round(after_s, 3))
            kill.found.append(_reached(run))
        is_due = draw.random() < KILLED_AGAIN
    return bool(kill.victims)


def _reached(run: Path) -> str:
    """How far a killed run had come."""
    if not (run / "config.yaml").exists():
        return "no run yet"
    if (run / "final.json").exists():
        return "finished"
    if not (run / "checkpoints" / "last").exists():
        return "no checkpoint yet"
    return f"step {last_step(run)}"


def measure(bench: Bench, cell: Cell, jobs: int) -> tuple[Path, Timing]:
    """An unbroken run and how long it takes: as many at once as will be killed at once, and all equal."""
    runs = [bench.folder / f"unbroken_{cell.processes}_{cell.workers}_{twin}" for twin in range(jobs)]
    attempts = [Attempt(bench, run, cell) for run in runs]
    timings = [attempt.finish() for attempt in attempts]
    for run in runs[1:]:
        found = differences(run, runs[0])
        assert not found, f"two unbroken runs of {cell} differ: {found}"
        shutil.rmtree(run)
    return runs[0], Timing(*map(statistics.mean, zip(*timings, strict=True)))


def run_all(*, kills_per_cell: int, seed: int, jobs: int, folder: Path) -> dict[str, Any]:
    """All cells; the document that `--out` gets."""
    bench = Bench(folder)
    started = time.monotonic()
    kills: list[Kill] = []
    timings: dict[str, Timing] = {}
    for cell in map(Cell._make, CELLS):
        unbroken, expected = measure(bench, cell, jobs)
        timings[f"{cell.processes} processes, {cell.workers} workers"] = expected
        with ThreadPoolExecutor(jobs) as pool:
            futures = [
                pool.submit(kill_and_resume, bench, cell, n, seed=seed, unbroken=unbroken, expected=expected)
                for n in range(kills_per_cell)
            ]
            mine = [future.result() for future in futures]
        num_kills, num_equal = sum(len(kill.victims) for kill in mine), sum(not kill.differences for kill in mine)
        _tell(f"{cell}: {len(mine)} runs, {num_kills} kills, {num_equal} identical, {time.monotonic() - started:.0f} s")
        kills += mine
    return {
        "seed": seed,
        "num_kills": sum(len(kill.victims) for kill in kills),
        "num_runs": len(kills),
        "num_identical": sum(not kill.differences for kill in kills),
        "slowest_end_s": round(max(kill.slowest_end_s for kill in kills), 2),
        "expected_s": {name: [round(each, 2) for each in timing] for name, timing in timings.items()},
        "seconds": round(time.monotonic() - started),
        "python": platform.python_version(),
        "runs": [asdict(kill) for kill in kills],
    }


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills-per-cell", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=3, help="runs at a time")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--folder", type=Path, help="where runs lie; those that differ are kept there")
    given = parser.parse_args(arguments)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="kill_resume_"))
    folder.mkdir(parents=True, exist_ok=True)
    result = run_all(kills_per_cell=given.kills_per_cell, seed=given.seed, jobs=given.jobs, folder=folder)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    failed = [run for run in result["runs"] if run["differences"]]
    for run in failed:
        _tell(f"DIFFERS: {run}")
    _tell(
        f"{result['num_identical']} of {result['num_runs']} runs identical after {result['num_kills']} kills; "
        f"the last process was gone {result['slowest_end_s']} s after its kill" + (f"; see {folder}" if failed else "")
    )
    if not failed and given.folder is None:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
