"""Runs whose config quantises weights: from `init` to checkpoints by plain names, resumed, evaluated, checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.loading import open_trained
from sightline.layers.quantisation.layers_of import quantisable
from sightline.layers.quantisation.parametrised import dense
from tests.command import run_here
from tests.processes import ROOT
from tests.runs.small import SMALL
from tools.before_after import break_off

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
WORDS = (*SMALL, "--device", "cpu")


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("floats") / "run"
    done = run_here("train", CONFIG, *WORDS, "--no-check", "--out", run)
    assert done.code == 0, done.err
    return run


@pytest.fixture(scope="module")
def policy(floats: Path) -> Path:
    """Codebooks of three bits, but a linear grid and a float among them."""
    names = [weight.name for weight in quantisable(open_trained(floats).model)]
    choices = {name: {"kind": "codebook", "bits": 3} for name in names}
    choices |= {names[0]: {"kind": "linear", "bits": 6}, names[1]: {"kind": "fp16"}}
    file = floats.parent / "policy.json"
    file.write_text(json.dumps(choices))
    return file


@pytest.fixture(scope="module")
def run(floats: Path, policy: Path) -> Path:
    """Trained after the checks of every training, without a finding above a note."""
    path = floats.parent / "quantised"
    words = ("checkpoint.keep_last=2", f"init={{from: {floats}}}")
    done = run_here("train", CONFIG, *WORDS, *words, f"compress={{policy: {policy}}}", "--out", path)
    assert done.code == 0, done.err
    assert " error " not in done.err
    return path


def test_weights_are_quantised_after_init_and_trained(floats: Path, policy: Path, run: Path) -> None:
    start = build(read_config(run / "config.yaml"), World()).job.model
    trained, given = open_trained(run).model, load_file(floats / "checkpoints" / "last" / "model.safetensors")
    state, before = dense(trained), dense(start)
    for name, choice in json.loads(policy.read_text()).items():
        if choice["kind"] == "codebook":
            assert state[name].unique().numel() <= 8
            assert (before[name] - given[name]).abs().mean() < 0.2 * given[name].std()
        assert not torch.equal(state[name], before[name])
    assert torch.equal(dense(start)["input_alignment.head.0.norm.weight"], given["input_alignment.head.0.norm.weight"])


def test_checkpoints_have_plain_names_and_the_run_needs_no_policy_file(policy: Path, run: Path, tmp_path: Path) -> None:
    names = load_file(run / "checkpoints" / "last" / "model.safetensors").keys()
    assert not [name for name in names if "parametrizations" in name]
    assert {"encode.0.linear.weight", "encode.0.linear.weight.labels"} <= names
    moved = tmp_path / "moved"
    shutil.copytree(run, moved, symlinks=True)
    policy.rename(policy.with_suffix(".away"))
    try:
        done = run_here("evaluate", moved, "--device", "cpu", "--json", tmp_path / "found.json")
    finally:
        policy.with_suffix(".away").rename(policy)
    assert done.code == 0, done.err
    found, recorded = (json.loads(file.read_text()) for file in (tmp_path / "found.json", run / "final.json"))
    assert found["metrics"] == recorded["metrics"]
    assert run_here("check", moved, "--device", "cpu").code == 0


def test_a_run_that_was_broken_off_ends_with_the_same_bits(
    floats: Path, policy: Path, run: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken, symlinks=True)
    last = max((broken / "checkpoints").glob("step_*"))
    expected = (last / "model.safetensors").read_bytes()
    break_off(broken)
    words = ("checkpoint.keep_last=2", f"init={{from: {floats}}}")
    done = run_here(
        "train", CONFIG, *WORDS, *words, f"compress={{policy: {policy}}}", "--out", broken, "--resume", "auto"
    )
    assert done.code == 0, done.err
    assert (last / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    ("policy_text", "expected"),
    [
        ("{encode.9.weight: {kind: codebook, bits: 4}}", "no parameter 'encode.9.weight'; did you mean"),
        (
            "{encode.0.linear.weight: {kind: codebook}}",
            "encode.0.linear.weight: bits: is required and missing; give 1 to 8",
        ),
        ("{encode.0.linear.weight: {kind: codebok, bits: 4}}", "compress.policy"),
        ("nowhere.json", "nowhere.json"),
    ],
)
def test_policies_that_do_not_fit_are_refused(policy_text: str, expected: str, tmp_path: Path) -> None:
    done = run_here("train", CONFIG, *WORDS, f"compress={{policy: {policy_text}}}", "--out", tmp_path / "run")
    assert done.code == 2
    assert expected in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()
