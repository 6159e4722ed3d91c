"""A device that the machine lacks, in the place of torch's `meta`: its tensors have values, and mix with no others.

As on a GPU, an operation on tensors of both devices is an error, as are drawing there with a generator of the host and
reading a tensor as an array.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

OTHER = torch.device("meta")
_COPIES = {"aten::_to_copy", "aten::copy_"}
_MAKING = {"as_tensor", "tensor"}
"""Functions of sequences, which torch fills before a mode sees them."""


@contextlib.contextmanager
def other_device() -> Iterator[torch.device]:
    """Context in which there is another device than the host, which it yields."""
    with _Operations(), _Sequences():
        yield OTHER


@contextlib.contextmanager
def rounded_to(precision: str, *switches: Any) -> Iterator[None]:
    """Context in which these switches of torch 2.9 and later say how a GPU rounds factors: `ieee` or `tf32`."""
    if not all(hasattr(switch, "fp32_precision") for switch in switches):
        pytest.skip("torch before 2.9")
    previous = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, before in zip(switches, previous, strict=True):
            switch.fp32_precision = before


class _OtherTensor(Tensor):
    """Tensor of the other device; `values` are the same numbers on the host."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> _OtherTensor:
        form = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        tensor: _OtherTensor = Tensor._make_wrapper_subclass(cls, values.size(), device=OTHER, **form)
        tensor.values = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.values.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a tensor of another device is no array")


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Sequences(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if name in _MAKING and torch.device(kwargs.get("device") or "cpu") == OTHER:
            return function(*args, **{**kwargs, "device": None}).to(OTHER)
        if name == "new_tensor" and isinstance(args[0], _OtherTensor):
            return torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype).to(OTHER)
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], _OtherTensor):
            args = args[0], *(torch.tensor(each).to(OTHER) if isinstance(each, list) else each for each in args[1:])
        if name == "__setitem__" and isinstance(args[2], float | int):
            args = *args[:2], torch.tensor(args[2], dtype=args[0].dtype).to(OTHER)
        return function(*args, **kwargs)


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the host; its result is of the device that torch would choose."""
    name, leaves = function.name().split(".")[0], tree_leaves((args, kwargs))
    others = [leaf for leaf in leaves if isinstance(leaf, _OtherTensor)]
    of_host = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, _OtherTensor)]
    is_of_other = bool(others) if kwargs.get("device") is None else kwargs["device"] == OTHER
    if name == "aten::copy_":
        is_of_other = isinstance(args[0], _OtherTensor)
    if name not in _COPIES and others and any(tensor.ndim for tensor in of_host):
        raise RuntimeError(f"{name}: found tensors of the host and of the other device")
    if is_of_other and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{name}: found a generator of the host for the other device")
    placed = {**kwargs, "device": torch.device("cpu")} if "device" in kwargs else kwargs
    result = function(*tree_map(_to_values, args), **tree_map(_to_values, placed))
    for other in others:
        if other.values is result:  # in place
            return other
    return tree_map(_to_other, result) if is_of_other else result


def _to_values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, _OtherTensor) else leaf


def _to_other(leaf: Any) -> Any:
    return _OtherTensor(leaf) if isinstance(leaf, Tensor) else leaf
