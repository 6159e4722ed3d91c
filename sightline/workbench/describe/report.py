"""Description of a run's model: the trace of a training step's forward pass, and its document."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sightline.contract.errors import RunError
from sightline.contract.types import PrintedTable
from sightline.engine.build import TrainingSetup
from sightline.engine.device.transfer import to_device
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.workbench.describe.trace import Node, Trace, trace

NUM_SAMPLES = 3
"""Number of traced samples: few, enough for batch norm, and rarely the length of another axis."""


class DataDescription(NamedTuple):
    """Description of a run's data that an area adds (`PARTS["descriptions"]`): its key, figures, and lines to print."""

    name: str
    document: Mapping[str, Any]
    lines: list[str | PrintedTable]


def trace_run(built: TrainingSetup) -> Trace:
    """Trace the forward pass of a training step on three samples. Raises RunError naming a module that fails."""
    job = built.job
    num_samples = min(NUM_SAMPLES, built.config.train.num_samples)
    batch = job.stream.reader(job.stream.plan.first_keys(num_samples))
    batch = to_device(batch, job.device, float_dtype=job.precision.parameter_dtype)

    def forward(model: Any) -> None:
        model.train()
        apply_freezing(model, job.frozen, job.epoch)
        compute_batch_losses(job.task, model, batch, job.device, job.precision)

    try:
        return trace(job.model, forward, num_samples=num_samples)
    except RunError as error:
        raise RunError(f"model '{built.config.model.name}', {num_samples} samples: {error}") from error.__cause__


def description_document(built: TrainingSetup, traced: Trace, of_data: Sequence[DataDescription]) -> dict[str, Any]:
    """Build the document of `describe --json`; `of_data` describe the run's data."""
    return {
        "model": built.config.model.name,
        "modules": [_row(call, traced.num_samples) for call in traced.calls],
        "parameters": traced.parameters,
        "trainable": traced.trainable,
        "macs_per_sample": per_sample(traced.macs, traced.num_samples),
        "num_samples": traced.num_samples,
        **{description.name: dict(description.document) for description in of_data},
    }


def _row(call: Node, num_samples: int) -> dict[str, Any]:
    """Return the numbers of a call; the names of its tensors are those of the outputs alone."""
    fields = dataclasses.asdict(call)
    row = {name: fields[name] for name in ("path", "class_name", "call", "depth", "parameters", "shared")}
    shapes = {name: [list(shape) for _, shape in fields[name]] for name in ("inputs", "outputs")}
    names = [name for name, _ in call.outputs]
    return {**row, **shapes, "output_names": names, "macs": per_sample(call.macs, num_samples)}


def per_sample(macs: int, num_samples: int) -> int | float:
    """Divide MACs by samples, as an integer if exact; computations done once per batch give a fraction."""
    return macs // num_samples if macs % num_samples == 0 else macs / num_samples
