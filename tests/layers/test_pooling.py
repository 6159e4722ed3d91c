"""Pooling and the ways between resolutions: the authors' numbers, fused forms against plain ones, worked cases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.scenes.transitions import (
    GlobalContext,
    TransitionDown,
    TransitionUp,
    segment_mean,
)
from sightline.layers.pooling import LinearNormMax, LinearNormPool
from sightline.layers.pyramid import PyramidLevel, build_pyramid
from tests.golden_parity import Golden, assert_gradients_and_buffers, assert_outputs, each_mode, load_golden
from tests.layers.passes import (
    BOUND,
    assert_bf16_errs_no_more,
    assert_passes_agree,
    assert_processes_agree,
    make_pair,
    run,
)

WIDTH = 40


MAKERS: dict[str, Callable[[bool], LinearNormMax]] = {
    "maximum": lambda fused: LinearNormMax(in_channels=6, out_channels=WIDTH, has_bias=True, fused=fused),
    "rectified": lambda fused: LinearNormMax(in_channels=6, out_channels=WIDTH, activation=nn.ReLU(), fused=fused),
    "both": lambda fused: LinearNormPool(in_channels=6, out_channels=WIDTH, negative_slope=0.2, fused=fused),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)


def pair_of_layers(kind: str) -> tuple[LinearNormMax, LinearNormMax]:
    torch.manual_seed(0)
    return make_pair(*(functools.partial(MAKERS[kind], fused) for fused in (False, True)))


def weights(num_samples: int, kind: str) -> Tensor:
    """What each output counts in the loss."""
    return torch.randn(num_samples, WIDTH * (2 if kind == "both" else 1), dtype=torch.float64)


@KINDS
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("num_points", [1, 7, 200])
def test_fused_form_agrees_with_the_plain_one(kind: str, num_points: int, is_training: bool) -> None:
    """17 samples are more than two of the parts in which the weight's gradient is added up."""
    plain, fused = (layer.train(is_training) for layer in pair_of_layers(kind))
    values, weight = torch.randn(17, num_points, 6, dtype=torch.float64) + 30, weights(17, kind)
    given = {"values": values}
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


@KINDS
def test_of_equal_maxima_the_first_takes_the_gradient(kind: str) -> None:
    """Every point stands twice; torch's maximum gives its gradient to the first, too."""
    plain, fused = pair_of_layers(kind)
    values, weight = torch.randn(2, 9, 6, dtype=torch.float64).repeat(1, 2, 1), weights(2, kind)
    given = {"values": values}
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


@KINDS
@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (0, 2)])
def test_statistics_of_all_processes(kind: str, sizes: tuple[int, ...]) -> None:
    plain, fused = pair_of_layers(kind)
    values, weight = torch.randn(sum(sizes), 30, 6, dtype=torch.float64), weights(sum(sizes), kind)
    given = {"values": values}
    assert_processes_agree(fused, given, weight, sizes, run(plain, given, weight))


@KINDS
@pytest.mark.parametrize("is_training", [True, False])
def test_a_value_that_is_no_number_is_not_lost(kind: str, is_training: bool) -> None:
    _, fused = pair_of_layers(kind)
    values = torch.randn(2, 5, 6, dtype=torch.float64)
    values[1, 3, 2] = torch.nan
    assert fused.train(is_training)(values)[1].isnan().all()


@pytest.mark.parametrize("is_training", [True, False])
@KINDS
@pytest.mark.parametrize("layout", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_bfloat16_errs_no_more_than_the_plain_form(kind: str, is_training: bool, layout: tuple[int, ...]) -> None:
    """`layout` is the order of the axes in memory; samples are far off the origin, where bfloat16 has few digits."""
    plain, fused = (layer.train(is_training) for layer in pair_of_layers(kind))
    values = torch.randn(17, 50, 6).permute(layout).contiguous().permute(*torch.tensor(layout).argsort()) + 3
    assert_bf16_errs_no_more(plain, fused, {"values": values}, weights(17, kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_samples_in_bfloat16(dtype: torch.dtype) -> None:
    """A part without samples has no output, and gradients of zero; running statistics are in use."""
    fused = pair_of_layers("maximum")[1].float().eval()
    values = torch.zeros(0, 5, 6, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = fused(values)
    output.sum().backward()
    assert output.shape == (0, WIDTH)
    assert values.grad is not None
    assert values.grad.dtype == dtype
    assert not fused.linear.weight.grad.any()


def test_half_precision_other_than_bfloat16_takes_the_plain_form() -> None:
    plain, fused = (layer.float() for layer in pair_of_layers("maximum"))
    values = torch.randn(3, 9, 6)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(fused(values), plain(values))


@KINDS
def test_float64_is_not_lowered(kind: str) -> None:
    """As torch's own products, which autocast leaves in float64."""
    fused = pair_of_layers(kind)[1].double()
    values = torch.randn(3, 9, 6, dtype=torch.float64)
    expected = fused(values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(values), expected)


def test_a_channel_of_little_variance_keeps_its_digits() -> None:
    """Inputs of deviation 1 that a channel's weights cancel to 1e-4 of it: the plain form in float64 is the truth."""
    torch.manual_seed(0)
    values = torch.randn(8, 300, 2, dtype=torch.float64)
    values[..., 1] = values[..., 0] + 1e-4 * values[..., 1]
    values = values.float().double()
    plain = LinearNormMax(in_channels=2, out_channels=1, fused=False).double()
    with torch.no_grad():
        plain.linear.weight.copy_(torch.tensor([[1.0, -1.0]]))
    fused = LinearNormMax(in_channels=2, out_channels=1).float()
    fused.load_state_dict(plain.state_dict())
    # The product of the two equal halves is rounded at 1e-7 of 4, which is 4e-3 of the channel's deviation.
    torch.testing.assert_close(fused(values.float()).double(), plain(values), rtol=4e-3, atol=4e-3)
    torch.testing.assert_close(fused.norm.running_var.double(), plain.norm.running_var, rtol=1e-6, atol=0)


@KINDS
def test_gradients_are_those_of_the_weights_that_were_used(kind: str) -> None:
    """Weights that stand in for the layer's own during the forward pass alone, as meta-learning has them."""
    layers, values, weight = pair_of_layers(kind), torch.randn(3, 9, 6, dtype=torch.float64), weights(3, kind)
    given = {name: torch.randn_like(value).requires_grad_() for name, value in layers[0].named_parameters()}
    plain, fused = (
        torch.autograd.grad((torch.func.functional_call(layer, given, (values,)) * weight).sum(), list(given.values()))
        for layer in layers
    )
    for found, expected in zip(fused, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=BOUND * max(1.0, expected.abs().max().item()))


@KINDS
def test_a_weight_changed_between_the_passes_is_noticed(kind: str) -> None:
    _, fused = pair_of_layers(kind)
    output = fused(torch.randn(3, 9, 6, dtype=torch.float64))
    with torch.no_grad():
        fused.norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@KINDS
def test_a_layer_in_half_precision_takes_the_plain_form(kind: str) -> None:
    plain, fused = (layer.bfloat16() for layer in pair_of_layers(kind))
    values = torch.randn(3, 9, 6).bfloat16()
    assert torch.equal(fused(values), plain(values))


# --- Ways down and up between resolutions: the authors' numbers, worked cases --


def with_zero(ends: Tensor) -> Tensor:
    return F.pad(ends.long(), (1, 0))


def assert_both_modes(golden: Golden, layer: nn.Module, names: dict[str, str], given: list[object]) -> None:
    """Outputs in both modes, then gradients and running statistics; `names` are ours of their modules."""

    def our_name(key: str) -> str:
        module, _, leaf = key.rpartition(".")
        return f"{names[module]}.{leaf}"

    layer.load_state_dict({our_name(key): value for key, value in golden.state().items()})
    others = {
        name.removeprefix("eval.out."): golden.tensor(name)
        for name in golden.arrays
        if name.startswith("eval.out.") and name != "eval.out.out"
    }
    for mode in each_mode(layer):
        out = layer(*given)
        loss = (out * golden.tensor("in.w")).sum()
        assert_outputs(golden, mode, {"out": out, **others}, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, layer, our_name)


@pytest.mark.shared
def test_the_way_down_agrees_with_the_reference(shared: Path) -> None:
    golden = load_golden(shared, "pt_korea_down")
    offsets = with_zero(golden.tensor("in.offset"))
    level = build_pyramid(golden.tensor("in.coord"), offsets=offsets, strides=(1, 4), num_neighbours=(8, 8))[1]
    assert torch.equal(level.points, golden.tensor("eval.out.coord"))
    assert torch.equal(level.offsets[1:], golden.tensor("eval.out.offset").long())
    layer = TransitionDown(in_channels=32, out_channels=64, is_strided=True).double()
    names = {"linear": "edge.linear", "bn": "edge.norm"}
    assert_both_modes(golden, layer, names, [golden.tensor("in.feat"), level])


@pytest.mark.shared
def test_the_way_up_agrees_with_the_reference_where_it_has_three_points(shared: Path) -> None:
    """The second cloud has two coarse points, and theirs weighs a third, far one in, by some 1e-5: not there."""
    golden = load_golden(shared, "pt_korea_up")
    layer = TransitionUp(in_channels=64, out_channels=32).double().eval()
    names = {
        f"linear{which}.{place}": f"{ours}.{part}"
        for which, ours in ((1, "skip"), (2, "coarse"))
        for place, part in ((0, "linear"), (1, "norm"))
    }
    layer.load_state_dict(
        {f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": value for k, value in golden.state().items()}
    )
    level = between(golden)
    out = layer(golden.tensor("in.feat1"), golden.tensor("in.feat2"), level)
    error, expected = (out - golden.tensor("eval.out.out")).abs(), golden.tensor("eval.out.out")
    assert error[:18].max() <= 1e-12 * expected.abs().max()
    assert error[18:].max() <= 1e-4 * expected.abs().max()


def between(golden: Golden) -> PyramidLevel:
    """The level of given coarse points under given fine ones."""
    from sightline.layers.pyramid import Edges, _interpolation_weights

    fine, coarse = golden.tensor("in.coord1"), golden.tensor("in.coord2")
    none = Edges(torch.zeros(0, 1), torch.zeros(0, 1, 3), torch.zeros(0))
    above = PyramidLevel(fine, with_zero(golden.tensor("in.offset1")), none)
    offsets = with_zero(golden.tensor("in.offset2"))
    return PyramidLevel(coarse, offsets, none, None, _interpolation_weights(coarse, offsets, above))


@pytest.mark.shared
def test_the_context_of_clouds_agrees_with_the_reference(shared: Path) -> None:
    golden = load_golden(shared, "pt_korea_up_head")
    names = {"linear1.0": "mix.linear", "linear1.1": "mix.norm", "linear2.0": "mean"}
    given: list[object] = [golden.tensor("in.feat"), with_zero(golden.tensor("in.offset"))]
    assert_both_modes(golden, GlobalContext(channels=64).double(), names, given)


def test_means_of_clouds_worked_by_hand() -> None:
    features = torch.tensor([[1.0], [3.0], [5.0]])
    assert segment_mean(features, torch.tensor([0, 2, 2, 3])).tolist() == [[2.0], [0.0], [5.0]]
