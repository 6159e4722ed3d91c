"""Passes of a copy of the model in evaluation mode, on the recorded inputs of the first step or on changed ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import is_float, tree_cast, tree_leaves, tree_map
from sightline.engine.device import seed_torch
from sightline.instrument import ModuleCall, record
from sightline.instrument.float64 import Float64Convolutions
from sightline.ops.numba_kernels import compute_seconds
from sightline.workbench.check.core.dry_run import isolated_copy

QUICK_S = 0.05
"""Processor time of the passes that a rule may take before each training; `sightline check` has no limit."""


class ModelProbe:
    """Copy of a model in evaluation mode, with inputs of its forward by parameter."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any], *, is_double: bool = False) -> None:
        self.source = model
        self.inputs: dict[str, Any] = tree_cast(inputs, torch.float64) if is_double else dict(inputs)
        self._is_double = is_double

    @cached_property
    def model(self) -> nn.Module:
        """The copy, made on first use."""
        model = isolated_copy(self.source).eval()
        return model.double() if self._is_double else model

    def outputs(self, changed: Mapping[str, Any] | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """Return the tensors among the outputs by path, with some inputs `changed`; random numbers are of the seed."""
        seed_torch(seed)
        inputs = tree_map({**self.inputs, **(changed or {})}, lambda _, tensor: tensor.clone())
        with torch.no_grad(), Float64Convolutions():
            return dict(tree_leaves(self.model(**inputs)))

    def draws(self) -> list[tuple[str, str]]:
        """Run a pass, and return layer and operator of each draw of random numbers in it."""
        draws: list[tuple[str, str]] = []

        def note(call: ModuleCall | None, operator: Any, *_: Any) -> None:
            if torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ()):
                draws.append((call.path if call is not None else "", operator.name()))

        with record(self.model, operators=note):
            self.outputs()
        return draws

    def scales_draws(self) -> bool:
        """Return True if a pass multiplies what it draws by a tensor of other numbers: by a computed spread."""
        drawn: list[Tensor] = []
        scaled: list[bool] = []

        def note(call: ModuleCall | None, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
            if torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ()) and isinstance(result, Tensor):
                drawn.append(result)
            elif operator.name().startswith("aten::mul") and len(args) > 1:
                is_drawn = [
                    isinstance(value, Tensor) and any(value.data_ptr() == draw.data_ptr() for draw in drawn)
                    for value in args[:2]
                ]
                others = [v for v, is_own in zip(args, is_drawn, strict=False) if not is_own and isinstance(v, Tensor)]
                scaled.append(any(is_drawn) and any(other.numel() > 1 for other in others))

        with record(self.model, operators=note):
            self.outputs()
        return any(scaled)

    def changed_by(self, changed: Mapping[str, Any]) -> list[str] | None:
        """Name the outputs that changed inputs change by a bit; None if the copy rejects these inputs."""
        try:
            return differing(self.outputs(), self.outputs(changed))
        except Exception:  # noqa: BLE001 - a network may reject inputs by any error
            return None

    def measure(self) -> float:
        """Return the processor time of a pass, of the second if the first is quick; infinite if the copy fails."""
        seconds = 0.0
        for _ in range(2):
            start_seconds = compute_seconds()
            try:
                self.outputs()
            except Exception:  # noqa: BLE001 - a network may reject a batch in evaluation mode
                return math.inf
            seconds = compute_seconds() - start_seconds
            if seconds > 4 * QUICK_S:
                break
        return seconds

    def is_steady(self) -> bool:
        """Return True if the copy runs, and its outputs depend on no seed."""
        try:
            return not (self.draws() and differing(self.outputs(), self.outputs(seed=1)))
        except Exception:  # noqa: BLE001 - a network may support one number format only
            return False

    def projected_rows(self, changed: Mapping[str, Any]) -> tuple[list[ProjectedRows], dict[str, Tensor]]:
        """Return the inputs and outputs of each layer of torch with channels, in the order of calls, and the outputs.

        The channels at each place are projected to one number, by a fixed random direction.
        """
        rows: list[ProjectedRows] = []

        def note(call: ModuleCall, module: nn.Module, *values: Any) -> None:
            value = values[-1] if len(values) == 2 else next(iter((*values[0][0], *values[0][1].values())), None)
            axis = _channel_axis(module)
            if isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point() and axis is not None:
                text = f"the {'output' if len(values) == 2 else 'input'} of '{call.name}'"
                rows.append(ProjectedRows(text, call.path, project(value, axis), is_result=len(values) == 2))

        layers = {name: m for name, m in self.model.named_modules() if _channel_axis(m) is not None}
        with record(layers, enter=note, leave=note):
            outputs = self.outputs(changed)
        return rows, outputs


class ProjectedRows(NamedTuple):
    """Input of a layer, or its result, without the axis of channels: one number at each place."""

    text: str
    layer: str
    values: Tensor
    is_result: bool = False


def project(value: Tensor, axis: int) -> Tensor:
    """Project the channels at each place to a fixed random direction."""
    direction = torch.randn(value.shape[axis], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return value.detach().movedim(axis, -1) @ direction.to(value)


def float_tensors(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """List the floating-point tensors among the inputs."""
    for name, value in inputs.items():
        if is_float(value) and value.numel():
            yield name, value


def find_cloud(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """Return the path of the input (B, N, C) or (M, C) that is a set of points; None without one.

    It is `points`; the adapter of a plain module, which does not call it so, has a method of this name.
    """
    if "points" in inputs:
        return "points"
    find: Callable[[Mapping[str, Any]], str | None] = getattr(model, "find_cloud", lambda inputs: None)
    return find(inputs)


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Name the outputs that differ in a bit, or in shape, between two passes; NaN equals NaN."""
    return [name for name, value in first.items() if name in second and not _is_equal(value, second[name])]


def _is_equal(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


def _channel_axis(module: nn.Module) -> int | None:
    """Return the axis of the channels in the inputs and outputs of a layer of torch; None if the layer has none."""
    if isinstance(module, nn.Linear | nn.LayerNorm):
        return -1
    is_second = isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
    return 1 if is_second else None
