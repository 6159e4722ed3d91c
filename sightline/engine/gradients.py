"""Gradients after a backward pass: their sums over processes in flat buckets, their memory format, norms and clipping.

A gradient goes through five files. `step` divides sums of losses by their counts and weights them, under autocast;
`train` scales the loss for half precision, and adds up micro-batches; `distributed` sums the gradients over processes
during the last backward pass, in the buckets of this module, which travel while the pass computes other gradients, and
this module then clips them; `optimizers` leaves out what is frozen, and prepares the update, which `train` makes unless
a number of the step is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sightline.contract.errors import RunError
from sightline.ops.waits import send_list

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
    has_gradient = send_list([p.grad is not None for p in bucket], gradients[0].device, gradients[0].dtype)
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


def clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Return the norm (0-d) of all gradients as one vector, which is then scaled to at most `max_norm`, if given."""
    if max_norm is not None:
        return nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def module_gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """Compute the norm (0-d, float64) of the gradient of each module's direct parameters, by module path.

    Modules without such a gradient are left out.
    """
    norms: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        gradients = [
            parameter.grad.detach() for parameter in module.parameters(recurse=False) if parameter.grad is not None
        ]
        if gradients:
            norms[path or "(model)"] = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).double())
    return norms


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


class _Work(Protocol):
    """Collective on its way."""

    def wait(self) -> Any: ...


class _SentBucket(NamedTuple):
    """Bucket on its way: the sums, once `work` is done, and gradients with their versions as they were sent."""

    flat: Tensor
    work: _Work
    gradients: list[tuple[Tensor | None, int]]


class GradientReduction:
    """Sums of a model's gradients over all processes, in buckets that travel while the pass computes other gradients.

    Every process sends the same buckets in the same order, the last parameters first. A bucket that lacks a gradient
    holds up those behind it, until the pass has ended and shows that the process does not use that parameter.
    """

    def __init__(self, model: nn.Module, start_sum: Callable[[Tensor], _Work]) -> None:
        self._names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._buckets = make_buckets([*self._names])[::-1]
        self._missing = [set(bucket) for bucket in self._buckets]
        self._bucket_index = {parameter: index for index, bucket in enumerate(self._buckets) for parameter in bucket}
        self._start_sum = start_sum
        self._sent: list[_SentBucket] = []

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradients are reduced."""
        return [*self._names]

    @property
    def num_buckets(self) -> int:
        """The number of buckets that they are sent in."""
        return len(self._buckets)

    def receive(self, parameter: Tensor) -> None:
        """Note that the pass has a parameter's gradient, and send the buckets that are complete."""
        self._missing[self._bucket_index[parameter]].discard(parameter)  # type: ignore[index]
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send_next()

    def finish(self) -> None:
        """Send the buckets that are left, wait for all, and set every gradient to its sum."""
        while len(self._sent) < len(self._buckets):
            self._send_next()
        for bucket, sent in zip(self._buckets, self._sent, strict=True):
            sent.work.wait()
            self._assert_unchanged(bucket, sent)
            set_gradients(bucket, sent.flat)

    def _send_next(self) -> None:
        bucket = self._buckets[len(self._sent)]
        gradients = [(p.grad, -1 if p.grad is None else p.grad._version) for p in bucket]
        flat = flatten_gradients(bucket)
        self._sent.append(_SentBucket(flat, self._start_sum(flat), gradients))

    def _assert_unchanged(self, bucket: Sequence[nn.Parameter], sent: _SentBucket) -> None:
        for parameter, (gradient, version) in zip(bucket, sent.gradients, strict=True):
            if parameter.grad is not gradient or (gradient is not None and gradient._version != version):
                raise RunError(
                    f"the gradient of '{self._names[parameter]}' changed after it was sent to the other processes: its "
                    "module is used in several parts of reentrant checkpointing, or a hook changes it; call "
                    "torch.utils.checkpoint.checkpoint with use_reentrant=False, or train in one process"
                )
