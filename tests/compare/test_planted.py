"""Bugs planted in one of two variants: the right layer is named, first; and healthy variants are not blamed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compare.steps import compared, guilty
from tests.marks import long_but
from tests.models.small_models import make_inputs, small_model


class Volumes(nn.Module):
    """A small network over volumes with a skip, as V2V is: convolutions, batch norm, pooling, a deconvolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())
        self.pool = nn.MaxPool3d(2)
        self.middle = nn.Sequential(nn.Conv3d(4, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU())
        self.up = nn.ConvTranspose3d(6, 4, 2, stride=2)
        self.output = nn.Conv3d(4, 3, 1)

    def forward(self, volume: Tensor) -> Tensor:
        fine = self.stem(volume)
        raised = self.up(self.middle(self.pool(fine)))
        return self.output(self.join(raised, fine))

    def join(self, raised: Tensor, fine: Tensor) -> Tensor:
        size = min(raised.shape[-1], fine.shape[-1])
        return raised[..., :size, :size, :size] + fine[..., :size, :size, :size]


def volumes() -> tuple[Volumes, dict[str, Tensor]]:
    """The network and a batch for it."""
    return Volumes(), {"volume": torch.rand(2, 1, 8, 8, 8)}


MODELS = ("crosspoint", "detector", "dgcnn", "point_transformer", "rangenet21", "scale_net")


@pytest.mark.parametrize("name", long_but(["crosspoint", "dgcnn", "scale_net"], MODELS))
def test_a_model_of_the_registry_equals_itself(name: str) -> None:
    """The others: tests/long/test_networks.py."""
    assert_equals_itself(name)


def assert_equals_itself(name: str) -> None:
    """float32 beside float64: kNN graphs, samples and maxima that rounding turns are nobody's fault."""
    torch.manual_seed(0)
    model = small_model(name).float()
    assert guilty(compared(model, model, make_inputs(model, 3))) == []


def test_two_equal_variants_differ_in_nothing() -> None:
    net, batch = volumes()
    rows = compared(net, net, batch, precision="float64")
    assert guilty(rows) == []
    # Equal but for the order of sums in our convolution; what has none of them has the same bits.
    assert {row.deviation.error for row in rows if row.class_name == "BatchNorm3d"} == {0.0}


def test_bf16_is_judged_by_its_own_format() -> None:
    net, batch = volumes()
    rows = compared(net, net, batch, precision="bf16")
    assert guilty([row for row in rows if row.layer != "(loss)"]) == []
    assert {row.format for row in rows} >= {"bfloat16"}


class Rectified(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Halved(nn.Conv3d):
    """Adds up in float16."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input.half(), self.weight.half(), self.bias.half()).to(input.dtype)


class Leaking(nn.ReLU):
    """Right forward, wrong backward."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input).detach() + (0.1 * input - (0.1 * input).detach())


BUGS: dict[str, tuple[Callable[[Any], object], tuple[str, str, str]]] = {
    "epsilon": (lambda net: setattr(net.middle[1], "eps", 1e-3), ("middle.1", "forward", "result")),
    "momentum": (lambda net: setattr(net.stem[1], "momentum", 0.01), ("stem.1", "forward", "buffer running_mean")),
    "padding": (
        lambda net: vars(net.up).update(padding=(1, 1, 1), output_padding=(1, 1, 1)),
        ("up", "forward", "result"),
    ),
    "relu": (lambda net: setattr(net.output, "__class__", Rectified), ("output", "forward", "result")),
    "half": (lambda net: setattr(net.middle[0], "__class__", Halved), ("middle.0", "forward", "result")),
    "weights": (lambda net: net.middle[0].weight.data.mul_(1 + 1e-5), ("middle.0", "forward", "result")),
    "join": (
        lambda net: setattr(net, "join", lambda raised, fine: raised - fine),
        ("up", "forward", "what output is given"),
    ),
    "backward": (
        lambda net: setattr(net.middle[2], "__class__", Leaking),
        ("middle.2", "backward", "gradient of input"),
    ),
}
"""What changes a network, and the layer, pass and tensor that are named first."""
SIDES = ("variant", "reference")
DAILY = [(bug, SIDES[number % 2]) for number, bug in enumerate(sorted(BUGS))]


@pytest.mark.parametrize(("bug", "side"), long_but(DAILY, product(sorted(BUGS), SIDES)))
def test_a_planted_bug_is_named_first(bug: str, side: str) -> None:
    healthy, batch = volumes()
    broken = copy.deepcopy(healthy)
    change, found = BUGS[bug]
    change(broken)
    pair = (broken, healthy) if side == "variant" else (healthy, broken)
    rows = compared(*pair, batch)
    first = next(row for row in rows if row.is_guilty)
    assert (first.layer, first.which, first.what) == found
    others = [row for row in rows if row.is_guilty and row.layer != first.layer]
    assert all(row.inside and row.inside == first.inside for row in others), "an error travelled on to another layer"


def test_float16_inside_every_variant_is_told() -> None:
    net, batch = volumes()
    net.middle[0].__class__ = Halved
    rows = [row for row in compared(net, net, batch) if row.is_guilty]
    assert rows[0].layer == "middle.0"
    assert rows[0].deviation.note == "rounds to float16 inside, in every variant"


class Odd(nn.Module):
    """Layers without outputs, and layers that are called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.none, self.conv, self.norm = nn.Linear(8, 0), nn.Conv3d(1, 4, 3, bias=False), nn.BatchNorm3d(4)

    def forward(self, volume: Tensor) -> Tensor:
        made = self.norm(input=self.conv(input=volume))
        return made + self.none(volume).sum()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_empty_layers_and_layers_called_by_keyword() -> None:
    batch = {"volume": torch.rand(2, 1, 8, 8, 8)}
    healthy = Odd()
    broken = copy.deepcopy(healthy)
    broken.norm.eps = 1e-2
    assert guilty(compared(healthy, copy.deepcopy(healthy), batch)) == []
    first = next(row for row in compared(broken, healthy, batch) if row.is_guilty)
    assert (first.layer, first.which, first.what) == ("norm", "forward", "result")
