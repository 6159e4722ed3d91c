"""Comparison of a compiled network with the eager one: as a whole, and by bisection if it differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sightline.compare.layerwise import LayerComparison, compare_layerwise
from sightline.compare.recording import ModuleCall, StepRecording
from sightline.compare.variants import ModelVariant, deterministic_copy, record_step
from sightline.engine.train import TrainState
from sightline.types import Batch

__all__ = ["bisect_layers", "compare_compiled"]


def compare_compiled(
    job: TrainState, variant: ModelVariant, reference: ModelVariant, batch: Batch
) -> tuple[list[LayerComparison], list[str]]:
    """Compare the compiled network as a whole; if rows are guilty, find the layer whose compiling causes it.

    Returns the rows, and notes. A compiled network has no layers to inspect. So layers are taken out of the compiled
    part, the first half of the candidates each time, until one layer remains whose compiling makes the difference.
    """
    order = [call.path for call in record_step(job, variant, variant.batch(batch)).calls if call.path]
    layers = [path for path in dict.fromkeys(order) if not any(other.startswith(f"{path}.") for other in order)]

    def rows_with(eager: Sequence[str]) -> list[LayerComparison]:
        return _compare_with_eager(job, variant, reference, batch, eager)

    rows = rows_with([])
    if not any(row.is_guilty for row in rows):
        return rows, ["the compiled network was compared as a whole"]
    first = bisect_layers(layers, lambda eager: any(row.is_guilty for row in rows_with(eager)))
    notes = [f"uncompiled up to {first}, the network agrees; with {first} compiled it does not"] if first else []
    named_rows = [row if first is None else _with_layer(row, first) for row in rows]
    return named_rows, notes


def bisect_layers(layers: Sequence[str], is_guilty: Callable[[Sequence[str]], bool]) -> str | None:
    """Find the last layer of the shortest eager prefix with which the network agrees; None if no prefix helps.

    `is_guilty(prefix)` returns True if the network still deviates with these layers eager. Source: bisection.
    """
    if not layers or is_guilty(layers):
        return None
    low, high = 0, len(layers)  # with the first `low` it deviates, with the first `high` it does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_guilty(layers[:middle]) else (low, middle)
    return layers[high - 1]


def _compare_with_eager(
    job: TrainState, variant: ModelVariant, reference: ModelVariant, batch: Batch, eager: Sequence[str]
) -> list[LayerComparison]:
    model = deterministic_copy(variant.model, dtype=variant.precision.parameter_dtype, device=variant.device)
    modules = dict(model.named_modules())
    for path in eager:
        modules[path].forward = torch.compiler.disable(modules[path].forward)
    compiled = ModelVariant(
        "compiled", _Whole(model), variant.precision, variant.device, variant.cudnn, inner="network._orig_mod"
    )
    recording = record_step(job, compiled, compiled.batch(batch), hooked=[""])
    calls = [_rename_buffers(call) for call in recording.calls]
    gradients = {name.removeprefix("network._orig_mod."): g for name, g in recording.gradients.items()}
    plain = StepRecording(calls, recording.losses, gradients, recording.format, prepared=recording.prepared)
    torch.compiler.reset()
    return compare_layerwise(plain, reference, job, reference.batch(compiled.batch(batch)))


class _Whole(nn.Module):
    """Compiled network with the model's call signature."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = torch.compile(model)

    def forward(self, **inputs: Any) -> Any:
        return self.network(**inputs)


def _rename_buffers(call: ModuleCall) -> ModuleCall:
    call.buffers = {name.removeprefix("network._orig_mod."): values for name, values in call.buffers.items()}
    return call


def _with_layer(row: LayerComparison, layer: str) -> LayerComparison:
    return replace(row, layer=layer) if row.is_guilty else row
