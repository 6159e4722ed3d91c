"""Detection of modules that compute in a coarser number format than their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.describe.flow import tree_leaves
from sightline.doctor.core.dry_run import forward_backward
from sightline.doctor.overfit.fit_attempt import FitSetup, prepare_model
from sightline.engine.precision import Precision

__all__ = ["Lowered", "find_lowered"]


class Lowered(NamedTuple):
    """Module whose results have fewer bits than its parameters, and their dtype."""

    layer: str
    dtype: str


class _FormatWatch(TorchDispatchMode):
    """Mode that records the first result with fewer than `bits` bits, and the module that computed it."""

    def __init__(self, model: nn.Module, bits: int) -> None:
        super().__init__()
        self.lowered: Lowered | None = None
        self._bits = bits
        self._stack: list[str] = []
        self.handles: list[Any] = []
        for name, module in model.named_modules():
            self.handles.append(module.register_forward_pre_hook(lambda *_, at=name: self._stack.append(at)))
            self.handles.append(module.register_forward_hook(self._leave))

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.lowered is None:
            for _, tensor in tree_leaves(result):
                if tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < self._bits:
                    self.lowered = Lowered(
                        self._stack[-1] if self._stack else "", str(tensor.dtype).removeprefix("torch.")
                    )
        return result


def find_lowered(bench: FitSetup, precision: str) -> Lowered | None:
    """Find the first module of a training step that computes in a coarser format than its parameters; else None."""
    model = prepare_model(bench, precision)
    watch = _FormatWatch(model, torch.finfo(Precision(precision).parameter_dtype).bits)
    try:
        with watch:
            forward_backward(bench.built.job, model, [bench.batch_in(precision)], bench.device)
    finally:
        for handle in watch.handles:
            handle.remove()
    return watch.lowered
