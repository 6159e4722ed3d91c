"""Description of a model as one document: modules in order, totals, memory, and origin of the batch.

Coverage of training boxes by a detector's anchors, compared with anchor sizes fitted to these boxes.

Baseline error of a prediction without images: the mean training pose around the reference point.

Range images of a run: coverage of its scans, and the upper bound of the mIoU over points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.areas.detect.task import Detect
from sightline.areas.scans.range_projection import Project
from sightline.compute.geometry.boxes.overlaps import box_sizes
from sightline.compute.geometry.boxes.priors import (
    Priors,
    best_iou_of_boxes,
    fit_anchor_shapes,
    make_anchors,
    prior_coverage,
    prior_extent,
    shape_overlaps,
)
from sightline.compute.geometry.scans.lift import ProjectionSummary
from sightline.compute.geometry.scans.projection import RangeView
from sightline.contract.errors import RunError
from sightline.contract.members import DataMembers
from sightline.contract.types import Batch, ComponentConfig, SampleKey
from sightline.engine.build import Data, DataSubset, TrainingSetup, build_transforms
from sightline.engine.device import to_device
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.describe.memory import Memory, first_samples
from sightline.workbench.describe.sources import DescribedRun
from sightline.workbench.describe.trace import Node, Shape, Trace, source_location, trace

NUM_SAMPLES = 3
"""Number of traced samples: few, enough for batch norm, and rarely the length of another axis."""


def trace_run(built: TrainingSetup) -> Trace:
    """Trace the forward pass of a training step on three samples. Raises RunError naming a module that fails."""
    job = built.job
    num_samples = min(NUM_SAMPLES, built.config.train.batch_size)
    batch = job.stream.reader(first_samples(job, num_samples))
    batch = to_device(batch, job.device, float_dtype=job.precision.parameter_dtype)

    def forward(model: Any) -> None:
        model.train()
        apply_freezing(model, job.frozen, job.epoch)
        compute_batch_losses(job.task, model, batch, job.device, job.precision)

    try:
        return trace(job.model, forward, num_samples=num_samples)
    except RunError as error:
        raise RunError(f"model '{built.config.model.name}', {num_samples} samples: {error}") from error.__cause__


def learnt_losses(built: TrainingSetup) -> list[dict[str, Any]]:
    """List the losses with parameters by their names in `optimizer.groups`: class, location, numbers of parameters."""
    rows = []
    for name, loss in zip(built.job.losses.module_names, built.job.losses.losses.values(), strict=True):
        kind: Any = type(loss)
        file, line = source_location(kind)
        trainable = sum(parameter.numel() for parameter in loss.parameters() if parameter.requires_grad)
        sizes = {"parameters": sum(parameter.numel() for parameter in loss.parameters()), "trainable": trainable}
        rows.append({"path": name, "class": type(loss).__name__, "file": file, "line": line, **sizes})
    return rows


def description_document(
    subject: DescribedRun, traced: Trace, memory: Memory, of_data: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Any]:
    """Build the document of `describe --json`; `of_data` are further tables by name, None ones are left out."""
    return {
        "model": subject.built.config.model.name,
        "modules": [_row(node, traced.num_samples) for node in traced.calls],
        "parameters": traced.parameters,
        "trainable": traced.trainable,
        "macs_per_sample": _per_sample(traced.macs, traced.num_samples),
        **({"losses": rows} if (rows := learnt_losses(subject.built)) else {}),
        "memory": dataclasses.asdict(memory),
        "batch": subject.batch,
        "num_samples": traced.num_samples,
        **{name: dict(table) for name, table in of_data.items() if table is not None},
    }


def _row(node: Node, num_samples: int) -> dict[str, Any]:
    return {
        "path": node.path,
        "class": node.class_name,
        "file": node.defined_in[0],
        "line": node.defined_in[1],
        "call": node.call,
        "depth": node.depth,
        "inputs": _list_shapes(node.inputs),
        "outputs": _list_shapes(node.outputs),
        "output_names": [name for name, _ in node.outputs],
        "parameters": node.parameters,
        "shared_parameters": node.shared,
        "macs": _per_sample(node.macs, num_samples),
    }


def _list_shapes(named: list[tuple[str, Shape]]) -> list[list[int]]:
    return [list(shape) for _, shape in named]


def _per_sample(macs: int, num_samples: int) -> int | float:
    """Divide MACs by samples, as an integer if exact; computations done once per batch give a fraction."""
    return macs // num_samples if macs % num_samples == 0 else macs / num_samples


_MAX_IMAGES = 256


def anchor_coverage(built: TrainingSetup) -> dict[str, Any] | None:
    """Compute the coverage of boxes in training images, without ignored ones; None for a run without anchors.

    `placed` is the best IoU with anchors at their positions, `sizes` that of sizes only, with equal centres; both for
    the config's anchors and for as many `fitted` ones (None if there are fewer distinct boxes), whose `fitted_sizes`
    are by level. `spanned`: the anchors' centres reach every side of the canvas. Source: Redmon and Farhadi 2017.
    """
    task, part = unwrap_distillation(built.job.task), built.data.train
    if not isinstance(task, Detect):
        return None
    images: list[tuple[Priors, Tensor]] = []
    for index in part.evenly_spaced_indices(_MAX_IMAGES):
        batch = part.reader([SampleKey(int(index), 0, built.config.seed)])
        priors = task.get_priors(batch["image"])
        if priors.kind != "anchors":
            return None
        images.append((priors, batch["boxes"][~batch["is_ignored"]].to(priors.coordinates)))
    boxes = torch.cat([image_boxes for _, image_boxes in images])
    sizes, shapes = box_sizes(boxes), _anchor_sizes(priors)
    figures = {
        "num_images": len(images),
        "placed": prior_coverage(torch.cat([best_iou_of_boxes(*image) for image in images]), boxes),
        "sizes": prior_coverage(_best_iou(sizes, shapes), boxes),
        "spanned": prior_extent(priors, height=batch["image"].shape[2], width=batch["image"].shape[3]),
        "fitted_placed": None,
        "fitted": None,
        "fitted_sizes": None,
    }
    if len(sizes.unique(dim=0)) >= shapes[..., 0].numel():
        fitted = fit_anchor_shapes(sizes, shapes[..., 0].numel()).view_as(shapes)
        levels = [[(round(width, 1), round(height, 1)) for width, height in level] for level in fitted.tolist()]
        placed = [
            best_iou_of_boxes(make_anchors(p.maps, p.strides, levels, grid=p.grid), image_boxes)
            for p, image_boxes in images
        ]
        figures["fitted_placed"] = prior_coverage(torch.cat(placed), boxes)
        figures |= {"fitted": prior_coverage(_best_iou(sizes, fitted), boxes), "fitted_sizes": levels}
    return figures


def _anchor_sizes(priors: Priors) -> Tensor:
    """Compute width and height (L, A, 2) of the anchors of one cell on each level."""
    counts = zip(priors.level_slices, priors.priors_per_cell, strict=True)
    return torch.stack([box_sizes(priors.coordinates[level][:count]) for level, count in counts])


def _best_iou(sizes: Tensor, shapes: Tensor) -> Tensor:
    """Compute the best IoU (M,) of box sizes (M, 2) with anchor sizes (L, A, 2) at equal centres."""
    return shape_overlaps(sizes, shapes.flatten(0, 1)).amax(dim=1)


_MAX_SAMPLES = 1000
_CHUNK_SIZE = 16
_REQUIRED_FIELDS = frozenset({"joints", "visible", "reference"})


def mean_pose_error_mm(part: DataSubset, data: Data) -> float | None:
    """Compute the mean distance in mm of the joints of `part` from the mean pose around their reference points.

    The mean pose is computed on up to 1,000 evenly spaced frames of the training split, the error on as many of `part`.
    None for a data set without joints and reference points.
    """
    if not set(part.dataset.info.fields) >= _REQUIRED_FIELDS:
        return None
    total, count = 0.0, 0.0
    for batch in _read_batches(data.train):
        shown = batch["visible"].double()[..., None]
        total = total + ((batch["joints"].double() - _reference(batch)) * shown).sum(dim=0)
        count = count + shown.sum(dim=0)
    pose = total / torch.as_tensor(count).clamp_min(1)
    errors = [
        (batch["joints"].double() - _reference(batch) - pose).norm(dim=-1)[batch["visible"].bool()]
        for batch in _read_batches(part)
    ]
    return float(torch.cat(errors).mean())


def pose_baselines(part: DataSubset, data: Data) -> dict[str, Any]:
    """Return `yardsticks` for an evaluation's document: the error of the mean pose; empty without joints."""
    error_mm = mean_pose_error_mm(part, data)
    if error_mm is None:
        return {}
    return {"yardsticks": {"mean_error_mm": {"the mean pose of the training part": error_mm}}}


def _reference(batch: Batch) -> Tensor:
    return batch["reference"].double()[:, None]


def _read_batches(part: DataSubset) -> Iterator[Batch]:
    """Iterate over batches of evenly spaced raw samples of a subset."""
    chosen = part.evenly_spaced_indices(_MAX_SAMPLES)
    for start in range(0, len(chosen), _CHUNK_SIZE):
        keys = [SampleKey(int(index), 0, 0) for index in chosen[start : start + _CHUNK_SIZE]]
        get_batch = DataMembers.get_batch.get(part.dataset)
        if get_batch is not None:
            yield get_batch(keys)
            continue
        samples = [part.dataset[key] for key in keys]
        yield {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in _REQUIRED_FIELDS}


_MAX_SCANS = 8


def projection_view(stages: Sequence[ComponentConfig], facts: Mapping[str, Any]) -> RangeView | None:
    """Return the view of the transform `project` among these, or None without one."""
    transforms = [transform.apply for transform in build_transforms([s for s in stages if s.name == "project"], facts)]
    return transforms[-1].view if transforms and isinstance(transforms[-1], Project) else None


def projection_summary(built: TrainingSetup) -> dict[str, Any] | None:
    """Compute the ProjectionSummary of a few evaluated scans; None for a run without range images."""
    part = built.data.selection
    facts = part.dataset.info.facts
    view = projection_view(built.config.transforms.evaluate, facts)
    if view is None:
        return None
    summary = ProjectionSummary(view, facts["num_classes"], facts.get("ignore_index"))
    keys = [SampleKey(int(index), 0, built.config.seed) for index in part.evenly_spaced_indices(_MAX_SCANS)]
    for key in keys:
        batch = part.reader([key])
        offsets, ring = batch["whole_offsets"], batch.get("ring")
        summary.add(batch["points"], label=batch.get("whole_label"), offsets=offsets, ring=ring)
    return {"image": [view.height, view.width], "num_scans": len(keys), **summary.figures()}
