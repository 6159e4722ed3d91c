"""Rules of the gradients that a loop's updates use: what clears, keeps, scales or loses them, and whom none reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sightline.contract.errors import join_some
from sightline.doctor.evidence.backward import CutDraw
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule

_MAX_NAMES = 5
NUM_LOST = 4
"""Updates in a row before which the same backward passes were for nothing, or for too much."""
_NUM_ZERO = 3
"""Updates in a row with all gradients exactly zero: one or two are a batch in which nothing counts."""
_MAX_MIXED = 0.5
"""Share of modules up to which frozen parameters beside others are a slip: some methods train all biases alone."""
_MAX_DEAD, _MIN_UNITS = 0.75, 8
_MAX_SKIPPED = 25
"""Updates in a row that a scaler skips: 2^16 halves to 1 in 16 of them."""
NUM_SCALED, _MAX_SKIPPED_SHARE = 100, 0.05
"""Updates in a row, skipped ones among them, and the share of these: a scaler tries a larger scale every 2000."""
_NUM_CLIPPED, _MIN_CLIPPING = 3, 1e-3


@rule(
    "gradients-cleared",
    "error",
    "optim.step_order",
    holds="the gradients of backward() are still there when the optimiser uses them",
    do="call zero_grad() before backward() or after step(), not between them",
)
def gradients_cleared(
    optimizer: str, cleared: list[str], num_cleared: int, num_updates: int, are_zeros: bool
) -> Fault | None:
    """Look for parameters that had a gradient after the backward pass, and have none, or zeros, at updates in a row.

    Those of one update may be cleared in a loop that has used others before: they were not finite.
    """
    if num_cleared < (_NUM_ZERO if are_zeros else min(1 + num_updates, 2)):
        return None
    if are_zeros:
        return Fault(
            f"all gradients of {optimizer} are exactly zero at {num_cleared} updates in a row",
            measured=f"largest gradient 0 in {len(cleared)} parameters; something has written to them since backward()",
        )
    return Fault(
        f"the gradients are cleared between backward() and {optimizer}.step(): the update does nothing",
        measured=f"after backward() {join_some(cleared, most=_MAX_NAMES)} had a gradient, at step() none has",
    )


@rule(
    "gradients-cleared",
    "error",
    "optim.grad_accumulation optim.step_order",
    holds="the gradients of all backward passes of an update are still there when the optimiser uses them",
    do="for accumulation call zero_grad() once per update: after step(), not before each backward()",
)
def lost_passes(optimizer: str, lost_passes: list[tuple[int, int]]) -> Fault | None:
    """Look for updates in a row before which so many of all backward passes are cleared."""
    lost, total = lost_passes[-1]
    if len(lost_passes) < NUM_LOST or not lost or len({*lost_passes}) > 1:
        return None
    return Fault(
        f"the gradients of {lost} of {total} backward passes are cleared before {optimizer}.step() uses them",
        measured=f"the same at {NUM_LOST} updates in a row; each pass had a batch of its own",
    )


@rule(
    "gradients-kept",
    "error",
    "optim.grad_accumulation",
    holds="gradients of this step alone: nothing cleared those that the previous update used",
    do="call zero_grad() of each optimizer once per update, before the backward pass of its own loss",
)
def gradients_kept(optimizer: str, kept: list[str], num_leaks: int) -> Fault | None:
    """Look for gradients of the last update, or of a loss of another optimiser at updates in a row, that are kept."""
    where = FindingLocation(param=next(iter(kept), None))
    if not num_leaks:
        return Fault(
            f"gradients of the previous update are still in those of this one: {optimizer} adds them up",
            measured=f"nothing but backward() has written to the gradients of {join_some(kept, most=_MAX_NAMES)} "
            "since step()",
            where=where,
        )
    if num_leaks < NUM_LOST:
        return None
    return Fault(
        f"gradients of a loss that another optimiser has used are still in those of {optimizer}",
        measured=f"{num_leaks} updates in a row: a backward pass through both, an update of the other, a backward pass "
        "through this one, and no zero_grad() between them",
        where=where,
    )


@rule(
    "zero-gradients",
    "error",
    "loss.form model.activation model.constant_output",
    holds="gradients that are not all exactly zero",
    do="look for a saturated activation, a clamp or a mask that multiplies the loss by zero",
)
def zero_gradients(optimizer: str, zero_gradients: list[str], num_zero: int, are_factors: bool) -> Fault | None:
    """Look for parameters all of whose gradients are zero at updates in a row; `are_factors`: so are their values."""
    if num_zero < _NUM_ZERO:
        return None
    summary, number = f"all gradients of {optimizer} are exactly zero", len(zero_gradients)
    if not are_factors:
        return Fault(f"{summary} at {num_zero} updates in a row", measured=f"largest gradient 0 in {number} parameters")
    return Fault(
        f"{summary}, and so is all that it trains: {join_some(zero_gradients, most=_MAX_NAMES)}",
        measured=f"gradients and values are 0 in {number} parameters at {num_zero} updates in a row",
        expected="one of two factors that is not 0: the gradient of each is a product with the other",
        causes=("model.init",),
        action="draw one factor of an adapter at random, also where layers are initialised after it is put in",
    )


@rule(
    "frozen",
    "warning",
    "model.frozen_unintended",
    holds="modules that train or are frozen as a whole",
    do="let them train, or freeze the whole module by requires_grad_(False)",
)
def frozen_beside(frozen_beside: list[str], mixed_modules: list[str], num_modules: int) -> Fault | None:
    """Name parameters that are frozen in few modules beside others of the same module that train."""
    if not frozen_beside or len(mixed_modules) > _MAX_MIXED * num_modules:
        return None
    return Fault(
        f"{len(frozen_beside)} parameter(s) frozen in modules that train: {join_some(frozen_beside, most=_MAX_NAMES)}",
        measured=f"requires_grad False in {len(mixed_modules)} of {num_modules} modules, True of their other "
        "parameters",
        where=FindingLocation(param=frozen_beside[0], layer=mixed_modules[0] or None),
    )


@rule(
    "dead-units",
    "warning",
    "model.activation model.init optim.lr",
    holds="units that some sample gives a gradient",
    do="look at the activation after it and at its bias; lower the learning rate",
    is_statistical=True,
)
def dead_units(layer: str, dead_units: int, num_units: int, num_updates: int) -> Fault | None:
    """Find a layer most of whose units get no gradient from any sample of some updates."""
    if num_units < _MIN_UNITS or dead_units <= _MAX_DEAD * num_units:
        return None
    return Fault(
        f"{dead_units / num_units:.0%} of the units of '{layer}' are dead: no sample gives them a gradient",
        measured=f"the gradient is exactly 0 for {dead_units} of {num_units} units",
        expected=f"at most {_MAX_DEAD:.0%} at {num_updates} sampled updates",
        where=FindingLocation(layer=layer),
    )


@rule(
    "skipped-updates",
    "error",
    "optim.amp optim.nonfinite optim.step_order",
    holds="updates, but for a few at the start, until the scaler has its scale",
    do="look for inf or NaN without the scaler, or train in bfloat16",
)
def skipped_updates(optimizer: str, skipped_updates: int) -> Fault | None:
    """Look for gradients that are unscaled, and never used."""
    if skipped_updates < _MAX_SKIPPED:
        return None
    return Fault(
        f"the GradScaler has skipped {skipped_updates} updates of {optimizer} in a row",
        measured=f"gradients were unscaled {skipped_updates} times without an update: they were not finite",
    )


@rule(
    "skipped-updates",
    "warning",
    "optim.amp optim.nonfinite data.corrupt_sample",
    holds=f"at most {_MAX_SKIPPED_SHARE:.0%} of the updates skipped, once the scaler has its scale",
    do="train in bfloat16, look for samples with huge losses, or raise the growth_interval of the scaler",
)
def skipped_share(optimizer: str, num_skipped: int, num_scaled: int) -> Fault | None:
    """Look for updates that are skipped again and again, among the last ones after the first that was not."""
    if num_scaled < NUM_SCALED or num_skipped <= _MAX_SKIPPED_SHARE * num_scaled:
        return None
    return Fault(
        f"the GradScaler skips {num_skipped / num_scaled:.0%} of the updates of {optimizer}",
        measured=f"{num_skipped} of {num_scaled} updates in a row were skipped, as gradients were not finite",
    )


@rule(
    "scaled-clipping",
    "error",
    "optim.clip optim.amp optim.step_order",
    holds="gradients that are unscaled before anything depends on their size",
    do="call scaler.unscale_(optimizer) before clipping",
)
def scaled_clipping(scaled_factors: Sequence[float]) -> Fault | None:
    """Judge the first three factors: those of clipping differ, one that divides for accumulation is always the same."""
    factors = [factor for factor in scaled_factors if abs(factor - 1) >= _MIN_CLIPPING][:_NUM_CLIPPED]
    if len(factors) < _NUM_CLIPPED or max(factors) <= (1 + _MIN_CLIPPING) * min(factors):
        return None
    return Fault(
        "gradients are clipped while the GradScaler's factor is in them: updates are far too small",
        measured=f"scaled gradients are multiplied by {min(factors):.2g} .. {max(factors):.2g} between backward() and "
        "unscale_()",
    )


@rule(
    "no-gradient",
    "warning",
    "loss.detached model.structure",
    holds="what is drawn from a distribution lets the gradient through to its parameters",
    do="draw by rsample(), or train the parameters by log_prob() of what is drawn",
)
def cut_draw(cut_draws: list[CutDraw]) -> Iterator[Fault]:
    """Name draws that move the loss, of distributions whose parameters want a gradient, without one."""
    for draw in cut_draws:
        yield Fault(
            f"no gradient comes back through {draw.call}: other terms alone train what it is drawn from",
            measured="the loss moves with what is drawn, which does not follow the parameters that it is drawn from",
            expected=f"{draw.instead}, whose draws are the same",
        )
