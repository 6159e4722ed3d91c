"""Layers of one training step: statistics of every output and of its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sightline.describe.flow import tree_leaves
from sightline.describe.trace import trace
from sightline.doctor.core.dry_run import forward_backward, isolated_copy
from sightline.doctor.overfit.fit_attempt import FitSetup
from sightline.engine.step import divide_by_count
from sightline.engine.train import TrainState

__all__ = ["LayerSnapshot", "ModelSnapshot", "Statistics", "snapshot"]


@dataclass
class Statistics:
    """Statistics of a tensor: range, mean, standard deviation, share of zeros, and the norm of its gradient.

    `grad_norm` is None if the tensor received no gradient.
    """

    min: float
    max: float
    mean: float
    std: float
    zeros: float
    grad_norm: float | None = None


@dataclass(frozen=True)
class LayerSnapshot:
    """One call of a module: its output, and the gradient of its own trainable parameters (None without any)."""

    path: str
    class_name: str
    call: int
    depth: int
    shape: tuple[int, ...]
    output: Statistics
    weights_grad_norm: float | None
    is_leaf: bool


@dataclass(frozen=True)
class ModelSnapshot:
    """Model after `step` updates: its losses on the samples, its layers in order, and its outputs."""

    step: int
    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    layers: tuple[LayerSnapshot, ...]
    outputs: Mapping[str, Statistics] = field(default_factory=dict)


def snapshot(bench: FitSetup, job: TrainState, step: int) -> ModelSnapshot:
    """Run forward and backward passes of a copy, and collect statistics of every module's floating-point output.

    If a module returns several tensors, the first counts. The model, its buffers and the random states do not change.
    """
    statistics: dict[tuple[str, int], Statistics] = {}
    outputs: dict[str, Statistics] = {}
    results: dict[str, Any] = {}
    batch = bench.batch_in(job.precision.name)

    def forward(copied: nn.Module) -> None:
        counts: dict[str, int] = {}
        handles = [
            module.register_forward_hook(_make_output_hook(path, counts, statistics, outputs))
            for path, module in copied.named_modules()
        ]
        try:
            sums, counts_by_loss = forward_backward(job, copied, [batch], bench.device)
        finally:
            for handle in handles:
                handle.remove()
        results.update(
            model=copied,
            terms={name: float(divide_by_count(sums[name].detach(), counts_by_loss[name])) for name in sums},
        )

    traced = trace(isolated_copy(job.model), forward, num_samples=len(batch["sample_index"]))
    weight_norms = {path: _parameter_grad_norm(module) for path, module in results["model"].named_modules()}
    parents = {node.parent for node in traced.nodes if node.kind == "call"}
    layers = tuple(
        LayerSnapshot(
            path=node.path,
            class_name=node.class_name,
            call=node.call,
            depth=node.depth,
            shape=node.outputs[0][1] if node.outputs else (),
            output=statistics[node.path, node.call],
            weights_grad_norm=weight_norms[node.path],
            is_leaf=index not in parents,
        )
        for index, node in enumerate(traced.nodes)
        if node.kind == "call" and (node.path, node.call) in statistics
    )
    weights = job.loss_weights_at(step)
    loss = math.fsum(weights[name] * value for name, value in results["terms"].items())
    norms = [p.grad.norm().item() for p in results["model"].parameters() if p.grad is not None]
    return ModelSnapshot(step, loss, results["terms"], math.hypot(*norms) if norms else 0.0, layers, outputs)


def _make_output_hook(
    path: str, counts: dict[str, int], statistics: dict[tuple[str, int], Statistics], outputs: dict[str, Statistics]
) -> Callable[..., None]:
    """Return a hook that measures a module's output before later code can change it in place."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        counts[path] = counts.get(path, 0) + 1
        floats = [
            (name, tensor) for name, tensor in tree_leaves(output) if tensor.is_floating_point() and tensor.numel()
        ]
        for index, (name, tensor) in enumerate(floats):
            if index and path:
                break
            measured = _compute_statistics(tensor)
            if tensor.requires_grad:
                tensor.register_hook(_make_gradient_hook(measured))
            if not index:
                statistics[path, counts[path]] = measured
            if not path:
                outputs[name] = measured

    return hook


def _compute_statistics(tensor: Tensor) -> Statistics:
    values = tensor.detach().double()
    return Statistics(
        min=float(values.min()),
        max=float(values.max()),
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        zeros=float((values == 0).double().mean()),
    )


def _make_gradient_hook(statistics: Statistics) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        previous = statistics.grad_norm or 0.0
        statistics.grad_norm = math.hypot(previous, float(gradient.double().norm()))

    return hook


def _parameter_grad_norm(module: nn.Module) -> float | None:
    """Return the gradient norm of a module's own parameters; None if none of them is trainable."""
    parameters = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
    if not parameters:
        return None
    return math.hypot(*(0.0 if p.grad is None else float(p.grad.double().norm()) for p in parameters))
