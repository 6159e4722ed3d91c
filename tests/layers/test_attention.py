"""Attention among points: the authors' numbers, hand-worked weights, the quick forms against the plain ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.clouds.models.pct import OffsetAttention, SelfAttention
from sightline.areas.clouds.models.point_transformer_dense import DenseVectorAttention
from sightline.layers.pyramid import Edges, build_pyramid
from sightline.layers.vector_attention import PlainVectorAttention, VectorAttention
from sightline.ops import gather_points, nearest_neighbours, numba_kernels
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
    stored_part,
)
from tests.layers.passes import (
    BOUND,
    Pass,
    assert_bf16_errs_no_more,
    assert_passes_agree,
    assert_processes_agree,
    make_pair,
    run,
)
from tests.ops.threads import with_one_and_three_threads

FORMS = pytest.mark.parametrize("form", [PlainVectorAttention, VectorAttention])


class OnEdges(nn.Module):
    """An attention with the edges that it is to be called with."""

    def __init__(self, attention: nn.Module, *clouds: Edges) -> None:
        super().__init__()
        self.attention = attention
        self.clouds = clouds

    def forward(self, features: Tensor) -> Tensor:
        return self.attention(features, self.clouds[0])


def edges_of(sizes: tuple[int, ...], num_neighbours: int, *, dtype: torch.dtype = torch.float64) -> Edges:
    """Neighbours among random clouds, some way off the origin."""
    points, offsets = torch.randn(sum(sizes), 3, dtype=dtype) + 5, F.pad(torch.tensor(sizes).cumsum(0), (1, 0))
    return build_pyramid(points, offsets=offsets, strides=(1,), num_neighbours=(num_neighbours,))[0].neighbours


def pair_of_layers(channels: int) -> tuple[PlainVectorAttention, VectorAttention]:
    return make_pair(PlainVectorAttention, VectorAttention, channels=channels)


def our_name(key: str) -> str | None:
    """Ours of a key of the layer alone."""
    name = translate_key(f"enc1.1.transformer2.{key}", "postech_point_transformer_seg")
    return name and name.removeprefix("stages.0.blocks.0.attention.")


@pytest.mark.shared
@FORMS
def test_agrees_with_the_reference(shared: Path, form: type[PlainVectorAttention]) -> None:
    """The second and third cloud have fewer points than neighbours; their first point again is what theirs takes."""
    golden = load_golden(shared, "pt_korea_layer")
    layer = form(channels=32).double()
    layer.load_state_dict({our_name(key): value for key, value in golden.state().items()})
    points, offsets = golden.tensor("in.coord"), F.pad(golden.tensor("in.offset").long(), (1, 0))
    masked = build_pyramid(points, offsets=offsets, strides=(1,), num_neighbours=(8,))[0].neighbours
    index = torch.where(masked.is_valid, masked.index, offsets[:-1].repeat_interleave(offsets.diff())[:, None])
    padded = Edges(index, points[index] - points[:, None], torch.full((26,), 8))

    alone = layer.eval()(golden.tensor("in.feat"), masked)[:20]
    assert_near_largest(alone, golden.tensor("eval.out.out")[:20], BOUND, "the cloud that is large enough, masked")
    for mode in each_mode(layer):
        out = layer(golden.tensor("in.feat"), padded)
        loss = (out * golden.tensor("in.w")).sum()
        assert_outputs(golden, mode, {"out": out}, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, layer, our_name)


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(("channels", "sizes"), [(16, (30, 40)), (32, (30, 4, 1)), (64, (100, 100)), (24, (5,))])
def test_fused_form_agrees_with_the_plain_one(
    channels: int, sizes: tuple[int, ...], is_training: bool, has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    edges, count = edges_of(sizes, 6), sum(sizes)
    plain, fused = (OnEdges(layer.train(is_training), edges) for layer in pair_of_layers(channels))
    given = {"features": torch.randn(count, channels, dtype=torch.float64) + 3}
    weight = torch.randn(count, channels, dtype=torch.float64)
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


def test_edges_in_parts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven points at a time, and what is left over."""
    monkeypatch.setattr("sightline.layers.vector_attention._ENTRIES_AT_ONCE", 7 * 6 * 16)
    edges = edges_of((30, 23), 6)
    plain, fused = (OnEdges(layer, edges) for layer in pair_of_layers(16))
    given, weight = {"features": torch.randn(53, 16).double()}, torch.randn(53, 16).double()
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


def test_float32_errs_no_more_than_the_plain_form() -> None:
    """The plain form's own error against float64 is the yardstick: both round the same inputs."""
    edges = edges_of((200,), 16, dtype=torch.float32)
    plain, _ = pair_of_layers(32)
    features, weight = torch.randn(200, 32), torch.randn(200, 32)
    wide = Edges(edges.index, edges.relative.double(), edges.count, edges.rows)
    exact = run(OnEdges(plain, wide), {"features": features.double()}, weight.double())
    errors = []
    for layer in pair_of_layers(32):
        layer.load_state_dict(plain.state_dict())
        found = run(OnEdges(layer.float(), edges), {"features": features}, weight)
        errors.append((found.output.double() - exact.output).abs().max().item())
    assert errors[1] <= 2 * errors[0]  # as good, give or take the luck of rounding


class OnEdgesOfAnyFormat(OnEdges):
    """Places follow the layer's weights into float64 and back."""

    def forward(self, features: Tensor) -> Tensor:
        edges = self.clouds[0]
        relative = edges.relative.to(next(self.parameters()).dtype)
        return self.attention(features, Edges(edges.index, relative, edges.count, edges.rows))


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(("channels", "sizes"), [(16, (30, 40)), (32, (60, 4, 1))])
def test_bfloat16_errs_no_more_than_the_plain_form(channels: int, sizes: tuple[int, ...], is_training: bool) -> None:
    edges, count = edges_of(sizes, 6, dtype=torch.float32), sum(sizes)
    plain, fused = (OnEdgesOfAnyFormat(layer.train(is_training), edges) for layer in pair_of_layers(channels))
    given = {"features": torch.randn(count, channels)}
    assert_bf16_errs_no_more(plain, fused, given, torch.randn(count, channels))


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2)])
def test_statistics_of_all_processes(sizes: tuple[int, ...]) -> None:
    """Parts on several processes against the plain form of the whole batch; a part is some of three clouds."""
    counts = (20, 3, 9)
    plain, fused = pair_of_layers(16)
    points = torch.randn(sum(counts), 3, dtype=torch.float64)
    features, weight = torch.randn(32, 16).double(), torch.randn(32, 16).double()
    rows = [sum(counts[: sizes[0]]), sum(counts[sizes[0] :])]

    class OnPoints(nn.Module):
        """Looks the neighbours up by the points that it is given: the clouds lie far apart."""

        def __init__(self, attention: nn.Module) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, *, features: Tensor, where: Tensor) -> Tensor:
            first = 0 if where[0] == 0 else sizes[0]
            last = len(counts) if where[-1] == len(points) - 1 else sizes[0]
            offsets = F.pad(torch.tensor(counts[first:last]).cumsum(0), (1, 0))
            near = build_pyramid(points[where], offsets=offsets, strides=(1,), num_neighbours=(5,))[0].neighbours
            return self.attention(features, near)

    given = {"features": features, "where": torch.arange(32)}
    expected = run(OnPoints(plain), given, weight)
    assert_processes_agree(OnPoints(fused), given, weight, rows, expected)


def test_the_same_bits_for_any_number_of_threads() -> None:
    edges, layer = edges_of((50, 3), 6, dtype=torch.float32), pair_of_layers(16)[1].float()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    given, weight = {"features": torch.randn(53, 16)}, torch.randn(53, 16)

    def passed() -> Pass:
        layer.load_state_dict(state)
        layer.zero_grad()
        return run(OnEdges(layer, edges), given, weight)

    one, three = with_one_and_three_threads(passed)
    assert torch.equal(one.output, three.output)
    assert all(torch.equal(value, three.gradients[name]) for name, value in one.gradients.items())


@pytest.mark.parametrize("changes", [{"dtype": torch.bfloat16}, {"requires_grad": True}])
def test_what_the_kernels_cannot_take_goes_the_plain_way(changes: dict[str, Any]) -> None:
    """Half precision, and gradients of the places, which the plain form alone has."""
    edges = edges_of((20,), 6)
    relative = edges.relative.to(changes.get("dtype", torch.float64)).requires_grad_("requires_grad" in changes)
    edges = Edges(edges.index, relative, edges.count, edges.rows)
    plain, fused = (layer.to(relative.dtype) for layer in pair_of_layers(16))
    features = torch.randn(20, 16).to(relative.dtype)
    assert torch.equal(fused(features, edges), plain(features, edges))
    if "requires_grad" in changes:
        assert torch.autograd.grad(fused(features, edges).square().sum(), relative)[0].any()


@FORMS
def test_nan_is_not_lost(form: type[PlainVectorAttention]) -> None:
    """In evaluation one point's NaN reaches those that have it as a neighbour, and no other."""
    edges, features = edges_of((40,), 5), torch.randn(40, 16).double()
    features[7, 3] = torch.nan
    layer = form(channels=16).double().eval()
    assert torch.equal(layer(features, edges).isnan().all(dim=1), (edges.index == 7).any(dim=1))


def test_rows_that_leave_the_cloud_are_refused() -> None:
    edges = edges_of((10,), 4)
    index = edges.index.clone()
    index[3, 2] = 10
    with pytest.raises(ValueError, match=r"rows 0\.\.10 named in clouds of 10 points"):
        VectorAttention(channels=8).double()(torch.randn(10, 8).double(), Edges(index, edges.relative, edges.count))


# --- Dense vector attention: the authors' block ---


def our_dense_name(key: str) -> str:
    """The name of a golden block's parameter in a block of ours, by way of the layout of whole models."""
    ours = translate_key(f"backbone.transformer1.{key}", "qq456cvb_point_transformer_cls")
    assert ours is not None
    return ours.removeprefix("encoder.levels.0.0.")


def inputs(golden: Golden) -> tuple[Tensor, Tensor, Tensor]:
    points = golden.tensor("in.xyz")
    return points, golden.tensor("in.feat"), nearest_neighbours(points, num_neighbours=6)


@pytest.mark.shared
def test_agrees_with_the_authors_block(shared: Path) -> None:
    golden = load_golden(shared, "pt_sjtu_block")
    layer = DenseVectorAttention(channels=32, width=64).double()
    layer.load_state_dict({our_dense_name(key): value for key, value in golden.state().items()})
    points, features, index = inputs(golden)
    weight = golden.tensor("in.w")
    for mode in each_mode(layer):
        out = layer(points, features, index)
        entered, place = layer.enter(features), layer.position(points[:, :, None] - gather_points(points, index))
        attention = layer.attention(entered, place, index)
        assert_outputs(golden, mode, {"out": out, "attention": attention}, (out * weight).sum())
    (out * weight).sum().backward()
    assert_gradients_and_buffers(golden, layer, our_dense_name)
    label = "eval.mid.position code (B,N,k,f)"
    assert_near_largest(stored_part(golden, label, place.detach()), golden.tensor(label), 1e-10, label)


# --- attention among points -------------------------------------------------------------------------------------------


THEIRS, OURS, LAYOUT = "pt_last.sa1.", "attend.layers.0.", "strawberry_pct_cls"


def our_offset_name(theirs: str) -> str:
    """The name of one layer by itself, by the layout of the network that it is published in."""
    found = translate_key(THEIRS + theirs, LAYOUT)
    assert found is not None
    return found.removeprefix(OURS)


@pytest.mark.shared
def test_offset_attention_agrees_with_the_reference(shared: Path) -> None:
    golden = load_golden(shared, "pct_offset_attention")
    layer = OffsetAttention(channels=64).double()
    state = convert_state_dict({THEIRS + key: value for key, value in golden.state().items()}, LAYOUT)
    layer.load_state_dict({key.removeprefix(OURS): value for key, value in state.items()})
    assert sum(parameter.numel() for parameter in layer.parameters()) == golden.info["param_count"]
    values, weight = golden.tensor("in.x").mT, golden.tensor("in.w").mT
    taps: dict[str, list[Tensor]] = {"eval.mid.q (B,16,N)": [], "eval.mid.v": []}
    for part, seen in zip((layer.query, layer.value), taps.values(), strict=True):
        part.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out.mT))
    for mode in each_mode(layer):
        output = layer(values)
        loss = (output * weight).sum()
        assert_outputs(golden, mode, {"out": output.mT}, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, layer, our_offset_name)
    for mid, found in taps.items():
        assert_near_largest(found[0], golden.tensor(mid), 1e-10, mid)


def test_two_points_by_hand() -> None:
    """Queries 1 and 2 give the likeness ((1, 2), (2, 4)): softmax over the last, s(1) and s(2), s(x) = 1/(1 + e^-x).

    Offset: columns (1 - s(1), 1 - s(2)) and (s(1), s(2)), each divided by its sum. Naive: rows, with sqrt(4 / 4) = 1.
    """
    values = torch.zeros(1, 2, 4, dtype=torch.float64)
    values[0, :, 0] = torch.tensor([1.0, 2.0])
    first, second = torch.sigmoid(torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist()
    rows = torch.tensor([[1 - first, first], [1 - second, second]], dtype=torch.float64)
    for kind, expected in ((SelfAttention, rows), (OffsetAttention, (rows / rows.sum(dim=0)).T)):
        layer = kind(channels=4).double()
        with torch.no_grad():
            layer.query.weight.zero_()[0, 0] = 1
        # The 1e-9 that keeps a sum from being zero shifts a quotient by as much.
        torch.testing.assert_close(layer.attention(values)[0], expected, rtol=0, atol=2e-9)


def test_a_point_that_nobody_looks_at_gives_numbers_in_float16() -> None:
    """One point draws all others: what they give the rest is below float16's 6e-8, and so is the 1e-9 of the guard."""
    layer, values = OffsetAttention(channels=8).eval(), torch.rand(1, 20, 8)
    values[0, 0] = 40
    with torch.no_grad():
        layer.query.weight.fill_(0.5)
        with torch.autocast("cpu", torch.float16):
            attention = layer.attention(values)
    # Every column of the paper's matrix is divided by its sum, which float32 can hold.
    assert attention.isfinite().all()


def test_offset_attention_takes_a_network_in_half_precision() -> None:
    torch.manual_seed(0)
    layer, values = OffsetAttention(channels=16).eval(), torch.randn(2, 10, 16)
    found = copy.deepcopy(layer).half()(values.half())
    assert found.dtype == torch.float16
    assert (found.float() - layer(values)).abs().max() < 20 * 2**-11 * values.abs().max()
