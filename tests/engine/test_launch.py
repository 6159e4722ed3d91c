"""Who starts how many processes, what a launcher's environment means, and which of many last words is printed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from sightline.contract.errors import UserError
from sightline.contract.loss import bad_count_error
from sightline.engine.failures import Failure, exit_process, read_failure, report_failure
from sightline.engine.launcher import (
    RankInfo,
    _report,
    rank_info_from_environment,
    rendezvous_address,
    resolve_num_processes,
)
from sightline.engine.watchdog import Watchdog
from sightline.runs.process_folder import LAUNCH, process_folder
from sightline.runs.process_identity import ProcessIdentity, process_start_time
from sightline.training import stop_request
from sightline.training.stop_request import StopRequest
from sightline.verbs.terminal import format_error
from tests.cases import run_each
from tests.command import run_here
from tests.limits import HANG_S, limited
from tests.processes import ROOT, _slurm
from tests.runs.small import TINY

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SIGHTLINE_LAUNCHED")
VARIABLES += ("SIGHTLINE_LAUNCH_FOLDER",)
SLURM = tuple(_slurm(0, 1))


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*VARIABLES, *SLURM, "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def set_all(variables: pytest.MonkeyPatch, entries: dict[str, str]) -> None:
    for name, value in entries.items():
        variables.setenv(name, value)


# --- places -----------------------------------------------------------------------------------------------------------


def test_outside_of_a_launcher_there_is_one_process_unless_more_are_asked_for(variables: pytest.MonkeyPatch) -> None:
    assert rank_info_from_environment() == RankInfo(0, 1, 0)
    assert [resolve_num_processes(asked) for asked in (None, 1, 4)] == [1, 1, 4]
    for asked in (0, -2):
        with pytest.raises(UserError, match=f"--processes: found {asked}, allowed is at least 1"):
            resolve_num_processes(asked)


@pytest.mark.parametrize("kind", ["torchrun", "slurm"])
def test_a_launcher_that_started_processes_decides(variables: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "torchrun":
        set_all(variables, {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    else:
        set_all(variables, _slurm(3, 4) | {"SLURM_LOCALID": "1", "MASTER_ADDR": "node1"})
    assert rank_info_from_environment() == RankInfo(3, 4, 1)
    assert [resolve_num_processes(asked) for asked in (None, 4)] == [1, 1]
    with pytest.raises(UserError, match="--processes 3: the launcher started 4; leave --processes out"):
        resolve_num_processes(3)


def test_slurm_needs_an_address_and_gets_a_port(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, _slurm(1, 2))
    with pytest.raises(UserError, match="MASTER_ADDR is not set; export MASTER_ADDR=<first host>"):
        rank_info_from_environment()
    set_all(variables, {"MASTER_ADDR": "node1"})
    assert rank_info_from_environment() == RankInfo(1, 2, 1)
    assert os.environ["MASTER_PORT"] == "29500"


def test_an_allocation_of_slurm_without_a_step_is_no_launcher(variables: pytest.MonkeyPatch) -> None:
    """`sbatch -n 8` sets the number of tasks for its script too, which is one process."""
    entries = _slurm(0, 8)
    del entries["SLURM_STEP_ID"]
    set_all(variables, entries)
    assert (rank_info_from_environment(), resolve_num_processes(2)) == (RankInfo(), 2)


# --- last words -------------------------------------------------------------------------------------------------------


def test_the_first_words_of_a_process_stand(
    variables: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error_file = tmp_path / "0" / "error.json"
    set_all(variables, {"TORCHELASTIC_ERROR_FILE": str(error_file), "SIGHTLINE_LAUNCHED": "1"})
    before_s = time.time()
    report_failure("the cause", exit_code=2)
    after_s = time.time()
    report_failure("what came of it", exit_code=1, is_consequence=True)
    failure = read_failure(error_file)
    assert failure is not None
    assert (failure.message, failure.exit_code, failure.is_consequence) == ("the cause", 2, False)
    assert before_s <= failure.time_s <= after_s
    assert [path.name for path in error_file.parent.iterdir()] == ["error.json"]
    assert capsys.readouterr() == ("", "")


def test_torch_reads_our_error_files(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    error_file = tmp_path / "error.json"
    set_all(variables, {"TORCHELASTIC_ERROR_FILE": str(error_file), "SIGHTLINE_LAUNCHED": "1"})
    before_s = time.time()
    report_failure("the cause", exit_code=2)
    after_s = time.time()
    read = ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(error_file))
    assert read.message["message"] == "the cause"
    assert int(before_s) <= read.timestamp <= after_s


@pytest.mark.parametrize(("size", "message"), [("1", "a fault"), ("2", "rank 1: a fault")])
def test_what_one_process_may_have_alone_names_its_rank(
    size: str, message: str, variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error_file = tmp_path / "error.json"
    place = {"TORCHELASTIC_ERROR_FILE": str(error_file), "SIGHTLINE_LAUNCHED": "1", "RANK": "1", "WORLD_SIZE": size}
    set_all(variables, place)
    report_failure("a fault", exit_code=1, names_rank=True)
    found = read_failure(error_file)
    assert found is not None
    assert found.message == message


@run_each("error, is_named", [(bad_count_error("own", -3), True), (UserError("is in the config of all"), False)])
def test_a_count_that_cannot_be_used_names_its_rank(
    error: UserError, is_named: bool, variables: pytest.MonkeyPatch
) -> None:
    named: list[bool] = []
    report = "sightline.verbs.terminal.report_failure"
    variables.setattr(report, lambda message, *, exit_code, names_rank: named.append(names_rank))
    assert (format_error(error), named) == (2, [is_named])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"message": "a text"}', '{"message": {"message": "a"}}'])
def test_error_files_of_others_are_not_taken_for_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "error.json").write_text(text)
    assert read_failure(tmp_path / "error.json") is None
    assert read_failure(tmp_path / "absent.json") is None


def test_under_another_launcher_each_process_speaks_for_itself(
    variables: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report_failure("alone", exit_code=1)
    set_all(variables, {"RANK": "1", "WORLD_SIZE": "2"})
    report_failure("one of two", exit_code=1)
    assert capsys.readouterr().err == "error: alone\n[rank 1] error: one of two\n"


CAUSE = Failure("scans/7.npz: is cut", 2, False, 5.0)
LATER = Failure("scans/9.npz: is cut", 2, False, 6.0)
STOPPED = "; the others were stopped\n"
FOLLOWS = Failure("rank 1 ended without a word", 1, True, 4.0)


@pytest.mark.parametrize(
    ("told", "exits", "code", "printed"),
    [
        ([CAUSE, LATER, FOLLOWS], [(0, 1), (1, 2)], 2, "error: scans/7.npz: is cut\n"),
        ([CAUSE], [(0, -15), (1, -9)], 2, "error: scans/7.npz: is cut\n"),  # killed because it did not answer
        ([FOLLOWS], [(0, 1), (1, -9)], 1, "error: process 1 was ended by SIGKILL (out of memory?)" + STOPPED),
        ([], [(0, -15), (1, -11)], 1, "error: process 1 was ended by SIGSEGV" + STOPPED),
        ([FOLLOWS], [(0, 1), (1, 3)], 1, "error: process 1 ended with exit code 3 and no message" + STOPPED),
        ([FOLLOWS], [(0, 1)], 1, "error: rank 1 ended without a word\n"),  # it ended with exit code 0
        ([], [(0, 143), (1, 143)], 143, ""),  # a signal to the processes: state saved
        ([], [(0, -15), (1, 130)], 143, ""),
    ],
)  # fmt: skip
def test_the_cause_is_printed_once(
    told: list[Failure], exits: list[tuple[int, int]], code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _report(told, exits) == code
    assert capsys.readouterr() == ("", printed)


def test_a_failure_to_save_after_a_signal_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert _report([], [], stopped_by=15) == 143
    assert _report([Failure("disk full", 1, False, 1.0)], [], stopped_by=15) == 1
    assert capsys.readouterr().err == "error: disk full\n"


def test_a_signal_that_the_launcher_passes_on_is_no_second_one(variables: pytest.MonkeyPatch) -> None:
    """srun signals the launcher and the processes; these then get it twice, and must still save."""
    clock = [0.0]
    variables.setattr(stop_request, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    ended: list[int] = []
    variables.setattr(os, "_exit", ended.append)
    stop = StopRequest()
    for number in (signal.SIGTERM, signal.SIGTERM):
        stop._on_signal(number, None)
    assert (bool(stop), stop.signal, ended) == (True, signal.SIGTERM, [])
    stop._on_signal(signal.SIGINT, None)
    clock[0] += 2
    stop._on_signal(signal.SIGTERM, None)
    assert ended == [130, 143]


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_process_is_known_by_its_start_as_well_as_its_number() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    process = ProcessIdentity("host", ProcessIdentity.current("host").table, child.pid, process_start_time(child.pid))
    if process.start is None:
        pytest.skip("this system does not say when a process started")
    assert (process.is_reachable, process.is_gone) == (True, False)
    assert ProcessIdentity("host", process.table, child.pid, "another boot:1").is_gone  # the number in other hands
    assert not ProcessIdentity("host", "another table", child.pid, process.start).is_gone  # nothing is known of it
    child.kill()
    while not process.is_gone:  # a zombie until it is waited for
        time.sleep(0.001)
    child.communicate()
    assert process.is_gone


WATCHED = """
import threading, time
from sightline.engine.watchdog import Watchdog

class Stuck:
    def check(self, keys): threading.Event().wait()
    def get(self, key): return b'{"host": "a", "table": null, "pid": 1, "start": null}'
    set = add = check

watchdog = Watchdog(store=Stuck(), rank=0, size=2, timeout_s=0.3)
watchdog.start()
with watchdog.watch_collective("all_reduce of losses"):
    time.sleep(10_000)
"""


@pytest.mark.processes
def test_a_process_whose_store_does_not_answer_ends_too() -> None:
    """The first process holds the store under SLURM; where it is stopped, nobody can be asked."""
    done = subprocess.run([sys.executable, "-c", WATCHED], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 1
    assert "(distributed.timeout_s = 0.3): rank 0 has waited 2 s in all_reduce of losses at <string>:13" in done.stderr
    assert done.stderr.endswith("the store that the processes meet in (MASTER_ADDR) does not respond either\n")


ABANDON = """\
import os, signal, sys
from sightline.runs.process_folder import LAUNCH, process_folder
with process_folder(LAUNCH) as folder:
    print(folder)
    if sys.argv[1] == "kill":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def make_launch_folder(end: str) -> Path:
    """Let a process make a launcher's folder and end; return the folder."""
    done = subprocess.run(
        [sys.executable, "-c", ABANDON, end], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == (-signal.SIGKILL if end == "kill" else 0)
    return Path(done.stdout.strip())


def test_a_killed_launcher_leaves_no_folder_for_good(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The next launch removes it; a running launcher's, a new one and one that no launcher made are never removed."""
    set_all(variables, {"TMPDIR": str(tmp_path)})
    variables.setattr(tempfile, "tempdir", None)
    (tmp_path / "sightline_launch_new").mkdir()
    (tmp_path / "sightline_launch_old").mkdir()
    os.utime(tmp_path / "sightline_launch_old", (0, 0))  # its launcher was killed before it wrote a record
    (tmp_path / "sightline_launch_link").symlink_to(tmp_path / "my")
    (tmp_path / "my").mkdir()
    killed = make_launch_folder("kill")
    assert killed.parent == tmp_path
    with process_folder(LAUNCH) as running:
        assert not killed.exists()
        assert not make_launch_folder("end").exists()
        names = {running.name, "sightline_launch_new", "sightline_launch_link", "my"}
        assert {path.name for path in tmp_path.iterdir()} == names
    assert not running.exists()


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_report_to_a_launcher_that_was_killed_leaves_no_folder(
    is_gone: bool, variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two processes the first removes the folder, and the second does not make it anew."""
    set_all(variables, {"TMPDIR": str(tmp_path)})
    variables.setattr(tempfile, "tempdir", None)
    with contextlib.nullcontext(make_launch_folder("kill")) if is_gone else process_folder(LAUNCH) as folder:
        for rank in ("0", "1"):
            error_file = folder / rank / "error.json"
            set_all(variables, {"TORCHELASTIC_ERROR_FILE": str(error_file), "SIGHTLINE_LAUNCH_FOLDER": str(folder)})
            report_failure("the cause", exit_code=1)
            assert error_file.exists() != is_gone
            assert folder.exists() != is_gone


ORPHANED = """\
import os, subprocess, sys, time
from sightline.engine.launcher import exit_with_parent
if os.fork() == 0:
    exit_with_parent(int(sys.argv[1]), folder=sys.argv[2])
    time.sleep(10_000)
"""


def test_a_process_whose_launcher_was_killed_removes_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "sightline_launch_1"
    (folder / "attempt_0").mkdir(parents=True)
    script = ORPHANED.replace("sys.argv[1]", "str(os.getppid())")
    subprocess.run([sys.executable, "-c", script, "-", str(folder)], cwd=ROOT, timeout=HANG_S, check=True)
    with limited():
        while folder.exists():
            time.sleep(0.05)


# --- places that are none ---------------------------------------------------------------------------------------------


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
TASK = _slurm(1, 4) | {"MASTER_ADDR": "node1"}


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (TORCHRUN | {"RANK": "5"}, "RANK: found '5', allowed is a whole number from 0 to 1"),
        (TORCHRUN | {"RANK": "-1"}, "RANK: found '-1'"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE: found '0', allowed is a whole number from 1"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE: found 'two', allowed is a whole number"),
        (TORCHRUN | {"WORLD_SIZE": "1\n\x1b[31m"}, r"WORLD_SIZE: found '1\\n\\x1b\[31m', allowed"),
        (TORCHRUN | {"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE: found"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK: found '2'"),
        (TORCHRUN | {"LOCAL_RANK": ""}, "LOCAL_RANK: found ''"),
        (TASK | {"SLURM_PROCID": "4"}, "SLURM_PROCID: found '4', allowed is a whole number from 0 to 3"),
        (TASK | {"SLURM_LOCALID": "x"}, "SLURM_LOCALID: found 'x'"),
    ],
)
def test_a_place_outside_of_the_world_is_refused(
    variables: pytest.MonkeyPatch, place: dict[str, str], says: str
) -> None:
    set_all(variables, place)
    with pytest.raises(UserError, match=f"^environment variable {says}"):
        rank_info_from_environment()


@pytest.mark.parametrize("port", ["0", "99999", "-1", "http"])
def test_a_port_that_is_none_is_refused(variables: pytest.MonkeyPatch, port: str) -> None:
    set_all(variables, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    with pytest.raises(UserError, match=f"^environment variable MASTER_PORT: found '{port}', .* from 1 to 65535$"):
        rendezvous_address()


def test_an_empty_address_is_none(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, {"MASTER_ADDR": "", "MASTER_PORT": "29500"})
    with pytest.raises(UserError, match=r"^MASTER_ADDR and MASTER_PORT must be"):
        rendezvous_address()
    set_all(variables, _slurm(1, 4))
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        rank_info_from_environment()


def test_a_variable_that_is_wrong_ends_the_command_in_one_line(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, {"RANK": "0", "WORLD_SIZE": "0"})
    config = TINY
    ended = run_here("train", config)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "[rank 0] error: environment variable WORLD_SIZE: found '0', allowed is a whole number from 1\n"


def test_a_second_process_of_one_rank_is_refused() -> None:
    store = dist.HashStore()
    first, same = (Watchdog(store=store, rank=1, size=2, timeout_s=1.0) for _ in range(2))
    first.register()
    same.register()  # the same process, which meets the others again
    other = ProcessIdentity("elsewhere", None, 7, "a boot:1")
    store.set("process/0", json.dumps(other.to_dict()))
    with pytest.raises(UserError, match=r"^rank 0 is process 7 on elsewhere already; give every process its own RANK$"):
        Watchdog(store=store, rank=0, size=2, timeout_s=1.0).register()


def test_a_failure_without_a_rank_is_reported(variables: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    set_all(variables, {"WORLD_SIZE": "x"})
    report_failure("the cause", exit_code=2)
    assert capfd.readouterr().err == "[rank ?] error: the cause\n"


def test_a_forked_process_that_leaves_keeps_its_parents_folder() -> None:
    """Its own would be removed, as the folder of a process that nobody forked is."""
    folder = Path(multiprocessing.util.get_temp_dir())
    (folder / "socket").touch()
    child = multiprocessing.get_context("fork").Process(target=exit_process, args=(3,))
    child.start()
    child.join(HANG_S)
    assert child.exitcode == 3
    assert (folder / "socket").exists()
    script = (
        "import multiprocessing.util, sys; from sightline.engine.failures import exit_process; "
        "print(multiprocessing.util.get_temp_dir(), flush=True); exit_process(3)"
    )
    left = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert left.returncode == 3
    assert Path(left.stdout.strip()).name.startswith("pymp-")
    assert not Path(left.stdout.strip()).exists()
