"""Checks of a loss's values: it falls towards its targets, has its least value there, and weighs classes as it says.

Relations that any loss must hold, with outputs that the check chooses. What each fault is called, its
causes and what to do are rows of losses.json.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.doctor.objects import find_read_values
from sightline.ops.priors import BACKGROUND
from sightline.workbench.check.checks.loss_items import (
    chooses_hardest,
    class_goals,
    class_gradients,
    diagnose,
    find,
    has_other_outputs,
    is_constant,
    is_edited,
    is_misdivided,
    is_mispaired,
    is_mixed,
    is_outranked,
    is_remapped,
    is_silent,
    tolerate,
)
from sightline.workbench.check.context import Context, check, losses
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.oracles.loss_case import TEACHER, Goal, LossCase, draw

_ITEMS = (is_edited, is_silent, is_constant, is_mispaired, is_mixed)
_STRUCTURE = (*_ITEMS, is_remapped)
_CERTAIN = (30.0, 1000.0)
"""Scores at which a prediction is certain: the loss has its limit."""
_WRONG = 60.0
"""Score at which the float32 softmax of its negative is 0."""
_INSIDE = 2.0
"""Score at which a loss is finite, unless its outputs are shares or cosines, which are bounded."""
_MIN_FLOOR = 0.25
"""Share of the loss of equal scores that true scores may keep when they are certain."""
_MIN_SHARE, _NUM_SIDES = 0.02, 4
"""Share of the sizes of gradients that their sum must have to be a direction."""
_MAX_AWAY = -0.2
"""Correlation of a step with the way to the target below which it leads away."""
_MIN_CORRELATION = 0.999
"""Correlation of tensors that are the same but for a factor and a shift."""
_ERRORS, _MAX_GROWTH = (4.0, 40.0), 3.0
"""Errors of codes, and how many times the gradient of the larger may be that of the smaller."""
_SURE_SCORE = 30.0
"""Score of a peak: its sigmoid is 1 but for 1e-13."""
_LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda target: target,
    "log": lambda target: target.clamp(min=1e-30).log(),
    "logit": lambda target: target.double().clamp(1e-12, 1 - 1e-12).logit().to(target),
}
"""Outputs that may take the place of a target: itself, the logarithm of a share, and the score before a sigmoid."""


@check("loss-direction", "preflight", each=losses)
@tolerate
def loss_direction(context: Context, case: LossCase) -> Fault | None:
    """A step against the gradient moves outputs towards their targets, and the least loss lies there.

    Finds: Losses with a wrong sign, swapped arguments, a missing logarithm, or another target than the batch's.

    Scores are judged where all are equal: true classes rise, and the others fall. Numbers are judged at their targets,
    or their logarithms, against several steps away from them. Distances and levels of an order are no scores.
    """
    if has_other_outputs(case):
        return None
    return (
        find(case, is_remapped, *_ITEMS)
        or find(case, is_misdirected, *_STRUCTURE)
        or find(case, is_outranked, *_STRUCTURE, is_misdirected)
        or find(case, is_off_target, *_STRUCTURE, is_misdirected, is_limited)
        or find(case, is_outweighed, *_STRUCTURE, is_off_target)
    )


def is_misdirected(case: LossCase) -> Fault | None:
    """Return a fault if the gradient at equal scores lowers true classes, or raises others.

    One of two losses of the same scores may do one of these: it is half of a loss.
    """
    gradients = case.gradient(case.at(0.0))
    for goal in (goal for goal in case.goals if goal.is_of_classes and goal.key in case.keys):
        wrong = []
        for is_true, text in ((True, "lowers the scores of true classes"), (False, "raises those of other classes")):
            part = gradients[goal.key][goal.is_valid & ((goal.wanted > 0) == is_true)] * (-1 if is_true else 1)
            wrong += [text] if float(part.sum()) < -_MIN_SHARE * float(part.abs().sum()) else []
        if len(wrong) > (goal.key in case.shared):
            start, near, far = (case.value(case.at(score, others=min(0.0, -score))) for score in (0.0, 1.0, 16.0))
            measured = f"sum {start:.6g} for equal scores, {near:.6g} and {far:.6g} with true ones 1 and 16 higher"
            return diagnose(case, "factor" if far < start else "sign", measured, lowers=wrong[0])
    return None


# --- numbers ----------------------------------------------------------------------------------------------------------


def is_off_target(case: LossCase) -> Fault | None:
    """Return a fault if an output has a smaller loss away from its target than at it, under every link."""
    singles = (case.samples([row]) for row in range(case.num_samples))  # one is enough, if it has a target
    for single in singles:
        goals = [goal for goal in single.goals if not goal.is_of_classes and bool(goal.is_valid.any())]
        for goal in (goal for goal in goals if _is_of_target(single, goal)):
            links = [*_LINKS.values()][: 1 if goal.target_key == "matched_boxes" else None]
            if _is_sum_alone(single, goal):
                return diagnose(case, "sum alone", "one gradient for all elements, whose errors differ", key=goal.key)
            whole = dataclasses.replace(goal, is_valid=torch.ones_like(goal.is_valid))  # for losses of sets
            bests = [(goal, link(goal.wanted)) for link in links] + [(whole, goal.wanted)]
            if not any(_is_least(single, each, best) for each, best in bests) and not _is_of_peaks(single, goal):
                fault = _make_target_fault(single, goal)
                if fault is not None:
                    return fault
        if goals:
            break
    return None


def is_outweighed(case: LossCase) -> Fault | None:
    """Return a fault if the gradient of a box's codes grows as their error does: a far box outweighs all others."""
    for goal in (goal for goal in case.goals if goal.key in case.keys and goal.target_key == "matched_boxes"):
        noise = draw(goal.wanted)
        near, far = (
            float(case.gradient(_place(case, goal, goal.wanted + size * noise))[goal.key].nan_to_num().abs().sum())
            for size in _ERRORS
        )
        if far > _MAX_GROWTH * near > 0:
            measured = f"a gradient of {near:.4g} for errors of {_ERRORS[0]:g}, {far:.4g} for errors of {_ERRORS[1]:g}"
            return diagnose(case, "outweighed", measured, key=goal.key)
    return None


def _is_of_target(case: LossCase, goal: Goal) -> bool:
    """Return True for an output with a gradient; for a teacher's, if the loss reads its numbers, and no labels."""
    if goal.key not in case.keys or not goal.target_key.startswith(TEACHER):
        return goal.key in case.keys
    label, drawn = case.values.get("label"), {goal.key: goal.wanted.roll(1, -1)}
    values = [case.value(drawn), case.value({**drawn, goal.target_key: 2 * goal.wanted})]
    if isinstance(label, Tensor) and case.num_classes is not None:
        is_class = (label >= 0) & (label < case.num_classes)
        others = torch.where(is_class, (label + 1) % case.num_classes, label)
        values.append(case.value({**drawn, "label": others}))
    return values[1] != values[0] and values[-1] in (values[0], values[1])


def _is_least(case: LossCase, goal: Goal, best: Tensor) -> bool:
    """Return True if neither random steps from an output nor steps against its gradient lower the loss."""
    least, gradient = case.value(_place(case, goal, best)), case.gradient(_place(case, goal, best))[goal.key]
    slope = gradient.nan_to_num() / max(float(gradient.nan_to_num().abs().max()), 1e-30)
    noise = draw(best)
    steps = [best, 0.5 * noise, -0.5 * noise, *(-size * slope for size in (0.001, 0.01, 0.5))]
    away = [case.value(_place(case, goal, best + step)) for step in (-best, *steps)]
    away = [value for value in away if math.isfinite(value)]  # a direction, such as a quaternion, has no value at 0
    scale = max(abs(value) for value in (least, *away))
    return math.isfinite(least) and all(least <= value + 1e-6 * scale for value in away)


def _is_of_peaks(case: LossCase, goal: Goal) -> bool:
    """Return True if all but the value 1 of a target is background: scores of its peaks alone have next to no loss."""
    is_peak = goal.wanted == 1
    scores = torch.where(is_peak, _SURE_SCORE, -_SURE_SCORE).to(goal.wanted)
    at_peaks, at_zero = (case.value(_place(case, goal, value)) for value in (scores, 0 * scores))
    return bool(is_peak.any()) and 0 <= at_peaks <= 1e-3 * at_zero


def _is_sum_alone(case: LossCase, goal: Goal) -> bool:
    """Return True if a sample's elements all have one gradient, although their errors differ."""
    rows = case.gradient(_place(case, goal, goal.wanted + draw(goal.wanted)))[goal.key].flatten(1)
    spread, size = float((rows.amax(dim=1) - rows.amin(dim=1)).max()), float(rows.abs().max())
    return rows.shape[1] >= 8 and size > 0 and spread <= 1e-9 * size


def _make_target_fault(case: LossCase, goal: Goal) -> Fault | None:
    """Make the fault of a target that is not the least: by the correlation of the first step's direction with it.

    A squared error of a multiple of the target leads straight to it, and has none.
    """
    towards = math.nan
    for start in (torch.zeros_like(goal.wanted), draw(goal.wanted)):  # equal slopes everywhere say nothing
        step, way = -case.gradient(_place(case, goal, start))[goal.key], goal.wanted - start
        towards = correlate(step[goal.is_valid], way[goal.is_valid]) if math.isnan(towards) else towards
    is_scored = any(each.is_of_classes and each.key in case.keys for each in case.goals)
    name = "undetached" if is_scored else "taught" if goal.target_key.startswith(TEACHER) else "off"
    if name == "off" and goal.target_key != "matched_boxes" and towards > -_MAX_AWAY:
        name = "near"
    name = "away" if name == "off" and towards < _MAX_AWAY else name
    if name == "near" and towards > _MIN_CORRELATION:
        return None
    at_target, at_zero = (case.value(_place(case, goal, value)) for value in (goal.wanted, 0 * goal.wanted))
    measured = f"sum {at_target:.6g} at the target, {at_zero:.6g} for zeros; a step correlates with it by {towards:.2f}"
    return diagnose(case, name, measured, key=goal.key, target=goal.target_key)


def _place(case: LossCase, goal: Goal, output: Tensor) -> dict[str, Tensor]:
    return {goal.key: torch.where(goal.is_valid, output, case.values[goal.key])}


# --- limits -----------------------------------------------------------------------------------------------------------


@check("loss-limits", "preflight", each=losses)
@tolerate
def loss_limits(context: Context, case: LossCase) -> Fault | None:
    """True scores that are certain have a loss near 0; the loss is finite for wrong ones, and where nothing counts.

    Finds: Losses that apply a softmax or sigmoid twice, that have no least value, or that are not finite.
    """
    return (
        (None if has_other_outputs(case) else find(case, is_limited, *_STRUCTURE, is_misdirected))
        or find(case, is_not_finite, *_STRUCTURE)
        or find(case, is_nothing, is_silent, is_misdivided)
    )


def is_limited(case: LossCase) -> Fault | None:
    """Return a fault if the loss of true scores that are certain is far from 0, or has no limit."""
    case, goals = _score_goals(case)
    if {goal.key for goal in goals} != {*case.keys}:
        return None

    def value(score: float, others: float) -> float:
        return case.value(case.at(score, others=others, goals=goals))

    start, wrong = value(0.0, 0.0), value(-_CERTAIN[1], _CERTAIN[1])
    far, farther = (min(value(score, 0.0), value(score, -score)) for score in _CERTAIN)
    size = max(abs(start), 1e-12)
    is_limit = abs(farther - far) <= 1e-6 * size
    is_linear = math.isclose(farther * _CERTAIN[0], far * _CERTAIN[1], rel_tol=0.1)
    measured = f"sum {start:.6g} for equal scores, {far:.6g} and {farther:.6g} for true ones of 30 and 1000"
    if is_linear and farther < min(wrong, -10 * size):
        return diagnose(case, "unbounded", measured)
    if is_limit and farther < -1e-6 * size and start < 0:
        return diagnose(case, "no logarithm", measured)
    if is_limit and farther > _MIN_FLOOR * size:
        return diagnose(case, _explain_floor(case, goals, start), measured, share=farther / size)
    return None


def _explain_floor(case: LossCase, goals: Sequence[Goal], start: float) -> str:
    """Return the diagnosis of a loss with a floor, by its value for drawn scores."""
    goal, axis = goals[0], goals[0].class_axis
    drawn = torch.where(goal.is_valid, draw(goal.wanted), case.values[goal.key])
    found = case.value({**case.at(0.0, goals=goals), goal.key: drawn}) / start
    floors = [
        -(goal.wanted.log_softmax(axis) * scores.softmax(axis))[goal.is_valid].sum() for scores in (drawn, 0 * drawn)
    ]
    return "swapped" if math.isclose(found, float(floors[0] / floors[1]), rel_tol=1e-6) else "squashed"


def _score_goals(case: LossCase) -> tuple[LossCase, list[Goal]]:
    """Return the case with heat maps that are 1 at their highest and 0 elsewhere, and all goals as those of scores."""
    values, goals = dict(case.values), []
    for goal in case.goals:
        if not goal.is_of_classes and _is_of_scores(goal.wanted) and not _is_reached(case, goal):
            rows = goal.wanted.flatten(1)
            highest = F.one_hot(rows.argmax(dim=1), rows.shape[1]).view(goal.wanted.shape).to(goal.wanted)
            values[goal.target_key] = highest
            goal = dataclasses.replace(goal, wanted=highest, is_of_classes=True)
        goals += [goal] if goal.is_of_classes and goal.key in case.keys else []
    return dataclasses.replace(case, values=values, memo={}), goals


def _is_of_scores(wanted: Tensor) -> bool:
    """Return True for maps and shares between 0 and 1; (N, K) may be boxes, too, which neither sum to 1 nor repeat."""
    if not bool(((wanted >= 0) & (wanted <= 1)).all()) or not bool((wanted > 0.5).any()):
        return False
    rows = wanted.flatten(1)
    is_row = wanted.ndim < 3 or wanted.shape[-1] == _NUM_SIDES
    return not is_row or len(rows.unique()) <= 2 or bool((rows.sum(dim=1) - 1).abs().amax() < 1e-3)


def _is_reached(case: LossCase, goal: Goal) -> bool:
    """Return True if outputs that equal targets between 0 and 1 have no loss: numbers such as boxes, no scores."""
    is_between = bool(((goal.wanted > 0) & (goal.wanted < 1)).any())
    values = [abs(case.value(_place(case, goal, output))) for output in (goal.wanted, torch.zeros_like(goal.wanted))]
    return is_between and values[0] <= 1e-3 * values[1]


def is_not_finite(case: LossCase) -> Fault | None:
    """Return a fault if something is not finite in float32, for wrong scores that are certain or for exact numbers."""
    placed = case.cast(torch.float32).at(-_WRONG, others=_WRONG)
    if not math.isfinite(case.value(case.at(-_INSIDE, others=_INSIDE))):
        return None
    is_of_scores = any(goal.is_of_classes for goal in case.goals)
    measured = _describe_infinite(case.cast(torch.float32), placed) if placed else ""
    return diagnose(case, "wrong scores" if is_of_scores else "exact numbers", measured) if measured else None


def is_nothing(case: LossCase) -> Fault | None:
    """Return a fault if something is not finite for a batch of ignored labels, or without a box or a visible joint."""
    empty = {"label": case.ignore_index, "target": None if "boxes" in case.values else BACKGROUND, "visible": 0}
    changed = {
        key: torch.full_like(case.values[key], value)
        for key, value in empty.items()
        if isinstance(case.values.get(key), Tensor) and value is not None
    }
    measured = _describe_infinite(case, changed) if changed else ""
    return diagnose(case, "nothing", measured) if measured else None


def _describe_infinite(case: LossCase, values: dict[str, Tensor]) -> str:
    """Describe a sum or gradients that are not finite; "" if all are."""
    value, gradients = case.value(values), case.gradient(values)
    broken = [key for key, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    is_finite = math.isfinite(value) and not broken
    return "" if is_finite else f"sum {value:.4g}; gradient not finite: {', '.join(broken) or 'none'}"


# --- class weights ----------------------------------------------------------------------------------------------------

_MAX_OWN_CORRELATION = 0.95
_MIN_RATIO = 1.5
_MAX_MORE = 2
"""Entries that a table of class weights may have beyond the classes."""


@check("loss-weights", "preflight", each=losses)
@tolerate
def loss_weights(context: Context, case: LossCase) -> Fault | None:
    """Each class weighs in the gradient what the loss's table says, and frequent classes not more than rare ones.

    Finds: Losses whose class weights are shifted, reversed or those of frequent classes, or that leave a class out.
    """
    causes = (*_STRUCTURE, is_misdirected, is_outranked)
    if has_other_outputs(case) or any(find(case, relation) is not None for relation in causes):
        return None
    faults = (fault for goal in class_goals(case) for fault in _judge_weights(context, case, goal))
    fault = next(faults, None)
    return None if fault is None or chooses_hardest(case) else fault


def _judge_weights(context: Context, case: LossCase, goal: Goal) -> Iterator[Fault]:
    own_C = -class_gradients(case, goal).diagonal().cpu()
    if not bool(own_C.any()):  # a bound in the loss, which these outputs are beyond
        return
    measured = f"gradients {_list(own_C / own_C.mean())} by class"
    for name, table_C in _list_tables(case, goal.num_classes):
        changes = {"shifted by one": table_C.roll(-1), "shifted back": table_C.roll(1), "reversed": table_C.flip(0)}
        for change, changed_C in changes.items():
            if correlate(changed_C, own_C) > _MIN_CORRELATION and correlate(table_C, own_C) < _MAX_OWN_CORRELATION:
                expected = _list(table_C / table_C.mean())
                yield diagnose(case, "other weights", measured, table=name, change=change, expected=expected)
    longer = _find_longer_table(case, own_C)
    if longer is not None:
        name, table, shift = longer
        expected = _list(table[: len(own_C)] / table[: len(own_C)].mean())
        yield diagnose(case, "longer table", measured, table=name, number=len(table), shift=shift, expected=expected)
    counts_C, label = _count_targets(context, goal.num_classes), case.values[goal.target_key]
    for number in (own_C == 0).nonzero().flatten().tolist():
        if number != case.ignore_index and (bool((label == number).any()) or float(counts_C[number]) > 0):
            yield diagnose(case, "left out", measured, number=number)
    if bool((counts_C > 0).all()) and bool((own_C > 0).all()):
        ratio = min(float(values.max() / values.min()) for values in (counts_C, own_C))
        if ratio > _MIN_RATIO and correlate(_rank(counts_C), _rank(own_C)) > _MAX_OWN_CORRELATION:
            yield diagnose(case, "frequent", f"{measured}, for {_list(counts_C)} training targets")


def _find_longer_table(case: LossCase, own_C: Tensor) -> tuple[str, Tensor, int] | None:
    """Return a table of more entries than classes, of which the loss takes others than the first, and the shift.

    Tables are looked for among the loss's attributes, and what its code reads: globals, and variables around it.
    """
    relative_C = own_C / own_C.mean()
    attributes = {} if case.loss is None else {**vars(case.loss), **dict(case.loss.named_buffers())}
    for name, value in (*attributes.items(), *find_read_values(case.forward.function)):
        table = torch.as_tensor(value).double().cpu() if _is_numbers(value) else None
        if table is None or table.ndim != 1 or not len(own_C) < len(table) <= len(own_C) + _MAX_MORE:
            continue
        for shift in range(len(table) - len(own_C) + 1):
            part = table[shift : shift + len(own_C)]
            if torch.allclose(part / part.mean(), relative_C, rtol=1e-3) and float(part.std()) > 0:
                return (name, table, shift) if shift else None
    return None


def _is_numbers(value: Any) -> bool:
    is_array = isinstance(value, Tensor | np.ndarray) and np.issubdtype(np.asarray(value).dtype, np.number)
    return is_array or (isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value))


def _list_tables(case: LossCase, size: int) -> Iterator[tuple[str, Tensor]]:
    """List the attributes of a loss that have a number for each class, in double precision."""
    attributes = {} if case.loss is None else {**vars(case.loss), **dict(case.loss.named_buffers())}
    for name, value in attributes.items():
        is_list = isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value)
        table = torch.tensor(value) if is_list else value
        if isinstance(table, Tensor) and table.shape == (size,) and not table.is_complex():
            yield name, table.detach().double().cpu()


def _count_targets(context: Context, size: int) -> Tensor:
    """Count the training targets of each class (C,): by the facts, under `sightline check` by the samples; else 0."""
    counts: Any = context.built.data.facts.get("class_counts")
    if counts is None and context.is_thorough and context.class_counts and context.class_counts[0] is not None:
        counts = context.class_counts[0].targets
    return torch.as_tensor(counts).double() if counts is not None and len(counts) == size else torch.zeros(size)


def correlate(first: Tensor, second: Tensor) -> float:
    """Compute the correlation of two tensors of one shape; NaN if one is constant."""
    rows = torch.stack([first.flatten(), second.flatten()]).double()
    return float(torch.corrcoef(rows)[0, 1]) if rows.shape[1] > 1 else math.nan


def _rank(values: Tensor) -> Tensor:
    return values.argsort().argsort()


def _list(values: Tensor) -> str:
    shown = [f"{value:.3g}" for value in values.tolist()]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
