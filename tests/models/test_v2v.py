"""V2V-PoseNet and ScaleNet: the port's numbers, a reading in NumPy, memory formats, and what they refuse."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.areas.pose.refiner import ScaleNet
from sightline.areas.pose.v2v import V2V, HeatmapMSE, ResidualBlock3d, UpsampleBlock3d, V2VSmall
from sightline.ops.voxels.heat_maps import soft_argmax
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
    rule_made_state,
    stored_part,
)
from tests.marks import long_but

# --- V2V: its start, memory formats, the PyTorch port's numbers -------------------------------------------------------


LAYOUT = "dragonbook_v2v"
TAPS = {
    "front (B,32,S/2)": "front",
    "encoder 64 (S/4)": "down",
    "encoder 128 (S/8)": "middle.1",
    "decoder up2 (64)": "inner_up",
    "back": "back",
}


def keep_first(seen: dict[str, Tensor], label: str, module: nn.Module, given: object, value: Tensor) -> None:
    seen.setdefault(label, value)


@pytest.mark.parametrize(("model", "side", "multiple"), [(V2V, 44, 8), (V2VSmall, 42, 4)])
def test_a_side_that_cannot_be_halved_is_refused(model: type[nn.Module], side: int, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"a side of {side} voxels is not a multiple of {multiple}"):
        model(num_joints=2)(volume=torch.zeros(1, 1, side, side, side))


def test_weights_start_as_published() -> None:
    for module in V2V(num_joints=21).modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            assert not module.bias.any()  # type: ignore[union-attr]
            if module.weight.numel() > 5000:  # the deviation of an estimate of it: 1e-3 / sqrt(2 n), five of which
                deviation = module.weight.std().item()
                assert abs(deviation - 1e-3) < 5 * 1e-3 / (2 * module.weight.numel()) ** 0.5


@pytest.mark.parametrize("model", [V2V, V2VSmall])
def test_channels_last_changes_no_number(model: type[nn.Module]) -> None:
    """Value, gradients and running statistics; another memory format rounds otherwise."""
    plain = model(num_joints=3).double()
    for parameter in plain.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    other = model(num_joints=3, channels_last=True).double()
    other.load_state_dict(plain.state_dict())
    volume = (torch.rand(2, 1, 16, 16, 16) > 0.9).double()
    answers = []
    for each in (plain, other):
        answers.append(each(volume=volume)["likelihood"])
        (answers[-1] * torch.linspace(0, 1, 512, dtype=torch.float64).view(8, 8, 8)).sum().backward()
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-10, atol=1e-12)
    largest = max(p.grad.abs().max().item() for p in plain.parameters())
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert (one.grad - two.grad).abs().max() <= 1e-11 * largest, name
    for (name, one_buffer), two_buffer in zip(plain.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one_buffer, two_buffer, rtol=1e-12, atol=1e-14, msg=name)


def test_channels_last_reaches_the_convolutions() -> None:
    model = V2VSmall(num_joints=3, channels_last=True).eval()
    seen: list[bool] = []
    model.middle[1].first.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last_3d))
    )
    model(volume=torch.rand(2, 1, 16, 16, 16))
    assert seen == [True]
    assert model.middle[1].first.weight.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.shared
@pytest.mark.parametrize("name", long_but(["v2v_s16_j21"], ["v2v_s16_j21", "v2v_s24_j16"]))
def test_agrees_with_the_port(shared: Path, name: str) -> None:
    golden = load_golden(shared, name, area="pose")
    volume, target = golden.tensor("in.x"), golden.tensor("in.target")
    visible = torch.ones(target.shape[:2], dtype=torch.bool)
    model = V2V(num_joints=target.shape[1]).double()
    model.load_state_dict(convert_state_dict(golden.state(), LAYOUT))
    loss, seen = HeatmapMSE(), {}
    for label, place in TAPS.items():
        model.get_submodule(place).register_forward_hook(partial(keep_first, seen, label))
    model.back.register_forward_hook(
        lambda module, given, value: keep_first(seen, "decoder out", module, given, given[0])
    )
    for mode in each_mode(model):
        likelihood = model(volume=volume)["likelihood"]
        total = loss(likelihood=likelihood, heatmaps=target, visible=visible)
        mean_loss = total / loss.count(heatmaps=target, visible=visible)
        assert_outputs(golden, mode, {"heat": likelihood}, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, LAYOUT))
    for label in golden.info["eval_mids"]:
        value = seen[label.removeprefix("eval.mid.")]
        assert_near_largest(stored_part(golden, label, value), golden.tensor(label), 1e-10, label)


@pytest.mark.shared
def test_soft_argmax_agrees_with_the_integral_port(shared: Path) -> None:
    """V2V under a soft-argmax: coordinates, and gradients of the port's loss of maps and coordinates."""
    golden = load_golden(shared, "v2v_integral_s16_j5", area="pose")
    entries = [entry for entry in golden.info["state"] if entry["kind"] != "constant"]  # all but the grids of cells
    state = {key.removeprefix("basic_model."): value for key, value in rule_made_state(entries).items()}
    model = V2V(num_joints=5).double()
    model.load_state_dict(convert_state_dict(state, LAYOUT))
    for mode in each_mode(model):
        maps = model(volume=golden.tensor("in.x"))["likelihood"]
        cells, log_shares = soft_argmax(maps, axes="xyz"), maps.flatten(2).log_softmax(dim=2)
        of_maps = -(golden.tensor("in.target_heat").flatten(2) * log_shares).sum(dim=2).mean()
        loss = 0.5 * of_maps + 0.5 * (cells - golden.tensor("in.target_coord")).abs().mean()
        assert_outputs(golden, mode, {"heatmap": maps, "coord": cells}, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key.removeprefix("basic_model."), LAYOUT))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["v2v_res_block", "v2v_up_block"])
def test_blocks_agree_with_the_port(shared: Path, name: str) -> None:
    golden = load_golden(shared, name, area="pose")
    is_residual = name == "v2v_res_block"
    block = (
        ResidualBlock3d(in_channels=4, out_channels=6)
        if is_residual
        else UpsampleBlock3d(in_channels=4, out_channels=3)
    ).double()
    inside = "front_layers.2." if is_residual else "encoder_decoder.decoder_upsample2."
    ours = "front.0." if is_residual else "inner_up."

    def our_name(key: str) -> str | None:
        found = translate_key(inside + key, LAYOUT)
        return None if found is None else found.removeprefix(ours)

    state = convert_state_dict({inside + key: value for key, value in golden.state().items()}, LAYOUT)
    block.load_state_dict({key.removeprefix(ours): value for key, value in state.items()})
    for mode in each_mode(block):
        out = block(golden.tensor("in.x"))
        loss = (out * golden.tensor("in.w")).sum()
        assert_outputs(golden, mode, {"out": out}, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, block, our_name)


# --- ScaleNet: the crops it makes itself, and what it refuses ---------------------------------------------------------


def convolved(picture: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """A valid convolution by windows: channels first, no library's convolution."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    windows = np.lib.stride_tricks.sliding_window_view(picture, weight.shape[2:], axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows, weight) + bias[:, None, None]


def pooled(picture: np.ndarray, size: int) -> np.ndarray:
    height, width = (extent // size for extent in picture.shape[1:])
    cut = picture[:, : height * size, : width * size]
    return cut.reshape(len(picture), height, size, width, size).max(axis=(2, 4))


def test_the_answer_is_that_of_a_numpy_reading() -> None:
    """Crops of the middle, not resized; convolution, pooling, rectification, thrice; two wide layers; a linear one."""
    model = ScaleNet().double().eval()
    crop = torch.rand(1, 1, 128, 128, dtype=torch.float64) * 2 - 1
    seen = []
    for branch, margin, pools in zip(model.branches, (0, 32, 48), ((4, 2, 1), (2, 2, 1), (2, 1, 1)), strict=True):
        picture = crop[0].numpy()[:, margin : 128 - margin, margin : 128 - margin]
        for layer, size in zip([each for each in branch if isinstance(each, nn.Conv2d)], pools, strict=True):
            picture = np.maximum(pooled(convolved(picture, layer), size), 0)
        seen.append(picture.ravel())
    values = np.concatenate(seen)
    layers = [layer for layer in model.head if isinstance(layer, nn.Linear)]
    for place, layer in enumerate(layers):
        values = layer.weight.detach().numpy() @ values + layer.bias.detach().numpy()
        values = np.maximum(values, 0) if place < 2 else values
    found: Tensor = model(crop=crop)["offset"]
    np.testing.assert_allclose(found[0].detach().numpy(), values, rtol=0, atol=1e-12)


def test_values_are_dropped_while_training_alone() -> None:
    model, crop = ScaleNet(dropout=0.5), torch.rand(1, 1, 128, 128)
    assert not torch.equal(model(crop=crop)["offset"], model(crop=crop)["offset"])
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 2


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop: found the shape \(2, 1, 96, 96\), scale_net takes \(B, 1, 128, 128\)"):
        ScaleNet()(crop=torch.zeros(2, 1, 96, 96))
