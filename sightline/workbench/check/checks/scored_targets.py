"""Checks of what an evaluation of boxes counts, by its protocol."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.contract.members import TaskMembers
from sightline.contract.types import Batch
from sightline.doctor.finding import Finding
from sightline.engine.device import to_device
from sightline.ops.box_overlaps import box_iou
from sightline.ops.priors import warp_boxes
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.checks.synthetic_predictions import (
    Predicted,
    metric_values,
)
from sightline.workbench.check.context import Context, JudgedMetric, check, metrics
from sightline.workbench.check.core.finding import Fault, diagnose

_diagnose = functools.partial(diagnose, __file__)
_MAX_SCORES = {"crowd_ap": 0.01, "miss_rate": 0.01, "box_ap": 0.05, "box_errors": 0.05}
"""Metric -> the score from which its published evaluation keeps detections."""
_MAX_LOST, _MIN_BOXES, _MAX_IMAGES = 0.02, 5, 8


@check("box-protocol", "preflight", severity="warning", causes=("eval.protocol", "eval.decode"), config_path="task")
def box_protocol(context: Context) -> Iterator[Fault]:
    """Detections have the range of scores, the number and the classes that metrics and labels require.

    Finds: Box evaluations that deviate from their protocol: thresholds, pixel frames, ignored boxes, omitted images.
    """
    task: Any = unwrap_distillation(context.built.job.task)
    if TaskMembers.get_priors.get(task) is None:
        return
    limits = {metric.name: _MAX_SCORES[metric.name] for metric in context.config.metrics if metric.name in _MAX_SCORES}
    selection = task.selection
    if limits and selection.min_score > min(limits.values()):
        name = min(limits, key=limits.__getitem__)
        yield _diagnose("early end", score=selection.min_score, name=name, limit=limits[name])
    truths = [sample["truth"] for survey in context.statistics for sample in survey.boxed]
    valid_truths = [truth[truth[:, 6] == 0] for truth in truths]
    per_class = [int(torch.bincount(truth[:, 4].long()).max()) if len(truth) else 0 for truth in valid_truths]
    maxima: dict[str, tuple[float, int]] = {
        "task.most": (selection.max_detections, max(map(len, valid_truths), default=0))
    }
    for index, meter in enumerate(context.built.selection_evaluator.metrics):
        max_detections = getattr(meter.metric, "most", math.inf)  # user-defined metrics have it, too
        maxima[f"metrics.{index}.most"] = max_detections, max(per_class, default=0)
    for path, (max_detections, count) in maxima.items():
        if max_detections < count:
            yield _diagnose("too few detections", at=path, most=max_detections, count=count, enough=max(500, count))
    if not selection.suppression.reads:  # labels lack what else it reads of a detection
        yield from _suppression_faults(task, valid_truths)


def _suppression_faults(task: Any, truths: list[Tensor]) -> Iterator[Fault]:
    """Find labels that suppression would drop because of another class's box, even if detected exactly."""
    num_lost = num_labels = 0
    for truth in truths:
        scores = torch.linspace(0.9, 0.8, len(truth), dtype=torch.float64)
        label = truth[:, 4].long()
        rows = [torch.arange(len(truth)), *((label == number).nonzero().flatten() for number in label.unique())]
        survivors = [
            {*row[task.selection.suppression(truth[row, :4], scores[row], label[row]).indices].tolist()} for row in rows
        ]
        num_lost, num_labels = num_lost + len(set().union(*survivors[1:]) - survivors[0]), num_labels + len(truth)
    if num_lost >= _MIN_BOXES and num_lost > _MAX_LOST * num_labels:
        yield _diagnose("classes suppress", lost=num_lost, labels=num_labels, limit=_MAX_LOST)


@check("box-evaluation", "preflight", causes=("eval.coordinate", "eval.protocol"), config_path="task")
def box_evaluation(context: Context) -> Iterator[Fault | Finding]:
    """Boxes are scored in pixels of the files, without ignored boxes, and over all images.

    Finds: Box evaluations that deviate from their protocol: thresholds, pixel frames, ignored boxes, omitted images.
    """
    task: Any = unwrap_distillation(context.built.job.task)
    if TaskMembers.get_priors.get(task) is None:
        return
    yield from _ignored_faults(context)
    yield from _pixel_faults(context, task)
    boxed = [sample for survey in context.statistics for sample in survey.boxed if (sample["truth"][:, 6] == 0).any()]
    for metric in metrics(context):
        if boxed and {"detections", "truth"} <= {*metric.meter.update.names}:
            try:
                yield from _box_metric_faults(metric, boxed[:_MAX_IMAGES])
            except Exception as error:  # noqa: BLE001 - a user-defined metric may need more than boxes
                yield box_evaluation.not_run(context, error)


def _ignored_faults(context: Context) -> Iterator[Fault]:
    for survey in context.statistics:
        num_trained = sum(int(sample["is_ignored"].sum()) for sample in survey.boxed)
        if num_trained >= _MIN_BOXES and not any((sample["truth"][:, 6] > 0).any() for sample in survey.boxed):
            words = {"trained": num_trained, "coverage": survey.coverage_text}
            yield _diagnose("no ignored boxes", split=survey.part.split, evidence={"field": "truth"}, **words)


def _pixel_faults(context: Context, task: Any) -> Iterator[Fault]:
    """Check that `truth` is in pixels of the file, and that detections are mapped from the canvas to the file."""
    for evaluation in context.dry_evaluations:
        if evaluation.failure is not None or not {"truth", "boxes", "to_canvas"} <= evaluation.batch.keys():
            continue
        batch, outputs = (to_device(dict(part), torch.device("cpu")) for part in (evaluation.batch, evaluation.outputs))
        if "logits" not in outputs:
            continue
        ious: list[list[float]] = [[], []]
        ends = [batch[name].tolist() for name in ("truth_offsets", "box_offsets")]
        for image, matrix in enumerate(batch["to_canvas"]):
            truth_rows, box_rows = (slice(*offsets[image : image + 2]) for offsets in ends)
            truth, boxes = batch["truth"][truth_rows, :4].double(), batch["boxes"][box_rows].double()
            for variant, moved in enumerate((warp_boxes(truth, matrix.double()), truth)):
                ious[variant] += box_iou(moved, boxes).amax(dim=1).tolist() if len(boxes) else []
        iou, unmoved = (float(torch.tensor(values).median()) if values else math.nan for values in ious)
        far_px = torch.full_like(batch["file_px"], 2**30)
        shifted = batch["to_canvas"].clone()
        shifted[..., 2] -= 2 * float(max(batch["image"].shape[2:]))
        doubled = torch.cat([shifted[..., :2] / 2, shifted[..., 2:]], dim=2)
        plain, larger = (
            task.postprocess(outputs, {**batch, "file_px": far_px, "to_canvas": to_canvas})["detections"][:, :4]
            for to_canvas in (shifted, doubled)
        )
        is_mapped = torch.allclose(2 * plain, larger, rtol=1e-3, atol=1.0)
        if is_mapped and not (unmoved > 0.9 and iou < 0.7):
            continue
        diagnosis = "labels on the canvas" if is_mapped else "detections on the canvas"
        yield _diagnose(diagnosis, iou=iou, unmoved=unmoved)


def _box_metric_faults(metric: JudgedMetric, boxed: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    """Find metrics that count detections in ignored boxes, or leave out images without detections."""
    perfect = [_make_image(sample, is_ignored=False, is_found=True) for sample in boxed]
    plain, absorbed, missed = (
        metric_values(
            metric.meter,
            [_join_images([*perfect, *(_make_image(sample, is_ignored=ignored, is_found=hit) for sample in boxed)])],
        ).used
        for ignored, hit in ((True, False), (True, True), (False, False))
    )
    changed = [name for name, value in plain.items() if not _is_same(value, absorbed[name])]
    if changed:
        words = {"figure": changed[0], "plain": plain[changed[0]], "other": absorbed[changed[0]]}
        yield _diagnose("counts ignored boxes", at=metric.path, metric=metric, **words)
    elif plain and all(_is_same(value, missed[name]) for name, value in plain.items()):
        listed = ", ".join(f"{name} {value:.4g}" for name, value in list(plain.items())[:3])
        yield _diagnose("leaves images out", at=metric.path, metric=metric, listed=listed)


def _make_image(sample: Mapping[str, Any], *, is_ignored: bool, is_found: bool) -> dict[str, Tensor]:
    """Make an image of a sample's valid labels, ignored or not, with detections exactly on them or none."""
    is_valid = sample["truth"][:, 6] == 0
    truth = sample["truth"][is_valid].clone()
    truth[:, 6] = float(is_ignored)
    score = torch.linspace(0.99, 0.9, len(truth), dtype=torch.float64)[:, None]
    detections = torch.cat([truth[:, :4], score, truth[:, 4:5]], dim=1)[: None if is_found else 0]
    visible = sample.get("truth_visible", torch.full((len(is_valid),), torch.nan).double())[is_valid]
    return {"truth": truth, "truth_visible": visible, "detections": detections, "file_px": sample["file_px"]}


def _join_images(images: list[dict[str, Tensor]]) -> Predicted:
    joined: Batch = {"sample_index": torch.arange(len(images))}
    joined["file_px"] = torch.stack([image["file_px"] for image in images])
    for name in ("truth", "truth_visible", "detections"):
        joined[name] = torch.cat([image[name] for image in images])
    for name, field in (("truth_offsets", "truth"), ("detection_offsets", "detections")):
        joined[name] = torch.tensor([0, *(len(image[field]) for image in images)]).cumsum(0)
    return joined, joined


def _is_same(first: float, second: float) -> bool:
    return (math.isnan(first) and math.isnan(second)) or abs(first - second) < 1e-6
