"""A run is owned by one process at a time, whichever hosts write to its folder, and whatever its file system lacks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.runs.broken_off import Bench, Forked, differences, last_step, run_forked, wait_for
from tests.runs.hosts import OnHost, WithoutLinks

pytestmark = pytest.mark.processes

_SLOWED_S = 0.05


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def unbroken(bench: Bench) -> Path:
    code, text = run_forked(bench.words("unbroken", slow=True), bench.folder / "unbroken.log")
    assert code == 0, text
    return bench.folder / "unbroken"


def wait_for_step(run: Path, step: int, started: Forked) -> None:
    def is_due() -> bool:
        return last_step(run) >= step or not started.is_alive()

    wait_for(is_due, timeout_s=300, otherwise=started.log.read_text)
    assert started.is_alive(), started.log.read_text()


def is_held_by(run: Path, host: str) -> bool:
    """Whether the lock names the host; one that is written just now names nobody."""
    text = (run / ".lock").read_text()
    return bool(text) and json.loads(text)["host"] == host


def take_over(bench: Bench, name: str, *, num_kills: int, clock_s: float = 0.0) -> Path:
    """Train on `node-0`, and after each kill go on under the next name, whose clock is before or after the last's."""
    run = bench.folder / name
    for attempt in range(num_kills + 1):
        words = bench.words(name, resume="auto", slow=True)
        is_last = attempt == num_kills
        shift_s = clock_s * (-1) ** attempt
        log = bench.folder / f"{name}_{attempt}.log"
        started = OnHost(words, log, f"node-{attempt}", shift_s=shift_s, slowed_s=0 if is_last else _SLOWED_S)
        if not is_last:
            wait_for_step(run, 3 * attempt + 3, started)
            assert is_held_by(run, f"node-{attempt}")
            started.kill()
        code, text = started.wait(300)
        assert code == (0 if is_last else -signal.SIGKILL), text
        before = f"on node-{attempt - 1}"
        assert attempt == 0 or (f"{before}, which renewed its lock" in text and "takes the lock of process" in text)
    return run


def test_a_killed_run_goes_on_under_another_host_name(bench: Bench, unbroken: Path) -> None:
    run = take_over(bench, "killed", num_kills=2, clock_s=3600)
    assert differences(run, unbroken) == []


def test_an_old_lock_of_a_pod_that_is_gone_wants_no_person(bench: Bench, unbroken: Path) -> None:
    run = bench.folder / "pod"
    run.mkdir()
    (run / ".lock").write_text('{"pid":7,"host":"pod-abc-1","started":"x:1"}')
    code, text = OnHost(bench.words("pod", resume="auto", slow=True), bench.folder / "pod.log", "pod-abc-2").wait(300)
    assert code == 0, text
    assert "in use by process 7 on pod-abc-1, which renewed its lock" in text
    assert "takes the lock of process 7 on pod-abc-1" in text
    assert differences(run, unbroken) == []


def test_a_living_run_of_another_host_is_left_alone(bench: Bench) -> None:
    run = bench.folder / "living"
    first = OnHost(bench.words("living", slow=True), bench.folder / "living.log", "node-a", slowed_s=_SLOWED_S)
    try:
        wait_for_step(run, 3, first)
        words = bench.words("living", resume="auto", slow=True)
        code, text = OnHost(words, bench.folder / "second.log", "node-b", silent_s=1000).wait(300)
        assert code == 2, text
        assert f"{run}: in use by process {first.pid} on node-a, which renews its lock; wait for it" in text
        assert is_held_by(run, "node-a")
    finally:
        first.kill()
        first.wait(300)


def test_a_process_that_stood_still_too_long_writes_nothing_more(bench: Bench, unbroken: Path) -> None:
    run = bench.folder / "stopped"
    first = OnHost(bench.words("stopped", slow=True), bench.folder / "first.log", "node-a", slowed_s=_SLOWED_S)
    try:
        wait_for_step(run, 3, first)
        os.kill(first.pid, signal.SIGSTOP)
        second = OnHost(bench.words("stopped", resume="auto", slow=True), bench.folder / "then.log", "node-b")
        code, text = second.wait(300)
        assert code == 0, text
        os.kill(first.pid, signal.SIGCONT)
        code, text = first.wait(300)
        assert code == 1, text
    finally:
        first.kill()
    assert text.count("error:") == 1
    assert differences(run, unbroken) == []


def test_a_process_that_wakes_beside_the_new_owner_names_it(bench: Bench) -> None:
    run = bench.folder / "woken"
    first = OnHost(bench.words("woken", slow=True), bench.folder / "woken.log", "node-a", slowed_s=_SLOWED_S)
    started = [first]
    try:
        wait_for_step(run, 3, first)
        os.kill(first.pid, signal.SIGSTOP)
        words = bench.words("woken", resume="auto", slow=True)
        second = OnHost(words, bench.folder / "owner.log", "node-b", slowed_s=100)
        started.append(second)
        wait_for(lambda: is_held_by(run, "node-b"), timeout_s=300, otherwise=second.log.read_text)
        os.kill(first.pid, signal.SIGCONT)
        code, text = first.wait(300)
        assert code == 1, text
        assert f"was taken by process {second.pid} on node-b; this run ends and leaves the folder to it" in text
        assert second.is_alive()
    finally:
        for each in started:
            each.kill()


def test_two_processes_of_two_hosts_are_resumed_on_two_others(bench: Bench) -> None:
    words = bench.words("pair", resume="auto", slow=True)
    run = bench.folder / "pair"
    first = OnHost(words, bench.folder / "pair.log", "node-a", "node-b", slowed_s=_SLOWED_S)
    wait_for_step(run, 3, first)
    for process in first.processes:
        process.kill()
    first.wait(300)
    whole = bench.words("pair_unbroken", slow=True)
    for out, hosts in ((words, ("node-c", "node-d")), (whole, ("node-a", "node-b"))):
        code, text = OnHost(out, bench.folder / "pair_next.log", *hosts).wait(300)
        assert code == 0, text
    assert differences(run, bench.folder / "pair_unbroken") == []


def test_a_folder_without_links_and_locks_is_written_resumed_and_read(bench: Bench, unbroken: Path) -> None:
    run = bench.folder / "plain_folder"
    first = WithoutLinks(bench.words(run.name, slow=True), bench.folder / "plain.log", slowed_s=_SLOWED_S)
    wait_for_step(run, 6, first)
    first.kill()
    assert "no-locks: " in first.log.read_text()
    assert "no-links: " in first.log.read_text()
    code, text = WithoutLinks(bench.words(run.name, resume="auto", slow=True), bench.folder / "go_on.log").wait(300)
    assert code == 0, text
    assert differences(run, unbroken) == []
    assert {path.name: path.read_text() for path in (run / "checkpoints").glob("[lb]*t")} == {
        link: f"{os.readlink(unbroken / 'checkpoints' / link)}\n" for link in ("last", "best")
    }
    plugin = ("--plugin", str(bench.plugin), "--device", "cpu")
    for words in (
        ("evaluate", str(run), *plugin, "--checkpoint", "best"),
        ("export", str(run), *plugin[:2], "--out", str(bench.folder / "network.onnx")),
        ("report", str(run), "--out", str(bench.folder / "page.html")),
    ):
        code, text = WithoutLinks(words, bench.folder / "reading.log").wait(300)
        assert code == 0, text
