"""What the record of a training says of it: inputs and losses above all before them, figures, gaps between modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.record import MIN_INPUTS, MIN_LOSSES, Chance, Jump, LossLevels, ModeGap, Record, Scored


@measure()
def input_jumps(record: Record) -> dict[str, list[Jump]]:
    """Return the batches of each input whose largest number is above all before them."""
    if not any(sizes.num_seen > MIN_INPUTS for sizes in record.inputs.values()):
        raise NotApplicableError("no passes of training with numbers as inputs")
    return {name: sizes.jumps for name, sizes in record.inputs.items()}


@measure()
def weight_jumps(record: Record) -> list[Jump]:
    """Return the looks at which the largest weight was above all before it."""
    if record.weights.num_seen <= record.weights.least:
        raise LeftOutError("fewer than three looks at the weights")
    return record.weights.jumps


@measure()
def loss_levels(record: Record) -> list[LossLevels]:
    """Return the losses of each line that has enough of them."""
    known = [levels for levels in record.losses.values() if levels.num_seen > MIN_LOSSES]
    if not known:
        raise NotApplicableError("no losses of a training")
    return known


class Fall(NamedTuple):
    """The last figure of evaluations, the best before it, and the largest worsening before, in shares of the best.

    `num_fallen` are the evaluations in a row, up to the last, that are as far below the best.
    """

    name: str
    last: Scored
    best: Scored
    share: float
    usual_share: float
    num_fallen: int


@measure()
def metric_fall(record: Record) -> Fall:
    """Compare the last evaluations with the best one before, and with how far figures fell before."""
    scores = record.scores
    if len(scores) < 2:
        raise LeftOutError("fewer than two evaluations")
    sign = 1.0 if record.is_higher_better else -1.0
    best, shares = scores[0], [0.0]
    for score in scores[1:]:
        shares.append(_fall(best, score, sign))
        best = max(best, score, key=lambda each: sign * each.value)
    fallen = _count_last(shares)
    before = scores[: len(scores) - fallen] or scores[:1]
    best = max(before, key=lambda each: sign * each.value)
    usual = max(shares[: len(before)], default=0.0)
    return Fall(record.metric, scores[-1], best, shares[-1], usual, fallen)


def _fall(best: Scored, score: Scored, sign: float) -> float:
    """Return how much worse a figure is, as a share of the better one of both; 0 for one that is better."""
    worse = sign * (best.value - score.value)
    largest = max(abs(best.value), abs(score.value))
    return max(worse, 0.0) / largest if largest else 0.0


def _count_last(shares: Sequence[float]) -> int:
    """Count the last figures in a row that are at least half as far below the best as the last one."""
    number = 0
    for share in reversed(shares):
        if share < shares[-1] / 2 or share == 0:
            break
        number += 1
    return max(number, 1)


@measure()
def mode_gaps(record: Record) -> list[ModeGap]:
    """Return the comparisons of both modes."""
    if not record.modes:
        raise NotApplicableError("no comparison of both modes")
    return record.modes


@measure()
def chances(record: Record, chance_source: Callable[[], list[Chance]]) -> list[Chance]:
    """Measure what the trained network knows of the targets of its training and of its evaluation."""
    if not record.scores or record.main_losses.num_seen <= MIN_LOSSES:
        raise NotApplicableError("no losses of a training, or no evaluation")
    return chance_source()
