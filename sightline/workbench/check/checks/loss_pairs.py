"""Checks of a loss of pairs: it rewards an object's own partner, by bounded similarities, for rows of both sides.

Relations with rows that the check chooses: equal ones, and ones at right angles. What each fault is called, its causes
and what to do are rows of losses.json.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sightline.workbench.check.checks.loss_items import diagnose, find, is_silent, suppose, tolerate
from sightline.workbench.check.checks.loss_terms import BUILT_IN, OUTPUTS
from sightline.workbench.check.context import Context, check, losses
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain, is_near
from sightline.workbench.check.oracles.loss_case import LossCase, draw

_NUM_PAIRS, _WIDTH = 6, 16
_MAX_TEMPERATURE = 2.0
"""Temperature up to which a softmax of cosines tells partners apart: at 2 the loss falls by a fifth at most."""
_MAX_SHARP_TEMPERATURE = 0.5
"""Temperature up to which a softmax is one of cosines: products of rows of any length are far larger."""
_VIEWS = {"first", "second"}
"""Outputs of two views of one object, which one network embeds: neither is before the other."""


@check("loss-pairs", "preflight", each=losses)
@tolerate
def loss_pairs(context: Context, case: LossCase) -> Fault | None:
    """A loss of pairs is least for an object's own partner, and bounded; equal rows have the value of the negatives.

    Finds: Losses of a user's that reward other partners, count a row as its own negative, or have no least value.

    A softmax of similarities is one of cosines, at a temperature that tells partners from others, for both views.
    """
    names = {*case.forward.names}
    if case.counter is not None or len(names) < 2 or not names <= {*OUTPUTS}:
        return None
    if case.name in BUILT_IN:  # `negatives` compares it with its definition
        return find(case, is_flat, is_silent)
    return (
        find(case, is_apart, is_silent)
        or find(case, is_miscounted, is_silent, is_apart)
        or find(case, is_flat, is_silent, is_apart, is_miscounted)
        or find(case, is_unscaled, is_silent, is_apart, is_miscounted, is_flat)
        or find(case, is_one_sided, is_silent, is_apart, is_miscounted)
    )


def is_apart(case: LossCase) -> Fault | None:
    """Return a fault if orthogonal rows have a smaller loss with the partner of another object."""
    eye = torch.eye(_NUM_PAIRS, _WIDTH, dtype=torch.float64)
    rows, last = dict.fromkeys(case.forward.names, eye), case.forward.names[-1]
    values = [case.value({**rows, last: eye.roll(shift, 0)}) / _NUM_PAIRS for shift in range(_NUM_PAIRS)]
    margin = case.rounding * max(1.0, abs(values[0]))
    if values[0] <= min(values) + margin:
        return None
    measured = f"{values[0]:.6g} with an object's own partner, {min(values):.6g} with another's"
    return diagnose(case, "apart" if values[0] > sorted(values)[-2] + margin else "other partner", measured)


def is_miscounted(case: LossCase) -> Fault | None:
    """Return a fault if equal rows have another value than that of all negatives, or longer rows lower the loss."""
    value, doubled, longer = (
        case.value(dict.fromkeys(case.forward.names, size * torch.ones(count, _WIDTH).double())) / count
        for count, size in ((_NUM_PAIRS, 1.0), (2 * _NUM_PAIRS, 1.0), (_NUM_PAIRS, 1e4))
    )
    measured = f"{value:.6g} for {_NUM_PAIRS} equal rows, {doubled:.6g} for twice as many, {longer:.6g} for long ones"
    if longer < -1e3 * max(1.0, abs(value)):
        return diagnose(case, "long rows", measured)
    candidates: list[Hypothesis] = [suppose("itself", math.log(2 * _NUM_PAIRS))]
    candidates += [suppose("no logarithm", -1 / size) for size in (_NUM_PAIRS, 2 * _NUM_PAIRS - 1, 2 * _NUM_PAIRS)]
    for best in explain(value, math.inf, candidates, likeness=is_near(1e-6), above=0.0)[:1]:
        return diagnose(case, best.text, measured, others=2 * _NUM_PAIRS - 1)
    return diagnose(case, "pairs", measured) if value != 0 and 0.25 < doubled / value < 0.75 else None


# --- softmax of similarities ------------------------------------------------------------------------------------------


def _value(case: LossCase, rows: Tensor) -> float:
    """Compute the mean loss of pairs whose rows are the same on all sides."""
    return case.value(dict.fromkeys(case.forward.names, rows.double())) / len(rows)


def _measure_softmax(case: LossCase) -> tuple[float, float, float] | None:
    """Measure a softmax of similarities: its value for equal rows and for orthogonal ones, and its temperature.

    None for a loss of another kind: equal rows, of which none is nearer, have the logarithm of their number. Orthogonal
    partners have ln(1 + K exp(-1 / t)) for K negatives and a temperature of t.
    """
    equal, apart = _value(case, torch.ones(_NUM_PAIRS, _WIDTH)), _value(case, torch.eye(_NUM_PAIRS, _WIDTH))
    numbers = (_NUM_PAIRS, 2 * _NUM_PAIRS - 1, 2 * _NUM_PAIRS)
    if not any(math.isclose(equal, math.log(number), rel_tol=1e-6) for number in numbers):
        return None
    ratio = math.expm1(apart) / math.expm1(equal)
    temperature = math.inf if ratio >= 1 else 0.0 if ratio <= 0 else -1 / math.log(ratio)
    return equal, apart, temperature


def is_flat(case: LossCase) -> Fault | None:
    """Return a fault if a softmax of similarities is nearly the same for the best rows as for equal ones."""
    softmax = _measure_softmax(case)
    if softmax is None or softmax[2] <= _MAX_TEMPERATURE:
        return None
    equal, apart, temperature = softmax
    measured = f"{equal:.6g} for equal rows, {apart:.6g} for partners that are equal and at right angles to others"
    return diagnose(case, "flat", measured, temperature=temperature)


def is_unscaled(case: LossCase) -> Fault | None:
    """Return a fault if a sharp softmax is of products, which longer rows lower, of rows whose length is free."""
    softmax, rows = _measure_softmax(case), [case.values[name] for name in case.forward.names]
    if softmax is None or softmax[2] > _MAX_SHARP_TEMPERATURE or all(map(_have_one_length, rows)):
        return None
    half, twice = (_value(case, size * torch.eye(_NUM_PAIRS, _WIDTH)) for size in (0.5, 2.0))
    if math.isclose(half, twice, rel_tol=1e-3):
        return None
    measured = f"{half:.4g} for rows of length 0.5, {softmax[1]:.4g} of 1, {twice:.4g} of 2, in the same directions"
    return diagnose(case, "unscaled", measured, temperature=softmax[2])


def _have_one_length(rows: Tensor) -> bool:
    lengths = rows.double().norm(dim=1)
    return bool(torch.isclose(lengths, lengths.mean(), rtol=1e-3).all())


def is_one_sided(case: LossCase) -> Fault | None:
    """Return a fault if a softmax of two views, both of which learn, changes when they are exchanged."""
    if {*case.forward.names} != _VIEWS or not {*case.keys} >= _VIEWS or _measure_softmax(case) is None:
        return None
    first, second = draw(torch.empty(2, _NUM_PAIRS, _WIDTH, dtype=torch.float64))
    value, exchanged = (
        case.value({"first": left, "second": right}) for left, right in ((first, second), (second, first))
    )
    if math.isclose(value, exchanged, rel_tol=case.rounding):
        return None
    measured = f"{value / _NUM_PAIRS:.6g} for drawn rows, {exchanged / _NUM_PAIRS:.6g} with the views exchanged"
    return diagnose(case, "one-sided", measured)
