"""Rules of losses of pairs: they reward an object's own partner, by bounded similarities, for rows of both sides."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sightline.doctor.evidence.terms import LONG, NUM, Pairs
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule

_MAX_TEMPERATURE, _MAX_SHARP_TEMPERATURE = 2.0, 0.5
"""A softmax of cosines tells partners apart up to the first; up to the second it is one of cosines: products of rows of
any length are far larger."""
_ROUNDING = 1e-6


@rule(
    "loss-pairs",
    "error",
    "loss.negatives loss.sign",
    holds="rows at right angles have the least loss with an object's own partner",
    do="look at the sign of the similarity, and at the index of the partner",
)
def own_partner_is_best(pairs: Pairs) -> Iterator[Fault]:
    """Give objects the partners of others."""
    margin = _ROUNDING * max(1.0, abs(pairs.apart[0]))
    if pairs.apart[0] > min(pairs.apart) + margin:
        is_worst = pairs.apart[0] > sorted(pairs.apart)[-2] + margin
        yield Fault(
            "the loss of pairs is smaller with the partner of another object",
            causes=("loss.sign", "loss.negatives") if is_worst else (),
            measured=f"{pairs.apart[0]:.6g} with an object's own partner, {min(pairs.apart):.6g} with another's",
        )


@rule(
    "loss-pairs",
    "error",
    "loss.negatives loss.form loss.normaliser",
    holds="equal rows have the logarithm of the number of rows that each is compared with",
    do="leave a row out of its own negatives, take the logarithm, scale rows to length 1, and return one value a pair",
)
def equal_rows_are_counted(pairs: Pairs) -> Iterator[Fault]:
    """Find a row among its own negatives, a softmax without its logarithm, means for sums, and products of rows."""
    value, measured = pairs.alike, f"{pairs.alike:.6g} for {NUM} equal rows, {pairs.twice:.6g} for twice as many, "
    shares = [-1 / size for size in (NUM, 2 * NUM - 1, 2 * NUM)]
    found = {
        "loss.form": pairs.long < -1e3 * max(1.0, abs(value)) or any(math.isclose(value, s) for s in shares),
        "loss.negatives": math.isclose(value, math.log(2 * NUM), rel_tol=1e-6),
        "loss.normaliser": value != 0 and 0.25 < pairs.twice / value < 0.75,
    }
    for cause in [cause for cause, is_found in found.items() if is_found][:1]:
        yield Fault(
            "equal rows of pairs have another loss than that of their number",
            causes=(cause,),
            measured=f"{measured}{pairs.long:.6g} for {LONG:g} times the length; ln {2 * NUM - 1} = "
            f"{math.log(2 * NUM - 1):.6g}",
        )


@rule(
    "loss-pairs",
    "error",
    "loss.form optim.hyper",
    holds="a softmax of similarities is far less for the best rows than for equal ones, whatever their length",
    do="divide cosines by a temperature of 0.05 to 1; scale rows to length 1 before they are multiplied",
)
def similarities_are_scaled(pairs: Pairs) -> Iterator[Fault]:
    """Find temperatures at which nothing is told apart, and sharp products of rows whose lengths are free."""
    if pairs.softmax is None:
        return
    is_of_products = pairs.has_free_lengths and not math.isclose(pairs.halved, pairs.doubled, rel_tol=1e-3)
    is_flat = pairs.softmax > _MAX_TEMPERATURE and not is_of_products
    if is_flat or (pairs.softmax <= _MAX_SHARP_TEMPERATURE and is_of_products):
        yield Fault(
            "a softmax of similarities hardly tells partners from others"
            if is_flat
            else "a sharp softmax is one of products, which longer rows lower",
            measured=f"temperature {pairs.softmax:.3g}: {pairs.alike:.6g} for equal rows; at right angles "
            f"{pairs.halved:.4g} for rows of length 0.5, {pairs.apart[0]:.4g} of 1, {pairs.doubled:.4g} of 2",
        )


@rule(
    "loss-pairs",
    "error",
    "loss.form loss.negatives",
    holds="a softmax of two views, both of which learn, is the same with the views exchanged",
    do="add the other direction: each view's rows against the other's",
)
def both_views_are_anchors(pairs: Pairs) -> Fault | None:
    """Exchange two views of one object, which one network embeds.

    A softmax over rows of the other view alone may look from one side: a note. One over rows of both views has each
    row for an anchor.
    """
    if not pairs.is_of_views or pairs.softmax is None or math.isclose(pairs.drawn, pairs.exchanged, rel_tol=_ROUNDING):
        return None
    return Fault(
        "the loss of pairs looks from one side only",
        severity="note" if math.isclose(pairs.alike, math.log(NUM), rel_tol=_ROUNDING) else None,
        measured=f"{pairs.drawn:.6g} for drawn rows, {pairs.exchanged:.6g} with the views exchanged",
    )
