"""Numeric leaves of a nested sample, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.pytree import join_path, tree_children


def array_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the path and tensor of every number or array in nested dicts, lists, tuples and dataclasses; not text."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            yield path, torch.from_numpy(value.copy())
    elif isinstance(value, np.generic):
        yield from array_leaves(np.asarray(value), path)
    elif isinstance(value, bool | int | float):
        yield path, torch.as_tensor(value)
    else:
        for name, item in tree_children(value):
            yield from array_leaves(item, join_path(path, name))


def as_bytes(value: np.ndarray | Tensor) -> np.ndarray:
    """View or copy the bytes of an array, or of a tensor on any device, as one uint8 array."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
