"""Attention of backbones: against public numbers, by hand, and where it stands in each backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from sightline.layers.attention import ATTENTIONS, CBAM, ECA, SimAM, SqueezeExcitation
from tests.cases import run_each
from tests.detect_parity import assert_training, load_detect_golden, load_theirs
from tests.golden_parity import OUTPUT_BOUND, assert_near_largest, rule_made_state
from tests.lidar_parity import theirs_of


def count(layer: nn.Module) -> int:
    return sum(each.numel() for each in layer.parameters())


@run_each(
    "layer, expected",
    [
        (SqueezeExcitation(256), 8_192),
        (SqueezeExcitation(256, bias=True), 8_464),
        (CBAM(256), 8_290),
        (SimAM(256), 0),
        *((ECA(width), taps) for width, taps in ((64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7))),
    ],
)
def test_sizes_are_the_published_ones(layer: nn.Module, expected: int) -> None:
    assert count(layer) == expected


@pytest.mark.parametrize("name", [name for name, make in ATTENTIONS.items() if make is not None])
def test_gradients_are_the_derivatives_and_shapes_stay(name: str) -> None:
    make = ATTENTIONS[name]  # type: ignore[index]
    assert make is not None
    layer = make(16).double()
    image = torch.randn(2, 16, 2, 3, dtype=torch.float64, requires_grad=True)
    assert layer(image).shape == image.shape
    assert torch.autograd.gradcheck(layer, (image,))
    single = layer(image[:, :, :1, :1])  # a map of one pixel
    assert single.shape == (2, 16, 1, 1)
    assert single.isfinite().all()


def test_simple_attention_by_hand() -> None:
    """Of 1, 2, 3, 6: mean 3, squares 4, 1, 0, 9, their sum over 3 is 14 / 3."""
    image = torch.tensor([1.0, 2, 3, 6], dtype=torch.float64).view(1, 1, 2, 2)
    spread = 4 * (14 / 3 + 1e-4)
    expected = [x / (1 + math.exp(-(d / spread + 0.5))) for x, d in ((1, 4), (2, 1), (3, 0), (6, 9))]
    torch.testing.assert_close(SimAM(1)(image).flatten().tolist(), expected, rtol=1e-12, atol=0)


def test_channels_and_positions_are_scaled_one_after_the_other() -> None:
    """With all weights zero each sigmoid is a half."""
    layer = CBAM(16).double()
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    image = torch.randn(1, 16, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(image), image / 4, rtol=1e-12, atol=0)


# --- reference numbers -----------------------------------------------------------------------------------------------


def both_modes(shared: Path, name: str, layer: nn.Module, names: Mapping[str, str]) -> None:
    golden = load_detect_golden(shared, name)
    if name != "attention_cbam":
        load_theirs(golden, layer, names)
    image = golden.tensor("in.x").requires_grad_("train.grad_input.x" in golden.arrays)
    residual = image if name == "attention_cbam" else torch.zeros_like(image)
    theirs_of(golden, (layer(image) + residual).detach(), "eval.out")
    assert_training(golden, layer, names, {"out": layer(image) + residual})
    if image.requires_grad:
        assert image.grad is not None
        assert_near_largest(image.grad, golden.tensor("train.grad_input.x"), OUTPUT_BOUND, "gradient of the input")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "layer", "names"),
    [
        ("attention_se", SqueezeExcitation(32), {"fc.0": "reduce", "fc.2": "expand"}),
        ("attention_simam", SimAM(32), {}),
    ],
)
def test_numbers_are_those_of_crowddetection(
    shared: Path, name: str, layer: nn.Module, names: Mapping[str, str]
) -> None:
    both_modes(shared, name, layer.double(), names)


class _Convolved(nn.Module):
    """Squeeze-and-excitation whose matrices are given as kernels of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(32, 4, 1).double(), nn.Conv2d(4, 32, 1).double()
        self.layer = SqueezeExcitation(32, reduction=8, bias=True).double()

    def forward(self, image: Tensor) -> Tensor:
        tensors = {
            f"{ours}.{leaf}": value.flatten(1) if leaf == "weight" else value
            for theirs, ours in (("down", "reduce"), ("up", "expand"))
            for leaf, value in self.get_submodule(theirs).named_parameters()
        }
        found: Tensor = torch.func.functional_call(self.layer, tensors, (image,))
        return found


@pytest.mark.shared
def test_squeeze_and_excitation_with_biases_is_that_of_crowddetection(shared: Path) -> None:
    golden = load_detect_golden(shared, "attention_se_conv")
    layer, names = _Convolved(), {"down": "down", "up": "up"}
    layer.load_state_dict(rule_made_state(golden.info["state"]), strict=False)
    theirs_of(golden, layer(golden.tensor("in.x")).detach(), "eval.out")
    layer.layer.requires_grad_(False)
    outer = nn.ModuleDict({"down": layer.down, "up": layer.up})
    assert_training(golden, outer, names, {"out": layer(golden.tensor("in.x"))})


@pytest.mark.shared
def test_block_attention_is_that_of_crowddetection(shared: Path) -> None:
    """There the maximum comes before the mean, the last convolution has a bias, and the input is added at the end."""
    golden = load_detect_golden(shared, "attention_cbam")
    layer = CBAM(32).double()
    state = rule_made_state(golden.info["state"])
    theirs = nn.Conv2d(2, 1, 7, padding=3).double()
    matrices = {f"channels.{i}.weight": state[f"ca.se.{i}.weight"].flatten(1) for i in (0, 2)}
    layer.load_state_dict({**matrices, "positions.weight": torch.zeros(1, 2, 7, 7)})
    theirs.load_state_dict({leaf: state[f"sa.conv.{leaf}"] for leaf in ("weight", "bias")})
    layer.positions = nn.Sequential(_Swapped(), theirs)
    image = golden.tensor("in.x")
    theirs_of(golden, (layer(image) + image).detach(), "eval.out")
    shapes = {"ca.se.0.weight": (2, 32, 1, 1), "ca.se.2.weight": (32, 2, 1, 1)}
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    names = {"ca.se.0": "channels.0", "ca.se.2": "channels.2", "sa.conv": "positions.1"}
    assert_training(golden, layer, names, {"out": layer(image) + image})


class _Swapped(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.flip(1)


@pytest.mark.shared
def test_efficient_channels_are_those_of_the_formula(shared: Path) -> None:
    golden = np.load(shared / "golden" / "detect" / "attention_eca.npz", allow_pickle=False)
    for width in (16, 64, 128, 256, 512, 1024, 2048):
        layer = ECA(width).double()
        kernel, image, expected = (torch.from_numpy(golden[f"C{width}/{name}"]) for name in ("kernel", "x", "y"))
        layer.conv.weight.data = kernel.view(layer.conv.weight.shape)
        assert_near_largest(layer(image).detach(), expected, OUTPUT_BOUND, f"{width} channels")


# --- backbones --------------------------------------------------------------------------------------------------------


def backbone(name: str, **arguments: object) -> nn.Module:
    built: nn.Module = registry.backbones.build(ComponentConfig(name, {"width": 16, **arguments}), facts={})
    return built


@run_each(
    "name, num_blocks",
    [("resnet18", 8), ("resnet34", 16), ("resnet50", 16), ("resnet101", 33), ("darknet53", 23), ("cspdarknet", 8)],
)
def test_attention_ends_the_branch_of_every_block(name: str, num_blocks: int) -> None:
    """With all its weights zero the layer halves the branch."""
    plain, built = backbone(name), backbone(name, attention="se").eval()
    layers = [each for each in built.modules() if isinstance(each, SqueezeExcitation)]
    assert len(layers) == num_blocks
    assert count(built) == count(plain) + sum(map(count, layers))
    block = next(each for each in built.modules() if isinstance(getattr(each, "layers", [0])[-1], SqueezeExcitation))
    branch = block.layers
    assert isinstance(branch, nn.Sequential)
    nn.init.zeros_(branch[-1].expand.weight)  # type: ignore[union-attr, arg-type]
    image = torch.randn(2, branch[0].conv.in_channels, 4, 4)  # type: ignore[union-attr]
    residual = branch[:-1](image) / 2
    shortcut = block.shortcut(image) if hasattr(block, "shortcut") else image
    expected = residual + shortcut
    torch.testing.assert_close(block(image), expected.relu() if name.startswith("resnet") else expected)
