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

__all__ = ["misplaced_heatmap", "width_of"]

_NEEDED = frozenset({"joints", "visible", "placement", "heatmaps"})
_NUM_SAMPLES = 8
_OFF = 0.05
"""Cells. A Gaussian in float32 is read back to a thousandth of one."""
_OFF_ONE_HOT = 0.51
"""The largest of eight cells is the nearest to the joint."""
_FEWEST = 3
_LOWEST_PEAK = 0.3
_BORDER = 4  # cells: nearer to a border a map is cut off, and its sum does not show its width
_WIDTH_OFF = 0.05
_OF_PUBLISHED = 1.5
"""Times as wide, or as narrow, as published: maps of twice the width, cut off by their borders, are found 1.9 times."""
_MOST = 0.9
"""The share of the joints that must be where an explanation places them."""


class _Seen(NamedTuple):
    """Where joints are and where their maps put them, (B, J, 3) in cells; which have a map; how wide inner ones are."""

    expected: Tensor
    found: Tensor
    shown: Tensor
    widths: Tensor
    bound: float
    cells: int

    def agrees(self, place: Tensor) -> bool:
        """Whether nearly all maps have these places."""
        off = (place - self.found).abs().amax(dim=-1)[self.shown]
        return bool((off <= self.bound).double().mean() > _MOST)


@check("G41", "misplaced-heatmap", "preflight")
def misplaced_heatmap(context: Context) -> list[Finding]:
    """Each target, read like a prediction, gives the place of its joint, and is as wide as in the recipe.

    Far from the width of Moon et al. 2018, which is the default of `draw_heatmaps`, it gets a warning.
    """
    for part in parts_with(context, _NEEDED):
        batch = read_first_batch(part, _NUM_SAMPLES, context.config.seed)
        placement = CubePlacement.from_rows(batch["placement"])
        joints = batch["joints"].double()
        seen = _read(batch["heatmaps"], joints, batch["visible"].bool(), placement)
        if int(seen.shown.sum()) < _FEWEST:
            continue
        if not seen.agrees(seen.expected):
            return [_of_place(context, part, joints, placement, seen)]
        if not len(seen.widths):
            continue
        stated, measured = _stated_width(context, part), float(seen.widths.median())
        published = float(registry.transforms.entry(ComponentConfig("draw_heatmaps")).arguments["sigma"].default)
        if stated is not None and abs(measured / stated - 1) > _WIDTH_OFF:
            return [_of_width(context, part, measured, stated)]
        if max(measured / published, published / measured) > _OF_PUBLISHED:
            return [_of_published(context, part, measured, published)]
    return []


def width_of(heatmaps: Tensor) -> Tensor:
    """The deviation, in cells, of Gaussians (..., V, V, V) that lie inside: (sum / peak)^(1/3) / sqrt(2 pi).

    The peak of a Gaussian whose centre lies within a cell is that of its fitted parabola; the sum of squares needs
    none: (sum h)^2 / (sum h^2) is 8 pi^1.5 sigma^3.
    """
    flat = heatmaps.double().flatten(-3)
    return (flat.sum(dim=-1) ** 2 / (flat.square().sum(dim=-1) * 8 * torch.pi**1.5)) ** (1 / 3)


def _read(heatmaps: Tensor, joints: Tensor, visible: Tensor, placement: CubePlacement) -> _Seen:
    maps = permute_axes(heatmaps.double(), placement.axes)
    cells = maps.shape[-1]
    is_one_hot = bool(((maps.sum((2, 3, 4)) - 1).abs() < 1e-3)[visible].all())
    found = decode(maps, decoding="argmax" if is_one_hot else "parabola")
    shown = visible & (is_one_hot | (peaks(maps) > _LOWEST_PEAK))
    expected = _in_cells(joints, placement, cells)
    shown = shown & ((expected > 0) & (expected < cells)).all(dim=-1)
    inner = shown & ((found > _BORDER) & (found < cells - _BORDER)).all(dim=-1)
    widths = width_of(maps)[inner] if not is_one_hot else torch.empty(0)
    return _Seen(expected, found, shown, widths, _OFF_ONE_HOT if is_one_hot else _OFF, cells)


def _in_cells(joints: Tensor, placement: CubePlacement, cells: int) -> Tensor:
    """Where the maximum of a right map lies: the release counts cells from their middles."""
    return to_voxels(joints, placement) / (placement.size / cells) + (0.5 if placement.compat == "release" else 0.0)


def _explanations(joints: Tensor, placement: CubePlacement, seen: _Seen) -> Iterator[tuple[str, str, Tensor]]:
    """Possible faults: the cause, in words, and where the maps would then put the joints."""
    for order in list(permutations((0, 1, 2)))[1:]:
        axes = ", ".join("xyz"[axis] for axis in order)
        yield "data.layout", f"their axes are {axes}", seen.expected[..., list(order)]
    changed = {
        "they do not follow the variation of the input": unaugmented_placement(placement),
        "they are scaled by the inverse of the input's scale": replace(placement, scale=1 / placement.scale),
        "they are turned the other way": replace(placement, angle_rad=-placement.angle_rad),
    }
    for explanation, other in changed.items():
        yield "data.augment_target_mismatch", explanation, _in_cells(joints, other, seen.cells)
    for factor in (0.5, 2.0):
        yield (
            "data.augment_target_mismatch",
            f"their coordinates are {factor:g} times what they should be",
            (seen.expected * factor),
        )
    off = (seen.found - seen.expected)[seen.shown].median(dim=0).values
    offset = ", ".join(f"{value:+.2f}" for value in off.tolist())
    is_half = bool(((off.abs() - 0.5).abs() < _OFF).all())
    cause = "data.target_encoding" if is_half else "data.centre"
    yield cause, f"they lie ({offset}) cells off", seen.expected + off
    own = torch.stack([_middle(f - e, s) for f, e, s in zip(seen.found, seen.expected, seen.shown, strict=True)])
    yield "data.centre", "they lie about another centre in every sample", seen.expected + own[:, None]


def _middle(offset: Tensor, shown: Tensor) -> Tensor:
    return offset[shown].median(dim=0).values if bool(shown.any()) else offset.new_zeros(3)


def _stated_width(context: Context, part: DataSubset) -> float | None:
    """The width that the recipe's transform was given, or has by default; None where another one draws the maps."""
    transforms = context.config.transforms
    for component in transforms.train if part is context.built.data.train else transforms.evaluate:
        if component.name == "draw_heatmaps" and component.arguments.get("targets", "gaussian") == "gaussian":
            return float(component.arguments.get("sigma", 1.7))
    return None


def _of_place(context: Context, part: DataSubset, joints: Tensor, placement: CubePlacement, seen: _Seen) -> Finding:
    fitting = ((cause, words) for cause, words, place in _explanations(joints, placement, seen) if seen.agrees(place))
    cause, explanation = next(fitting, ("data.target_encoding", "no permutation, shift or scale explains it"))
    off = (seen.found - seen.expected).abs().amax(dim=-1)
    worst = int(torch.where(seen.shown, off, -1.0).flatten().argmax()) // joints.shape[1]
    pooling = placement.size / seen.cells
    away = float((to_camera(seen.found * pooling, placement) - joints).norm(dim=-1)[seen.shown].mean())
    largest = float(off[seen.shown].max())
    return misplaced_heatmap.finding(
        context,
        f"heat maps do not show the joints: {explanation}",
        causes=(cause, "data.layout", "data.centre", "data.augment_target_mismatch"),
        at="transforms",
        split=part.split,
        sample=int(part.indices[worst]),
        measured=f"read back, targets are {away:.1f} mm from their joints, {largest:.2f} cells at most",
        expected=f"at most {seen.bound:g} cells",
        action="look at the transform that makes 'heatmaps' beside the one that makes 'placement'",
        evidence={"mean_mm": away, "largest_cells": largest},
    )


def _of_width(context: Context, part: DataSubset, measured: float, stated: float) -> Finding:
    return misplaced_heatmap.finding(
        context,
        f"heat maps are {measured / stated:.2f} times as wide as in the recipe",
        causes=("data.target_encoding", "cfg.contract", "data.augment_target_mismatch"),
        at="transforms.train",
        split=part.split,
        measured=f"a deviation of {measured:.2f} cells",
        expected=f"{stated:g} cells: exp(-d^2 / (2 sigma^2))",
        action="look for a variance taken for a deviation, a missing 2, or voxels taken for cells",
        evidence={"measured_cells": measured, "said_cells": stated},
    )


def _of_published(context: Context, part: DataSubset, measured: float, published: float) -> Finding:
    return misplaced_heatmap.finding(
        context,
        f"heat maps are {measured / published:.2f} times as wide as the published ones",
        causes=("data.target_encoding", "cfg.contract"),
        at="transforms.train",
        split=part.split,
        measured=f"a deviation of {measured:.2f} cells",
        expected=f"{published:g} cells (Moon et al. 2018), up to {_OF_PUBLISHED:g} times that either way",
        action="leave out draw_heatmaps' sigma, which is in cells of two voxels; where the width is meant, add "
        "checks.skip=[misplaced-heatmap]",
        evidence={"measured_cells": measured, "published_cells": published},
        severity="warning",
    )
