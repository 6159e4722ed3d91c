"""Gradients in flat buckets for all-reduce, their memory format, and their norms."""

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
    """Group parameters, in order, into buckets of one dtype and about 32 MiB, for all-reduce."""
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
    """Concatenate the gradients of a bucket (zeros for None), followed by a 0/1 flag per parameter: (elements + P,)."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
    has_gradient = gradients[0].new_tensor([p.grad is not None for p in bucket])
    return torch.cat([*(gradient.detach().reshape(-1) for gradient in gradients), has_gradient])


def set_gradients(bucket: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Set each parameter's gradient to its slice of `flat`, in the parameter's memory format, as autograd would.

    A parameter whose gradient no process has keeps None.
    """
    *parts, num_gradients = flat.split([*(parameter.numel() for parameter in bucket), len(bucket)])
    has_gradient = [True] * len(bucket)
    if any(parameter.grad is None for parameter in bucket):  # only then must the host wait for the device
        has_gradient = (num_gradients > 0).tolist()
    for parameter, part, is_present in zip(bucket, parts, has_gradient, strict=True):
        if is_present:
            parameter.grad = match_memory_format(parameter, part.view(parameter.shape))


def module_gradient_norms(model: nn.Module) -> dict[str, float]:
    """Compute the norm of the gradient of each module's direct parameters, by module path; others are left out."""
    norms: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        gradients = [
            parameter.grad.detach() for parameter in module.parameters(recurse=False) if parameter.grad is not None
        ]
        if gradients:
            norms[path or "(model)"] = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).double())
    return dict(zip(norms, torch.stack([*norms.values()]).tolist(), strict=True)) if norms else {}


def has_memory_gaps(tensor: Tensor) -> bool:
    """Return True if a tensor's elements leave gaps in, or share, the memory that they span."""
    return _nontrivial_strides(torch.empty_like(tensor, device="meta")) != _nontrivial_strides(tensor)


def match_memory_format(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Copy the gradient to the parameter's memory format, which torch's fused CPU optimisers require."""
    if _nontrivial_strides(gradient) == _nontrivial_strides(parameter):
        return gradient
    return torch.empty_like(parameter, dtype=gradient.dtype, requires_grad=False).copy_(gradient)


def _nontrivial_strides(tensor: Tensor) -> list[int]:
    """Return the strides of the dimensions with more than one element."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
