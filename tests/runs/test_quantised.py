"""Runs whose config quantises weights: from `init` to checkpoints by plain names, resumed, evaluated, checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sightline.compression.parametrised import dense_state_dict
from sightline.compression.weights import quantisable_weights
from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.run_loading import open_trained
from tests.command import refuse, run_here, succeed
from tests.processes import ROOT
from tests.runs.small import PLAIN, SMALL
from tests.trained import break_off

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
WORDS = (*SMALL, *PLAIN, "--device", "cpu")
ROUNDED = "head.2.weight"


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("floats") / "run"
    succeed("train", CONFIG, *WORDS, "--no-check", "--out", run)
    return run


@pytest.fixture(scope="module")
def policy(floats: Path) -> Path:
    """Codebooks of three bits, but a linear grid and a float among them, and a layer whose input is quantised."""
    names = [weight.name for weight in quantisable_weights(open_trained(floats).model)]
    choices = {name: {"kind": "codebook", "bits": 3} for name in names}
    choices |= {names[0]: {"kind": "linear", "bits": 6}, names[1]: {"kind": "fp16"}}
    choices[ROUNDED] |= {"activation": {"bits": 5, "range": 1.5, "signed": False}}
    file = floats.parent / "policy.json"
    file.write_text(json.dumps(choices))
    return file


@pytest.fixture(scope="module")
def run(floats: Path, policy: Path) -> Path:
    """Trained after the checks of every training, without a finding above a note."""
    path = floats.parent / "quantised"
    words = ("checkpoint.keep_last=2", f"init={{from: {floats}}}")
    done = succeed("train", CONFIG, *WORDS, *words, f"compress={{policy: {policy}}}", "--out", path)
    assert " error " not in done.err
    return path


def test_weights_are_quantised_after_init_and_trained(floats: Path, policy: Path, run: Path) -> None:
    start = build(read_config(run / "config.yaml"), World()).job.model
    trained, given = open_trained(run).model, load_file(floats / "checkpoints" / "last" / "model.safetensors")
    state, before = dense_state_dict(trained), dense_state_dict(start)
    for name, choice in json.loads(policy.read_text()).items():
        if choice["kind"] == "codebook":
            assert state[name].unique().numel() <= 8
            assert (before[name] - given[name]).abs().mean() < 0.2 * given[name].std()
        assert not torch.equal(state[name], before[name])
    assert torch.equal(dense_state_dict(start)["head.0.norm.weight"], given["head.0.norm.weight"])


def test_the_input_of_a_layer_is_rounded_in_the_trained_run(run: Path) -> None:
    model, seen = open_trained(run).model, []
    layer = model.get_submodule(ROUNDED.removesuffix(".weight"))
    layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    torch.manual_seed(0)
    model.eval()(points=torch.rand(20, 32, 3) - 0.5)
    codes = seen[0] / (1.5 / 31)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert 2 < len(codes.round().unique()) <= 32
    assert codes.min() == 0


def test_a_run_that_was_broken_off_ends_with_the_same_bits(
    floats: Path, policy: Path, run: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken, symlinks=True)
    last = max((broken / "checkpoints").glob("step_*"))
    expected = (last / "model.safetensors").read_bytes()
    break_off(broken)
    words = ("checkpoint.keep_last=2", f"init={{from: {floats}}}", f"compress={{policy: {policy}}}", "--no-check")
    succeed("train", CONFIG, *WORDS, *words, "--no-check", "--out", broken, "--resume", "auto")
    assert (last / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    ("policy_text", "expected"),
    [
        ("{encode.9.weight: {kind: codebook, bits: 4}}", "no parameter 'encode.9.weight'; did you mean"),
        (
            "{head.2.weight: {kind: fp32, activation: {bits: 1, range: 1.0, signed: true}}}",
            "head.2.weight.activation.bits: found 1, allowed is a whole number from 2 to 8",
        ),
        ("nowhere.json", "nowhere.json"),
    ],
)
def test_policies_that_do_not_fit_are_refused(policy_text: str, expected: str, tmp_path: Path) -> None:
    done = refuse("train", CONFIG, *WORDS, f"compress={{policy: {policy_text}}}", "--out", tmp_path / "run")
    assert expected in done
    assert "Traceback" not in done
    assert not (tmp_path / "run").exists()


def test_a_layer_that_is_never_called_cannot_have_its_input_rounded(floats: Path, tmp_path: Path) -> None:
    """Found by the checks before a run begins, by the first step without them, and by the first pass in evaluation."""
    policy = "{encode.4.linear.weight: {kind: fp32, activation: {bits: 4, range: 1.0, signed: true}}}"
    words = ("train", CONFIG, *WORDS, f"compress={{policy: {policy}}}", "--out")
    checked, unchecked = run_here(*words, tmp_path / "a"), run_here(*words, tmp_path / "b", "--no-check")
    assert (checked.code, unchecked.code) == (1, 2)
    for done in (checked, unchecked):
        assert "encode.4.linear.weight: activation: the layer is not called in training" in done.err
        assert "build the model with `fused: false`" in done.err
    assert "config path transforms or model.fused" in checked.err
    assert "first-step error cfg.contract" in checked.err
    assert not (tmp_path / "a").exists()
    shutil.copytree(floats, tmp_path / "c", symlinks=True)
    config = tmp_path / "c" / "config.yaml"
    config.write_text(
        f"{config.read_text()}compress: {{policy: {policy}, gradient: mean}}\n".replace("compress: null\n", "")
    )
    done = run_here("evaluate", tmp_path / "c", "--device", "cpu")
    assert (done.code, "not called in evaluation" in done.err) == (2, True), done.err
