"""Painted samples: a white box, a pattern or a mark is where a transform moves it, and its target has to be there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any, TypeGuard

import torch
from torch import Tensor

from sightline.ops.box_forms import clip_boxes_to_image
from sightline.workbench.check.core.transform_steps import TransformStep, Verdict

_MIN_SIDE_PX, _MAX_SIDE_SHARE = 8, 0.6
_TOLERANCE_PX, _TOLERANCE_SHARE = 2.0, 0.1  # rounding and interpolation, and a share of the box's longer side
_BLOCK_PX, _NUM_CODES = 4, 4
_MIN_EXPLAINED = 0.3
"""Share of a painted image's variance that its labels explain: 1 for labels in place, 0 for others."""


def judge_boxes(step: TransformStep) -> Iterator[Verdict]:
    """Paint boxes white on black, one at a time, and compare where they go with the transform's own boxes."""
    image, boxes = step.before.get("image"), step.before.get("boxes")
    if not (_is_image(image) and isinstance(boxes, Tensor) and boxes.shape[1:] and boxes.shape[2:] == (4,)):
        return
    if not step.takes & {"image", "boxes"} or "boxes" not in step.after:
        return
    rows = _choose_boxes(boxes[0].double(), _get_size(image))
    images = [torch.full_like(image, image.min().item()), *(_paint(image, boxes[0, row]) for row in rows)]
    try:
        plain, *results = [step.apply({**step.before, "image": each}) for each in images if rows] or [step.after]
    except Exception:  # noqa: BLE001 - a transform may refuse a painted image
        return
    for row, result in zip(rows, results, strict=True):
        drawn, moved = _find_change(plain["image"], result["image"]), result["boxes"][0].double()
        if drawn is None or not len(moved):
            continue
        is_same = len(moved) == boxes.shape[1]
        clipped = clip_boxes_to_image(moved, _get_size(result["image"]))
        distances = (clipped - drawn).abs().amax(dim=1)
        box = clipped[row] if is_same else clipped[distances.argmin()]
        tolerance = _TOLERANCE_PX + _TOLERANCE_SHARE * float((drawn[2:] - drawn[:2]).max())
        outside = float(torch.cat([box[:2] - drawn[:2], drawn[2:] - box[2:]]).max())
        off = float((box - drawn).abs().max())
        measured = f"a box painted into the image goes to {_format(drawn)}, 'boxes' has {_format(box)}"
        is_proof = is_same and outside > tolerance  # a transform that erases pixels leaves a smaller one
        yield Verdict("boxes", "image", off > tolerance, measured, "the same place up to rounding", is_proof=is_proof)


def _is_image(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 4 and min(value.shape[1:]) > 0


def _is_channels_last(image: Tensor) -> bool:
    return image.shape[-1] in (1, 3) and image.shape[1] not in (1, 3)


def _get_size(image: Tensor) -> tuple[int, int]:
    height, width = image.shape[1:3] if _is_channels_last(image) else image.shape[2:]
    return int(height), int(width)


def _choose_boxes(boxes: Tensor, size: tuple[int, int]) -> list[int]:
    """Choose up to two boxes (G, 4) within an image: those farthest from its middle, where a flip would be seen."""
    limit = torch.tensor([size[1], size[0]], dtype=torch.float64)
    sides, middles = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    is_usable = (sides >= _MIN_SIDE_PX).all(dim=1) & (sides <= _MAX_SIDE_SHARE * limit).all(dim=1)
    is_usable &= (boxes[:, :2] >= 0).all(dim=1) & (boxes[:, 2:] <= limit).all(dim=1)
    distance = torch.where(is_usable[:, None], (middles / limit - 0.5).abs(), -1.0)
    return sorted({int(distance[:, axis].argmax()) for axis in (0, 1)} if bool(is_usable.any()) else ())


def _paint(image: Tensor, box: Tensor) -> Tensor:
    """Paint a box with the largest value of an image, everything else with the smallest."""
    painted = torch.full_like(image, image.min().item())
    left, top, right, bottom = (int(value) for value in box.double().round().tolist())
    area = painted[:, top:bottom, left:right] if _is_channels_last(image) else painted[:, :, top:bottom, left:right]
    area.fill_(image.max().item() if float(image.max()) > float(image.min()) else 1)
    return painted


def _find_change(plain: Tensor, painted: Tensor) -> Tensor | None:
    """Find the box (4,) of the pixels that differ by half of the largest difference or more; None if none differ."""
    difference = (painted[0].double() - plain[0].double()).abs().amax(dim=-1 if _is_channels_last(painted) else 0)
    if not bool((difference > 0).any()):
        return None
    rows, columns = (difference >= difference.max() / 2).nonzero(as_tuple=True)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).double()


def _format(box: Tensor) -> str:
    return "[" + ", ".join(f"{value:.0f}" for value in box.tolist()) + "]"


def judge_maps(step: TransformStep) -> Iterator[Verdict]:
    """Paint blocks of random classes into an image and into the maps of its pixels, and compare them afterwards."""
    image = step.before.get("image")
    if not _is_image(image):
        return
    size = _get_size(image)
    names = [name for name in ("label", "range_image", "mask", "depth") if _is_map(step.before.get(name), size)]
    if not names or not step.takes & {"image", *names} or min(size) < 2 * _BLOCK_PX:
        return
    code = _draw_blocks(size)
    painted = {name: _paint_map(step.before[name][0], code)[None] for name in names}
    share = code.double() / (_NUM_CODES - 1)
    colours = (float(image.min()) + share * max(1.0, float(image.max()) - float(image.min()))).to(image.dtype)
    painted["image"] = (colours[None, :, :, None] if _is_channels_last(image) else colours[None, None]).expand_as(image)
    try:
        result = step.apply({**step.before, **{name: value.clone() for name, value in painted.items()}})
    except Exception:  # noqa: BLE001 - a transform may refuse painted labels
        return
    drawn = result["image"][0].double().mean(dim=-1 if _is_channels_last(result["image"]) else 0)
    for name in names:
        value = result.get(name)
        if _is_map(value, tuple(drawn.shape)) and len(painted[name].unique()) > 1:
            explained = _compute_explained(drawn.flatten(), value.flatten())
            measured = f"a pattern painted into both: '{name}' explains {explained:.0%} of the image's variance"
            yield Verdict(name, "image", explained < _MIN_EXPLAINED, measured, "all of it, up to noise")


def _is_map(value: Any, size: tuple[int, ...]) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 3 and tuple(value.shape[1:]) == size


def _draw_blocks(size: tuple[int, int]) -> Tensor:
    """Draw a class for each block of pixels: (H, W) int64, always the same ones."""
    counts = [-(-side // _BLOCK_PX) for side in size]
    blocks = torch.randint(_NUM_CODES, counts, generator=torch.Generator().manual_seed(0))
    return blocks.repeat_interleave(_BLOCK_PX, 0).repeat_interleave(_BLOCK_PX, 1)[: size[0], : size[1]]


def _paint_map(value: Tensor, code: Tensor) -> Tensor:
    """Paint classes with values that the map (H, W) has, so that a transform knows them."""
    known = value.unique()
    known = known[known >= 0] if bool((known >= 0).any()) else known
    chosen = known[torch.linspace(0, len(known) - 1, min(_NUM_CODES, len(known))).long()]
    return chosen[code % len(chosen)]


def _compute_explained(values: Tensor, groups: Tensor) -> float:
    """Compute the share of the variance of values (N,) between their groups: the correlation ratio; 1 without any."""
    _, group = groups.unique(return_inverse=True)
    counts = group.bincount().double()
    means = torch.zeros_like(counts).index_add(0, group, values) / counts
    total = float(values.var(correction=0))
    return float((counts * (means - values.mean()) ** 2).sum() / len(values)) / total if total > 0 else 1.0


# --- depth ------------------------------------------------------------------------------------------------------------

_MARK_PX = 2
_TOLERANCE_DEPTH, _TOLERANCE_MARK_PX = 0.02, 3.0
_UNITS = (1000.0, 0.001)


def judge_joints(step: TransformStep) -> Iterator[Verdict]:
    """Paint a joint into an empty depth image, and compare where it goes with the transform's own joints."""
    depth, joints, camera = (step.before.get(name) for name in ("depth", "joints", "camera"))
    if not (isinstance(depth, Tensor) and isinstance(joints, Tensor) and isinstance(camera, Tensor)):
        return
    if depth.ndim != 3 or joints.shape[2:] != (3,) or not step.takes & {"depth", "joints", "camera"}:
        return
    position, intrinsics = joints[0].double(), camera[0].double()
    row = _choose_joint(position, intrinsics, depth.shape[1:])
    if row is None:
        return
    u, v = (int(value) for value in _project(position[row], intrinsics).round().tolist())
    painted = torch.zeros_like(depth)
    painted[:, v - _MARK_PX : v + _MARK_PX + 1, u - _MARK_PX : u + _MARK_PX + 1] = float(position[row, 2])
    try:
        result = step.apply({**step.before, "depth": painted})
    except Exception:  # noqa: BLE001 - a transform may refuse a painted image
        return
    mark = result["depth"][0]
    if mark.ndim != 2 or not bool((mark > 0).any()) or result["joints"].shape != joints.shape:
        return
    rows, columns = (mark > 0).nonzero(as_tuple=True)
    z, (fx, fy, u0, v0) = float(mark[rows, columns].median()), result["camera"][0].double().tolist()
    means = [float(axis.double().mean()) for axis in (columns, rows)]
    drawn = torch.tensor([(means[0] - u0) * z / fx, (means[1] - v0) * z / fy, z], dtype=torch.float64)
    joint = result["joints"][0, row].double()
    off = float((drawn - joint).norm())
    unit = next((unit for unit in _UNITS if abs(z / float(joint[2]) / unit - 1) < 0.1), None) if joint[2] else None
    is_broken = off > _TOLERANCE_DEPTH * abs(z) + _TOLERANCE_MARK_PX * abs(z / fx)
    measured = f"a joint painted into the depth image goes to {_format(drawn)} mm, 'joints' has {_format(joint)} mm"
    is_exchanged = any((drawn[list(order)] - joint).norm() < off / 10 for order in permutations((0, 1, 2)))
    cause = "data.augment_target_mismatch"
    if unit is not None or is_exchanged:
        cause = "data.layout" if unit is None else "data.normalisation"
    yield Verdict("joints", "depth", is_broken, measured, "the same place up to a pixel", cause)


def _project(position: Tensor, intrinsics: Tensor) -> Tensor:
    """Project a point (3,) to column and row, by fx, fy, u0, v0."""
    return position[:2] * intrinsics[:2] / position[2] + intrinsics[2:]


def _choose_joint(position: Tensor, intrinsics: Tensor, size: torch.Size) -> int | None:
    """Choose the joint (J, 3) in the image whose column is farthest from its middle; None if none is in it."""
    places = torch.stack([_project(joint, intrinsics) for joint in position])
    limit = torch.tensor([size[1], size[0]], dtype=torch.float64) - 1 - 2 * _MARK_PX
    is_inside = (places > 2 * _MARK_PX).all(dim=1) & (places < limit).all(dim=1) & (position[:, 2] > 0)
    distance = torch.where(is_inside, (places[:, 0] - size[1] / 2).abs(), -1.0)
    return int(distance.argmax()) if bool(is_inside.any()) else None
