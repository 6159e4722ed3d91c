"""Rules of optimisers: what they hold, what they move, and how far."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sightline.contract.errors import join_some
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence.coverage import Uncovered
from sightline.doctor.evidence.numerics import Trial
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

_HUGE_SHARE, _RISE, _MOST = 1.0, 3.0, 0.8


@rule(
    "not-optimised",
    "warning",
    "optim.param_coverage model.frozen_unintended",
    holds="each parameter that wants a gradient and gets one is in a group of an optimizer",
    do="make the optimizer after the last layer, of model.parameters(); set requires_grad_(False) on what stays frozen",
)
def not_optimised(uncovered: Uncovered) -> Fault | None:
    """Name the parameters that get a gradient, and that no optimiser holds."""
    names, total, held, foreign = uncovered
    if foreign and not held:
        return Fault(
            "the optimizer holds no parameter of this model: no step will move it",
            measured=f"0 of {total} parameters; {foreign} others are held",
            severity="error",
            action="make the optimizer of this very model, and not of a copy or of one from before",
        )
    if not names:
        return None
    return Fault(
        f"{len(names)} parameter(s) with a gradient are in no optimizer: {join_some(names, most=4)}",
        measured=f"{len(names)} of {total} are left out; {foreign} others are held",
        severity="error" if foreign else None,
        where=FindingLocation(param=names[0]),
    )


@rule(
    "no-update",
    "error",
    "optim.lr optim.state",
    holds="a parameter of the optimizer that has a gradient differs after six steps in at least one bit",
    do="raise the learning rate of its group, or take it out of the optimizer and freeze it",
)
def no_update(trial: Trial) -> Iterator[Fault]:
    """Look for parameters that have a gradient, and that no step moves."""
    asked = {name: move for name, move in trial.moves.items() if move.has_gradient}
    sizes = {move.rate: sum(m.size for m in asked.values() if m.rate == move.rate) for move in asked.values()}
    still = {name: move for name, move in asked.items() if move.is_still}
    share = {rate: sum(m.size for m in still.values() if m.rate == rate) / size for rate, size in sizes.items()}
    still = {name: move for name, move in still.items() if share[move.rate] > _MOST}
    if still:
        rates = sorted({move.rate for move in still.values()})
        yield Fault(
            f"six steps move no bit of {len(still)} parameter(s): {join_some(list(still), most=4)}",
            measured=f"learning rate {join_some([f'{rate:g}' for rate in rates], most=3)}, gradients are not 0",
            where=FindingLocation(param=next(iter(still))),
            severity=None if max(rates) > 0 else "note",  # somebody has written the 0
        )


@rule(
    "large-update",
    "warning",
    "optim.lr loss.normaliser",
    holds="steps on one batch do not raise its loss while they move weights by as much as their norm",
    do="lower the learning rate, or average the loss instead of summing it",
    is_statistical=True,
)
def large_update(trial: Trial) -> Iterator[Fault]:
    """Compare the first step with the weights, and the loss after the steps with that before."""
    shares = sorted(move.first_step / move.norm for move in trial.moves.values() if move.norm > 0 and move.has_gradient)
    if not shares:
        raise NotApplicableError("no weight has a gradient")
    share, first, last = shares[len(shares) // 2], trial.losses[0], trial.losses[-1]
    is_lost = not all(map(math.isfinite, trial.losses))
    rises = is_lost or (max(trial.losses[1:4]) > first + (_RISE - 1) * abs(first) and last > first)
    if math.isfinite(first) and rises and (share > _HUGE_SHARE or is_lost):
        yield Fault(
            f"a step moves weights by {share:.3g} of their norm; six take the loss from {first:.3g} to {last:.3g}",
            measured=f"losses on one batch: {', '.join(f'{value:.3g}' for value in trial.losses)}",
        )
