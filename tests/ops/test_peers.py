"""Functions by the names of other libraries: their documented calls, references written out, what they refuse."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sightline import ops
from sightline.ops.points import pointnet2, pytorch3d
from tests.cases import run_each
from tests.marks import long_but

CORNERS = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
SIDES = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
ONE = torch.zeros(4, dtype=torch.int64)
RING = [[1, 2, 0, 3, 0, 3, 1, 2], [0, 0, 1, 1, 2, 2, 3, 3]]

# --- Their calls ------------------------------------------------------------------------------------------------------

TORCH_CLUSTER = {
    "knn": "x, y, k, batch_x=None, batch_y=None, cosine=False, num_workers=1, batch_size=None",
    "knn_graph": "x, k, batch=None, loop=False, flow='source_to_target', cosine=False, num_workers=1, batch_size=None",
    "radius": "x, y, r, batch_x=None, batch_y=None, max_num_neighbors=32, num_workers=1, batch_size=None, "
    "ignore_same_index=False",
    "radius_graph": "x, r, batch=None, loop=False, max_num_neighbors=32, flow='source_to_target', num_workers=1, "
    "batch_size=None",
    "nearest": "x, y, batch_x=None, batch_y=None",
    "fps": "src, batch=None, ratio=0.5, random_start=True, batch_size=None, ptr=None",
}
PYTORCH3D = {
    "knn_points": "p1, p2, lengths1=None, lengths2=None, norm=2, K=1, version=-1, return_nn=False, return_sorted=True",
    "knn_gather": "x, idx, lengths=None",
    "ball_query": "p1, p2, lengths1=None, lengths2=None, K=500, radius=0.2, return_nn=True, "
    "skip_points_outside_cube=False",
    "sample_farthest_points": "points, lengths=None, K=50, random_start_point=False",
    "chamfer_distance": "x, y, x_lengths=None, y_lengths=None, x_normals=None, y_normals=None, weights=None, "
    "batch_reduction='mean', point_reduction='mean', norm=2, single_directional=False, abs_cosine=True",
}
POINTNET2 = {
    "furthest_point_sample": "xyz, npoint",
    "gather_operation": "features, idx",
    "grouping_operation": "features, idx",
    "three_nn": "unknown, known",
    "three_interpolate": "features, idx, weight",
    "ball_query": "radius, nsample, xyz, new_xyz",
    "QueryAndGroup": "radius, nsample, use_xyz=True",
    "GroupAll": "use_xyz=True",
}


@run_each("name", [*TORCH_CLUSTER, *PYTORCH3D])
def test_arguments_are_those_of_the_library(name: str) -> None:
    """Names, order and defaults as documented, but that `fps` draws no start unless asked."""
    stated = {**TORCH_CLUSTER, **PYTORCH3D}[name].replace("random_start=True", "random_start=False")
    assert arguments_of(getattr(ops, name)) == stated


@run_each("name", POINTNET2)
def test_arguments_are_those_of_pointnet2_ops(name: str) -> None:
    assert arguments_of(getattr(pointnet2, name)) == POINTNET2[name]
    assert name == "ball_query" or getattr(ops, name) is getattr(pointnet2, name)


def arguments_of(function: Callable[..., Any]) -> str:
    by_position = [each for each in inspect.signature(function).parameters.values() if each.kind != each.KEYWORD_ONLY]
    bare = [each.replace(annotation=each.empty) for each in by_position]
    return str(inspect.Signature(bare))[1:-1]


# --- torch-cluster ----------------------------------------------------------------------------------------------------


def test_the_square_of_torch_cluster_by_hand() -> None:
    """Corners of a square of side 2, and the middles of two sides: 1 from two corners, 2.24 from the others."""
    pairs = [[0, 0, 1, 1], [0, 1, 2, 3]]
    assert ops.knn(CORNERS, SIDES, 2, ONE, ONE[:2]).tolist() == pairs
    assert ops.knn(CORNERS, SIDES, 2, num_workers=4).tolist() == pairs
    assert ops.radius(CORNERS, SIDES, 1.5, ONE, ONE[:2]).tolist() == pairs
    assert ops.radius(CORNERS, SIDES, 1.0).shape == (2, 0), "the rim does not count"
    assert ops.radius(CORNERS, SIDES, 2.5, max_num_neighbors=3).tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    assert ops.radius(CORNERS, 9 + SIDES, 2.5).shape == (2, 0)
    for batch in (None, ONE):
        assert ops.knn_graph(CORNERS, 2, batch).tolist() == RING
        assert ops.knn_graph(CORNERS, k=2, batch=batch, flow="target_to_source").tolist() == RING[::-1]
        assert ops.radius_graph(CORNERS, 2.5, batch).tolist() == RING
        assert ops.radius_graph(CORNERS, r=2.5, batch=batch, flow="target_to_source").tolist() == RING[::-1]
        assert ops.nearest(CORNERS, SIDES, batch, None if batch is None else ONE[:2]).tolist() == [0, 0, 1, 1]
        assert ops.fps(CORNERS, batch, 0.5).tolist() == [0, 3]
    assert ops.fps(CORNERS, ratio=0.6).tolist() == [0, 3, 1], "ceil(2.4)"
    line = torch.tensor([0.0, 1.0, 3.0])
    assert ops.knn(line, torch.tensor([0.9]), 2).tolist() == [[0, 0], [1, 0]], "numbers are points of one channel"


@run_each("batch_size", [None, 3])
def test_segments_of_batch_vectors_do_not_meet(batch_size: int | None) -> None:
    x, batch = torch.cat([CORNERS, CORNERS[:3]]), torch.tensor([0, 0, 0, 0, 2, 2, 2])
    assert ops.knn_graph(x, 1, batch, batch_size=batch_size).tolist() == [[1, 0, 0, 1, 5, 4, 4], list(range(7))]
    found = ops.knn(x, SIDES, 3, batch, torch.tensor([0, 2]), batch_size=batch_size)
    assert found.tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 2, 6, 4, 5]]
    assert ops.knn_graph(x, 9, batch, loop=True, batch_size=batch_size).shape == (2, 4 * 4 + 3 * 3)
    assert ops.radius(x, SIDES, 1.5, batch, torch.tensor([1, 2]), batch_size=batch_size).tolist() == [[1], [6]]
    assert ops.nearest(x, SIDES[[0, 1, 0]], batch, torch.tensor([0, 0, 2])).tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert ops.fps(x, batch, 0.5, batch_size=batch_size).tolist() == [0, 3, 4, 5]


def test_segments_by_offsets_and_ratios_by_segment() -> None:
    """The two squares, of sides 2 and 4, of torch-cluster's own test."""
    square = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
    x, batch = torch.cat([square, 2 * square]), torch.tensor([0] * 4 + [1] * 4)
    for ratio in (None, 0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5])):
        assert ops.fps(x, batch, ratio).tolist() == [0, 2, 4, 6]
    assert ops.fps(x, ptr=[0, 4, 8]).tolist() == ops.fps(x, ptr=torch.tensor([0, 4, 8])).tolist() == [0, 2, 4, 6]
    assert ops.fps(x, batch, torch.tensor([1.0, 0.25])).tolist() == [0, 2, 1, 3, 4]
    assert sorted(ops.fps(x).tolist()) == [0, 5, 6, 7]


def test_a_share_is_rounded_to_float32_as_the_library_does() -> None:
    """0.07 * 100 is above 7 in double precision, 7 in float32; 0.001 * 3,000 is 3 and above 3."""
    for share, size in ((0.07, 100), (0.55, 100), (0.001, 3000), (0.3, 10)):
        expected = int((torch.tensor(float(size)) * share).ceil())
        assert len(ops.fps(torch.rand(size, 1), ratio=share)) == expected


def test_a_row_is_not_its_own_neighbour_among_equal_ones() -> None:
    """Of three equal rows, the nearest of the last are the others: it is not among its own two nearest."""
    for batch in (None, torch.zeros(3, dtype=torch.int64)):
        assert ops.knn_graph(torch.zeros(3, 2), 1, batch).tolist() == [[1, 0, 0], [0, 1, 2]]
        found = ops.radius_graph(torch.zeros(3, 2), 1.0, batch, max_num_neighbors=1)
        assert found.tolist() == [[1, 0, 0], [0, 1, 2]]


def test_neighbours_by_angle() -> None:
    """To (1, 0.1) the direction of (9, 0) is nearest and (1, 1) second, though (0, 1) is nearer than (9, 0)."""
    x, y = torch.tensor([[9.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.1]])
    assert ops.knn(x, y, 3, cosine=True).tolist() == [[0, 0, 0], [0, 1, 2]]
    assert ops.knn_graph(x, 1, cosine=True).tolist() == [[1, 0, 1], [0, 1, 2]]
    with pytest.raises(ValueError, match=r"points\[0\]: point 1 is \[nan"):
        ops.knn(torch.eye(3)[:, :2].roll(1, 0) * 0 + torch.tensor([[1.0, 0], [0, 0], [0, 1]]), y, 1, cosine=True)


def test_nothing_in_nothing_is_no_edge() -> None:
    none = torch.zeros(0, 2)
    assert ops.knn(none, SIDES, 2).shape == ops.knn(SIDES, none, 2).shape == ops.knn_graph(none, 2).shape == (2, 0)
    assert ops.knn_graph(SIDES[:1], 2).shape == ops.radius(none, SIDES, 1.0).shape == (2, 0)
    assert ops.fps(none).shape == (0,)


def test_a_random_start_is_drawn_within_each_segment() -> None:
    x, batch = torch.randn(30, 3), torch.tensor([0] * 25 + [1] * 5)
    first = ops.fps(x, batch, 0.04, random_start=True, generator=torch.Generator().manual_seed(3))
    assert len(first) == 2
    assert first[0] < 25 <= first[1]
    assert torch.equal(first, ops.fps(x, batch, 0.04, random_start=True, generator=torch.Generator().manual_seed(3)))
    drawn = [ops.sample_farthest_points(x[None], torch.tensor([5]), K=2, random_start_point=True)[1] for _ in range(20)]
    assert {int(index[0, 0]) for index in drawn} <= set(range(5))
    assert len({int(index[0, 0]) for index in drawn}) > 1


# --- PyTorch3D --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["left out", "kept apart"])
def padding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding is left out on a CPU, and kept apart on a GPU and in graphs."""
    monkeypatch.setattr(pytorch3d, "_may_read", lambda values: request.param == "left out")


@pytest.fixture
def padded(padding: None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clouds of 9 and 4 points, others of 2 and 7, with numbers in the padding that would be nearest, or no numbers."""
    p1, p2 = torch.randn(2, 9, 3, dtype=torch.float64), torch.randn(2, 7, 3, dtype=torch.float64)
    p2[0, 2:] = p1[0, :5]
    p1[1, 4:] = torch.nan
    return p1, p2, torch.tensor([9, 4]), torch.tensor([2, 7])


@run_each("norm", [1, 2])
def test_distances_agree_with_scipy_and_padding_is_0(norm: int, padded: tuple[Tensor, ...]) -> None:
    p1, p2, lengths1, lengths2 = padded
    found = ops.knn_points(p1, p2, lengths1, lengths2, norm=norm, K=3, return_nn=True)
    for cloud, (rows, others) in enumerate(zip(lengths1.tolist(), lengths2.tolist(), strict=True)):
        count = min(3, others)
        distance, index = cKDTree(p2[cloud, :others].numpy()).query(p1[cloud, :rows].numpy(), k=count, p=norm)
        torch.testing.assert_close(found.dists[cloud, :rows, :count], torch.from_numpy(distance) ** norm)
        assert torch.equal(found.idx[cloud, :rows, :count], torch.from_numpy(index))
        assert torch.equal(found.knn[cloud, :rows, :count], p2[cloud, torch.from_numpy(index)])
        for part in found:
            assert not part[cloud, rows:].any()
            assert not part[cloud, :rows, count:].any()
    assert torch.equal(ops.knn_gather(p2, found.idx, lengths2)[0], found.knn[0])
    p1 = p1.nan_to_num()
    none = ops.knn_points(p1, p2, lengths2=torch.tensor([0, 7]), norm=norm)
    assert not any(part[0].any() for part in none[:2]), "as there; `chamfer_distance` refuses it"
    whole = ops.knn_points(p1, p2, K=2, norm=norm)
    assert torch.equal(whole.idx, ops.nearest_neighbours(p2, 2, queries=p1, norm=norm))
    assert whole.knn is None
    more = ops.knn_points(p1, p2, K=9, norm=norm)
    assert not more.dists[..., 7:].any()
    assert torch.equal(more.idx[..., :2], whole.idx)


@run_each("num_channels", [1, 3, 6, 64])
@run_each("scale, dtype", [(1e-6, torch.float32), (1.0, torch.float64), (1e18, torch.float32), (1e4, torch.float16)])
def test_padding_never_comes_before_a_point(num_channels: int, scale: float, dtype: torch.dtype, padding: None) -> None:
    """Neighbours in padded clouds are those of each alone, with ties, in any number of channels and of any size."""
    p1, p2 = ((scale * torch.randn(2, count, num_channels)).to(dtype) for count in (30, 25))
    p2[1] = ((p2[1] / scale).round() * scale).to(dtype)
    lengths = torch.tensor([12, 25])
    found = ops.knn_points(p1, p2, lengths2=lengths, K=9).idx
    alone = [ops.nearest_neighbours(p2[[b], :n], 9, queries=p1[[b]]) for b, n in enumerate(lengths.tolist())]
    assert torch.equal(found, torch.cat(alone))


def test_distances_have_gradients_on_both_sides(padded: tuple[Tensor, ...]) -> None:
    p1, p2, lengths1, lengths2 = padded
    p1, p2 = p1.requires_grad_(), p2.requires_grad_()
    valid = p1.detach().nan_to_num().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ops.knn_points(a, b, lengths1, lengths2, K=2).dists, (valid, p2))
    assert torch.autograd.gradcheck(lambda a, b: ops.ball_query(a, b, lengths1, lengths2, 3, 1.5).dists, (valid, p2))
    ops.knn_points(p1, p2, lengths1, lengths2).dists.sum().backward()
    assert not p1.grad[1, 4:].any(), "padding that is no number moves nothing"
    half = ops.knn_points(300 * torch.ones(1, 2, 3).half(), torch.zeros(1, 2, 3).half()).dists
    assert half.tolist() == [[[270000.0]] * 2], "beyond the range of float16"


def test_points_in_a_ball_by_hand() -> None:
    """Points at 0 .. 4: nearer than 1 to 2 is itself alone, nearer than 1.5 are 1, 2, 3, and none to the one at 9."""
    line, centres = torch.arange(5.0).reshape(1, 5, 1), torch.tensor([[[2.0], [9.0]]])
    assert ops.ball_query(centres, line, K=3, radius=1.0).idx.tolist() == [[[2, -1, -1], [-1, -1, -1]]]
    dists, index, near = ops.ball_query(centres, line, K=4, radius=1.5)
    assert index.tolist() == [[[1, 2, 3, -1], [-1] * 4]]
    assert dists.tolist() == [[[1, 0, 1, 0], [0] * 4]]
    assert near[..., 0].tolist() == [[[1, 2, 3, 0], [0] * 4]]
    short = ops.ball_query(centres, line, torch.tensor([1]), torch.tensor([3]), K=4, radius=1.5, return_nn=False)
    assert short.idx.tolist() == [[[1, 2, -1, -1], [-1] * 4]]
    assert short.knn is None


def test_samples_of_padded_clouds() -> None:
    points, lengths = torch.randn(2, 8, 3), torch.tensor([8, 3])
    points[1, 3:] = torch.nan
    chosen, index = ops.sample_farthest_points(points, lengths, K=5)
    assert torch.equal(index[0], ops.farthest_points(points[:1], 5)[0])
    assert torch.equal(index[1], torch.cat([ops.farthest_points(points[1:, :3], 3)[0], torch.tensor([-1, -1])]))
    assert torch.equal(chosen[0], points[0, index[0]])
    assert torch.equal(chosen[1], torch.cat([points[1, index[1, :3]], torch.zeros(2, 3)]))
    same = points[:1].expand(2, -1, -1)
    assert torch.equal(ops.sample_farthest_points(same, K=5)[1][0], index[0])
    for counts in ([2, 9], (2, 9), torch.tensor([2, 9])):
        rows, each = ops.sample_farthest_points(same, K=counts)
        assert rows.shape == (2, 9, 3)
        assert each.tolist()[0] == [*index[0, :2].tolist(), *[-1] * 7]
        assert sorted(each[1].tolist()) == [-1, *range(8)]


def chamfer_by_loops(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    *,
    point_reduction: str = "mean",
    norm: int = 2,
    weights: Tensor | None = None,
    single_directional: bool = False,
) -> Tensor:
    """The distance of each pair of clouds, by the definition."""
    each = []
    for cloud, (one, other) in enumerate(zip(x_lengths.tolist(), y_lengths.tolist(), strict=True)):
        difference = x[cloud, :one, None] - y[cloud, None, :other]
        distances = (difference.abs() ** norm).sum(-1)
        ways = [distances.min(dim=1).values, distances.min(dim=0).values][: 1 if single_directional else 2]
        reduced = torch.stack(
            [getattr(torch, "amax" if point_reduction == "max" else point_reduction)(w) for w in ways]
        )
        weight = 1.0 if weights is None else weights[cloud]
        each.append(weight * (reduced.amax() if point_reduction == "max" else reduced.sum()))
    return torch.stack(each)


@run_each("norm", [1, 2])
@run_each("point_reduction", ["mean", "sum", "max"])
@run_each("weighted, single", [(False, False), (True, True)])
def test_the_chamfer_distance_is_its_definition(norm: int, point_reduction: Any, weighted: bool, single: bool) -> None:
    x, y = torch.randn(3, 6, 3).double(), torch.randn(3, 5, 3).double()
    weights = torch.tensor([1.0, 0.0, 3.0]).double() if weighted else None
    how: dict[str, Any] = {"norm": norm, "point_reduction": point_reduction, "single_directional": single}
    for lengths in ((None, None), (torch.tensor([6, 2, 1]), torch.tensor([4, 5, 1]))):
        sizes = [torch.full((3,), 6), torch.full((3,), 5)] if lengths[0] is None else lengths
        expected = chamfer_by_loops(x, y, *sizes, **how, weights=weights)
        total = 3.0 if weights is None else weights.sum()
        for reduction, value in ((None, expected), ("sum", expected.sum()), ("mean", expected.sum() / total)):
            loss, angles = ops.chamfer_distance(x, y, *lengths, weights=weights, batch_reduction=reduction, **how)
            torch.testing.assert_close(loss, value)
            assert angles is None


def test_the_chamfer_distance_by_hand() -> None:
    """{0, 2} and {1, 4} on a line: 1 and 1, mean 1; back 1 and 4, mean 2.5. The second cloud: 1 point each, 9 and 9."""
    x, y = torch.tensor([[[0.0], [2.0]], [[0.0], [7.0]]]), torch.tensor([[[1.0], [4.0]], [[3.0], [8.0]]])
    assert ops.chamfer_distance(x[:1], y[:1])[0].item() == 3.5
    one = torch.tensor([2, 1])
    assert ops.chamfer_distance(x, y, one, one)[0].item() == (3.5 + 18) / 2
    (there, back), _ = ops.chamfer_distance(x, y, one, one, batch_reduction=None, point_reduction=None)
    assert (there.tolist(), back.tolist()) == ([[1, 1], [9, 0]], [[1, 4], [9, 0]])
    assert ops.chamfer_distance(x[:0], y[:0])[0].item() == 0
    zero = torch.zeros(2)
    assert ops.chamfer_distance(x, y, weights=zero)[0].item() == 0, "as there, though no mean is defined"


def test_the_angle_of_normals() -> None:
    """The first normals are equal, the second opposite, the third at a right angle."""
    points = torch.arange(3.0).reshape(1, 3, 1).repeat(1, 1, 3)
    ones, others = (
        torch.eye(3)[[0, 0, 0]][None],
        torch.stack([torch.eye(3)[0], -torch.eye(3)[0], torch.eye(3)[1]])[None],
    )
    angles = [
        ops.chamfer_distance(points, points, None, lengths, x_normals=ones, y_normals=others, abs_cosine=size)[1].item()
        for size, lengths in ((True, None), (False, None), (True, torch.tensor([2])))
    ]
    assert angles == pytest.approx([2 / 3, 2, 0])


# --- pointnet2_ops ----------------------------------------------------------------------------------------------------


def test_functions_of_pointnet2_are_their_loops() -> None:
    xyz, features = torch.randn(2, 30, 3), torch.randn(2, 4, 30, requires_grad=True)
    chosen = pointnet2.furthest_point_sample(xyz, 6)
    new_xyz = pointnet2.gather_operation(xyz.mT, chosen.int()).mT
    assert torch.equal(new_xyz[1, 2], xyz[1, chosen[1, 2]])
    index = pointnet2.ball_query(1.0, 5, xyz, new_xyz)
    grouped = pointnet2.grouping_operation(features, index)
    dist, idx = pointnet2.three_nn(xyz, new_xyz)
    weight = 1 / (dist + 1e-8)
    spread = pointnet2.three_interpolate(features[:, :, :6], idx, weight / weight.sum(2, keepdim=True))
    for cloud in range(2):
        expected, nearest = cKDTree(new_xyz[cloud].numpy()).query(xyz[cloud].numpy(), k=3)
        np.testing.assert_allclose(dist[cloud], expected, rtol=1e-5)
        assert torch.equal(idx[cloud], torch.from_numpy(nearest))
        for centre, group in enumerate(index[cloud]):
            inside = (xyz[cloud] - new_xyz[cloud, centre]).norm(dim=1) < 1
            assert set(group.tolist()) == set(inside.nonzero()[:5, 0].tolist())
            assert torch.equal(grouped[cloud, :, centre], features[cloud][:, group])
    by_distance = ops.interpolate(features[:, :, :6].mT, points=new_xyz, queries=xyz, weighting="inverse").mT
    torch.testing.assert_close(spread, by_distance)
    together = pointnet2.QueryAndGroup(1.0, 5)(xyz, new_xyz, features)
    torch.testing.assert_close(together[:, 3:], grouped)
    torch.testing.assert_close(together[0, :3, 2, 1], xyz[0, index[0, 2, 1]] - new_xyz[0, 2])
    assert torch.equal(pointnet2.QueryAndGroup(1.0, 5, use_xyz=False)(xyz, new_xyz, features), grouped)
    assert pointnet2.GroupAll()(xyz, None, features).shape == (2, 7, 1, 30)
    together.sum().backward()
    assert features.grad.sum() == 2 * 4 * 6 * 5


def test_points_near_the_origin_are_not_sampled_as_in_their_kernel() -> None:
    points = torch.tensor([[[3.0, 0, 0], [0.01, 0, 0], [1.0, 0, 0], [2.0, 0, 0]]])
    assert pointnet2.furthest_point_sample(points, 3).tolist() == [[0, 2, 3]]
    assert ops.farthest_points(points, 3).tolist() == [[0, 1, 3]]


# --- Graphs, and what is read -----------------------------------------------------------------------------------------

EQUAL: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "nearest_neighbours": lambda x, y: ops.nearest_neighbours(x, 3, queries=y),
    "interpolate": lambda x, y: ops.interpolate(x, points=x, queries=y),
    "farthest_points": lambda x, y: ops.farthest_points(x, 5),
    "points_in_balls": lambda x, y: ops.points_in_balls(x, centres=x[:, :4], radius=1.0, num_neighbours=4),
    "knn_points": lambda x, y: ops.knn_points(x, y, K=3, return_nn=True),
    "knn_points by differences": lambda x, y: ops.knn_points(x, y, K=3, norm=1).idx,
    "ball_query": lambda x, y: ops.ball_query(x, y, K=5, radius=1.0),
    "sample_farthest_points": lambda x, y: ops.sample_farthest_points(x, K=[3, 7]),
    "chamfer_distance": lambda x, y: ops.chamfer_distance(x, y, x_normals=x, y_normals=y),
    "knn": lambda x, y: ops.knn(x[0], y[0], 3, cosine=True),
    "knn_graph": lambda x, y: ops.knn_graph(x[0], 3),
    "nearest": lambda x, y: ops.nearest(x[0], y[0]),
    "fps": lambda x, y: ops.fps(x[0], ratio=0.3),
    "three_nn": lambda x, y: ops.three_nn(x, y)[1],
    "QueryAndGroup": lambda x, y: ops.QueryAndGroup(1.0, 4)(x, x[:, :4], x.mT),
}
LENGTHS = torch.tensor([9, 5]), torch.tensor([3, 8])
PADDED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "knn_points of padded clouds": lambda x, y: ops.knn_points(x, y, *LENGTHS, K=4),
    "ball_query of padded clouds": lambda x, y: ops.ball_query(x, y, *LENGTHS, K=4, radius=1.0),
    "sample_farthest_points of padded clouds": lambda x, y: ops.sample_farthest_points(x, LENGTHS[0], K=7),
    "chamfer_distance of padded clouds": lambda x, y: ops.chamfer_distance(
        x, y, *LENGTHS, weights=torch.tensor([1.0, 2.0])
    )[0],
    "unpack": lambda x, y: ops.unpack(x.flatten(0, 1)[:12], offsets=torch.tensor([0, 9, 12]), max_size=10),
}
OF_VALUES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "radius": lambda x, y: ops.radius(x[0], y[0], 1.0),
    "radius_graph": lambda x, y: ops.radius_graph(x[0], 1.0),
    "knn of segments": lambda x, y: ops.knn(x[0], y[0, :2], 3, FIVE, torch.tensor([0, 1]), batch_size=2),
    "fps of segments": lambda x, y: ops.fps(x[0, :9], ratio=0.3, ptr=[0, 4, 9]),
}
FIVE = (torch.arange(9) >= 5).long()


class Reads(TorchDispatchMode):
    """Counts operations whose result, or its size, has to be read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        places = args[1] if name in ("index", "index_put", "index_put_") else ()
        is_mask = any(isinstance(place, Tensor) and place.dtype == torch.bool for place in places)
        if is_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@run_each("name", EQUAL)
def test_equal_sizes_are_not_read(name: str) -> None:
    with Reads() as reads:
        EQUAL[name](torch.randn(2, 9, 3), torch.randn(2, 8, 3))
    assert reads.found == []


class Calls(nn.Module):
    """Calls of tables, in one graph: each costs seconds."""

    def __init__(self, *calls: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor, y: Tensor) -> list[Any]:
        return [call(x, y) for call in self.calls]


def find_difference(found: Any, expected: Any) -> list[int]:
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    return [place for place, (one, other) in enumerate(pairs) if one is not other and not torch.equal(one, other)]


def clouds(*sizes: int) -> list[Tensor]:
    return [torch.randn(2, size, 3, generator=torch.Generator().manual_seed(size)) for size in sizes]


def test_one_graph_holds_them_all() -> None:
    network, given = Calls(*EQUAL.values(), *PADDED.values()), clouds(9, 8)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert find_difference(compiled(*given), network(*given)) == []


GRAPHS = {**EQUAL, **PADDED, **OF_VALUES}
OF_ONE_SIZE = ("unpack", "knn of segments", "fps of segments")
DAILY = ("chamfer_distance", "fps", "radius_graph", "unpack")


@pytest.mark.parametrize("name", long_but(DAILY, GRAPHS))
def test_exported_graphs_take_other_numbers_of_points(name: str) -> None:
    network = Calls(GRAPHS[name])
    axes = None if name in OF_ONE_SIZE else ({1: Dim.DYNAMIC}, {1: Dim.DYNAMIC})
    program = torch.export.export(network, tuple(clouds(9, 8)), dynamic_shapes=axes)
    assert "sightline" not in str(program.graph)
    for sizes in ((9, 8), (17, 12))[: 2 if axes else 1]:
        assert find_difference(program.module()(*clouds(*sizes)), network(*clouds(*sizes))) == []


# --- Refused ----------------------------------------------------------------------------------------------------------

POINTS = torch.zeros(2, 4, 3)


@run_each(
    "call, message",
    [
        (
            lambda: ops.knn_graph(CORNERS, 1, torch.tensor([0, 1, 0, 1])),
            r"batch \(4,\) of 4 rows; give the segment of eac",
        ),
        (lambda: ops.knn_graph(CORNERS, 1, torch.tensor([0, 1])), r"batch \(2,\) of 4 rows"),
        (
            lambda: ops.knn(CORNERS, SIDES, 1, ONE, ONE[:2] + 1, batch_size=1),
            r"batch \(2,\) of 2 .*, below batch_size=1",
        ),
        (lambda: ops.knn_graph(CORNERS, 1, flow="up"), "flow: found 'up', expected 'source_to_target' or"),
        (lambda: ops.fps(CORNERS, ratio=1.5), "ratio: found 1.5, expected a share of 0 to 1"),
        (
            lambda: ops.fps(CORNERS, ONE, torch.ones(3)),
            "ratio: found 3 numbers for 1 segments; give one, or one for each",
        ),
        (lambda: ops.fps(CORNERS, ONE, ptr=[0, 4]), "batch and ptr both state the segments; give one of them"),
        (lambda: ops.fps(CORNERS, ptr=[0, 3]), r"ptr \[0, 3\] of 4 rows; they start at 0"),
        (lambda: ops.knn_points(POINTS.int(), POINTS.int()), r"p1: found torch.int32, .*; write p1.float\(\)"),
        (lambda: ops.knn_points(POINTS, POINTS.double()), r"p1 \(2, 4, 3\) torch.float32 on cpu do not go with points"),
        (lambda: ops.knn_points(POINTS, POINTS, norm=3), "norm: found 3, expected 2, of squared distances, or 1"),
        (lambda: ops.knn_points(POINTS, POINTS, K=0), "0 neighbours asked for"),
        (
            lambda: ops.knn_points(POINTS, POINTS, torch.tensor([5, 1])),
            r"lengths of p1: found \[5, 1\], expected 0 to 4",
        ),
        (
            lambda: ops.ball_query(POINTS, POINTS, None, torch.ones(3)),
            r"lengths of p2: found the shape \(3,\) torch.float32",
        ),
        (
            lambda: ops.sample_farthest_points(POINTS, K=[1, 2, 3]),
            r"K: found \(3,\), expected \(2,\), a number for each",
        ),
        (lambda: ops.chamfer_distance(POINTS, POINTS[:, :0]), "y has no points and x has: there is no nearest"),
        (
            lambda: ops.chamfer_distance(POINTS, POINTS, torch.tensor([1, 0])),
            r"x\[1\] has no points and y\[1\] has: there is no nearest; leave it out",
        ),
        (
            lambda: ops.chamfer_distance(POINTS, POINTS, weights=-torch.ones(2)),
            r"weights: found \[-1.0, -1.0\], expected 0",
        ),
        (lambda: ops.chamfer_distance(POINTS, POINTS, x_normals=POINTS), "y_normals: found None beside x_normals"),
        (lambda: ops.chamfer_distance(POINTS, POINTS, point_reduction=None), "batch_reduction: give None where point_"),
        (
            lambda: ops.chamfer_distance(POINTS, POINTS, batch_reduction="max"),
            "batch_reduction: found 'max', expected one",
        ),
        (lambda: pointnet2.three_nn(POINTS, POINTS[:, :2]), "3 neighbours asked for in clouds of 2 points"),
        (lambda: pointnet2.ball_query(0.1, 2, POINTS, POINTS + 1), "centre 0 has no point within 0.1, the nearest"),
        (lambda: pointnet2.QueryAndGroup(0.1, 2, False)(POINTS, POINTS), "use_xyz: found False without features"),
        (lambda: ops.unpack(POINTS[0], offsets=torch.tensor([0, 1, 4]), max_size=2), "max_size: found 2, .* least 3"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
