"""Transforms of frames with 3D boxes: what lies in the extent, objects of other frames pasted, objects moved.

They take a batch of one frame: `points` (1, N, 3), `remission` (1, N, 1), `boxes` (1, M, 7) and what belongs to boxes.
Rotation, flips, scaling and shifts are those of clouds (`parts/transforms/points.py`), which boxes follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sightline.areas.boxes3d.grid import Extent
from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.transform import Transform
from sightline.ops.boxes.points_in_boxes import points_in_boxes
from sightline.ops.boxes.rotated_overlaps import box3d_iou_bev
from sightline.parts.transforms.moved_boxes import wrap_yaw

DrawSamples = Callable[[int], list[dict[str, Any]]] | None
_OF_BOXES = ("boxes", "label", "is_ignored", "num_points", "velocity", "track")
_OF_POINTS = ("points", "remission")
_MARGIN_M = 0.01
"""By which a pasted box is wider along the ground when points of the frame leave it, as in the published code."""


@registry.transforms.add("limit_extent")
class LimitExtent(Transform):
    """Points outside of an extent are left out, and boxes whose centre lies outside, or with few points, are ignored.

    `extent_m` are the lowest x, y, z and the highest; points are compared along x and y alone, faces included. Boxes
    with fewer than `min_points` points are ignored, too, where their number is known.

    >>> import torch
    >>> from sightline.areas.boxes3d.transforms import LimitExtent
    >>> from sightline.contract.draws import Draws
    >>> frame = {"points": torch.tensor([[[1.0, 0, 0], [9, 0, 0]]]), "boxes": torch.tensor([[[9.0, 0, 0, 4, 2, 2, 0]]])}
    >>> frame |= {"is_ignored": torch.tensor([[False]]), "num_points": torch.tensor([[1]])}
    >>> limited = LimitExtent(extent_m=(0.0, -4.0, -3.0, 8.0, 4.0, 1.0))(Draws.from_seed(0), **frame)
    >>> limited["points"], limited["is_ignored"]
    (tensor([[[1., 0., 0.]]]), tensor([[True]]))

    Source: OpenPCDet's processor of points and boxes outside of the range.
    """

    chooses_points = True

    def __init__(self, *, extent_m: Extent, min_points: int = 0) -> None:
        self.extent_m, self.min_points = extent_m, min_points

    def __call__(
        self,
        draws: Draws,
        *,
        points: Tensor,
        remission: Tensor | None = None,
        ring: Tensor | None = None,
        boxes: Tensor | None = None,
        is_ignored: Tensor | None = None,
        num_points: Tensor | None = None,
    ) -> dict[str, Tensor]:
        low, high = points.new_tensor(self.extent_m[:3]), points.new_tensor(self.extent_m[3:])
        is_near = ((points[0, :, :2] >= low[:2]) & (points[0, :, :2] <= high[:2])).all(dim=1)
        of_points = {"points": points, "remission": remission, "ring": ring}
        changed = {name: values[:, is_near] for name, values in of_points.items() if values is not None}
        if boxes is not None and is_ignored is not None:
            is_inside = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(dim=2)
            changed["is_ignored"] = is_ignored | ~is_inside
            if num_points is not None:
                changed["is_ignored"] |= (num_points >= 0) & (num_points < self.min_points)
        return changed


@registry.transforms.add("paste_objects")
class PasteObjects(Transform):
    """Objects of other frames, with the points in their boxes, put into a frame where nothing stands.

    `counts` are the objects wanted of each class: so many more or, with `fill_up`, so many with those of the frame.
    They come from `num_frames` other frames of the training part, which are drawn anew for every frame. Objects with
    fewer than `min_points` points are left out, and so is one whose box meets, seen from above, a box of the frame or
    of another object of its class that is drawn for it. Points of the frame in a pasted box are removed.

    >>> import torch
    >>> from sightline.areas.boxes3d.transforms import PasteObjects
    >>> from sightline.contract.draws import Draws
    >>> def frame(x):
    ...     boxes = torch.tensor([[[x, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0]]])
    ...     flags = {"label": torch.tensor([[0]]), "is_ignored": torch.tensor([[False]])}
    ...     return {"points": boxes[..., :3].clone(), "boxes": boxes, **flags}
    >>> paste = PasteObjects(class_names=("car",), counts={"car": 1}, min_points=1)
    >>> paste(Draws.from_seed(0), lambda count: [frame(9.0)] * count, **frame(0.0))["boxes"][0, :, 0]
    tensor([0., 9.])

    Source: Yan et al. 2018, SECOND, section 3.2.3; from frames drawn at random in place of a stored table of objects.
    """

    chooses_points = True

    def __init__(
        self,
        *,
        class_names: tuple[str, ...],
        counts: Mapping[str, Count],
        num_frames: Count = 2,
        min_points: Count = 5,
        fill_up: bool = False,
    ) -> None:
        if unknown := [name for name in counts if name not in class_names]:
            raise ConfigError(f"paste_objects: no class {', '.join(unknown)}; the classes are {', '.join(class_names)}")
        self.counts = {class_names.index(name): count for name, count in counts.items()}
        self.num_frames, self.min_points, self.fill_up = num_frames, min_points, fill_up

    def __call__(
        self,
        draws: Draws,
        draw_samples: DrawSamples,
        *,
        points: Tensor,
        boxes: Tensor,
        label: Tensor,
        is_ignored: Tensor,
        remission: Tensor | None = None,
        num_points: Tensor | None = None,
        velocity: Tensor | None = None,
        track: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if draw_samples is None:
            return {}
        given = {"points": points, "boxes": boxes, "label": label, "is_ignored": is_ignored, "remission": remission}
        given |= {"num_points": num_points, "velocity": velocity, "track": track}
        frame = {name: values[0] for name, values in given.items() if values is not None}
        objects = _collect_objects(draw_samples(self.num_frames), self.min_points)
        pasted: list[dict[str, Tensor]] = []
        for number, count in self.counts.items():
            wanted = count - int((frame["label"] == number).sum()) if self.fill_up else count
            chosen = [found for found in objects if int(found["label"][0]) == number][: max(0, wanted)]
            pasted += choose_free(chosen, [frame["boxes"], *(found["boxes"] for found in pasted)])
        return {name: values[None] for name, values in paste(frame, pasted).items()}


def _collect_objects(samples: list[dict[str, Any]], min_points: int) -> list[dict[str, Tensor]]:
    """Return each object of the samples, in their order, with its points: fields of one frame with one box."""
    objects = []
    for sample in samples:
        boxes = sample["boxes"][0]
        inside = points_in_boxes(sample["points"][0], boxes, frame="lidar")
        for row in range(len(boxes)):
            is_own = inside == row
            if bool(sample["is_ignored"][0, row]) or int(is_own.sum()) < min_points:
                continue
            of_box = {name: sample[name][0, row : row + 1] for name in _OF_BOXES if name in sample}
            objects.append({**of_box, **{name: sample[name][0, is_own] for name in _OF_POINTS if name in sample}})
    return objects


def choose_free(objects: list[dict[str, Tensor]], present: list[Tensor]) -> list[dict[str, Tensor]]:
    """Return those of `objects` whose box meets, from above, neither one that is `present` nor one another's."""
    if not objects:
        return []
    boxes = torch.cat([found["boxes"] for found in objects])
    among = box3d_iou_bev(boxes, boxes).fill_diagonal_(0)
    is_free = (among == 0).all(dim=1) & (box3d_iou_bev(boxes, torch.cat(present)) == 0).all(dim=1)
    return [found for found, is_kept in zip(objects, is_free.tolist(), strict=True) if is_kept]


def paste(frame: dict[str, Tensor], objects: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Paste `objects` into a frame: their boxes last, their points first; points of the frame in their boxes go."""
    if not objects:
        return frame
    boxes = torch.cat([found["boxes"] for found in objects])
    wider = boxes + boxes.new_tensor([0, 0, 0, 2 * _MARGIN_M, 2 * _MARGIN_M, 0, 0])
    is_left = points_in_boxes(frame["points"], wider, frame="lidar") < 0
    joined = {
        name: torch.cat([frame[name], *(found[name] for found in objects)]) for name in _OF_BOXES if name in frame
    }
    for name in _OF_POINTS:
        if name in frame:
            joined[name] = torch.cat([*(found[name] for found in objects), frame[name][is_left]])
    return {**frame, **joined}


@registry.transforms.add("move_objects")
class MoveObjects(Transform):
    """Each box moved and turned a little, with the points in it, where it then meets no other.

    A move is normal with `std_m` along each axis, a turn about the box's own middle is uniform in +-`max_angle_rad`; of
    `tries` draws the first without another box in the way is taken, else the box stays. A point in two boxes follows
    the first.

    >>> import torch
    >>> from sightline.areas.boxes3d.transforms import MoveObjects
    >>> from sightline.contract.draws import Draws
    >>> frame = {"points": torch.zeros(1, 1, 3), "boxes": torch.tensor([[[0.0, 0, 0, 4, 2, 2, 0]]])}
    >>> moved = MoveObjects()(Draws.from_seed(0), **frame)
    >>> torch.equal(moved["points"][0, 0], moved["boxes"][0, 0, :3])  # the point in the middle stays in the middle
    True

    Source: Yan et al. 2018, SECOND, section 3.2.4.
    """

    def __init__(
        self, *, std_m: NonNegativeFloat = 0.25, max_angle_rad: NonNegativeFloat = math.pi / 20, tries: Count = 20
    ) -> None:
        self.std_m, self.max_angle_rad, self.tries = std_m, max_angle_rad, tries

    def __call__(self, draws: Draws, *, points: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        num_boxes = boxes.shape[1]
        shifts = draws.normal(num_boxes, self.tries, 3)[0].to(boxes.dtype) * self.std_m
        angles = draws.uniform(num_boxes, self.tries, low=-self.max_angle_rad, high=self.max_angle_rad)[0]
        placed, moves = place_apart(boxes[0], shifts, angles.to(boxes.dtype))
        inside = points_in_boxes(points[0], boxes[0], frame="lidar")
        return {"points": move_points(points[0], inside, boxes[0], moves)[None], "boxes": placed[None]}


def place_apart(boxes: Tensor, shifts: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Move boxes (M, 7), one after another, by the first of their `shifts` (M, T, 3) and `angles` (M, T) that fits.

    Returns the boxes and the moves (M, 4), shift and angle, zero for those that stay.
    """
    boxes, moves = boxes.clone(), boxes.new_zeros(len(boxes), 4)
    for row in range(len(boxes)):
        tried = boxes[row].repeat(shifts.shape[1], 1)
        tried[:, :3] += shifts[row]
        tried[:, 6] = wrap_yaw(tried[:, 6] + angles[row])
        others = torch.arange(len(boxes), device=boxes.device) != row
        is_free = (box3d_iou_bev(tried, boxes[others]) == 0).all(dim=1)
        if not bool(is_free.any()):
            continue
        first = int(is_free.int().argmax())
        boxes[row] = tried[first]
        moves[row] = torch.cat([shifts[row, first], angles[row, first, None]])
    return boxes, moves


def move_points(points: Tensor, inside: Tensor, boxes: Tensor, moves: Tensor) -> Tensor:
    """Move points (N, 3) with the box (N,) that holds them, -1 for none: turned about its middle, then shifted."""
    is_held = (inside >= 0)[:, None]
    if not len(boxes):
        return points
    middle, move = boxes[inside.clamp(min=0), :3], moves[inside.clamp(min=0)]
    x, y, z = (points - middle).unbind(dim=1)
    cosine, sine = move[:, 3].cos(), move[:, 3].sin()
    turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=1)
    return torch.where(is_held, turned + middle + move[:, :3], points)
