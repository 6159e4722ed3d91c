"""Interpolation: by hand, the published numbers, what any weighted mean keeps, float32 against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from sightline.geometry.neighbours import Weighting, interpolate, inverse_distance_weights, nearest_neighbours
from tests.golden_parity import load_golden

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


@BOTH
def test_a_point_keeps_its_feature_and_a_constant_stays(weighting: Weighting) -> None:
    points, features = torch.randn(1, 40, 3), torch.randn(1, 40, 5)
    at_points = interpolate(features, points=points, queries=points, weighting=weighting)
    nearest = nearest_neighbours(points, num_neighbours=2)[0, :, 1]
    gap = (points[0] - points[0, nearest]).norm(dim=-1).min()
    # beside the point itself (weight 1e8) two others weigh at most 1 / gap^2 each; features differ by under twice the
    # largest; then the rounding of the docstring
    others = 2 * 1e-8 / min(float(gap), float(gap) ** 2)
    bound = (2 * others + 12 * torch.finfo(torch.float32).eps) * features.abs().max()
    assert (at_points - features).abs().max() < bound
    constant = interpolate(
        torch.full((1, 40, 2), 3.0), points=points, queries=torch.randn(1, 9, 3), weighting=weighting
    )
    assert (constant - 3).abs().max() < 3 * 8 * torch.finfo(torch.float32).eps


@BOTH
def test_equally_far_points_give_their_mean(weighting: Weighting) -> None:
    corners = torch.eye(3)[None]
    found = interpolate(
        torch.tensor([[[1.0], [2.0], [6.0]]]), points=corners, queries=torch.zeros(1, 1, 3), weighting=weighting
    )
    assert float(found) == pytest.approx(3, rel=1e-6)


def test_fewer_points_than_neighbours_are_all_taken() -> None:
    feature = torch.randn(2, 1, 4)
    spread = interpolate(feature, points=torch.randn(2, 1, 3), queries=torch.randn(2, 6, 3))
    assert torch.equal(spread, feature.expand(-1, 6, -1))


def test_published_numbers(shared) -> None:
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
