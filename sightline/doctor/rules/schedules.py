"""Rules of learning rates over the updates of a loop, and of the schedulers that set them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sightline.doctor.evidence.live.schedules import LOW_RATE, TINY_RATE, Rates, Stepped
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule

_NUM_STILL = 10
"""Updates at a learning rate of 0 in a row: a warm-up from 0 has one."""
_MIN_LOW, _MIN_TINY, _MAX_TINY_SHARE = 50, 5, 0.05
"""The end of a cosine is tiny for a thousandth of its length."""
_MIN_RISES, _UPDATES_A_RISE, _LOW_RISE, _MAX_EPOCHS_OF_RISE, _MANY = 3, 8, 0.3, 30, 10
_NUM_IDLE = 20
"""Updates after which a loop must have stepped a scheduler at its end."""
_NUM_EPOCHS, _NUM_IDLE_UNKNOWN = 2, 200
"""Epochs after which a schedule that is not named has been stepped, and updates where epochs are not known."""


@rule(
    "no-update",
    "error",
    "optim.lr optim.scheduler optim.state",
    holds="updates at a learning rate above 0",
    do="look at the learning rate of each group, and at the schedule",
)
def no_rate(past_rates: Rates) -> Fault | None:
    """Count updates in a row whose largest rate of all groups is 0."""
    if past_rates.num_still != _NUM_STILL:
        return None
    summary = f"{_NUM_STILL} updates of {past_rates.optimizer} in a row have a learning rate of 0"
    return Fault(summary, measured="0 in each of its groups")


@rule(
    "schedule",
    "warning",
    "optim.scheduler",
    holds="a schedule that lasts as long as the training",
    do="give the scheduler's lengths in the unit in which it is stepped: batches or epochs",
)
def learning_rates(past_rates: Rates) -> Iterator[Fault]:
    """Look for rates that stay far below the highest, and at the end for a start that is never over."""
    rates = past_rates
    share, name = rates.rate / (rates.highest or 1.0), rates.optimizer
    if rates.is_over:
        yield from _judge_start(rates)
        return
    if rates.num_low == max(_MIN_LOW, rates.num_high):
        yield Fault(
            f"the learning rate of {name} fell to {share:.1g} of its highest, and stays there",
            measured=f"{rates.num_low} updates below {LOW_RATE:.0%} of {rates.highest:.3g}, after {rates.num_high} "
            f"above: {rates.rate:.3g}",
        )
    if rates.num_tiny == max(_MIN_TINY, math.ceil(_MAX_TINY_SHARE * rates.num_updates)):
        yield Fault(
            f"the learning rate of {name} fell to {share:.1g} of its highest: nothing is learnt",
            measured=f"{rates.num_tiny} updates in a row below {TINY_RATE:g} of {rates.highest:.3g}: {rates.rate:.3g}",
        )


def _judge_start(rates: Rates) -> Iterator[Fault]:
    """Compare the rates of a whole loop with the one that the optimiser was made with."""
    base, num_rises, since = rates.base, len(rates.rises) - 1, rates.num_updates - rates.last_rise
    still_rises = num_rises > _MIN_RISES and since * num_rises <= 2 * rates.num_updates  # in a warm-up
    is_low = rates.num_updates >= _MIN_LOW and 0 < rates.highest < LOW_RATE * base
    if is_low and base < 1 and not still_rises:  # with 1, the function returns the rate
        yield Fault(
            f"the learning rate of {rates.optimizer} is never above {rates.highest / base:.1g} of the one that it was "
            "made with",
            measured=f"at most {rates.highest:.3g} in {rates.num_updates} updates; {base:.3g} before the scheduler",
            expected="a factor of 1 at some time: LambdaLR multiplies the rate of the optimiser",
            action="return a factor from the function of LambdaLR, and not a learning rate",
        )
    is_slow = num_rises >= _MIN_RISES and _UPDATES_A_RISE * len(rates.rises) <= rates.num_updates
    rate = rates.rises[-1] if rates.rises else base
    length = len(rates.rises) * base / max(rate, 1e-30)  # in rises; one of epochs may be longer than a short loop
    if is_slow and rates.left > _MANY and rate < _LOW_RISE * base and length > _MAX_EPOCHS_OF_RISE:
        yield Fault(
            f"the warm-up of {rates.optimizer} does not end: the learning rate gets to {rate / base:.1g} of that at "
            "the start",
            measured=f"{num_rises} rises in {rates.num_updates} updates, to {rate:.3g} of {base:.3g}",
            expected="a warm-up that is over early in the run",
            action="a warm-up that counts updates needs scheduler.step() after each update",
        )


@rule(
    "schedule",
    "warning",
    "optim.scheduler",
    holds="scheduler.step() after each epoch, or after each update, and not past the end of the schedule",
    do="call scheduler.step()",
)
def scheduler_steps(stepped: Stepped) -> Iterator[Fault]:
    """Look for a scheduler that a loop never steps, and for a cosine that is stepped past its end."""
    name, num_steps, num_updates, length, is_over, num_epochs = stepped
    is_long = num_epochs is None or (num_epochs > _NUM_EPOCHS if num_epochs else num_updates >= _NUM_IDLE_UNKNOWN)
    if is_over and num_steps == 0 and num_updates >= _NUM_IDLE and is_long:
        summary = f"{name} never steps: the learning rate stays as it was"
        yield Fault(summary, measured=f"0 calls of step() in {num_updates} updates")
    if length is not None and num_steps > length + 1:
        is_each = ", one after each update: T_max is probably in epochs" if num_updates <= num_steps + 1 else ""
        yield Fault(
            f"{name} is stepped past its end: the learning rate rises again",
            measured=f"{num_steps} steps, T_max {length}{is_each}",
            severity="error",
            action="give the scheduler's lengths in the unit in which it is stepped: batches or epochs",
        )
