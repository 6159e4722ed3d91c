"""Small plain programs with a bug, and without; `make(bug)` gives a model, its loss, its data, and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, TensorDataset

Make = Callable[[bool], tuple[Any, ...]]
Cases = dict[str, tuple[str, Make]]
"""Causes one of which a finding must name, and the program, by its name."""


def load(*tensors: Any, size: int = 16, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), size, **{"shuffle": "sampler" not in options, **options})
