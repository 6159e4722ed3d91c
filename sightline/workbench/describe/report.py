"""Description of a model as one document: modules in order, totals, memory, and origin of the batch.

Baseline error of a prediction without images: the mean training pose around the reference point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.contract.errors import RunError
from sightline.contract.members import DataMembers
from sightline.contract.types import Batch, ComponentConfig, SampleKey
from sightline.engine.build import Data, DataSubset, TrainingSetup, build_transforms
from sightline.engine.device import to_device
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.ops.projection import RangeView
from sightline.workbench.describe.memory import Memory, first_samples
from sightline.workbench.describe.sources import DataDescription, DescribedRun
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
    subject: DescribedRun, traced: Trace, memory: Memory, descriptions: Sequence[DataDescription]
) -> dict[str, Any]:
    """Build the document of `describe --json`; `descriptions` are those of the run's data."""
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
        **{description.name: dict(description.document) for description in descriptions},
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


def projection_view(stages: Sequence[ComponentConfig], facts: Mapping[str, Any]) -> RangeView | None:
    """Return the view of the transform `project` among these, or None without one."""
    transforms = [transform.apply for transform in build_transforms([s for s in stages if s.name == "project"], facts)]
    view = getattr(transforms[-1], "view", None) if transforms else None
    return view if isinstance(view, RangeView) else None
