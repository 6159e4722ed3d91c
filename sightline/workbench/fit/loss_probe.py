"""Probe of the loss without the model: free outputs give the lowest loss (the floor) and expose a faulty loss.

A gradient is right if it agrees with finite differences; a loss is bounded if its minimisation converges.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.contract.types import Batch
from sightline.doctor.batches import ReadTrackingDict
from sightline.engine.step import compute_batch_losses, divide_by_count, weighted_sum
from sightline.engine.train import TrainState
from sightline.workbench.check.core.sample_statistics import class_axis
from sightline.workbench.check.oracles.loss_case import is_ordinal
from sightline.workbench.check.oracles.results import FixedOutputs
from sightline.workbench.fit.fit_attempt import FitSetup, forward_once, prepare_model

_STEPS = 150
_DIRECTIONS = 6
_STEP = 1e-4
"""Step of finite differences, in standard deviations of an output: float64 leaves eight digits of the difference."""
_UNBOUNDED_FACTOR = 1e3
"""A loss this many times its initial size below zero, and still falling in proportion, has no floor."""
_FAR, _SLACK = 30.0, 1e-5
"""Distance of classes that a sample is not of, and rounding, as a share of the largest output."""
_LABEL_SHIFT = 1.0
"""Change of the label's logit, up and down: small, so that it also lowers the loss of smoothed targets."""


@dataclass(frozen=True)
class GradientCheck:
    """Directional derivatives of a loss compared with finite differences: `ratio` is 1 if they agree.

    `ratio` is 0 for a gradient that does not reach the outputs, -1 for the wrong sign, and NaN if the loss is
    constant and its gradient zero. `misfit` is the residual that no ratio explains, as a share of the differences.
    """

    ratio: float
    misfit: float

    @property
    def is_right(self) -> bool:
        return math.isnan(self.ratio) or (abs(self.ratio - 1) < 0.02 and self.misfit < 0.1)


@dataclass(frozen=True)
class LossProbe:
    """Loss of a batch for the model's first outputs, and its lowest value for any outputs.

    `start` is the total loss in float64. `floor` is the lowest loss of any outputs, None if there is none; `lowest` is
    the lowest loss that was reached. `slopes` are per loss, `counts` their divisors. `truth` is the loss of outputs
    that favour the label and of outputs that oppose it, if there are logits and labels. `read` are the outputs that
    losses read, `inputs` the batch keys that the model reads, `targets` the other keys that losses read.
    """

    start: float
    floor: float | None
    lowest: float
    slopes: Mapping[str, GradientCheck]
    counts: Mapping[str, float]
    truth: tuple[float, float] | None
    outputs: Mapping[str, Tensor]
    read: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]


def probe_loss(bench: FitSetup) -> LossProbe:
    """Examine a run's losses on a batch, with the model's outputs as free float64 variables."""
    job = bench.built.job
    with torch.no_grad():
        outputs = forward_once(bench, prepare_model(bench, bench.precision))
    batch = ReadTrackingDict(bench.batch_in("float64"))
    free = {
        name: value.detach().double().clone(memory_format=torch.contiguous_format)  # L-BFGS flattens gradients
        for name, value in outputs.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    tracked = ReadTrackingDict({**outputs, **free})
    terms, counts = compute_batch_losses(job.task, FixedOutputs(tracked), batch, job.device)
    read = tuple(sorted(tracked.read & free.keys()))
    model_keys = set(inspect.signature(job.model.forward).parameters)
    target_keys = sorted(batch.read - model_keys - {"sample_index", "offsets"})
    free = {name: free[name] for name in read}
    total = _TotalLoss(job, outputs, batch)
    start = float(total(free).detach())
    floor, lowest = _minimise(total, free, start)
    if floor is None and min(map(_find_least, free.values())) >= 0:  # distances do not fall below 0
        floor, lowest = _minimise(lambda own: total({n: v.abs() for n, v in own.items()}), free, start)
    return LossProbe(
        start=start,
        floor=floor,
        lowest=lowest,
        slopes={name: _check_gradient(total.only(name), free) for name in terms},
        counts={name: float(count) for name, count in counts.items()},
        truth=_label_losses(total, free, batch),
        outputs=free,
        read=read,
        inputs=tuple(sorted(model_keys & batch.keys())),
        targets=tuple(target_keys),
    )


class _TotalLoss:
    """Total loss as a function of outputs; `only` selects one of its terms."""

    def __init__(self, job: TrainState, fixed: Mapping[str, Any], batch: Batch, term: str | None = None) -> None:
        self._job, self._fixed, self._batch, self._term = job, fixed, batch, term
        self._weights = job.loss_weights_at(job.num_steps)

    def only(self, term: str) -> _TotalLoss:
        return _TotalLoss(self._job, self._fixed, self._batch, term)

    def __call__(self, outputs: Mapping[str, Tensor]) -> Tensor:
        model = FixedOutputs({**self._fixed, **outputs})
        terms, counts = compute_batch_losses(self._job.task, model, self._batch, self._job.device)
        weights = self._weights if self._term is None else {self._term: 1.0}
        return weighted_sum({name: divide_by_count(terms[name], counts[name]).double() for name in weights}, weights)


def _compute_scales(outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the standard deviation of each output; for a constant output its magnitude, or 1."""
    sizes = {}
    for name, value in outputs.items():
        spread = float(value.std(correction=0)) if value.numel() > 1 else 0.0
        sizes[name] = spread or float(value.abs().max() if value.numel() else 0.0) or 1.0
    return sizes


def _draw_noise(outputs: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Draw normal noise with the outputs' scales, from a separate generator."""
    generator = torch.Generator().manual_seed(seed)
    scales = _compute_scales(outputs)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device) * scales[name]
        for name, value in outputs.items()
    }


# --- the gradient ----------------------------------------------------------------------------------------------------


def _check_gradient(total: Callable[[Mapping[str, Tensor]], Tensor], outputs: Mapping[str, Tensor]) -> GradientCheck:
    """Compare directional derivatives by autograd and central differences, including the gradient's direction."""
    noise = _draw_noise(outputs, 0)
    point = {name: value + 0.1 * noise[name] for name, value in outputs.items()}
    gradient = _compute_gradient(total, point)
    directions = [_draw_noise(outputs, seed) for seed in range(1, 1 + _DIRECTIONS)]
    scales = _compute_scales(outputs)
    size = math.sqrt(sum(float((g * scales[name]).square().sum()) for name, g in gradient.items()))
    if size > 0:
        directions.append({name: g * scales[name] ** 2 / size for name, g in gradient.items()})
    predicted = [sum(float((gradient[n] * d[n]).sum()) for n in d) for d in directions]
    differences = [_central_difference(total, point, direction) for direction in directions]
    squares = sum(difference * difference for difference in differences)
    if squares <= 1e-24 * max(1.0, float(total(point).detach()) ** 2):
        return GradientCheck(math.nan if size == 0 else math.inf, 0.0)
    ratio = sum(a * b for a, b in zip(predicted, differences, strict=True)) / squares
    misfit = math.sqrt(sum((a - ratio * b) ** 2 for a, b in zip(predicted, differences, strict=True)) / squares)
    return GradientCheck(ratio, misfit)


def _compute_gradient(
    total: Callable[[Mapping[str, Tensor]], Tensor], point: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
    with torch.enable_grad():
        value = total(leaves)
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def _central_difference(
    total: Callable[[Mapping[str, Tensor]], Tensor], point: Mapping[str, Tensor], direction: Mapping[str, Tensor]
) -> float:
    with torch.no_grad():
        ends = [total({n: v + sign * _STEP * direction[n] for n, v in point.items()}) for sign in (1, -1)]
    return (float(ends[0]) - float(ends[1])) / (2 * _STEP)


# --- the floor -------------------------------------------------------------------------------------------------------


def _minimise(
    total: Callable[[Mapping[str, Tensor]], Tensor], outputs: Mapping[str, Tensor], start: float
) -> tuple[float | None, float]:
    """Minimise the loss over free outputs; return the floor (None if unbounded) and the lowest loss seen.

    The first outputs get a little noise, or equal rows would keep equal gradients.
    """
    noise = _draw_noise(outputs, 0)
    leaves = {name: (value + 0.1 * noise[name]).requires_grad_() for name, value in outputs.items()}
    optimizer = torch.optim.LBFGS(
        list(leaves.values()),
        max_iter=_STEPS,
        history_size=5,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    best = [start]

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = total(leaves)
        if value.requires_grad:
            value.backward()
        predicted = float(value.detach())
        if math.isfinite(predicted):
            best[0] = min(best[0], predicted)
        return value.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    direction = {name: (leaf.detach() - outputs[name]) for name, leaf in leaves.items()}
    far = _losses_along(total, outputs, direction)
    size = max(1.0, abs(start))
    if far[-1] < -_UNBOUNDED_FACTOR * size and far[-1] < 2 * far[-2]:
        return None, min(best[0], far[-1])
    return (None, best[0]) if best[0] < -1e6 * size else (best[0], best[0])


def _losses_along(
    total: Callable[[Mapping[str, Tensor]], Tensor], point: Mapping[str, Tensor], direction: Mapping[str, Tensor]
) -> list[float]:
    """Compute the loss at 10, 100, ... 100,000 times the displacement that lowered it."""
    with torch.no_grad():
        values = [float(total({n: v + 10.0**power * direction[n] for n, v in point.items()})) for power in range(1, 6)]
    return [value if math.isfinite(value) else math.inf for value in values]


def _label_losses(
    total: Callable[[Mapping[str, Tensor]], Tensor], outputs: Mapping[str, Tensor], batch: Batch
) -> tuple[float, float] | None:
    """Compute the loss of logits that favour the label, and of logits that oppose it; other outputs are unchanged.

    None for outputs that are no scores of classes: distances, levels of an order, and features.
    """
    logits, label = outputs.get("logits"), batch.get("label")
    if logits is None or not isinstance(label, Tensor) or label.is_floating_point():
        return None
    axis = class_axis(logits, label)
    if axis is None:
        return None
    classes = logits.shape[axis]
    is_class = (label >= 0) & (label < classes)
    one_hot = torch.nn.functional.one_hot(torch.where(is_class, label, 0), classes).movedim(-1, axis).double()

    def compute(scores: Tensor) -> float:
        with torch.no_grad():
            return float(total({**outputs, "logits": scores}))

    if _find_least(logits) >= 0 and compute(_FAR * (1 - one_hot)) < compute(0 * one_hot):
        return None
    if not _are_scores(
        lambda scores: _compute_gradient(total, {**outputs, "logits": scores})["logits"], label, axis, one_hot
    ):
        return None
    favouring, opposing = (compute(sign * _LABEL_SHIFT * one_hot) for sign in (1, -1))
    return favouring, opposing


def _find_least(outputs: Tensor) -> float:
    """Return the least output, and 0 for one that is below by rounding alone."""
    least, largest = float(outputs.min()), float(outputs.abs().max())
    return 0.0 if -_SLACK * largest <= least < 0 else least


def _are_scores(compute_pull: Callable[[Tensor], Tensor], label: Tensor, axis: int, one_hot: Tensor) -> bool:
    """Return True if a loss treats all classes but the label's alike, as it does with scores of classes.

    It raises all of them, or lowers them, one of them aside; levels of an order are raised below the label's, and
    features of a sample in any direction.
    """
    classes, num_levels = label.unique(), one_hot.shape[axis]

    def compare(scores: Tensor) -> tuple[Tensor, Tensor]:
        rows = compute_pull(scores).movedim(axis, -1)
        means = torch.stack([rows[label == c].mean(dim=0) for c in classes])
        return means < 0, means > 0

    shape = [num_levels if place == axis % one_hot.ndim else 1 for place in range(one_hot.ndim)]
    steps = torch.linspace(-2, 2, num_levels, dtype=one_hot.dtype, device=one_hot.device).view(shape)
    if any(is_ordinal(*compare((sign * steps).expand_as(one_hot).contiguous())) for sign in (-1, 1)):
        return False
    is_own = classes[:, None] == torch.arange(num_levels, device=label.device)
    counts = torch.stack([(side & ~is_own).sum(dim=1) for side in compare(torch.zeros_like(one_hot))])
    return 2 * int((counts.amin(dim=0) > 1).sum()) <= len(classes)
