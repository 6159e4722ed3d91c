"""Point Transformer against its published sizes, the authors' code, and what it claims of ragged batches."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.scenes import point_transformer
from sightline.areas.scenes.point_transformer import PointTransformer, PointTransformerBlock
from sightline.contract.errors import ConfigError
from sightline.layers.pyramid import Edges, InterpolationWeights, PyramidLevel, build_pyramid
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
    stored_part,
)
from tests.layers.passes import BOUND, assert_passes_agree, run

LAYOUT = "postech_point_transformer_seg"
STRIDES, NUM_NEIGHBOURS = (1, 4, 4, 4, 4), (8, 16, 16, 16, 16)


# --- the authors' numbers --------------------------------------------------------------------------------------------


def padded_as_theirs(points: Tensor, *, offsets: Tensor, strides: Any, num_neighbours: Any) -> list[PyramidLevel]:
    """Our levels with the authors' rule for clouds of fewer points than neighbours: their first point again and again,
    as a neighbour like any other, and at a distance of 1e5 where features are interpolated."""
    levels = build_pyramid(points, offsets=offsets, strides=strides, num_neighbours=num_neighbours)
    padded: list[PyramidLevel] = []
    for level, count in zip(levels, num_neighbours, strict=True):
        finer = padded[-1] if padded else None
        padded.append(
            dataclasses.replace(
                level,
                neighbours=_edges_as_theirs(
                    level.neighbours, level.points, level.points, level.offsets, level.offsets, count
                ),
                downsampling=_edges_as_theirs(
                    level.downsampling, finer.points, level.points, finer.offsets, level.offsets, count
                )
                if finer is not None and level.downsampling is not None
                else None,
                interpolation=_spread_as_theirs(level, finer) if finer is not None else None,
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
    return Edges(index, relative, torch.full_like(edges.count, num_neighbours))


def _spread_as_theirs(level: PyramidLevel, finer: PyramidLevel) -> InterpolationWeights:
    assert level.interpolation is not None
    distance = (level.points[level.interpolation.index] - finer.points[:, None]).norm(dim=-1)
    distance[level.interpolation.weights == 0] = 1e5
    weights = 1 / (distance + 1e-8)
    return InterpolationWeights(level.interpolation.index, weights / weights.sum(dim=1, keepdim=True))


@pytest.fixture
def _padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_transformer, "build_pyramid", padded_as_theirs)


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
@pytest.mark.parametrize("fused", [True, False])
def test_a_block_agrees_with_the_reference(shared: Path, fused: bool) -> None:
    """Both of its clouds have more points than neighbours, so that nothing is padded."""
    golden = load_golden(shared, "pt_korea_block")
    block = PointTransformerBlock(channels=32, fused=fused).double()

    def our_name(key: str) -> str | None:
        name = translate_key(f"enc1.1.{key}", LAYOUT)
        return name and name.removeprefix("stages.0.blocks.0.")

    block.load_state_dict({our_name(key): value for key, value in golden.state().items()})
    offsets = F.pad(golden.tensor("in.offset").long(), (1, 0))
    near = build_pyramid(golden.tensor("in.coord"), offsets=offsets, strides=(1,), num_neighbours=(8,))[0].neighbours
    for mode in each_mode(block):
        out = block(golden.tensor("in.feat"), near)
        loss = (out * golden.tensor("in.w")).sum()
        assert_outputs(golden, mode, {"out": out}, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, block, our_name)


@pytest.mark.shared
@pytest.mark.usefixtures("_padded")
@pytest.mark.parametrize("fused", [True, False])
def test_agrees_with_the_reference(shared: Path, fused: bool) -> None:
    golden = load_golden(shared, "pt_korea_seg_c6")
    model = PointTransformer(num_classes=13, in_channels=6, fused=fused).double()
    model.load_state_dict(convert_state_dict(golden.state(), LAYOUT))
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
    model.load_state_dict(convert_state_dict(golden.state(), LAYOUT))
    seen = tap(model, golden)
    with torch.no_grad():
        logits = model(**ragged_input(golden))["logits"]
    assert_outputs(golden, "eval", {"logits": logits}, F.cross_entropy(logits, golden.tensor("in.label")))
    for label, value in seen.items():
        assert_near_largest(stored_part(golden, label, value), golden.tensor(label), 1e-10, label)


# --- what it claims --------------------------------------------------------------------------------------------------


def small(**changes: Any) -> PointTransformer:
    """Three resolutions, in float64 and evaluation, with running statistics that matter."""
    arguments: dict[str, Any] = {
        "num_classes": 4,
        "in_channels": 3,
        "widths": (8, 16, 24),
        "strides": (1, 4, 4),
        "num_neighbours": (6, 8, 8),
        "num_blocks": (1, 1, 1),
    }
    model = PointTransformer(**arguments | changes).double()
    unsettle_buffers(model)
    return model.eval()


def unsettle_buffers(model: nn.Module) -> None:
    for name, values in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(values, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(values, 0.5, 2)


def ragged(*sizes: int, num_features: int = 0) -> dict[str, Tensor]:
    batch = {"points": torch.randn(sum(sizes), 3, dtype=torch.float64)}
    if num_features:
        batch["features"] = torch.randn(sum(sizes), num_features, dtype=torch.float64)
    return batch | {"offsets": F.pad(torch.tensor(sizes).cumsum(0), (1, 0))}


def alone(batch: dict[str, Tensor], cloud: int) -> dict[str, Tensor]:
    begin, end = batch["offsets"][cloud : cloud + 2].tolist()
    rows = {name: value[begin:end] for name, value in batch.items() if name != "offsets"}
    return rows | {"offsets": torch.tensor([0, end - begin])}


FUSED = pytest.mark.parametrize("fused", [True, False])
PER = pytest.mark.parametrize("per", ["point", "cloud"])


@FUSED
@PER
@pytest.mark.parametrize("widths", [{}, {"widths": (32, 64, 128, 256, 512)}])
def test_a_cloud_in_a_ragged_batch_is_answered_as_it_is_alone(per: str, fused: bool, widths: dict[str, Any]) -> None:
    full = {"strides": STRIDES, "num_neighbours": NUM_NEIGHBOURS, "num_blocks": (1, 2, 3, 5, 2)}
    model = small(per=per, fused=fused, in_channels=5, **(widths | full if widths else {}))
    batch = ragged(500, 37, 1, num_features=2)
    together = model(**batch)["logits"]
    assert together.isfinite().all()
    bounds = batch["offsets"].tolist() if per == "point" else range(4)
    for cloud, (begin, end) in enumerate(pairwise(bounds)):
        own = model(**alone(batch, cloud))["logits"]
        torch.testing.assert_close(own, together[begin:end], rtol=1e-9, atol=1e-9)


@FUSED
def test_stacked_and_packed_clouds_are_answered_alike(fused: bool) -> None:
    model, points = small(fused=fused), torch.randn(3, 50, 3, dtype=torch.float64)
    stacked = model(points=points)["logits"]
    packed = model(points=points.flatten(0, 1), offsets=torch.tensor([0, 50, 100, 150]))["logits"]
    assert stacked.shape == (3, 50, 4)
    assert torch.equal(stacked.flatten(0, 1), packed)


@PER
def test_plain_layers_give_the_same_step(per: str) -> None:
    """Outputs, gradients and running statistics of a step in training, float64, to 1e-9."""
    fused, plain = (small(per=per, fused=form, in_channels=5, dropout=0.0).train() for form in (True, False))
    plain.load_state_dict(fused.state_dict())
    given = ragged(60, 33, 3, num_features=2)
    weight = torch.randn(96 if per == "point" else 3, 4, dtype=torch.float64)
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


@FUSED
@PER
def test_points_that_all_stand_twice_or_in_one_place_are_answered(per: str, fused: bool) -> None:
    """Neighbours at distance zero, weights of interpolation with it, samples that are all alike."""
    model = small(per=per, fused=fused).train()
    points = torch.randn(2, 20, 3, dtype=torch.float64)
    points = torch.cat([points.repeat(1, 2, 1), torch.zeros(1, 40, 3, dtype=torch.float64)])
    logits = model(points=points)["logits"]
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


@FUSED
@pytest.mark.parametrize("is_training", [True, False])
def test_gradients_are_finite_with_a_cloud_of_one_point(fused: bool, is_training: bool) -> None:
    """In training beside another cloud; with running statistics alone."""
    model = small(fused=fused).train(is_training)
    model(**ragged(1, 40) if is_training else ragged(1))["logits"].square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_one_point_left_in_training_is_told_with_its_stage() -> None:
    with pytest.raises(ValueError, match=r"one point is left at stage 3 of 3 in the whole batch \(20 points came in\)"):
        small().train()(**ragged(20))


def test_frozen_norms_train_on_one_point() -> None:
    model = small().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    assert model(**ragged(1))["logits"].isfinite().all()


@pytest.mark.parametrize("name", ["points", "features"])
def test_numbers_that_are_not_finite_are_named(name: str) -> None:
    batch = ragged(20, 30, num_features=2)
    batch[name][25, 1] = torch.inf
    with pytest.raises(ValueError, match=r"points( and features)?\[1\]: point 5 is \[.*inf"):
        small(in_channels=5)(**batch)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"features": torch.zeros(50, 3)},
            r"found the shape \(50, 3\), expected \(50, 2\): this model was built for 5",
        ),
        ({"features": None}, r"found no features \(width 0\), expected \(50, 2\)"),
        ({"points": torch.zeros(50, 2)}, r"points: found the shape \(50, 2\) beside offsets, expected \(P, 3\)"),
        ({"offsets": torch.tensor([0, 20])}, r"offsets \[0, 20\] of 50 rows"),
        ({"offsets": None}, r"points: found the shape \(50, 3\), expected \(B, N, 3\)"),
    ],
)
def test_inputs_of_another_form_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        small(in_channels=5)(**ragged(20, 30, num_features=2) | change)


def test_a_cloud_without_points_has_no_class() -> None:
    batch = ragged(20, 0, 30)
    with pytest.raises(ValueError, match="cloud 1 has no points"):
        small(per="cloud")(**batch)
    assert small()(**batch)["logits"].isfinite().all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_blocks": (1, 1)}, "3 widths, 3 strides, 3 num_neighbours, 2 num_blocks"),
        ({"strides": (2, 4, 4)}, r"strides\[0\] is 2; the first stage keeps all points"),
        ({"widths": (8, 12, 16)}, r"widths \[12\] are not multiples of 8"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small(**change)
