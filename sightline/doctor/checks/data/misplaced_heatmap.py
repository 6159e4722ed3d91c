"""Heat maps that do not show the joints: another order of axes, centre, scale or width than declared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from sightline import registry
from sightline.doctor.checks.data.misplaced_volume import parts_with, read_first_batch, unaugmented_placement
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.engine.build import DataSubset
from sightline.geometry.heatmaps import decode, peaks
from sightline.geometry.volumes import CubePlacement, permute_axes, to_camera, to_voxels
from sightline.types import ComponentConfig

__all__ = ["measure_widths", "misplaced_heatmap"]

_NEEDED = frozenset({"joints", "visible", "placement", "heatmaps"})
_NUM_SAMPLES = 8
_MAX_ERROR = 0.05
"""Distance in cells; a Gaussian in float32 is decoded to a thousandth of one."""
_MAX_ERROR_ONE_HOT = 0.51
"""Distance in cells; the largest cell of a one-hot map is the nearest to the joint."""
_MIN_MAPS = 3
_MIN_PEAK = 0.3
_BORDER = 4  # cells: nearer to a border a map is cropped, and its sum does not give its width
_MAX_WIDTH_ERROR = 0.05
_MAX_PUBLISHED_RATIO = 1.5
"""Ratio to the published width, or its inverse; maps of twice the width, cropped at their borders, measure 1.9."""
_MIN_AGREEING = 0.9
"""Share of the joints that must be at the positions of an explanation."""


class _Maps(NamedTuple):
    """Expected and decoded joints (B, J, 3) in cells, a mask (B, J) of usable maps, and widths of inner maps."""

    expected: Tensor
    decoded: Tensor
    is_usable: Tensor
    widths: Tensor
    bound: float
    cells: int

    def agrees_with(self, positions: Tensor) -> bool:
        """Return True if nearly all maps have their joint at these positions (B, J, 3), in cells."""
        distances = (positions - self.decoded).abs().amax(dim=-1)[self.is_usable]
        return bool((distances <= self.bound).double().mean() > _MIN_AGREEING)


@check("G41", "misplaced-heatmap", "preflight")
def misplaced_heatmap(context: Context) -> list[Finding]:
    """Each target map, decoded like a prediction, gives its joint's position and has the width of the config.

    Finds: Heat maps that do not show the joints: another order of axes, centre, scale or width than declared.

    A width far from that of Moon et al. 2018, the default of `draw_heatmaps`, gets a warning.
    """
    for part in parts_with(context, _NEEDED):
        batch = read_first_batch(part, _NUM_SAMPLES, context.config.seed)
        placement = CubePlacement.from_rows(batch["placement"])
        joints = batch["joints"].double()
        maps = _decode_maps(batch["heatmaps"], joints, batch["visible"].bool(), placement)
        if int(maps.is_usable.sum()) < _MIN_MAPS:
            continue
        if not maps.agrees_with(maps.expected):
            return [_finding_position(context, part, joints, placement, maps)]
        if not len(maps.widths):
            continue
        stated, measured = _get_stated_width(context, part), float(maps.widths.median())
        published = float(registry.transforms.entry(ComponentConfig("draw_heatmaps")).arguments["sigma"].default)
        if stated is not None and abs(measured / stated - 1) > _MAX_WIDTH_ERROR:
            return [_finding_width(context, part, measured, stated)]
        if max(measured / published, published / measured) > _MAX_PUBLISHED_RATIO:
            return [_finding_published(context, part, measured, published)]
    return []


def measure_widths(heatmaps: Tensor) -> Tensor:
    """Compute the standard deviations (...) in cells of Gaussian maps (..., V, V, V) that are not cropped.

    (sum h)^2 / (sum h^2) is 8 pi^1.5 sigma^3; unlike (sum / peak)^(1/3) / sqrt(2 pi), this does not need the peak,
    which for a centre within a cell would have to be fitted.
    """
    flat = heatmaps.double().flatten(-3)
    return (flat.sum(dim=-1) ** 2 / (flat.square().sum(dim=-1) * 8 * torch.pi**1.5)) ** (1 / 3)


def _decode_maps(heatmaps: Tensor, joints: Tensor, visible: Tensor, placement: CubePlacement) -> _Maps:
    maps = permute_axes(heatmaps.double(), placement.axes)
    cells = maps.shape[-1]
    is_one_hot = bool(((maps.sum((2, 3, 4)) - 1).abs() < 1e-3)[visible].all())
    decoded = decode(maps, decoding="argmax" if is_one_hot else "parabola")
    is_usable = visible & (is_one_hot | (peaks(maps) > _MIN_PEAK))
    expected = _convert_to_cells(joints, placement, cells)
    is_usable = is_usable & ((expected > 0) & (expected < cells)).all(dim=-1)
    is_inner = is_usable & ((decoded > _BORDER) & (decoded < cells - _BORDER)).all(dim=-1)
    widths = measure_widths(maps)[is_inner] if not is_one_hot else torch.empty(0)
    return _Maps(expected, decoded, is_usable, widths, _MAX_ERROR_ONE_HOT if is_one_hot else _MAX_ERROR, cells)


def _convert_to_cells(joints: Tensor, placement: CubePlacement, cells: int) -> Tensor:
    """Convert joints (B, J, 3) in mm to cells; with `compat` "release" positions count from cell centres."""
    return to_voxels(joints, placement) / (placement.size / cells) + (0.5 if placement.compat == "release" else 0.0)


def _list_explanations(joints: Tensor, placement: CubePlacement, maps: _Maps) -> Iterator[tuple[str, str, Tensor]]:
    """Yield possible faults: the cause, a description, and the joints (B, J, 3) in cells that it would give."""
    for order in list(permutations((0, 1, 2)))[1:]:
        axes = ", ".join("xyz"[axis] for axis in order)
        yield "data.layout", f"their axes are {axes}", maps.expected[..., list(order)]
    other_placements = {
        "they do not follow the augmentation of the input": unaugmented_placement(placement),
        "they are scaled by the inverse of the input's scale": replace(placement, scale=1 / placement.scale),
        "they are rotated in the opposite direction": replace(placement, angle_rad=-placement.angle_rad),
    }
    for explanation, other_placement in other_placements.items():
        yield "data.augment_target_mismatch", explanation, _convert_to_cells(joints, other_placement, maps.cells)
    for factor in (0.5, 2.0):
        yield (
            "data.augment_target_mismatch",
            f"their coordinates are {factor:g} times what they should be",
            (maps.expected * factor),
        )
    shift = (maps.decoded - maps.expected)[maps.is_usable].median(dim=0).values
    shift_text = ", ".join(f"{value:+.2f}" for value in shift.tolist())
    is_half = bool(((shift.abs() - 0.5).abs() < _MAX_ERROR).all())
    cause = "data.target_encoding" if is_half else "data.centre"
    yield cause, f"they are shifted by ({shift_text}) cells", maps.expected + shift
    shifts = torch.stack(
        [
            _compute_median_offset(decoded - expected, is_usable)
            for decoded, expected, is_usable in zip(maps.decoded, maps.expected, maps.is_usable, strict=True)
        ]
    )
    yield "data.centre", "they are relative to another centre in every sample", maps.expected + shifts[:, None]


def _compute_median_offset(offset: Tensor, is_usable: Tensor) -> Tensor:
    return offset[is_usable].median(dim=0).values if bool(is_usable.any()) else offset.new_zeros(3)


def _get_stated_width(context: Context, part: DataSubset) -> float | None:
    """Return the width that `draw_heatmaps` was given or has by default; None if another transform draws."""
    transforms = context.config.transforms
    for component in transforms.train if part is context.built.data.train else transforms.evaluate:
        if component.name == "draw_heatmaps" and component.arguments.get("targets", "gaussian") == "gaussian":
            return float(component.arguments.get("sigma", 1.7))
    return None


def _finding_position(
    context: Context, part: DataSubset, joints: Tensor, placement: CubePlacement, maps: _Maps
) -> Finding:
    fitting = (
        (cause, description)
        for cause, description, positions in _list_explanations(joints, placement, maps)
        if maps.agrees_with(positions)
    )
    cause, explanation = next(fitting, ("data.target_encoding", "no permutation, shift or scale explains it"))
    distances = (maps.decoded - maps.expected).abs().amax(dim=-1)
    worst = int(torch.where(maps.is_usable, distances, -1.0).flatten().argmax()) // joints.shape[1]
    pooling = placement.size / maps.cells
    mean_mm = float((to_camera(maps.decoded * pooling, placement) - joints).norm(dim=-1)[maps.is_usable].mean())
    largest_cells = float(distances[maps.is_usable].max())
    return misplaced_heatmap.finding(
        context,
        f"heat maps do not show the joints: {explanation}",
        causes=(cause, "data.layout", "data.centre", "data.augment_target_mismatch"),
        at="transforms",
        split=part.split,
        sample=int(part.indices[worst]),
        measured=f"decoded targets are {mean_mm:.1f} mm from their joints, {largest_cells:.2f} cells at most",
        expected=f"at most {maps.bound:g} cells",
        action="look at the transform that makes 'heatmaps' and at the one that makes 'placement'",
        evidence={"mean_mm": mean_mm, "largest_cells": largest_cells},
    )


def _finding_width(context: Context, part: DataSubset, measured: float, stated: float) -> Finding:
    return misplaced_heatmap.finding(
        context,
        f"heat maps are {measured / stated:.2f} times as wide as in the config",
        causes=("data.target_encoding", "cfg.contract", "data.augment_target_mismatch"),
        at="transforms.train",
        split=part.split,
        measured=f"a deviation of {measured:.2f} cells",
        expected=f"{stated:g} cells: exp(-d^2 / (2 sigma^2))",
        action="look for a variance taken for a deviation, a missing 2, or voxels taken for cells",
        evidence={"measured_cells": measured, "said_cells": stated},
    )


def _finding_published(context: Context, part: DataSubset, measured: float, published: float) -> Finding:
    return misplaced_heatmap.finding(
        context,
        f"heat maps are {measured / published:.2f} times as wide as the published ones",
        causes=("data.target_encoding", "cfg.contract"),
        at="transforms.train",
        split=part.split,
        measured=f"a deviation of {measured:.2f} cells",
        expected=f"{published:g} cells (Moon et al. 2018), up to {_MAX_PUBLISHED_RATIO:g} times that either way",
        action="leave out draw_heatmaps' sigma, which is in cells of two voxels; if the width is intended, add "
        "checks.skip=[misplaced-heatmap]",
        evidence={"measured_cells": measured, "published_cells": published},
        severity="warning",
    )
