"""Comparison of what two implementations of an operator return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tensors_of(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def find_difference(found: Any, expected: Any, tolerance: float) -> str | None:
    """Return where two results differ: in a bit, or by more than a share of the largest number."""
    for place, (one, other) in enumerate(zip(tensors_of(found), tensors_of(expected), strict=True)):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"result {place}: {tuple(one.shape)} {one.dtype}, expected {tuple(other.shape)} {other.dtype}"
        if tolerance and other.is_floating_point() and other.numel():
            error = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)
            if not error <= tolerance:
                return f"result {place}: off by {float(error):.2e} of the largest number; allowed is {tolerance:g}"
        elif not torch.equal(one.nan_to_num(), other.nan_to_num()):
            count = int((one != other).sum())
            return f"result {place}: {count} of {one.numel()} numbers differ"
    return None
