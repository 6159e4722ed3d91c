"""Rules of boxes: their format, transforms that move them, priors that fit and are assigned, the head."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sightline.areas.detect.assigned_boxes import AssignedBoxes, assigned_boxes
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import Evidence, measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.device.transfer import to_device
from sightline.engine.step import compute_batch_losses, divide_by_count
from sightline.instrument import copy_module
from sightline.ops.boxes.overlaps import box_area, box_sizes, ioa, iou
from sightline.ops.boxes.priors import BACKGROUND, IGNORED
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.store.loading.transform_pipeline import mixes_samples
from sightline.workbench.check.loss_subjects import FixedOutputs, LossSubject, make_loss_subjects
from sightline.workbench.check.sample_statistics import evenly_spaced_keys

_BEYOND_PX, _MAX_SHARES_PX, _MIN_BOXES, _MIN_IMAGES = 1.0, 1.5, 5, 4
_MAX_OUTSIDE, _MIN_EXPLAINED, _MAX_LEFT, _MAX_GAIN = 0.05, 0.05, 0.33, 0.15
"""Shares of boxes mostly outside; that another reading brings inside, and leaves outside; of a canvas, filled more."""
_MIN_IOU, _MAX_UNCOVERED, _MAX_AVOIDABLE, _MIN_FOLLOWED, _NUM_PAINTED = 0.3, 0.02, 0.03, 0.7, 8
_PRIOR, _FACTOR, _ROWS, _COLUMNS, _CORNER, _MIN_NEAR = 0.01, 10.0, 8, 11, 5, 0.5
_MIN_DECODED_IOU, _CERTAIN = 0.95, 50.0
_MAX_ASSIGNED = 64
_FROM_CENTRE = "centre, centre + width and height"


def _is_above(count: int, total: int, share: float) -> bool:
    """Return True if a count exceeds a share of the total by three standard deviations, and is more than two."""
    return count > max(2, share * total + 3 * math.sqrt(share * total))


# --- boxes as they are read -------------------------------------------------------------------------------------------


@rule(
    "broken-boxes",
    "error",
    "data.corrupt_sample assign.box_format",
    holds="left < right and top < bottom, in pixels of the image",
    do="look at `sightline view`, and convert boxes where the data set reads them",
)
def broken_boxes(run: Any, surveys: list[Any]) -> Iterator[Fault]:
    """Compare boxes with the order of corners and their images, and with what other formats would make of them."""
    for survey in surveys:
        for field in ("truth", "boxes") if survey.boxed else ():
            boxes, limit = collect_boxes(survey, field)
            is_reversed = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
            is_shares = len(boxes) >= _MIN_BOXES and float(boxes.max()) <= _MAX_SHARES_PX
            outside = _count_outside(boxes, limit) - int(is_reversed.sum())
            cause, text = read_otherwise(boxes, limit, is_shares=is_shares)
            is_format = cause == "assign.box_format" and text != _FROM_CENTRE
            num_images = _MIN_IMAGES if is_format or 2 * outside > len(boxes) else 4 * _MIN_IMAGES
            is_outside = bool(cause) or _is_above(outside, len(boxes), _MAX_OUTSIDE)
            if bool(is_reversed.any()) or is_shares or (is_outside and len(survey.boxed) >= num_images):
                yield Fault(
                    f"boxes look like {text}" if cause else "corners are in the wrong order, or outside their images",
                    measured=f"of {len(boxes)} boxes {int(is_reversed.sum())} are reversed, {outside} mostly outside",
                    severity="error" if bool(is_reversed.any()) or is_shares else "warning",
                    causes=[cause] if cause else (),
                    where=run.locate(survey.part.split, config_path="data"),
                    evidence={"field": "boxes"},
                )
                return


def collect_boxes(survey: Any, field: str) -> tuple[Tensor, Tensor]:
    """Collect the boxes (N, 4) of a part that are not ignored, and (W, H, W, H) of their images; float64."""
    boxes, limits = [], []
    for sample in survey.boxed:
        is_truth = field == "truth"
        is_ignored = sample[field][:, 6] > 0 if is_truth else sample["is_ignored"]
        boxes.append(sample[field][~is_ignored][:, :4].double())
        size = sample["file_px" if is_truth else "image_px"]
        limits.append(size.flip(0).repeat(2).expand(len(boxes[-1]), 4).double())
    return torch.cat(boxes), torch.cat(limits)


def read_otherwise(boxes: Tensor, limit: Tensor, *, is_shares: bool = False) -> tuple[str, str]:
    """Return the cause, and its text, of another format that brings far more boxes into their images; "" if none."""
    first, last = boxes.split(2, dim=1)
    box_format = "assign.box_format"
    readings: list[tuple[str, str, tuple[Tensor, Tensor], Tensor]] = [
        (box_format, "left, top, width, height", (first, first + last), limit),
        (box_format, "centre, width and height", (first - last / 2, first + last / 2), limit),
        (box_format, "corners that were read as left, top, width, height", (first, last - first), limit),
        (box_format, _FROM_CENTRE, (1.5 * first - last / 2, (first + last) / 2), limit),
        (box_format, "right, bottom, left, top", (last, first), limit),
        ("cfg.axis_swap", "top, left, bottom, right", (first.flip(1), last.flip(1)), limit),
        ("cfg.axis_swap", "boxes of images with width and height exchanged", (first, last), limit[:, [1, 0, 3, 2]]),
    ]
    if is_shares:
        return "data.normalisation", "shares of the image's sides"
    counts = [_count_unsound(torch.cat(corners, dim=1), sizes) for _, _, corners, sizes in readings]
    left, now = min(counts), _count_unsound(boxes, limit)
    if now - left <= max(2, _MIN_EXPLAINED * len(boxes)) or left > _MAX_LEFT * now:
        return "", ""
    return readings[counts.index(left)][:2]


def _count_outside(boxes: Tensor, limit: Tensor) -> int:
    """Count the boxes that lie mostly outside their images; corners in the wrong order enclose nothing."""
    is_reversed = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    return int((is_reversed | (ioa(boxes, torch.cat([0 * limit[:, :2], limit[:, 2:]], dim=1)) < 0.5)).sum())


def _count_unsound(boxes: Tensor, limit: Tensor) -> int:
    is_beyond = (boxes < -_BEYOND_PX) | (boxes > limit + _BEYOND_PX)
    return int((is_beyond.any(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)).sum())


@rule(
    "augmentation-mismatch",
    "error",
    "data.augment_target_mismatch assign.box_format",
    holds="boxes around the same objects as before",
    do="let the transform take image and boxes, and move them by the same numbers",
    is_statistical=True,
)
def moved_boxes(run: Any) -> Iterator[Fault]:
    """Paint a box of a sample, apply each transform, and compare the box with what is painted."""
    part = run.built.data.train
    if not {"boxes", "image"} <= part.dataset.info.fields.keys():
        raise NotApplicableError("no boxes")
    functions = part.reader.transforms.functions
    overlaps: dict[tuple[int, str], list[float | None]] = {}
    for epoch, index in enumerate(part.evenly_spaced_indices(_NUM_PAINTED)):
        key = SampleKey(int(index), epoch, run.config.seed)
        stages = list(part.reader.batch_stages(key))
        for number, bound in enumerate(functions):
            before, after = stages[number][1], stages[number + 1]
            if not mixes_samples(bound) and before["boxes"].numel():
                apply = lambda batch, n=number, key=key: part.reader.transforms.apply_one(n, batch, [key])  # noqa: E731
                overlaps.setdefault((number, after[0]), []).append(_follow_box(before, apply))
    for (number, name), shares in overlaps.items():
        lost = [overlap for overlap in shares if overlap is not None and overlap < _MIN_FOLLOWED]
        if len(lost) > 1:
            where = run.locate("train", config_path=f"transforms.train.{number}")
            measured = (
                f"IoU {min(lost):.2f} of a box with what was painted in it, in {len(lost)} of {len(shares)} samples"
            )
            yield Fault(f"the transform '{name}' moves images and boxes differently", measured=measured, where=where)


def _follow_box(before: Any, apply: Callable[[Any], Any]) -> float | None:
    """Return the highest IoU of a box after a transform with what was painted into the largest; None if cut off."""
    image = torch.zeros_like(before["image"])
    channels_first = image.ndim == 4 and image.shape[1] == 3
    pixels = image.movedim(1, -1) if channels_first else image
    boxes = before["boxes"].reshape(-1, 4)
    chosen = int(box_area(boxes).argmax())
    left, top, right, bottom = boxes[chosen].round().long().clamp(min=0).tolist()
    pixels[..., top:bottom, left:right, :] = 255
    after = apply({**before, "image": image})
    if "boxes" not in after or not after["boxes"].numel():
        return None
    shape = after["image"].shape
    height, width = shape[-2:] if shape[1] == 3 and len(shape) == 4 else shape[-3:-1]
    grid = after["image"].float().mean(dim=1 if shape[1] == 3 and len(shape) == 4 else -1).reshape(height, width)
    low, high = grid.aminmax()
    rows, columns = (grid > (low + high) / 2).nonzero().unbind(1)
    if float(high - low) < 0.1 or not len(rows):
        return None
    painted = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    moved = after["boxes"].reshape(-1, 4).float().clamp(min=0).minimum(painted.new_tensor([width, height] * 2))
    overlaps = iou(painted.expand_as(moved), moved)
    return float(overlaps[chosen] if len(overlaps) == len(boxes) else overlaps.max())


# --- priors -----------------------------------------------------------------------------------------------------------


@measure()
def assigned(run: Any, detecting_task: Any, first_step: Any) -> AssignedBoxes:
    """Assign boxes in samples of the first step, under `sightline check` also in 64 other samples."""
    part, batches = run.built.data.train, iter([run.first_outputs[0]])
    if not run.is_quick:
        key_chunks = evenly_spaced_keys(part, epoch=0, seed=run.config.seed, most_samples=_MAX_ASSIGNED)
        batches = itertools.chain(batches, map(part.reader, key_chunks))
    on_cpu = (to_device(batch, torch.device("cpu")) for batch in batches)
    return assigned_boxes(detecting_task, run.built.job.model, on_cpu)


def _measure_fill(run: Any, assigned: Any) -> tuple[float, float]:
    """Return the share of the canvas that images fill, and that they would fill of one with exchanged sides."""
    height, width = run.first_outputs[0]["image"].shape[2:]
    ratios = assigned.file_px[:, 1] / assigned.file_px[:, 0]
    filled, swapped = (
        float(torch.minimum(ratios / shape, shape / ratios).mean()) for shape in (width / height, height / width)
    )
    return filled, swapped


@rule(
    "swapped-canvas",
    "warning",
    "cfg.axis_swap",
    holds="a canvas of the shape of the images, not of that with exchanged sides",
    do="exchange height and width in transforms.train and transforms.evaluate",
    is_statistical=True,
)
def swapped_canvas(run: Any, assigned: Any) -> Fault | None:
    """Compare how images fill the canvas with how they would with its sides exchanged."""
    filled, swapped = _measure_fill(run, assigned)
    if swapped - filled <= _MAX_GAIN:
        return None
    measured, where = f"{filled:.0%} now, {swapped:.0%} then", FindingLocation(config_path="transforms.train")
    return Fault("images would fill the canvas far better with exchanged sides", measured=measured, where=where)


@rule(
    "anchor-coverage",
    "warning",
    "assign.anchor_coverage cfg.axis_swap assign.box_format",
    holds="an anchor with an IoU of 0.3 for all but 2 % of the boxes larger than a cell",
    do="set base_strides, scales and ratios (height over width) of task.anchors to the boxes on the canvas",
    is_statistical=True,
)
def anchor_coverage(run: Any, assigned: Any, surveys: list[Any]) -> Fault | None:
    """Compare boxes with the anchors."""
    if assigned.priors.kind != "anchors":
        raise NotApplicableError("no anchors")
    is_counted = box_area(assigned.boxes) >= assigned.priors.strides[0] ** 2
    missed = assigned.boxes[is_counted & (assigned.best_iou.amax(dim=1) < _MIN_IOU)]
    if not _is_above(len(missed), int(is_counted.sum()), _MAX_UNCOVERED):
        return None
    filled, swapped = _measure_fill(run, assigned)
    boxes, limit = collect_boxes(surveys[0], "boxes")
    cause = "cfg.axis_swap" if swapped - filled > _MAX_GAIN else read_otherwise(boxes, limit)[0]
    width, height = box_sizes(missed).median(dim=0).values.tolist()
    return Fault(
        f"no anchor fits {len(missed) / int(is_counted.sum()):.0%} of the boxes",
        measured=f"{len(missed)} boxes of median width {width:.0f} and height {height:.0f} px, of {assigned.looked_at}",
        causes=[cause, "assign.anchor_coverage"] if cause else (),
        where=FindingLocation(config_path="task.anchors"),
    )


@rule(
    "unmatched-boxes",
    "warning",
    "assign.unmatched_gt assign.anchor_coverage loss.negatives",
    holds="positives and negatives, on each level with boxes, and a prior for each box that a free one overlaps",
    do="look at the thresholds of the assigner, and at boxes on the canvas (`sightline view`); max_iou with "
    "low_quality: guarantee gives every box a prior",
    is_statistical=True,
)
def unmatched_boxes(run: Any, assigned: Any) -> Iterator[Fault]:
    """Count the priors that are assigned to boxes, level by level, and the boxes without."""
    positives, negatives = assigned.positives.sum(dim=0).tolist(), assigned.negatives.sum(dim=0).tolist()
    levels = f"by level: positives {positives}, negatives {negatives}; {assigned.looked_at}"
    where = FindingLocation(config_path="task.assigner")
    if not len(assigned.boxes):
        raise NotApplicableError("no boxes in the first batches")
    if not sum(positives) or not sum(negatives):
        causes = ["loss.negatives"] if sum(positives) else ()
        summary = f"no prior {'is background' if sum(positives) else 'is assigned a box'}"
        yield Fault(summary, measured=levels, severity="error", causes=causes, where=where)
        return
    pairs = zip(assigned.priors.strides, assigned.num_boxes_of_level, positives, strict=True)
    idle = [str(stride) for stride, sized, matched in pairs if sized >= _MIN_BOXES and not matched]
    if idle:
        summary = f"levels of stride {', '.join(idle)} never get a positive, although boxes have that size"
        yield Fault(summary, measured=levels, where=where)
    avoidable = int((assigned.is_unmatched & (assigned.best_free >= _MIN_IOU)).sum())
    if _is_above(avoidable, len(assigned.boxes), _MAX_AVOIDABLE):
        summary = f"{int(assigned.is_unmatched.sum()) / len(assigned.boxes):.0%} of the boxes are assigned to no prior"
        yield Fault(summary, measured=f"{avoidable} of them overlap a free one; {levels}", where=where)


@rule(
    "ignored-regions",
    "error",
    "assign.ignore data.ignore_handling",
    holds="the target -2 for priors inside an ignored region, and the same ignored boxes in 'boxes' and 'truth'",
    do="derive the assigner from Assigner and define `match` alone; keep ignored boxes in 'boxes' with is_ignored",
)
def ignored_regions(run: Any, assigned: Any, surveys: list[Any]) -> Iterator[Fault]:
    """Assign priors to an image that is one ignored region; compare ignored boxes of training and scoring."""
    task, batch = unwrap_distillation(run.built.job.task), to_device(run.first_outputs[0], torch.device("cpu"))
    count, size_px = len(batch["image"]), [float(side) for side in batch["image"].shape[:1:-1]]
    batch |= {"boxes": torch.tensor([[0.0, 0.0, *size_px]]).repeat(count, 1), "box_offsets": torch.arange(count + 1)}
    batch |= {"label": torch.zeros(count, dtype=torch.int64), "is_ignored": torch.ones(count, dtype=torch.bool)}
    prior_boxes = task.get_priors(batch["image"]).to_boxes(0)
    is_inside = (prior_boxes >= 0).all(dim=1) & (prior_boxes < prior_boxes.new_tensor(size_px * 2)).all(dim=1)
    target = task.context(run.built.job.model, batch)["target"]
    learned = int(((target >= 0) | (is_inside & (target == BACKGROUND))).sum())
    if learned:
        summary, measured = "priors inside an ignored region are learned", f"{learned} of {target.numel()} priors"
        yield Fault(summary, measured=measured, where=FindingLocation(config_path="task.assigner"))
    for survey in surveys:
        scored = sum(int((sample["truth"][:, 6] > 0).sum()) for sample in survey.boxed)
        if scored >= _MIN_BOXES and not any(sample["is_ignored"].any() for sample in survey.boxed):
            summary, causes = "scored labels have ignored boxes, training labels have none", ["data.ignore_handling"]
            measured, where = f"{scored} in 'truth'", run.locate(survey.part.split, config_path="data")
            yield Fault(summary, measured=measured, severity="warning", causes=causes, where=where)


# --- the head ---------------------------------------------------------------------------------------------------------


@rule(
    "level-order",
    "error",
    "model.structure assign.anchor_coverage",
    holds="outputs in the order of the priors: level, row, column, prior of a cell",
    do="flatten by flatten_to_priors of areas/detect/networks.py: levels finest first, rows, columns, priors of a cell",
)
def level_order(run: Any, assigned: Any) -> Iterator[Fault]:
    """Change the upper right corner of each map, and look where the outputs of the head change."""
    channels = getattr(getattr(run.built.job.model, "neck", None), "channels", None)
    if channels is None:
        raise NotApplicableError("no head on the maps of a neck")
    head = copy_module(run.built.job.model.head).eval().cpu().double()
    worst: dict[str, float] = {}
    for scale in (1, 3):  # the receptive field of a deep head covers all of a small map
        sizes = [((_ROWS + level) * scale, (_COLUMNS + 2 * level) * scale) for level in range(len(channels))]
        maps = [torch.randn(1, width, *size).double() for width, size in zip(channels, sizes, strict=True)]
        changed = [values.clone() for values in maps]
        for values in changed:
            values[:, :, 1, -2] *= -10
        with torch.no_grad():
            before, after = head(maps), head(changed)
        for name in sorted(before.keys() & {"logits", "codes", "centreness", "objectness"}):
            energy = (after[name] - before[name])[0].square().reshape(before[name].shape[1], -1).sum(dim=1)
            cells = len(energy) // sum(rows * columns for rows, columns in sizes)
            grids = energy.split([rows * columns * cells for rows, columns in sizes])
            grids = [grid.view(*size, cells).sum(dim=2) for grid, size in zip(grids, sizes, strict=True)]
            near = min(float(grid[: _CORNER * scale, -_CORNER * scale :].sum() / grid.sum()) for grid in grids)
            worst[name] = max(worst.get(name, 0.0), near)
    for name, share in worst.items():
        if share < _MIN_NEAR:
            summary, where = f"'{name}' of the head is in another order than the priors", "model.head"
            measured = f"{share:.0%} of the change of a corner of each map at the priors of that corner"
            yield Fault(summary, measured=measured, where=FindingLocation(layer="head", config_path=where))
            return


@rule(
    "prior-bias",
    "warning",
    "model.init model.structure",
    holds="a mean score, or objectness, of the head's `prior` (0.01) before training, to a factor of 10",
    do="start the class layer with the bias -ln((1 - p) / p) and small weights, and no norm after it",
    is_statistical=True,
)
def prior_bias(run: Any, assigned: Any) -> Fault | None:
    """Compare the scores of an untrained detector with its prior. Source: Lin et al. 2017, section 4.1."""
    if not run.is_fresh:
        raise NotApplicableError("trained weights")
    head = run.config.model.arguments.get("head")
    prior = float(head.arguments.get("prior", _PRIOR)) if isinstance(head, ComponentConfig) else _PRIOR
    outputs = run.first_outputs[1]
    logits = outputs.get("objectness", outputs["logits"]).double()
    score, is_normed = (
        float(logits.sigmoid().mean()),
        abs(float(logits.mean())) < 1e-3 > abs(float(logits.std()) - 1) / 10,
    )
    if prior / _FACTOR <= score <= prior * _FACTOR:
        return None
    causes, where = ["model.structure"] if is_normed else (), FindingLocation(config_path="model.head")
    measured = f"a mean score of {score:.4g}"
    return Fault(
        "the untrained detector does not start with rare objects", measured=measured, causes=causes, where=where
    )


# --- boxes as they are decoded ----------------------------------------------------------------------------------------


@rule(
    "decoded-boxes",
    "error",
    "assign.codec assign.box_format eval.decode",
    holds="the labelled boxes, decoded from the codes at which a loss of boxes is least",
    do="decode by the inverse of what the loss encodes: with the same deviations, order and priors",
)
def decoded_boxes(run: Any) -> Iterator[Fault]:
    """Decode the best codes of each loss of boxes."""
    losses = [loss for loss in make_loss_subjects(run) if loss.term.wanted]
    if not losses:
        raise NotApplicableError("no codes of boxes")
    for loss in losses:
        if (fault := _judge_codes(run, loss)) is not None:
            yield fault


def _judge_codes(context: Any, loss: LossSubject) -> Fault | None:
    task, batch = unwrap_distillation(context.built.job.task), context.dry_run.batch
    evidence = Evidence({"subject": loss.subject, "term": loss.term}, math.inf)
    aims = attempt("aims", evidence.get, {"name": "aims"})
    codes, is_valid = loss.term.wanted["codes"]
    if isinstance(aims, MissingError) or codes.ndim != 3 or not all(aim.is_least for aim in aims):
        return None
    has_box, boxes = is_valid.any(dim=2), loss.subject.batches[0].target["matched_boxes"].cpu()
    for image in has_box.any(dim=1).nonzero().flatten().tolist()[:1]:
        scores = torch.where(has_box[image], _CERTAIN, -_CERTAIN)
        outputs = {"logits": scores[None, :, None], "codes": codes[image : image + 1]}
        outputs |= {name: scores[None] for name in ("objectness", "centreness") if name in context.dry_run.seen_outputs}
        [decoded] = task.selection.decode(outputs, task.get_priors(batch["image"].to(codes.device)))
        has_target = has_box[image, decoded.proposal].cpu()  # a `min_score` of 0 selects the others, too
        index = decoded.proposal[has_target]
        predicted, expected = decoded.detections[has_target, :4].double(), boxes[image, index].double()
        overlap = float(iou(predicted, expected).median()) if len(predicted) else 0.0
        if overlap < _MIN_DECODED_IOU:
            return Fault(
                f"codes at which the loss '{loss.name}' is least are decoded to other boxes",
                measured=f"median IoU {overlap:.2f} with the boxes of {len(predicted)} priors; widths "
                f"{_ratio(predicted, expected)} times theirs; largest code {codes[image, index].abs().max():.3g}",
                where=FindingLocation(config_path="task"),
                evidence={"field": "codes"},
            )
    return None


def _ratio(decoded: Tensor, expected: Tensor) -> str:
    ratio = box_sizes(decoded)[:, 0] / box_sizes(expected)[:, 0]
    return " to ".join(f"{float(value):.3g}" for value in ratio.aminmax()) if len(ratio) else "none"


# --- the loss ---------------------------------------------------------------------------------------------------------

_BACKGROUND_LOGIT = -50.0
"""Logit of a prior that predicts background with certainty: its loss is 0."""
_TOLERANCE = 2e-3
_MAX_OTHER_PRIORS = 1000
"""Number of priors without a box that are kept: enough for the sums, few enough for eighty classes."""


@rule(
    "loss-normaliser",
    "error",
    "loss.normaliser data.ignore_handling loss.form",
    holds="a loss of priors that others, which are ignored or certainly background, do not change",
    do="count priors with a box, (target >= 0).sum(), and leave those whose target is -2 out of the sum",
)
def loss_normaliser(run: Any, assigned: AssignedBoxes) -> Iterator[Fault]:
    """Double the priors. Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.1."""
    if not int(assigned.positives.sum()):
        raise NotApplicableError("no boxes with priors")
    original, with_background, with_ignored = (_compute_losses(run, target) for target in (None, BACKGROUND, IGNORED))
    for name, (value, count) in original.items():
        for what, enlarged in (("background, predicted for certain", with_background), ("ignored", with_ignored)):
            other, other_count = enlarged[name]
            if not math.isclose(value, other, rel_tol=_TOLERANCE, abs_tol=1e-9):
                is_learned = enlarged is with_ignored and other_count == count
                yield Fault(
                    f"the loss '{name}' depends on how many priors are {what}",
                    causes=("data.ignore_handling", "loss.normaliser", "loss.form") if is_learned else (),
                    where=FindingLocation(config_path=run.loss_path(name)),
                    measured=f"{value:.6g}, and {other:.6g} with twice as many priors, the new ones {what}; divided by "
                    f"{count:g}, and by {other_count:g}",
                    evidence={"field": name},
                )


def _compute_losses(context: Any, added: int | None) -> dict[str, tuple[float, float]]:
    """Compute each mean loss and its count at some priors, plus as many with the target `added` unless None."""
    job, (batch, raw_outputs) = context.built.job, context.first_outputs
    task: Any = copy.copy(job.task)
    run_context, outputs = task.context(job.model, batch), task.outputs(FixedOutputs(raw_outputs), batch)
    num_priors, is_selected = len(run_context["priors"]), (run_context["target"] >= 0).any(dim=0)
    is_selected[:: 1 + num_priors // _MAX_OTHER_PRIORS] = True

    def enlarge(value: Tensor, fill: float | None = None) -> Tensor:
        axis = next((axis for axis in (1, 0) if value.shape[axis : axis + 1] == (num_priors,)), None)
        if axis is None:
            return value
        selected = value.index_select(axis, is_selected.nonzero().flatten())
        extra = selected if fill is None else torch.full_like(selected, fill)
        return selected if added is None else torch.cat([selected, extra], dim=axis)

    run_context = {
        name: enlarge(value, added if name in ("target", "second_match") else None)
        for name, value in run_context.items()
    }
    logit = _BACKGROUND_LOGIT if added == BACKGROUND else -_BACKGROUND_LOGIT
    outputs = {
        name: enlarge(value, logit if name in ("logits", "objectness") else None) for name, value in outputs.items()
    }
    task.context, task.outputs = (lambda model, batch: run_context), (lambda model, batch: outputs)
    with torch.no_grad():
        sums, counts = compute_batch_losses(task, job.model, batch, context.world.device, job.precision)
    return {name: (float(divide_by_count(total, counts[name])), float(counts[name])) for name, total in sums.items()}
