"""How far a variant is from the reference, in units of what rounding explains, tensor by tensor.

The unit is the larger of two: what the reference's answer moves by where its inputs are moved by one unit in the last
place of the variant's number format (some draws, the largest), and one unit in the last place of the answer's largest
value. More than `BOUND` units are not explained. Where that is not enough, the results of the operations inside are
moved as well: of a sum that is zero but for rounding, the inputs show nothing. And what a plain form of a layer in the
variant's format is off by counts, where there is one that adds its values one after another (`sums.py`).

A decision (which neighbour is nearer, which response is the largest) may fall otherwise after the smallest rounding,
and what hangs on it then jumps. Where an answer is suspect, inputs are moved by `BOUND` units as well, and by one in
the same directions, and in three draws of four every operation's result: what is smooth moves `BOUND` times as far. An
entry that does not, by more than the bound itself, has no value that rounding would leave it: it is not judged, and the
others are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.compare.accumulation import magnitudes, plain_answer, twin_answer
from sightline.compare.float64_reference import LayerUnit, Perturbation, ReferenceResult
from sightline.compare.formats import FORMATS, Format

__all__ = ["INFINITE_RATIO", "MAX_ROUNDING_UNITS", "Deviation", "judge", "max_abs_difference", "sum_deviation"]

MAX_ROUNDING_UNITS = 16.0
"""Units of rounding beyond which a deviation is not explained."""
INFINITE_RATIO = 1e99
"""Marks a deviation without a bound: another shape, or a number where the other has none."""
_MOST_DRAWS = 4
_LEAP = 1000.0
"""Units of the answer's largest value beyond which a draw need not be rounding: a decision may have turned."""
_FEW_JUMPS, _MOST_JUMPS = 8, 32
"""Draws after which a suspect without a single jump is guilty, and after which every suspect is."""

Run = Callable[[Perturbation | None], ReferenceResult]


@dataclass
class Deviation:
    """Of one tensor: the largest error, the unit of rounding, and the largest value of the reference's answer.

    `undefined` entries of `entries` hang on decisions that rounding turns. `note` adds what the numbers do not show.
    """

    error: float
    unit: float
    scale: float
    entries: int
    undefined: int = 0
    note: str = ""

    @property
    def ratio(self) -> float:
        """The error in units of rounding; above `BOUND` it is not explained."""
        if self.error == 0.0:
            return 0.0
        return (
            min(self.error / self.unit, INFINITE_RATIO)
            if self.unit > 0 and math.isfinite(self.error)
            else INFINITE_RATIO
        )

    @property
    def is_guilty(self) -> bool:
        """Whether rounding does not explain the error."""
        return self.ratio > MAX_ROUNDING_UNITS

    def widen_tolerance(self, moved: float, *, most: float) -> None:
        """By what a draw moved the answer; what moves farther than `most` may have jumped, and has to be looked at."""
        if moved <= most:
            self.unit = max(self.unit, moved)

    @property
    def measured(self) -> float:
        """The error as a share of the largest value."""
        return (
            min(self.error / self.scale, INFINITE_RATIO) if self.scale > 0 else (INFINITE_RATIO if self.error else 0.0)
        )

    @property
    def tolerated(self) -> float:
        """The largest error that rounding explains, as a share of the largest value."""
        return MAX_ROUNDING_UNITS * self.unit / self.scale if self.scale > 0 else 0.0


def judge(unit: LayerUnit, actual: Mapping[str, Tensor], clean: ReferenceResult, run: Run, *, seed: int) -> Judgement:
    """The deviation of each tensor that both sides have, and how far draws moved each of the others.

    `run(nudge)` answers again with its inputs moved. As soon as nothing is suspect no more is drawn: it would only
    raise the unit, so a ratio is the largest that it can be.
    """
    base, everything = unit.call.format, clean.items()
    answers = {name: value for name, value in everything.items() if name in actual}
    factors = {name: _factor(unit.num_added(name)) for name in everything}
    found = {name: _compared(actual[name], value, base, factor=factors[name]) for name, value in answers.items()}
    leaps = {name: math.inf if name in _sums(found) else _LEAP * d.unit for name, d in found.items()}
    moves = {name: 0.0 for name in everything if name not in actual}
    if _is_explained(found):
        return Judgement(found, moves)
    for name, largest in magnitudes(unit).items() if _sums(found) else ():
        if name in found:
            found[name].unit = max(found[name].unit, factors[name] * base.ulp(largest))
    if _is_explained(found):
        return Judgement(found, moves)
    asked = {name for name, deviation in found.items() if deviation.ratio > MAX_ROUNDING_UNITS / 2}
    for again, is_whole in _more_answers(unit, asked, run, seed):
        for name, moved in again.items().items():
            factor = 1.0 if is_whole else factors.get(name, 1.0)
            if name in found:
                most = math.inf if is_whole else leaps[name]
                found[name].widen_tolerance(factor * _moved(moved, answers[name]), most=most)
            elif name in moves:
                moves[name] = max(moves[name], factor * _moved(moved, everything[name]))
        if _is_explained(found):
            return Judgement(found, moves)
    suspects = [name for name, d in found.items() if d.is_guilty and actual[name].shape == answers[name].shape]
    if suspects:
        jumps = _set_jumps_apart(found, suspects, actual, answers, run, base, seed)
        if any(found[name].is_guilty for name in suspects):
            _take_twin(found, jumps, answers, twin_answer(unit))
    return Judgement(found, moves)


def _is_explained(found: Mapping[str, Deviation]) -> bool:
    """Whether no more needs to be asked. By half the bound: few draws are not a maximum."""
    return all(deviation.ratio <= MAX_ROUNDING_UNITS / 2 for deviation in found.values())


def _sums(names: Iterable[str]) -> set[str]:
    """Gradients of parameters: sums over all positions, which may cancel, and are then far below what moves them."""
    return {name for name in names if name.startswith("to parameter.")}


class Judgement(NamedTuple):
    """Deviations by name; and of tensors that the variant's side was not given of, how far they moved."""

    deviations: dict[str, Deviation]
    moves: dict[str, float]


def _factor(num_added: int) -> float:
    """What adding so many values one after another is off by, in units of what moving each of them does.

    Each addition is rounded, by up to half a unit of what the sum has come to: in the mean square of n of them that is
    sqrt(n / 12) * sqrt(1 / 3) = sqrt(n) / 6 units of the whole, whether it grows or cancels.
    """
    return max(1.0, math.sqrt(num_added) / 6.0)


def _take_twin(
    found: dict[str, Deviation],
    jumps: Mapping[str, Tensor],
    answers: Mapping[str, Tensor],
    twin: ReferenceResult | None,
) -> None:
    """What the plain twin of a layer is off by counts, but where its decisions are others."""
    for name, value in ({} if twin is None else twin.items()).items():
        if name in jumps and value.shape == answers[name].shape:
            rest = max_abs_difference(value[~jumps[name]], answers[name][~jumps[name]])
            found[name].unit = max(found[name].unit, rest)


def _more_answers(unit: LayerUnit, suspects: set[str], run: Run, seed: int) -> Iterator[tuple[ReferenceResult, bool]]:
    """What rounding may do, the cheapest first: sums one after another, inputs moved, every operation moved.

    True beside an answer in which every rounding already is.
    """
    base = unit.call.format
    plainest = plain_answer(unit, suspects)
    if plainest is not None:
        yield plainest, True
    for draw in range(_MOST_DRAWS):
        yield run(Perturbation(base, seed + draw)), False
    for draw in range(_MOST_DRAWS, 2 * _MOST_DRAWS):
        yield run(Perturbation(base, seed + draw, inside=True)), False


def sum_deviation(actual: Tensor, answer: Tensor, base: Format, *, moved: float, num_added: int) -> Deviation:
    """The deviation of a sum of `num_added` values, which moves by `moved` where inputs are moved by one unit."""
    deviation = _compared(actual, answer, base, factor=_factor(num_added))
    deviation.unit = max(deviation.unit, moved)
    return deviation


def _set_jumps_apart(
    found: dict[str, Deviation],
    suspects: list[str],
    actual: Mapping[str, Tensor],
    answers: Mapping[str, Tensor],
    run: Run,
    base: Format,
    seed: int,
) -> dict[str, Tensor]:
    """Leave out the entries that jump, until every suspect is explained or draws have become pointless.

    By how much the others move is a matter of rounding, however far that is.
    """
    jumps = {name: torch.zeros_like(answers[name], dtype=torch.bool) for name in suspects}
    moved = {name: found[name].unit for name in suspects}
    for draw in range(_MOST_JUMPS):
        inside = draw % 4 > 0  # what is decided by sums of equal terms shows there alone
        near = run(Perturbation(base, seed + 1000 + draw, inside=inside)).items()
        far = run(Perturbation(base, seed + 1000 + draw, units=int(MAX_ROUNDING_UNITS), inside=inside)).items()
        for name in suspects:
            jumps[name] |= _jumping(answers[name], near.get(name), far.get(name), MAX_ROUNDING_UNITS * moved[name])
            if name in near and near[name].shape == answers[name].shape and answers[name].is_floating_point():
                moved[name] = max(moved[name], _moved(near[name][~jumps[name]], answers[name][~jumps[name]]))
        for name in suspects:
            rest = _compared(actual[name], answers[name], base, where=~jumps[name])
            rest.unit = max(rest.unit, moved[name])
            rest.undefined = int(jumps[name].sum())
            found[name] = rest
        guilty = [name for name in suspects if found[name].is_guilty]
        if not guilty or (draw + 1 >= _FEW_JUMPS and not any(bool(jumps[name].any()) for name in guilty)):
            break
    return jumps


def _jumping(answer: Tensor, near: Tensor | None, far: Tensor | None, bound: float) -> Tensor:
    """Which entries do not go on in a straight line from the answer over the one nearby to the one farther off.

    By more than `bound`, and than half of what a straight line would be: what is only bent is not a jump.
    """
    if near is None or far is None:
        return torch.zeros_like(answer, dtype=torch.bool)
    if not answer.shape == near.shape == far.shape:
        return torch.ones_like(answer, dtype=torch.bool)
    start = answer.double()
    step = near.double() - start
    bent = (far.double() - (start + MAX_ROUNDING_UNITS * step)).abs()
    return ~(bent <= bound + MAX_ROUNDING_UNITS / 2 * step.abs())  # what is no longer a number jumps, too


def _compared(
    actual: Tensor, answer: Tensor, base: Format, *, factor: float = 1.0, where: Tensor | None = None
) -> Deviation:
    """The largest error over the entries `where`; the unit is that of the answer's largest value.

    Integers are exact: their unit is float64's.
    """
    if actual.shape != answer.shape:
        note = f"shape {tuple(actual.shape)} where the reference has {tuple(answer.shape)}"
        return Deviation(math.inf, 1.0, 1.0, answer.numel(), note=note)
    here = actual.to(answer.device)
    scale = float(answer.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if answer.numel() else 0.0
    numbers = base if answer.is_floating_point() else FORMATS[torch.float64]
    unit = numbers.unit_of_largest(answer) * factor
    if where is not None:
        here, answer = here[where], answer[where]
    return Deviation(max_abs_difference(here, answer), unit, scale, actual.numel())


def _moved(moved: Tensor, answer: Tensor) -> float:
    """By how much the entries that stay numbers move; nothing is known where the shape changes."""
    if moved.shape != answer.shape or not answer.numel():
        return 0.0
    return float((moved.double() - answer.double()).abs().nan_to_num(0.0, 0.0, 0.0).max())


def max_abs_difference(first: Tensor, second: Tensor) -> float:
    """The largest difference; infinite where one is a number and the other is not, or not the same infinity."""
    if first.shape != second.shape:
        return math.inf
    if not first.numel():
        return 0.0
    first, second = first.double(), second.double()
    same = (first == second) | (first.isnan() & second.isnan())
    difference = torch.where(same, torch.zeros_like(second), (first - second).abs())
    return float(difference.nan_to_num(nan=math.inf).max())
