"""Gradient check by finite differences in float64, along Gaussian directions of each tensor.

A direction costs two evaluations for any size of layer, whereas a full Jacobian needs two per element. Unlike torch's
`gradcheck`, the functions return the size of the difference. Along a Gaussian direction, the measured error is less
than a share t of the true one with probability 0.8 t; along a direction of +1 and -1, errors of few elements can cancel
to 0.

Detection of squared-error losses by their values: each element's gradient is linear in its output.

For L = sum_i w_i (o_i - t_i)^2 the gradient is 2 w_i (o_i - t_i). Two outputs determine w, and either of them then t.
No name is read, so losses of plugins are detected as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.contract.pytree import is_float
from sightline.contract.types import Batch
from sightline.engine.train import TrainState
from sightline.workbench.check.oracles.results import loss_counts, loss_sums

Function = Callable[[], Sequence[Tensor]]
"""Function of the current values of some tensors; equal values must give bit-identical outputs."""
_STEP = 1e-6  # for values of size 1: the error by third derivatives is 1e-12, by rounding 1e-10
_ROUNDING_FLOOR = (
    1e5 * torch.finfo(torch.float64).eps
)  # share of the sum of absolute terms; smaller changes are compared with it
_AGREEMENT = 1e-6
_NUM_DRAWS = 3
_EDGE_FACTOR = 40.0  # times the bend of a step: many edges may nearly cancel in the bend, but not in the difference
_SMALL_ERROR = 1e-4


def gradient_errors(
    function: Function, groups: Mapping[str, Sequence[Tensor]], *, seed: int = 0, step: float = _STEP
) -> dict[str, float]:
    """Compute the relative error of autograd's gradient, by group of tensors, against finite differences.

    The first draw that agrees to 1e-6 decides, otherwise the largest difference of three draws that no edge explains: a
    step may cross the edge of a ReLU, or change a maximum, and is then bent as well. The tensors are float64 leaves
    that require gradients; the tensors of a group are moved together, and restored. A missing gradient counts as
    zeros. A small `step` crosses fewer edges but has more rounding error: each draw uses ten times the previous step. A
    group is missing in the result if every draw crossed too many edges to compare.
    """
    errors: dict[str, float] = {}
    remaining = dict(groups)
    for attempt in range(_NUM_DRAWS):
        if not remaining:
            break
        generator = torch.Generator().manual_seed(seed + attempt)
        for name, (error, explained) in _compare_once(function, remaining, generator, step * 10**attempt).items():
            unexplained = max(0.0, error - explained)
            if unexplained > 0 or error <= _SMALL_ERROR:
                errors[name] = max(errors.get(name, 0.0), unexplained)
            if error <= _AGREEMENT:
                errors[name] = error
                del remaining[name]
    return errors


def worst_error(errors: Mapping[str, float]) -> tuple[str, float | None]:
    """Return the name and the value of the largest error; "" and None if nothing was compared."""
    return max(errors.items(), key=lambda item: item[1], default=("", None))


def describe_uncompared(groups: Mapping[str, object], errors: Mapping[str, float]) -> str:
    """Return a note on the groups that `gradient_errors` could not compare; "" if there are none."""
    missing = ", ".join(name for name in groups if name not in errors)
    return f"too many edges to compare the gradient of {missing}" if missing else ""


def _compare_once(
    function: Function, groups: Mapping[str, Sequence[Tensor]], generator: torch.Generator, step: float
) -> dict[str, tuple[float, float]]:
    """Compare each group along one direction: the relative error, and the part that edges and rounding may explain."""
    outputs = function()
    base_outputs = [output.detach().clone() for output in outputs]
    weights = _draw_weights(outputs, generator)
    floor = _ROUNDING_FLOOR * sum(
        float((weight * output).abs().sum()) for weight, output in zip(weights, base_outputs, strict=True)
    )
    total = _weighted_total(outputs, weights)
    leaves = [tensor for tensors in groups.values() for tensor in tensors]
    leaf_gradients = (
        torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)
    )
    gradients = dict(zip(map(id, leaves), leaf_gradients, strict=True))
    errors = {}
    for name, tensors in groups.items():
        steps = [_draw_step(tensor, generator, step) for tensor in tensors]
        numeric, bend = _measure_difference(function, weights, base_outputs, tensors, steps)
        contributions = [
            gradient * tensor_step
            for tensor, tensor_step in zip(tensors, steps, strict=True)
            if (gradient := gradients[id(tensor)]) is not None
        ]
        analytic = math.fsum(float(contribution.sum()) for contribution in contributions)
        length = math.sqrt(math.fsum(float(contribution.square().sum()) for contribution in contributions))
        size = max(length, abs(numeric), floor)
        error = abs(numeric - analytic) / size if size > 0 else 0.0
        if error > _AGREEMENT:
            half, _ = _measure_difference(
                function, weights, base_outputs, tensors, [tensor_step / 2 for tensor_step in steps]
            )
            bend += abs(numeric - 2 * half)
        errors[name] = error, _EDGE_FACTOR * bend / size if size > 0 else 0.0
    return errors


def _draw_step(tensor: Tensor, generator: torch.Generator, step: float) -> Tensor:
    """Draw a Gaussian step with the shape of a tensor, in proportion to its largest element."""
    drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return drawn * (step * tensor.detach().abs().max().clamp(1e-3, 1.0) if tensor.numel() else step)


def _measure_difference(
    function: Function,
    weights: Sequence[Tensor],
    base_outputs: Sequence[Tensor],
    tensors: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> tuple[float, float]:
    """Return half the difference between both ends of a step, and twice their mean's distance from the base (bend).

    Computed per output, so that large outputs do not hide small ones.
    """
    originals = [tensor.detach().clone() for tensor in tensors]
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            for tensor, original, step in zip(tensors, originals, steps, strict=True):
                tensor.copy_(original + sign * step)
            end_outputs = _evaluate_with_grad(function)
            terms = [
                float((w * (end - mid)).sum()) for w, end, mid in zip(weights, end_outputs, base_outputs, strict=True)
            ]
            ends.append(math.fsum(terms))
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.copy_(original)
    up, down = ends
    return (up - down) / 2, abs(up + down)


def _evaluate_with_grad(function: Function) -> Sequence[Tensor]:
    """Evaluate with gradients enabled, for functions that compute gradients themselves."""
    with torch.enable_grad():
        return function()


def _draw_weights(outputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Draw a Gaussian weight for each element of each output."""
    return [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output) for output in outputs]


def _weighted_total(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    terms = [(weight * output).sum() for weight, output in zip(weights, outputs, strict=True)]
    return torch.stack(terms).sum() if terms else torch.zeros(())


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


def find_squared_error(job: TrainState, batch: Batch, outputs: Mapping[str, Any], name: str) -> SquaredErrorLoss | None:
    """Fit the loss `name` as a squared error of one output; None if it is another function."""
    float64_outputs = {key: value.detach().double() if is_float(value) else value for key, value in outputs.items()}
    batch = {key: value.double() if is_float(value) else value for key, value in batch.items()}
    for key, output in float64_outputs.items():
        if not is_float(output) or not output.numel():
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
    values: list[float] = []
    gradients: list[Tensor] = []
    weight = torch.zeros(())
    for point in (output, near, far):
        value, gradient = _compute_gradient(job, batch, outputs, name, key, point)
        if gradient is None or not bool(gradient.isfinite().all()):
            return None
        values.append(value)
        gradients.append(gradient)
        if len(gradients) == 2:  # most losses are found out here, before they are computed again
            weight = (gradients[1] - gradients[0]) / (2 * (near - output))
            if float(weight.min()) < -_TOLERANCE * float(weight.max()):
                return None
    predicted = gradients[0] + 2 * weight * (far - output)
    scale = gradients[2].abs().max()
    if not float(scale) > 0 or not float((predicted - gradients[2]).abs().max()) <= _TOLERANCE * float(scale):
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
    count = loss_counts(job, batch, outputs, loss=name)[name]
    is_learned = loss_sums(job, batch, {**outputs, key: output}, loss=name)[name].requires_grad
    return SquaredErrorLoss(name, key, target_key, output, target, weight, count, is_learned)


def _compute_gradient(
    job: TrainState, batch: Batch, outputs: Mapping[str, Any], name: str, key: str, point: Tensor
) -> tuple[float, Tensor | None]:
    output = point.detach().clone().requires_grad_(True)
    total = loss_sums(job, batch, {**outputs, key: output}, loss=name)[name]
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
