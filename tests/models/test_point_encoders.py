"""Every registered point encoder: what it gives, and that a classifier's head reads just that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.point_transformer_dense import DensePointTransformer
from sightline.areas.scenes.point_transformer import PointTransformer
from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from tests.models.small_models import ARGUMENTS, FACTS

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
def encoder_name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_encoder_has_its_width_here() -> None:
    with torch.device("meta"):
        found = {name: build(name).feature_width for name in registry.point_encoders.names()}
    assert found == FEATURE_WIDTHS


def test_feature_is_as_wide_as_it_says(encoder_name: str) -> None:
    encoder = small(encoder_name)
    feature = encoder.encode(points=clouds())
    assert feature.shape == (3, encoder.feature_width)
    assert feature.isfinite().all()


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


def test_further_channels_are_read(encoder_name: str) -> None:
    component = ComponentConfig(encoder_name, ARGUMENTS.get(encoder_name, {}))
    encoder = registry.point_encoders.build(component, facts={**FACTS, "in_channels": 5}).double().eval()
    points, features = clouds(), torch.randn(3, NUM_POINTS, 2, dtype=torch.float64)
    feature = encoder.encode(points=points, features=features)
    assert not torch.allclose(encoder.encode(points=points, features=-features), feature, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"features: found no features \(width 0\), expected \(3, 32, 2\)"):
        encoder.encode(points=points)


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
