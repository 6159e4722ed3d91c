"""Synchronised batch norm, with the statistics of the whole batch regardless of its split over processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sightline.ops.points.batch_statistics import batch_statistics, moments_from_sums, statistics_gradients

AllReduceSum = Callable[[Tensor], Tensor]
"""Sum of a tensor over all processes; differentiable: backward sums the gradients over all processes."""


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Synchronised batch norm over (B, C) or (B, C, ...): training statistics count every value on every process once.

    Parts may be uneven, or empty. Mean first, centred squares second: two reductions, and no cancellation. Without
    `all_reduce_sum`, and in eval mode, it is torch's batch norm; the state has the same keys and running values (the
    running variance is unbiased by the global count). Raises ValueError for a single value per channel.
    Source: Ioffe and Szegedy 2015, algorithm 1, over the global batch.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        all_reduce_sum: AllReduceSum | None = None,
        name: str = "batch norm",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.name = name
        # A closure, because deepcopy takes functions as they are: a copy of the model (a running average of weights,
        # say) must not copy the process group behind a bound method.
        self._all_reduce_sum = (lambda tensor: all_reduce_sum(tensor)) if all_reduce_sum else _identity

    def forward(self, values: Tensor) -> Tensor:
        """Normalise values (B, C) or (B, C, ...) -> the same shape."""
        self._check_input_dim(values)
        return self._normalise(values) if self.training else super().forward(values)

    def _check_input_dim(self, values: Tensor) -> None:
        if values.ndim < 2 or values.shape[1] != self.num_features:
            raise ValueError(
                f"{self.name}: found the shape {tuple(values.shape)}, expected (B, {self.num_features}) or "
                f"(B, {self.num_features}, ...)"
            )

    def _normalise(self, values: Tensor) -> Tensor:
        axes = [axis for axis in range(values.ndim) if axis != 1]
        per_channel = (1, -1, *(1,) * (values.ndim - 2))
        wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        # float64 for the C+1 numbers that travel: the count of a large batch of edges is no longer exact in float32.
        sums = wide.sum(axes).double()
        part_count = math.prod(values.shape[axis] for axis in axes)
        totals = self._all_reduce_sum(torch.cat([sums, sums.new_full((1,), part_count)]))
        count = totals[-1].detach()
        if part_count < 2:  # two values here are two everywhere: only then need we not wait for the device
            self._refuse_single_value(count, values)
        mean = totals[:-1] / count
        centred = wide - mean.to(wide.dtype).view(per_channel)
        variance = self._all_reduce_sum(centred.square().sum(axes).double()) / count
        if self.track_running_stats:
            _update_running(self, mean.detach(), variance.detach() * (count / (count - 1)))
        scale = (variance + self.eps).rsqrt().to(wide.dtype)
        if self.affine:
            scale = scale * self.weight
        normed = centred * scale.view(per_channel)
        return (normed + self.bias.view(per_channel) if self.affine else normed).to(values.dtype)

    def _refuse_single_value(self, count: Tensor, values: Tensor) -> None:
        if count.item() < 2:
            raise ValueError(
                f"{self.name}: expected more than 1 value per channel over all processes when training, found "
                f"{int(count.item())} (shape {tuple(values.shape)} here); use a larger batch"
            )


class ShiftedSums(NamedTuple):
    """Shifted sums of one process: sum and sum of squares of (x - origin) per channel, over `num_values` values.

    All are (C,), the sums float64.
    """

    origin: Tensor
    total: Tensor
    total_of_squares: Tensor
    num_values: int


@torch.no_grad()
def reduce_statistics(norm: nn.modules.batchnorm._BatchNorm, sums: ShiftedSums) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce count, mean and biased variance (C,) float64 over all processes; update the running values of `norm`.

    For layers that know the sums without computing the values. An origin near the mean keeps the variance exact.
    Raises ValueError for a single value per channel, as batch norm itself does.
    """
    count, mean, variance = moments_from_sums(*sums, lambda total: all_reduce_sum(norm, total))
    if sums.num_values < 2 and count.item() < 2:
        raise ValueError(
            f"batch norm: expected more than 1 value per channel over all processes when training, found "
            f"{int(count.item())}; use a larger batch"
        )
    if norm.track_running_stats:
        _update_running(norm, mean, variance * (count / (count - 1)))
    return count, mean, variance


def weighted_batch_norm(norm: nn.modules.batchnorm._BatchNorm, values: Tensor, weight: Tensor) -> Tensor:
    """Normalise rows (N, C) as `norm` does, each of which counts `weight` (N,) times, also 0: (N, C).

    It is the batch norm of a table in which rows stand as often, over all processes that the norm is synchronised
    with. Waits for no device: a batch with fewer than two counted rows gives their own values as mean.
    """
    if not uses_batch_statistics(norm):
        return nn.functional.batch_norm(
            values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    reduce = norm._all_reduce_sum if isinstance(norm, SynchronisedBatchNorm) else _identity
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    column = weight.to(wide.dtype)[:, None]
    totals = reduce(torch.cat([(wide * column).sum(0).double(), weight.sum().double()[None]]))
    count = totals[-1].detach().clamp(min=1)
    mean = totals[:-1] / count
    centred = wide - mean.to(wide.dtype)
    variance = reduce((centred.square() * column).sum(0).double()) / count
    if norm.track_running_stats:
        _update_running(norm, mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
    scale = (variance + norm.eps).rsqrt().to(wide.dtype)
    if norm.affine:
        scale = scale * norm.weight
    normed = centred * scale
    return (normed + norm.bias if norm.affine else normed).to(values.dtype)


def uses_batch_statistics(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """Return True if a forward pass now uses the batch's statistics instead of the running ones."""
    return norm.training or norm.running_mean is None or norm.running_var is None


@torch.no_grad()
def normalisation_statistics(
    norm: nn.modules.batchnorm._BatchNorm, sums: ShiftedSums | None, dtype: torch.dtype
) -> tuple[Tensor | int | None, Tensor, Tensor]:
    """Return count, mean and inverse deviation (C,), in `dtype`.

    Of the batch from its sums, or the running ones for None.
    The count is then None, for `batch_statistics_gradients`.
    """
    running_mean, running_var = norm.running_mean, norm.running_var
    if sums is None:
        assert running_mean is not None
        assert running_var is not None
        return None, running_mean.double().to(dtype), (running_var.double() + norm.eps).rsqrt().to(dtype)
    has_share = norm.track_running_stats and norm.momentum is not None
    if isinstance(norm, SynchronisedBatchNorm) or not has_share or sums.num_values < 2:
        count, mean, variance = reduce_statistics(norm, sums)
        return count, mean.to(dtype), (variance + norm.eps).rsqrt().to(dtype)
    assert running_mean is not None
    assert running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    mean, inverse_deviation, *new = batch_statistics(
        *sums[:3],
        running_mean=running_mean,
        running_var=running_var,
        num_values=sums.num_values,
        momentum=norm.momentum,
        eps=norm.eps,
        dtype=dtype,
    )
    norm.num_batches_tracked.add_(1)
    torch._foreach_copy_([running_mean, running_var], new)
    return sums.num_values, mean, inverse_deviation


def batch_statistics_gradients(
    norm: nn.Module,
    count: Tensor | int | None,
    *,
    grad_bias: Tensor,
    to_weight: Tensor,
    scale: Tensor,
    inverse_deviation: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the batch statistics per channel (C,): dx -= constant + slope * (x - mean).

    `grad_bias` and `to_weight` (C,) are this process's gradients of the norm's parameters; `scale` is
    `inverse_deviation` times the weight of the forward pass, which need not be the norm's weight now. Zero with running
    values, which do not depend on the batch (`count` None). Source: Ioffe and Szegedy 2015, section 3, the chain rule.
    """
    if count is None:
        return torch.zeros_like(grad_bias), torch.zeros_like(grad_bias)
    if isinstance(count, int):
        return statistics_gradients(grad_bias, to_weight, scale, inverse_deviation, count)
    shares = all_reduce_sum(norm, torch.cat([grad_bias, to_weight]).double()) / count
    share_of_bias, share_of_weight = shares.to(grad_bias.dtype).chunk(2)
    return scale * share_of_bias, scale * inverse_deviation * share_of_weight


@torch.no_grad()
def all_reduce_sum(norm: nn.Module, values: Tensor) -> Tensor:
    """Sum values (any shape) over the processes that `norm` is synchronised with; unchanged for other batch norms."""
    return norm._all_reduce_sum(values) if isinstance(norm, SynchronisedBatchNorm) else values


@torch.no_grad()
def _update_running(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, unbiased_variance: Tensor) -> None:
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    # momentum None is torch's cumulative average; the share stays a tensor so that no device is waited for.
    share = norm.num_batches_tracked.double().reciprocal() if norm.momentum is None else norm.momentum
    for running, batch_value in ((norm.running_mean, mean), (norm.running_var, unbiased_variance)):
        running.copy_(running * (1 - share) + batch_value.to(running.dtype) * share)


def convert_sync_batchnorm(model: nn.Module, all_reduce_sum: AllReduceSum) -> nn.Module:
    """Return a copy of the model with every batch norm synchronised; the original is unchanged.

    State keys are unchanged. A batch norm that the model uses in several places remains one module. Create the
    optimizer from the copy: its parameters are new.
    """
    copied = copy.deepcopy(model)
    replaced: dict[nn.Module, nn.Module] = {
        module: _to_synchronised(module, all_reduce_sum, name or "batch norm")
        for name, module in copied.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    }
    for parent in list(copied.modules()):
        # `named_children` would pass over the second name of a child that one parent holds twice.
        for name, child in list(parent._modules.items()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    return replaced.get(copied, copied)


def _to_synchronised(
    norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, all_reduce_sum: AllReduceSum, name: str
) -> SynchronisedBatchNorm:
    """Return a synchronised batch norm with the same parameters and buffers, in the same mode."""
    synchronised = SynchronisedBatchNorm(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        all_reduce_sum=all_reduce_sum,
        name=name,
    )
    synchronised._parameters.update(norm._parameters)
    synchronised._buffers.update(norm._buffers)
    return synchronised.train(norm.training)


def _identity(tensor: Tensor) -> Tensor:
    return tensor
