"""Wrong backward passes of the oracles' own table, each as a layer of a small network that a user might check."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.doctor.oracles.power import HEALTHY, PLANTED, _Given
from tests.runtime.healthy_loops import batches


class Derived(nn.Module):
    """Linear layer whose weight is derived from a parameter by a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.values = function, nn.Parameter(torch.randn(shape))
        self.base = nn.Parameter(torch.randn(24, 4) / 5)

    def forward(self, rows: Tensor) -> Tensor:
        derived = self.function(self.values).flatten()
        scale = derived.repeat(-(-96 // len(derived)))[:96].view(24, 4)
        return rows @ (self.base * (1 + scale / (1 + scale.detach().abs().max())))


def _make(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[nn.Module, Any, Any]:
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), Derived(function, shape))
    return model, F.cross_entropy, next(batches(1, size=32))


def _slip(name: str, bug: bool) -> tuple[nn.Module, Any, Any]:
    planted = PLANTED[name]
    shape = next(shape for shape in planted.shapes if shape != (1,))
    return _make((lambda values: _Given.apply(values, planted)) if bug else planted.forward, shape)


def _hold(name: str, *, right: bool) -> tuple[nn.Module, Any, Any]:
    return _make(HEALTHY[name], (64,))


ORACLES: dict[str, Callable[..., tuple[nn.Module, Any, Any]]] = {
    **{name: partial(_slip, name) for name in PLANTED},
    **{f"right/{name}": partial(_hold, name) for name in HEALTHY},
}
