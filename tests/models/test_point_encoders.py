"""Every registered point encoder: what it gives, that a classifier's head reads just that, and that it trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.point_transformer_dense import DensePointTransformer
from sightline.areas.contrast.crosspoint import IntraPoint
from sightline.areas.scenes.point_transformer import PointTransformer
from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from tests.models.small_models import ARGUMENTS, FACTS, small_model

FEATURE_WIDTHS = {
    "dgcnn": 2048,
    "dgcnn_parts": 1024,
    "pct": 1024,
    "point_bert": 768,
    "point_transformer": 512,
    "point_transformer_dense": 512,
    "pointnet": 1024,
    "pointnet2": 1024,
}
"""Of the encoders as they stand."""
PER_CLOUD = {"point_transformer": {"per": "cloud"}, "point_transformer_dense": {"per": "cloud"}}
NUM_POINTS = 32


def build(name: str, **arguments: Any) -> nn.Module:
    encoder: nn.Module = registry.point_encoders.build(ComponentConfig(name, arguments), facts=FACTS)
    return encoder


def small(name: str) -> nn.Module:
    """In float64 and evaluation mode, for clouds of 32 points."""
    return build(name, **ARGUMENTS.get(name, {})).double().eval()


def classifier(name: str) -> nn.Module:
    """The registered model of the same name, per cloud where it knows both, as small as the encoder."""
    component = ComponentConfig(name, ARGUMENTS.get(name, {}) | PER_CLOUD.get(name, {}))
    model: nn.Module = registry.models.build(component, facts=FACTS)
    return model.double().eval()


def clouds(batch: int = 3) -> Tensor:
    return torch.rand(batch, NUM_POINTS, 3, dtype=torch.float64)


@pytest.fixture(params=registry.point_encoders.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_encoder_has_its_width_here() -> None:
    with torch.device("meta"):
        found = {name: build(name).feature_width for name in registry.point_encoders.names()}
    assert found == FEATURE_WIDTHS


def test_feature_is_as_wide_as_it_says(name: str) -> None:
    encoder = small(name)
    feature = encoder.encode(points=clouds())
    assert feature.shape == (3, encoder.feature_width)
    assert feature.isfinite().all()


def test_cloud_alone_is_as_in_company(name: str) -> None:
    """In evaluation; a batch of one keeps its axis. Rounding of float64 in products of another shape, times ten."""
    encoder, points = small(name), clouds()
    torch.testing.assert_close(
        encoder.encode(points=points[:1]), encoder.encode(points=points)[:1], rtol=1e-10, atol=1e-10
    )


def test_order_of_points_does_not_matter_but_for_the_first(name: str) -> None:
    """Sampling starts at the first point, so that one stays; balls and neighbourhoods are sets where none overflows.

    Sums over 32 points in another order: 32 roundings of 1e-16, amplified less than a thousandfold in evaluation.
    """
    encoder, points = small(name), clouds()
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(NUM_POINTS - 1)])
    torch.testing.assert_close(
        encoder.encode(points=points[:, order]), encoder.encode(points=points), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("of", sorted(set(FEATURE_WIDTHS) - {"dgcnn_parts"}))
def test_head_of_the_classifier_reads_the_feature(of: str) -> None:
    model, points, seen = classifier(of), clouds(), []
    model.head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(points=points)
    assert torch.equal(model.encode(points=points), seen[0])


@pytest.mark.parametrize("of", FEATURE_WIDTHS)
def test_weights_of_an_encoder_are_those_of_the_classifier(of: str) -> None:
    """The same names, so that a pre-trained encoder starts a classifier; and the same feature with them."""
    model, encoder, points = classifier(of), small(of), clouds()
    state = model.state_dict()
    assert encoder.state_dict().keys() < state.keys()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    assert torch.equal(encoder.encode(points=points), model.encode(points=points))


def test_gradient_reaches_every_parameter_within_intrapoint(name: str) -> None:
    model = IntraPoint(points=build(name, **ARGUMENTS.get(name, {})), embedding=8).double().train()
    for parameter in model.parameters():
        if parameter.ndim >= 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)  # a matrix that starts at zero holds back the first gradient alone
    outputs = model(points=clouds(), other_points=clouds())
    sum((value * torch.randn_like(value)).sum() for value in outputs.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or (p.ndim >= 2 and not p.grad.any())]
    assert without == []


def test_further_channels_are_read(name: str) -> None:
    component = ComponentConfig(name, ARGUMENTS.get(name, {}))
    encoder = registry.point_encoders.build(component, facts={**FACTS, "in_channels": 5}).double().eval()
    points, features = clouds(), torch.randn(3, NUM_POINTS, 2, dtype=torch.float64)
    feature = encoder.encode(points=points, features=features)
    assert not torch.allclose(encoder.encode(points=points, features=-features), feature, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"features: found no features \(width 0\), expected \(3, 32, 2\)"):
        encoder.encode(points=points)


def test_channels_first_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"found the shape \(3, 3, 32\)"):
        small(name).encode(points=clouds().mT)


def test_a_network_per_point_has_the_encoder_of_one_per_cloud() -> None:
    """So that weights pre-trained on whole clouds start one that labels points."""
    for kind, sizes in (
        (PointTransformer, ARGUMENTS["point_transformer"]),
        (DensePointTransformer, ARGUMENTS["point_transformer_dense"]),
    ):
        per_point = kind(num_classes=5, in_channels=3, **sizes).double().eval()
        encoder = small("point_transformer" if kind is PointTransformer else "point_transformer_dense")
        state = per_point.state_dict()
        encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
        points = clouds()
        assert torch.equal(encoder.encode(points=points), per_point.encode(points=points))


def test_ragged_clouds_are_encoded_one_by_one() -> None:
    encoder, points = small("point_transformer"), clouds(2)
    ragged = torch.cat([points[0], points[1, :20]])
    together = encoder.encode(points=ragged, offsets=torch.tensor([0, 32, 52]))
    alone = torch.cat([encoder.encode(points=points[:1]), encoder.encode(points=points[1:, :20])])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_a_cloud_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cloud 1 has no points"):
        small("point_transformer").encode(points=clouds(1)[0], offsets=torch.tensor([0, 32, 32]))


def test_a_category_that_a_network_reads_is_asked_for() -> None:
    model = small_model("point_transformer_dense")
    with pytest.raises(ValueError, match=r"category: not given, this model was built for 3 categories"):
        model.encode(points=clouds())
