"""The dense Point Transformer against its published sizes, the authors' port, and the symmetries it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline import registry
from sightline.errors import ConfigError
from sightline.losses.classification import CrossEntropy
from sightline.models.point_transformer_dense import DensePointTransformer
from sightline.published.translation import convert_state_dict, translate_key
from sightline.types import ComponentConfig
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    cloud_inputs,
    each_mode,
    load_golden,
    stored_part,
)
from tests.layers.passes import BOUND, assert_passes_agree, run

SMALL = {"num_blocks": (1, 1, 1), "num_neighbours": 8, "width": 64}
CLS, PARTS = "qq456cvb_point_transformer_cls", "qq456cvb_point_transformer_parts"
GOLDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "pt_sjtu_cls_small": (CLS, {"num_classes": 10, "in_channels": 3, "per": "cloud", **SMALL}),
    "pt_sjtu_cls_full": (CLS, {"num_classes": 40, "in_channels": 6, "per": "cloud"}),
    "pt_sjtu_partseg_small": (PARTS, {"num_classes": 50, "in_channels": 6, "num_categories": 16, **SMALL}),
    "pt_sjtu_partseg_full": (PARTS, {"num_classes": 50, "in_channels": 6, "num_categories": 16}),
}
LARGEST = "pt_sjtu_partseg_full"
"""Its case is in tests/long/test_published_outputs.py."""
TAPS = {
    "stem fc1": "encoder.embed",
    "block 0 out (B,N,32)": "encoder.levels.0.0",
    "block 1 out": "encoder.levels.1.0",
    "block last out": "encoder.levels.2.0",
    "bottom mlp fc2": "decoder.bottom",
    "up 1 out": "decoder.ups.0",
    "last block out": "decoder.layers.1",
}
"""The label of a golden file -> the module of ours whose result it is, in the small models."""


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("num_classes", "in_channels", "expected"),
    [(40, 6, 9_584_136), (40, 3, 9_584_040), (10, 3, 9_582_090)],
)
def test_size_per_cloud_is_the_published_one(num_classes: int, in_channels: int, expected: int) -> None:
    model = DensePointTransformer(num_classes=num_classes, in_channels=in_channels, per="cloud")
    assert num_parameters(model) == expected


@pytest.mark.parametrize(
    ("num_classes", "in_channels", "num_categories", "expected"),
    [
        (50, 6, 16, 19_397_362),
        (50, 3, 16, 19_397_266),
        (13, 9, None, 19_394_541),
        (13, 6, None, 19_394_445),
    ],
)
def test_size_per_point_is_the_published_one(
    num_classes: int, in_channels: int, num_categories: int | None, expected: int
) -> None:
    model = DensePointTransformer(num_classes=num_classes, in_channels=in_channels, num_categories=num_categories)
    assert num_parameters(model) == expected


def test_each_level_has_its_published_size() -> None:
    levels = DensePointTransformer(num_classes=40, in_channels=3, per="cloud").encoder.levels
    assert [num_parameters(level) for level in levels] == [1_609_760, 1_642_560, 1_708_160, 1_839_360, 2_101_760]


def tap(model: nn.Module, golden: Golden) -> dict[str, Tensor]:
    """What passes the places that the file names; filled by the next forward pass."""
    seen: dict[str, Tensor] = {}

    def keep(label: str, value: Tensor) -> None:
        seen.setdefault(label, value.detach())

    for label in golden.info["eval_mids"]:
        place = TAPS.get(label.removeprefix("eval.mid."))
        if place is not None:
            hook = lambda module, given, value, label=label: keep(label, value)  # noqa: E731
            model.get_submodule(place).register_forward_hook(hook)
    return seen


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "fused"),
    [
        *((name, fused) for name in GOLDEN if "small" in name for fused in (True, False)),
        pytest.param("pt_sjtu_cls_full", True, marks=pytest.mark.long),
    ],
)
def test_agrees_with_the_reference(shared: Path, name: str, fused: bool) -> None:
    assert_agrees_with_the_reference(shared, name, fused=fused)


def assert_agrees_with_the_reference(shared: Path, name: str, *, fused: bool) -> None:
    layout, arguments = GOLDEN[name]
    golden = load_golden(shared, name)
    model = DensePointTransformer(**arguments, fused=fused).double()
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    loss = CrossEntropy(num_classes=arguments["num_classes"])
    given, label = cloud_inputs(golden), golden.tensor("in.label")

    seen = tap(model, golden) if "small" in name else {}
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(**given)["logits"]
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        assert_outputs(golden, mode, {"logits": logits}, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))
    for mid, value in seen.items():
        assert_near_largest(stored_part(golden, mid, value), golden.tensor(mid), 1e-10, mid)


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
def test_order_of_points_after_the_first_does_not_matter(per: str) -> None:
    """Sampling starts at the first point; distances do not tie. Sums of some hundred terms in another order."""
    model, points = small(per=per), torch.randn(2, 40, 3, dtype=torch.float64)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])
    straight, shuffled = (model(points=each)["logits"] for each in (points, points[:, order]))
    expected = straight[:, order] if per == "point" else straight
    torch.testing.assert_close(shuffled, expected, atol=1e-11, rtol=0)


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


@PER
def test_copies_of_one_point_give_numbers(per: str) -> None:
    """What `drop_points` leaves: most points are copies of the first; gradients are finite too."""
    model, points = small(per=per).train(), torch.randn(2, 40, 3, dtype=torch.float64)
    points[:, 5:] = points[:, :1]
    logits = model(points=points)["logits"]
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


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
    assert num_parameters(model) == num_parameters(small(per="cloud"))
    assert model(points=points)["logits"].shape == (2, 4)


@pytest.mark.parametrize("num_blocks", [[], [1, 0], "4"])
def test_stages_that_cannot_be_are_refused(num_blocks: Any) -> None:
    component = ComponentConfig("point_transformer_dense", {"num_blocks": num_blocks})
    with pytest.raises(ConfigError, match="num_blocks"):
        registry.models.build(component, facts={"num_classes": 4, "in_channels": 3})
