"""Evaluations of boxes that are not what their protocol states: thresholds, pixels, ignored boxes, images left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.checks.metric.synthetic_predictions import Predicted, metric_values, name_of_metric
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.engine.device import to_device
from sightline.geometry.boxes.affine import warp_boxes
from sightline.geometry.boxes.overlaps import pairwise_iou
from sightline.tasks.detect import Detect
from sightline.tasks.distillation import unwrap_distillation
from sightline.types import Batch

__all__ = ["box_evaluation", "box_protocol"]

_HIGHEST = {"crowd_ap": 0.01, "miss_rate": 0.01, "box_ap": 0.05, "box_errors": 0.05}
"""Scores from which the published evaluations keep detections."""
_MOST_LOST, _FEWEST, _MOST_IMAGES = 0.02, 5, 8


@check(
    "G32", "box-protocol", "preflight", severity="warning", causes=("eval.protocol", "eval.decode"), config_path="task"
)
def box_protocol(context: Context) -> Iterator[Finding]:
    """Detections reach the scores, the number and the classes that the metrics and the labels ask for."""
    task = unwrap_distillation(context.built.job.task)
    if not isinstance(task, Detect):
        return
    limits = {each.name: _HIGHEST[each.name] for each in context.config.metrics if each.name in _HIGHEST}
    select = task.selection
    if limits and select.score > min(limits.values()):
        name = min(limits, key=limits.__getitem__)
        yield box_protocol.finding(
            context,
            f"detections below a score of {select.score:g} are dropped before {name} sees them: its curve ends early",
            at="task.score",
            measured=f"task.score {select.score:g}",
            expected=f"at most {limits[name]:g}, for pictures alone a higher one (`predict --score`)",
            action=f"set task.score={limits[name]:g}",
        )
    truths = [each["truth"] for survey in context.statistics for each in survey.boxed]
    real = [truth[truth[:, 6] == 0] for truth in truths]
    per_class = [int(torch.bincount(each[:, 4].long()).max()) if len(each) else 0 for each in real]
    numbers: dict[str, tuple[float, int]] = {"task.most": (select.most, max(map(len, real), default=0))}
    for place, meter in enumerate(context.built.selection_evaluator.metrics):
        most = getattr(meter.metric, "most", math.inf)  # of an author's own metric, too
        numbers[f"metrics.{place}.most"] = most, max(per_class, default=0)
    for path, (most, count) in numbers.items():
        if most < count:
            yield box_protocol.finding(
                context,
                f"{path} is {most}, and an image has {count} boxes: not all of them can be found",
                at=path,
                measured=f"{most} detections an image",
                expected=f"at least {count}; 500 is usual for crowds",
                action=f"set {path}={max(500, count)}",
            )
    yield from _of_suppression(context, task, real)


def _of_suppression(context: Context, task: Detect, truths: list[Tensor]) -> Iterator[Finding]:
    """Labels that suppression would drop, had they been found exactly, because of one of another class."""
    lost = total = 0
    for truth in truths:
        scores = torch.linspace(0.9, 0.8, len(truth), dtype=torch.float64)
        label = truth[:, 4].long()
        rows = [torch.arange(len(truth)), *((label == number).nonzero().flatten() for number in label.unique())]
        kept = [
            {*row[task.selection.suppression(truth[row, :4], scores[row], label[row]).indices].tolist()} for row in rows
        ]
        lost, total = lost + len(set().union(*kept[1:]) - kept[0]), total + len(truth)
    if lost >= _FEWEST and lost > _MOST_LOST * total:
        yield box_protocol.finding(
            context,
            "suppression drops boxes because of others of another class",
            at="task.suppression",
            measured=f"{lost} of {total} labels would be lost, were they detected exactly",
            expected=f"at most {_MOST_LOST:.0%}",
            action="set task.suppression.per_class=true",
        )


@check("G32", "box-evaluation", "preflight", causes=("eval.coordinate", "eval.protocol"), config_path="task")
def box_evaluation(context: Context) -> Iterator[Finding]:
    """Boxes are scored in pixels of the files, ignored ones count for nothing, and every image counts."""
    task = unwrap_distillation(context.built.job.task)
    if not isinstance(task, Detect):
        return
    yield from _of_ignored(context)
    yield from _of_pixels(context, task)
    boxed = [each for survey in context.statistics for each in survey.boxed if (each["truth"][:, 6] == 0).any()]
    for meter in context.built.selection_evaluator.metrics:
        if boxed and {"detections", "truth"} <= {*meter.update.names}:
            try:
                yield from _of_meter(context, meter, boxed[:_MOST_IMAGES])
            except Exception as error:  # noqa: BLE001 - an author's own metric may need more than boxes
                yield box_evaluation.not_run(context, error)


def _of_ignored(context: Context) -> Iterator[Finding]:
    for survey in context.statistics:
        trained = sum(int(each["is_ignored"].sum()) for each in survey.boxed)
        if trained >= _FEWEST and not any((each["truth"][:, 6] > 0).any() for each in survey.boxed):
            yield box_evaluation.finding(
                context,
                "what is trained on has ignored boxes, what is scored has none: finding them, or not, counts",
                severity="warning",
                causes=("data.ignore_handling", "eval.protocol"),
                at="data",
                split=survey.part.split,
                measured=f"0 ignored boxes in 'truth', {trained} in 'boxes', of {survey.coverage_text}",
                expected="the same ones in both",
                action="hand on the flag in the last column of 'truth'",
                evidence={"field": "truth"},
            )


def _of_pixels(context: Context, task: Detect) -> Iterator[Finding]:
    """Whether `truth` is of the file, and whether detections are led back from the canvas to it."""
    for each in context.dry_evaluations:
        if each.failure is not None or not {"truth", "boxes", "to_canvas"} <= each.batch.keys():
            continue
        batch, outputs = (to_device(dict(part), torch.device("cpu")) for part in (each.batch, each.outputs))
        if "logits" not in outputs:
            continue
        near: list[list[float]] = [[], []]
        ends = [batch[name].tolist() for name in ("truth_offsets", "box_offsets")]
        for image, matrix in enumerate(batch["to_canvas"]):
            its, own = (slice(*each[image : image + 2]) for each in ends)
            truth, boxes = batch["truth"][its, :4].double(), batch["boxes"][own].double()
            for place, moved in enumerate((warp_boxes(truth, matrix.double()), truth)):
                near[place] += pairwise_iou(moved, boxes).amax(dim=1).tolist() if len(boxes) else []
        found, unmoved = (float(torch.tensor(values).median()) if values else math.nan for values in near)
        far = torch.full_like(batch["file_px"], 2**30)
        shifted = batch["to_canvas"].clone()
        shifted[..., 2] -= 2 * float(max(batch["image"].shape[2:]))
        twice = torch.cat([shifted[..., :2] / 2, shifted[..., 2:]], dim=2)
        plain, larger = (
            task.postprocess(outputs, {**batch, "file_px": far, "to_canvas": to})["detections"][:, :4]
            for to in (shifted, twice)
        )
        is_led_back = torch.allclose(2 * plain, larger, rtol=1e-3, atol=1.0)
        if is_led_back and not (unmoved > 0.9 and found < 0.7):
            continue
        what = "labels are in pixels of the canvas" if is_led_back else "detections are not led back from the canvas"
        yield box_evaluation.finding(
            context,
            f"{what}: areas, and boxes beside those of other programs, are wrong",
            at="data" if is_led_back else "task",
            measured=f"median IoU with trained boxes {found:.2f}, {unmoved:.2f} without moving labels to the canvas"
            if is_led_back
            else "twice as large a file does not make detections twice as large",
            expected="detections and labels in pixels of the file",
            action="leave 'truth' as the file has it, and keep 'to_canvas' for what moves pixels",
        )


def _of_meter(context: Context, meter: Any, boxed: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """A perfect detector, beside images of ignored boxes alone, and beside images in which nothing was found."""
    called, path = name_of_metric(context, meter)
    perfect = [_image(each, is_ignored=False, is_found=True) for each in boxed]
    found, absorbed, lost = (
        metric_values(
            meter, [_batch([*perfect, *(_image(each, is_ignored=ignored, is_found=seen) for each in boxed)])]
        ).used
        for ignored, seen in ((True, False), (True, True), (False, False))
    )
    changed = [name for name, value in found.items() if not _is_same(value, absorbed[name])]
    if changed:
        yield box_evaluation.finding(
            context,
            f"the metric '{called}' counts what lies in ignored boxes",
            causes=("data.ignore_handling", "eval.protocol"),
            at=path,
            measured=f"{changed[0]} {found[changed[0]]:.6g}, and {absorbed[changed[0]]:.6g} with detections in them",
            expected="the same",
            action="leave out detections that lie in labels with the last column of 'truth' set",
        )
    elif found and all(_is_same(value, lost[name]) for name, value in found.items()):
        yield box_evaluation.finding(
            context,
            f"the metric '{called}' leaves out images without detections",
            causes=("eval.aggregation", "eval.protocol"),
            at=path,
            measured=f"{', '.join(f'{n} {v:.4g}' for n, v in list(found.items())[:3])} whether or not half of the "
            "images have labels that nothing found",
            expected="lower figures where labels are missed",
            action="count the labels of every image, also where nothing was detected",
        )


def _image(sample: Mapping[str, Any], *, is_ignored: bool, is_found: bool) -> dict[str, Tensor]:
    """The labels of a sample that count, made ignored ones or not, and detections exactly on them or none."""
    real = sample["truth"][:, 6] == 0
    truth = sample["truth"][real].clone()
    truth[:, 6] = float(is_ignored)
    score = torch.linspace(0.99, 0.9, len(truth), dtype=torch.float64)[:, None]
    detections = torch.cat([truth[:, :4], score, truth[:, 4:5]], dim=1)[: None if is_found else 0]
    visible = sample.get("truth_visible", torch.full((len(real),), torch.nan).double())[real]
    return {"truth": truth, "truth_visible": visible, "detections": detections, "file_px": sample["file_px"]}


def _batch(images: list[dict[str, Tensor]]) -> Predicted:
    joined: Batch = {"sample_index": torch.arange(len(images))}
    joined["file_px"] = torch.stack([each["file_px"] for each in images])
    for name in ("truth", "truth_visible", "detections"):
        joined[name] = torch.cat([each[name] for each in images])
    for name, of in (("truth_offsets", "truth"), ("detection_offsets", "detections")):
        joined[name] = torch.tensor([0, *(len(each[of]) for each in images)]).cumsum(0)
    return joined, joined


def _is_same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) < 1e-6
