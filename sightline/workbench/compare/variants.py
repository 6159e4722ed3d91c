"""Variants of a network: a copy in a number format, on a device, with switches of the backend."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sightline.config.run_config import Cudnn
from sightline.contract.pytree import tree_cast, tree_map
from sightline.contract.types import Batch
from sightline.engine.device.numerics import Precision, cudnn_enabled
from sightline.engine.device.transfer import to_device
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import Step, single_batch_step, weighted_sum, with_prepare
from sightline.engine.train import TrainState
from sightline.instrument import copy_module, preserve_buffers
from sightline.instrument.formats import TF32, Format, get_format, is_tf32_allowed
from sightline.instrument.random_state import preserve_random_state
from sightline.layers.native_batch_norm import disable_cudnn_batch_norm
from sightline.workbench.compare.recording import OverwrittenError, Recorder, StepRecording


@dataclass(frozen=True)
class ModelVariant:
    """Variant of a network; `model` is its own copy, and `on(model)`, if set, is called in its place."""

    name: str
    model: nn.Module
    precision: Precision
    device: torch.device
    cudnn: Cudnn = "on"
    on: Callable[[nn.Module], Any] | None = None

    @cached_property
    def replica(self) -> Any:
        """The callable that computes: the model, or its replacement (cached)."""
        return self.model if self.on is None else self.on(self.model)

    @property
    def format(self) -> Format:
        """Number format of the weights, and of operations that autocast does not lower."""
        return get_format(self.precision.parameter_dtype)

    @property
    def coarsest_format(self) -> Format:
        """Coarsest number format in which an operation may compute."""
        lowered = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision.name)
        if lowered is not None:
            return get_format(lowered)
        switches = (is_tf32_allowed(torch.backends.cudnn, "conv"), is_tf32_allowed(torch.backends.cuda, "matmul"))
        may_round = self.device.type == "cuda" and self.format.name == "float32"
        return TF32 if may_round and any(switches) else self.format

    @property
    def is_lowered(self) -> bool:
        """True if number formats may differ between operations."""
        return self.precision.name in ("bf16", "fp16") or self.device.type == "cuda"

    def batch(self, batch: Batch) -> Batch:
        """Convert a batch to this variant's device and format."""
        converted: Batch = to_device(batch, self.device, float_dtype=self.precision.parameter_dtype)
        return converted


def deterministic_copy(model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Copy a model without dropout, in-place operations and recomputation; its results are otherwise equal.

    Dropout and stochastic depth would draw other numbers in another variant: they are off.
    """
    copied = copy_module(model).to(device, dtype)
    for module in copied.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # stochastic depth is one
            module.p = 0.0
        for switch in ("inplace", "recompute"):
            if getattr(module, switch, False) is True:
                setattr(module, switch, False)
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return copied


def make_variant(model: nn.Module, precision: str, device: torch.device, *, cudnn: Cudnn = "on") -> ModelVariant:
    """Make a variant of a network: a deterministic copy in a number format, on a device, with or without cuDNN."""
    chosen = Precision(precision)
    copied = deterministic_copy(model, dtype=chosen.parameter_dtype, device=device)
    if cudnn == "all_but_batch_norm":
        disable_cudnn_batch_norm(copied)
    return ModelVariant(f"{precision} on {device.type}", copied, chosen, device, cudnn)


def mean_losses(job: TrainState, variant: ModelVariant, batch: Batch, *, step: Step | None = None) -> dict[str, Tensor]:
    """Compute the mean of each loss over the batch and `total`, their weighted sum, as in the training loop.

    The model is in training mode, except its frozen modules.
    """
    step = step or variant_step(job, variant, batch)
    means = step.loss_means(step.loss_sums(variant.replica))
    return {**means, "total": weighted_sum(means, job.loss_weights_at(job.step))}


def record_step(job: TrainState, variant: ModelVariant, batch: Batch) -> StepRecording:
    """Record one training step of a variant, forward and backward, without an update.

    Global random states are preserved. If the model overwrites its own tensors, the step runs again with copies.
    """
    try:
        return _record(job, variant, batch, copies=False)
    except OverwrittenError:
        return _record(job, variant, batch, copies=True)


def _record(job: TrainState, variant: ModelVariant, batch: Batch, *, copies: bool) -> StepRecording:
    variant.model.zero_grad(set_to_none=True)
    recorder = Recorder(variant.model, base=variant.format, watches_formats=variant.is_lowered, copies=copies)
    with preserve_buffers(variant.model), backend_settings(variant, job):
        step = variant_step(job, variant, batch)
        prepared = tree_map(prepared_values(step), lambda _, tensor: tensor.detach().clone())
        with recorder.recording():
            losses = mean_losses(job, variant, batch, step=step)
        recorder.assert_whole()
        if losses["total"].requires_grad:
            losses["total"].backward()
        recorder.assert_whole()
    gradients = {name: p.grad for name, p in variant.model.named_parameters() if p.grad is not None}
    variant.model.zero_grad(set_to_none=True)
    values = {name: value.detach() for name, value in losses.items()}
    return StepRecording(recorder.calls, values, gradients, recorder.outside, prepared)


@contextlib.contextmanager
def backend_settings(variant: ModelVariant, job: TrainState) -> Iterator[None]:
    """Set the backend switches of the variant, and take losses that learn to its device.

    Random states are restored afterwards, and the losses go back.
    """
    devices = [variant.device] if variant.device.type == "cuda" else []
    with preserve_random_state(), torch.random.fork_rng(devices), cudnn_enabled(variant.cudnn), torch.enable_grad():
        job.losses.to(variant.device)
        try:
            yield
        finally:
            job.losses.to(job.device)


def prepare_in_format(job: TrainState, format_: Format) -> TrainState:
    """Return the job with a task that prepares steps in a variant's format and returns the results in float64."""

    def prepare(original: Callable[..., Any], model: Any, micro_batches: Sequence[Batch], world: Any) -> Any:
        floats = torch.float64 if format_.name == "float64" else torch.float32
        narrow = [to_device(batch, world.device, float_dtype=floats) for batch in micro_batches]
        prepared = original(model, narrow, world)
        return tree_cast(prepared, torch.float64)

    decided = copy.copy(job)
    decided.task = with_prepare(job.task, prepare)
    return decided


def prepared_values(step: Step) -> tuple[dict[str, Tensor], list[Any]]:
    """Return the values that the task prepared for a step: counts, and the context of each micro-batch."""
    return dict(step.counts), list(step.contexts)


def variant_step(job: TrainState, variant: ModelVariant, batch: Batch) -> Step:
    """Prepare a batch as a step of the variant, in training mode."""
    variant.model.train()
    apply_freezing(variant.model, job.frozen, job.epoch)
    return single_batch_step(job.task, variant.replica, batch, variant.device, variant.precision)
