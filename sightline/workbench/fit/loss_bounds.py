"""Losses that need no network: of its first outputs, of the best outputs, and of the best that ignore the input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.pytree import ReadTrackingDict
from sightline.contract.types import Batch
from sightline.engine.build import TrainingSetup
from sightline.engine.device import Precision
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import TrainState
from sightline.instrument import record
from sightline.workbench.check.dry_run import isolated_copy
from sightline.workbench.check.loss_subjects import RunLoss
from sightline.workbench.check.sample_statistics import class_axis
from sightline.workbench.fit.samples import move_batch

_STEPS = 150
_NOISE = 0.1
FITTED = 0.1
"""Share of the way from constants to the floor that is left when samples count as fitted."""
_MIN_GAIN = 0.01
"""Share of the way from the first loss to the floor that outputs must gain on constants: less is no question."""
_UNBOUNDED_FACTOR = 1e3
"""A loss this many times its initial size below zero, and still falling in proportion, has no floor."""


@dataclass(frozen=True)
class LossBounds:
    """Losses of a batch in float64: of the first outputs, of the best constants, and of the best outputs.

    A constant has one number for each class or channel, at all places of all samples. `floor` is None if the loss falls
    without bound.
    """

    start: float
    constant: float
    floor: float | None

    @property
    def is_question(self) -> bool:
        """True if the best outputs are better than constants: else a bias alone fits these samples."""
        return self.floor is not None and self.constant - self.floor > _MIN_GAIN * abs(self.start - self.floor)

    @property
    def goal(self) -> float:
        """Loss at which samples count as fitted: a tenth of the way to the floor is left, from the better start.

        That is the loss of constants, or of the first outputs if it is lower. Source of the tenth: the pass rule of an
        over-fitted sample. NaN without a floor.
        """
        if self.floor is None:
            return math.nan
        start = min(self.start, self.constant) if self.is_question else self.start
        return self.floor + FITTED * (start - self.floor)

    def is_stuck(self, loss: float) -> bool:
        """Return True for a loss as far above the floor as that of the best constants, to a fifth."""
        return self.floor is not None and abs(loss - self.constant) < 0.2 * (self.constant - self.floor)

    def describe(self) -> str:
        """Describe the losses in one line."""
        floor = "no lower bound is known" if self.floor is None else f"the best outputs {self.floor:.4g}"
        return f"initial loss {self.start:.4g}; the best constants reach {self.constant:.4g}, {floor}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        losses = dataclasses.asdict(self)
        return {name: value if value is not None and math.isfinite(value) else None for name, value in losses.items()}


def copy_without_dropout(job: TrainState) -> nn.Module:
    """Copy a job's model without dropout, and without collectives of processes."""
    model = isolated_copy(job.model)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def measure_bounds(built: TrainingSetup, batch: Batch) -> LossBounds:
    """Measure the losses of a run on a batch, with outputs as free float64 variables in place of the model's."""
    job, precision = built.job, Precision("float64")
    loss = RunLoss(job, step=job.num_steps, precision=precision)
    with torch.no_grad():
        outputs = _run_model(job, batch)
    batch = move_batch(batch, job, precision)
    free = {
        name: value.detach().double().contiguous()
        for name, value in outputs.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    tracked = ReadTrackingDict({**outputs, **free})
    start = float(loss(tracked, batch).detach())
    read = {name: free[name] for name in sorted(tracked.read & free.keys())}
    bounds = partial(LossBounds, start)
    if not read or not math.isfinite(start):
        return bounds(start, None)
    total = partial(_evaluate, loss, {**outputs, **free}, batch)
    floor = _minimise(total, read)
    if floor is None and all(float(value.min()) >= 0 for value in read.values()):  # distances do not fall below 0
        floor = _minimise(lambda given: total({n: v.abs() for n, v in given.items()}), read)
    means = {name: _average(name, value, batch) for name, value in read.items()}
    constant = _minimise(lambda given: total({n: v.expand(read[n].shape) for n, v in given.items()}), means)
    return bounds(start if constant is None else constant, floor if floor is None else min(floor, start))


def _run_model(job: TrainState, batch: Batch) -> Mapping[str, Any]:
    """Run a copy of the model on the batch, in training mode, and return its outputs."""
    model = copy_without_dropout(job).train()
    apply_freezing(model, job.frozen, 0)
    with record({"": model}, keep=("outputs",), each=None) as tape:
        compute_batch_losses(job.task, model, move_batch(batch, job, job.precision), job.device, job.precision)
    outputs: Mapping[str, Any] = tape.outputs[-1]
    return outputs


def _evaluate(loss: RunLoss, fixed: Mapping[str, Any], batch: Batch, outputs: Mapping[str, Tensor]) -> Tensor:
    return loss({**fixed, **outputs}, batch)


def _average(name: str, output: Tensor, batch: Batch) -> Tensor:
    """Average outputs over everything but their classes or channels: axis 1 of maps and volumes, else the last one."""
    label = batch.get("label")
    axis = class_axis(output, label) if name == "logits" and isinstance(label, Tensor) else None
    if axis is None and output.ndim > 1:
        axis = 1 if output.ndim > 3 else output.ndim - 1
    others = [other for other in range(output.ndim) if other != axis]
    return output.mean(dim=others, keepdim=True) if others else output


def _minimise(total: Callable[[Mapping[str, Tensor]], Tensor], outputs: Mapping[str, Tensor]) -> float | None:
    """Minimise a loss over free numbers, from a little beside the given ones; None if it falls without bound."""
    generator = torch.Generator().manual_seed(0)
    leaves = {}
    for name, value in outputs.items():  # equal rows would keep equal gradients
        size = float(value.std()) if value.numel() > 1 else 0.0
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
        leaves[name] = (value + _NOISE * (size or 1.0) * noise).detach().requires_grad_()
    optimizer = torch.optim.LBFGS(
        list(leaves.values()),
        max_iter=_STEPS,
        history_size=5,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    seen: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = total(leaves)
        if value.requires_grad:
            value.backward()
        seen.append(float(value.detach()))
        return value.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    best, size = min(filter(math.isfinite, seen), default=math.nan), max(1.0, abs(seen[0]))
    ways = {name: leaf.detach() - outputs[name] for name, leaf in leaves.items()}
    with torch.no_grad():
        near, far = (float(total({n: v + by * ways[n] for n, v in outputs.items()})) for by in (1e4, 1e5))
    falls = far < -_UNBOUNDED_FACTOR * size and far < 2 * near
    return None if falls or not best > -1e6 * size else best
