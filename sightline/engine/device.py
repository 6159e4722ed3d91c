"""Transfer of nested batches to a device."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(
    value: Any, device: torch.device, *, float_dtype: torch.dtype = torch.float32, path: str = "batch"
) -> Any:
    """Move a nested structure to `device`, with every floating tensor as `float_dtype`.

    Dicts, lists, tuples, named tuples and dataclasses keep their types; numbers, text and None stay as they are.
    Raises TypeError, with its path, for a leaf of any other type.
    """
    if isinstance(value, Tensor):
        dtype = float_dtype if value.is_floating_point() else value.dtype
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()  # from pageable memory the copy would wait for the device
        return value.to(device, dtype, non_blocking=True)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return type(value)(
            (k, to_device(v, device, float_dtype=float_dtype, path=f"{path}[{k!r}]")) for k, v in value.items()
        )
    if isinstance(value, list | tuple):
        items = [to_device(v, device, float_dtype=float_dtype, path=f"{path}[{i}]") for i, v in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        moved = {n: to_device(getattr(value, n), device, float_dtype=float_dtype, path=f"{path}.{n}") for n in names}
        return dataclasses.replace(value, **moved)
    raise TypeError(
        f"{path}: a batch holds tensors, numbers and text in dicts, lists, tuples and dataclasses; "
        f"this is a {type(value).__name__}"
    )
