"""A step taken apart: what every layer gives for the samples, and the gradient that comes back to it."""

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
    """Of a tensor's numbers: range, mean, standard deviation, the share that is 0; and the norm of its gradient.

    `grad_norm` is None where no gradient came back.
    """

    min: float
    max: float
    mean: float
    std: float
    zeros: float
    grad_norm: float | None = None


@dataclass(frozen=True)
class LayerSnapshot:
    """The call of a module: what it gave, and the gradient of its own parameters where it has some that learn."""

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
    """A model after `step` updates: its losses on the samples, its layers in order, and the outputs."""

    step: int
    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    layers: tuple[LayerSnapshot, ...]
    outputs: Mapping[str, Statistics] = field(default_factory=dict)


def snapshot(bench: FitSetup, job: TrainState, step: int) -> ModelSnapshot:
    """Forward and backward passes of a copy, with every floating tensor that a module gives looked at.

    Of a module that gives several, the first counts. The model, its buffers and the random states stay as they are.
    """
    seen: dict[tuple[str, int], Statistics] = {}
    outputs: dict[str, Statistics] = {}
    kept: dict[str, Any] = {}
    batch = bench.batch_in(job.precision.name)

    def forward(copied: nn.Module) -> None:
        counts: dict[str, int] = {}
        handles = [
            module.register_forward_hook(_watch(path, counts, seen, outputs)) for path, module in copied.named_modules()
        ]
        try:
            sums, found = forward_backward(job, copied, [batch], bench.device)
        finally:
            for handle in handles:
                handle.remove()
        kept.update(
            model=copied, terms={name: float(divide_by_count(sums[name].detach(), found[name])) for name in sums}
        )

    traced = trace(isolated_copy(job.model), forward, num_samples=len(batch["sample_index"]))
    own = {path: _own_gradient(module) for path, module in kept["model"].named_modules()}
    around = {node.parent for node in traced.nodes if node.kind == "call"}
    layers = tuple(
        LayerSnapshot(
            path=node.path,
            class_name=node.class_name,
            call=node.call,
            depth=node.depth,
            shape=node.outputs[0][1] if node.outputs else (),
            output=seen[node.path, node.call],
            weights_grad_norm=own[node.path],
            is_leaf=place not in around,
        )
        for place, node in enumerate(traced.nodes)
        if node.kind == "call" and (node.path, node.call) in seen
    )
    weights = job.loss_weights_at(step)
    loss = math.fsum(weights[name] * value for name, value in kept["terms"].items())
    norms = [p.grad.norm().item() for p in kept["model"].parameters() if p.grad is not None]
    return ModelSnapshot(step, loss, kept["terms"], math.hypot(*norms) if norms else 0.0, layers, outputs)


def _watch(
    path: str, counts: dict[str, int], seen: dict[tuple[str, int], Statistics], outputs: dict[str, Statistics]
) -> Callable[..., None]:
    """A hook that looks at what a module gives before anything later can change it in place."""

    def hook(module: nn.Module, args: Any, given: Any) -> None:
        counts[path] = counts.get(path, 0) + 1
        floats = [
            (name, tensor) for name, tensor in tree_leaves(given) if tensor.is_floating_point() and tensor.numel()
        ]
        for place, (name, tensor) in enumerate(floats):
            if place and path:
                break
            found = _statistics(tensor)
            if tensor.requires_grad:
                tensor.register_hook(_keep_norm(found))
            if not place:
                seen[path, counts[path]] = found
            if not path:
                outputs[name] = found

    return hook


def _statistics(tensor: Tensor) -> Statistics:
    values = tensor.detach().double()
    return Statistics(
        min=float(values.min()),
        max=float(values.max()),
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        zeros=float((values == 0).double().mean()),
    )


def _keep_norm(found: Statistics) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        before = found.grad_norm or 0.0
        found.grad_norm = math.hypot(before, float(gradient.double().norm()))

    return hook


def _own_gradient(module: nn.Module) -> float | None:
    """The norm of the gradient of a module's own parameters; None where none of them learns."""
    own = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
    if not own:
        return None
    return math.hypot(*(0.0 if p.grad is None else float(p.grad.double().norm()) for p in own))
