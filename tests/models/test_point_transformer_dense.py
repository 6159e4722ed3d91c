"""The dense Point Transformer against its published sizes, the authors' port, and the symmetries it claims."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sightline.areas.clouds.models.point_transformer_dense import DensePointTransformer
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig
from tests.layers.passes import BOUND, assert_passes_agree, run


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def small(**changes: Any) -> DensePointTransformer:
    arguments: dict[str, Any] = {
        "num_classes": 4,
        "in_channels": 3,
        "num_blocks": (1, 1, 1),
        "num_neighbours": 5,
        "width": 16,
    }
    return DensePointTransformer(**arguments | changes).double().eval()


PER = pytest.mark.parametrize("per", ["point", "cloud"])


@PER
def test_plain_layers_give_the_same_step(per: str) -> None:
    """Outputs, gradients and running statistics of a step in training, float64, to 1e-9."""
    fused, plain = (
        small(in_channels=5, num_categories=3, per=per, num_blocks=(2, 1, 1), fused=f) for f in (True, False)
    )
    plain.load_state_dict(fused.state_dict())
    given = {"points": torch.randn(3, 40, 3).double(), "features": torch.randn(3, 40, 2).double()}
    given["category"] = torch.tensor([2, 0, 1])
    weight = torch.randn((3, 40, 4) if per == "point" else (3, 4), dtype=torch.float64)
    assert_passes_agree(run(fused.train(), given, weight), run(plain.train(), given, weight), BOUND)


@PER
def test_one_after_another_is_the_same_as_stacked(per: str) -> None:
    model, points = small(per=per, in_channels=4), torch.randn(3, 20, 3, dtype=torch.float64)
    features = torch.randn(3, 20, 1, dtype=torch.float64)
    offsets = torch.tensor([0, 20, 40, 60])
    packed = model(points=points.flatten(0, 1), features=features.flatten(0, 1), offsets=offsets)["logits"]
    assert packed.shape == ((60, 4) if per == "point" else (3, 4))
    stacked = model(points=points, features=features)["logits"]
    assert torch.equal(packed, stacked.flatten(0, -2))


def test_clouds_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"offsets: found clouds of 18 to 22 points in one batch.*one size"):
        small()(points=torch.randn(40, 3, dtype=torch.float64), offsets=torch.tensor([0, 18, 40]))


def test_small_clouds_take_all_their_points_as_neighbours() -> None:
    """Five points, then one, then one again: as many neighbours as there are; the answer of a lone point is finite."""
    model = small(num_neighbours=16)
    neighbours = [level.nearest.shape[1:] for level in model.encoder(*[torch.rand(2, 5, 3).double()] * 2)]
    assert neighbours == [(5, 5), (1, 1), (1, 1)]
    for num_points in (1, 2, 5):
        assert model(points=torch.rand(1, num_points, 3).double())["logits"].isfinite().all()


@pytest.mark.parametrize("where", ["points", "features"])
def test_nan_is_refused_with_its_place(where: str) -> None:
    given = {"points": torch.randn(2, 20, 3).double(), "features": torch.randn(2, 20, 2).double()}
    given[where][1, 7, 1] = torch.nan
    with pytest.raises(ValueError, match=r"points\[1\]: point 7 is .*nan"):
        small(in_channels=5)(**given)


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
