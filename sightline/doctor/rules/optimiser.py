"""Rules of optimisers: what they hold, what they move, and how far."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from sightline.contract.errors import join_some
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence.coverage import Uncovered
from sightline.doctor.evidence.live.updates import Idle, Repeated, Rounded
from sightline.doctor.evidence.numerics import SHORT, Trial
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

_HUGE_SHARE, _RISE, _MOST = 1.0, 3.0, 0.8
_LEAST_RMS = 2e-3
_LOW_RATE = 0.01
"""Share of the highest learning rate below which a schedule is the likely cause of updates that do nothing."""
_MAX_ROUNDED, _NUM_ROUNDED = 0.5, 4
_NUM_UPDATES_OF_OTHERS = 20


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
    "not-optimised",
    "warning",
    "optim.param_coverage optim.lr",
    holds="a parameter in each group of the optimizer that has a learning rate of its own",
    do="compare the names by which the group is filled with those of model.named_parameters(): were modules renamed?",
)
def empty_group(empty_groups: list[tuple[str, float]]) -> Fault | None:
    """Name a group with a learning rate of its own, and without a parameter."""
    if not empty_groups:
        return None
    group, rate = empty_groups[0]
    return Fault(
        f"{group} holds no parameter, so that none has its learning rate of {rate:g}",
        measured=f"{len(empty_groups)} such group(s), and no frozen parameter",
    )


@rule(
    "no-update",
    "error",
    "optim.lr optim.scheduler optim.state",
    holds="a parameter of the optimizer that has a gradient differs after its steps in at least one bit",
    do="look at the learning rate of its group, at the schedule, and at the format of the weights, or freeze it",
)
def no_update(trial: Trial) -> Iterator[Fault]:
    """Look for parameters that have a gradient, and that no step moves.

    One step of a loop may round the moves of some away, so all of its parameters have to stay.
    """
    if trial.num_steps == 1 and not all(move.is_still for move in trial.moves.values()):
        return
    asked = {name: move for name, move in trial.moves.items() if move.has_gradient}
    sizes = {move.rate: sum(m.size for m in asked.values() if m.rate == move.rate) for move in asked.values()}
    still = {name: move for name, move in asked.items() if move.is_still}
    share = {rate: sum(m.size for m in still.values() if m.rate == rate) / size for rate, size in sizes.items()}
    still = {name: move for name, move in still.items() if share[move.rate] > _MOST}
    if still:
        rates = sorted({move.rate for move in still.values()})
        is_late = trial.rate < _LOW_RATE * trial.highest_rate
        causes = ("optim.scheduler",) * is_late + ("model.numerics",) * (trial.dtype in SHORT)
        yield Fault(
            f"{trial.num_steps} update(s) change no bit of {len(still)} parameter(s): {join_some(list(still), most=4)}",
            measured=f"learning rate {join_some([f'{rate:g}' for rate in rates], most=3)}, gradients are not 0",
            causes=(*causes, "optim.lr", "optim.scheduler", "optim.state"),
            where=FindingLocation(param=next(iter(still))),
            severity=None if max(rates) > 0 else "note",  # somebody has written the 0
        )


@rule(
    "no-update",
    "warning",
    "model.numerics optim.lr",
    holds="updates that change the weights with a gradient",
    do="keep weights in float32, and compute in a shorter format by torch.autocast",
)
def rounded_updates(rounded: Rounded) -> Fault | None:
    """Look for updates in a row that leave the bits of most weights of a short format as they are."""
    if len(rounded.shares) < _NUM_ROUNDED or min(rounded.shares[-_NUM_ROUNDED:]) <= _MAX_ROUNDED:
        return None
    return Fault(
        f"most weights of {rounded.optimizer} do not change: updates are lost in the rounding of {rounded.dtype}",
        measured=f"{rounded.shares[-1]:.0%} of the weights with a gradient keep their bits, at {_NUM_ROUNDED} updates "
        f"that are measured; learning rate {rounded.rate:.3g}",
    )


@rule(
    "no-update",
    "warning",
    "optim.step_order optim.param_coverage",
    holds="each optimiser of a loop updates what it holds",
    do="call step() of this optimiser after its backward pass, or do not give it to watch",
)
def idle_optimizer(idle: Idle) -> Fault | None:
    """Look for an optimiser without an update beside one with many.

    Alternating training (GANs) legitimately updates one optimiser first.
    """
    if idle.num_updates < _NUM_UPDATES_OF_OTHERS:
        return None
    return Fault(
        f"{idle.optimizer} never updates {join_some(idle.names, most=5)}, which have gradients",
        measured=f"0 updates, {idle.num_updates} of another optimiser; the weights are those of the start",
        where=FindingLocation(param=idle.names[0]),
    )


@rule(
    "large-update",
    "warning",
    "optim.lr loss.normaliser",
    holds="steps on one batch do not raise its loss while they move weights by as much as their norm",
    do="lower the learning rate, warm up, clip the gradient (clip_grad_norm_), or average the loss instead of summing",
    is_statistical=True,
)
def large_update(trial: Trial) -> Iterator[Fault]:
    """Compare the first step with the weights, and the loss after the steps with that before.

    A loop shows the matrices of one step, whose loss is never computed again: its half must move so, and weights that
    begin near zero, as tables of features, are smaller than any first step.
    """
    moves = [move for move in trial.moves.values() if move.norm > 0 and move.has_gradient]
    if not moves:
        raise NotApplicableError("no weight has a gradient")
    if not trial.losses:
        shares = [m.first_step / m.norm if m.norm > _LEAST_RMS * math.sqrt(m.size) else 0.0 for m in moves]
        if not any(map(math.isnan, shares)) and (share := statistics.median_low(shares)) > _HUGE_SHARE:
            yield Fault(
                "an update changes half of the weight matrices by more than their own size",
                measured=f"median |update| / |weights| {share:.3g} at a learning rate of {trial.rate:.3g}",
                causes=("optim.lr", "optim.hyper", "model.init"),
                expected="updates that are small against the weights",
            )
        return
    shares = [move.first_step / move.norm for move in moves]
    share, first, last = statistics.median_high(shares), trial.losses[0], trial.losses[-1]
    is_lost = not all(map(math.isfinite, trial.losses))
    rises = is_lost or (max(trial.losses[1:4]) > first + (_RISE - 1) * abs(first) and last > first)
    if math.isfinite(first) and rises and (share > _HUGE_SHARE or is_lost):
        yield Fault(
            f"a step moves weights by {share:.3g} of their norm; six take the loss from {first:.3g} to {last:.3g}",
            measured=f"losses on one batch: {', '.join(f'{value:.3g}' for value in trial.losses)}",
        )


@rule(
    "step-without-backward",
    "warning",
    "optim.step_order loss.detached",
    holds="a backward pass before each update",
    do="call loss.backward() before optimizer.step(), and step() once per backward pass",
)
def step_without_backward(repeated: Repeated) -> Fault | None:
    """Look for an update, after the first, since whose last one nothing has written to a gradient."""
    if repeated.num_backward or not repeated.num_updates or repeated.is_written:
        return None
    state = "the same gradients as before" if repeated.has_gradients else "no gradient"
    return Fault(
        f"{repeated.optimizer}.step() without a backward pass since the last one", measured=f"{state} at step()"
    )
