"""Point Transformer against its published sizes, the authors' code, and what it claims of ragged batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.geometry.levels import Edges, Level, Spread, levels_of
from sightline.models import point_transformer
from sightline.models.point_transformer import PointTransformer
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

LAYOUT = "postech_point_transformer_seg"
STRIDES, NUM_NEIGHBOURS = (1, 4, 4, 4, 4), (8, 16, 16, 16, 16)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_classes": 13, "in_channels": 6}, 7_767_729),
        ({"num_classes": 13, "in_channels": 3}, 7_767_633),
        ({"num_classes": 50, "in_channels": 6}, 7_768_950),
        ({"num_classes": 40, "in_channels": 3, "per": "cloud"}, 5_073_266),
        ({"num_classes": 40, "in_channels": 6, "per": "cloud"}, 5_073_362),
    ],
)
def test_size_is_the_published_one(arguments: dict[str, Any], expected: int) -> None:
    assert num_parameters(PointTransformer(**arguments)) == expected


# --- the authors' numbers --------------------------------------------------------------------------------------------


def padded_as_theirs(points: Tensor, *, offsets: Tensor, strides: Any, num_neighbours: Any) -> list[Level]:
    """Our levels with the authors' rule for clouds of fewer points than neighbours: their first point again and again,
    as a neighbour like any other, and at a distance of 1e5 where features are interpolated."""
    levels = levels_of(points, offsets=offsets, strides=strides, num_neighbours=num_neighbours)
    padded: list[Level] = []
    for level, count in zip(levels, num_neighbours, strict=True):
        finer = padded[-1] if padded else None
        padded.append(
            dataclasses.replace(
                level,
                near=_edges_as_theirs(level.near, level.points, level.points, level.offsets, level.offsets, count),
                down=_edges_as_theirs(level.down, finer.points, level.points, finer.offsets, level.offsets, count)
                if finer is not None and level.down is not None
                else None,
                up=_spread_as_theirs(level, finer) if finer is not None else None,
            )
        )
    return padded


def _edges_as_theirs(
    edges: Edges, points: Tensor, queries: Tensor, offsets: Tensor, query_offsets: Tensor, num_neighbours: int
) -> Edges:
    first = offsets[:-1].repeat_interleave(query_offsets.diff())
    index = first[:, None].repeat(1, num_neighbours)
    index[:, : edges.index.shape[1]] = edges.index
    relative = points[index] - queries[:, None]
    return Edges(index, relative, torch.full_like(edges.count, num_neighbours), is_whole=True)


def _spread_as_theirs(level: Level, finer: Level) -> Spread:
    assert level.up is not None
    distance = (level.points[level.up.index] - finer.points[:, None]).norm(dim=-1)
    distance[level.up.weights == 0] = 1e5
    weights = 1 / (distance + 1e-8)
    return Spread(level.up.index, weights / weights.sum(dim=1, keepdim=True))


@pytest.fixture
def _padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_transformer, "levels_of", padded_as_theirs)


def ragged_input(golden: Golden) -> dict[str, Tensor]:
    features = golden.tensor("in.feat") if golden.info["name"] == "pt_korea_seg_c6" else None
    offsets = F.pad(golden.tensor("in.offset").long(), (1, 0))
    return {"points": golden.tensor("in.coord"), "offsets": offsets} | (
        {} if features is None else {"features": features}
    )


TAPS = {
    "enc1 block bn3": "stages.0.blocks.0.after",
    "enc5 last block attention layer out": "stages.4.blocks.1.attention",
    "dec5 head transition": "decoder.context",
    "dec4 transition": "decoder.ups.3",
    "dec1 transition": "decoder.ups.0",
}


def tap(model: nn.Module, golden: Golden) -> dict[str, Tensor]:
    """What passes the places that the file names; filled by the next forward pass."""
    seen: dict[str, Tensor] = {}

    def keep(label: str, value: Tensor) -> None:  # a hook that returned anything would put it in the output's place
        seen.setdefault(label, value)

    for label in golden.info["eval_mids"]:
        place = next((module for tapped, module in TAPS.items() if label.startswith(f"eval.mid.{tapped}")), None)
        if place is not None:
            hook = lambda module, given, value, label=label: keep(label, value)  # noqa: E731
            model.get_submodule(place).register_forward_hook(hook)
    return seen


@pytest.mark.shared
@pytest.mark.usefixtures("_padded")
@pytest.mark.parametrize("fused", [True, False])
def test_agrees_with_the_reference(shared: Path, fused: bool) -> None:
    golden = load_golden(shared, "pt_korea_seg_c6")
    model = PointTransformer(num_classes=13, in_channels=6, fused=fused).double()
    model.load_state_dict(translate(golden.state(), LAYOUT))
    seen = tap(model, golden)
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(**ragged_input(golden))["logits"]
        loss = F.cross_entropy(logits, golden.tensor("in.label"), ignore_index=255)
        assert_outputs(golden, mode, {"logits": logits}, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, LAYOUT))
    assert len(seen) == len(TAPS)
    for label, value in seen.items():
        assert_near_largest(stored_part(golden, label, value.contiguous()), golden.tensor(label), 1e-10, label)


@pytest.mark.shared
@pytest.mark.usefixtures("_padded")
@pytest.mark.parametrize("fused", [True, False])
def test_agrees_with_the_reference_on_coordinates_alone(shared: Path, fused: bool) -> None:
    golden = load_golden(shared, "pt_korea_seg_c3")
    model = PointTransformer(num_classes=13, in_channels=3, fused=fused).double().eval()
    model.load_state_dict(translate(golden.state(), LAYOUT))
    seen = tap(model, golden)
    with torch.no_grad():
        logits = model(**ragged_input(golden))["logits"]
    assert_outputs(golden, "eval", {"logits": logits}, F.cross_entropy(logits, golden.tensor("in.label")))
    for label, value in seen.items():
        assert_near_largest(stored_part(golden, label, value), golden.tensor(label), 1e-10, label)
