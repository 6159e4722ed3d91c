"""The dense Point Transformer: small clouds, categories, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sightline.areas.clouds.models.point_transformer_dense import DensePointTransformer
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig


def small(**changes: Any) -> DensePointTransformer:
    arguments: dict[str, Any] = {
        "num_classes": 4,
        "in_channels": 3,
        "num_blocks": (1, 1, 1),
        "num_neighbours": 5,
        "width": 16,
    }
    return DensePointTransformer(**arguments | changes).double().eval()


def test_small_clouds_take_all_their_points_as_neighbours() -> None:
    """Five points, then one, then one again: as many neighbours as there are; the answer of a lone point is finite."""
    model = small(num_neighbours=16)
    neighbours = [level.nearest.shape[1:] for level in model.encoder(*[torch.rand(2, 5, 3).double()] * 2)]
    assert neighbours == [(5, 5), (1, 1), (1, 1)]
    for num_points in (1, 2, 5):
        assert model(points=torch.rand(1, num_points, 3).double())["logits"].isfinite().all()


def test_category_joins_the_input_of_points() -> None:
    model, points = small(num_categories=3), torch.randn(2, 20, 3, dtype=torch.float64)
    one_hot = torch.zeros(2, 20, 3, dtype=torch.float64)
    one_hot[0, :, 2] = one_hot[1, :, 0] = 1
    written_out = small(in_channels=6)
    written_out.load_state_dict(model.state_dict())
    found = model(points=points, category=torch.tensor([2, 0]))["logits"]
    assert torch.equal(found, written_out(points=points, features=one_hot)["logits"])


def test_category_that_is_missing_or_unknown_is_refused() -> None:
    model, points = small(num_categories=3), torch.randn(2, 20, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"category: not given, this model was built for 3 categories"):
        model(points=points)
    with pytest.raises(ValueError, match=r"category: found 1 to 3, there are 3"):
        model(points=points, category=torch.tensor([1, 3]))


def test_whole_clouds_are_told_apart_without_their_category() -> None:
    model, points = small(num_categories=3, per="cloud"), torch.randn(2, 20, 3, dtype=torch.float64)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in small(per="cloud").state_dict().items()
    }
    assert model(points=points)["logits"].shape == (2, 4)


@pytest.mark.parametrize("num_blocks", [[], [1, 0], "4"])
def test_stages_that_cannot_be_are_refused(num_blocks: Any) -> None:
    component = ComponentConfig("point_transformer_dense", {"num_blocks": num_blocks})
    with pytest.raises(ConfigError, match="num_blocks"):
        registry.models.build(component, facts={"num_classes": 4, "in_channels": 3})
