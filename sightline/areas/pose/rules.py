"""Rules of depth frames: joints, volumes and heat maps that do not show the same figure in the same place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.ops.voxels.cubes import CubePlacement, occupancy, permute_axes, to_voxels
from sightline.ops.voxels.heat_maps import decode_heatmaps, heatmap_peaks

_NUM_FRAMES, _WINDOW = 8, tuple(itertools.product((-2, 0, 2), repeat=2))
_ORDERS = list(itertools.permutations(range(3)))[1:]
_MAX_BEFORE, _MAX_BEHIND, _CAP = 0.03, 0.12, 0.15
"""Shares of the cube: depths before and behind the surface at which a joint may lie, and beyond them the worst cost."""
_MAX_COST, _MAX_UNEXPLAINED = 0.2, 0.5  # up to 0.05 for hands and bodies made here
_MIN_IOU, _MAX_CELLS = 0.999, {False: 0.05, True: 0.51}
"""Voxels in common, rounding aside; cells between a joint and its map, by whether maps are one-hot."""

Changes = Iterable[tuple[str, str, Any]]
"""Causes with what each would make of what was found, in words and as it would be without the fault."""


class Frames(NamedTuple):
    """Frames of a part of the data: the fields of a batch, where its findings lie, and the cube about its figures."""

    batch: Batch
    placement: CubePlacement
    where: FindingLocation

    def explain(self, changes: Changes, fits: Callable[[Any], float], *, min_score: float) -> tuple[list[str], str]:
        """Return the cause, and its text, of the change that fits best, if it fits at all."""
        score, _, cause, text = max(
            (fits(value), -number, cause, text) for number, (cause, text, value) in enumerate(changes)
        )
        return ([cause], f": {text}") if score >= min_score else ([], "")


@measure()
def frames(run: Any) -> list[Frames]:
    """Read the first frames of the training and of the evaluated part, as they enter the network."""
    parts = []
    for part in (run.built.data.train, run.built.data.selection):
        if {"depth", "joints", "visible", "camera", "placement"} <= part.reader.keys and len(part.indices):
            keys = [SampleKey(int(index), 0, run.config.seed) for index in part.indices[:_NUM_FRAMES]]
            batch = part.reader(keys)
            where = run.locate(part.split, config_path="transforms", sample=keys[0].index)
            parts.append(Frames(batch, CubePlacement.from_rows(batch["placement"]), where))
    if not parts:
        raise NotApplicableError("no depth")
    return parts


@rule(
    "misplaced-joints",
    "error",
    "data.pairing data.centre data.layout data.normalisation",
    holds="joints on the figure in their depth image, most of them in the cube about their reference point",
    do="look at the data set, and at transforms that change depth or joints: unit, order of axes, frame, sides",
    is_statistical=True,
)
def misplaced_joints(frames: list[Frames]) -> Iterator[Fault]:
    """Expect joints on a measured surface, or a little behind one, and near their reference point."""
    for part in frames:
        depth, joints = part.batch["depth"].double(), part.batch["joints"].double()
        cost = measure_cost(part, depth, joints)
        fits = lambda changed, part=part: -measure_cost(part, *changed)  # noqa: E731
        causes, text = part.explain(_list_moves(part, depth, joints), fits, min_score=-max(cost / 2, 0.1))
        if cost > _MAX_UNEXPLAINED or (cost > _MAX_COST and causes):
            yield Fault(
                f"joints do not lie on their depth images{text}",
                measured=f"{cost:.0%} of the way off the surface in {len(joints)} frames",
                causes=causes,
                where=part.where,
            )
            return
        offsets = (joints - part.placement.reference_mm[:, None]).abs().amax(dim=-1)
        inside = float((offsets <= part.placement.cube_mm / 2)[part.batch["visible"].bool()].double().mean())
        if inside < 0.5:
            measured = f"{inside:.0%} of the visible joints are in the cube about it"
            summary, causes = "the reference point is not near the joints", ["data.centre"]
            yield Fault(summary, measured=measured, causes=causes, where=part.where)
            return


def measure_cost(frames: Frames, depth: Tensor, joints: Tensor) -> float:
    """Measure how far visible joints (B, J, 3) lie off the surfaces of depth images (B, H, W): 0 on one, 1 away."""
    camera, z, size = frames.batch["camera"].double(), joints[..., 2], depth.new_tensor(depth.shape[:0:-1])
    places = joints[..., :2] * camera[:, None, :2] / z[..., None] + camera[:, None, 2:]
    best, rows = torch.ones_like(z), torch.arange(len(z))[:, None]
    for shift in _WINDOW:
        pixels = places.nan_to_num(-1e6, -1e6, -1e6).round() + places.new_tensor(shift)
        is_inside = ((pixels >= 0) & (pixels < size)).all(dim=-1)
        column, row = torch.minimum(pixels.clamp(min=0), size - 1).long().unbind(-1)
        surface = depth[rows, row, column]
        behind = (z - surface) / frames.placement.cube_mm
        beyond = torch.maximum(behind - _MAX_BEHIND, -behind - _MAX_BEFORE).clamp(min=0) / _CAP
        best = torch.where(is_inside & (surface > 0), torch.minimum(best, beyond), best)
    weight = frames.batch["visible"].double()
    return float((best * weight).sum() / weight.sum().clamp(min=1))


def _list_moves(frames: Frames, depth: Tensor, joints: Tensor) -> Changes:
    yield "data.pairing", "those of another frame lie there", (depth.roll(1, 0), joints)
    yield "data.pairing", "those of another frame lie there", (depth, joints.roll(-1, 0))
    yield "data.augment_target_mismatch", "images are mirrored, they are not", (depth.flip(2), joints)
    yield "data.normalisation", "'joints' are in metres", (depth, joints * 1000)
    yield "data.normalisation", "'depth' is in metres", (depth * 1000, joints)
    of_joints = "'joints' are in centimetres, or 'depth' is in tenths of a millimetre; the camera's manual tells"
    of_depth = "'depth' is in centimetres, or 'joints' are in tenths of a millimetre; the camera's manual tells"
    for text, factor in ((of_joints, 10.0), (of_depth, 0.1)):  # either fits: the figure is ten times as large, or not
        yield "data.normalisation", text, (depth, joints * factor)
        yield "data.normalisation", text, (depth / factor, joints)
    for order in _ORDERS:
        yield (
            "data.layout",
            f"their axes are {', '.join('xyz'[order.index(k)] for k in range(3))}",
            (depth, joints[..., order]),
        )
    for axis, step in itertools.product(range(3), range(-5, 6)):
        shift = joints.new_zeros(3).index_fill(0, torch.tensor(axis), step / 10 * frames.placement.cube_mm)
        yield "data.centre", f"they are {-float(shift[axis]):+.0f} mm off in {'xyz'[axis]}", (depth, joints + shift)


@rule(
    "misplaced-volume",
    "error",
    "data.centre data.layout data.augment_target_mismatch data.normalisation",
    holds="the voxels that the frame's points occupy, mapped by 'placement'",
    do="look at the transform that makes 'volume' and at the one that makes 'placement'",
)
def misplaced_volume(frames: list[Frames]) -> Iterator[Fault]:
    """Expect the voxels that the points of a frame occupy, where its placement puts them."""
    for part in frames:
        if "volume" not in part.batch:
            raise NotApplicableError("no volume")
        occupied = part.batch["volume"] > 0
        share = _compute_iou(occupied, occupancy(part.batch["depth"], part.batch["camera"], part.placement) > 0)
        if share < _MIN_IOU:
            fits = lambda other, occupied=occupied: _compute_iou(occupied, other)  # noqa: E731
            causes, text = part.explain(_list_grids(part), fits, min_score=0.9)
            yield Fault(
                f"the network's voxels are not those of the frame{text}",
                measured=f"{share:.0%} of the voxels are common",
                causes=causes,
                where=part.where,
            )
            return


def _compute_iou(first: Tensor, second: Tensor) -> float:
    either = int((first | second).sum()) if first.shape == second.shape else 0
    return int((first & second).sum()) / either if either else float(first.shape == second.shape)


def _list_grids(frames: Frames) -> Changes:
    depth, camera, placement = frames.batch["depth"], frames.batch["camera"], frames.placement
    grid = occupancy(depth, camera, placement) > 0
    for order in _ORDERS:
        yield (
            "data.layout",
            f"its axes are {', '.join('xyz'[k] for k in order)}",
            grid.permute(0, 1, *(k + 2 for k in order)),
        )
    for text, changed in list_placements(placement):
        yield "data.augment_target_mismatch", text, occupancy(depth, camera, changed) > 0
    yield "data.normalisation", "depth is taken for metres", occupancy(depth / 1000, camera, placement) > 0


def list_placements(placement: CubePlacement) -> Iterator[tuple[str, CubePlacement]]:
    """List placements of the same cube that follow its augmentation in another way."""
    grid: dict[str, Any] = {"cube_mm": placement.cube_mm, "size": placement.size, "original": placement.grid_size}
    plain = replace(
        CubePlacement.identity(placement.reference_mm, **grid), axes=placement.axes, compat=placement.compat
    )
    yield "it does not follow the augmentation", plain
    yield "it is scaled by the inverse", replace(placement, scale=1 / placement.scale)
    yield "it is rotated in the opposite direction", replace(placement, angle_rad=-placement.angle_rad)


@rule(
    "misplaced-heatmap",
    "error",
    "data.centre data.layout data.target_encoding data.augment_target_mismatch",
    holds="heat maps that are highest at their joints",
    do="look at the transform that makes 'heatmaps' and at the one that makes 'placement'",
)
def misplaced_heatmaps(frames: list[Frames]) -> Iterator[Fault]:
    """Decode target maps like predictions, and compare with the joints."""
    for part in frames:
        if "heatmaps" not in part.batch:
            raise NotApplicableError("no heat maps")
        maps, visible = permute_axes(part.batch["heatmaps"].double(), part.placement.axes), part.batch["visible"].bool()
        is_one_hot, cells = bool(((maps.sum((2, 3, 4)) - 1).abs() < 1e-3)[visible].all()), maps.shape[-1]
        decoded = decode_heatmaps(maps, decoding="argmax" if is_one_hot else "parabola", axes="xyz")
        expected, margin = _find_cells(part, part.placement, cells), 0.0 if is_one_hot else 1.0
        is_usable = (
            visible
            & (is_one_hot | (heatmap_peaks(maps) > 0.3))
            & ((expected > margin) & (expected < cells - margin)).all(-1)
        )
        error = (decoded - expected).abs().amax(dim=-1)[is_usable]
        fits = lambda other, d=decoded, u=is_usable, h=is_one_hot: _share_near(other, d, u, _MAX_CELLS[h])  # noqa: E731
        if len(error) > 2 and fits(expected) <= 0.9:
            causes, text = part.explain(_list_positions(part, expected, decoded, is_usable), fits, min_score=0.9)
            yield Fault(
                f"heat maps do not show the joints{text}",
                measured=f"decoded targets are {float(error.median()):.2f} cells from their joints (median)",
                causes=causes,
                where=part.where,
            )
            return


def _find_cells(frames: Frames, placement: CubePlacement, cells: int) -> Tensor:
    """Convert joints to cells (B, J, 3); with `compat` "release" positions count from cell centres."""
    middle = 0.5 if placement.compat == "release" else 0.0
    return to_voxels(frames.batch["joints"].double(), placement) / (placement.size / cells) + middle


def _share_near(positions: Tensor, decoded: Tensor, is_usable: Tensor, bound: float) -> float:
    return float(((positions - decoded).abs().amax(dim=-1)[is_usable] <= bound).double().mean())


def _list_positions(frames: Frames, expected: Tensor, decoded: Tensor, is_usable: Tensor) -> Changes:
    for order in _ORDERS:
        yield "data.layout", f"their axes are {', '.join('xyz'[k] for k in order)}", expected[..., order]
    cells = frames.batch["heatmaps"].shape[-1]
    for text, changed in list_placements(frames.placement):
        yield "data.augment_target_mismatch", text, _find_cells(frames, changed, cells)
    shift = (decoded - expected)[is_usable].median(dim=0).values
    cause = "data.target_encoding" if bool(((shift.abs() - 0.5).abs() < 0.05).all()) else "data.centre"
    yield cause, f"they are shifted by {[round(float(k), 2) for k in shift]} cells", expected + shift
