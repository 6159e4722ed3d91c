"""A run killed or stopped at any moment and resumed is the unbroken run, bit for bit, and leaves nobody behind.

An interrupted launcher: tests/long/test_launched_processes.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.batches.stream import BatchStream
from tests.cases import run_each
from tests.command import without_progress
from tests.limits import ENDLESS_S
from tests.processes import ROOT
from tests.runs.broken_off import (
    Bench,
    Forked,
    assert_all_end,
    differences,
    in_session,
    last_step,
    run_forked,
    wait_for,
    with_variable,
)

pytestmark = pytest.mark.processes

SLOWED_S = 0.15  # a step then takes so long that a run of 15 is still under way when it is killed after a few
LOGGED = ("log.tensorboard=true",)
OVERRIDES = {1: (*LOGGED, "train.ema_decay=0.9"), 2: (*LOGGED, "train.micro_batches=2")}
Unbroken = Callable[[int], Path]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def unbroken(bench: Bench) -> Unbroken:
    return unbroken_of(bench)


def unbroken_of(bench: Bench) -> Unbroken:
    """The unbroken run on so many processes, without workers: their number changes no bit."""

    def made(num_processes: int) -> Path:
        run = bench.folder / f"unbroken_{num_processes}"
        if not run.exists():
            words = bench.words(run.name, *OVERRIDES[num_processes], slow=num_processes > 1)
            code, text = run_forked(words, bench.folder / "unbroken.log", num_processes=num_processes)
            assert code == 0, text
        return run

    return made


class Launched:
    """The run in two processes as a user starts it, findable by a variable that every process of it inherits."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.log = log
        self.is_ours = with_variable(f"SIGHTLINE_TEST={log}")
        environment = os.environ | {"SIGHTLINE_TEST": str(log), "SLOWED_S": str(SLOWED_S), "OMP_NUM_THREADS": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sightline", *words, "--processes", "2"],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=file,
            )

    def is_alive(self) -> bool:
        return self.process.poll() is None


def wait_for_step(run: Path, step: int, started: Forked | Launched) -> None:
    """Until the step stands in the log of numbers, and TensorBoard's file, which is begun after it, is there."""

    def is_there() -> bool:
        return last_step(run) >= step and any(run.glob("events.out.tfevents.*"))

    wait_for(lambda: is_there() or not started.is_alive(), otherwise=started.log.read_text)
    assert started.is_alive(), started.log.read_text()


def assert_resumes(bench: Bench, run: Path, reference: Path, *overrides: str, num_processes: int = 1) -> str:
    """Resume to the end without the checks, compare with the unbroken run; one process of that had them."""
    log = run.with_suffix(".resumed.log")
    words = bench.words(run.name, *OVERRIDES[num_processes], *overrides, resume="auto", slow=True)
    code, text = run_forked(words, log, num_processes=num_processes)
    assert code == 0, text
    assert differences(run, reference) == []
    return text


def assert_one_point_per_step(run: Path) -> None:
    """What TensorBoard shows of a resumed run has no step twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list(run.glob("events.out.tfevents.*"))) == 2
    shown = EventAccumulator(str(run)).Reload()
    for tag in ("train/loss/total", "validation/overall_accuracy"):
        steps = [event.step for event in shown.Scalars(tag)]
        assert steps == sorted(set(steps)), (tag, steps)


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "step"), [(0, 6), pytest.param(2, 3, marks=pytest.mark.long)])
def test_a_killed_run_is_resumed_to_the_same_bits(bench: Bench, unbroken: Unbroken, workers: int, step: int) -> None:
    """Average of weights and dropout are on; step 6 is mid-epoch, step 3 is of an epoch without any evaluation yet."""
    run, overrides = bench.folder / f"killed_{workers}", (*OVERRIDES[1], f"loader.workers={workers}")
    held_at = f"step_{step - step % 2 + 2:08d}"  # a run that is still under way
    started = Forked(bench.words(run.name, *overrides, slow=True), bench.folder / f"{run.name}.log", held_at=held_at)
    wait_for_step(run, step, started)
    started.processes[0].kill()
    assert_all_end(in_session(started.pid))
    assert not (run / "final.json").exists(), "the run was over before it was killed"
    assert (run / ".lock").exists()  # a dead process holds it: taken over below
    text = assert_resumes(bench, run, unbroken(1), f"loader.workers={workers}")
    assert ("resumed at step" in text) == (step == 6 or "resumed at step 2" in text)
    assert_one_point_per_step(run)


def test_the_death_of_one_process_ends_the_run_which_then_resumes(bench: Bench, unbroken: Unbroken) -> None:
    run = bench.folder / "one_killed"
    words = bench.words(run.name, *OVERRIDES[2], slow=True)
    held = {"HELD_AFTER": "16", "HELD_RANK": "1", "GO": str(run.with_suffix(".go"))}  # in step 9
    started = Forked(words, bench.folder / f"{run.name}.log", num_processes=2, environment=held)
    wait_for_step(run, 6, started)
    started.processes[1].kill()
    code, text = started.wait()
    assert code != 0, text
    assert not (run / "final.json").exists()
    assert_resumes(bench, run, unbroken(2), "loader.workers=2", num_processes=2)


@pytest.mark.long
def test_nobody_outlives_a_killed_launcher_and_its_run_resumes(bench: Bench, unbroken: Unbroken) -> None:
    run = bench.folder / "launcher_killed"
    words = bench.words(run.name, *OVERRIDES[2], "loader.workers=2", slow=True)
    started = Launched(words, bench.folder / f"{run.name}.log")
    wait_for_step(run, 3, started)
    started.process.kill()
    started.process.wait()
    assert_all_end(started.is_ours)
    assert not (run / "final.json").exists()
    assert_resumes(bench, run, unbroken(2), "loader.workers=2", num_processes=2)


# --- signals ---------------------------------------------------------------------------------------------------------


def stopped_step(run: Path, text: str) -> int:
    """The step that a stopped run says it saved, after a look that it did."""
    (line,) = [line for line in text.splitlines() if line.startswith("stopped after step")]
    step = int(line.split()[3])
    assert json.loads((run / "checkpoints/last/state.json").read_text())["step"] == step, text
    assert "--resume auto" in line
    return step


def test_sigterm_to_the_whole_group_saves_and_resumes(bench: Bench, unbroken: Unbroken) -> None:
    """Schedulers signal the workers as well: they must live on until the step is done."""
    run, overrides = bench.folder / "terminated", (*OVERRIDES[1], "loader.workers=2", "checkpoint.every_steps=100")
    go = run.with_suffix(".go")
    held = {"HELD_AFTER": "4", "GO": str(go)}  # either worker: step 9 waits
    started = Forked(bench.words(run.name, *overrides, slow=True), bench.folder / f"{run.name}.log", environment=held)
    wait_for_step(run, 6, started)
    os.killpg(started.pid, signal.SIGTERM)
    wait_for(lambda: "SIGTERM: saving after this step" in started.log.read_text(), otherwise=started.log.read_text)
    go.touch()
    code, text = started.wait()
    assert code == 128 + signal.SIGTERM, text
    step = stopped_step(run, text)
    assert 6 <= step < 15
    assert_all_end(in_session(started.pid))
    assert f"resumed at step {step}" in assert_resumes(bench, run, unbroken(1), "checkpoint.every_steps=100")


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_second_signal_ends_at_once(bench: Bench) -> None:
    run = bench.folder / "impatient"
    words = bench.words(run.name, "loader.workers=2", slow=True)
    started = Forked(words, bench.folder / f"{run.name}.log", slowed_s=ENDLESS_S)  # the first batch never comes
    is_training = lambda: (run / "train.log").exists() and catches(started.pid, signal.SIGTERM)  # noqa: E731
    wait_for(is_training, otherwise=started.log.read_text)
    os.kill(started.pid, signal.SIGTERM)
    wait_for(lambda: "SIGTERM: saving after this step" in started.log.read_text(), otherwise=started.log.read_text)
    assert started.processes[0].is_alive()
    os.kill(started.pid, signal.SIGINT)
    code, text = started.wait()
    assert code == 128 + signal.SIGINT, text
    assert_all_end(in_session(started.pid))
    assert not (run / "checkpoints").exists()


def test_workers_draw_no_random_number_and_end_with_their_stream() -> None:
    """torch's loader seeds its workers from the global generator unless it is given one: dropout would move on."""
    plan = BatchSampler(np.arange(40), 4, seed=0)
    before = torch.get_rng_state(), set(multiprocessing.active_children())
    stream = BatchStream(plan, lambda keys: {"index": [key.index for key in keys]}, workers=2).iterate(3, 10)
    next(stream)
    assert len(set(multiprocessing.active_children()) - before[1]) == 2
    stream.close()
    assert set(multiprocessing.active_children()) == before[1]
    assert torch.equal(torch.get_rng_state(), before[0])


# --- what is there already -------------------------------------------------------------------------------------------


@pytest.fixture
def copied_run(bench: Bench, unbroken: Unbroken, request: pytest.FixtureRequest) -> Path:
    """A copy of the unbroken run, for a test to harm."""
    run = bench.folder / f"copy_{request.node.originalname}"
    return Path(shutil.copytree(unbroken(1), run, symlinks=True))


def again(bench: Bench, run: Path, *overrides: str, resume: str | None = "auto") -> tuple[int, str]:
    words = bench.words(run.name, *OVERRIDES[1], *overrides, resume=resume, slow=True)
    return run_forked(words, log_of(run))


def log_of(run: Path) -> Path:
    """A log that is not there yet, beside the run."""
    return run.with_name(f"{run.name}.{len(list(run.parent.iterdir()))}.log")


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def test_a_finished_run_and_runs_of_another_kind_are_left_alone(bench: Bench, copied_run: Path) -> None:
    before = state_of(copied_run)
    told = copied_run.with_suffix(".json")
    code, text = run_forked(
        [*bench.words(copied_run.name, *OVERRIDES[1], resume="auto"), "--json", str(told)], log_of(told)
    )
    assert (code, "this run is finished" in text) == (0, True), text
    assert json.loads(told.read_text()) == json.loads((copied_run / "final.json").read_text())
    code, text = again(bench, copied_run, resume=str(copied_run))
    assert (code, "this run is finished" in text) == (0, True), text
    code, text = again(bench, copied_run, "optimizer.lr=2e-3", "train.epochs=2", "loader.workers=1")
    assert code == 2, text
    assert "2 keys differ" in text
    assert "optimizer.lr: 0.001 there, 0.002 here" in text
    assert "train.epochs: 3 there, 2 here" in text
    code, text = again(bench, copied_run, resume=None)
    assert (code, "is not empty" in text) == (2, True), text
    assert state_of(copied_run) == before


def test_a_damaged_last_falls_back_to_the_newest_sound_one(bench: Bench, copied_run: Path, unbroken: Unbroken) -> None:
    damaged = copied_run / "checkpoints/step_00000015/optimizer.safetensors"
    data = spoil(damaged)
    for path in (copied_run, copied_run / "checkpoints/last"):
        code, text = again(bench, copied_run, resume=str(path))
        assert (code, f"{damaged}: damaged" in text) == (2, True), text
    before = state_of(copied_run / "checkpoints")
    code, text = again(bench, copied_run)
    assert (code, f"is finished, but {damaged}: damaged" in text) == (1, True), text
    assert f"to train its end again from the newest sound one: --resume {copied_run}/checkpoints/step_00000014" in text
    assert state_of(copied_run / "checkpoints") == before
    (copied_run / "final.json").unlink()
    text = assert_resumes(bench, copied_run, unbroken(1))
    assert f"damaged checkpoint passed over: {damaged}" in text
    assert "resumed at step 14" in text
    assert (copied_run / "checkpoints/step_00000015.damaged/optimizer.safetensors").read_bytes() == data


def spoil(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return bytes(data)


@run_each("is_finished", [True, False])
def test_a_run_is_never_begun_again_over_its_checkpoints(bench: Bench, unbroken: Unbroken, is_finished: bool) -> None:
    run = Path(shutil.copytree(unbroken(1), bench.folder / f"harmed_{is_finished}", symlinks=True))
    if not is_finished:
        (run / "final.json").unlink()
    for folder in (run / "checkpoints").glob("step_*"):
        spoil(folder / "state.json")
    before = state_of(run)
    for overrides in ((), ("train.epochs=4",)):
        code, text = again(bench, run, *overrides)
        assert (code, len(without_progress(text).strip().splitlines())) == (1, 1), text
        assert f"no checkpoint can be resumed: {run}/checkpoints/step_00000015/" in text
    assert state_of(run) == before


def test_a_finished_run_whose_checkpoints_were_deleted_is_left_alone(bench: Bench, copied_run: Path) -> None:
    shutil.rmtree(copied_run / "checkpoints")
    before = state_of(copied_run)
    code, text = again(bench, copied_run)
    assert (code, "this run is finished" in text) == (0, True), text
    code, text = again(bench, copied_run, "train.epochs=4")
    assert (code, "is finished and has no checkpoint to train longer from" in text) == (1, True), text
    assert state_of(copied_run) == before


def test_a_run_that_goes_back_to_an_earlier_checkpoint_is_not_finished(
    bench: Bench, copied_run: Path, unbroken: Unbroken
) -> None:
    """Killed on its way, it must not take the figures of its abandoned future for its own."""
    words = bench.words(copied_run.name, *OVERRIDES[1], resume=str(copied_run / "checkpoints/step_00000014"), slow=True)
    started = Forked(words, log_of(copied_run), slowed_s=ENDLESS_S)
    wait_for(lambda: "from step 14" in (copied_run / "train.log").read_text(), otherwise=started.log.read_text)
    started.processes[0].kill()
    assert not (copied_run / "final.json").exists()
    assert os.readlink(copied_run / "checkpoints/last") == "step_00000014"
    assert_resumes(bench, copied_run, unbroken(1))


def test_a_run_killed_before_its_final_evaluation_only_finishes(
    bench: Bench, copied_run: Path, unbroken: Unbroken
) -> None:
    (copied_run / "final.json").unlink()
    shutil.rmtree(copied_run / "predictions")
    checkpoints = state_of(copied_run / "checkpoints")
    assert_resumes(bench, copied_run, unbroken(1))
    assert (copied_run / "predictions").is_dir()
    assert state_of(copied_run / "checkpoints") == checkpoints


def test_a_run_killed_in_its_first_save_starts_afresh(bench: Bench, copied_run: Path, unbroken: Unbroken) -> None:
    """Lines and events of the lost attempt must not stand beside those of the new one."""
    for folder in (copied_run / "checkpoints").iterdir():
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    (copied_run / "checkpoints/step_00000002.partial").mkdir()
    (copied_run / "checkpoints/step_00000002.partial/model.safetensors").write_bytes(b"half of")
    (copied_run / "final.json").unlink()
    assert_resumes(bench, copied_run, unbroken(1))
    assert_one_point_per_step(copied_run)


def test_a_run_killed_before_it_wrote_its_config_starts_afresh(bench: Bench, unbroken: Unbroken) -> None:
    early = bench.folder / "early"
    early.mkdir()
    (early / ".lock").write_text("")  # killed between opening and writing it
    (early / "environment.json").write_text("{}")
    (early / ".config.yaml.partial").write_text("na")
    assert_resumes(bench, early, unbroken(1))
    assert json.loads((early / "environment.json").read_text())["num_processes"] == 1
