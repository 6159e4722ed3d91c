"""Ragged clouds: each segment as if it were alone, the published numbers, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sightline.data.loading.batch_reader import collate
from sightline.geometry import ball_query, farthest_point_sample, interpolate, nearest_neighbours
from sightline.geometry.packed import (
    pack,
    packed_ball_query,
    packed_farthest_point_sample,
    packed_interpolate,
    packed_nearest_neighbours,
    unpack,
)
from sightline.types import Field, SampleKey
from tests.golden_parity import Golden, load_golden

COUNTS = (37, 1, 0, 500, 5)


@pytest.fixture
def ragged() -> tuple[Tensor, Tensor]:
    return torch.randn(sum(COUNTS), 3), with_zero(torch.tensor(COUNTS).cumsum(0))


def with_zero(ends: Tensor) -> Tensor:
    return torch.nn.functional.pad(ends.long(), (1, 0))


def segments(offsets: Tensor) -> list[tuple[int, int]]:
    return [(a, b) for a, b in zip(offsets.tolist(), offsets.tolist()[1:], strict=False) if a < b]


def golden_case(golden: Golden, case: int) -> tuple[Tensor, Tensor, Tensor]:
    points = golden.tensor(f"case{case}.xyz")
    return points, with_zero(golden.tensor(f"case{case}.offset")), with_zero(golden.tensor(f"case{case}.new_offset"))


def test_each_segment_has_the_neighbours_it_has_alone(ragged: tuple[Tensor, Tensor]) -> None:
    points, offsets = ragged
    found = packed_nearest_neighbours(points, offsets=offsets, num_neighbours=8)
    for begin, end in segments(offsets):
        count = min(8, end - begin)
        alone = nearest_neighbours(points[None, begin:end], num_neighbours=count)[0] + begin
        assert torch.equal(found.index[begin:end, :count], alone)
        assert (found.index[begin:end, count:] == begin).all()
        assert (found.is_valid[begin:end].sum(1) == count).all()
        assert found.is_valid[begin:end, :count].all()


def test_each_segment_is_sampled_as_it_is_alone(ragged: tuple[Tensor, Tensor]) -> None:
    points, offsets = ragged
    num_samples = torch.where(offsets.diff() > 0, (offsets.diff() // 4).clamp(min=1), 0)
    chosen = packed_farthest_point_sample(points, offsets=offsets, num_samples=num_samples)
    assert chosen.offsets.tolist() == [0, 9, 10, 10, 135, 136]
    expected = [
        farthest_point_sample(points[None, begin:end], num_samples=max(1, (end - begin) // 4))[0] + begin
        for begin, end in segments(offsets)
    ]
    assert torch.equal(chosen.index, torch.cat(expected))
    started = packed_farthest_point_sample(
        points, offsets=offsets, num_samples=num_samples, start=torch.tensor([5, 0, 0, 9, 2])
    )
    assert started.index[started.offsets[torch.tensor([0, 1, 3, 4])]].tolist() == [5, 37, 38 + 9, 538 + 2]


def test_each_segment_is_grouped_and_interpolated_as_it_is_alone(ragged: tuple[Tensor, Tensor]) -> None:
    points, offsets = ragged
    chosen = packed_farthest_point_sample(points, offsets=offsets, num_samples=(offsets.diff() + 1) // 2)
    centres, features = points[chosen.index], torch.randn(len(chosen.index), 6)
    groups = packed_ball_query(
        points, offsets=offsets, centres=centres, centre_offsets=chosen.offsets, radius=0.7, num_neighbours=9
    )
    spread = packed_interpolate(
        features, points=centres, offsets=chosen.offsets, queries=points, query_offsets=offsets, weighting="inverse"
    )
    for (begin, end), (first, last) in zip(segments(offsets), segments(chosen.offsets), strict=True):
        own, coarse = points[None, begin:end], centres[None, first:last]
        alone = ball_query(own, centres=coarse, radius=0.7, num_neighbours=9)[0] + begin
        assert torch.equal(groups[first:last], alone)
        carried = interpolate(features[None, first:last], points=coarse, queries=own, weighting="inverse")[0]
        # fewer points than neighbours: zeros are added to the same sums
        assert torch.equal(spread[begin:end], carried)


def test_gradients_of_interpolation_stay_within_their_segment(ragged: tuple[Tensor, Tensor]) -> None:
    points, offsets = ragged
    points, features = points.double(), torch.randn(sum(COUNTS), 2, dtype=torch.float64, requires_grad=True)
    queries = torch.randn(4, 3, dtype=torch.float64)
    query_offsets = torch.tensor([0, 2, 2, 2, 2, 4])
    spread = packed_interpolate(features, points=points, offsets=offsets, queries=queries, query_offsets=query_offsets)
    (gradient,) = torch.autograd.grad(spread.sum(), features)
    assert (gradient[37:538] == 0).all()
    # the weights of each query add up to one
    torch.testing.assert_close(gradient[:37].sum(0), torch.full((2,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(gradient[538:].sum(0), torch.full((2,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("case", range(4))
def test_published_numbers(case: int, shared) -> None:
    golden = load_golden(shared, "fn_packed_ops")
    points, offsets, new_offsets = golden_case(golden, case)
    chosen = packed_farthest_point_sample(points, offsets=offsets, num_samples=new_offsets.diff())
    assert torch.equal(chosen.index, golden.tensor(f"case{case}.fps_idx").long())
    assert torch.equal(chosen.offsets, new_offsets)
    queries, padded = points[chosen.index], golden.tensor(f"case{case}.padded_rows")
    near = packed_nearest_neighbours(
        points,
        offsets=offsets,
        num_neighbours=int(golden.arrays[f"case{case}.k"]),
        queries=queries,
        query_offsets=new_offsets,
    )
    expected = golden.tensor(f"case{case}.knn_idx").long()
    assert torch.equal(near.is_valid.all(1), ~padded)
    assert torch.equal(near.index[near.is_valid], expected[near.is_valid])
    assert torch.equal(near.index[~padded], expected[~padded])


@pytest.mark.parametrize("case", range(4))
def test_published_interpolation(case: int, shared) -> None:
    """Where a segment has under 3 coarse points the reference weighs padding in: 1 / 1e5 beside 1 / d."""
    golden = load_golden(shared, "fn_packed_ops")
    points, offsets, new_offsets = golden_case(golden, case)
    coarse = points[golden.tensor(f"case{case}.fps_idx").long()]
    features = golden.tensor(f"case{case}.coarse_feat")
    spread = packed_interpolate(
        features, points=coarse, offsets=new_offsets, queries=points, query_offsets=offsets, weighting="inverse"
    )
    error = (spread - golden.tensor(f"case{case}.interp")).abs().max(dim=1).values
    is_whole = torch.repeat_interleave(new_offsets.diff() >= 3, offsets.diff())
    assert error[is_whole].max() < 1e-14 * 8
    # up to two paddings of weight 1e-5 beside a first one of 1 / (d + 1e-8); features differ by up to twice the largest
    first = golden.tensor(f"case{case}.interp_dist")[:, 0] + 1e-8
    assert (error <= 4e-5 * first * features.abs().max() + 1e-14)[~is_whole].all()


def test_the_collate_step_writes_these_offsets() -> None:
    clouds = [torch.randn(count, 3) for count in (4, 9)]
    fields = {"points": Field("points 3", "float32", collate="concatenate")}
    batch = collate([{"points": cloud} for cloud in clouds], [SampleKey(i, 0, 0) for i in range(2)], fields)
    found = packed_nearest_neighbours(batch["points"], offsets=batch["offsets"], num_neighbours=4)
    assert torch.equal(found.index[4:], nearest_neighbours(clouds[1][None], num_neighbours=4)[0] + 4)


def test_padded_clouds_become_packed_ones_and_come_back() -> None:
    padded, counts = torch.randn(3, 6, 2), torch.tensor([6, 0, 4])
    mask = torch.arange(6) < counts[:, None]
    rows, offsets = pack(padded, mask=mask)
    assert offsets.tolist() == [0, 6, 6, 10]
    assert torch.equal(rows, torch.cat([padded[0], padded[2, :4]]))
    again, again_mask = unpack(rows, offsets=offsets)
    assert torch.equal(again, padded * mask[..., None])
    assert torch.equal(again_mask, mask)


@pytest.mark.parametrize("offsets", [[4, 10], [0, 4], [0, 12], [0, 7, 4, 10], []])
def test_offsets_that_do_not_fit(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match=r"offsets \[.*\] of 10 rows; they start at 0"):
        packed_nearest_neighbours(torch.zeros(10, 3), offsets=torch.tensor(offsets), num_neighbours=1)


def test_what_cannot_be_done_names_the_segment() -> None:
    points, offsets = torch.randn(6, 3), torch.tensor([0, 6, 6])
    with pytest.raises(ValueError, match="segment 1: 2 queries and no points"):
        packed_nearest_neighbours(
            points, offsets=offsets, num_neighbours=1, queries=points[:2], query_offsets=torch.tensor([0, 0, 2])
        )
    with pytest.raises(ValueError, match="segment 1: 1 samples asked for in 0 points"):
        packed_farthest_point_sample(points, offsets=offsets, num_samples=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="2 segments of points, 1 of queries"):
        packed_nearest_neighbours(
            points, offsets=offsets, num_neighbours=1, queries=points, query_offsets=torch.tensor([0, 6])
        )
    with pytest.raises(ValueError, match="queries and query_offsets belong together"):
        packed_nearest_neighbours(points, offsets=offsets, num_neighbours=1, queries=points)
    points[3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"points\[0\]: point 3 is \[nan"):
        packed_nearest_neighbours(points, offsets=torch.tensor([0, 6]), num_neighbours=1)
