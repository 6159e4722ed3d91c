"""Description of a model as one document: modules in order, totals, memory, and origin of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sightline.describe.memory import Memory, first_samples
from sightline.describe.sources import DescribedRun
from sightline.describe.trace import Node, Shape, Trace, source_location, trace
from sightline.engine.build import TrainingSetup
from sightline.engine.device import to_device
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.errors import RunError

__all__ = ["description_document", "learnt_losses", "trace_run"]

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
