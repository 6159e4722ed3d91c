"""Deviation of a variant from the reference, in units of explained rounding, tensor by tensor.

The unit is the larger of two: the change of the reference's result when its inputs are perturbed by one unit in the
last place of the variant's number format (the largest of some draws), and one unit in the last place of the result's
largest value. More than `MAX_ROUNDING_UNITS` units are not explained. If a tensor stays suspect, the results of the
operations inside are perturbed as well: for a sum that is zero except for rounding, the inputs show nothing. The error
of a plain form of a layer in the variant's format also counts, if there is one that sums sequentially.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.instrument.formats import FORMATS, Format
from sightline.instrument.plain_forms import run_plain_form, run_unfused_twin, sum_magnitudes
from sightline.instrument.replay import LayerUnit, Perturbation, ReferenceResult

MAX_ROUNDING_UNITS = 16.0
"""Units of rounding beyond which a deviation is not explained."""
INFINITE_RATIO = 1e99
"""Ratio that marks an unbounded deviation: another shape, or a number compared with NaN."""
_NUM_DRAWS = 4
_MAX_SMOOTH_UNITS = 1000.0
"""Units of the result's largest value beyond which a draw may not be rounding: a decision may have changed."""
_MIN_JUMP_DRAWS, _MAX_JUMP_DRAWS = 8, 32
"""Number of draws after which a suspect without a jump is guilty, and after which every suspect is."""

Run = Callable[[Perturbation | None], ReferenceResult]


@dataclass
class Deviation:
    """Deviation of one tensor: largest error, unit of rounding, and largest value of the reference.

    `undefined` of the `entries` depend on decisions that rounding changes. `note` adds facts that numbers do not show.
    """

    error: float
    unit: float
    scale: float
    entries: int
    undefined: int = 0
    note: str = ""

    @property
    def ratio(self) -> float:
        """The error in units of rounding; above `MAX_ROUNDING_UNITS` it is not explained."""
        if self.error == 0.0:
            return 0.0
        return (
            min(self.error / self.unit, INFINITE_RATIO)
            if self.unit > 0 and math.isfinite(self.error)
            else INFINITE_RATIO
        )

    @property
    def is_guilty(self) -> bool:
        """True if rounding does not explain the error."""
        return self.ratio > MAX_ROUNDING_UNITS

    def widen_tolerance(self, moved: float, *, most: float) -> None:
        """Raise the unit to the change `moved` of one draw, unless that is above `most`: then it may be a jump."""
        if moved <= most:
            self.unit = max(self.unit, moved)

    @property
    def relative_error(self) -> float:
        """The error as a share of the largest value."""
        return (
            min(self.error / self.scale, INFINITE_RATIO) if self.scale > 0 else (INFINITE_RATIO if self.error else 0.0)
        )

    @property
    def relative_bound(self) -> float:
        """The largest error that rounding explains, as a share of the largest value."""
        return MAX_ROUNDING_UNITS * self.unit / self.scale if self.scale > 0 else 0.0


def judge(unit: LayerUnit, actual: Mapping[str, Tensor], clean: ReferenceResult, run: Run, *, seed: int) -> Judgement:
    """Judge each tensor that both sides have, and measure how far perturbations move the others.

    `run(perturbation)` recomputes the result with perturbed inputs. Draws stop as soon as no tensor is suspect: more
    of them would only raise the unit, so a ratio is an upper bound.
    """
    base, exact = unit.call.format, clean.items()
    answers = {name: value for name, value in exact.items() if name in actual}
    factors = {name: _sum_error_factor(unit.num_added(name)) for name in exact}
    deviations = {
        name: _compute_deviation(actual[name], value, base, factor=factors[name]) for name, value in answers.items()
    }
    max_changes = {
        name: math.inf if name in _parameter_gradients(deviations) else _MAX_SMOOTH_UNITS * d.unit
        for name, d in deviations.items()
    }
    moves = {name: 0.0 for name in exact if name not in actual}
    if _is_explained(deviations):
        return Judgement(deviations, moves)
    for name, largest in sum_magnitudes(unit).items() if _parameter_gradients(deviations) else ():
        if name in deviations:
            deviations[name].unit = max(deviations[name].unit, factors[name] * base.ulp(largest))
    if _is_explained(deviations):
        return Judgement(deviations, moves)
    possible_suspects = {name for name, deviation in deviations.items() if deviation.ratio > MAX_ROUNDING_UNITS / 2}
    for result, includes_rounding in _run_with_rounding(unit, possible_suspects, run, seed):
        for name, perturbed in result.items().items():
            factor = 1.0 if includes_rounding else factors.get(name, 1.0)
            if name in deviations:
                max_change = math.inf if includes_rounding else max_changes[name]
                deviations[name].widen_tolerance(factor * _largest_change(perturbed, answers[name]), most=max_change)
            elif name in moves:
                moves[name] = max(moves[name], factor * _largest_change(perturbed, exact[name]))
        if _is_explained(deviations):
            return Judgement(deviations, moves)
    suspects = [name for name, d in deviations.items() if d.is_guilty and actual[name].shape == answers[name].shape]
    if suspects:
        jumps = _exclude_jumps(deviations, suspects, actual, answers, run, base, seed)
        if any(deviations[name].is_guilty for name in suspects):
            _tolerate_twin_error(deviations, jumps, answers, run_unfused_twin(unit))
    return Judgement(deviations, moves)


def _is_explained(deviations: Mapping[str, Deviation]) -> bool:
    """Return True if no further draws are needed. Half the bound is required: few draws are not a maximum."""
    return all(deviation.ratio <= MAX_ROUNDING_UNITS / 2 for deviation in deviations.values())


def _parameter_gradients(names: Iterable[str]) -> set[str]:
    """Return the names of parameter gradients: sums over all positions, whose terms may cancel."""
    return {name for name in names if name.startswith("to parameter.")}


class Judgement(NamedTuple):
    """Deviations by name, and the largest change of each tensor that the variant does not have."""

    deviations: dict[str, Deviation]
    moves: dict[str, float]


def _sum_error_factor(num_added: int) -> float:
    """Return the error of a sequential sum of `num_added` values, in units of the effect of perturbing each value.

    Each addition is rounded by up to half a unit of the partial sum. The root mean square over n additions is
    sqrt(n / 12) * sqrt(1 / 3) = sqrt(n) / 6 units of the final sum, whether it grows or cancels.
    """
    return max(1.0, math.sqrt(num_added) / 6.0)


def _tolerate_twin_error(
    deviations: dict[str, Deviation],
    jumps: Mapping[str, Tensor],
    answers: Mapping[str, Tensor],
    twin: ReferenceResult | None,
) -> None:
    """Raise the units to the error of the layer's plain twin, except in entries that jump."""
    for name, value in ({} if twin is None else twin.items()).items():
        if name in jumps and value.shape == answers[name].shape:
            error = max_abs_difference(value[~jumps[name]], answers[name][~jumps[name]])
            deviations[name].unit = max(deviations[name].unit, error)


def _run_with_rounding(
    unit: LayerUnit, suspects: set[str], run: Run, seed: int
) -> Iterator[tuple[ReferenceResult, bool]]:
    """Yield results with rounding, the cheapest first: sequential sums, perturbed inputs, perturbed operations.

    Each comes with True if it already includes every rounding.
    """
    base = unit.call.format
    plainest = run_plain_form(unit, suspects)
    if plainest is not None:
        yield plainest, True
    for draw in range(_NUM_DRAWS):
        yield run(Perturbation(base, seed + draw)), False
    for draw in range(_NUM_DRAWS, 2 * _NUM_DRAWS):
        yield run(Perturbation(base, seed + draw, inside=True)), False


def sum_deviation(actual: Tensor, reference: Tensor, base: Format, *, moved: float, num_added: int) -> Deviation:
    """Compute the deviation of a sum of `num_added` values, which changes by `moved` if inputs change by one unit."""
    deviation = _compute_deviation(actual, reference, base, factor=_sum_error_factor(num_added))
    deviation.unit = max(deviation.unit, moved)
    return deviation


def _exclude_jumps(
    deviations: dict[str, Deviation],
    suspects: list[str],
    actual: Mapping[str, Tensor],
    answers: Mapping[str, Tensor],
    run: Run,
    base: Format,
    seed: int,
) -> dict[str, Tensor]:
    """Exclude the entries that jump, until every suspect is explained or further draws are pointless.

    A decision (which neighbour is nearer, which response is the largest) may change after the smallest rounding, and
    the values that depend on it then jump. Inputs are perturbed by `MAX_ROUNDING_UNITS` units as well, and by one in
    the same directions, and in three draws of four every operation's result: a smooth value moves `MAX_ROUNDING_UNITS`
    times as far. An entry that does not, by more than the bound itself, has no value that survives rounding: it is not
    judged, and the others are. Returns the mask of jumping entries of each suspect. The movement of other entries is
    rounding, however far.
    """
    jumps = {name: torch.zeros_like(answers[name], dtype=torch.bool) for name in suspects}
    smooth_changes = {name: deviations[name].unit for name in suspects}
    for draw in range(_MAX_JUMP_DRAWS):
        inside = draw % 4 > 0  # decisions by sums of equal terms show only there
        near = run(Perturbation(base, seed + 1000 + draw, inside=inside)).items()
        far = run(Perturbation(base, seed + 1000 + draw, units=int(MAX_ROUNDING_UNITS), inside=inside)).items()
        for name in suspects:
            jumps[name] |= _jump_mask(
                answers[name], near.get(name), far.get(name), MAX_ROUNDING_UNITS * smooth_changes[name]
            )
            if name in near and near[name].shape == answers[name].shape and answers[name].is_floating_point():
                smooth_changes[name] = max(
                    smooth_changes[name], _largest_change(near[name][~jumps[name]], answers[name][~jumps[name]])
                )
        for name in suspects:
            deviation = _compute_deviation(actual[name], answers[name], base, where=~jumps[name])
            deviation.unit = max(deviation.unit, smooth_changes[name])
            deviation.undefined = int(jumps[name].sum())
            deviations[name] = deviation
        guilty = [name for name in suspects if deviations[name].is_guilty]
        if not guilty or (draw + 1 >= _MIN_JUMP_DRAWS and not any(bool(jumps[name].any()) for name in guilty)):
            break
    return jumps


def _jump_mask(reference: Tensor, near: Tensor | None, far: Tensor | None, bound: float) -> Tensor:
    """Compute the mask of entries that do not move in a straight line from `reference` over `near` to `far`.

    Such an entry leaves the line by more than `bound` and by more than half of the line's own step: a mere bend is not
    a jump.
    """
    if near is None or far is None:
        return torch.zeros_like(reference, dtype=torch.bool)
    if not reference.shape == near.shape == far.shape:
        return torch.ones_like(reference, dtype=torch.bool)
    start = reference.double()
    step = near.double() - start
    bent = (far.double() - (start + MAX_ROUNDING_UNITS * step)).abs()
    return ~(bent <= bound + MAX_ROUNDING_UNITS / 2 * step.abs())  # a value that becomes NaN jumps, too


def _compute_deviation(
    actual: Tensor, reference: Tensor, base: Format, *, factor: float = 1.0, where: Tensor | None = None
) -> Deviation:
    """Compute the deviation over the entries `where` (all if None); the unit is that of the largest value.

    Integers are exact: their unit is float64's.
    """
    if actual.shape != reference.shape:
        note = f"shape {tuple(actual.shape)}, the reference's is {tuple(reference.shape)}"
        return Deviation(math.inf, 1.0, 1.0, reference.numel(), note=note)
    actual_values = actual.to(reference.device)
    scale = float(reference.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if reference.numel() else 0.0
    numbers = base if reference.is_floating_point() else FORMATS[torch.float64]
    unit = numbers.unit_of_largest(reference) * factor
    if where is not None:
        actual_values, reference = actual_values[where], reference[where]
    return Deviation(max_abs_difference(actual_values, reference), unit, scale, actual.numel())


def _largest_change(perturbed: Tensor, reference: Tensor) -> float:
    """Return the largest change of the entries that stay finite; 0 if the shape changes."""
    if perturbed.shape != reference.shape or not reference.numel():
        return 0.0
    change = perturbed.double() - reference.to(perturbed.device).double()
    return float(change.abs().nan_to_num(0.0, 0.0, 0.0).max())


def max_abs_difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference; infinite if shapes differ or only one side is NaN or infinite."""
    if first.shape != second.shape:
        return math.inf
    if not first.numel():
        return 0.0
    first, second = first.double(), second.double()
    same = (first == second) | (first.isnan() & second.isnan())
    difference = torch.where(same, torch.zeros_like(second), (first - second).abs())
    return float(difference.nan_to_num(nan=math.inf).max())
