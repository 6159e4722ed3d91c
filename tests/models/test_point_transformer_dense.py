"""The dense Point Transformer against its published sizes, the authors' port, and the symmetries it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.losses.cross_entropy import CrossEntropy
from sightline.models.point_transformer_dense import DensePointTransformer
from sightline.models.published import translate, translate_key
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
    stored_part,
)

SMALL = {"blocks": (1, 1, 1), "num_neighbours": 8, "width": 64}
CLS, PARTS = "qq456cvb_point_transformer_cls", "qq456cvb_point_transformer_parts"
GOLDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "pt_sjtu_cls_small": (CLS, {"num_classes": 10, "in_channels": 3, "per": "cloud", **SMALL}),
    "pt_sjtu_cls_full": (CLS, {"num_classes": 40, "in_channels": 6, "per": "cloud"}),
    "pt_sjtu_partseg_small": (PARTS, {"num_classes": 50, "in_channels": 6, "num_categories": 16, **SMALL}),
    "pt_sjtu_partseg_full": (PARTS, {"num_classes": 50, "in_channels": 6, "num_categories": 16}),
}
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


def inputs_of(golden: Golden) -> dict[str, Tensor]:
    """Coordinates, what follows them, and, of inputs that end in a category's one-hot, the category."""
    channels = golden.tensor("in.x")
    given = {"points": channels[..., :3]}
    if channels.shape[-1] > 6:
        given["category"] = channels[:, 0, 6:].argmax(dim=-1)
        assert torch.equal(channels[..., 6:].argmax(dim=-1), given["category"][:, None].expand(channels.shape[:2]))
    if channels.shape[-1] > 3:
        given["features"] = channels[..., 3:6]
    return given


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
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", GOLDEN)
def test_agrees_with_the_reference(shared: Path, name: str, fused: bool) -> None:
    layout, arguments = GOLDEN[name]
    golden = load_golden(shared, name)
    model = DensePointTransformer(**arguments, fused=fused).double()
    model.load_state_dict(translate(golden.state(), layout))
    loss = CrossEntropy(num_classes=arguments["num_classes"])
    given, label = inputs_of(golden), golden.tensor("in.label")

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
