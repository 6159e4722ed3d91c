"""Standard streams that are closed, full, or read no further: a run goes on, and no command ends in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.engine.observers import Progress
from sightline.engine.records import Observers
from tests.engine.told import evaluation, step
from tests.marks import long_but
from tests.processes import ROOT, forked, free_port
from tests.runs.broken_off import Bench

NO_ROOM = "error: standard output: cannot be written: No space left on device; the results were not printed in full\n"


def run_with(words: list[str], kind: str, errors: str, environment: dict[str, str]) -> None:
    """In a process of its own: `sightline <words>` with standard output, and error where not kept, of this kind."""
    import torch

    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor, target in ((1, kind), (2, errors)):
        if target == "closed":
            os.close(descriptor)
        elif target == "pipe":
            os.dup2(writing, descriptor)
        elif target == "full":
            os.dup2(full, descriptor)
        else:
            os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["sightline", *words]
    from sightline.cli import main

    main()


def codes_of(words: list[str], kind: str, errors: str, *, num_processes: int = 1) -> list[int | None]:
    place = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(num_processes):
        more = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}
        processes.append(forked(run_with, words, kind, errors, {"OMP_NUM_THREADS": "1"} | more))
    for process in processes:
        process.join(60)
        process.kill()
    return [process.exitcode for process in processes]


@pytest.mark.parametrize(("kind", "num_processes"), long_but([("pipe", 2)], [("pipe", 1), ("closed", 1), ("pipe", 2)]))
def test_a_run_goes_on_that_nobody_reads(kind: str, num_processes: int, tmp_path: Path) -> None:
    words = Bench(tmp_path).words("run", "train.epochs=1")
    assert codes_of(words, kind, kind, num_processes=num_processes) == [0] * num_processes
    assert json.loads((tmp_path / "run" / "final.json").read_text())["metrics"]
    assert "end: done" in (tmp_path / "run" / "train.log").read_text()


def test_a_run_whose_results_find_no_room_ends_and_says_so(tmp_path: Path) -> None:
    words = Bench(tmp_path).words("run", "train.epochs=1")
    assert codes_of(words, "full", str(tmp_path / "errors")) == [1]
    assert (tmp_path / "errors").read_text().endswith(NO_ROOM)
    assert (tmp_path / "run" / "final.json").exists()


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    long_but([("> /dev/full", 1, NO_ROOM)], [(">&-", 0, ""), ("> /dev/full", 1, NO_ROOM)]),
)
def test_what_a_command_prints_may_have_no_place(redirection: str, code: int, told: str) -> None:
    command = f'set -o pipefail; "{sys.executable}" -m sightline list {redirection}'
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (code, told)


def test_progress_on_a_stream_that_is_gone_is_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    observers = Observers([Progress(stream=stream, is_live=False)])
    observers.on_step(step(1))
    observers.on_evaluation(evaluation(1))
    assert len(observers) == 0
    assert "observer-failed: Progress is switched off" in caplog.text
    with pytest.raises(BrokenPipeError):
        stream.close()
