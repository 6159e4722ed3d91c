"""Counts the places where a step would wait for a GPU, on a CPU."""

from __future__ import annotations

import collections
import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.compute import numba_kernels

_WAITING = {
    "aten::_local_scalar_dense",
    "aten::bincount",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::_unique2",
}
"""Operations whose result the host reads, or whose output has a size that only the device knows."""
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}
_READING = {"__array__", "cpu", "numpy", "tolist"}


@contextlib.contextmanager
def counted_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[collections.Counter[str]]:
    """Count waits inside the block by operation and place; without compiled CPU kernels, as on a GPU."""
    waits: collections.Counter[str] = collections.Counter()
    with monkeypatch.context() as patch:
        patch.setattr(numba_kernels, "_has_numba", lambda: False)
        with _Operations(waits), _Readings(waits):
            yield waits


class _Operations(TorchDispatchMode):
    def __init__(self, waits: collections.Counter[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split(".")[0]
        has_mask = name in _INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        if name in _WAITING or has_mask:
            self._waits[_locate(name)] += 1
        return function(*args, **(kwargs or {}))


class _Readings(TorchFunctionMode):
    def __init__(self, waits: collections.Counter[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _READING:
            self._waits[_locate(function.__name__)] += 1
        return function(*args, **(kwargs or {}))


def _locate(operation: str) -> str:
    frames = [frame for frame in traceback.extract_stack() if "/sightline/" in frame.filename]
    return f"{operation} at {frames[-1].filename.rpartition('/sightline/')[2]}" if frames else operation
