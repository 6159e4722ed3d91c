"""A class that derives from torch's or from one of ours is judged by what it computes, not by what it derives from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.instrument.formats import FORMATS
from sightline.instrument.plain_forms import use_sequential_batch_norm
from sightline.instrument.replay import PRODUCTS, computes_as
from sightline.layers.native_batch_norm import disable_cudnn_batch_norm
from sightline.layers.pooling import LinearNormMax
from tests.compare.steps import compared, guilty
from tests.marks import long_but

SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.Linear: (6, 4),
    nn.Conv1d: (3, 4, 9),
    nn.Conv2d: (3, 4, 7, 7),
    nn.Conv3d: (2, 4, 5, 5, 5),
    nn.ConvTranspose1d: (3, 4, 9),
    nn.ConvTranspose2d: (3, 4, 5, 5),
    nn.ConvTranspose3d: (2, 4, 4, 4, 4),
    nn.BatchNorm1d: (6, 4, 5),
    nn.BatchNorm2d: (4, 4, 5, 5),
    nn.BatchNorm3d: (2, 4, 4, 4, 4),
    nn.LayerNorm: (6, 4),
    nn.GroupNorm: (3, 4, 9),
    nn.ReLU: (6, 4),
    nn.Softmax: (6, 4),
    nn.MaxPool2d: (2, 4, 6, 6),
}
ARGUMENTS: dict[type[nn.Module], tuple[Any, ...]] = {
    **dict.fromkeys((nn.Linear, *(kind for kind in PRODUCTS if kind is not nn.Linear)), (4, 4)),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm), (4,)),
    nn.GroupNorm: (2, 4),
    nn.ReLU: (),
    nn.Softmax: (-1,),
    nn.MaxPool2d: (2,),
}


def layer(kind: type[nn.Module]) -> nn.Sequential:
    """A layer behind another that learns, so that gradients come to its input."""
    extra = (3,) if "Conv" in kind.__name__ else ()
    return nn.Sequential(nn.PReLU(), kind(*ARGUMENTS[kind], *extra))


def scaled(kind: Any) -> Any:
    class Scaled(kind):
        def forward(self, input: Tensor) -> Tensor:
            return 1.5 * super().forward(input)

    return Scaled


def more_gradient(kind: Any) -> Any:
    """Right forward; the gradients of its parameters and of its input are 1.5 times what they should be."""

    class MoreGradient(kind):
        def forward(self, input: Tensor) -> Tensor:
            made = super().forward(input)
            return 1.5 * made - 0.5 * made.detach()

    return MoreGradient


def unbiased(kind: Any) -> Any:
    class Unbiased(kind):
        def forward(self, input: Tensor) -> Tensor:
            made, num = super().forward(input), input.numel() // input.shape[1]
            shape = (1, -1, *(1,) * (input.ndim - 2))
            return (made - self.bias.view(shape)) * ((num - 1) / num) ** 0.5 + self.bias.view(shape)

    return Unbiased


def by_running(kind: Any) -> Any:
    """Running statistics in training."""

    class ByRunning(kind):
        def forward(self, input: Tensor) -> Tensor:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
            )

    return ByRunning


FAULTS: list[tuple[type[nn.Module], Callable[[Any], Any]]] = [
    *((kind, fault) for kind in SHAPES for fault in (scaled, more_gradient)),
    *((kind, fault) for kind in SHAPES if "BatchNorm" in kind.__name__ for fault in (unbiased, by_running)),
]


DAILY = [*FAULTS[: 2 * len(SHAPES) : 4], *FAULTS[3 : 2 * len(SHAPES) : 4], *FAULTS[2 * len(SHAPES) :]]
"""For each layer one of the first two, in turn, and all of those of norms."""


@pytest.mark.parametrize(("kind", "fault"), long_but(DAILY, FAULTS))
def test_a_planted_subclass_in_the_reference_is_never_called_equal(kind: type[nn.Module], fault: Any) -> None:
    torch.manual_seed(0)
    healthy = layer(kind)
    broken = copy.deepcopy(healthy)
    broken[1].__class__ = fault(kind)
    found = guilty(compared(healthy, broken, {"input": torch.randn(SHAPES[kind])}))
    assert found
    assert found[0] == ("1", "backward" if fault is more_gradient else "forward")


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d, nn.BatchNorm1d])
@pytest.mark.parametrize("place", ["hook", "instance"])
def test_neither_is_a_module_that_was_changed_in_place(kind: type[nn.Module], place: str) -> None:
    torch.manual_seed(0)
    healthy = layer(kind)
    broken = copy.deepcopy(healthy)
    if place == "hook":
        broken[1].register_forward_hook(lambda module, args, made: 1.5 * made)
    else:
        broken[1].forward = _Scaled(broken[1])
    assert guilty(compared(healthy, broken, {"input": torch.randn(SHAPES[kind])}))[0][0] == "1"


class _Scaled:
    """A forward of the instance; copied with it."""

    def __init__(self, module: Any) -> None:
        self.module = [module]

    def __call__(self, input: Tensor) -> Tensor:
        made: Tensor = type(self.module[0]).forward(self.module[0], input)
        return 1.5 * made


def test_a_gradient_of_a_weight_alone_is_not_excused() -> None:
    """The plain form of a convolution is asked for the gradients of its parameters."""
    torch.manual_seed(0)
    healthy = layer(nn.Conv2d)
    broken = copy.deepcopy(healthy)
    broken[1].__class__ = _HalfLearnt
    assert guilty(compared(healthy, broken, {"input": torch.randn(SHAPES[nn.Conv2d])})) == [("1", "backward")]


class _HalfLearnt(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 0.5 * weight + 0.5 * weight.detach(), bias)


def test_a_subclass_that_only_builds_otherwise_keeps_its_plain_form() -> None:
    class Slow(nn.BatchNorm1d):
        """Slower running statistics."""

        def __init__(self, width: int) -> None:
            super().__init__(width, momentum=0.01)

        def extra_repr(self) -> str:
            return "slow"

    kinds = (nn.BatchNorm1d,)
    assert computes_as(Slow(4), kinds)
    assert computes_as(disable_cudnn_batch_norm(nn.BatchNorm1d(4)), kinds)
    assert not computes_as(disable_cudnn_batch_norm(scaled(nn.BatchNorm1d)(4)), kinds)
    assert computes_as(nn.MultiheadAttention(4, 1).out_proj, PRODUCTS)


def test_moved_runs_replace_no_norm_that_computes_otherwise() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), scaled(nn.BatchNorm1d)(4)).double()
    given = torch.randn(64, 4, dtype=torch.float64)
    expected = copy.deepcopy(net)(given).detach()
    use_sequential_batch_norm(net)
    assert [("forward" in vars(module)) for module in net] == [True, False]
    unit = FORMATS[torch.float32].unit_of_largest(expected)
    assert float((net(given).detach() - expected).abs().max()) < 64 * unit


class PlainDouble(nn.Linear):
    """A class of the user's whose name begins as those of our plain forms do; wrong in float32 alone."""

    def forward(self, input: Tensor) -> Tensor:
        made = super().forward(input)
        return made if input.dtype == torch.float64 else 1.01 * made


class _Fused(nn.Linear):
    """A class of the user's with a switch of the name that ours have, which turns its fault off."""

    fused = True

    def forward(self, input: Tensor) -> Tensor:
        made = super().forward(input)
        return 1.5 * made if self.fused else made


@pytest.mark.parametrize("kind", [PlainDouble, _Fused])
def test_words_that_ours_use_excuse_no_class_of_others(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    healthy = layer(nn.Linear)
    broken: Any = copy.deepcopy(healthy)
    broken[1].__class__ = kind
    broken[1].fused = True
    own = broken if kind is PlainDouble else healthy
    assert guilty(compared(own, broken, {"input": torch.randn(6, 4)}))[0] == ("1", "forward")


def test_a_subclass_of_a_layer_of_ours_has_no_twin() -> None:
    """Its plain form would be right, so the distance to it would pass for rounding."""

    class Scaled(LinearNormMax):
        def forward(self, values: Tensor) -> Tensor:
            made = super().forward(values)
            return 1.5 * made if self.fused else made

    torch.manual_seed(0)
    healthy = nn.Sequential(LinearNormMax(in_channels=4, out_channels=8))
    broken = copy.deepcopy(healthy)
    broken[0].__class__ = Scaled
    batch = {"input": torch.randn(3, 16, 4)}
    assert guilty(compared(healthy, copy.deepcopy(healthy), batch)) == []
    assert guilty(compared(healthy, broken, batch))[0] == ("0.activation", "forward"), "after the last layer inside"
