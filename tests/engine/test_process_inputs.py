"""Processes that start from different things: each difference is named, on every process, in the same line."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sightline.areas.clouds.sets.cloud_folder import CloudFolder
from sightline.config import read_config
from sightline.contract.plugins import load_plugins
from sightline.engine import process_inputs
from sightline.engine.process_inputs import ProcessesDifferError, describe_command, describe_process, find_differences
from sightline.engine.run_data import build_data, describe_data
from tests.cases import run_each
from tests.command import without_progress
from tests.data.clouds.cloud_writers import prepare_folder, write_folder
from tests.limits import ENDLESS_S, HANG_S
from tests.processes import ROOT, forked, free_port, print_to
from tests.runs.small import PLAIN, small_config

CPU = torch.device("cpu")
MODELNET = ROOT / "configs" / "classify" / "modelnet40_pointnet.yaml"


def compare(*described: Mapping[str, Any], times: int = 1) -> str:
    """Compare what these processes describe, each in a thread; return their line."""
    store = dist.HashStore()
    lines: dict[int, str] = {}

    def run(rank: int, values: Mapping[str, Any]) -> None:
        for _ in range(times):
            lines[rank] = find_differences(store, rank=rank, size=len(described), values=values)

    threads = [threading.Thread(target=run, args=each) for each in enumerate(described)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert sorted(lines) == [*range(len(described))]
    assert len(set(lines.values())) == 1, "the same line on all"
    return lines[0]


def train(*overrides: str) -> dict[str, Any]:
    return describe_command("train", small_config(*PLAIN, *overrides), resume=None)


@run_each(
    "override, line",
    [
        ("seed=5", "seed is 0 on rank 0 and 5 on rank 1"),
        ("optimizer.lr=5e-3", "optimizer.lr is 0.002 on rank 0 and 0.005 on rank 1"),
        ("train.epochs=5", "train.epochs is 2 on rank 0 and 5 on rank 1"),
        ("data.train_size=50", "data.train_size is 60 on rank 0 and 50 on rank 1"),
        ("distributed.timeout_s=30", "distributed.timeout_s is 600.0 on rank 0 and 30.0 on rank 1"),
        ("checkpoint.every_steps=2", "checkpoint.every_steps is null on rank 0 and 2 on rank 1"),
        ("transforms.evaluate=[{name: jitter}]", "transforms.evaluate is [] on rank 0 and absent on rank 1; "),
        ("model.dropout=0.1", "model.dropout is 0.5 on rank 0 and 0.1 on rank 1"),
        ("loader.workers=2", ""),
        ("log.gradients=true", ""),
    ],
)
def test_a_key_that_differs_is_named_with_both_values(override: str, line: str) -> None:
    found = compare(train(), train(override))
    assert found.startswith(line) if line else found == "", found
    assert found == line or line.endswith("; ")


def test_folders_may_differ() -> None:
    one, other = (
        describe_command("train", read_config(MODELNET, [f"data.root={root}"])) for root in ("/data1/set", "/mnt/set")
    )
    assert compare(one, other) == ""


@run_each(
    "described, line",
    [
        ([{"a": 1}] * 3, ""),
        ([{"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}, {"a": 3}], "a is 1 on rank 0 and 2 on ranks 1, 3 and 3 on rank 4"),
        ([{"a": 1}, {}], "a is 1 on rank 0 and absent on rank 1"),
        ([{}, {"a": None}], "a is absent on rank 0 and null on rank 1"),
        ([{"b": 1, "a": 1}, {"a": 2, "b": 2}], "b is 1 on rank 0 and 2 on rank 1; a is 1 on rank 0 and 2 on rank 1"),
        ([dict.fromkeys("abcdef", 1), {"f": 1}], "; d is 1 on rank 0 and absent on rank 1 and 1 more"),
        ([{"a": "x" * 99}, {"a": "x" * 98 + "y"}], f"a is {'x' * 30}... (SHA-256 "),
        ([{"a": "1" * 64}, {"a": "2" * 64}], f"a is {'1' * 16}... on rank 0 and {'2' * 16}... on rank 1"),
        ([{"command": "train", "seed": 1}, {"command": "check"}], "command is train on rank 0 and check on rank 1"),
        ([{"command": "train", "seed": 1}, {}], "command is train on rank 0 and absent on rank 1"),
    ],
)
def test_values_are_compared_over_all_ranks(described: Sequence[Mapping[str, Any]], line: str) -> None:
    assert line in compare(*described, times=3)
    assert bool(line) == bool(compare(*described))


def test_another_version_of_sightline_or_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = describe_process(CPU)
    monkeypatch.setattr(process_inputs, "read_version", lambda name: "0.0.1")
    monkeypatch.setattr(torch, "__version__", "1.0+cpu")
    found = compare(ours, describe_process(CPU))
    assert f"sightline is {ours['sightline']} on rank 0 and 0.0.1 (code " in found
    assert f"torch is {ours['torch']} on rank 0 and 1.0+cpu on rank 1" in found


def test_a_checkout_of_the_same_version_that_was_changed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_inputs, "digest_package", process_inputs.digest_package.__wrapped__)
    described = []
    for text in ("A = 1\n", "A = 2\n"):
        (tmp_path / "part.py").write_text(text)
        (tmp_path / "engine").mkdir(exist_ok=True)
        monkeypatch.setattr(process_inputs, "__file__", str(tmp_path / "engine" / "process_inputs.py"))
        described.append(describe_process(CPU))
    assert compare(*described).startswith("sightline is ")


def test_a_plugin_and_its_modules_are_compared(tmp_path: Path) -> None:
    """Here `beside` differs, and so does nothing else; the folders of the two machines do not matter."""
    described = []
    for machine, number in (("one", 1), ("two", 2)):
        (tmp_path / machine).mkdir()
        (tmp_path / machine / "h3_parts.py").write_text("import h3_beside\n")
        (tmp_path / machine / "h3_beside.py").write_text(f"A = {number}\n")
        load_plugins([tmp_path / machine / "h3_parts.py"])
        described.append(train())
    assert compare(*described).startswith("SHA-256 of the plugin file h3_beside.py is ")
    assert "h3_parts" not in compare(*described)


def test_data_of_other_sizes_facts_and_contents_are_named() -> None:
    ours, theirs = (build_data(small_config(f"data.train_size={size}")) for size in (60, 50))

    def describe(data: Any, **facts: object) -> dict[str, Any]:
        return describe_data({**data.facts, **facts}, data.train, data.selection, data.test)

    assert compare(describe(ours), describe(ours)) == ""
    assert compare(describe(ours), describe(theirs)).startswith("number of train samples is ")
    assert compare(describe(ours), describe(ours, up_axis="x")).startswith("fact up_axis is ")
    changed = {**describe(ours), "fingerprint of the data": "another"}
    assert compare(describe(ours), changed) == (
        "fingerprint of the data is synthetic_shapes 1 on rank 0 and another on rank 1"
    )


# --- real processes --------------------------------------------------------------------------------------------------


def run_pair(folder: Path, *words: Sequence[str]) -> list[tuple[int | None, str]]:
    """Run a command line per rank, as two launchers would on two machines: exit codes and what each printed."""
    port, processes = free_port(), list[BaseProcess]()
    for rank, own in enumerate(words):
        variables = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(len(words)), "OMP_NUM_THREADS": "1"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(forked(_run, [*own], str(folder / f"{rank}.log"), variables))
    for process in processes:
        process.join(HANG_S)
        process.kill()
    return [(process.exitcode, (folder / f"{rank}.log").read_text()) for rank, process in enumerate(processes)]


def _run(words: list[str], log: str, variables: Mapping[str, str]) -> None:
    """Run a command line in this process; who waits for others that will not come again waits without end."""
    from sightline.cli import main
    from sightline.engine import distributed

    distributed._MAX_TELLING_S = ENDLESS_S
    print_to(log)
    os.environ.update(variables)
    sys.argv = ["sightline", *words]
    main()


@pytest.mark.processes
def test_a_stale_config_on_one_machine_ends_every_process_with_one_line(tmp_path: Path) -> None:
    config = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
    words = ["train", str(config), "--no-check", "--device=cpu", "--out", str(tmp_path / "run")]
    for rank, (code, text) in enumerate(run_pair(tmp_path, words, [*words, "optimizer.lr=5e-3"])):
        assert code == 2, text
        error = ProcessesDifferError("optimizer.lr is 0.002 on rank 0 and 0.005 on rank 1")
        assert without_progress(text) == f"[rank {rank}] error: {error}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_a_data_folder_that_holds_something_else_on_one_machine_ends_every_process(tmp_path: Path) -> None:
    """Each has a folder of its own; the same files from another source may be in it, but no others."""
    source = write_folder(tmp_path / "source")
    same = Path(shutil.copytree(source, tmp_path / "same"))
    manifests = [
        prepare_folder(source, tmp_path / "first"),
        prepare_folder(same, tmp_path / "copied"),
        prepare_folder(source, tmp_path / "other", seed=1),
    ]
    first, copied, other = (CloudFolder(split="train", root=manifest["root"]) for manifest in manifests)
    assert first.content_sha256 == copied.content_sha256
    words = ["train", str(MODELNET), "--no-check", "--device=cpu", "--out", str(tmp_path / "run")]
    folders = [[*words, f"data={{name: cloud_folder, root: {tmp_path / name}}}"] for name in ("first", "other")]
    for code, text in run_pair(tmp_path, *folders):
        assert code == 2, text
        assert (
            f"fingerprint of the data is {first.content_sha256[:16]}... on rank 0 and {other.content_sha256[:16]}"
            in text
        )
        assert text.count("error: ") == 1
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
@pytest.mark.parametrize("mistaken", [0, 2])
def test_a_wrong_command_line_of_one_ends_the_others(tmp_path: Path, mistaken: int) -> None:
    """As tasks of a scheduler, which ends none of them; also if it is the one that all connect to."""
    config = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
    words = ["train", str(config), "--no-check", "--device=cpu", "--out", str(tmp_path / "run")]
    commands = [[*words, "--batch"] if rank == mistaken else words for rank in range(3)]
    for rank, (code, text) in enumerate(run_pair(tmp_path, *commands)):
        expected = f"rank {mistaken} ended before all processes had met; it says why itself"
        assert (code == 2 and "--batch" in text) if rank == mistaken else (code == 1 and expected in text), (rank, text)
        assert text.count("error: ") == 1
    assert not (tmp_path / "run").exists()
