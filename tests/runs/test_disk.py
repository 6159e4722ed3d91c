"""A disk that fills up or closes under a run: one line, exit code 1, the last checkpoint whole, and it goes on."""

from __future__ import annotations

import builtins
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.runs import checkpoint
from tests.command import Outcome, run_here, succeed

CONFIG = Path(__file__).resolve().parents[1] / "broken_configs" / "_healthy.yaml"
NUM_STEPS = 8  # 48 of 60 samples train (one of each class is held out), 12 at a step, 2 epochs
EVERY_STEP = ("checkpoint.every_steps=1", "checkpoint.keep_last=100")


def train(out: Path, *words: str) -> Outcome:
    return run_here("train", CONFIG, *EVERY_STEP, "--no-check", "--out", out, *words)


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


# --- a real file system of a few hundred kilobytes --------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of the given options, or changes those of the one mounted; gives its folder."""
    place = tmp_path / "disk"
    place.mkdir()
    is_mounted = False

    def mount(options: str) -> Path:
        nonlocal is_mounted
        again = "remount," if is_mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            assert not is_mounted, f"could be mounted, but not again with {options}"
            pytest.skip("only root can mount a small disk; the simulated one below is tested everywhere")
        is_mounted = True
        return place

    yield mount
    if is_mounted:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(small_disk: Callable[[str], Path], unbroken: Path) -> None:
    one = sum(file.stat().st_size for file in (unbroken / "checkpoints" / "last").iterdir())
    out = small_disk(f"size={one * 4 // 1024}k") / "run"  # room for four checkpoints of eight
    assert_stopped_in_one_line(train(out), str(out / "checkpoints"), "no space left on device", "free some space there")
    small_disk("size=32m")
    assert_goes_on_to_the_same_end(out, unbroken)


def test_no_room_for_the_first_file(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=64k")
    (disk / "ballast").write_bytes(bytes(64 * 1024))
    stopped = train(disk / "run")
    assert_stopped_in_one_line(stopped, str(disk / "run"), "no space left on device")


def test_a_read_only_disk_is_named_at_the_start(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=1m")
    small_disk("ro")
    stopped = train(disk / "run")
    assert_stopped_in_one_line(stopped, str(disk / "run"), "read-only file system", "choose another folder with --out")
    assert not list(disk.iterdir())


def test_a_disk_that_closes_under_a_finished_run_still_lets_it_be_read(
    small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and runs on a read-only share: evaluate writes nothing there."""
    out = small_disk("size=32m") / "run"
    assert train(out).code == 0
    small_disk("ro")
    done = succeed("evaluate", out)
    assert "overall_accuracy" in done.out
    assert "this run is finished" in train(out, "--resume", "auto").err


# --- simulated, for every machine -------------------------------------------------------------------------------------


class Closing:
    """From some checkpoint on, every write below a folder fails as the system would let it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = str(folder)
        self.number = number
        self.is_closed = False

    def watch(self, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
        save, num_saved = checkpoint.save, 0

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal num_saved
            num_saved += 1
            self.is_closed = num_saved > after
            return save(*arguments, **options)

        monkeypatch.setattr(checkpoint, "save", counted)
        for name in ("mkdir", "rename", "replace", "symlink", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._closed(getattr(os, name)))
        opened = builtins.open
        closed = self._closed(opened)
        monkeypatch.setattr(
            builtins,
            "open",
            lambda file, mode="r", *rest, **more: (opened if mode in ("r", "rb") else closed)(
                file, mode, *rest, **more
            ),
        )

    def _closed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.is_closed and any(self.folder in str(argument) for argument in arguments):
                raise OSError(self.number, os.strerror(self.number), str(arguments[0]))
            return function(*arguments, **options)

        return call


def stop_after_four(out: Path, number: int) -> Outcome:
    """Train on a disk that takes four checkpoints and then refuses with this error."""
    with pytest.MonkeyPatch.context() as patched:
        Closing(out, number).watch(patched, after=4)
        stopped = train(out)
    assert checkpoint.load(out).step == 4
    assert checkpoint.newest_valid(out)[1] == []
    (out / ".lock").unlink()  # the disk kept it; a dead process's is taken over, but this one lives on
    return stopped


@pytest.mark.parametrize(
    ("number", "reason", "remedy"),
    [
        (errno.EDQUOT, "disk quota exceeded", "free some space there and resume"),
        (errno.EROFS, "read-only file system", "make it writable, or choose another folder with --out"),
        (errno.EFBIG, "file too large", "raise the limit on the size of a file (ulimit -f) and resume"),
        (errno.EIO, "input/output error", "mend the cause and resume"),
    ],
)
def test_what_the_disk_says_is_said_with_what_to_do(tmp_path: Path, number: int, reason: str, remedy: str) -> None:
    stopped = stop_after_four(tmp_path / "run", number)
    assert_stopped_in_one_line(stopped, str(tmp_path / "run"), reason, remedy)


def test_a_disk_that_is_full_in_mid_run_loses_nothing(tmp_path: Path, unbroken: Path) -> None:
    stopped = stop_after_four(tmp_path / "run", errno.ENOSPC)
    assert_stopped_in_one_line(stopped, "no space left on device", "free some space there and resume")
    assert_goes_on_to_the_same_end(tmp_path / "run", unbroken)
