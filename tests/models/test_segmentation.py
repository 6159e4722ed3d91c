"""What every network for clouds of one size must keep when it labels points: forms, order of points, errors."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from tests.layers.passes import BOUND, assert_passes_agree, run

SMALL: dict[str, dict[str, Any]] = {
    "dgcnn_parts": {"num_neighbours": 6, "embedding": 32},
    "dgcnn_scenes": {"num_neighbours": 6, "embedding": 32},
    "pct_parts": {},
    "point_transformer_dense": {"num_blocks": (1, 1, 1), "num_neighbours": 5, "width": 16},
    "point_bert_parts": {"width": 24, "num_groups": 8, "group_size": 6, "num_centres": (16, 12)},
    "pointnet_parts": {},
    "pointnet_scenes": {},
    "pointnet2_parts": {"num_centres": (16, 8), "num_neighbours": (40, 40)},
    "pointnet2_scenes": {"num_centres": (16, 12, 8, 4), "radii": (0.4, 0.6, 0.8, 1.0), "num_neighbours": 40},
}
FACTS = {"num_classes": 5, "in_channels": 5, "num_categories": 3}
SAMPLES = {"point_bert_parts", "point_transformer_dense", "pointnet2_parts", "pointnet2_scenes"}
"""Networks that start their sampling at the first point."""
EVERY = pytest.mark.parametrize("name", SMALL)


def build(name: str, **changes: Any) -> nn.Module:
    """In float64, in evaluation; norms off their start, so that nothing cancels."""
    torch.manual_seed(1)
    model = registry.models.build(ComponentConfig(name, SMALL[name] | changes), facts=FACTS).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.1)
    return model


def clouds(model: nn.Module, count: int = 3, num_points: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    given = {
        "points": torch.rand(count, num_points, 3, dtype=torch.float64, generator=generator),
        "features": torch.randn(count, num_points, 2, dtype=torch.float64, generator=generator),
    }
    if "category" in inspect.signature(model.forward).parameters:
        given["category"] = torch.arange(count) % 3
    return given


def of_points(given: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return given | {name: given[name][:, index] for name in ("points", "features")}


@EVERY
def test_permuted_points_give_permuted_logits(name: str) -> None:
    """Where points are sampled, the first stays the first; balls hold all their points. No two distances tie."""
    model = build(name)
    given = clouds(model)
    fixed = 1 if name in SAMPLES else 0
    order = torch.cat([torch.arange(fixed), fixed + torch.randperm(40 - fixed)])
    expected = model(**given)["logits"][:, order]
    # Sums of at most some thousand terms near 1 in another order, amplified less than tenfold in evaluation.
    torch.testing.assert_close(model(**of_points(given, order))["logits"], expected, rtol=0, atol=1e-11)


@EVERY
def test_packed_clouds_of_one_size_are_the_dense_ones(name: str) -> None:
    model = build(name)
    given = clouds(model)
    packed = given | {key: given[key].flatten(0, 1) for key in ("points", "features")}
    logits = model(**packed, offsets=torch.tensor([0, 40, 80, 120]))["logits"]
    assert logits.shape == (120, 5)
    assert torch.equal(logits, model(**given)["logits"].flatten(0, 1))


@EVERY
def test_clouds_of_several_sizes_are_refused_by_their_sizes(name: str) -> None:
    model = build(name)
    given = clouds(model)
    packed = given | {key: given[key].flatten(0, 1) for key in ("points", "features")}
    with pytest.raises(ValueError, match=r"offsets: found clouds of 30 to 50 points in one batch.*sample_points"):
        model(**packed, offsets=torch.tensor([0, 40, 70, 120]))


@EVERY
def test_points_that_stand_twice_are_labelled_alike(name: str) -> None:
    """Half of the points are copies; sampled ones take the first of them."""
    model = build(name)
    given = of_points(clouds(model), torch.arange(40) % 20)
    logits = model(**given)["logits"]
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:, :20], logits[:, 20:], rtol=0, atol=1e-11)


@EVERY
def test_copies_of_one_point_have_finite_gradients(name: str) -> None:
    model = build(name).train()
    given = clouds(model)
    model(**of_points(given, torch.arange(40).clamp(max=3)))["logits"].square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@EVERY
@pytest.mark.parametrize("key", ["points", "features"])
def test_nan_is_refused_with_its_place(name: str, key: str) -> None:
    model = build(name)
    given = clouds(model)
    given[key][1, 7, 1] = torch.nan
    with pytest.raises(ValueError, match=r"points\[1\]: point 7 is .*nan"):
        model(**given)


@pytest.mark.parametrize("name", [name for name in SMALL if name.endswith("_parts")])
@pytest.mark.parametrize(
    ("category", "words"),
    [
        (torch.tensor([0, 3, 1]), r"category: found 0 to 3, there are 3 \(0 \.\. 2\)"),
        (torch.tensor([0, -1, 1]), r"category: found -1 to 1, there are 3"),
        (torch.tensor([0, 1]), r"category: found the shape \(2,\) .*expected \(3,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), r"category: found torch.float32, expected whole"),
    ],
)
def test_categories_that_there_are_not_are_refused(name: str, category: Tensor, words: str) -> None:
    model = build(name)
    with pytest.raises(ValueError, match=words):
        model(**clouds(model) | {"category": category})


@pytest.mark.parametrize("name", [name for name in SMALL if name.endswith("_parts")])
def test_the_category_changes_the_answer(name: str) -> None:
    model = build(name)
    given = clouds(model)
    other = model(**given | {"category": (given["category"] + 1) % 3})["logits"]
    assert not torch.allclose(other, model(**given)["logits"])


@EVERY
def test_wrong_width_is_refused_with_both_shapes(name: str) -> None:
    model = build(name)
    given = clouds(model)
    with pytest.raises(ValueError, match=r"features: found .* expected \(3, 40, 2\)"):
        model(**given | {"features": given["features"][..., :1]})


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"point_bert_parts"}))  # whose layers are compared one by one
def test_plain_layers_give_the_same_step(name: str) -> None:
    """Outputs, gradients and running statistics of a step in training, float64, to 1e-9."""
    models = [build(name, fused=fused).train() for fused in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, nn.Dropout):
            module.eval()
    given, weight = clouds(models[0]), torch.randn(3, 40, 5, dtype=torch.float64)
    found, expected = (run(model, given, weight) for model in models)
    assert_passes_agree(found, expected, BOUND)


@EVERY
def test_autocast_stays_near_full_precision(name: str) -> None:
    """bfloat16 keeps 8 bits; a slip of types in a fused path would fail or be off by the size of the logits."""
    model = build(name).float()
    given = {key: value.float() if value.is_floating_point() else value for key, value in clouds(model).items()}
    exact = model(**given)["logits"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(**given)["logits"]
    assert (rounded - exact).abs().mean() <= 0.1 * exact.abs().mean()
