"""Labels of any integer dtype as int64, in which losses and metrics compute."""

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
