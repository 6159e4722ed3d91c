"""Sums of gradients over processes, in buckets that travel while a backward pass computes other gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sightline.contract.errors import RunError
from sightline.engine.learnt_losses import flatten_gradients, make_buckets, set_gradients


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
        return [*self._names]

    @property
    def num_buckets(self) -> int:
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
