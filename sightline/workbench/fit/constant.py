"""Best constant prediction: outputs that are the same for all samples, fitted with the run's own loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.types import Batch
from sightline.engine.batches.sampler import evaluation_keys
from sightline.engine.build import TrainingSetup
from sightline.engine.step import compute_batch_losses, divide_by_count, weighted_sum
from sightline.instrument import record
from sightline.workbench.check.dry_run import isolated_copy
from sightline.workbench.check.sample_statistics import class_axis
from sightline.workbench.fit.samples import evaluation_reader, move_batch

_STEPS = 60


class ConstantPredictor(nn.Module):
    """Model whose outputs are the same for all samples, in the shapes of the given model's outputs.

    Logits of labels have one number for each class, other outputs one for each entry but along the first axis.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.values: dict[str, Tensor] = {}
        self.class_axis: int | None = None
        self._calls: list[dict[str, Any]] | None = []
        self._replayed: Iterator[dict[str, Any]] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self._replayed is None:
            with torch.no_grad():
                outputs = {name: _keep_form(value) for name, value in self.model(*args, **kwargs).items()}
            if self._calls is not None:
                self._calls.append(outputs)
        else:
            outputs = next(self._replayed)
        return {name: self._make_constant(name, value) for name, value in outputs.items()}

    def replay(self) -> None:
        """Return to the first of the calls so far: their outputs need not be computed again."""
        self._replayed = iter(self._calls or ())

    def end_replay(self) -> None:
        """Forget the calls, and keep none from now on: those of other samples are computed."""
        self._calls = self._replayed = None

    def _make_constant(self, name: str, value: Any) -> Any:
        if not _is_replaced(value):
            return value
        if name not in self.values:
            axes = range(1, value.ndim) if name != "logits" or self.class_axis is None else (self.class_axis,)
            shape = [size if axis in axes else 1 for axis, size in enumerate(value.shape)]
            self.values[name] = torch.zeros(shape, dtype=torch.float64, device=value.device, requires_grad=True)
        return self.values[name].to(value.dtype).expand(value.shape)


def fit_constant(built: TrainingSetup, indices: np.ndarray) -> tuple[ConstantPredictor, float]:
    """Fit the constant with the lowest loss on training samples, read as in evaluation; return it and that loss."""
    job = built.job
    model = ConstantPredictor(isolated_copy(job.model).eval())
    reader = evaluation_reader(built)
    keys = evaluation_keys(indices, built.config.evaluate.batch_size, epoch=0, seed=built.config.seed)
    batches = [move_batch(reader(some), job, job.precision) for some in keys]
    model.class_axis = _find_class_axis(built, model.model, batches[0])
    weights = job.loss_weights_at(job.num_steps)

    def total() -> Tensor:
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for batch in batches:
            terms, numbers = compute_batch_losses(job.task, model, batch, job.device, job.precision)
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
                counts[name] = counts.get(name, torch.zeros_like(numbers[name])) + numbers[name]
        return weighted_sum({n: divide_by_count(value.double(), counts[n]) for n, value in sums.items()}, weights)

    seen: list[float] = []

    def closure() -> Tensor:
        model.replay()
        optimizer.zero_grad()
        value = total()
        if value.requires_grad:
            value.backward()
        seen.append(float(value.detach()))
        return value.detach()

    with job.losses.preserve_state():
        total()  # makes the values, in the shapes of the outputs
        optimizer = torch.optim.LBFGS(list(model.values.values()), max_iter=_STEPS, line_search_fn="strong_wolfe")
        with torch.enable_grad():
            optimizer.step(closure)
    model.values = {name: value.detach() for name, value in model.values.items()}
    model.end_replay()
    return model, min(filter(math.isfinite, seen), default=math.nan)


def _find_class_axis(built: TrainingSetup, model: nn.Module, batch: Batch) -> int | None:
    """Find the axis of logits that has one number for each class; None if there is none."""
    job = built.job
    with torch.no_grad(), job.losses.preserve_state(), record({"": model}, keep=("outputs",), convert=None) as tape:
        compute_batch_losses(job.task, model, batch, job.device, job.precision)
    logits, label = tape.outputs[-1].get("logits"), batch.get("label")
    return class_axis(logits, label) if isinstance(logits, Tensor) and isinstance(label, Tensor) else None


def _is_replaced(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0


def _keep_form(value: Any) -> Any:
    """Return a value that is not replaced, and of others one number in their shape: the rest is not needed."""
    return value.new_zeros(()).expand(value.shape) if _is_replaced(value) else value
