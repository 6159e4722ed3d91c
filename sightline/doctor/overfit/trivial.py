"""Best constant prediction: one output for all samples, fitted with the run's own loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.doctor.core.class_axes import class_axis
from sightline.doctor.core.dry_run import isolated_copy
from sightline.engine.build import TrainingSetup
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.step import compute_batch_losses, prepare_step, weighted_sum
from sightline.types import Batch

__all__ = ["ConstantPredictor", "fit_constant"]

_STEPS = 60


class ConstantPredictor(nn.Module):
    """Model whose outputs `values` are the same for all samples, in the shapes of the given model's outputs.

    Logits of labels have one number per class; other outputs one number per entry, except along the first axis.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.values: dict[str, Tensor] = {}
        self.axes: dict[str, tuple[int, ...]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            outputs = self.model(*args, **kwargs)
        constants = {}
        for name, value in outputs.items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
                constants[name] = self._get_constant(name, value).to(value.dtype).expand(value.shape)
            else:
                constants[name] = value
        return constants

    def _get_constant(self, name: str, like: Tensor) -> Tensor:
        if name not in self.values:
            axes = self.axes.get(name, tuple(range(1, like.ndim)))
            shape = [size if axis in axes else 1 for axis, size in enumerate(like.shape)]
            self.values[name] = like.new_zeros(shape, dtype=torch.float64).requires_grad_()
        return self.values[name]


def fit_constant(built: TrainingSetup, batches: Sequence[Batch]) -> ConstantPredictor:
    """Fit the constant with the lowest loss on these batches."""
    job, device = built.job, built.job.device
    model = ConstantPredictor(isolated_copy(job.model).eval())
    device_batches = [to_device(batch, device, float_dtype=job.precision.parameter_dtype) for batch in batches]
    world = World(device=device)
    _find_axes(built, model, device_batches[0])
    weights = job.loss_weights_at(job.num_steps)

    def total() -> Tensor:
        step = prepare_step(job.task, model, device_batches, world)
        sums: dict[str, Tensor] = {}
        for index in range(len(device_batches)):
            for name, term in step.loss_sums(model, index).items():
                sums[name] = sums[name] + term if name in sums else term
        return weighted_sum({name: value.double() for name, value in step.loss_means(sums).items()}, weights)

    total()  # makes the values, in the shapes of the outputs
    optimizer = torch.optim.LBFGS(list(model.values.values()), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = total()
        if value.requires_grad:
            value.backward()
        return value.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    model.values = {name: value.detach() for name, value in model.values.items()}
    return model


def _find_axes(built: TrainingSetup, model: ConstantPredictor, batch: Batch) -> None:
    """Find the class axis of logits, the only one along which their constant varies; sets `model.axes`."""
    job = built.job
    outputs_seen: list[Mapping[str, Any]] = []
    handle = model.model.register_forward_hook(lambda module, inputs, outputs: outputs_seen.append(outputs))
    with torch.no_grad():
        compute_batch_losses(job.task, model, batch, job.device)
    handle.remove()
    model.values.clear()
    logits, label = outputs_seen[-1].get("logits"), batch.get("label")
    if isinstance(logits, Tensor) and isinstance(label, Tensor) and (axis := class_axis(logits, label)) is not None:
        model.axes["logits"] = (axis,)
