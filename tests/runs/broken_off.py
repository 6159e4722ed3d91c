"""Runs that tests kill: tiny, started at once or as a user would, watched from outside, compared bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sightline.runs.checkpoint import follow
from tests.limits import ENDLESS_S, HANG_S
from tests.processes import ROOT, forked, free_port, print_to

CONFIG = """\
name: tiny
data: {name: synthetic_shapes, train_size: 60, test_size: 24, num_points: 32}
model: {name: pointnet_plain, embedding: 16, dropout: 0.4}
losses: [{name: cross_entropy}]
metrics: [{name: accuracy}]
transforms: {train: [{name: jitter}, {name: slowed}]}
optimizer: {name: adam, lr: 1e-3}
schedule: {name: cosine}
train: {epochs: 3, batch_size: 10}
evaluate: {metric: overall_accuracy, batch_size: 16}
checkpoint: {every_steps: 2, keep_last: 2}
log: {every: 3}
"""
PLUGIN = '''\
"""A transform that changes nothing and takes as long as the environment says, so that a kill meets a run under way.

In the process of rank HELD_RANK its calls after so many, HELD_AFTER, wait for the file GO.
"""

import os
import time
from pathlib import Path

import sightline


@sightline.register.transform("slowed")
class Slowed(sightline.Transform):
    """Leaves the points as they are. Source: ours."""

    def __init__(self):
        is_held = os.environ.get("RANK", "0") == os.environ.get("HELD_RANK", "0")
        self.num_left = float(os.environ.get("HELD_AFTER", "inf")) if is_held else float("inf")

    def __call__(self, draws, *, points):
        self.num_left -= 1
        while self.num_left < 0 and not Path(os.environ["GO"]).exists():
            time.sleep(0.005)
        time.sleep(float(os.environ.get("SLOWED_S", "0")))
        return {"points": points}
'''


class Bench:
    """A folder with the tiny config and its plugin, and the words of a command line that trains them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config, self.plugin = folder / "tiny.yaml", folder / "slowed.py"
        self.config.write_text(CONFIG)
        self.plugin.write_text(PLUGIN)

    def words(self, out: str | Path, *overrides: str, resume: str | None = None, slow: bool = False) -> list[str]:
        """The command line; a run that will be slowed goes without the checks, which would be slowed as well."""
        words = ["train", str(self.config), *overrides, "--device", "cpu", "--plugin", str(self.plugin)]
        words += ["--out", str(self.folder / out), *(["--no-check"] if slow else [])]
        return words if resume is None else [*words, "--resume", resume]


# --- starting --------------------------------------------------------------------------------------------------------


class Forked:
    """`sightline <words>` in processes forked from one that has imported everything: the same run, seconds earlier.

    One process is a world of one; several meet as under torchrun. Each leads a session, which its children stay in.
    The process that makes a file or folder whose name begins with `held_at` stays there until it is killed.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        num_processes: int = 1,
        slowed_s: float = 0.0,
        environment: Mapping[str, str] | None = None,
        held_at: str = "",
    ) -> None:
        port = free_port()
        self.log = log
        self.processes: list[BaseProcess] = []
        for rank in range(num_processes):
            variables = {"OMP_NUM_THREADS": "1", "SLOWED_S": str(slowed_s)} | dict(environment or {})
            if num_processes > 1:
                variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            self.processes.append(self._start(rank, list(words), str(log), variables, held_at))

    def _start(self, rank: int, *arguments: Any) -> BaseProcess:
        return forked(_run_forked, *arguments)

    @property
    def pid(self) -> int:
        """The first process; its number is that of its session too."""
        pid = self.processes[0].pid
        assert pid is not None
        return pid

    def is_alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """End the first process and its session by SIGKILL; one that leads no session yet has no children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.processes[0].kill()

    def wait(self, timeout_s: float = HANG_S) -> tuple[int, str]:
        """The exit code of the first process that failed, or 0, and what all of them printed."""
        for process in self.processes:
            process.join(timeout_s)
        late = [process for process in self.processes if process.exitcode is None]
        for process in late:
            process.kill()
        text = self.log.read_text()
        assert not late, f"still running after {timeout_s:g} s:\n{text}"
        codes = [code for code in (process.exitcode for process in self.processes) if code]
        return (codes[0] if codes else 0), text


def run_forked(words: Sequence[str], log: Path, *, num_processes: int = 1) -> tuple[int, str]:
    """Run to the end; the exit code and what was printed."""
    return Forked(words, log, num_processes=num_processes).wait()


def _run_forked(words: list[str], log: str, environment: Mapping[str, str], held_at: str) -> None:
    import torch

    def hold(event: str, arguments: Sequence[object]) -> None:
        if event in ("open", "os.mkdir") and Path(str(arguments[0])).name.startswith(held_at):
            time.sleep(ENDLESS_S)

    os.setsid()
    print_to(log)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if held_at:
        sys.addaudithook(hold)
    sys.argv = ["sightline", *words]
    from sightline.cli import main

    main()


# --- watching --------------------------------------------------------------------------------------------------------


def wait_for(what: Callable[[], Any], *, timeout_s: float = HANG_S, otherwise: Callable[[], str]) -> None:
    """Look every few milliseconds until `what` holds; fails with what `otherwise` says."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.005)


def last_step(run: Path) -> int:
    """The last step of which a line tells; 0 before the first."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def last_saved(run: Path) -> int:
    """The step of the checkpoint that `last` names; 0 before the first."""
    last = run / "checkpoints" / "last"
    return int(follow(last).resolve().name.removeprefix("step_")) if os.path.lexists(last) else 0


def living(is_ours: Callable[[Path], bool]) -> list[int]:
    """The processes of this machine that run (zombies do not) and whose folder in /proc `is_ours` picks."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX" and is_ours(folder):
                    found.append(int(folder.name))
            except OSError:  # over meanwhile
                continue
    return found


def in_session(leader: int) -> Callable[[Path], bool]:
    """Picks the processes of a session: field 6 of stat, the fourth after the name."""
    return lambda folder: int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == leader


def with_variable(entry: str) -> Callable[[Path], bool]:
    """Picks the processes that were started with `NAME=value` in their environment, and what these forked."""
    return lambda folder: entry.encode() in (folder / "environ").read_bytes().split(b"\0")


def assert_all_end(is_ours: Callable[[Path], bool], *, within_s: float = HANG_S) -> float:
    """Fails, and ends them, if one of these processes still runs then; the seconds that it took."""
    started = time.monotonic()
    try:
        wait_for(lambda: not living(is_ours), timeout_s=within_s, otherwise=lambda: f"left behind: {living(is_ours)}")
    finally:
        for pid in living(is_ours):
            os.kill(pid, signal.SIGKILL)
    return time.monotonic() - started


# --- comparing -------------------------------------------------------------------------------------------------------


def differences(run: Path, unbroken: Path) -> list[str]:
    """What a finished run left that is not, bit for bit, what the unbroken one left; clocks aside. Empty if equal."""
    found = []
    for link in ("last", "best"):
        mine, theirs = (follow(folder / "checkpoints" / link).resolve() for folder in (run, unbroken))
        if mine.name != theirs.name:
            found.append(f"{link}: {mine.name}, not {theirs.name}")
            continue
        names = sorted(path.name for path in theirs.iterdir())
        if sorted(path.name for path in mine.iterdir()) != names:
            found.append(f"{link}: other files")
        found += [f"{link}/{name}" for name in names if _content(mine / name) != _content(theirs / name)]
    for name in ("final.json", "facts.json"):
        if (run / name).read_bytes() != (unbroken / name).read_bytes():
            found.append(name)
    found += _differing_lines(metrics(run), metrics(unbroken))
    found += [str(path.relative_to(run)) for path in run.rglob("*") if path.suffix in (".partial", ".removed", ".new")]
    return found + [".lock"] * (run / ".lock").exists()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what clocks say."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if not key.startswith("time_s")} for line in lines]


def _differing_lines(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[str]:
    if len(mine) != len(theirs):
        return [f"metrics.jsonl: {len(mine)} lines, not {len(theirs)}"]
    return [
        f"metrics.jsonl:{number}" for number, pair in enumerate(zip(mine, theirs, strict=True), 1) if pair[0] != pair[1]
    ]


def _content(path: Path) -> object:
    """Bytes, but for the clocks in the steps that a state has yet to write, and the hashes over them."""
    if path.name == "manifest.json":
        return None  # hashes of the files that are compared themselves
    if path.name != "state.json":
        return path.read_bytes()
    document = json.loads(path.read_text())
    for record in document["state"]["unwritten"]:
        del record["seconds"], record["wall_s"]
    return document


__all__ = [
    "ROOT",
    "Bench",
    "Forked",
    "assert_all_end",
    "differences",
    "in_session",
    "last_saved",
    "last_step",
    "living",
    "metrics",
    "run_forked",
    "wait_for",
    "with_variable",
]
