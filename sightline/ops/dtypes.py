"""Number formats in which operators compute: labels as int64, values as float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor


def widen_labels(label: Tensor, name: str = "label") -> Tensor:
    """Return labels (...) of any integer dtype, or bool, as int64; int64 as it is.

    Torch compares uint8 with -1 modulo 256, and takes an index of uint8 or bool for a mask.
    Raises ValueError for other dtypes, with the `name` of the argument.
    """
    if label.dtype == torch.int64:
        return label
    if label.is_floating_point() or label.is_complex():
        raise ValueError(f"{name}: found {label.dtype}, expected whole numbers; cast labels to torch.int64")
    return label.long()


def promote_to_float32(values: Tensor) -> Tensor:
    """Cast values (...) to float32 at least: half precision to float32, whole numbers to float64, which holds them."""
    if not values.is_floating_point():
        return values.double()
    return values.to(torch.promote_types(values.dtype, torch.float32))
