"""Vector attention: the authors' numbers, the fused form against the plain one, and both on clouds too small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline import numba_kernels
from sightline.geometry.packed import Edges, build_pyramid
from sightline.layers.vector_attention import PlainVectorAttention, VectorAttention
from sightline.published.translation import translate_key
from tests.golden_parity import (
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
)
from tests.layers.passes import (
    BOUND,
    assert_bf16_errs_no_more,
    assert_passes_agree,
    assert_processes_agree,
    run,
    unsettle,
)

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
    """One state, both forms, float64; norms of both signs, and one weight of each is exactly 0."""
    plain, fused = PlainVectorAttention(channels=channels).double(), VectorAttention(channels=channels).double()
    unsettle(plain)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def our_name(key: str) -> str | None:
    """Ours of a key of the layer alone."""
    name = translate_key(f"enc1.1.transformer2.{key}", "postech_point_transformer_seg")
    return name and name.removeprefix("stages.0.blocks.0.attention.")


@pytest.mark.parametrize(("channels", "expected"), [(32, 3538), (64, 13_490), (128, 52_690), (512, 828_178)])
def test_size_is_the_published_one(channels: int, expected: int) -> None:
    assert sum(each.numel() for each in PlainVectorAttention(channels=channels).parameters()) == expected


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
    padded = Edges(index, points[index] - points[:, None], torch.full((26,), 8), is_whole=True)

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


def test_gradients_agree_with_finite_differences() -> None:
    _, fused = pair_of_layers(16)
    edges, features = edges_of((6, 3), 4), torch.randn(9, 16, dtype=torch.float64, requires_grad=True)
    weights = {name: value.detach().requires_grad_() for name, value in fused.named_parameters()}
    buffers = {name: value.clone() for name, value in fused.named_buffers()}

    def attended(features: Tensor, *values: Tensor) -> Tensor:
        # running statistics are written to copies, so that every call is the same function
        state = dict(zip(weights, values, strict=True)) | {name: value.clone() for name, value in buffers.items()}
        return torch.func.functional_call(fused, state, (features, edges))

    assert torch.autograd.gradcheck(attended, (features, *weights.values()), atol=1e-6)


def test_float32_errs_no_more_than_the_plain_form() -> None:
    """The plain form's own error against float64 is the yardstick: both round the same inputs."""
    edges = edges_of((200,), 16, dtype=torch.float32)
    plain, _ = pair_of_layers(32)
    features, weight = torch.randn(200, 32), torch.randn(200, 32)
    wide = Edges(edges.index, edges.relative.double(), edges.count, edges.is_whole)
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
        return self.attention(features, Edges(edges.index, relative, edges.count, edges.is_whole))


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
    edges, threads, found = edges_of((50, 3), 6, dtype=torch.float32), torch.get_num_threads(), []
    layer = pair_of_layers(16)[1].float()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    given, weight = {"features": torch.randn(53, 16)}, torch.randn(53, 16)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            layer.load_state_dict(state)
            layer.zero_grad()
            found.append(run(OnEdges(layer, edges), given, weight))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0].output, found[1].output)
    assert all(torch.equal(value, found[1].gradients[name]) for name, value in found[0].gradients.items())


@FORMS
def test_weights_of_neighbours_add_up_to_one(form: type[PlainVectorAttention]) -> None:
    """Values that are all alike, without codes of places, come out as they are, whatever the scores."""
    layer = form(channels=16).double()
    nn.init.zeros_(layer.value.weight)
    nn.init.zeros_(layer.code.weight)
    nn.init.zeros_(layer.code.bias)
    out = layer(torch.randn(33, 16).double(), edges_of((30, 2, 1), 8))
    torch.testing.assert_close(out, layer.value.bias.expand_as(out), rtol=0, atol=1e-14)


@pytest.mark.parametrize("changes", [{"dtype": torch.bfloat16}, {"requires_grad": True}])
def test_what_the_kernels_cannot_take_goes_the_plain_way(changes: dict[str, Any]) -> None:
    """Half precision, and gradients of the places, which the plain form alone has."""
    edges = edges_of((20,), 6)
    relative = edges.relative.to(changes.get("dtype", torch.float64)).requires_grad_("requires_grad" in changes)
    edges = Edges(edges.index, relative, edges.count, edges.is_whole)
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
        VectorAttention(channels=8).double()(
            torch.randn(10, 8).double(), Edges(index, edges.relative, edges.count, is_whole=True)
        )
