"""Detection of squared-error losses by their values: each element's gradient is linear in its output.

For L = sum_i w_i (o_i - t_i)^2 the gradient is 2 w_i (o_i - t_i). Two outputs determine w, and either of them then t.
No name is read, so losses of plugins are detected as well.
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

_TOLERANCE = 1e-6  # relative, of float64 gradients of a quadratic function


@dataclass(frozen=True)
class SquaredErrorLoss:
    """Loss of the form sum(weight * (output - target)^2) / count of one output, all in float64.

    `target_key` is the batch key of the target; None if it is computed from several keys, or scaled. `is_learned` is
    True for a loss with its own parameters, such as centres of features.
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
        """Factor of the mean squared error: 1 if the weights add up to the count."""
        return float(self.weight.sum()) / self.count if self.count else float("nan")

    def mean(self, output: Tensor | float) -> float:
        """Compute the loss of another output by the definition."""
        return float((self.weight * (output - self.target).square()).sum()) / self.count

    @property
    def zero(self) -> float:
        """Loss of a network that predicts 0 everywhere: the mean square of the targets."""
        return self.mean(0.0)

    @property
    def middle(self) -> float:
        """Best constant prediction: the (weighted) mean target."""
        return float((self.weight * self.target).sum() / self.weight.sum())

    @property
    def constant_baseline(self) -> float:
        """Loss of the best constant prediction: the variance of the targets."""
        return self.mean(self.middle)


def expected_factor(squares: SquaredErrorLoss) -> float | None:
    """Return the factor of the mean squared error if it is valid: 1, or the elements per counted item; else None.

    Squared distances, for example, are sums over coordinates that are counted per point. A loss that learns its
    targets, whose definition is unknown, may have half of such a factor.
    Source of the half: Wen et al. 2016, equation 2.
    """
    sizes = [1.0]
    for size in reversed(squares.output.shape):
        sizes.append(sizes[-1] * size)
    if squares.is_learned and squares.target_key is None:
        sizes += [size / 2 for size in sizes]
    return next((size for size in sizes if abs(squares.factor - size) <= _TOLERANCE * size), None)


def find_squared_error(job: TrainState, batch: Batch, outputs: Mapping[str, Any], name: str) -> SquaredErrorLoss | None:
    """Fit the loss `name` as a squared error of one output; None if it is another function."""
    float64_outputs = {key: value.detach().double() if _is_float(value) else value for key, value in outputs.items()}
    batch = {key: value.double() if _is_float(value) else value for key, value in batch.items()}
    for key, output in float64_outputs.items():
        if not _is_float(output) or not output.numel():
            continue
        squares = _fit_squares(job, batch, float64_outputs, name, key)
        if squares is not None:
            return squares
    return None


def _fit_squares(
    job: TrainState, batch: Batch, outputs: Mapping[str, Any], name: str, key: str
) -> SquaredErrorLoss | None:
    generator = torch.Generator().manual_seed(0)
    output = outputs[key]
    near = output + torch.randn(output.shape, generator=generator, dtype=torch.float64)
    far = output + 3 * torch.randn(output.shape, generator=generator, dtype=torch.float64)
    values, gradients = zip(
        *(_compute_gradient(job, batch, outputs, name, key, point) for point in (output, near, far)), strict=True
    )
    if any(gradient is None for gradient in gradients) or not all(
        bool(gradient.isfinite().all()) for gradient in gradients
    ):
        return None
    weight = (gradients[1] - gradients[0]) / (2 * (near - output))
    predicted = gradients[0] + 2 * weight * (far - output)
    scale = gradients[2].abs().max()
    if not float(scale) > 0 or not float((predicted - gradients[2]).abs().max()) <= _TOLERANCE * float(scale):
        return None
    if float(weight.min()) < -_TOLERANCE * float(weight.max()):
        return None
    weight = torch.where(weight < _TOLERANCE * weight.max(), 0.0, weight)
    target = torch.where(weight > 0, output - gradients[0] / (2 * weight.clamp(min=1e-300)), 0.0)
    target = torch.where(
        target.abs() > _TOLERANCE**2 * output.abs().max(), target, 0.0
    )  # removes rounding errors around the zero target of a penalty
    by_form = float((weight * (output - target).square()).sum())
    if abs(by_form - values[0]) > _TOLERANCE * max(abs(values[0]), abs(values[2])):
        return None
    target_key = _find_target_key(batch, target, weight)
    if target_key is not None:
        target = torch.where(weight > 0, batch[target_key].double(), 0.0)
    count = loss_counts(job, batch, outputs)[name]
    is_learned = loss_sums(job, batch, {**outputs, key: output})[name].requires_grad
    return SquaredErrorLoss(name, key, target_key, output, target, weight, count, is_learned)


def _compute_gradient(
    job: TrainState, batch: Batch, outputs: Mapping[str, Any], name: str, key: str, point: Tensor
) -> tuple[float, Tensor | None]:
    output = point.detach().clone().requires_grad_(True)
    total = loss_sums(job, batch, {**outputs, key: output})[name]
    if not total.requires_grad:
        return float(total.detach()), None
    (gradient,) = torch.autograd.grad(total, [output], allow_unused=True)
    return float(total.detach()), gradient


def _find_target_key(batch: Batch, target: Tensor, weight: Tensor) -> str | None:
    """Return the batch key whose values equal the target where the weight is positive; None without one."""
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.shape == target.shape and not value.is_complex():
            max_difference = ((value.double() - target).abs() * (weight > 0)).max()
            if float(max_difference) <= 1e-5 * max(1.0, float(target.abs().max())):
                return key
    return None


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
