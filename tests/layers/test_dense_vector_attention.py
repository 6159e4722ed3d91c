"""Vector attention: the authors' block, hand-worked weights, and the quick form against the plain one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.geometry import gather_points, nearest_neighbours
from sightline.layers.dense_vector_attention import (
    DenseAttentionFunction,
    DenseVectorAttention,
    PlainDenseVectorAttention,
)
from sightline.layers.edge_conv import map_edges, map_gradient, map_points
from sightline.published.translation import translate_key
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
    stored_part,
)
from tests.layers.passes import BOUND, assert_passes_agree, run

BOTH = pytest.mark.parametrize("kind", [PlainDenseVectorAttention, DenseVectorAttention])


def our_name(key: str) -> str:
    """The name of a golden block's parameter in a block of ours, by way of the layout of whole models."""
    ours = translate_key(f"backbone.transformer1.{key}", "qq456cvb_point_transformer_cls")
    assert ours is not None
    return ours.removeprefix("encoder.levels.0.0.")


def inputs(golden: Golden) -> tuple[Tensor, Tensor, Tensor]:
    points = golden.tensor("in.xyz")
    return points, golden.tensor("in.feat"), nearest_neighbours(points, num_neighbours=6)


@pytest.mark.shared
@BOTH
def test_agrees_with_the_authors_block(shared: Path, kind: type[PlainDenseVectorAttention]) -> None:
    golden = load_golden(shared, "pt_sjtu_block")
    layer = kind(channels=32, width=64).double()
    layer.load_state_dict({our_name(key): value for key, value in golden.state().items()})
    points, features, index = inputs(golden)
    weight = golden.tensor("in.w")
    for mode in each_mode(layer):
        out = layer(points, features, index)
        entered, place = layer.enter(features), layer.place(points[:, :, None] - gather_points(points, index))
        attention = layer.attention(entered, place, index)
        assert_outputs(golden, mode, {"out": out, "attention": attention}, (out * weight).sum())
    (out * weight).sum().backward()
    assert_gradients_and_buffers(golden, layer, our_name)
    label = "eval.mid.position code (B,N,k,f)"
    assert_near_largest(stored_part(golden, label, place.detach()), golden.tensor(label), 1e-10, label)


def given(num_points: int, num_neighbours: int, channels: int = 5) -> dict[str, Tensor]:
    points = torch.randn(2, num_points, 3, dtype=torch.float64)
    return {
        "points": points,
        "features": torch.randn(2, num_points, channels, dtype=torch.float64),
        "index": nearest_neighbours(points, num_neighbours=num_neighbours),
    }


def pair(channels: int = 5, width: int = 16) -> tuple[PlainDenseVectorAttention, DenseVectorAttention]:
    plain, quick = (
        kind(channels=channels, width=width).double() for kind in (PlainDenseVectorAttention, DenseVectorAttention)
    )
    quick.load_state_dict(plain.state_dict())
    return plain, quick


@pytest.mark.parametrize(
    ("num_points", "num_neighbours", "width"),
    [(20, 6, 16), (9, 9, 7), (4, 1, 8), (1, 1, 8), (700, 8, 64)],
    ids=["some", "all points", "itself alone", "one point", "several parts, the last a shorter one"],
)
def test_quick_form_agrees_with_the_plain_one(num_points: int, num_neighbours: int, width: int) -> None:
    """Outputs and the gradients of points, features and all parameters, float64."""
    plain, quick = pair(width=width)
    values = given(num_points, num_neighbours)
    weight = torch.randn(2, num_points, 5, dtype=torch.float64)
    assert_passes_agree(run(quick, values, weight), run(plain, values, weight), BOUND)


def test_copies_of_a_point_agree_too() -> None:
    """All places are equal, so that h is the same for all edges; what reaches a copy is added up."""
    plain, quick = pair()
    values = given(12, 5)
    values["points"][:, 4:] = values["points"][:, :1]
    weight = torch.randn(2, 12, 5, dtype=torch.float64)
    assert_passes_agree(run(quick, values, weight), run(plain, values, weight), BOUND)


@BOTH
def test_attention_that_cannot_tell_neighbours_apart_is_their_mean(kind: type[PlainDenseVectorAttention]) -> None:
    """Without the last map of `weigh` all neighbours weigh alike, and without that of `place` only values are left."""
    layer, values = kind(channels=5, width=16).double(), given(10, 4)
    for last in (layer.weigh[2], layer.place[2]):
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    mean = gather_points(layer.value(layer.enter(values["features"])), values["index"]).mean(dim=2)
    expected = values["features"] + layer.leave(mean)
    torch.testing.assert_close(layer(**values), expected, rtol=0, atol=1e-13)  # sums of 16 terms below 10


@BOTH
def test_place_of_the_cloud_does_not_matter(kind: type[PlainDenseVectorAttention]) -> None:
    layer, values = kind(channels=5, width=16).double(), given(10, 4)
    moved = values | {"points": values["points"] + 1024}
    # A coordinate near 1024 is off by at most 1.2e-13, and with it a difference of two.
    torch.testing.assert_close(layer(**moved), layer(**values), rtol=0, atol=1e-11)


def test_gradients_are_those_of_finite_differences() -> None:
    points, index = torch.randn(5, 3).double().requires_grad_(), torch.tensor([[0, 1], [1, 2], [2, 4], [3, 0], [4, 3]])
    rows = [torch.randn(5, 4).double().requires_grad_() for _ in range(3)]
    shapes = [(4, 3), (4,), (4, 4), (4, 4), (4, 4), (4,)]
    maps = [torch.randn(shape).double().requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(
        lambda *each: DenseAttentionFunction.apply(True, each[0], index, *each[1:]), (points, *rows, *maps)
    )


@pytest.mark.parametrize("num_groups", [1, 16, 33])
def test_maps_of_edges_are_products(num_groups: int) -> None:
    """In float32, whatever library does them: a sum of 24 (of up to 264) products of numbers of about 1."""
    edges, weight, gradient = torch.randn(num_groups, 8, 24), torch.randn(10, 24), torch.randn(num_groups, 8, 10)
    mapped = map_edges(edges, weight)
    assert mapped.is_contiguous()
    torch.testing.assert_close(mapped.double(), edges.double() @ weight.double().mT, rtol=0, atol=1e-4)
    expected = torch.einsum("mkd,mkc->dc", gradient.double(), edges.double())
    torch.testing.assert_close(map_gradient(edges, gradient).double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_points", [5, 8])
def test_maps_of_points_are_products_with_their_gradients(num_points: int) -> None:
    """Ten rows, which are no sixteen images, and sixteen that are; float32 against float64."""
    points, weight = torch.randn(2, num_points, 24, requires_grad=True), torch.randn(10, 24, requires_grad=True)
    to_mapped = torch.randn(2, num_points, 10)
    map_points(points, weight).backward(to_mapped)
    wide_points, wide_weight = (each.detach().double().requires_grad_() for each in (points, weight))
    expected = wide_points @ wide_weight.mT
    expected.backward(to_mapped.double())
    torch.testing.assert_close(map_points(points, weight).double(), expected, rtol=0, atol=1e-4)
    for found, wide in ((points, wide_points), (weight, wide_weight)):
        assert found.grad is not None
        torch.testing.assert_close(found.grad.double(), wide.grad, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("is_half", "times"), [(False, 3), (True, 2)], ids=["single", "half"])
def test_lower_precision_is_as_near_to_double_as_the_plain_form(is_half: bool, times: int) -> None:
    """Outputs and gradients are that many times as far from float64 as the plain form's at most, and some roundings.

    The quick form sums in another order and multiplies two maps first. Half precision is that of autocast.
    """
    layers = pair(width=64)
    values = given(100, 8)
    weight = torch.randn(2, 100, 5, dtype=torch.float64)
    exact = run(copy.deepcopy(layers[0]), values, weight)
    narrow = {name: value if name == "index" else value.float() for name, value in values.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
        found = [run(layer.float(), narrow, weight.float()) for layer in layers]
    errors = [(each.output - exact.output).norm().item() for each in found]
    assert errors[1] <= times * errors[0]
    roundings = 10 * torch.finfo(torch.bfloat16 if is_half else torch.float32).eps
    largest = max(gradient.norm() for gradient in exact.gradients.values())
    for name, gradient in exact.gradients.items():
        plain_error, quick_error = ((each.gradients[name] - gradient).norm() for each in found)
        assert quick_error <= times * plain_error + roundings * largest, name


def test_backward_may_come_twice() -> None:
    """What is kept is left as it was."""
    _, quick = pair(width=64)
    values = given(20, 4)
    out = quick.float()(**{name: value if name == "index" else value.float() for name, value in values.items()})
    first, second = (torch.autograd.grad(out.sum(), quick.enter.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_neighbours_that_are_not_there_are_refused() -> None:
    values = given(10, 4)
    values["index"][1, 3, 2] = 10
    with pytest.raises(ValueError, match=r"index: rows 0\.\.10 named in clouds of 10 points"):
        pair()[1](**values)
