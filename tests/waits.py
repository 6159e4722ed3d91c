"""Counts the places where a step would wait for a GPU, on a CPU."""

from __future__ import annotations

import collections
import contextlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.doctor.watch import loop
from sightline.ops import numba_kernels
from sightline.ops import waits as device_waits
from sightline.ops.numba_kernels import can_use_numba
from sightline.ops.operator import OPERATORS, Operator

_WAITING = {
    "aten::_local_scalar_dense",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
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
_OF_HOST = "of the host"
_SENDING = {"new_tensor"}
"""Copies numbers of the host to a tensor's device: the host waits until the copy is done."""
_MAKING = {"as_tensor", "asarray", "from_numpy", "tensor"}
"""Functions that do so if they name a device."""


@contextlib.contextmanager
def counted_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[collections.Counter[str]]:
    """Count waits inside the block by operation and place, in the form of a GPU."""
    waits: collections.Counter[str] = collections.Counter()
    with device_form(monkeypatch), _Operations(waits), _Readings(waits):
        yield waits
        del waits[_OF_HOST]


@contextlib.contextmanager
def device_form(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute as on a GPU: without compiled kernels, and with no tensor that is free to read."""
    with monkeypatch.context() as patch:
        patch.setattr(numba_kernels, "_has_numba", lambda: False)
        patch.setattr(device_waits, "_FREE_DEVICES", _NoDevice())
        patch.setattr(loop, "run_unseen", lambda run, *arguments: run(*arguments))  # the modes here are to see it
        yield


class _NoDevice(frozenset[str]):
    """No device is free to read, but inside `call_on_host`."""

    def __contains__(self, device: object) -> bool:
        return _called_by("call_on_host") is not None


def is_on_host() -> bool:
    """Return True inside of the function that `call_on_host` calls."""
    return _called_by("call_on_host") not in (None, "_fetch_tree", "send", "tree_flatten", "tree_unflatten")


def _called_by(name: str) -> str | None:
    """Return the name of the function that the innermost call of `name` is in, None outside of such a call."""
    inner, frame = "", sys._getframe(1)
    while frame is not None and frame.f_code.co_name != name:
        inner, frame = frame.f_code.co_name, frame.f_back  # type: ignore[assignment]
    return None if frame is None else inner


_has_numba = numba_kernels._has_numba


class DeviceMode(TorchDispatchMode):
    """Sees what a GPU would be given: of an operator of ours its kernel, or the inside where it has none that fits.

    A dispatch mode does not see inside of an operator. One whose kernel takes the arguments is computed by the kernel
    of the CPU, which has the same numbers.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = function.name().split(".")[0].partition("::")
        if space != "sightline" or is_on_host():
            return self.see(function, f"{space}::{name}", args, kwargs or {})
        operator = OPERATORS[name]
        with self:
            if operator.gpu is None or operator.launches is None or not operator.takes(*args):
                return operator._run_plain(*args)
            operator._check(*args)
        self.see_kernel(operator)
        floats = [value for value in args if isinstance(value, Tensor) and value.is_floating_point()]
        before, numba_kernels._has_numba = numba_kernels._has_numba, _has_numba
        try:
            return (operator.cpu if operator.cpu and can_use_numba(*floats) else operator.plain)(*args)
        finally:
            numba_kernels._has_numba = before

    def see(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Call an operator of torch and return its result."""
        return function(*args, **kwargs)

    def see_kernel(self, operator: Operator[..., Any]) -> None:
        """Take note of a call of an operator's GPU kernel."""


class _Operations(DeviceMode):
    def __init__(self, waits: collections.Counter[str]) -> None:
        super().__init__()
        self._waits = waits

    def see(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        has_mask = name in _INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        is_known = kwargs.get("output_size") is not None or not (args and isinstance(args[-1], Tensor))
        if name == "aten::repeat_interleave" and is_known:
            name = "of a known size"
        if name in _WAITING or has_mask:
            self._waits[_locate(name)] += 1
        return function(*args, **kwargs)


class _Readings(TorchFunctionMode):
    def __init__(self, waits: collections.Counter[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        is_sent = name in _MAKING and (kwargs or {}).get("device") not in (None, "cpu")
        is_sent = is_sent and not isinstance(args[0], Tensor)
        if is_sent or name in _READING or name in _SENDING:
            self._waits[_locate(name)] += 1
        return function(*args, **(kwargs or {}))


def _locate(operation: str) -> str:
    """Return the operation with its file; `waits.py` reads for its caller, and what it sends is the host's."""
    frames = [frame for frame in traceback.extract_stack() if "/sightline/" in frame.filename]
    outside = [frame for frame in frames if not frame.filename.endswith("/sightline/ops/waits.py")]
    names = [frame.name for frame in frames]
    is_of_host = "_send" in names[-1:] or ("call_on_host" in names and "_fetch" not in names)
    if is_of_host or (outside and outside[-1].filename.endswith("detect/task.py") and outside[-1].name == "outputs"):
        return _OF_HOST  # `outputs` reads the maps' sizes, which the detector states on the host
    return f"{operation} at {outside[-1].filename.rpartition('/sightline/')[2]}" if outside else operation
