"""Several processes by `--processes` and by other launchers: what the suite asks of one start of each kind, of more."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sightline.engine.distributed import World
from tests.command import succeed, without_progress
from tests.processes import ROOT, free_port
from tests.runs.broken_off import Bench, assert_all_end, differences, run_forked
from tests.runs.lidar_steps import run_steps
from tests.runs.test_lidar import assert_processes_are_one
from tests.runs.test_processes import (
    OWN_LINES,
    Trained,
    assert_hanging_is_named,
    assert_same_trace,
    command,
    error_of,
    failed,
    trainer,
    words_of,
)
from tests.runs.test_resume import (
    OVERRIDES,
    Launched,
    assert_resumes,
    stopped_step,
    unbroken_of,
    wait_for_step,
)
from tests.trained import copy_run

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    return trainer(folder)


def test_two_processes_have_the_loss_trace_of_one_with_graphs(trained: Trained) -> None:
    assert_same_trace(trained, "dgcnn")


def test_two_processes_with_uneven_scans_are_one(tmp_path: Path) -> None:
    assert_processes_are_one(2, run_steps(World()), tmp_path / "found.json")


def test_two_processes_give_the_features_and_figures_of_one(tmp_path: Path) -> None:
    """The parts of 72 and 36 clouds are batches of 10: eight and four of them, the last ones shorter."""
    run, file = copy_run("contrast", tmp_path), tmp_path / "told.json"
    evaluate = ("evaluate", str(run), "--device", "cpu", "--json", str(file))

    def run_two(*words: str) -> Any:
        done = command(*evaluate, *words, "--processes", "2", folder=tmp_path)
        assert done.code == 0, done.err
        return json.loads(file.read_text())

    probe = ("--probe", "svm,knn,linear,few-shot", "ways=3", "shots=2", "queries=2")
    succeed(*evaluate, *probe)
    of_one = json.loads(file.read_text())
    assert run_two(*probe) == of_one  # by the features that one process has saved
    saved = {path.name: path.read_bytes() for path in (run / "features").iterdir()}
    shutil.rmtree(run / "features")
    assert run_two(*probe) == of_one
    assert saved == {path.name: path.read_bytes() for path in (run / "features").iterdir()}
    assert run_two()["metrics"] == json.loads((run / "final.json").read_text())["metrics"]


def test_wandb_changes_no_bit_and_has_one_folder(trained: Trained, folder: Path) -> None:
    pytest.importorskip("wandb")
    plain, _ = trained("pointnet", 2)
    out = folder / "with_wandb"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        words = words_of("pointnet", out, "log.wandb=offline")
        done = command(*words, "--processes", "2", folder=folder, environment={"WANDB_BASE_URL": address})
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody knocked
    assert done.code == 0, done.err
    assert [line for line in without_progress(done.err).splitlines() if not OWN_LINES.match(line)] == []
    assert differences(out, plain) == []
    assert len(list(out.glob("wandb/offline-run-*"))) == 1
    assert not (folder / "wandb").exists()


def run_nodes(folder: Path, *words: list[str]) -> list[tuple[int, str]]:
    """Run a command line on each of torchrun's agents, each with a process of its own, as on as many machines."""
    node = f"--nnodes={len(words)} --nproc-per-node=1 --rdzv-backend=c10d --local-addr=127.0.0.1"
    node += f" --rdzv-endpoint=127.0.0.1:{free_port()}"
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *node.split(), "-m", "sightline", *own],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in words
    ]
    try:
        texts = [agent.communicate(timeout=120)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    return [(agent.returncode, text) for agent, text in zip(agents, texts, strict=True)]


def test_two_nodes_are_two_processes(trained: Trained, folder: Path) -> None:
    """Not one bit differs."""
    local, _ = trained("pointnet", 2)
    out = folder / "nodes"
    (first, text), (second, other_text) = run_nodes(folder, *[words_of("pointnet", out)] * 2)
    assert [first, second] == [0, 0], text + other_text
    assert differences(out, local) == []
    assert ("overall_accuracy" in text) + ("overall_accuracy" in other_text) == 1


def test_a_stale_config_on_one_node_ends_both(folder: Path) -> None:
    words = words_of("pointnet", folder / "stale")
    for code, text in run_nodes(folder, words, [*words, "optimizer.lr=5e-3"]):
        assert code == 1  # of torchrun
        assert (
            len(re.findall(r"(?m)^\[rank \d\] error: processes differ: optimizer.lr is .* on rank 1; .*$", text)) == 1
        )
        assert re.search(r"exitcode +: 2 ", text), text


def test_a_process_that_is_stopped_ends_the_run_and_is_named(folder: Path) -> None:
    assert_hanging_is_named(folder, "SIGSTOP")


def test_a_process_that_leaves_early_ends_the_run(folder: Path) -> None:
    done, _ = failed(folder, "_exit 0")
    assert done.code == 1
    assert re.fullmatch(
        r"error: rank 1 \(process \d+\) ended without a report; this process was in all_reduce of loss counts \(\w+\)",
        error_of(done),
    )


def test_a_plugin_that_breaks_is_shown_once_with_its_line(folder: Path) -> None:
    done, _ = failed(folder, "crash")
    assert done.code == 1
    error = error_of(done)
    # both break in the same step, and the first to be heard is shown; another than the first process is named
    assert re.match(r"error: (rank 1: )?Traceback \(most recent call last\):\n", error)
    assert error.endswith("RuntimeError: the plugin broke")
    assert (error.count("Traceback"), error.count("RuntimeError"), "gloo" in error) == (1, 2, False)


def test_sigint_to_a_launcher_saves_once_and_any_number_of_processes_goes_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.folder / "interrupted"
    words = bench.words(run.name, *OVERRIDES[2], "loader.workers=2", slow=True)
    started = Launched(words, bench.folder / f"{run.name}.log")
    wait_for_step(run, 3, started)
    started.process.send_signal(signal.SIGINT)
    assert started.process.wait(timeout=30) == 128 + signal.SIGINT, started.log.read_text()
    assert_all_end(started.is_ours, within_s=10)
    step = stopped_step(run, started.log.read_text())
    shutil.copytree(run, bench.folder / "alone", symlinks=True)
    assert_resumes(bench, run, unbroken_of(bench)(2), num_processes=2)
    words = bench.words("alone", *OVERRIDES[2], resume="auto")
    code, text = run_forked(words, bench.folder / "alone.log")
    assert code == 0, text
    assert f"resumed at step {step}" in text
    assert "resume-other-size: saved by 2 processes, resumed by 1" in text
