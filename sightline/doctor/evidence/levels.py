"""Losses that need no network: of outputs that are all 0, of the best constants, and of the best outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves, is_float, tree_map
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.losses import set_gradients, value_of
from sightline.doctor.forms.form import Batch
from sightline.doctor.subject import Pass, Subject

_STEPS = 150
_NOISE = 0.1
FITTED = 0.1
"""Share of the way from constants to the floor that is left when samples count as fitted."""
_MIN_GAIN = 0.01
"""Share of the way from the first loss to the floor that outputs must gain on constants: less is no question."""
_UNBOUNDED_FACTOR = 1e3
"""A loss this many times its initial size below zero, and still falling in proportion, has no floor."""


class FreeLoss(NamedTuple):
    """Loss of the first batch as a function of its outputs, by path; in float64, if it takes that.

    `outputs` are those of the network that the loss reads, `axes` those of their classes or channels. `are_maps` tells
    numbers at several places of a sample that are compared with numbers: maps, volumes, coordinates.
    """

    compute: Callable[[Mapping[str, Tensor]], Tensor]
    outputs: dict[str, Tensor]
    axes: dict[str, int]
    are_maps: bool


@measure(passes=1)
def free_loss(subject: Subject, passed: Pass) -> FreeLoss:
    """Take the network away from its loss, and find the outputs that the loss reads."""
    leaves = {path: t.detach() for path, t in dense_leaves(passed.outputs) if is_float(t) and t.requires_grad}
    promoted = promote(subject, passed), {path: t.double().contiguous() for path, t in leaves.items()}
    for (judged, recorded), outputs in (promoted, ((subject, passed), leaves)):

        def compute(given: Mapping[str, Tensor], judged: Subject = judged, recorded: Pass = recorded) -> Tensor:
            return value_of(judged, recorded, dict(given)) / subject.divisor

        read = attempt("the loss", _find_read, {"compute": compute, "outputs": outputs})
        if not isinstance(read, MissingError):
            labels = [t for _, t in dense_leaves(passed.batch.target) if not t.is_floating_point()]
            numbers = {t.squeeze().shape for _, t in dense_leaves(passed.batch.target) if t.is_floating_point()}
            are_maps = any(t.ndim > 2 and t.squeeze().shape in numbers for t in read.values())
            return FreeLoss(compute, read, {path: _find_axis(t, labels) for path, t in read.items()}, are_maps)
    raise read


def promote(subject: Subject, passed: Pass) -> tuple[Subject, Pass]:
    """Return a subject and its pass in float64, without a graph."""

    def convert(_: str, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.double() if tensor.is_floating_point() else tensor

    batch = Batch(passed.batch.inputs, tree_map(passed.batch.target, convert))
    outputs = tree_map(passed.outputs, convert)
    return dataclasses.replace(subject, form=subject.form.to_double()), passed._replace(batch=batch, outputs=outputs)


def _find_read(compute: Callable[[Mapping[str, Tensor]], Tensor], outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {path: t.clone().requires_grad_() for path, t in outputs.items()}
    value = compute(leaves)
    if not leaves or not value.requires_grad:
        return {}
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {path: outputs[path] for path, g in zip(leaves, gradients, strict=True) if g is not None}


def _find_axis(output: Tensor, labels: list[Tensor]) -> int:
    """Return the axis of the classes of labels; else that of channels: 1 of maps and volumes, or the last one."""
    for label in labels if output.ndim > 1 else ():
        axes = [a for a in range(output.ndim) if output.shape[:a] + output.shape[a + 1 :] == label.shape]
        if axes:
            return axes[-1]
    return 1 if output.ndim > 3 else output.ndim - 1


class Levels(NamedTuple):
    """Losses of the first batches: of the network's outputs, of zeros, and of the best constants.

    A constant has one number for each class or channel, at all places of all samples; NaN if its loss has no minimum.
    """

    start: float
    zero: float
    constant: float
    are_maps: bool = True


@measure(passes=2)
def levels(free_loss: FreeLoss, passed: Pass) -> Levels:
    """Put zeros, and the best constants, in place of outputs that have a target of numbers, such as maps."""
    targets = {t.squeeze().shape for _, t in dense_leaves(passed.batch.target) if t.is_floating_point()}
    if not any(t.numel() > 1 and t.squeeze().shape in targets for t in free_loss.outputs.values()):
        raise NotApplicableError("no target of numbers")
    with torch.no_grad():
        first, moved = (float(free_loss.compute({p: t + by for p, t in free_loss.outputs.items()})) for by in (0, 1))
    if math.isclose(first, moved, rel_tol=1e-6):
        raise NotApplicableError("targets of scores, whose differences alone count")
    return find_levels(free_loss)


def find_levels(free_loss: FreeLoss, *others: FreeLoss) -> Levels:
    """Find the losses of outputs, zeros, and constants that are the same for all batches, as means over the batches.

    Raises NotApplicableError for a loss of no outputs, a loss that is not finite, and batches of other channels.
    """
    batches = (free_loss, *others)
    if not free_loss.outputs:
        raise LeftOutError("the loss is not a function of outputs")
    with torch.no_grad():
        start, zero = (
            math.fsum(float(b.compute({p: by * t for p, t in b.outputs.items()})) for b in batches) / len(batches)
            for by in (1.0, 0.0)
        )
    if not math.isfinite(start):
        raise LeftOutError("a loss that is not finite")
    of_batches = [_average_channels(each) for each in batches]
    if any({p: t.shape for p, t in m.items()} != {p: t.shape for p, t in of_batches[0].items()} for m in of_batches):
        raise NotApplicableError("batches of other channels")
    means = {p: torch.stack([each[p] for each in of_batches]).mean(0) for p in of_batches[0]}

    def compute_constant(given: Mapping[str, Tensor]) -> Tensor:
        losses = [b.compute({p: t.expand(b.outputs[p].shape) for p, t in given.items()}) for b in batches]
        return torch.stack(losses).mean()

    constant = minimise(compute_constant, means)
    constant = math.nan if constant is None else min(constant, zero) if zero == zero else constant
    return Levels(start, zero, constant, free_loss.are_maps)


def _average_channels(free_loss: FreeLoss) -> dict[str, Tensor]:
    return {
        path: t.mean([axis for axis in range(t.ndim) if axis != free_loss.axes[path]] or None, keepdim=True)
        for path, t in free_loss.outputs.items()
    }


@dataclass(frozen=True)
class LossBounds:
    """Losses of a batch: of the first outputs, of zeros, of the best constants, and of the best outputs.

    `floor` is None if the loss falls without bound, or reads no output.
    """

    start: float
    zero: float
    constant: float
    floor: float | None

    @property
    def is_question(self) -> bool:
        """True if the best outputs are better than constants: else a bias alone fits these samples."""
        return self.floor is not None and self.constant - self.floor > _MIN_GAIN * abs(self.start - self.floor)

    @property
    def goal(self) -> float:
        """Loss at which samples count as fitted: a tenth of the way to the floor is left, from the better start.

        That is the loss of constants, or of the first outputs if it is lower. Source of the tenth: the pass rule of an
        over-fitted sample. NaN without a floor.
        """
        if self.floor is None:
            return math.nan
        start = min(self.start, self.constant) if self.is_question else self.start
        return self.floor + FITTED * (start - self.floor)

    def is_stuck(self, loss: float) -> bool:
        """Return True for a loss as far above the floor as that of the best constants, to a fifth."""
        return self.floor is not None and abs(loss - self.constant) < 0.2 * (self.constant - self.floor)

    def describe(self) -> str:
        """Describe the losses in one line."""
        floor = "no lower bound is known" if self.floor is None else f"the best outputs {self.floor:.4g}"
        zero = f"all-zero outputs have {self.zero:.4g}, " if math.isfinite(self.zero) else ""
        return f"initial loss {self.start:.4g}; {zero}the best constants reach {self.constant:.4g}, {floor}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        losses = dataclasses.asdict(self)
        return {name: value if value is not None and math.isfinite(value) else None for name, value in losses.items()}


@measure(passes=60)
def bounds(free_loss: FreeLoss) -> LossBounds:
    """Minimise the loss over free outputs, beside that of zeros and constants."""
    compute, outputs = free_loss.compute, free_loss.outputs
    known = attempt("levels", find_levels, {"free_loss": free_loss})
    if isinstance(known, MissingError):
        with torch.no_grad():
            start = float(compute(outputs))
        return LossBounds(start, math.nan, start, None)
    floor = minimise(compute, outputs)
    if floor is None and all(float(t.min()) >= 0 for t in outputs.values()):  # distances do not fall below 0
        floor = minimise(lambda given: compute({p: t.abs() for p, t in given.items()}), outputs)
    constant = known.start if math.isnan(known.constant) else known.constant
    return LossBounds(known.start, known.zero, constant, floor if floor is None else min(floor, known.start))


def minimise(compute: Callable[[Mapping[str, Tensor]], Tensor], outputs: Mapping[str, Tensor]) -> float | None:
    """Minimise a loss over free numbers, from a little beside some; None if it falls without bound."""
    generator = torch.Generator().manual_seed(0)
    leaves = {}
    for path, value in outputs.items():  # equal rows would keep equal gradients
        size = float(value.std()) if value.numel() > 1 else 0.0
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        leaves[path] = (value + _NOISE * (size or 1.0) * noise).detach().requires_grad_()
    optimizer = torch.optim.LBFGS(
        list(leaves.values()),
        max_iter=_STEPS,
        history_size=5,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    seen: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = compute(leaves)
        set_gradients(value, leaves.values())
        seen.append(float(value.detach()))
        return value.detach()

    # torch's search along a line has no bracket where the loss becomes infinite or no number: the search ends there.
    with torch.enable_grad(), suppress(IndexError):
        optimizer.step(closure)
    best, size = min(filter(math.isfinite, seen), default=math.nan), max(1.0, abs(seen[0]))
    ways = {path: leaf.detach() - outputs[path] for path, leaf in leaves.items()}
    with torch.no_grad():
        near, far = (float(compute({p: t + by * ways[p] for p, t in outputs.items()})) for by in (1e4, 1e5))
    falls = far < -_UNBOUNDED_FACTOR * size and far < 2 * near
    return None if falls or not best > -1e6 * size else best
