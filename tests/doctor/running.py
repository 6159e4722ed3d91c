"""Runs of rows: each in a process of its own with a limit of time, several side by side, a line of JSON for each."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.conftest import ROOT
from tests.doctor.asking import Asked, recorded
from tests.doctor.observing import CRASHED
from tests.doctor.row import Row
from tests.planted.trial import Alarm, rank_cause

LIMIT_S = 120.0
Line = dict[str, Any]
Key = tuple[str, int]
"""Id of a row, and seed."""
_FORK = multiprocessing.get_context("fork")


class _Running(NamedTuple):
    row: Row
    seed: int
    process: Any
    started: float


def describe_doctor() -> str:
    """Return the last commit of the package, with a digest of what is not committed: what was measured."""

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changes = ask("diff", "HEAD", "--", "sightline")
    commit = ask("log", "-1", "--format=%h", "--abbrev=8", "--", "sightline")
    return commit + (f"+{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else "")


def read_lines(path: Path, commit: str | None = None) -> dict[Key, Line]:
    """Read the lines of a file by row and seed: of one commit, or the last ones. A line that was cut is left out."""
    lines: dict[Key, Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            if commit in (None, line["commit"]):
                lines[line["id"], line["seed"]] = line
    return lines


def append_line(path: Path, line: Line) -> None:
    """Append a line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def list_keys(line: Mapping[str, Any] | None) -> frozenset[tuple[str, str]]:
    """Return codes and first causes of a line's alarms and notes."""
    line = line or {}
    alarms = [*line.get("alarms", ()), *line.get("notes", ())]
    return frozenset((alarm["code"], next(iter(alarm["causes"]), "")) for alarm in alarms)


def run_rows(
    rows: Iterable[Row], seeds: Sequence[int], done: dict[Key, Line], *, commit: str, jobs: int
) -> Iterator[Line]:
    """Run rows that are not `done`, a twin before its bug; yield each line as it ends, and add it to `done`."""
    importlib.import_module("torch._dynamo")  # optimisers do; once here, and not for a second in each process
    waiting = deque((row, seed) for row in rows for seed in seeds if (row.id, seed) not in done)
    running: dict[Any, _Running] = {}
    while waiting or running:
        while len(running) < jobs and (chosen := _find_ready(waiting, running.values())) is not None:
            row, seed = chosen
            known = list_keys(done.get((row.twin, seed)))
            pipe, end = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=_work, args=(row, seed, known, end))
            process.start()
            end.close()
            running[pipe] = _Running(row, seed, process, time.monotonic())
        first = min(each.started for each in running.values())
        ready = connection.wait(list(running), timeout=max(0.0, first + LIMIT_S - time.monotonic()))
        late = [pipe for pipe, each in running.items() if time.monotonic() - each.started > LIMIT_S]
        for pipe in [*ready, *(pipe for pipe in late if pipe not in ready)]:
            each = running.pop(pipe)
            line = {**_finish(each, pipe, is_late=pipe not in ready), "commit": commit}
            done[each.row.id, each.seed] = line
            yield line


def _find_ready(waiting: deque[tuple[Row, int]], running: Iterable[_Running]) -> tuple[Row, int] | None:
    """Take the first row whose twin does not have to end first."""
    pending = {(row.id, seed) for row, seed in waiting} | {(each.row.id, each.seed) for each in running}
    for place, (row, seed) in enumerate(waiting):
        if (row.twin, seed) not in pending:
            del waiting[place]
            return row, seed
    return None


def _finish(each: _Running, pipe: Any, *, is_late: bool) -> Line:
    """Take the result of a process, and end it with all that it started."""
    result: Line = {"crash": f"over the limit of {LIMIT_S:.0f} s"} if is_late else {"crash": "the process ended early"}
    if not is_late:
        with contextlib.suppress(EOFError):
            result = pipe.recv()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(each.process.pid, signal.SIGKILL)
    each.process.join()
    pipe.close()
    return {**make_line(each.row, each.seed, **result), "wall_s": round(time.monotonic() - each.started, 2)}


def make_line(
    row: Row,
    seed: int,
    *,
    alarms: Sequence[Alarm] = (),
    known: frozenset[tuple[str, str]] = frozenset(),
    crash: str = "",
    cpu_s: float | None = None,
    asked: Asked | None = None,
) -> Line:
    """Build the line of a row: a bug counts as found by a finding that the row accepts and its twin does not raise.

    Of a correct subject the line has the rules that were `asked`, and whether each gave an alarm.
    """
    new = [a for a in alarms if row.has_bug and row.accepts(a) and a.key not in known and a.code != CRASHED]
    return {
        "id": row.id,
        "seed": seed,
        "kind": row.kind,
        "family": row.family,
        "has_bug": row.has_bug,
        "has_causes": bool(row.causes),
        "found": bool(new),
        "rank": rank_cause(new, row.causes, names=row.names),
        "alarms": [asdict(alarm) for alarm in alarms if alarm.severity not in ("note", "failed")],
        "notes": [asdict(alarm) for alarm in alarms if alarm.severity == "note"],
        "failed": [alarm.text for alarm in alarms if alarm.severity == "failed"],
        "crash": crash,
        "cpu_s": cpu_s,
        **({"asked": asked} if asked and not row.has_bug else {}),
    }


def _work(row: Row, seed: int, known: frozenset[tuple[str, str]], end: Any) -> None:
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    warnings.simplefilter("ignore")
    for seeded in (torch.manual_seed, random.seed, np.random.seed):
        seeded(seed)
    result: Line = {"known": known}
    try:
        with recorded() as result["asked"]:
            result["alarms"] = row.run(seed, known)
    except Exception as error:  # noqa: BLE001 - a crash of the subject is a result
        result["crash"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    times = os.times()
    result["cpu_s"] = round(time.process_time() + times.children_user + times.children_system, 2)
    end.send(result)
    end.close()
    os._exit(0)
