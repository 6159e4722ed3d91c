"""A run is owned by one process at a time, whichever hosts write to its folder, and whatever its file system lacks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.limits import ENDLESS_S
from tests.runs.broken_off import Bench, Forked, differences, last_saved, run_forked, wait_for
from tests.runs.hosts import OnHost, WithoutLinks

pytestmark = pytest.mark.processes

HELD_AFTER = 8
"""Batches after which a process stands still: those of two steps, after which there is a checkpoint, and of reading
ahead, but not the 18 of the run."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def unbroken(bench: Bench) -> Path:
    code, text = run_forked(bench.words("unbroken", slow=True), bench.folder / "unbroken.log")
    assert code == 0, text
    return bench.folder / "unbroken"


def held(bench: Bench) -> dict[str, str]:
    """Variables of a process that stands still after two steps, until the file `go` is there."""
    return {"HELD_AFTER": str(HELD_AFTER), "GO": str(bench.folder / "go")}


@contextlib.contextmanager
def killed_in_the_end(*started: Forked) -> Iterator[None]:
    try:
        yield
    finally:
        for each in started:
            each.kill()


def wait_for_checkpoint(run: Path, step: int, started: Forked) -> None:
    wait_for(lambda: last_saved(run) == step or not started.is_alive(), otherwise=started.log.read_text)
    assert started.is_alive(), started.log.read_text()


def is_held_by(run: Path, host: str) -> bool:
    """Whether the lock names the host; one that is written just now names nobody."""
    text = (run / ".lock").read_text()
    return bool(text) and json.loads(text)["host"] == host


def take_over(bench: Bench, name: str, *, num_kills: int, clock_s: float = 0.0) -> Path:
    """Train on `node-0`, and after each kill go on under the next name, whose clock is before or after the last's."""
    run = bench.folder / name
    for attempt in range(num_kills + 1):
        words, log = bench.words(name, resume="auto", slow=True), bench.folder / f"{name}_{attempt}.log"
        is_last = attempt == num_kills
        variables = {} if is_last else held(bench)
        started = OnHost(words, log, f"node-{attempt}", shift_s=clock_s * (-1) ** attempt, environment=variables)
        if not is_last:
            wait_for_checkpoint(run, 2 * attempt + 2, started)
            assert is_held_by(run, f"node-{attempt}")
            started.kill()
        code, text = started.wait()
        assert code == (0 if is_last else -signal.SIGKILL), text
        before = f"on node-{attempt - 1}"
        assert attempt == 0 or (f"{before}, which renewed its lock" in text and "takes the lock of process" in text)
    return run


def test_a_killed_run_goes_on_under_another_host_name(bench: Bench, unbroken: Path) -> None:
    """The clocks of the hosts are two hours apart."""
    run = take_over(bench, "killed", num_kills=2, clock_s=3600)
    assert differences(run, unbroken) == []


@pytest.mark.long
def test_twenty_takeovers(bench: Bench, unbroken: Path) -> None:
    for number in range(3):  # a run has eighteen steps
        run = take_over(bench, f"killed_{number}", num_kills=7, clock_s=3600)
        assert differences(run, unbroken) == []


def test_the_lock_of_a_pod_that_is_gone_wants_no_person(bench: Bench, unbroken: Path) -> None:
    run = bench.folder / "pod"
    run.mkdir()
    (run / ".lock").write_text('{"pid":7,"host":"pod-abc-1","started":"x:1"}')
    (run / ".lock.clock").touch()  # it was killed while it took the lock
    (run / ".link.probe").symlink_to("probe")
    code, text = OnHost(bench.words("pod", resume="auto", slow=True), bench.folder / "pod.log", "pod-abc-2").wait()
    assert code == 0, text
    assert "in use by process 7 on pod-abc-1, which renewed its lock" in text
    assert "takes the lock of process 7 on pod-abc-1" in text
    assert differences(run, unbroken) == []


def test_a_living_run_of_another_host_is_left_alone(bench: Bench) -> None:
    run = bench.folder / "living"
    log = bench.folder / "living.log"
    first = OnHost(bench.words("living", slow=True), log, "node-a", environment=held(bench))
    with killed_in_the_end(first):
        wait_for_checkpoint(run, 2, first)
        words = bench.words("living", resume="auto", slow=True)
        code, text = OnHost(words, bench.folder / "second.log", "node-b", silent_s=ENDLESS_S).wait()
        assert code == 2, text
        assert f"{run}: in use by process {first.pid} on node-a, which renews its lock; wait for it" in text
        assert is_held_by(run, "node-a")


@pytest.mark.parametrize("is_over", [False, True])
def test_a_process_that_stood_still_too_long_writes_nothing_more(bench: Bench, unbroken: Path, is_over: bool) -> None:
    """It wakes beside the new owner, which it names, or after that has finished the run."""
    run = bench.folder / f"stopped_{is_over}"
    log = bench.folder / f"{run.name}.log"
    go = bench.folder / f"go_{is_over}"
    stands = {**held(bench), "GO": str(go)}
    first = OnHost(bench.words(run.name, slow=True), log, "node-a", environment=stands)
    with killed_in_the_end(first):
        wait_for_checkpoint(run, 2, first)
        os.kill(first.pid, signal.SIGSTOP)
        words = bench.words(run.name, resume="auto", slow=True)
        own = {} if is_over else held(bench)
        second = OnHost(words, bench.folder / f"{run.name}_2.log", "node-b", environment=own)
        with killed_in_the_end(second):
            if is_over:
                code, text = second.wait()
                assert code == 0, text
            else:
                wait_for(lambda: is_held_by(run, "node-b"), otherwise=second.log.read_text)
            go.touch()
            os.kill(first.pid, signal.SIGCONT)
            code, text = first.wait()
            assert code == 1, text
            assert text.count("error:") == 1
            owner = f"was taken by process {second.pid} on node-b; this run ends and leaves the folder to it"
            assert is_over or owner in text, text
            assert is_over or second.is_alive()
    if is_over:
        assert differences(run, unbroken) == []


def test_two_processes_of_two_hosts_are_resumed_on_two_others(bench: Bench) -> None:
    words = bench.words("pair", resume="auto", slow=True)
    run = bench.folder / "pair"
    first = OnHost(
        words, bench.folder / "pair.log", "node-a", "node-b", environment={**held(bench), "HELD_AFTER": "12"}
    )
    wait_for_checkpoint(run, 2, first)
    for process in first.processes:
        process.kill()
    first.wait()
    whole = bench.words("pair_unbroken", slow=True)
    for out, hosts in ((words, ("node-c", "node-d")), (whole, ("node-a", "node-b"))):
        code, text = OnHost(out, bench.folder / "pair_next.log", *hosts).wait()
        assert code == 0, text
    assert differences(run, bench.folder / "pair_unbroken") == []


def test_a_folder_without_links_and_locks_is_written_resumed_and_read(bench: Bench, unbroken: Path) -> None:
    run = bench.folder / "plain_folder"
    first = WithoutLinks(bench.words(run.name, slow=True), bench.folder / "plain.log", environment=held(bench))
    with killed_in_the_end(first):
        wait_for_checkpoint(run, 2, first)
    assert "no-locks: " in first.log.read_text()
    assert "no-links: " in first.log.read_text()
    code, text = WithoutLinks(bench.words(run.name, resume="auto", slow=True), bench.folder / "go_on.log").wait()
    assert code == 0, text
    assert differences(run, unbroken) == []
    assert {path.name: path.read_text() for path in (run / "checkpoints").glob("[lb]*t")} == {
        link: f"{os.readlink(unbroken / 'checkpoints' / link)}\n" for link in ("last", "best")
    }
    plugin = ("--plugin", str(bench.plugin))
    for words in (
        ("evaluate", str(run), *plugin, "--device", "cpu", "--checkpoint", "best"),
        ("export", str(run), *plugin, "--out", str(bench.folder / "network.onnx")),
        ("report", str(run), "--out", str(bench.folder / "page.html")),
    ):
        code, text = WithoutLinks(words, bench.folder / "reading.log").wait()
        assert code == 0, text
    (run / "checkpoints" / "last").write_text("step_00000099\n")
    code, text = run_forked(("evaluate", str(run), *plugin, "--device", "cpu"), bench.folder / "lost.log")
    assert code == 2, text
    assert f"{run}/checkpoints/last: names 'step_00000099', which is not there; the newest sound one is" in text
