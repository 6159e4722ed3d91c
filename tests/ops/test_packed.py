"""Ragged clouds and their levels: each segment as if it were alone, the published numbers, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from sightline.layers.pyramid import build_pyramid
from sightline.ops import farthest_points, interpolate, nearest_neighbours, points_in_balls
from sightline.ops.points.ball_query import packed_points_in_balls
from sightline.ops.points.farthest_points import packed_farthest_points
from sightline.ops.points.interpolation import packed_interpolate
from sightline.ops.points.neighbours import packed_nearest_neighbours
from sightline.ops.segments.offsets import pack, unpack
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
    chosen = packed_farthest_points(points, offsets=offsets, num_samples=num_samples)
    assert chosen.offsets.tolist() == [0, 9, 10, 10, 135, 136]
    expected = [
        farthest_points(points[None, begin:end], num_samples=max(1, (end - begin) // 4))[0] + begin
        for begin, end in segments(offsets)
    ]
    assert torch.equal(chosen.index, torch.cat(expected))
    started = packed_farthest_points(
        points, offsets=offsets, num_samples=num_samples, start=torch.tensor([5, 0, 0, 9, 2])
    )
    assert started.index[started.offsets[torch.tensor([0, 1, 3, 4])]].tolist() == [5, 37, 38 + 9, 538 + 2]


def test_each_segment_is_grouped_and_interpolated_as_it_is_alone(ragged: tuple[Tensor, Tensor]) -> None:
    points, offsets = ragged
    chosen = packed_farthest_points(points, offsets=offsets, num_samples=(offsets.diff() + 1) // 2)
    centres, features = points[chosen.index], torch.randn(len(chosen.index), 6)
    groups = packed_points_in_balls(
        points, offsets=offsets, centres=centres, centre_offsets=chosen.offsets, radius=0.7, num_neighbours=9
    )
    spread = packed_interpolate(
        features, points=centres, offsets=chosen.offsets, queries=points, query_offsets=offsets, weighting="inverse"
    )
    for (begin, end), (first, last) in zip(segments(offsets), segments(chosen.offsets), strict=True):
        own, coarse = points[None, begin:end], centres[None, first:last]
        alone = points_in_balls(own, centres=coarse, radius=0.7, num_neighbours=9)[0] + begin
        assert torch.equal(groups[first:last], alone)
        carried = interpolate(features[None, first:last], points=coarse, queries=own, weighting="inverse")[0]
        # fewer points than neighbours: zeros are added to the same sums
        assert torch.equal(spread[begin:end], carried)


def test_features_are_those_of_the_points_and_may_be_whole_numbers(ragged: tuple[Tensor, Tensor]) -> None:
    points, offsets = ragged
    colours = torch.randint(0, 256, (len(points), 3), dtype=torch.uint8)
    packed = {"points": points, "offsets": offsets, "queries": points + 0.01, "query_offsets": offsets}
    dense = {"points": points[None], "queries": points[None] + 0.01}
    for given in (colours, colours > 99, colours.long()):
        assert torch.equal(packed_interpolate(given, **packed), packed_interpolate(given.float(), **packed))
        assert torch.equal(interpolate(given[None], **dense), interpolate(given[None].float(), **dense))
    for others in (colours[:-1], colours.repeat(2, 1)):
        with pytest.raises(ValueError, match=r"features \(\d+, 3\) do not go with points \(543, 3\)"):
            packed_interpolate(others.float(), **packed)
    twice = {name: rows.expand(2, -1, -1) for name, rows in dense.items()}
    with pytest.raises(ValueError, match=r"features \(1, 543, 3\) do not go with points \(2, 543, 3\)"):
        interpolate(colours[None].float(), **twice)  # the features of one cloud would be taken for both


@pytest.mark.parametrize("case", range(4))
def test_published_numbers(case: int, shared) -> None:
    golden = load_golden(shared, "fn_packed_ops")
    points, offsets, new_offsets = golden_case(golden, case)
    chosen = packed_farthest_points(points, offsets=offsets, num_samples=new_offsets.diff())
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


def test_padded_clouds_become_packed_ones_and_come_back() -> None:
    padded, counts = torch.randn(3, 6, 2), torch.tensor([6, 0, 4])
    mask = torch.arange(6) < counts[:, None]
    rows, offsets = pack(padded, mask=mask)
    assert offsets.tolist() == [0, 6, 6, 10]
    assert torch.equal(rows, torch.cat([padded[0], padded[2, :4]]))
    again, again_mask = unpack(rows, offsets=offsets)
    assert torch.equal(again, padded * mask[..., None])
    assert torch.equal(again_mask, mask)


def test_offsets_and_counts_have_to_be_tensors_that_fit() -> None:
    points, offsets = torch.rand(6, 3), torch.tensor([0, 2, 6])
    with pytest.raises(ValueError, match="found a list of offsets or numbers; give a tensor"):
        packed_farthest_points(points, offsets=offsets, num_samples=[1, 1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found a list of offsets or numbers; give a tensor"):
        unpack(points, offsets=[0, 2, 6])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"offsets .* of 6 rows; they start at 0"):
        unpack(points, offsets=torch.tensor([0, 2, 4]))
    with pytest.raises(ValueError, match="found a list of offsets or numbers; give a tensor"):
        packed_nearest_neighbours(points, offsets=[0, 2, 6], num_neighbours=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"points: found the shape \(1, 6, 3\), expected \(rows, channels\)"):
        packed_nearest_neighbours(points[None], offsets=offsets, num_neighbours=1)
    with pytest.raises(ValueError, match=r"offsets of points: found the shape \(1, 3\), expected \(clouds \+ 1,\)"):
        packed_nearest_neighbours(points, offsets=offsets[None], num_neighbours=1)


def test_no_segments_are_padded_to_nothing() -> None:
    padded, mask = unpack(torch.zeros(0, 3), offsets=torch.tensor([0]))
    assert (padded.shape, mask.shape) == ((0, 0, 3), (0, 0))


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
        packed_farthest_points(points, offsets=offsets, num_samples=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="segment 0: -2 samples asked for; num_samples is at least 0"):
        packed_farthest_points(points, offsets=offsets, num_samples=torch.tensor([-2, 0]))
    with pytest.raises(ValueError, match="num_samples: found 1 numbers for 2 segments"):
        packed_farthest_points(points, offsets=offsets, num_samples=torch.tensor([2]))
    with pytest.raises(ValueError, match="max_distance: found -1, expected 0 or more"):
        farthest_points(points[None], 2, max_distance=-1.0)
    with pytest.raises(ValueError, match="2 segments of points, 1 of queries"):
        packed_nearest_neighbours(
            points, offsets=offsets, num_neighbours=1, queries=points, query_offsets=torch.tensor([0, 6])
        )
    with pytest.raises(ValueError, match="queries and query_offsets belong together"):
        packed_nearest_neighbours(points, offsets=offsets, num_neighbours=1, queries=points)
    points[3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"points\[0\]: point 3 is \[nan"):
        packed_nearest_neighbours(points, offsets=torch.tensor([0, 6]), num_neighbours=1)


# --- Levels of ragged clouds: what is found once is what a search for each would find ---


LEVEL_COUNTS = (70, 1, 0, 200, 5)
OFFSETS = torch.tensor([0, 70, 71, 71, 271, 276])


@pytest.fixture
def points() -> Tensor:
    return torch.randn(sum(LEVEL_COUNTS), 3, dtype=torch.float64)


def test_each_level_keeps_a_share_of_every_cloud_and_at_least_one_point(points: Tensor) -> None:
    levels = build_pyramid(points, offsets=OFFSETS, strides=(1, 4, 1, 4), num_neighbours=(4, 8, 8, 8))
    sizes = [level.offsets.diff().tolist() for level in levels]
    assert sizes == [[70, 1, 0, 200, 5], [17, 1, 0, 50, 1], [17, 1, 0, 50, 1], [4, 1, 0, 12, 1]]
    chosen = farthest_points(points[None, 71:271], num_samples=50)[0]
    assert torch.equal(levels[1].points[18:68], points[71:271][chosen])
    assert levels[2].points is levels[1].points
    assert levels[2].downsampling is None


@pytest.mark.parametrize("num_neighbours", [(4, 8), (8, 4), (300, 300)])
def test_neighbours_down_are_those_of_a_search(points: Tensor, num_neighbours: tuple[int, int]) -> None:
    """Whether they are found anew or taken from those of the finer level."""
    fine, coarse = build_pyramid(points, offsets=OFFSETS, strides=(1, 4), num_neighbours=num_neighbours)
    assert coarse.downsampling is not None
    found = packed_nearest_neighbours(
        points, offsets=OFFSETS, num_neighbours=200, queries=coarse.points, query_offsets=coarse.offsets
    )
    is_valid = coarse.downsampling.is_valid
    width = coarse.downsampling.index.shape[1]
    assert width == min(num_neighbours[1], 200)
    assert torch.equal(is_valid, found.is_valid[:, :width])
    assert torch.equal(coarse.downsampling.index[is_valid], found.index[:, :width][is_valid])
    expected = points[coarse.downsampling.index] - coarse.points[:, None]
    assert torch.equal(coarse.downsampling.relative, torch.where(is_valid[..., None], expected, 0))
    for edges in (fine.neighbours, coarse.downsampling):
        rows = edges.rows if edges.rows is not None else torch.arange(edges.index.numel())
        assert torch.equal(rows, edges.is_valid.flatten().nonzero()[:, 0])


def test_neighbours_agree_with_scipy(points: Tensor) -> None:
    near = build_pyramid(points, offsets=OFFSETS, strides=(1,), num_neighbours=(6,))[0].neighbours
    distance, index = cKDTree(points[71:271].numpy()).query(points[71:271].numpy(), k=6)
    assert torch.equal(near.index[71:271] - 71, torch.from_numpy(index))
    torch.testing.assert_close(near.relative[71:271].norm(dim=-1), torch.from_numpy(distance))
    assert near.count.tolist() == [6] * 70 + [1] + [6] * 200 + [5] * 5


def test_features_come_up_as_they_are_interpolated(points: Tensor) -> None:
    """A cloud with one or two coarse points takes what it has."""
    _, coarse = build_pyramid(points, offsets=OFFSETS, strides=(1, 4), num_neighbours=(4, 8))
    assert coarse.interpolation is not None
    features = torch.randn(len(coarse.points), 2, dtype=torch.float64)
    carried = (features[coarse.interpolation.index] * coarse.interpolation.weights[..., None]).sum(dim=1)
    expected = interpolate(
        features[None, 18:68], points=coarse.points[None, 18:68], queries=points[None, 71:271], weighting="inverse"
    )
    torch.testing.assert_close(carried[71:271], expected[0])
    assert torch.equal(carried[70], features[17])
    assert torch.equal(carried[271:], features[68:].expand(5, 2))


def test_moments_are_those_of_the_real_places(points: Tensor) -> None:
    near = build_pyramid(points, offsets=OFFSETS, strides=(1,), num_neighbours=(8,))[0].neighbours
    rows = near.relative[near.is_valid]
    mean, products = near.moments
    assert near.num_edges == len(rows) == 70 * 8 + 1 + 200 * 8 + 5 * 5
    torch.testing.assert_close(mean, rows.mean(dim=0))
    torch.testing.assert_close(products, torch.einsum("ea,eb->ab", rows, rows) / len(rows))
