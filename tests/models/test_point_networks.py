"""PointNet, PointNet++, DGCNN and PCT: what each claims of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.dgcnn import DGCNN, DGCNNParts, DGCNNScenes, SpatialTransform
from sightline.areas.clouds.models.pct import PCT
from sightline.areas.clouds.models.pointnet import PointNet, PointNetParts, TNet
from sightline.contract.errors import ConfigError

# --- PointNet ---------------------------------------------------------------------------------------------------------


def test_alignment_starts_from_the_identity() -> None:
    """With the last layer at zero nothing is learned yet, and the matrix is the identity exactly."""
    alignment = TNet(in_channels=3, size=3).eval()
    nn.init.zeros_(alignment.head[-1].weight)
    nn.init.zeros_(alignment.head[-1].bias)
    assert torch.equal(alignment(torch.randn(2, 10, 3)), torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize("is_of_parts", [False, True])
def test_features_are_not_turned_by_the_input_alignment(is_of_parts: bool) -> None:
    """Only xyz is multiplied: with the matrix at zero, points count for nothing but features still do."""
    model: Any = PointNet(num_classes=4, in_channels=6)
    given = {}
    if is_of_parts:
        model, given = PointNetParts(num_classes=4, in_channels=6, num_categories=2), {"category": torch.tensor([0, 1])}
    model.eval().input_alignment.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
    points, features = torch.randn(2, 2, 10, 3).unbind(0)
    moved = model(points=points + 1, features=features, **given)["logits"]
    assert torch.equal(moved, model(points=points, features=features, **given)["logits"])
    assert not torch.equal(moved, model(points=points, features=features + 1, **given)["logits"])


# --- DGCNN ------------------------------------------------------------------------------------------------------------


def small_dgcnn(**changes: int) -> DGCNN:
    arguments = {"num_classes": 4, "in_channels": 3, "num_neighbours": 5, "embedding": 32} | changes
    return DGCNN(**arguments).double().eval()


@pytest.mark.parametrize("is_of_parts", [False, True])
def test_first_graph_reads_coordinates_alone(is_of_parts: bool) -> None:
    """Features a hundred times as large leave the first graph as it is."""
    points, features = torch.randn(2, 20, 3).double(), torch.randn(2, 20, 2).double()
    given: dict[str, Tensor] = {"points": points}
    model: Any = small_dgcnn(in_channels=5)
    if is_of_parts:
        model = DGCNNParts(num_classes=4, in_channels=5, num_categories=2, num_neighbours=5).double().eval()
        given["category"] = torch.tensor([0, 1])
    edges = model.levels.edges[0] if is_of_parts else model.edges[0]
    seen: list[Tensor] = []
    edges.register_forward_hook(lambda module, given, output: seen.append(given[1]))
    for factor in (1, 100):
        model(features=factor * features, **given)
    assert torch.equal(seen[0], seen[1])


def test_networks_meant_for_fewer_points_than_neighbours_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"neighbours_at: found 8, expected at least num_neighbours=10"):
        small_dgcnn(num_neighbours=10, neighbours_at=8)
    with pytest.raises(ConfigError, match=r"neighbours_at: found 2, expected at least num_neighbours="):
        small_pct(neighbours_at=2)


@pytest.mark.parametrize("copies", [2, 4])
@pytest.mark.parametrize("fused", [True, False])
def test_dgcnn_in_proportion_sees_repeated_points_as_one(copies: int, fused: bool) -> None:
    torch.manual_seed(3)
    model = DGCNN(num_classes=4, in_channels=3, num_neighbours=5, neighbours_at=24, embedding=32, fused=fused)
    model = model.double().eval()
    points = torch.rand(2, 24, 3, dtype=torch.float64)
    repeated = points.repeat_interleave(copies, dim=1)
    expected = model(points=points)["logits"]
    torch.testing.assert_close(model(points=repeated)["logits"], expected, rtol=1e-12, atol=1e-12)
    model.neighbours_at = None
    assert not torch.allclose(model(points=repeated)["logits"], expected)


# --- DGCNN for parts and scenes ---------------------------------------------------------------------------------------


def test_transform_starts_from_the_identity() -> None:
    transform = SpatialTransform(num_neighbours=4, fused=True).eval()
    assert torch.equal(transform(torch.randn(2, 10, 3)), torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize(("first_graph", "moved"), [("points", slice(0, 3)), ("normalised_position", slice(6, 9))])
def test_first_graph_of_scenes_is_sought_where_it_is_told(first_graph: str, moved: slice) -> None:
    """It changes with the three channels named, and with no others."""
    arguments = {"num_classes": 4, "in_channels": 9, "num_neighbours": 5, "first_graph": first_graph}
    model, channels = DGCNNScenes(**arguments).eval(), torch.randn(1, 30, 9)
    seen = []
    model.levels.edges[0].register_forward_hook(lambda module, given, output: seen.append(given[1]))
    elsewhere = torch.randn(1, 30, 9)
    elsewhere[..., moved] = channels[..., moved]
    there = channels.clone()
    there[..., moved] = torch.randn(1, 30, 3)
    for values in (channels, elsewhere, there):
        model(points=values[..., :3], features=values[..., 3:])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_a_place_that_no_channel_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"first_graph: normalised_position .* at least 6 channels, there are 3"):
        DGCNNScenes(num_classes=4, in_channels=3, first_graph="normalised_position")


# --- PCT --------------------------------------------------------------------------------------------------------------


def small_pct(**changes: Any) -> PCT:
    arguments: dict[str, Any] = {"num_classes": 4, "in_channels": 3, "num_centres": (16, 8), "num_neighbours": 5}
    return PCT(**arguments | changes).double().eval()


@pytest.mark.parametrize("fused", [True, False])
def test_pct_in_proportion_sees_repeated_points_as_one(fused: bool) -> None:
    """Of all points the groups hold as many copies as there are; those of samples are of distinct points before."""
    model = small_pct(neighbours_at=24, fused=fused).eval()
    points = torch.rand(2, 24, 3, dtype=torch.float64)
    repeated = points.repeat_interleave(3, dim=1)
    expected = model(points=points)["logits"]
    torch.testing.assert_close(model(points=repeated)["logits"], expected, rtol=1e-12, atol=1e-12)
    group: Any = model.groups[0]
    group.neighbours_at = None
    assert not torch.allclose(model(points=repeated)["logits"], expected)
