"""Rules of 3D boxes: their extents, anchors on the ground that the boxes stand on and of their size, and positives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.areas.boxes3d.task import Detect3d
from sightline.contract.errors import join_some
from sightline.contract.types import Batch
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.device.transfer import to_device
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.sample_statistics import describe_sample, evenly_spaced_keys

_MAX_FRAMES = 64
_MIN_BOXES, _MIN_FRAMES = 5, 4
"""Boxes of a class, and frames with them, from which their means are compared with anchors."""
_MAX_OFF_M = 0.3
_NUM_ERRORS = 3
"""Standard errors of a mean of frames that a difference exceeds the permitted one by."""
_MIN_SIZE_IOU = 0.3
"""Overlap of an anchor with a box in its middle, below which the anchor has another size; half of each side is 1/4."""


class AnchoredBoxes(NamedTuple):
    """Boxes (N, 7) of some training frames, as they reach the assigner, and the anchors that they get.

    `frame` (N,) is the place of the frame in `samples`, the indices of F samples; `label` (N,) the class;
    `is_searched` (N,) whether an anchor may find the box, which is neither ignored nor outside of the extent;
    `best` (N,) is its highest overlap with an anchor of its class, and `positives` (F, K) are anchors with a box.
    """

    samples: list[int]
    frame: Tensor
    boxes: Tensor
    label: Tensor
    is_ignored: Tensor
    is_searched: Tensor
    best: Tensor
    positives: Tensor


@measure()
def detect3d(run: Any) -> Detect3d:
    """Return the task of a run that detects 3D boxes."""
    task = unwrap_distillation(run.built.job.task)
    if not isinstance(task, Detect3d):
        raise NotApplicableError("no 3D boxes")
    return task


@measure()
def anchored(run: Any, detect3d: Detect3d, first_step: Any) -> AnchoredBoxes:
    """Assign the boxes of the first step's frames, under `sightline check` those of 64 frames."""
    part, batches = run.built.data.train, iter([run.first_outputs[0]])
    if not run.is_quick:
        batches = map(part.reader, evenly_spaced_keys(part, epoch=0, seed=run.config.seed, most_samples=_MAX_FRAMES))
    rows, samples = [], list[int]()
    for batch in (to_device(batch, torch.device("cpu")) for batch in batches):
        context = detect3d.context(run.built.job.model, batch)
        is_of_class = context["target"][..., None] == torch.arange(len(detect3d.class_names))
        rows.append((*_collect(detect3d, batch, first=len(samples)), is_of_class.sum(dim=1)))
        samples += batch["sample_index"].tolist()
    return AnchoredBoxes(samples, *(torch.cat(column) for column in zip(*rows, strict=True)))


def _collect(task: Detect3d, batch: Batch, *, first: int) -> tuple[Tensor, ...]:
    """Return the rows of a batch, from `frame` to `best`; its frames are counted from `first` on."""
    boxes, label, is_ignored = batch["boxes"].double(), batch["label"], batch["is_ignored"]
    counts = batch["box_offsets"].diff()
    frame = first + torch.arange(len(counts)).repeat_interleave(counts)
    is_searched = ~is_ignored & (label >= 0) & task.is_within(boxes)
    anchors, assigner = task.get_anchors(boxes.device)
    best, _ = assigner.find_best(anchors.boxes, boxes, torch.where(is_searched, label, -1))
    return frame, boxes, label, is_ignored, is_searched, best


@rule(
    "broken-boxes",
    "error",
    "data.corrupt_sample assign.box_format",
    holds="extents dx, dy and dz above 0",
    do="correct the labels, or leave the box out: no anchor overlaps it, so that it is background",
)
def flat_boxes(run: Any, anchored: AnchoredBoxes) -> Fault | None:
    """Look for boxes without a volume, which no anchor can find."""
    is_flat = ~anchored.is_ignored & (anchored.boxes[:, 3:6] <= 0).any(dim=1)
    if not bool(is_flat.any()):
        return None
    dataset = run.built.data.train.dataset
    samples = dict.fromkeys(anchored.samples[frame] for frame in anchored.frame[is_flat].tolist())
    sides = ", ".join(f"{side:.4g}" for side in anchored.boxes[is_flat][0, 3:6].tolist())
    named = join_some([describe_sample(dataset, sample) for sample in samples], most=3)
    return Fault(
        "boxes have an extent of 0 or less",
        measured=f"{int(is_flat.sum())} of {len(is_flat)} boxes, the first with {sides} m; in {named}",
        where=run.locate("train", sample=next(iter(samples)), config_path="data"),
        evidence={"field": "boxes"},
    )


@rule(
    "anchor-coverage",
    "warning",
    "assign.anchor_coverage assign.box_format",
    holds="anchors of each class with the bottoms of its boxes, to 0.3 m, and with their size",
    do="take the anchors that `sightline data info` proposes from the boxes",
    is_statistical=True,
)
def misplaced_anchors(anchored: AnchoredBoxes, detect3d: Detect3d) -> Iterator[Fault]:
    """Compare the anchors of each class with the boxes that they have to find: bottoms, then sizes.

    A sensor at another height moves all classes alike. Where anchors of another class stand on their ground, the height
    is as stated, and one class that is off is a note: those of KITTI's pedestrians are published 1 m above the ground.
    """
    anchors = [_describe_class(anchored, detect3d, number) for number in range(len(detect3d.class_names))]
    judged = [each for each in anchors if each is not None]
    off = [each for each in judged if each.is_off]
    for each in off:
        yield Fault(
            f"the anchors of '{each.name}' are {abs(each.above_m):.2f} m {'above' if each.above_m > 0 else 'below'} "
            "its boxes",
            measured=f"their bottom is at {each.bottom_m:.2f} m, that of {each.looked_at} at {each.ground_m:.2f} m: as "
            f"of a sensor {-each.bottom_m:.2f} and of one {-each.ground_m:.2f} m above the ground; {each.reached}",
            expected=f"a difference of at most {_MAX_OFF_M} m",
            action=f"set task.anchors.{each.name}.bottom={each.ground_m:.2f}",
            severity=None if len(off) == len(judged) else "note",
            where=FindingLocation(config_path=f"task.anchors.{each.name}.bottom"),
            evidence={"field": each.name},
        )
    for each in judged:
        if each.size_iou < _MIN_SIZE_IOU:
            stated, boxes = (" x ".join(f"{side:.2f}" for side in sides) for sides in (each.stated_m, each.size_m))
            yield Fault(
                f"the anchors of '{each.name}' have another size than its boxes",
                measured=f"{stated} m; those of {each.looked_at} are {boxes} m (medians): in one place they overlap by "
                f"{each.size_iou:.2f}; {each.reached}",
                action=f"set task.anchors.{each.name}.size=[{boxes.replace(' x ', ', ')}]",
                where=FindingLocation(config_path=f"task.anchors.{each.name}.size"),
                evidence={"field": each.name},
            )


class _AnchoredClass(NamedTuple):
    """Anchors of a class beside its boxes; `ground_m` is the mean of their bottoms, `above_m` the anchors' above it."""

    name: str
    bottom_m: float
    ground_m: float
    error_m: float
    stated_m: list[float]
    size_m: list[float]
    size_iou: float
    looked_at: str
    reached: str

    @property
    def above_m(self) -> float:
        return self.bottom_m - self.ground_m

    @property
    def is_off(self) -> bool:
        return abs(self.above_m) > _MAX_OFF_M + _NUM_ERRORS * self.error_m


def _describe_class(anchored: AnchoredBoxes, task: Detect3d, number: int) -> _AnchoredClass | None:
    """Measure a class; None with too few boxes, or frames with them."""
    rows = anchored.is_searched & (anchored.label == number)
    boxes, frame = anchored.boxes[rows], anchored.frame[rows]
    frames = frame.unique()
    if len(boxes) < _MIN_BOXES or len(frames) < _MIN_FRAMES:
        return None
    bottoms = boxes[:, 2] - boxes[:, 5] / 2
    of_frames = torch.stack([bottoms[frame == each].mean() for each in frames])  # boxes of a frame share its slope
    anchor = task.anchors.boxes[task.anchors.label == number][0]
    both = torch.stack([boxes[:, 3:6], anchor[3:6].expand(len(boxes), 3)])
    shared, volumes = both.amin(dim=0).prod(dim=1), both.prod(dim=2)
    positive = task.anchors.positive[number]
    num_reached = int((anchored.best[rows] >= positive).sum())
    return _AnchoredClass(
        task.class_names[number],
        float(anchor[2] - anchor[5] / 2),
        float(bottoms.mean()),
        float(of_frames.std()) / math.sqrt(len(frames)),
        anchor[3:6].tolist(),
        boxes[:, 3:6].median(dim=0).values.tolist(),
        float((shared / (volumes.sum(dim=0) - shared)).median()),
        f"{len(boxes)} boxes in {len(frames)} training frames",
        f"{num_reached} of {len(boxes)} boxes overlap an anchor by {positive:g} or more",
    )


@rule(
    "unmatched-boxes",
    "warning",
    "assign.unmatched_gt data.ignore_handling",
    holds="anchors with a box for each class that the frames have boxes of",
    do="look at extent_m, at min_points of limit_extent, and at the ignored boxes (`sightline view`)",
)
def classes_without_anchors(anchored: AnchoredBoxes, detect3d: Detect3d) -> Iterator[Fault]:
    """Count the anchors with a box of each class: without any, the loss of its boxes is exactly 0."""
    positives, names = anchored.positives.sum(dim=0).tolist(), detect3d.class_names
    for number, name in enumerate(names):
        is_own = anchored.label == number
        if positives[number] or int(is_own.sum()) < _MIN_BOXES:
            continue
        outside = int((is_own & ~anchored.is_ignored & ~anchored.is_searched).sum())
        listed = ", ".join(f"{other} {count}" for other, count in zip(names, positives, strict=True))
        yield Fault(
            f"no anchor has a box of '{name}' to find: the loss of its boxes is exactly 0",
            measured=f"of its {int(is_own.sum())} boxes in {len(anchored.samples)} training frames "
            f"{int((is_own & anchored.is_ignored).sum())} are ignored, {outside} outside of the extent; anchors with a "
            f"box: {listed}",
            severity=None if any(positives) else "error",
            where=FindingLocation(config_path="transforms.train"),
            evidence={"field": name},
        )
