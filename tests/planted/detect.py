"""Faults of detectors of people (DET): boxes, anchors, assigners, losses, heads and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.detect import output as detection_output
from sightline.areas.detect import retinanet
from sightline.areas.detect import task as detect
from sightline.areas.detect.losses import SigmoidFocal, sigmoid_focal
from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.areas.detect.metrics.crowds import CrowdAp
from sightline.areas.detect.networks import DenseHead
from sightline.areas.detect.retinanet import RetinaHead
from sightline.areas.detect.sets import synthetic_crowds
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.areas.detect.task import Detect
from sightline.contract.loss import Loss
from sightline.contract.types import Sample, SampleKey
from sightline.ops.boxes.codes import encode_deltas
from sightline.ops.boxes.priors import Priors
from sightline.parts.boxes.assigner import BACKGROUND, IGNORED, Assigner, Assignment
from sightline.parts.transforms.images import FlipImage
from tests.planted.planting import Plant, Planter, change_arguments, change_result, join, override, wrap

# --- data -------------------------------------------------------------------------------------------------------------


def _edit_image(change: Callable[[Sample], Sample], *overrides: str) -> Plant:
    return change_result(SyntheticCrowds, "__getitem__", lambda sample: sample | change(sample), *overrides)


def _edit_boxes(change: Callable[[Tensor], Tensor], *overrides: str) -> Plant:
    """Make a plant that changes the boxes that are trained on and those that are scored."""

    def edit(sample: Sample) -> Sample:
        truth = sample["truth"].clone()
        truth[:, :4] = change(truth[:, :4])
        return {"boxes": change(sample["boxes"]), "truth": truth}

    return _edit_image(edit, *overrides)


def _edit_truth(change: Callable[[Tensor], Tensor], *overrides: str) -> Plant:
    return _edit_image(lambda sample: {"truth": change(sample["truth"].clone())}, *overrides)


def _sides(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def _middles(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] + boxes[:, :2]) / 2


def _turn_a_tenth(boxes: Tensor) -> Tensor:
    return torch.where(torch.arange(len(boxes))[:, None] % 10 == 0, boxes[:, [2, 3, 0, 1]], boxes)


def _rescale(truth: Tensor) -> Tensor:
    truth[:, :4] *= 0.75
    return truth


def _clear_flags(truth: Tensor) -> Tensor:
    truth[:, 6] = 0
    return truth


def _leave_ignored_out(sample: Sample) -> Sample:
    kept = ~sample["is_ignored"]
    return {name: sample[name][kept] for name in ("boxes", "label", "is_ignored")}


def _scale_in_place(own: Any, dataset: SyntheticCrowds, key: SampleKey) -> Sample:
    """Scale the boxes of the cached record, which are scaled again at the next reading."""
    boxes = dataset._draw_cached(key.index)[1].boxes
    boxes.flags.writeable = True
    boxes *= 0.97
    sample: Sample = own(dataset, key)
    return sample


def _read_next_image(own: Any, dataset: SyntheticCrowds, key: SampleKey) -> Sample:
    other = own(dataset, dataclasses.replace(key, index=(key.index + 1) % len(dataset)))
    return {**own(dataset, key), "image": other["image"]}


def _alternate_classes(planter: Planter) -> None:
    """Make every other person a rider."""
    made = synthetic_crowds.box_facts
    planter.wrap(synthetic_crowds, "box_facts", lambda own, names, kind: made(("person", "rider"), kind))

    def edit(sample: Sample) -> Sample:
        truth = sample["truth"].clone()
        truth[:, 4] = torch.arange(len(truth)) % 2
        return {"truth": truth, "label": torch.arange(len(sample["label"])) % 2}

    _edit_image(edit)(planter)


# --- assigners and anchors --------------------------------------------------------------------------------------------


def _change_matches(change: Callable[[Tensor, Priors], Tensor]) -> Plant:
    def match(own: Any, assigner: Assigner, priors: Priors, boxes: Tensor, is_ignored: Tensor) -> Assignment:
        assignment = own(assigner, priors, boxes, is_ignored)
        return Assignment(change(assignment.matched, priors), assignment.num_claims)

    return wrap(Assigner, "__call__", match)


def _match_regions_as_background(
    own: Any, assigner: Assigner, priors: Priors, boxes: Tensor, is_ignored: Tensor
) -> Assignment:
    targets = (~is_ignored).nonzero().flatten()
    if not len(targets):
        nothing: Assignment = own(assigner, priors, boxes[:0], is_ignored[:0])
        return nothing
    assignment = own(assigner, priors, boxes[targets], is_ignored[targets])
    rows = targets[assignment.matched.clamp(min=0)]
    return Assignment(torch.where(assignment.matched >= 0, rows, assignment.matched), assignment.num_claims)


def _match_regions_as_boxes(
    own: Any, assigner: Assigner, priors: Priors, boxes: Tensor, is_ignored: Tensor
) -> Assignment:
    assignment: Assignment = own(assigner, priors, boxes, torch.zeros_like(is_ignored))
    return assignment


def _keep_finest(matched: Tensor, priors: Priors) -> Tensor:
    return torch.where((matched >= 0) & (priors.prior_level > 0), BACKGROUND, matched)


def _reverse_anchors(priors: Priors) -> Priors:
    """Put the coarsest anchors on the finest map, and so on."""
    per_cell = priors.priors_per_cell[0]
    rows = [priors.coordinates[level][:per_cell] for level in priors.level_slices]
    sides = [row[:, 2:] - row[:, :2] for row in rows]
    counts = priors.num_per_level
    halves = torch.cat([s.repeat(n // per_cell, 1) / 2 for s, n in zip(sides[::-1], counts, strict=True)])
    boxes = torch.cat([priors.centres - halves, priors.centres + halves], dim=1)
    return Priors("anchors", boxes, priors.strides, priors.maps, priors.priors_per_cell)


def _stretch_grid(priors: Priors) -> Priors:
    """Lay anchors out for strides twice those of the maps."""
    boxes = priors.coordinates + priors.centres.repeat(1, 2)
    return Priors("anchors", boxes, priors.strides, priors.maps, priors.priors_per_cell)


# --- losses -----------------------------------------------------------------------------------------------------------


def _count_targets(count: Callable[[Tensor], Tensor]) -> Plant:
    return wrap(SigmoidFocal, "count", lambda own, loss, *, target: count(target))


def _learn_ignored(own: Any, loss: SigmoidFocal, *, logits: Tensor, target: Tensor) -> Tensor:
    is_target = target[..., None] == torch.arange(logits.shape[-1])
    weight = torch.ones_like(logits[..., :1])
    return sigmoid_focal(logits, is_target, alpha=loss.alpha, gamma=loss.gamma, weight=weight)


def add_class_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Plant:
    """Make a plant of a class loss of one's own: `function` of logits and 0 or 1, both (N, K), that are counted."""

    class OwnFocal(Loss):
        def count(self, *, target: Tensor) -> Tensor:
            return (target >= 0).sum()

        def forward(self, *, logits: Tensor, target: Tensor) -> Tensor:
            is_target = target[..., None] == torch.arange(logits.shape[-1])
            counted = target != IGNORED
            return function(logits[counted], is_target[counted].to(logits.dtype))

    return lambda planter: planter.add_loss(OwnFocal, "{name: box_smooth_l1}")


def _exchange_terms(logits: Tensor, wanted: Tensor) -> Tensor:
    p = logits.sigmoid().clamp(1e-6, 1 - 1e-6)
    weight = 0.25 * wanted + 0.75 * (1 - wanted)
    return -(weight * (wanted * (1 - p).log() + (1 - wanted) * p.log())).sum()


def _edit_saved_output(logits: Tensor, wanted: Tensor) -> Tensor:
    """Scale the probabilities behind autograd's back: the sigmoid's gradient is computed from what it returned."""
    p = logits.sigmoid()
    p.data.mul_(0.9)
    weight = 0.25 * wanted + 0.75 * (1 - wanted)
    return (weight * (p - wanted).abs().square() * F.binary_cross_entropy(p, wanted, reduction="none")).sum()


def _lose_squares(planter: Planter) -> None:
    """Train boxes by the squared error, not by smooth L1."""

    class OwnBoxes(Loss):
        def count(self, *, target: Tensor) -> Tensor:
            return (target >= 0).sum()

        def forward(self, *, codes: Tensor, priors: Tensor, target: Tensor, matched_boxes: Tensor) -> Tensor:
            image, prior = (target >= 0).nonzero(as_tuple=True)
            wanted = encode_deltas(priors[prior], matched_boxes[image, prior])
            return (codes[image, prior] - wanted).square().sum()

    planter.add_loss(OwnBoxes, "{name: sigmoid_focal}")


# --- heads ------------------------------------------------------------------------------------------------------------


def _start_with_bias(value: float) -> Plant:
    def start(own: Any, head: DenseHead, prior: float) -> None:
        nn.init.constant_(head.classes.conv.bias, value)  # type: ignore[arg-type]

    return wrap(DenseHead, "_start", start)


def _normalize_logits(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    logits = outputs["logits"]
    return {**outputs, "logits": (logits - logits.mean()) / logits.std()}


def _flatten(maps: list[Tensor], numbers: int, order: tuple[int, ...] = (0, 3, 4, 1, 2)) -> list[Tensor]:
    return [level.unflatten(1, (-1, numbers)).permute(*order).flatten(1, 3) for level in maps]


def _order_priors(flatten: Callable[[list[Tensor], int], Tensor]) -> Plant:
    return wrap(retinanet, "flatten_to_priors", lambda own, maps, numbers: flatten(maps, numbers))


# --- evaluation -------------------------------------------------------------------------------------------------------


def _change_update(metric: Any, change: Callable[[dict[str, Any]], dict[str, Any]], *overrides: str) -> Plant:
    return change_arguments(metric, "update", change, *overrides)


def _count_all(given: dict[str, Any]) -> dict[str, Any]:
    return {"truth": torch.cat([given["truth"][:, :6], 0 * given["truth"][:, 6:]], dim=1)}


def _drop_ignored(given: dict[str, Any]) -> dict[str, Any]:
    """Drop ignored labels, so that what lies in them is wrong."""
    kept = given["truth"][:, 6] == 0
    counts = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
    rows = {name: value[kept] for name, value in given.items() if name in ("truth", "truth_visible")}
    return {**rows, "truth_offsets": counts[given["truth_offsets"]]}


def _drop_empty_images(given: dict[str, Any]) -> dict[str, Any]:
    """Leave images without a detection out, with their labels."""
    seen = given["detection_offsets"].diff() > 0
    counts = given["truth_offsets"].diff()
    kept = seen.repeat_interleave(counts)
    rows = {name: value[kept] for name, value in given.items() if name in ("truth", "truth_visible")}
    images = {name: value[seen] for name, value in given.items() if name in ("sample_index", "file_px")}
    start = torch.zeros(1, dtype=torch.int64)
    return {
        **rows,
        **images,
        "truth_offsets": torch.cat([start, counts[seen].cumsum(0)]),
        "detection_offsets": torch.cat([given["detection_offsets"][:1], given["detection_offsets"][1:][seen]]),
    }


def _decode_with_deviations(own: Any, priors: Tensor, codes: Tensor) -> Tensor:
    deviations = codes.new_tensor((0.1, 0.1, 0.2, 0.2)) if priors.shape[-1] == 4 else 1.0
    boxes: Tensor = own(priors, codes * deviations)
    return boxes


_CROWD = "metrics=[{name: crowd_ap}]", "evaluate.metric=crowd_ap"
_STAGES = ("train.1", "evaluate.0")
_SMALL_CANVAS = tuple(f"transforms.{stage}.{side}" for stage in _STAGES for side in ("height=144", "width=192"))
_TALL_CANVAS = tuple(f"transforms.{stage}.{side}" for stage in _STAGES for side in ("height=256", "width=192"))

DETECT_PLANTS: dict[str, Plant] = {
    "O49": wrap(SyntheticCrowds, "__getitem__", _scale_in_place),
    "O50": override(*_TALL_CANVAS),
    "O51": _edit_boxes(lambda b: torch.cat([b[:, :2], _sides(b)], dim=1)),
    "O53": add_class_loss(_exchange_terms),
    "O54": _count_targets(lambda target: torch.tensor(target.numel())),
    "O55": _lose_squares,
    "O56": wrap(Assigner, "__call__", _match_regions_as_background),
    "O57": join(
        wrap(detect, "decode_boxes", _decode_with_deviations),
        wrap(detection_output, "decode_boxes", _decode_with_deviations),
    ),
    "O58": add_class_loss(_edit_saved_output),
    "O59": _start_with_bias(0.0),
    "O60": change_result(Detect, "get_priors", _stretch_grid),
    "B1": wrap(detect, "to_file_pixels", lambda own, found, to_canvas, file_px, clip: found.double(), *_SMALL_CANVAS),
    "B2": _edit_truth(_rescale, *_SMALL_CANVAS),
    "B3": _edit_truth(_clear_flags),
    "B4": _change_update(BoxAp, _count_all),
    "B5": _change_update(CrowdAp, _count_all, *_CROWD),
    "B6": _change_update(BoxAp, _drop_ignored),
    "B7": _change_update(BoxAp, _drop_empty_images),
    "B8": _change_update(CrowdAp, _drop_empty_images, *_CROWD),
    "B10": override(*_CROWD, "task.score=0.05"),
    "B13": join(_alternate_classes, override("task.suppression={name: greedy, per_class: false}")),
    "B14": _edit_boxes(lambda b: torch.cat([_middles(b), _sides(b)], dim=1)),
    "B15": _edit_boxes(lambda b: torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], dim=1)),
    "B16": _edit_boxes(lambda b: b + _sides(b).repeat(1, 2) / 2, "data.box=visible"),
    "B17": _edit_boxes(_turn_a_tenth),
    "B18": _edit_boxes(lambda b: b[:, [2, 3, 0, 1]]),
    "B19": _edit_boxes(lambda b: b / torch.tensor([256, 192, 256, 192])),
    "B20": _edit_boxes(lambda b: b[:, [1, 0, 3, 2]]),
    "B21": _edit_boxes(lambda b: b * 2),
    "B22": _edit_image(lambda s: {"file_px": s["file_px"].flip(0)}),
    "B25": change_result(Detect, "get_priors", _reverse_anchors),
    "B27": _change_matches(_keep_finest),
    "B28": _change_matches(lambda m, priors: m.clamp(max=BACKGROUND)),
    "B29": _change_matches(lambda m, priors: torch.where(m < 0, IGNORED, m)),
    "B30": wrap(Assigner, "__call__", _match_regions_as_boxes),
    "B31": _edit_image(lambda s: {"is_ignored": torch.zeros_like(s["is_ignored"])}),
    "B32": _edit_image(_leave_ignored_out),
    "B33": _count_targets(lambda target: (target != IGNORED).sum()),
    "B34": _count_targets(lambda target: (target != BACKGROUND).sum()),
    "B35": wrap(SigmoidFocal, "forward", _learn_ignored),
    "B36": _start_with_bias(4.6),
    "B37": _start_with_bias(-13.8),
    "B38": change_result(RetinaHead, "forward", _normalize_logits),
    "B39": _order_priors(lambda maps, k: torch.cat(_flatten(maps, k)[::-1], dim=1)),
    "B40": _order_priors(lambda maps, k: torch.cat([_flatten(maps, k)[level] for level in (1, 0, 2, 3, 4)], dim=1)),
    "B41": _order_priors(lambda maps, k: torch.cat(_flatten(maps, k, (0, 4, 3, 1, 2)), dim=1)),
    "B42": _order_priors(lambda maps, k: torch.cat(_flatten(maps, k, (0, 1, 3, 4, 2)), dim=1)),
    "B43": _order_priors(
        lambda maps, k: torch.cat(_flatten(maps, k, (0, 1, 3, 4, 2) if k == 4 else (0, 3, 4, 1, 2)), dim=1)
    ),
    "B44": wrap(detect, "to_file_pixels", lambda own, found, to_canvas, file_px, clip: found.double()),
    "B46": join(_alternate_classes, override("task.suppression={name: greedy, per_class: false, iou_threshold: 0.3}")),
    "D18": change_result(FlipImage, "__call__", lambda fields: {"image": fields["image"]}),
    "D19": wrap(SyntheticCrowds, "__getitem__", _read_next_image),
}
