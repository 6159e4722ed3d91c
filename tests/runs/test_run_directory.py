"""The run directory: numbers claimed once, one run at a time, files whole, and a twin that writes nothing."""

from __future__ import annotations

import builtins
import errno
import fcntl
import json
import math
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.contract.errors import DataError, RunError, UserError
from sightline.runs.environment import collect_environment
from sightline.runs.run_directory import RunDirectory, create_numbered_folder
from sightline.runs.run_documents import read_lines


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run", is_writer=True)


def fail(number: int) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


# --- claiming --------------------------------------------------------------------------------------------------------


def test_numbers_follow_one_another_and_gaps_are_not_filled(tmp_path: Path) -> None:
    base = tmp_path / "runs" / "name"
    assert [create_numbered_folder(base).name for _ in range(3)] == ["1", "2", "3"]
    (base / "1").rmdir()
    (base / "41").mkdir()
    (base / "notes").mkdir()
    assert create_numbered_folder(base) == base / "42"


def test_no_number_is_claimed_twice(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(create_numbered_folder, [tmp_path / "base"] * 64))
    assert sorted(int(path.name) for path in claimed) == list(range(1, 65))


# --- the lock --------------------------------------------------------------------------------------------------------


def lock_text(run: RunDirectory, **changes: Any) -> Path:
    """A lock file as some other process may have left it."""
    run.path.mkdir(exist_ok=True)
    path = run.path / ".lock"
    path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": None} | changes))
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_second_run_is_refused_and_the_lock_goes_with_the_first(run: RunDirectory) -> None:
    with run.lock():
        holder = json.loads((run.path / ".lock").read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
        with (
            pytest.raises(UserError, match=f"run: in use by process {os.getpid()} on {socket.gethostname()}"),
            RunDirectory(run.path, is_writer=True).lock(),
        ):
            pass
        assert (run.path / ".lock").exists()
    assert not (run.path / ".lock").exists()
    with run.lock():
        pass


def test_a_lock_on_a_full_disk_leaves_no_file(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.path.mkdir()
    monkeypatch.setattr(os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(RunError, match=r"\.lock: cannot write: no space left on device"), run.lock():
        pytest.fail("was locked")
    assert not (run.path / ".lock").exists()


def test_a_lock_that_became_anothers_is_left_to_it(run: RunDirectory) -> None:
    with run.lock():
        path = lock_text(run, host="elsewhere")
    assert path.exists()


@pytest.mark.parametrize("left", ["dead", "reused", "never written"])
def test_what_the_dead_left_is_taken_over(run: RunDirectory, left: str) -> None:
    path = lock_text(run, pid=dead_pid() if left == "dead" else os.getpid(), started="an earlier boot:17")
    if left == "never written":
        path.write_text("")
    with run.lock():
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_a_process_that_ended_but_was_not_collected_is_dead(run: RunDirectory) -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # ends when the process does
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        lock_text(run, pid=process.pid)
        with run.lock():
            pass
    finally:
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"host": "elsewhere"}, "in use by process .* on elsewhere, which renewed its lock 0 s ago; wait for it"),
        ({"pid": os.getppid()}, f"in use by process {os.getppid()} on"),
        ({"pid": "x"}, "is not a lock file of sightline"),
        ({"pid": None}, "is not a lock file of sightline"),
        ({"pid": float("inf")}, "is not a lock file of sightline"),
        ({"pid": float("nan")}, "is not a lock file of sightline"),
    ],
)
def test_a_lock_that_may_live_is_respected(run: RunDirectory, changes: dict[str, Any], says: str) -> None:
    path = lock_text(run, **changes)
    before = path.read_text()
    with pytest.raises(UserError, match=says), run.lock(is_patient=False):
        pass
    assert path.read_text() == before


def test_a_lock_removed_while_we_wait_for_it_is_made_anew(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lock_text(run, pid=dead_pid())
    honest = fcntl.flock
    turns = []

    def wait(file: Any, operation: int) -> None:
        honest(file, operation)
        turns.append(path.exists())
        if len(turns) == 1:
            path.unlink()  # by the run that held it, which ends just now

    monkeypatch.setattr(fcntl, "flock", wait)
    with run.lock():
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert turns == [True, True]


def test_of_many_who_find_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    pid = dead_pid()
    for attempt in range(20):
        run = RunDirectory(tmp_path / str(attempt), is_writer=True)
        lock_text(run, pid=pid)
        barrier = threading.Barrier(6)

        def enter(run: RunDirectory = run, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                with run.lock():
                    barrier.wait()  # nobody leaves before all have tried
                    return True
            except UserError:
                barrier.wait()
                return False

        with ThreadPoolExecutor(6) as pool:
            outcomes = [future.result() for future in [pool.submit(enter) for _ in range(6)]]
        assert sum(outcomes) == 1


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_are_written_and_replaced_without_leftovers(run: RunDirectory) -> None:
    for text in ("one\n", "two é\n"):
        run.write_text("config.yaml", text)
        assert (run.path / "config.yaml").read_text(encoding="utf-8") == text
    run.write_json("predictions/a.json", {"b": [1, (2.5, None)], "a": math.nan, "inf": [-math.inf]})
    text = (run.path / "predictions" / "a.json").read_text()
    assert json.loads(text) == {"b": [1, [2.5, None]], "a": None, "inf": [None]}
    assert sorted(path.name for path in run.path.rglob("*")) == ["a.json", "config.yaml", "predictions"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x"])
def test_names_stay_inside(run: RunDirectory, name: str) -> None:
    with pytest.raises(AssertionError):
        run.write_text(name, "")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    run.write_text("final.json", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail(errno.ENOSPC))
        with pytest.raises(RunError, match=r"final.json: cannot write: no space left on device; free some space"):
            run.write_text("final.json", "new")
    assert os.listdir(run.path) == ["final.json"]
    assert (run.path / "final.json").read_text() == "old"


def test_a_killed_writer_leaves_the_old_file_and_the_next_cleans_up(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    run.write_text("final.json", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            run.write_text("final.json", "new")
    assert (run.path / "final.json").read_text() == "old"
    run.write_text("final.json", "newer")
    assert os.listdir(run.path) == ["final.json"]


def test_a_read_only_disk_is_one_line_for_every_write(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append_line("metrics.jsonl", {"step": 1})
    run.append_line("metrics.jsonl", {"step": 2})
    monkeypatch.setattr(builtins, "open", fail(errno.EROFS))
    writes = [
        lambda: run.write_text("a", ""),
        lambda: run.write_json("a", {}),
        lambda: run.append_line("metrics.jsonl", {"step": 3}),
        lambda: run.truncate_lines("metrics.jsonl", after_step=1),
        lambda: run.lock().__enter__(),
    ]
    for write in writes:
        with pytest.raises(RunError, match=rf"{run.path}/\S+: cannot write: read-only file system; .*--out") as caught:
            write()
        assert "\n" not in str(caught.value)


def test_names_that_are_no_utf8_come_back(run: RunDirectory) -> None:
    name = os.fsdecode(b"caf\xc3\xa9 \xff.off")
    run.write_json("a.json", {"file": name})
    run.append_line("a.jsonl", {"file": name})
    for file in ("a.json", "a.jsonl"):
        text = (run.path / file).read_text(encoding="utf-8")
        assert "café" in text
        assert os.fsencode(json.loads(text)["file"]) == b"caf\xc3\xa9 \xff.off"


# --- lines -----------------------------------------------------------------------------------------------------------


def lines_of(run: RunDirectory) -> list[object]:
    """Every line of the metrics, read by the standard library alone."""
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_bytes().split(b"\n")[:-1]]


def test_lines_are_appended_at_once_and_read_back(run: RunDirectory) -> None:
    lines = [{"step": 1, "loss": 0.1, "text": "a\u2028b\r\n\x85"}, {"step": 2, "loss": None}]
    for number, line in enumerate(lines, start=1):
        run.append_line("metrics.jsonl", line)
        assert lines_of(run) == read_lines(run.path / "metrics.jsonl") == lines[:number]
    run.append_line("metrics.jsonl", {"step": 3, "loss": math.nan, "other": [math.inf]})
    assert lines_of(run)[-1] == {"step": 3, "loss": None, "other": [None]}
    assert (run.path / "metrics.jsonl").read_bytes().count(b"\n") == 3


class HalfWritten:
    """A file on a disk that is full after half of what is written to it."""

    honest = open

    def __init__(self, path: Path, mode: str) -> None:
        self.file = HalfWritten.honest(path, mode, buffering=0)

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_line_that_fails_leaves_no_part(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append_line("metrics.jsonl", {"step": 1})
    before = (run.path / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", HalfWritten)
        with pytest.raises(RunError, match=r"metrics.jsonl: cannot write: no space left"):
            run.append_line("metrics.jsonl", {"step": 2})
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_later_lines_are_cut_off_and_the_others_keep_their_bytes(run: RunDirectory) -> None:
    kept = b'{"step": 1,  "loss": 1.0}\n{"loss": 2e0, "step": 2}\n'
    run.write_text("metrics.jsonl", kept.decode() + '{"step": 3}\n{"step": 2}\n{"step": 4}\n{"st')
    assert run.truncate_lines("metrics.jsonl", after_step=2) == 3
    assert (run.path / "metrics.jsonl").read_bytes() == kept + b'{"step": 2}\n'
    assert run.truncate_lines("metrics.jsonl", after_step=2) == 0
    assert run.truncate_lines("absent.jsonl", after_step=2) == 0


@pytest.mark.parametrize("torn", ['{"step": 2', '{"step": 2}', "\x00\x00\x00", "\udcff"])
def test_a_torn_last_line_is_cut_off(run: RunDirectory, torn: str) -> None:
    run.append_line("metrics.jsonl", {"step": 1})
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(torn.encode(errors="surrogateescape"))
    assert run.truncate_lines("metrics.jsonl", after_step=9) == 1
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("line", ["{", "[1]", '{"step": 1.5}', '{"step": true}', "{}", ""])
def test_a_damaged_line_elsewhere_is_refused_and_nothing_cut(run: RunDirectory, line: str) -> None:
    text = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    run.write_text("metrics.jsonl", text)
    with pytest.raises(DataError, match=r"metrics.jsonl.*remove the line"):
        run.truncate_lines("metrics.jsonl", after_step=1)
    assert (run.path / "metrics.jsonl").read_text() == text


# --- the twin --------------------------------------------------------------------------------------------------------


def test_the_twin_touches_nothing(tmp_path: Path) -> None:
    twin = RunDirectory(tmp_path / "run", is_writer=False)
    with twin.lock():
        twin.write_text("a", "a")
        twin.write_json("b", {})
        twin.append_line("metrics.jsonl", {"step": 1})
        assert twin.truncate_lines("metrics.jsonl", after_step=0) == 0
    assert os.listdir(tmp_path) == []
    writer = RunDirectory(twin.path, is_writer=True)
    writer.append_line("metrics.jsonl", {"step": 1})
    assert twin.truncate_lines("metrics.jsonl", after_step=0) == 0
    assert lines_of(twin) == [{"step": 1}]


# --- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_is_plain_and_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sightline", "train", "x.yaml"])
    found = collect_environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["versions"]["sightline"]
    assert found["command_line"] == ["sightline", "train", "x.yaml"]
    assert found["cpu"]
    assert found["num_cores"] >= found["num_usable_cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_the_commit_is_the_projects_own_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    git = collect_environment()["git"]
    assert git is None or (len(git["commit"]) == 40 and isinstance(git["is_dirty"], bool))
    monkeypatch.setenv("PATH", "")
    assert collect_environment()["git"] is None
