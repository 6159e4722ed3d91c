"""Rules of what an evaluation of boxes counts, by its protocol.

The last three columns of `truth` are class, size and whether a label is ignored, behind the 4 or 7 numbers of its box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.contract.types import Batch
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.device.transfer import to_device
from sightline.ops.boxes.overlaps import box_iou
from sightline.ops.points.affine_maps import warp_boxes
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.context import Context, JudgedMetric, metrics
from sightline.workbench.check.evaluation_rules import Predicted, metric_values

_MAX_SCORES = {"crowd_ap": 0.01, "miss_rate": 0.01, "box_ap": 0.05}
"""Metric -> the score from which its published evaluation keeps detections."""
_MAX_LOST, _MIN_BOXES, _MAX_IMAGES = 0.02, 5, 8


@measure()
def detecting_task(run: Context) -> Any:
    """Return the task of a run that detects boxes."""
    task: Any = unwrap_distillation(run.built.job.task)
    if task.get_priors is None:
        raise NotApplicableError("no boxes")
    return task


@rule(
    "box-protocol",
    "warning",
    "eval.protocol eval.decode",
    holds="detections of the scores, the number and the classes that metrics and labels require",
    do="set the key that is named as its protocol has it",
)
def box_protocol(run: Context, detecting_task: Any) -> Iterator[Fault]:
    """Compare thresholds, numbers and suppression of the task with its metrics and labels."""
    task = detecting_task
    limits = {metric.name: _MAX_SCORES[metric.name] for metric in run.config.metrics if metric.name in _MAX_SCORES}
    selection = task.selection
    if limits and selection.min_score > min(limits.values()):
        name = min(limits, key=limits.__getitem__)
        yield Fault(
            f"detections below a score of {selection.min_score:g} are dropped before {name}: its curve ends early",
            measured=f"task.score {selection.min_score:g}",
            expected=f"at most {limits[name]:g}, a higher one only for pictures (`predict score=S`)",
            action=f"set task.score={limits[name]:g}",
            where=FindingLocation(config_path="task.score"),
        )
    truths = [sample["truth"] for survey in run.statistics for sample in survey.boxed]
    valid_truths = [truth[truth[:, -1] == 0] for truth in truths]
    per_class = [int(torch.bincount(truth[:, -3].long()).max()) if len(truth) else 0 for truth in valid_truths]
    maxima: dict[str, tuple[float, int]] = {
        "task.most": (selection.max_detections, max(map(len, valid_truths), default=0))
    }
    for index, meter in enumerate(run.built.selection_evaluator.metrics):
        max_detections = getattr(meter.metric, "most", math.inf)  # user-defined metrics have it, too
        maxima[f"metrics.{index}.most"] = max_detections, max(per_class, default=0)
    for path, (max_detections, count) in maxima.items():
        if max_detections < count:
            yield Fault(
                f"{path} is {max_detections}, and an image has {count} boxes: not all of them can be found",
                measured=f"{max_detections} detections an image",
                expected=f"at least {count}; 500 is usual for crowds",
                action=f"set {path}={max(500, count)}",
                where=FindingLocation(config_path=path),
            )
    if not selection.suppression.reads:  # labels lack what else it reads of a detection
        yield from _suppression_faults(task, valid_truths)


def _suppression_faults(task: Any, truths: list[Tensor]) -> Iterator[Fault]:
    """Find labels that suppression would drop because of another class's box, even if detected exactly."""
    num_lost = num_labels = 0
    for truth in truths:
        scores = torch.linspace(0.9, 0.8, len(truth), dtype=torch.float64)
        label = truth[:, -3].long()
        rows = [torch.arange(len(truth)), *((label == number).nonzero().flatten() for number in label.unique())]
        survivors = [
            {*row[task.selection.suppression(truth[row, :-3], scores[row], label[row]).indices].tolist()}
            for row in rows
        ]
        num_lost, num_labels = num_lost + len(set().union(*survivors[1:]) - survivors[0]), num_labels + len(truth)
    if num_lost >= _MIN_BOXES and num_lost > _MAX_LOST * num_labels:
        yield Fault(
            "suppression drops boxes because of boxes of another class",
            measured=f"{num_lost} of {num_labels} labels would be lost if they were detected exactly",
            expected=f"at most {_MAX_LOST:.0%}",
            action="set task.suppression.per_class=true",
            causes=["eval.decode", "eval.protocol"],
            where=FindingLocation(config_path="task.suppression"),
        )


@rule(
    "box-evaluation",
    "warning",
    "data.ignore_handling eval.protocol",
    holds="the same ignored boxes in 'truth' and in 'boxes'",
    do="copy the flag to the last column of 'truth'",
)
def ignored_boxes(run: Context, detecting_task: Any) -> Iterator[Fault]:
    """Compare the ignored boxes that are trained on with those that are scored."""
    for survey in run.statistics:
        num_trained = sum(int(sample["is_ignored"].sum()) for sample in survey.boxed)
        if num_trained >= _MIN_BOXES and not any((sample["truth"][:, -1] > 0).any() for sample in survey.boxed):
            yield Fault(
                "training labels have ignored boxes, scored labels have none: finding them or not counts",
                measured=f"0 ignored boxes in 'truth', {num_trained} in 'boxes', of {survey.coverage_text}",
                where=run.locate(survey.part.split, config_path="data"),
                evidence={"field": "truth"},
            )


@rule(
    "box-evaluation",
    "error",
    "eval.coordinate eval.protocol",
    holds="detections and labels in pixels of the file",
    do="leave 'truth' in pixels of the file, and keep 'to_canvas' for transforms that move pixels",
)
def pixel_frames(run: Context, detecting_task: Any) -> Iterator[Fault]:
    """Compare labels with trained boxes, and detections of a file with those of one twice as large."""
    task = detecting_task
    for evaluation in run.dry_evaluations:
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
        what = "labels are in pixels of the canvas" if is_mapped else "detections are not mapped to the file"
        yield Fault(
            f"{what}: areas are wrong, and boxes do not match those of other programs",
            measured=f"median IoU with trained boxes {iou:.2f}, {unmoved:.2f} without moving labels to the canvas"
            if is_mapped
            else "twice as large a file does not make detections twice as large",
            where=FindingLocation(config_path="data" if is_mapped else "task"),
        )


@rule(
    "box-evaluation",
    "error",
    "eval.protocol data.ignore_handling eval.aggregation",
    holds="figures without detections in ignored boxes, and lower ones where labels are missed",
    do="leave out detections in labels with the last column of 'truth' set, and count the labels of every image",
)
def counted_boxes(run: Context, detecting_task: Any) -> Iterator[Fault]:
    """Score samples with exact detections, and others whose boxes are ignored, or missed."""
    boxed = [sample for survey in run.statistics for sample in survey.boxed if (sample["truth"][:, -1] == 0).any()]
    for metric in metrics(run):
        if boxed and {"detections", "truth"} <= {*metric.meter.update.names}:
            yield from _box_metric_faults(metric, boxed[:_MAX_IMAGES])


def _box_metric_faults(metric: JudgedMetric, boxed: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    """Find metrics that count detections in ignored boxes, or leave out images without detections."""
    perfect = [_make_image(sample, is_ignored=False, is_detected=True) for sample in boxed]
    plain, absorbed, missed = (
        metric_values(
            metric.meter,
            [_join_images([*perfect, *(_make_image(sample, is_ignored=ignored, is_detected=hit) for sample in boxed)])],
        ).used
        for ignored, hit in ((True, False), (True, True), (False, False))
    )
    changed = [name for name, value in plain.items() if not _is_same(value, absorbed[name])]
    known = {name: value for name, value in plain.items() if not math.isnan(value)}  # NaN: no label fits the figure
    if changed:
        figure = changed[0]
        yield Fault(
            f"the metric '{metric.name}' counts detections in ignored boxes",
            measured=f"{figure} {plain[figure]:.6g}, and {absorbed[figure]:.6g} with detections in them",
            causes=["data.ignore_handling", "eval.protocol"],
            where=FindingLocation(config_path=metric.path),
        )
    elif known and all(_is_same(value, missed[name]) for name, value in known.items()):
        listed = ", ".join(f"{name} {value:.4g}" for name, value in list(known.items())[:3])
        yield Fault(
            f"the metric '{metric.name}' leaves out images without detections",
            measured=f"{listed} whether or not half of the images have labels without a detection",
            causes=["eval.protocol", "eval.aggregation"],
            where=FindingLocation(config_path=metric.path),
        )


def _make_image(sample: Mapping[str, Any], *, is_ignored: bool, is_detected: bool) -> dict[str, Tensor]:
    """Make an image of a sample's valid labels, ignored or not, with detections exactly on them or none."""
    is_valid = sample["truth"][:, -1] == 0
    truth = sample["truth"][is_valid].clone()
    truth[:, -1] = float(is_ignored)
    score = torch.linspace(0.99, 0.9, len(truth), dtype=torch.float64)[:, None]
    detections = torch.cat([truth[:, :-3], score, truth[:, -3:-2]], dim=1)[: None if is_detected else 0]
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
