"""Runs of several processes whose gradients travel during the pass: bit for bit those whose gradients wait for its end.

Micro-batches, clipping, averaged weights, bf16, synchronised batch norm, quantised weights, a teacher, frozen parts.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.engine.run_loading import open_trained
from sightline.parts.quantisation.linear import quantisable_weights
from tests.command import succeed
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


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("gradients") / "first"
    succeed("train", CONFIG, *WORDS, *PLAIN, "train.steps=2", "--out", run)
    return run


@pytest.fixture(scope="module")
def quantised(first: Path) -> tuple[str, ...]:
    """Codebooks with the mean gradient, and a teacher: the run itself in floats."""
    names = [weight.name for weight in quantisable_weights(open_trained(first).model)]
    policy = first.parent / "policy.json"
    policy.write_text(json.dumps({name: {"kind": "codebook", "bits": 3} for name in names}))
    model, losses = (
        PLAIN[0],
        "losses=[{name: cross_entropy, weight: 0.3}, {name: distillation, weight: 0.7, temperature: 3.0}]",
    )
    init = f"init={{from: {first}}}"
    return model, losses, init, f"teacher={{from: {first}}}", f"compress={{policy: {policy}, gradient: mean}}"


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


def test_a_quantised_student_keeps_its_bits(tmp_path: Path, quantised: tuple[str, ...]) -> None:
    assert_same_bits(tmp_path, (*quantised, "train.steps=6"), 2)
