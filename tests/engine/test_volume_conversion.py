"""Published weights of V2V-PoseNet as a run: the port's outputs come back, in either order of axes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.api import load_run
from tests.command import Outcome, refuse, run_here
from tests.golden_parity import assert_near_largest, load_golden, stored_part

LAYOUT = "dragonbook_v2v"


def convert(state: dict[str, Tensor], folder: Path, *words: object) -> Outcome:
    """A run of the state as the port saves it, beside an optimiser and an epoch; on synthetic hands, in float64."""
    file = folder / "weights.pth"
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}, "epoch": 3}, file)
    return run_here(
        "data", "convert-weights", file, "--layout", LAYOUT, "--data", "synthetic_hands", "--to", folder / "run",
        "train.precision=float64", *words,
    )  # fmt: skip


def answer(run: Path, volume: Tensor) -> Tensor:
    model = load_run(run).model.double().eval()
    with torch.no_grad():
        return model(volume=volume)["likelihood"]


@pytest.mark.shared
@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_the_port_s_outputs_come_back(shared: Path, tmp_path: Path, axes: str) -> None:
    golden = load_golden(shared, "v2v_s16_j21", area="pose")
    state = golden.state()
    if axes == "zyx":
        state = {name: value.transpose(-1, -3) if value.ndim == 5 else value for name, value in state.items()}
    outcome = convert(state, tmp_path, "--axes", axes)
    assert outcome.code == 0, outcome.err
    found, label = answer(tmp_path / "run", golden.tensor("in.x")), "eval.out.heat"
    assert_near_largest(stored_part(golden, label, found), golden.tensor(label), 1e-9, label)


@pytest.mark.shared
def test_the_wrong_order_is_another_network(shared: Path, tmp_path: Path) -> None:
    golden = load_golden(shared, "v2v_s16_j21", area="pose")
    assert convert(golden.state(), tmp_path, "--axes", "zyx").code == 0
    assert (answer(tmp_path / "run", golden.tensor("in.x")) - golden.tensor("eval.out.heat")).abs().max() > 1e-3


@pytest.mark.shared
def test_other_joints_are_named(shared: Path, tmp_path: Path) -> None:
    """Sixteen of them, for a data set of 21."""
    outcome = convert(load_golden(shared, "v2v_s24_j16", area="pose").state(), tmp_path)
    assert outcome.code == 2
    assert "num_joints = 16" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.shared
def test_an_order_of_axes_is_of_volumes_alone(shared: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(load_golden(shared, "pointnet_simple_wang").state(), file)
    words = ("--layout", "wangyueft_pointnet", "--data", "synthetic_shapes", "--to", tmp_path / "run", "--axes", "zyx")
    outcome = refuse("data", "convert-weights", file, *words)
    assert "has no kernels over volumes" in outcome
