"""Runs of several processes whose gradients travel during the pass: bit for bit those whose gradients wait for its end.

Micro-batches, clipping, averaged weights, bf16, synchronised batch norm, quantised weights, a teacher, frozen parts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.runs.broken_off import Forked, differences
from tests.runs.small import PLAIN, SMALL

pytestmark = pytest.mark.processes

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
SIZES = ("train.batch_size=12", "train.epochs=2", "train.tail=drop")  # two samples at least on each of three processes
WORDS = (*(word for word in SMALL if not word.startswith("train.")), *SIZES, "--device", "cpu", "--no-check")
PLUGIN = ROOT / "tests" / "runs" / "summed_afterwards.py"
MANY = ("train.micro_batches=2", "train.clip_norm=0.5", "train.ema_decay=0.9", "train.steps=6")
FROZEN = "optimizer.frozen=[{modules: encode, until_epoch: 1}, {modules: feature_alignment}]"


def assert_same_bits(folder: Path, words: tuple[str, ...], num_processes: int) -> None:
    runs = {name: folder / name for name in ("early", "afterwards")}
    for name, run in runs.items():
        command = ["train", str(CONFIG), *WORDS, *words, "--plugin", str(PLUGIN), "--out", str(run)]
        environment = {"AFTERWARDS": str(int(name == "afterwards"))}
        code, text = Forked(
            command, folder / f"{name}.log", num_processes=num_processes, environment=environment
        ).wait()
        assert code == 0, text
    assert differences(runs["early"], runs["afterwards"]) == []


@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.long)])
def test_micro_batches_clipping_averages_and_frozen_parts_keep_their_bits(tmp_path: Path, num_processes: int) -> None:
    assert_same_bits(tmp_path, (*MANY, FROZEN), num_processes)


@pytest.mark.parametrize("num_processes", [pytest.param(2, marks=pytest.mark.long), 3])
def test_bf16_with_synchronised_batch_norm_keeps_its_bits(tmp_path: Path, num_processes: int) -> None:
    words = (*PLAIN, "train.precision=bf16", "distributed.sync_batch_norm=true", "train.steps=6")
    assert_same_bits(tmp_path, words, num_processes)
