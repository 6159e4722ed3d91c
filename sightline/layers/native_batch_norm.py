"""Batch norm by torch's own kernels on a GPU while other layers may use cuDNN."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn


class Native:
    """Mixin that turns cuDNN off in the forward pass; the backward pass uses the kernels of the forward pass."""

    is_torch_kernel = True  # for the reference of a call: computes exactly what torch's class does

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        was_enabled = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            torch.backends.cudnn.enabled = was_enabled


def disable_cudnn_batch_norm(model: nn.Module) -> nn.Module:
    """Make the batch norms of a model avoid cuDNN, in place: same state, same numbers up to rounding.

    A workaround for versions of cuDNN with wrong batch statistics.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, Native):
            plain: Any = type(module)
            module.__class__ = _native(plain)
    return model


@cache
def _native(norm: Any) -> Any:
    return type(norm.__name__, (Native, norm), {"__doc__": norm.__doc__})
