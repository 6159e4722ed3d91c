"""The loss without the model: its outputs as free numbers. Their lowest loss is the floor, and exposes a faulty loss.

A gradient is right where it agrees with finite differences; a loss is bounded where following it comes to an end.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.core.class_axes import class_axis
from sightline.doctor.core.dry_run import ReadTrackingDict, detach_nested
from sightline.doctor.overfit.fit_attempt import FitSetup, forward_once, prepare_model
from sightline.engine.step import compute_batch_losses, divide_by_count, weighted_sum
from sightline.engine.train import TrainState
from sightline.types import Batch

__all__ = ["GradientCheck", "LossProbe", "probe_loss"]

_STEPS = 150
_DIRECTIONS = 6
_STEP = 1e-4
"""Of finite differences, in standard deviations of an output: float64 leaves eight digits of the difference."""
_FALLS_FREELY = 1e3
"""A loss this many times its first size below zero, and still falling in proportion, has no floor."""
_LEANING = 1.0
"""In logits, to the label and away from it: little, so that smoothed targets like it, too."""


@dataclass(frozen=True)
class GradientCheck:
    """A loss's gradient along directions against its finite differences: `ratio` is 1 where they agree.

    `ratio` is 0 for a gradient that does not reach the outputs, -1 for one of the wrong sign; NaN where neither moves.
    `misfit` is what no ratio explains, as a share of the differences.
    """

    ratio: float
    misfit: float

    @property
    def is_right(self) -> bool:
        return math.isnan(self.ratio) or (abs(self.ratio - 1) < 0.02 and self.misfit < 0.1)


@dataclass(frozen=True)
class LossProbe:
    """What the loss of a batch is for the model's first outputs, and what it could be.

    `start` is the whole loss in float64. `floor` is the lowest that any outputs have, None where there is none: then
    `fallen_to` is what was seen. `slopes` are per loss; `counts` what each is divided by. `truth` is the loss of
    outputs that favour the label and of those that oppose it, where logits and labels show it. `read` are the
    outputs that losses read, `inputs` the keys of the batch that the model takes, `targets` what losses take besides.
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


class _Replay:
    """Stands in for the model: gives these outputs whatever it is asked, and notes which are read."""

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        self.outputs = ReadTrackingDict(outputs)

    def __call__(self, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        return self.outputs


def probe_loss(bench: FitSetup) -> LossProbe:
    """Look at a run's losses on a batch, with the model's outputs as free float64 numbers."""
    job = bench.built.job
    with torch.no_grad():
        found = detach_nested(forward_once(bench, prepare_model(bench, bench.precision)))
    batch = ReadTrackingDict(bench.batch_in("float64"))
    free = {
        name: value.detach().double().clone(memory_format=torch.contiguous_format)  # L-BFGS flattens gradients
        for name, value in found.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    replay: Any = _Replay({**found, **free})
    terms, counts = compute_batch_losses(job.task, replay, batch, job.device)
    read = tuple(sorted(replay.outputs.read & free.keys()))
    taken = set(inspect.signature(job.model.forward).parameters)
    others = sorted(batch.read - taken - {"sample_index", "offsets"})
    free = {name: free[name] for name in read}
    total = _Total(job, found, batch)
    start = float(total(free).detach())
    floor, fallen_to = _lowest(total, free, start)
    return LossProbe(
        start=start,
        floor=floor,
        lowest=fallen_to,
        slopes={name: _slope(total.only(name), free) for name in terms},
        counts={name: float(count) for name, count in counts.items()},
        truth=_truth(total, free, batch),
        outputs=free,
        read=read,
        inputs=tuple(sorted(taken & batch.keys())),
        targets=tuple(others),
    )


class _Total:
    """The whole loss as a function of outputs; with `only`, one of its terms."""

    def __init__(self, job: TrainState, fixed: Mapping[str, Any], batch: Batch, term: str | None = None) -> None:
        self._job, self._fixed, self._batch, self._term = job, fixed, batch, term
        self._weights = job.loss_weights_at(job.num_steps)

    def only(self, term: str) -> _Total:
        return _Total(self._job, self._fixed, self._batch, term)

    def __call__(self, outputs: Mapping[str, Tensor]) -> Tensor:
        model: Any = _Replay({**self._fixed, **outputs})
        terms, counts = compute_batch_losses(self._job.task, model, self._batch, self._job.device)
        weights = self._weights if self._term is None else {self._term: 1.0}
        return weighted_sum({name: divide_by_count(terms[name], counts[name]).double() for name in weights}, weights)


def _scales(outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """How far each output's numbers lie from one another; what is constant moves by its size, or by 1."""
    sizes = {}
    for name, value in outputs.items():
        spread = float(value.std(correction=0)) if value.numel() > 1 else 0.0
        sizes[name] = spread or float(value.abs().max() if value.numel() else 0.0) or 1.0
    return sizes


def _noise(outputs: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Normal numbers of the outputs' spread, from a generator of their own."""
    draws = torch.Generator().manual_seed(seed)
    scales = _scales(outputs)
    return {
        name: torch.randn(value.shape, generator=draws, dtype=torch.float64).to(value.device) * scales[name]
        for name, value in outputs.items()
    }


# --- the gradient ----------------------------------------------------------------------------------------------------


def _slope(total: Callable[[Mapping[str, Tensor]], Tensor], outputs: Mapping[str, Tensor]) -> GradientCheck:
    """Directional derivatives by autograd and by central differences, the gradient's own direction among them."""
    noise = _noise(outputs, 0)
    place = {name: value + 0.1 * noise[name] for name, value in outputs.items()}
    gradient = _gradient(total, place)
    directions = [_noise(outputs, seed) for seed in range(1, 1 + _DIRECTIONS)]
    scales = _scales(outputs)
    size = math.sqrt(sum(float((g * scales[name]).square().sum()) for name, g in gradient.items()))
    if size > 0:
        directions.append({name: g * scales[name] ** 2 / size for name, g in gradient.items()})
    predicted = [sum(float((gradient[n] * d[n]).sum()) for n in d) for d in directions]
    seen = [_difference(total, place, direction) for direction in directions]
    squares = sum(each * each for each in seen)
    if squares <= 1e-24 * max(1.0, float(total(place).detach()) ** 2):
        return GradientCheck(math.nan if size == 0 else math.inf, 0.0)
    ratio = sum(a * b for a, b in zip(predicted, seen, strict=True)) / squares
    misfit = math.sqrt(sum((a - ratio * b) ** 2 for a, b in zip(predicted, seen, strict=True)) / squares)
    return GradientCheck(ratio, misfit)


def _gradient(total: Callable[[Mapping[str, Tensor]], Tensor], place: Mapping[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in place.items()}
    with torch.enable_grad():
        value = total(leaves)
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def _difference(
    total: Callable[[Mapping[str, Tensor]], Tensor], place: Mapping[str, Tensor], direction: Mapping[str, Tensor]
) -> float:
    with torch.no_grad():
        ends = [total({n: v + sign * _STEP * direction[n] for n, v in place.items()}) for sign in (1, -1)]
    return (float(ends[0]) - float(ends[1])) / (2 * _STEP)


# --- the floor -------------------------------------------------------------------------------------------------------


def _lowest(
    total: Callable[[Mapping[str, Tensor]], Tensor], outputs: Mapping[str, Tensor], start: float
) -> tuple[float | None, float]:
    """The lowest loss that free outputs come to, and the lowest seen; no floor where it falls for ever.

    The first outputs are shaken a little, or equal rows would keep their equal gradients.
    """
    noise = _noise(outputs, 0)
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
    far = _along(total, outputs, direction)
    size = max(1.0, abs(start))
    if far[-1] < -_FALLS_FREELY * size and far[-1] < 2 * far[-2]:
        return None, min(best[0], far[-1])
    return (None, best[0]) if best[0] < -1e6 * size else (best[0], best[0])


def _along(
    total: Callable[[Mapping[str, Tensor]], Tensor], place: Mapping[str, Tensor], direction: Mapping[str, Tensor]
) -> list[float]:
    """The loss ten, a hundred, ... a hundred thousand times as far as the way that lowered it."""
    with torch.no_grad():
        values = [float(total({n: v + 10.0**power * direction[n] for n, v in place.items()})) for power in range(1, 6)]
    return [value if math.isfinite(value) else math.inf for value in values]


def _truth(
    total: Callable[[Mapping[str, Tensor]], Tensor], outputs: Mapping[str, Tensor], batch: Batch
) -> tuple[float, float] | None:
    """The loss where logits lean to the label, and away from it, other outputs as they are."""
    logits, label = outputs.get("logits"), batch.get("label")
    if logits is None or not isinstance(label, Tensor) or label.is_floating_point():
        return None
    axis = class_axis(logits, label)
    if axis is None:
        return None
    classes = logits.shape[axis]
    is_class = (label >= 0) & (label < classes)
    right = torch.nn.functional.one_hot(torch.where(is_class, label, 0), classes).movedim(-1, axis).double()
    with torch.no_grad():
        to, away = (float(total({**outputs, "logits": sign * _LEANING * right})) for sign in (1, -1))
    return to, away
