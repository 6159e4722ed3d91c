"""Activation checkpointing: inner values are recomputed in the backward pass instead of stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_activations"]


def checkpoint_activations(layers: nn.Module, values: Tensor) -> Tensor:
    """Apply `layers` to `values` (any shape) and keep only `values` for the backward pass.

    The second pass leaves running statistics of batch norm as the first one made them; counted twice they would move
    at almost twice their momentum. Source: Chen et al. 2016, Training deep nets with sublinear memory cost.
    """
    contexts = lambda: (contextlib.nullcontext(), _preserve_running_statistics(layers))  # noqa: E731
    return cast(Tensor, checkpoint(layers, values, use_reentrant=False, context_fn=contexts))


@contextlib.contextmanager
def _preserve_running_statistics(layers: nn.Module) -> Iterator[None]:
    """Context that restores the running statistics of `layers` on exit."""
    norms = [m for m in layers.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    saved = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, saved, strict=True):
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)
