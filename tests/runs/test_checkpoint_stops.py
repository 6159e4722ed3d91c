"""Checkpoints and a stop at any call to the disk: kill -9, a full disk, a read-only one."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sightline.contract.errors import RunError
from sightline.runs import checkpoint
from sightline.runs.checkpoint import load, newest_valid, save
from tests.cases import run_each
from tests.command import Outcome, run_here, succeed
from tests.engine.snapshots import assert_same, snapshot_of
from tests.runs.small import TINY
from tests.runs.test_run_directory import HalfWritten

# --- checkpoints and a stop at any call to the disk: kill -9, a full disk, a read-only one ---------------------------


def test_the_disk_holds_each_thing_before_the_next_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    rename, replace = os.rename, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(("sync", Path(os.readlink(f"/proc/self/fd/{fd}")).name)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(("rename", Path(b).name)), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("link", Path(b).name)), replace(a, b)))
    save(tmp_path, snapshot_of(1), keep_last=1, is_best=True)
    files = ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json"]
    assert events == [
        *(("sync", name) for name in files),
        ("sync", "step_00000001.partial"),
        ("rename", "step_00000001"),
        ("sync", "checkpoints"),
        ("link", "best"),
        ("sync", "checkpoints"),
        ("link", "last"),
        ("sync", "checkpoints"),
    ]


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


class Disk:
    """Counts every call to the disk and, at the one chosen, stops before or after it has been carried out."""

    def __init__(self, stop_at: int, fault: BaseException, *, after: bool = False, forever: bool = False) -> None:
        self.stop_at, self.fault, self.after, self.forever = stop_at, fault, after, forever
        self.num_calls = 0

    def watch(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        for name in names:
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))
        monkeypatch.setattr(builtins, "open", self._watched(builtins.open))

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.num_calls += 1
            chosen = self.num_calls == self.stop_at or (self.forever and self.num_calls > self.stop_at)
            if chosen and not self.after:
                raise self.fault
            result = None
            try:
                result = function(*arguments, **options)
            finally:
                if chosen and hasattr(result, "close"):
                    result.close()  # as the system does for a dead process
                if chosen:
                    raise self.fault
            return result

        return call


WRITING = ("fsync", "rename", "replace", "symlink", "mkdir", "unlink", "rmdir")


def prepare_first(run: Path) -> int:
    return 1


def prepare_pruning(run: Path) -> int:
    for step in (1, 2, 3):
        save(run, snapshot_of(step), keep_last=3, is_best=step == 1)
    return 4


def prepare_again(run: Path) -> int:
    """The step to come has been saved before, as after a resume from an earlier one."""
    return prepare_pruning(run) - 1


def prepare_between(run: Path) -> int:
    """A process was killed while it had set the old checkpoint aside and not yet put the new one in its place."""
    step = prepare_again(run)
    for number in (1, 2):
        shutil.rmtree(run / "checkpoints" / f"step_{number:08d}")
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.rename(folder.with_name(f"{folder.name}.replaced"))
    return step


PREPARATIONS = [prepare_first, prepare_pruning, prepare_again, prepare_between]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("prepare", PREPARATIONS)
def test_killed_at_any_call_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path], int], after: bool
) -> None:
    for stop_at in range(1, 1000):
        run = tmp_path / str(stop_at)
        run.mkdir()
        step = prepare(run)
        earlier_path, _ = newest_valid(run)
        earlier = load(earlier_path).step if earlier_path else None
        disk = Disk(stop_at, Killed(), after=after)
        with monkeypatch.context() as patch:
            disk.watch(patch, *WRITING)
            try:
                save(run, snapshot_of(step, attempt=1), keep_last=2, is_best=True)
            except Killed:
                pass
            else:
                assert disk.num_calls < stop_at, "a stop was swallowed"
                return
        found, rejected = newest_valid(run)
        assert rejected == []
        assert earlier is None or found is not None
        assert earlier is None or (run / "checkpoints" / "last").is_symlink()
        if prepare is prepare_pruning:  # nothing is replaced here, so the link leads somewhere at any instant
            assert load(run).step in (earlier, step)
        if found is not None:
            attempt = load(found).state["attempt"]
            assert (load(found).step, attempt) in ((earlier, 0), (step, 1))
            assert_same(load(found), snapshot_of(load(found).step, attempt=attempt))
        if found is not None:
            for name in os.listdir(found.parent):
                assert not name[5:].isdecimal() or load(found.parent / name)  # nothing half deleted under a good name
        save(run, snapshot_of(step), keep_last=2, is_best=True)  # the next process mends whatever is left
        assert_same(load(run), snapshot_of(step))
        assert all(name in ("best", "last") or name[5:].isdecimal() for name in os.listdir(run / "checkpoints"))
    pytest.fail("the save never came to its end")


@pytest.mark.parametrize("prepare", PREPARATIONS)
@pytest.mark.parametrize(("number", "forever"), [(errno.ENOSPC, False), (errno.EROFS, True), (errno.EIO, False)])
def test_a_refusing_disk_is_one_line_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path], int], number: int, forever: bool
) -> None:
    for stop_at in range(1, 1000):
        run = tmp_path / str(stop_at)
        run.mkdir()
        step = prepare(run)
        disk = Disk(stop_at, OSError(number, os.strerror(number)), forever=forever)
        with monkeypatch.context() as patch:
            disk.watch(patch, *WRITING)
            try:
                save(run, snapshot_of(step), keep_last=2, is_best=True)
            except RunError as error:
                message = str(error)
            else:
                assert_same(load(run), snapshot_of(step))  # it never came to that call, or could do without it
                if disk.num_calls < stop_at:
                    return
                continue
        assert f"step_{step:08d}: cannot write: {os.strerror(number).lower()}" in message
        assert "\n" not in message
        found, rejected = newest_valid(run)
        assert rejected == []
        assert step == 1 or found is not None
        if not forever and (run / "checkpoints").exists():
            left = os.listdir(run / "checkpoints")
            assert all(name in ("best", "last") or name[5:].isdecimal() for name in left), left
    pytest.fail("the save never came to its end")


@pytest.mark.parametrize("is_first", [False, True])
def test_a_disk_that_fills_up_within_a_file(is_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier checkpoints are said to be intact where there are any."""
    if not is_first:
        save(tmp_path, snapshot_of(1), keep_last=1, is_best=False)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", HalfWritten)
        with pytest.raises(RunError, match=r"no space left on device; free some space there and resume") as caught:
            save(tmp_path, snapshot_of(2), keep_last=1, is_best=False)
    assert ("earlier checkpoints are intact" in str(caught.value)) is not is_first
    if is_first:
        assert checkpoint.list_checkpoints(tmp_path) == []
        return
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["last", "step_00000001"]
    assert_same(load(tmp_path), snapshot_of(1))


# --- a disk that fills up or closes under a run: one line, exit code 1, the last checkpoint whole ---------------------


NUM_STEPS = 8  # 48 of 60 samples train (one of each class is held out), 12 at a step, 2 epochs
EVERY_STEP = ("checkpoint.every_steps=1", "checkpoint.keep_last=100")


def train(out: Path, *words: str) -> Outcome:
    return run_here("train", TINY, *EVERY_STEP, "--no-check", "--out", out, *words)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on a disk that behaves."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    done = train(out)
    assert done.code == 0, done.err
    return out


def assert_stopped_in_one_line(stopped: Outcome, *expected: str) -> None:
    assert stopped.code == 1, stopped.err
    (line,) = [line for line in stopped.err.splitlines() if line.startswith("error: ")]
    assert stopped.err.endswith(f"{line}\n"), f"the last word is why: {stopped.err}"
    assert "Traceback" not in stopped.err
    for part in expected:
        assert part in line


def assert_goes_on_to_the_same_end(out: Path, unbroken: Path) -> None:
    """The newest checkpoint is whole and no leftover is taken for one; resumed, the run ends as if nothing had been."""
    sound, rejected = checkpoint.newest_valid(out)
    assert sound is not None
    assert rejected == []
    assert 0 < checkpoint.load(out).step < NUM_STEPS
    done = train(out, "--resume", "auto")
    assert done.code == 0, done.err
    for name in ("final.json", "checkpoints/last/model.safetensors", "checkpoints/last/optimizer.safetensors"):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert steps_logged(out) == steps_logged(unbroken)
    assert not list((out / "checkpoints").glob("*.partial"))


def steps_logged(out: Path) -> list[tuple[int, str]]:
    entries = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(entry["step"], entry["split"]) for entry in entries]


def close_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """Let every write below a folder fail from now on, as the system would let it."""

    def closed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            mode = options.get("mode", arguments[1] if len(arguments) > 1 else "r")
            is_read = function is opened and mode in ("r", "rb")
            if not is_read and any(str(folder) in str(argument) for argument in arguments):
                raise OSError(number, os.strerror(number), str(arguments[0]))
            return function(*arguments, **options)

        return call

    opened = builtins.open
    monkeypatch.setattr(builtins, "open", closed(opened))
    for name in WRITING[1:]:
        monkeypatch.setattr(os, name, closed(getattr(os, name)))


@run_each(
    "number, reason, remedy",
    [
        (errno.EDQUOT, "disk quota exceeded", "free some space there and resume"),
        (errno.EROFS, "read-only file system", "make it writable, or choose another folder with --out"),
        (errno.EFBIG, "file too large", "raise the limit on the size of a file (ulimit -f) and resume"),
        (errno.EIO, "input/output error", "mend the cause and resume"),
    ],
)
def test_what_the_disk_says_is_said_with_what_to_do(tmp_path: Path, number: int, reason: str, remedy: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        Disk(1, OSError(number, os.strerror(number)), forever=True).watch(patched, *WRITING)
        with pytest.raises(RunError) as caught:
            save(tmp_path / str(number), snapshot_of(1), keep_last=1, is_best=False)
    assert str(caught.value).startswith(f"{tmp_path / str(number)}")
    assert f": cannot write: {reason}; {remedy}" in str(caught.value)


def test_a_disk_that_is_full_in_mid_run_loses_nothing(tmp_path: Path, unbroken: Path) -> None:
    """It takes four checkpoints and then refuses."""
    out, save, saved = tmp_path / "run", checkpoint.save, []
    with pytest.MonkeyPatch.context() as patched:

        def close_after_four(*arguments: Any, **options: Any) -> Any:
            saved.append(arguments)
            if len(saved) == 5:
                close_disk(patched, out, errno.ENOSPC)
            return save(*arguments, **options)

        patched.setattr(checkpoint, "save", close_after_four)
        stopped = train(out)
    assert_stopped_in_one_line(stopped, str(out), "no space left on device", "free some space there and resume")
    assert checkpoint.load(out).step == 4
    (out / ".lock").unlink()  # the disk kept it; a dead process's is taken over, but this one lives on
    assert_goes_on_to_the_same_end(out, unbroken)


def test_a_disk_that_closes_under_a_finished_run_still_lets_it_be_read(unbroken: Path) -> None:
    """Data and runs on a read-only share: evaluate writes nothing there."""
    with pytest.MonkeyPatch.context() as patched:
        close_disk(patched, unbroken, errno.EROFS)
        assert "overall_accuracy" in succeed("evaluate", unbroken).out
        assert "this run is finished" in train(unbroken, "--resume", "auto").err
