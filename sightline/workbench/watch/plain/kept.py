"""A loss of the user's with a state of its own, which a check calls many times."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def preserve_module(module: Any) -> Iterator[None]:
    """Context after which a module has the tensors, their numbers and gradients, and the attributes that it had.

    Anything but a module is left alone, and so are the attributes of a scripted one, which are not Python's.
    """
    if not isinstance(module, nn.Module):
        yield
        return
    tensors = [*module.parameters(), *module.buffers()]
    numbers = [tensor.detach().clone() for tensor in tensors]
    gradients = [tensor.grad for tensor in tensors]
    plain = [each for each in module.modules() if not isinstance(each, torch.jit.ScriptModule)]
    attributes = {each: copy.copy(vars(each)) for each in plain}
    buffers = {each: dict(each._buffers) for each in plain}
    try:
        yield
    finally:
        for each, own in attributes.items():
            vars(each).clear()
            vars(each).update(own)
            each._buffers.clear()
            each._buffers.update(buffers[each])
        with torch.no_grad():
            for tensor, before, gradient in zip(tensors, numbers, gradients, strict=True):
                tensor.copy_(before)
                tensor.grad = gradient
