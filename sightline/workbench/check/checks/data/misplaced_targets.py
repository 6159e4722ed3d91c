"""Checks of joints' targets: heatmaps and volumes that are drawn in the wrong place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.types import Batch, ComponentConfig, SampleKey
from sightline.engine.build import DataSubset
from sightline.ops.heat_maps import decode, peaks
from sightline.ops.voxels import CubePlacement, occupancy, permute_axes, to_camera, to_voxels
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain
from sightline.workbench.check.core.sample_statistics import describe_sample

_NEEDED_OF_VOLUMES = frozenset({"depth", "camera", "placement", "volume"})
_NUM_VOLUME_SAMPLES = 4
_MIN_IOU = 0.999
"""IoU of the voxels; rounding may move points on a border to either side."""
_MIN_EXPLAINED_IOU = 0.9
_MAX_SHIFT = 12  # voxels
_MIN_CENTRE_IOU, _NUM_CENTRE_FITS = 0.5, 6
"""IoU with the voxels about another point, which is found to a tenth of a voxel only, and its corrections."""


@check("misplaced-volume", "preflight", config_path="transforms")
def misplaced_volume(context: Context) -> Iterator[Fault]:
    """Points of a frame, mapped by its placement, occupy exactly the voxels of the network's input.

    Finds: Voxels that are not those of the frame: another order of axes, centre, rotation or scale than declared.
    """
    faults = (_judge_volume(part, context.config.seed) for part in parts_with(context, _NEEDED_OF_VOLUMES))
    yield from itertools.islice((fault for fault in faults if fault is not None), 1)


def parts_with(context: Context, needed: frozenset[str]) -> Iterator[DataSubset]:
    """Yield the training and the validation part if they have samples, and batches with the `needed` keys."""
    data = context.built.data
    for part in (data.train, data.selection):
        if needed <= part.reader.keys and len(part.indices):
            yield part


def read_first_batch(part: DataSubset, count: int, seed: int) -> Batch:
    """Read the first `count` samples of a part, with the keys of its first epoch."""
    return part.reader([SampleKey(int(index), 0, seed) for index in part.indices[:count]])


def _compute_iou(occupied: Tensor, expected: Tensor | None) -> float:
    """Compute the IoU of two grids of occupied voxels; 0 if their shapes differ."""
    if expected is None or occupied.shape != expected.shape:
        return 0.0
    num_either = int((occupied | expected).sum())
    return int((occupied & expected).sum()) / num_either if num_either else 1.0


def _iter_volume_causes(batch: Batch, placement: CubePlacement) -> Iterator[Hypothesis]:
    """Yield possible faults with the voxels that each would give."""
    depth, camera = batch["depth"], batch["camera"]
    unpermuted = occupancy(depth, camera, replace(placement, axes="xyz"))[:, 0] > 0
    for order in permutations((0, 1, 2)):
        axes = ", ".join("xyz"[axis] for axis in order)
        grid = unpermuted.permute(0, *(axis + 1 for axis in order))[:, None]
        yield Hypothesis("data.layout", f"its axes are {axes}", grid)
    for explanation, changed in (
        ("the grid is scaled by the inverse", replace(placement, scale=1 / placement.scale)),
        ("the grid is rotated in the opposite direction", replace(placement, angle_rad=-placement.angle_rad)),
        ("the grid is not augmented, but the target is", unaugmented_placement(placement)),
    ):
        yield Hypothesis("data.augment_target_mismatch", explanation, occupancy(depth, camera, changed) > 0)
    in_place = permute_axes(unpermuted, placement.axes)[:, None]
    for sides in itertools.chain.from_iterable(itertools.combinations((2, 3, 4), count) for count in (1, 2, 3)):
        text = f"it is mirrored along {len(sides)} of its axes, but the target is not"
        yield Hypothesis("data.augment_target_mismatch", text, in_place.flip(sides))
    for one, two in ((2, 3), (2, 4), (3, 4)):
        for turns in (1, 3):
            text = "it is turned by a right angle, but the target is not"
            yield Hypothesis("data.augment_target_mismatch", text, in_place.rot90(turns, (one, two)))
    metres = torch.where(depth > 0, depth / 1000, depth)
    yield Hypothesis("data.normalisation", "depth is taken for metres", occupancy(metres, camera, placement) > 0)


def unaugmented_placement(placement: CubePlacement) -> CubePlacement:
    """Return the same cube without scale, rotation and shift."""
    return replace(
        CubePlacement.identity(
            placement.reference_mm, cube_mm=placement.cube_mm, size=placement.size, original=placement.grid_size
        ),
        axes=placement.axes,
        compat=placement.compat,
    )


def _iter_shifts(occupied: Tensor, expected: Tensor) -> Iterator[Hypothesis]:
    """Yield one integer shift for all samples, estimated from their mean voxels."""
    if occupied.shape == expected.shape:
        means = [grid[:, 0].nonzero()[:, 1:].double().mean(dim=0) for grid in (occupied, expected)]
        steps = (means[0] - means[1]).nan_to_num().round().clamp(-_MAX_SHIFT, _MAX_SHIFT)
        offset = tuple(int(step) for step in steps)
        text = f"it is shifted by {offset} voxels: another centre"
        yield Hypothesis("data.centre", text, expected.roll(offset, dims=(2, 3, 4)))


def _iter_centres(occupied: Tensor, batch: Batch, placement: CubePlacement) -> Iterator[Hypothesis]:
    """Yield the voxels about another point, the same in mm from the reference in all samples."""
    if occupied.shape[2:] != (placement.size,) * 3:
        return
    grid = permute_axes(occupied.double(), placement.axes)[:, 0] > 0
    moved = placement
    for _ in range(_NUM_CENTRE_FITS):
        expected = occupancy(batch["depth"], batch["camera"], replace(moved, axes="xyz"))[:, 0] > 0
        offsets = [
            _find_mean(one, placement, row) - _find_mean(other, placement, row)
            for row, (one, other) in enumerate(zip(expected, grid, strict=True))
        ]
        step = torch.stack(offsets).nan_to_num().mean(dim=0)
        moved = replace(moved, reference_mm=moved.reference_mm + step)
    offset = ", ".join(f"{value:+.0f}" for value in (moved.reference_mm - placement.reference_mm)[0].tolist())
    text = f"it is placed about a point ({offset}) mm from the reference"
    yield Hypothesis("data.centre", text, occupancy(batch["depth"], batch["camera"], moved) > 0)


def _find_mean(grid: Tensor, placement: CubePlacement, row: int) -> Tensor:
    """Find the mean (3,) in mm of the occupied voxels of a sample's grid, were it about its reference."""
    mean = grid.nonzero().double().mean(dim=0) + 0.5
    return to_camera(mean.expand(len(placement.reference_mm), 1, 3), placement)[row, 0]


def _judge_volume(part: DataSubset, seed: int) -> Fault | None:
    batch = read_first_batch(part, _NUM_VOLUME_SAMPLES, seed)
    placement = CubePlacement.from_rows(batch["placement"])
    expected = occupancy(batch["depth"], batch["camera"], placement) > 0
    occupied = batch["volume"] > 0
    iou = _compute_iou(occupied, expected)
    if occupied.shape == expected.shape and iou >= _MIN_IOU:
        return None
    compare = partial(explain, occupied, None, likeness=_compute_iou, above=_MIN_EXPLAINED_IOU)
    unpermuted = occupancy(batch["depth"], batch["camera"], replace(placement, axes="xyz"))
    fitting = compare(candidates=_iter_volume_causes(batch, placement)) or compare(
        candidates=_iter_shifts(occupied, permute_axes(unpermuted, placement.axes) > 0)
    )
    fitting = fitting or explain(
        occupied, None, _iter_centres(occupied, batch, placement), likeness=_compute_iou, above=_MIN_CENTRE_IOU
    )
    cause, explanation = "data.projection", "no permutation, rotation, scale or shift explains it"
    if fitting:
        cause, explanation = fitting[0].cause, fitting[0].text
    sample = int(part.indices[0])
    return Fault(
        f"the network's voxels are not those of the frame: {explanation}",
        causes=(cause, "data.layout", "data.centre", "data.augment_target_mismatch"),
        split=part.split,
        sample=sample,
        measured=f"{iou:.0%} of the voxels are common in {describe_sample(part.dataset, sample)} and those after it",
        expected="the voxels that the frame's points occupy, mapped by 'placement'",
        action="look at the transform that makes 'volume' and at the one that makes 'placement'",
        evidence={"common_share": iou, "explained_share": fitting[0].likeness if fitting else None},
    )


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


@check("misplaced-heatmap", "preflight", config_path="transforms.train")
def misplaced_heatmap(context: Context) -> Iterator[Fault]:
    """Each target map, decoded like a prediction, gives its joint's position and has the width of the config.

    Finds: Heat maps that do not show the joints: another order of axes, centre, scale or width than declared.

    A width far from that of Moon et al. 2018, the default of `draw_heatmaps`, gets a warning.
    """
    faults = (_judge_heatmaps(context, part) for part in parts_with(context, _NEEDED))
    yield from itertools.islice((fault for fault in faults if fault is not None), 1)


def _judge_heatmaps(context: Context, part: DataSubset) -> Fault | None:
    batch = read_first_batch(part, _NUM_SAMPLES, context.config.seed)
    placement = CubePlacement.from_rows(batch["placement"])
    joints = batch["joints"].double()
    maps = _decode_maps(batch["heatmaps"], joints, batch["visible"].bool(), placement)
    if int(maps.is_usable.sum()) < _MIN_MAPS:
        return None
    if not maps.agrees_with(maps.expected):
        return _judge_position(part, joints, placement, maps)
    return _judge_width(context, part, maps) if len(maps.widths) else None


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
    margin = 0.0 if is_one_hot else 1.0  # a peak is fitted to the cells on both sides of the largest
    is_usable = is_usable & ((expected > margin) & (expected < cells - margin)).all(dim=-1)
    is_inner = is_usable & ((decoded > _BORDER) & (decoded < cells - _BORDER)).all(dim=-1)
    widths = measure_widths(maps)[is_inner] if not is_one_hot else torch.empty(0)
    return _Maps(expected, decoded, is_usable, widths, _MAX_ERROR_ONE_HOT if is_one_hot else _MAX_ERROR, cells)


def _convert_to_cells(joints: Tensor, placement: CubePlacement, cells: int) -> Tensor:
    """Convert joints (B, J, 3) in mm to cells; with `compat` "release" positions count from cell centres."""
    return to_voxels(joints, placement) / (placement.size / cells) + (0.5 if placement.compat == "release" else 0.0)


def _iter_position_causes(joints: Tensor, placement: CubePlacement, maps: _Maps) -> Iterator[Hypothesis]:
    """Yield possible faults with the joints (B, J, 3) in cells that each would give."""
    for order in list(permutations((0, 1, 2)))[1:]:
        axes = ", ".join("xyz"[axis] for axis in order)
        yield Hypothesis("data.layout", f"their axes are {axes}", maps.expected[..., list(order)])
    mismatch = partial(Hypothesis, "data.augment_target_mismatch")
    for explanation, changed in (
        ("they do not follow the augmentation of the input", unaugmented_placement(placement)),
        ("they are scaled by the inverse of the input's scale", replace(placement, scale=1 / placement.scale)),
        ("they are rotated in the opposite direction", replace(placement, angle_rad=-placement.angle_rad)),
    ):
        yield mismatch(explanation, _convert_to_cells(joints, changed, maps.cells))
    for factor in (0.5, 2.0):
        yield mismatch(f"their coordinates are {factor:g} times what they should be", maps.expected * factor)
    shift = (maps.decoded - maps.expected)[maps.is_usable].median(dim=0).values
    shift_text = ", ".join(f"{value:+.2f}" for value in shift.tolist())
    is_half = bool(((shift.abs() - 0.5).abs() < _MAX_ERROR).all())
    cause = "data.target_encoding" if is_half else "data.centre"
    yield Hypothesis(cause, f"they are shifted by ({shift_text}) cells", maps.expected + shift)
    offsets = zip(maps.decoded - maps.expected, maps.is_usable, strict=True)
    shifts = torch.stack([_compute_median_offset(*row) for row in offsets])
    text = "they are relative to another centre in every sample"
    yield Hypothesis("data.centre", text, maps.expected + shifts[:, None])


def _compute_median_offset(offset: Tensor, is_usable: Tensor) -> Tensor:
    return offset[is_usable].median(dim=0).values if bool(is_usable.any()) else offset.new_zeros(3)


def _get_stated_width(context: Context, part: DataSubset) -> float | None:
    """Return the width that `draw_heatmaps` was given or has by default; None if another transform draws."""
    transforms = context.config.transforms
    for component in transforms.train if part is context.built.data.train else transforms.evaluate:
        if component.name == "draw_heatmaps" and component.arguments.get("targets", "gaussian") == "gaussian":
            return float(component.arguments.get("sigma", 1.7))
    return None


def _judge_position(part: DataSubset, joints: Tensor, placement: CubePlacement, maps: _Maps) -> Fault:
    best, *_ = explain(
        maps,
        maps.expected,
        _iter_position_causes(joints, placement, maps),
        likeness=_Maps.agrees_with,
        otherwise=Hypothesis("data.target_encoding", "no permutation, shift or scale explains it"),
    )
    distances = (maps.decoded - maps.expected).abs().amax(dim=-1)
    worst = int(torch.where(maps.is_usable, distances, -1.0).flatten().argmax()) // joints.shape[1]
    pooling = placement.size / maps.cells
    mean_mm = float((to_camera(maps.decoded * pooling, placement) - joints).norm(dim=-1)[maps.is_usable].mean())
    largest_cells = float(distances[maps.is_usable].max())
    return Fault(
        f"heat maps do not show the joints: {best.text}",
        causes=(best.cause, "data.layout", "data.centre", "data.augment_target_mismatch"),
        at="transforms",
        split=part.split,
        sample=int(part.indices[worst]),
        measured=f"decoded targets are {mean_mm:.1f} mm from their joints, {largest_cells:.2f} cells at most",
        expected=f"at most {maps.bound:g} cells",
        action="look at the transform that makes 'heatmaps' and at the one that makes 'placement'",
        evidence={"mean_mm": mean_mm, "largest_cells": largest_cells},
    )


def _judge_width(context: Context, part: DataSubset, maps: _Maps) -> Fault | None:
    stated, width = _get_stated_width(context, part), float(maps.widths.median())
    published = float(registry.transforms.entry(ComponentConfig("draw_heatmaps")).arguments["sigma"].default)
    measured = f"a deviation of {width:.2f} cells"
    if stated is not None and abs(width / stated - 1) > _MAX_WIDTH_ERROR:
        return Fault(
            f"heat maps are {width / stated:.2f} times as wide as in the config",
            causes=("data.target_encoding", "cfg.contract", "data.augment_target_mismatch"),
            split=part.split,
            measured=measured,
            expected=f"{stated:g} cells: exp(-d^2 / (2 sigma^2))",
            action="look for a variance taken for a deviation, a missing 2, or voxels taken for cells",
            evidence={"measured_cells": width, "said_cells": stated},
        )
    if max(width / published, published / width) > _MAX_PUBLISHED_RATIO:
        return Fault(
            f"heat maps are {width / published:.2f} times as wide as the published ones",
            causes=("data.target_encoding", "cfg.contract"),
            split=part.split,
            measured=measured,
            expected=f"{published:g} cells (Moon et al. 2018), up to {_MAX_PUBLISHED_RATIO:g} times that either way",
            action="leave out draw_heatmaps' sigma, which is in cells of two voxels; if the width is intended, add "
            "checks.skip=[misplaced-heatmap]",
            evidence={"measured_cells": width, "published_cells": published},
            severity="warning",
        )
    return None
