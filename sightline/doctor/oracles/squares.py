"""Losses that are sums of squares, found by what they do: each element's slope grows in proportion to its distance.

For L = sum_i w_i (o_i - t_i)^2 the slope is 2 w_i (o_i - t_i). Two outputs give w, and any of them then t. No name is
read, so a loss of a plugin is found as well as one of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.oracles.replay import loss_counts, loss_sums
from sightline.engine.train import TrainState
from sightline.types import Batch

__all__ = ["SquaredErrorLoss", "expected_factor", "find_squared_error"]

_SAME = 1e-6  # relative, of float64 slopes of a quadratic function


@dataclass(frozen=True)
class SquaredErrorLoss:
    """A loss of the form sum(weight * (output - target)^2) / count of one output, all in float64.

    `target_key` is the batch key that the target is; None where it is made of several, or scaled. `is_learned` marks a
    loss that learns by itself, as one does that draws features to centres of its own.
    """

    name: str
    output_key: str
    target_key: str | None
    output: Tensor
    target: Tensor
    weight: Tensor
    count: float
    is_learned: bool = False

    @property
    def factor(self) -> float:
        """What stands before the mean square: 1 where the weights add up to the count."""
        return float(self.weight.sum()) / self.count if self.count else float("nan")

    def mean(self, output: Tensor | float) -> float:
        """The loss of another output, by the definition."""
        return float((self.weight * (output - self.target).square()).sum()) / self.count

    @property
    def zero(self) -> float:
        """The loss of a network that predicts 0 everywhere: the mean square of the targets."""
        return self.mean(0.0)

    @property
    def middle(self) -> float:
        """The best constant prediction: the (weighted) mean target."""
        return float((self.weight * self.target).sum() / self.weight.sum())

    @property
    def constant_baseline(self) -> float:
        """The loss of the best constant prediction: the variance of the targets."""
        return self.mean(self.middle)


def expected_factor(squares: SquaredErrorLoss) -> float | None:
    """What stands before the mean square, where sum and count agree: 1, or the elements of each counted item.

    Squared distances, for one, are sums over coordinates and count points. A loss that learns its targets, of which no
    definition is known, may be half of that. None for any other factor.
    Source of the half: Wen et al. 2016, equation 2.
    """
    sizes = [1.0]
    for size in reversed(squares.output.shape):
        sizes.append(sizes[-1] * size)
    if squares.is_learned and squares.target_key is None:
        sizes += [size / 2 for size in sizes]
    return next((size for size in sizes if abs(squares.factor - size) <= _SAME * size), None)


def find_squared_error(job: TrainState, batch: Batch, outputs: Mapping[str, Any], name: str) -> SquaredErrorLoss | None:
    """The loss `name` as a sum of squares of one output; None where it is something else."""
    wide = {key: value.detach().double() if _is_float(value) else value for key, value in outputs.items()}
    batch = {key: value.double() if _is_float(value) else value for key, value in batch.items()}
    for key, output in wide.items():
        if not _is_float(output) or not output.numel():
            continue
        found = _squares_in(job, batch, wide, name, key)
        if found is not None:
            return found
    return None


def _squares_in(
    job: TrainState, batch: Batch, outputs: Mapping[str, Any], name: str, key: str
) -> SquaredErrorLoss | None:
    generator = torch.Generator().manual_seed(0)
    output = outputs[key]
    near = output + torch.randn(output.shape, generator=generator, dtype=torch.float64)
    far = output + 3 * torch.randn(output.shape, generator=generator, dtype=torch.float64)
    values, slopes = zip(*(_slope(job, batch, outputs, name, key, at) for at in (output, near, far)), strict=True)
    if any(slope is None for slope in slopes) or not all(bool(slope.isfinite().all()) for slope in slopes):
        return None
    weight = (slopes[1] - slopes[0]) / (2 * (near - output))
    predicted = slopes[0] + 2 * weight * (far - output)
    scale = slopes[2].abs().max()
    if not float(scale) > 0 or not float((predicted - slopes[2]).abs().max()) <= _SAME * float(scale):
        return None
    if float(weight.min()) < -_SAME * float(weight.max()):
        return None
    weight = torch.where(weight < _SAME * weight.max(), 0.0, weight)
    target = torch.where(weight > 0, output - slopes[0] / (2 * weight.clamp(min=1e-300)), 0.0)
    target = torch.where(
        target.abs() > _SAME**2 * output.abs().max(), target, 0.0
    )  # of a penalty: nothing but rounding
    by_form = float((weight * (output - target).square()).sum())
    if abs(by_form - values[0]) > _SAME * max(abs(values[0]), abs(values[2])):
        return None
    target_key = _key_of(batch, target, weight)
    if target_key is not None:
        target = torch.where(weight > 0, batch[target_key].double(), 0.0)
    count = loss_counts(job, batch, outputs)[name]
    is_learned = loss_sums(job, batch, {**outputs, key: output})[name].requires_grad
    return SquaredErrorLoss(name, key, target_key, output, target, weight, count, is_learned)


def _slope(
    job: TrainState, batch: Batch, outputs: Mapping[str, Any], name: str, key: str, at: Tensor
) -> tuple[float, Tensor | None]:
    given = at.detach().clone().requires_grad_(True)
    total = loss_sums(job, batch, {**outputs, key: given})[name]
    if not total.requires_grad:
        return float(total.detach()), None
    (slope,) = torch.autograd.grad(total, [given], allow_unused=True)
    return float(total.detach()), slope


def _key_of(batch: Batch, target: Tensor, weight: Tensor) -> str | None:
    """The batch key with these values, wherever they count."""
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.shape == target.shape and not value.is_complex():
            off = ((value.double() - target).abs() * (weight > 0)).max()
            if float(off) <= 1e-5 * max(1.0, float(target.abs().max())):
                return key
    return None


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
