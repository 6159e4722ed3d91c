"""Farthest points and interpolation: by hand, NumPy's loop, SciPy, published numbers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.export import Dim

from sightline.ops import operator
from sightline.ops.points.farthest_points import farthest_points, packed_farthest_points
from sightline.ops.points.grouping import gather_points
from sightline.ops.points.interpolation import Weighting, interpolate, inverse_distance_weights
from sightline.ops.points.neighbours import nearest_neighbours, packed_nearest_neighbours
from sightline.ops.waits import send_list
from tests.cases import run_each
from tests.golden_parity import load_golden


@pytest.fixture(params=["compiled", "plain"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(operator, "can_use_numba", lambda *tensors, **named: False)
    return request.param


def by_numpy(cloud: Tensor, num_samples: int, start: int = 0) -> list[int]:
    """The contract for one cloud: products rounded, then added, channel after channel; ties to the lower index."""
    points = cloud.numpy()
    nearest = np.full(len(points), np.inf, dtype=points.dtype)
    chosen = [start]
    for _ in range(num_samples - 1):
        squared = np.zeros(len(points), dtype=points.dtype)
        for channel in range(points.shape[1]):
            difference = points[:, channel] - points[chosen[-1], channel]
            squared = squared + difference * difference
        nearest = np.minimum(nearest, squared)
        chosen.append(int(nearest.argmax()))
    return chosen


@run_each("dtype", [torch.float32, torch.float64])
@run_each("num_channels", [1, 2, 3, 7, 64])
@run_each("num_points", [1, 31, 65, 500])
def test_every_choice_is_that_of_the_plain_rule(
    num_points: int, num_channels: int, dtype: torch.dtype, form: str
) -> None:
    drawn = torch.randn(num_points, num_channels, dtype=dtype)
    grid = torch.randint(0, 4, (num_points, num_channels)).to(dtype) / 10  # ties and duplicates
    points, count = torch.stack([drawn, grid]), min(num_points, 200)
    start = torch.tensor([0, num_points // 2])
    index = farthest_points(points, num_samples=count, start=start)
    expected = [by_numpy(cloud, count, int(first)) for cloud, first in zip(points, start, strict=True)]
    assert index.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_points", [513, 8_193, 20_000])
def test_every_choice_from_clouds_with_several_levels_of_nodes(num_points: int, dtype: torch.dtype) -> None:
    drawn = torch.randn(num_points, 3, dtype=dtype)
    grid = torch.randint(0, 7, (num_points, 3)).to(dtype) / 10  # far more points than places
    points, count = torch.stack([drawn, grid, drawn * 1e4]), 400
    index = farthest_points(points, num_samples=count, start=num_points - 1)
    assert index.tolist() == [by_numpy(cloud, count, num_points - 1) for cloud in points]
    barred = farthest_points(points, num_samples=count, min_squared_norm=1.5)
    assert (points[0, barred[0, 1:]].square().sum(dim=1) > 1.5).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator, "can_use_numba", lambda *tensors, **named: False)
        plain = farthest_points(points, num_samples=count, min_squared_norm=1.5)
    assert torch.equal(barred, plain)


@run_each("scale", [1e-25, 1.0, 3e5, 1e25])
def test_numbers_of_any_size(scale: float, form: str) -> None:
    """Squares that vanish tie at 0, and those beyond the range of float32 at infinity."""
    cloud = torch.randn(100, 3) * scale
    with np.errstate(over="ignore", under="ignore"):
        expected = by_numpy(cloud, 30)
    assert farthest_points(cloud[None], num_samples=30).tolist() == [expected]


def test_at_map_coordinates_the_choice_is_that_of_float64(form: str) -> None:
    """A grid of eighths at 1e4 m: differences, squares and sums are exact in float32, so all choices are the same."""
    points = torch.randint(0, 200, (2, 400, 3)).float() / 8 + 1e4
    single, double = (farthest_points(cloud, num_samples=80) for cloud in (points, points.double()))
    assert torch.equal(single, double)


def test_published_numbers(shared, form: str) -> None:
    golden = load_golden(shared, "fn_pointnet_ops")
    for case in ("case0", "case1", "case2", "case3", "case4", "duplicates", "small_norm"):
        points, expected = golden.tensor(f"{case}.xyz"), golden.tensor(f"{case}.fps_idx")
        assert torch.equal(farthest_points(points, num_samples=expected.shape[1]), expected)
        if f"{case}.fps_idx_skip_small" in golden.arrays:
            skipping = farthest_points(points, num_samples=expected.shape[1], min_squared_norm=1e-3)
            assert torch.equal(skipping, golden.tensor(f"{case}.fps_idx_skip_small").long())


def test_points_near_the_origin_are_left_out_and_index_0_stands_in(form: str) -> None:
    """At 3, 0, 1, 2 with norms above 1 allowed: 3 first, then 2; none is left, so index 0 comes from then on."""
    points = torch.tensor([[[3.0], [0.0], [1.0], [2.0]]])
    index = farthest_points(points, num_samples=4, min_squared_norm=1.0)
    assert index.tolist() == [[0, 3, 0, 0]]
    barred = farthest_points(points, num_samples=3, start=1, min_squared_norm=100.0)
    assert barred.tolist() == [[1, 0, 0]]


def test_choice_of_mmdetection3d_on_real_features(shared, form: str) -> None:
    """Their file holds squared distances alone: points with those distances are made by classical scaling (float64)."""
    folder = shared / "data" / "mmdet3d_tests_data" / "tests" / "data" / "ops"
    squared = torch.from_numpy(np.load(folder / "features_for_fps_distance.npy")).double()
    expected = torch.from_numpy(np.load(folder / "fps_idx.npy")).long()
    middle = torch.eye(64, dtype=torch.float64) - 1 / 64
    values, vectors = torch.linalg.eigh(-middle @ squared @ middle / 2)
    points = vectors * values.clamp(min=0).sqrt()[:, None]
    error = (torch.cdist(points, points).square() - squared).abs().max()
    assert error < 0.1, "the distances, up to 1e4 with float32 noise of 1e-2, are those of points"
    assert torch.equal(farthest_points(points, num_samples=16), expected)


def test_half_precision_is_compared_in_float32(form: str) -> None:
    points = torch.randn(1, 50, 3).half()
    expected = farthest_points(points.float(), num_samples=20)
    assert torch.equal(farthest_points(points, num_samples=20), expected)


def test_what_cannot_be_sampled_is_named() -> None:
    with pytest.raises(ValueError, match=r"9 samples asked for in clouds of 8 points"):
        farthest_points(torch.zeros(1, 8, 3), num_samples=9)
    with pytest.raises(ValueError, match=r"start\[1\]: 8 is outside 0..7"):
        farthest_points(torch.zeros(2, 8, 3), num_samples=2, start=torch.tensor([0, 8]))
    counts, offsets = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 3, 8])
    with pytest.raises(ValueError, match=r"start\[2\]: 5 is outside 0..4"):
        packed_farthest_points(torch.zeros(8, 3), counts, offsets=offsets, start=torch.tensor([9, 2, 5]))
    points = torch.zeros(1, 8, 3)
    points[0, 3, 1] = np.nan
    with pytest.raises(ValueError, match=r"points\[0\]: point 3 is \[0.0, nan, 0.0\]"):
        farthest_points(points, num_samples=2)


# --- Interpolation: by hand, SciPy, the published numbers, float32 against float64 ---


BOTH = pytest.mark.parametrize("weighting", ["inverse_square", "inverse"])


def test_by_hand() -> None:
    """Between 0 and 3, at 1: distances 1 and 2, so weights 4 : 1 by squares and 2 : 1 by distances."""
    points, queries = torch.tensor([[[0.0], [3.0]]]).double(), torch.tensor([[[1.0]]]).double()
    features = torch.tensor([[[10.0], [20.0]]]).double()
    found = {
        w: float(interpolate(features, points=points, queries=queries, weighting=w))
        for w in ("inverse_square", "inverse")
    }
    # the 1e-8 in each weight moves it by as much
    assert found["inverse_square"] == pytest.approx(12, abs=1e-6)
    assert found["inverse"] == pytest.approx(10 + 10 / 3, abs=1e-6)


@BOTH
def test_what_is_not_valid_weighs_nothing_and_the_others_share_its_part(weighting: Weighting) -> None:
    """Between 0 and 3 at 1, with a nearer point that does not count: 4 : 1 by squares, 2 : 1 by distances."""
    points, queries = torch.tensor([[[0.0], [1.5], [3.0]]]).double(), torch.tensor([[[1.0]]]).double()
    index, is_valid = torch.tensor([[[0, 1, 2]]]), torch.tensor([[[True, False, True]]])
    weights = inverse_distance_weights(points, queries, index, weighting, is_valid=is_valid)
    expected = [0.8, 0.0, 0.2] if weighting == "inverse_square" else [2 / 3, 0.0, 1 / 3]
    assert weights.flatten().tolist() == pytest.approx(expected, abs=1e-7)


@BOTH
def test_agrees_with_scipy(weighting: Weighting) -> None:
    points, queries = torch.randn(2, 60, 3).double(), torch.randn(2, 25, 3).double()
    features = torch.randn(2, 60, 7).double()
    found = interpolate(features, points=points, queries=queries, weighting=weighting)
    for cloud, asked, values, ours in zip(points.numpy(), queries.numpy(), features.numpy(), found, strict=True):
        distance, index = cKDTree(cloud).query(asked, k=3)
        weights = 1 / ((distance**2 if weighting == "inverse_square" else distance) + 1e-8)
        expected = np.einsum("mk,mkc->mc", weights / weights.sum(1, keepdims=True), values[index])
        np.testing.assert_allclose(ours, expected, atol=1e-13)


def test_fewer_points_than_neighbours_are_all_taken() -> None:
    feature = torch.randn(2, 1, 4)
    spread = interpolate(feature, points=torch.randn(2, 1, 3), queries=torch.randn(2, 6, 3))
    assert torch.equal(spread, feature.expand(-1, 6, -1))


def test_published_numbers_of_interpolation(shared) -> None:
    golden = load_golden(shared, "fn_pointnet_ops")
    for case in range(5):
        points, chosen = golden.tensor(f"case{case}.xyz"), golden.tensor(f"case{case}.fps_idx")
        coarse = points.gather(1, chosen[..., None].expand(-1, -1, 3))
        expected = golden.tensor(f"case{case}.interp")
        found = interpolate(golden.tensor(f"case{case}.feat"), points=coarse, queries=points)
        # the reference expands its distances: off by eps of the squared norms, up to 1e-13 of a weight here
        assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


@BOTH
def test_gradients_reach_the_features(weighting: Weighting) -> None:
    points, queries = torch.randn(2, 7, 3).double(), torch.randn(2, 5, 3).double()
    features = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f: interpolate(f, points=points, queries=queries, weighting=weighting), (features,)
    )
    moving = points.clone().requires_grad_()
    interpolate(features, points=moving, queries=queries, weighting=weighting).sum().backward()
    assert moving.grad is None, "the weights are held fixed"


@BOTH
def test_at_map_coordinates_float32_keeps_the_stated_bound(weighting: Weighting) -> None:
    points = (torch.rand(1, 2000, 3) * 40 + 1e4).float()
    queries = (torch.rand(1, 500, 3) * 40 + 1e4).float()
    features = torch.randn(1, 2000, 8)
    single = interpolate(features, points=points, queries=queries, weighting=weighting)
    wide = {"points": points.double(), "queries": queries.double()}
    double = interpolate(features.double(), **wide, weighting=weighting)
    same = nearest_neighbours(points, num_neighbours=3, queries=queries) == nearest_neighbours(
        wide["points"], num_neighbours=3, queries=wide["queries"]
    )
    alike = same.all(dim=-1)
    assert alike.float().mean() > 0.98
    bound = (3 + 3 + 6) * torch.finfo(torch.float32).eps * features.abs().max()
    assert ((single - double).abs()[alike]).max() < bound


def test_half_precision_features() -> None:
    points, queries = torch.randn(1, 30, 3), torch.randn(1, 9, 3)
    features = torch.randn(1, 30, 4).bfloat16()
    found = interpolate(features, points=points, queries=queries)
    assert found.dtype == torch.bfloat16
    expected = interpolate(features.float(), points=points, queries=queries)
    assert (found - expected).abs().max() < 4 * torch.finfo(torch.bfloat16).eps * features.abs().max()


class Sampling(nn.Module):
    """Coarse clouds of 4 points, and features of all at them."""

    free = (0, 1)

    def forward(self, points: Tensor) -> Tensor:
        coarse = gather_points(points, farthest_points(points, num_samples=4)[:, None])[:, 0]
        return interpolate(points, points=points, queries=coarse)


class Interpolation(nn.Module):
    """Both weightings, at queries of which some are points."""

    def forward(self, points: Tensor, queries: Tensor) -> list[Tensor]:
        both: tuple[Weighting, Weighting] = ("inverse_square", "inverse")
        return [interpolate(points, points=points, queries=queries, weighting=weighting) for weighting in both]


@pytest.fixture
def interpolated() -> tuple[Tensor, Tensor]:
    points = torch.randn(1, 12, 3)
    return points, torch.cat([points[:, :4], torch.randn(1, 2, 3)], dim=1)


def test_a_recorded_graph_has_the_same_bits_and_no_addend_near_0(interpolated: tuple[Tensor, Tensor]) -> None:
    """torch's exporter to ONNX takes an addend of 1e-8 for 0: a query that is a point would be no number."""
    program = torch.export.export(Interpolation(), interpolated)
    nodes = [node for part in program.graph_module.modules() for node in part.graph.nodes]
    addends = [node.args[1] for node in nodes if node.target is torch.ops.aten.add.Tensor]
    assert min(addend for addend in addends if isinstance(addend, float)) > 1e-3
    for found, expected in zip(program.module()(*interpolated), Interpolation()(*interpolated), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_query_that_is_a_point_is_a_number_in_onnx(interpolated: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    content = io.BytesIO()
    torch.onnx.export(Interpolation().eval(), interpolated, dynamo=True, verbose=False).save(content)
    session = runtime.InferenceSession(content.getvalue())
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, dict(zip(names, map(Tensor.numpy, interpolated), strict=True)))
    for one, other in zip(found, Interpolation()(*interpolated), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class PackedSearch(nn.Module):
    """Neighbours in a packed cloud whose size the graph knows."""

    free = (1,)

    def forward(self, points: Tensor) -> Tensor:
        offsets = send_list([0, points.shape[1]], points.device)
        return packed_nearest_neighbours(points[0], offsets=offsets, num_neighbours=3).index


@pytest.mark.parametrize("network", [Sampling(), PackedSearch()], ids=["dense", "packed"])
def test_exported_graphs_take_other_numbers_of_clouds_and_points(network: Sampling | PackedSearch) -> None:
    axes = {axis: Dim.DYNAMIC for axis in network.free}  # refused for an axis whose size becomes a number
    program = torch.export.export(network, (torch.randn(3, 9, 3),), dynamic_shapes=(axes,))
    others = torch.randn(5 if 0 in axes else 3, 17, 3)
    torch.testing.assert_close(program.module()(others), network(others))
