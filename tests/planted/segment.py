"""Faults of runs that label points: parts of objects (SEG), and range images of LiDAR scans (LID)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.scans import range_projection
from sightline.areas.scans.models.squeezeseg import SqueezeSeg
from sightline.areas.scans.sets.synthetic_lidar import SyntheticLidar
from sightline.contract.metric import Metric
from sightline.contract.types import Batch, Sample, SampleKey
from sightline.ops.points import interpolation
from sightline.parts.metrics.confusion import class_ious, confusion_matrix
from sightline.parts.metrics.part_iou import PartIoU
from sightline.parts.transforms.points import Rotate
from tests.planted.planting import Plant, add_class_loss, change_arguments, change_result, join, wrap

# --- metrics ----------------------------------------------------------------------------------------------------------


class _MeanOfBatches(Metric):
    """Mean over batches of each batch's mIoU."""

    def __init__(self, *, num_classes: int) -> None:
        self.num_classes = num_classes

    def new_state(self) -> dict[str, Tensor]:
        return {"sum": torch.zeros((), dtype=torch.int64), "batches": torch.zeros((), dtype=torch.int64)}

    def update(self, state: dict[str, Tensor], *, probabilities: Tensor, target: Tensor) -> None:
        confusion = confusion_matrix(probabilities.argmax(1), target, num_classes=self.num_classes)
        state["sum"] += (1e6 * class_ious(confusion).nanmean()).long()
        state["batches"] += 1

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {"instance_miou": float(state["sum"] / (1e6 * state["batches"]))}


class _FloatMeanOfBatches(_MeanOfBatches):
    """The same with a running sum in float64."""

    def new_state(self) -> dict[str, Tensor]:
        return {**super().new_state(), "sum": torch.zeros((), dtype=torch.float64)}


def _plant_metric(metric: type) -> Plant:
    return lambda planter: planter.add("metrics", metric, "metrics=[{name: own}]", "evaluate.mode=max")


def _score_absent_parts_zero(own: Any, metric: PartIoU, state: dict[str, Tensor]) -> dict[str, float]:
    union = state["answered"][:, 0] + state["labelled"] - state["common"][:, 0]
    iou = state["common"][:, 0].double() / union.clamp(min=1)
    shapes = [iou[row, metric.parts_of_category[state["category"][row]]].mean() for row in range(len(iou))]
    seen = torch.stack(shapes)[state["seen"] > 0] if shapes else iou.new_full((1,), torch.nan)
    return {**own(metric, state), "instance_miou": seen.mean().item()}


# --- parts ------------------------------------------------------------------------------------------------------------


def _edit_parts(change: Callable[[Batch], Batch]) -> Plant:
    return change_result(SyntheticShapes, "get_batch", lambda batch: batch | change(batch))


def _pad_with_zeros(batch: Batch) -> Batch:
    """Fill the last points of every other cloud with zeros, as a collate without a mask does."""
    is_padded = (torch.arange(64) >= 40) & (batch["sample_index"] % 2 == 0)[:, None]
    first_part = batch["label"].amin(1, keepdim=True).expand(-1, 64)
    return {
        "points": torch.where(is_padded[..., None], 0.0, batch["points"]),
        "normals": torch.where(is_padded[..., None], 0.0, batch["normals"]),
        "label": torch.where(is_padded, first_part, batch["label"]),
    }


def _shift_category(batch: Batch) -> Batch:
    return {"label": batch["label"] + (batch["category"] == 1)[:, None].long()}


_WEIGHTS = torch.linspace(0.5, 2.0, 31)


def _weigh_next_class(logits: Tensor, label: Tensor) -> Tensor:
    """Weigh classes by a table of one more entry, read one entry too far."""
    return (F.cross_entropy(logits, label, reduction="none") * _WEIGHTS[label + 1]).sum()


# --- scans ------------------------------------------------------------------------------------------------------------


def _edit_scan(change: Callable[[Sample, int], Sample], *overrides: str) -> Plant:
    def read(own: Any, dataset: SyntheticLidar, key: SampleKey) -> Sample:
        sample: Sample = own(dataset, key)
        return sample | change(sample, key.index)

    return wrap(SyntheticLidar, "__getitem__", read, *overrides)


def _read_next_labels(own: Any, dataset: SyntheticLidar, key: SampleKey) -> Sample:
    other = own(dataset, dataclasses.replace(key, index=(key.index + 1) % len(dataset)))["label"]
    sample: Sample = own(dataset, key)
    return {**sample, "label": torch.cat([other, other])[: len(sample["label"])]}


def _draw_in_file_order(own: Any, points: Tensor, **named: Any) -> Any:
    """Let the last point of a file that falls into a pixel overwrite those before it."""
    projection = own(points, **named)
    view, offsets = named["view"], named["offsets"]
    scan = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    flat = torch.full((projection.point_index.numel(),), -1, dtype=torch.int64)
    shown = projection.is_in_view.nonzero().flatten()
    flat = flat.scatter_reduce(0, (projection.pixel + scan * view.num_pixels)[shown], shown, "amax")
    return projection._replace(point_index=flat.view(projection.point_index.shape))


def _clamp_labels(num_classes: int) -> Plant:
    """Make a plant of a loss that cuts labels off at the last class: no label is ever out of range."""
    return add_class_loss(
        lambda z, y: F.cross_entropy(z, y.clamp(max=num_classes - 1), ignore_index=0, reduction="sum")
    )


def _keep_one_class(sample: Sample, index: int) -> Sample:
    """Cut scans to a sector in which there is road alone; one of ten is whole."""
    if index % 10 == 0:
        return {}
    is_kept = sample["label"] == sample["label"].mode().values
    return {name: value[is_kept] for name, value in sample.items()}


_BY_PITCH = tuple(f"transforms.{stage}.{key}" for stage in ("train.2", "evaluate.0") for key in ("rows=pitch",))

SEGMENT_PLANTS: dict[str, Plant] = {
    "O17": _plant_metric(_FloatMeanOfBatches),
    "E1": _plant_metric(_MeanOfBatches),
    "O18": wrap(PartIoU, "compute", _score_absent_parts_zero),
    "O19": _edit_parts(_shift_category),
    "O20": _edit_parts(_pad_with_zeros),
    "O22": change_result(Rotate, "__call__", lambda fields: {"points": fields["points"]}),
    "O24": change_result(
        interpolation, "inverse_distance_weights", lambda weights: weights * 3.0, "model={name: pointnet2_parts}"
    ),
    "O25": add_class_loss(_weigh_next_class),
    "D8": _edit_parts(lambda b: {"label": b["label"].roll(1, 0)}),
    "D9": _edit_parts(lambda b: {"label": b["label"].flip(1)}),
    "D10": _edit_parts(lambda b: {"category": torch.zeros_like(b["category"])}),
    "O23": _edit_scan(lambda s, i: {"label": torch.where(s["label"] == s["label"].mode().values, 0, s["label"])}),
    "O35": join(_edit_scan(lambda s, i: {"label": 10 * s["label"]}), _clamp_labels(9)),
    "O36": _edit_scan(lambda s, i: {"label": (s["label"] + 65536 * (s["points"][:, 0].long() // 4)) % 9}),
    "O37": change_arguments(
        range_projection.Project, "__init__", lambda given: {"fov_deg": tuple(reversed(given["fov_deg"]))}, *_BY_PITCH
    ),
    "O38": wrap(range_projection, "project_scans", _draw_in_file_order, "data.num_columns=400"),
    "O39": _edit_scan(_keep_one_class),
    "O40": _edit_scan(lambda s, i: {"remission": 255 * s["remission"]}),
    "O41": join(
        change_arguments(SqueezeSeg, "__init__", lambda given: {"num_classes": given["num_classes"] - 1}),
        _clamp_labels(8),
    ),
    "D11": _edit_scan(lambda s, i: {"ring": 63 - s["ring"]}),
    "D12": wrap(SyntheticLidar, "__getitem__", _read_next_labels),
    "D13": _edit_scan(lambda s, i: {"points": s["points"][:, [0, 2, 1]]}),
    "D14": _edit_scan(lambda s, i: {"points": 1000 * s["points"]}),
    "D15": _edit_scan(lambda s, i: {name: value[s["ring"] % 4 != 0] for name, value in s.items()}),
    "D16": change_arguments(range_projection.Project, "__init__", lambda given: {"fov_deg": (25.0, -45.0)}, *_BY_PITCH),
}
