"""What networks that class clouds claim: orders of points, small clouds, copies, plain forms, errors by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sightline.areas.clouds.models.dgcnn import DGCNN
from sightline.areas.clouds.models.pct import PCT, NaivePCT, SimplePCT
from sightline.areas.clouds.models.point_bert import PointBERT
from sightline.areas.clouds.models.point_transformer_dense import DensePointTransformer
from sightline.areas.clouds.models.pointnet import PointNet, PointNetPlain
from sightline.areas.clouds.models.pointnet2 import PointNet2, PointNet2MultiScale
from tests.layers.passes import BOUND, assert_passes_agree, run

Kind = type[nn.Module]
BERT: dict[str, Any] = {"width": 24, "depth": 2, "num_heads": 4, "num_groups": 6, "group_size": 5}
SMALL: dict[Kind, dict[str, Any]] = {
    DGCNN: {"num_neighbours": 5, "embedding": 32},
    DensePointTransformer: {"per": "cloud", "num_blocks": (1, 1, 1), "num_neighbours": 5, "width": 16},
    NaivePCT: {},
    PCT: {"num_centres": (16, 8), "num_neighbours": 5},
    PointBERT: BERT,
    PointNet: {},
    PointNet2: {"num_centres": (16, 8)},
    PointNet2MultiScale: {"num_centres": (16, 8)},
    PointNetPlain: {},
    SimplePCT: {},
}
ONE_POINT: dict[Kind, dict[str, Any]] = {
    DGCNN: {"num_neighbours": 1},
    PCT: {"num_centres": (1, 1), "num_neighbours": 1},
    PointBERT: {"num_groups": 1, "group_size": 1},
    PointNet2: {"num_centres": (1, 1)},
    PointNet2MultiScale: {"num_centres": (1, 1)},
}
"""Where the small form asks for more."""
FULL_BALLS = {"num_neighbours": (40, 40)}
EVERY = pytest.mark.parametrize("kind", SMALL)


def small(kind: Kind, **changes: Any) -> nn.Module:
    return kind(**{"num_classes": 4, "in_channels": 3} | SMALL[kind] | changes).double().eval()


@pytest.mark.parametrize(
    ("kind", "num_fixed", "changes", "bound"),
    [
        # A maximum has no rounding; only the matrix products may split their rows differently: a few 1e-16 per layer.
        (PointNet, 0, {}, 1e-13),
        (PointNetPlain, 0, {}, 1e-13),
        # Sums over 40 points in another order: 40 roundings of 1e-16, amplified less than tenfold per layer in eval.
        (DGCNN, 0, {}, 1e-12),
        (SimplePCT, 0, {}, 1e-11),
        (NaivePCT, 0, {}, 1e-11),
        # Sampling starts at the first point; distances do not tie. Sums of some hundred terms in another order.
        (PCT, 1, {}, 1e-11),
        (DensePointTransformer, 1, {}, 1e-11),
        (DensePointTransformer, 1, {"per": "point"}, 1e-11),
        (PointBERT, 1, {}, 1e-12),
        # A full ball keeps the first points. Maxima have no rounding; the maps before are sums of at most 259 terms.
        (PointNet2, 1, FULL_BALLS, 1e-11),
    ],
)
def test_order_of_points_does_not_matter(kind: Kind, num_fixed: int, changes: dict[str, Any], bound: float) -> None:
    model, points = small(kind, **changes), torch.rand(2, 40, 3, dtype=torch.float64)
    order = torch.cat([torch.arange(num_fixed), num_fixed + torch.randperm(40 - num_fixed)])
    straight, shuffled = (model(points=each)["logits"] for each in (points, points[:, order]))
    expected = straight[:, order] if straight.ndim == 3 else straight
    torch.testing.assert_close(shuffled, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", [SimplePCT, NaivePCT])
def test_points_that_stand_twice_count_no_more(kind: Kind) -> None:
    """Averages and maxima do not see that every point is there twice, but for the 1e-9 that guards a sum."""
    model, points = small(kind), torch.randn(2, 20, 3, dtype=torch.float64)
    twice = torch.cat([points, points], dim=1)
    torch.testing.assert_close(model(points=twice)["logits"], model(points=points)["logits"], atol=1e-7, rtol=0)


@EVERY
def test_one_point_and_one_sample(kind: Kind) -> None:
    logits = small(kind, **ONE_POINT.get(kind, {}))(points=torch.randn(1, 1, 3, dtype=torch.float64))["logits"]
    assert logits.shape == (1, 4)
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", [PCT, PointNet2, PointNet2MultiScale])
def test_plain_groups_give_the_same_step(kind: Kind) -> None:
    """Outputs, gradients and running statistics of a step in training, float64, to 1e-9."""
    models = [small(kind, in_channels=5, fused=is_fused).train() for is_fused in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, nn.Dropout):
            module.eval()
    given = {"points": 0.3 * torch.randn(3, 40, 3).double(), "features": torch.randn(3, 40, 2).double()}
    weight = torch.randn(3, 4, dtype=torch.float64)
    found, expected = (run(model, given, weight) for model in models)
    assert_passes_agree(found, expected, BOUND)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [*((kind, {}) for kind in SMALL), (DensePointTransformer, {"per": "point"})],
)
def test_copies_of_one_point_have_finite_gradients(kind: Kind, changes: dict[str, Any]) -> None:
    """What `drop_points` leaves: most points are copies of the first."""
    model, points = small(kind, **changes).train(), torch.randn(2, 40, 3, dtype=torch.float64)
    points[:, 5:] = points[:, :1]
    logits = model(points=points)["logits"]
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [PCT, PointNet2, PointNet2MultiScale])
def test_fewer_points_than_samples_are_refused_with_the_number(kind: Kind) -> None:
    words = r"clouds of 500 points, of which 512 .*at least 512 points or lower num_centres"
    with pytest.raises(ValueError, match=words):
        kind(num_classes=4, in_channels=3)(points=torch.randn(2, 500, 3))


@pytest.mark.parametrize(
    "kind", [kind for kind in SMALL if kind not in (PointNet, PointNetPlain)]
)  # which look for no neighbours
def test_nan_is_refused_with_its_place(kind: Kind) -> None:
    points = torch.randn(2, 30, 3, dtype=torch.float64)
    points[1, 7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"points\[1\]: point 7 is .*nan"):
        small(kind)(points=points)


@EVERY
def test_channels_first_is_refused_with_both_shapes(kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"found the shape \(2, 3, 30\), expected \(B, N, 3\).*transpose"):
        small(kind)(points=torch.randn(2, 3, 30, dtype=torch.float64))


@pytest.mark.parametrize(("in_channels", "width"), [(6, None), (6, 2), (3, 3)])
@EVERY
def test_wrong_width_is_refused_with_both_shapes(kind: Kind, in_channels: int, width: int | None) -> None:
    features = None if width is None else torch.randn(2, 30, width, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"features: found .*expected \(2, 30, {in_channels - 3}\)"):
        small(kind, in_channels=in_channels)(points=torch.randn(2, 30, 3, dtype=torch.float64), features=features)
