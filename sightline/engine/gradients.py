"""Gradients in large pieces, to be summed over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "flatten_gradients",
    "has_memory_gaps",
    "make_buckets",
    "match_memory_format",
    "module_gradient_norms",
    "set_gradients",
]

_BUCKET_BYTES = 2**25


def make_buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters of one dtype each, in order, of about 32 MiB: large enough for the network, small beside the model."""
    buckets: list[list[nn.Parameter]] = []
    sizes: list[int] = []
    for parameter in parameters:
        num_bytes = parameter.numel() * parameter.element_size()
        if not buckets or buckets[-1][0].dtype != parameter.dtype or sizes[-1] + num_bytes > _BUCKET_BYTES:
            buckets.append([])
            sizes.append(0)
        buckets[-1].append(parameter)
        sizes[-1] += num_bytes
    return buckets


def flatten_gradients(bucket: Sequence[nn.Parameter]) -> Tensor:
    """The gradients in one piece, zeros where there is none, and then which there are."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
    is_there = gradients[0].new_tensor([p.grad is not None for p in bucket])
    return torch.cat([*(gradient.detach().reshape(-1) for gradient in gradients), is_there])


def set_gradients(bucket: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Give each parameter its part of `flat`, in the parameter's own order in memory, as autograd would.

    A parameter whose gradient no process has keeps None.
    """
    *parts, num_there = flat.split([*(parameter.numel() for parameter in bucket), len(bucket)])
    is_there = [True] * len(bucket)
    if any(parameter.grad is None for parameter in bucket):  # only then need the host wait for the device
        is_there = (num_there > 0).tolist()
    for parameter, part, is_used in zip(bucket, parts, is_there, strict=True):
        if is_used:
            parameter.grad = match_memory_format(parameter, part.view(parameter.shape))


def module_gradient_norms(model: nn.Module) -> dict[str, float]:
    """The norm of the gradient of each module's own parameters, by its path; those that have none are left out."""
    norms: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        own = [each.grad.detach() for each in module.parameters(recurse=False) if each.grad is not None]
        if own:
            norms[path or "(model)"] = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(own)).double())
    return dict(zip(norms, torch.stack([*norms.values()]).tolist(), strict=True)) if norms else {}


def has_memory_gaps(tensor: Tensor) -> bool:
    """Whether a tensor's elements leave out, or share, places of the memory that they span."""
    return _order(torch.empty_like(tensor, device="meta")) != _order(tensor)


def match_memory_format(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the parameter's order in memory: torch's fused CPU optimisers read both element by element."""
    if _order(gradient) == _order(parameter):
        return gradient
    return torch.empty_like(parameter, dtype=gradient.dtype, requires_grad=False).copy_(gradient)


def _order(tensor: Tensor) -> list[int]:
    """How far apart neighbours lie along each dimension that has any."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
