"""Rules of what a training came to: no number of a batch, no loss, no figure and no mode leaves the others behind."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.evidence.data.statistics import Confusion
from sightline.doctor.evidence.outcomes.numbers import Fall
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.record import NUM_RECENT, Chance, Jump, LossLevels, ModeGap, Record
from sightline.doctor.rules import rule
from sightline.doctor.trace import Trace

_MIN_INPUT, _MIN_LOSS, _SPREADS = math.log(50.0), math.log(10.0), 12.0
"""Least logarithms of a jump, and how often the spread of the numbers before it: the tail of an exponential
distribution passes the highest one before by 12 of its means once in 160,000 such records."""
_MIN_WEIGHT = math.log(1000.0)
_FEW_INPUTS, _FEW_LOSSES = 16, 4
"""Numbers before a jump that double what it takes."""
_MIN_TIMES = 4.5
"""Loss by the highest before it: that of a few samples, rare ones or wrongly labelled, may be some times as high."""
_MAX_LOW, _MIN_BACK, _MIN_RISE = 0.6, 0.8, math.log(2.0)
"""Level of losses that have fallen and of losses that are back, by that of the first ones; least step up."""
_MIN_FALL, _MIN_UNUSUAL, _MAX_LOSS = 0.5, 3.0, 1.5
_MAX_STILL = 0.95
"""Training loss at the best figure, by the first one, up to which something was learnt: else the figure was luck."""
_MIN_BEST = 0.1
"""Smallest best figure, of those of which a larger one is better, that was learnt: one of 0.02 comes and goes."""
_MIN_GAP, _MIN_NOISES, _MAX_LEARNT = 0.5, 10.0, 0.7
_MIN_RATIO, _MIN_NOISES_OF_SPOILT = 1e4, 4.0
"""Ratio of running statistics to those of a batch from which less of a gap is unusual."""
_MAX_LAG = 2.0
"""Ratio up to which running statistics merely lag behind weights that move: outputs that are still alike show it."""
_MIN_KNOWN, _MIN_BETTER, _MAX_LEFT = 0.1, 0.02, 0.5
"""Share of the loss with the inputs of other samples that its own save a network which knows its targets, and share of
the way from the figure with those to the best one; share of its first loss, and of that of evaluation, below which a
training has learnt."""

_FEW_STEPS = 50
"""Steps before the modes are compared, and a figure is expected to be above chance."""
_MIN_ANSWERED, _MAX_OF_CLASS = 40, 0.8
"""Answers of evaluation for a judgement, and largest share of a class."""
_LEARN = "train for longer; if the loss stays where it is, look at the learning rate and the targets (sightline fit)"

_MORE_STEPS = (
    "train for more steps, as by smaller batches or more epochs: the running variances begin at 1, and have not come "
    "down to the small ones of the layer; or estimate them anew from training batches (reset_running_stats(), then "
    "passes in training mode with momentum=None)"
)
"""What to do about running statistics that are mostly what they started from."""


def _is_far(jump: Jump, least: float, few: int) -> bool:
    return jump.excess > max(least, _SPREADS * jump.spread) * (1 + few / jump.num_before)


@rule(
    "far-input",
    "warning",
    "data.corrupt_sample data.normalisation",
    holds="inputs of the size of those before, or near it",
    do="look at the sample: a sentinel of a sensor, another unit, a broken file; drop or clamp such numbers, and train "
    "from a checkpoint before this step: running statistics keep them",
    is_statistical=True,
)
def far_input(input_jumps: dict[str, list[Jump]]) -> Iterator[Fault]:
    """Look for a batch whose largest number lies far above those of all batches before it."""
    for name, jumps in input_jumps.items():
        for jump in [each for each in jumps if _is_far(each, _MIN_INPUT, _FEW_INPUTS)][:1]:
            yield Fault(
                f"inputs of a batch lie far outside of all before them{f' ({name})' if name else ''}",
                measured=f"{jump.value:.4g}; in the {jump.num_before} batches before at most {jump.highest:.4g}, "
                f"mostly {jump.usual:.4g}",
                where=FindingLocation(step=jump.step, sample=jump.row),
                evidence={"mode": name, "row": jump.row},
            )


@rule(
    "far-weight",
    "warning",
    "optim.state optim.lr model.numerics",
    holds="weights of the size of those before, or near it",
    do="train from a checkpoint before this step; look at the optimiser's state, at the learning rate, and at what "
    "writes to the weight outside of the optimiser",
    is_statistical=True,
)
def far_weight(weight_jumps: list[Jump]) -> Iterator[Fault]:
    """Look for a weight a thousand times as large as the largest one before."""
    for jump in [each for each in weight_jumps if each.excess > _MIN_WEIGHT][:1]:
        yield Fault(
            "a weight has become far larger than all before",
            measured=f"{jump.value:.4g} up to step {jump.step}; the largest before was {jump.highest:.4g}",
            where=FindingLocation(step=jump.step, param=jump.name or None),
        )


@rule(
    "loss-jump",
    "warning",
    "optim.lr data.corrupt_sample optim.state model.numerics",
    holds="losses of the level of those before, or below it",
    do="lower the learning rate or warm it up for longer, clip the gradient, and look at the samples of this step",
    is_statistical=True,
)
def loss_jump(loss_levels: list[LossLevels]) -> Iterator[Fault]:
    """Look for a loss of more than four times all before it and far above the last ones, and for one that stays up."""
    jumps = [jump for levels in loss_levels for jump in levels.jumps if jump.value > _MIN_TIMES * jump.highest]
    far = [each for each in jumps if _is_far(each, _MIN_LOSS, _FEW_LOSSES)]
    far += [levels.rise for levels in loss_levels if levels.rise is not None and _has_returned(levels, levels.rise)]
    for jump in far[:1]:
        norm = "" if jump.norm is None else f"; the norm of its gradient is {jump.norm:.4g}"
        yield Fault(
            "the training loss leaves its level",
            measured=f"{jump.value:.4g} among losses of {jump.usual:.4g}; at most {jump.highest:.4g} before{norm}",
            where=FindingLocation(step=jump.step),
        )


def _has_returned(levels: LossLevels, rise: Jump) -> bool:
    """Return True where losses have left a low level in one step, and are back where they began since then."""
    is_back = rise.usual < _MAX_LOW * levels.start and levels.level > _MIN_BACK * levels.start
    return is_back and levels.num_seen >= rise.num_before + 2 * NUM_RECENT and _is_far(rise, _MIN_RISE, _FEW_LOSSES)


@rule(
    "metric-fall",
    "warning",
    "model.norm_mode optim.state data.corrupt_sample eval.mode",
    holds="figures of evaluations that stay near their best while the training loss is low",
    do="compare the checkpoints before and after this step; look for running statistics that one batch has moved, and "
    "at the evaluation's data",
    is_statistical=True,
)
def fallen_metric(record: Record, metric_fall: Fall) -> Fault | None:
    """Look for a figure that has fallen far, stays there or is the last one, while the training loss has not risen."""
    fall = metric_fall
    if record.is_higher_better and fall.best.value < _MIN_BEST:
        return None
    is_lasting = record.is_over or fall.num_fallen > 1
    is_far = fall.share > max(_MIN_FALL, _MIN_UNUSUAL * fall.usual_share)
    has_learnt = not fall.best.loss > _MAX_STILL * record.main_losses.start
    if not is_lasting or not is_far or not has_learnt or not fall.last.loss <= _MAX_LOSS * fall.best.loss:
        return None
    return Fault(
        f"{fall.name} falls far below its best, and the training loss does not rise",
        measured=f"{fall.best.value:.4g} at step {fall.best.step}, {fall.last.value:.4g} at step {fall.last.step}; "
        f"training losses of {fall.best.loss:.3g}, then {fall.last.loss:.3g}{_describe_jumps(record, fall.last.step)}",
        where=FindingLocation(step=fall.last.step),
    )


@rule(
    "chance-figure",
    "warning",
    "data.label_mapping data.pairing data.split data.target_encoding model.norm_mode eval.protocol",
    holds="outputs that say more of the targets of their sample than those of another one",
    do="compare a few samples of training, after its transforms, with the same ones as evaluation reads them "
    "(sightline view), and the labels of both parts",
    is_statistical=True,
)
def chance_figure(record: Record, chances: list[Chance]) -> Iterator[Fault]:
    """Look for a network whose loss and figure are the same, or better, with the inputs of other samples.

    It is a note where the training loss is high, too, as before anything is learnt, and where the two modes of the
    network differ.
    """
    if record.scores[-1].step < _FEW_STEPS:
        raise LeftOutError(f"fewer than {_FEW_STEPS} steps")
    losses, is_higher_better = record.main_losses, record.is_higher_better
    has_fallen = losses.level < _MAX_LEFT * losses.start
    by_chance = [each for each in chances if _is_at_chance(each, is_higher_better=is_higher_better)]
    # Where its loss is low on these samples, too, it knows them: all have the same targets.
    found = [each for each in by_chance if not has_fallen or losses.level < _MAX_LEFT * each.loss]
    # Spoilt running statistics spoil evaluation alone: that is another rule's.
    is_unsure = any(map(_is_gap, record.modes[-1:]))
    for each in found[:1]:
        first, others = (
            record.scores[0],
            "; the outputs say more of the other part" if len(chances) > len(by_chance) else "",
        )
        yield Fault(
            f"{record.metric} of the {each.split} part is at chance{', and the training loss is low' * has_fallen}",
            measured=f"{each.figure:.4g} of {each.num_samples} samples, {each.other_figure:.4g} with the inputs of "
            f"others; loss {each.loss:.4g}, {each.other_loss:.4g} with those; training loss {losses.level:.4g}, "
            f"{losses.start:.4g} at first; {record.metric} {first.value:.4g} after step {first.step}{others}",
            severity=None if has_fallen and not is_unsure else "note",
            action="" if has_fallen else _LEARN,
            where=FindingLocation(step=first.step, dataset=each.split),
        )


def _is_at_chance(chance: Chance, *, is_higher_better: bool) -> bool:
    """Return True where neither the loss nor the figure shows that outputs are of their own sample."""
    other = chance.other_figure
    better, way = (chance.figure - other, 1 - other) if is_higher_better else (other - chance.figure, other)
    is_loss_alike = chance.loss >= (1 - _MIN_KNOWN) * chance.other_loss
    return is_loss_alike and better <= _MIN_BETTER * (way if way > 0 else abs(other))


@rule(
    "chance-figure",
    "warning",
    "data.label_mapping data.pairing data.split data.target_encoding model.norm_mode",
    holds="answers of evaluation that are right more often than those to other samples",
    do="compare the labels that the loss gets with those that the loader gives, and a few samples of both parts",
    is_statistical=True,
)
def answers_at_chance(trace: Trace, record: Record, confusion: Confusion) -> Fault | None:
    """Look for answers of the last evaluations that have nothing to do with the classes of their samples.

    The largest of each sample's outputs is its answer. By chance, answers of these shares are right as often as those
    of a sample to the class of another one.
    """
    table = confusion.evaluation.astype(np.float64)
    total = table.sum()
    losses = record.main_losses
    if total < _MIN_ANSWERED or losses.num_seen < _FEW_STEPS:
        raise LeftOutError("few answers to classes")
    classes, answers = table.sum(axis=1) / total, table.sum(axis=0) / total
    own, chance = table.trace() / total, float(classes @ answers)
    if classes.max() > _MAX_OF_CLASS:
        raise NotApplicableError("one class for nearly all samples")
    error = math.sqrt(max(chance * (1 - chance), 0.01) / total)
    if own > chance + 2 * error or not trace.is_over:
        return None
    has_fallen = losses.level < _MAX_LEFT * losses.start
    trained = confusion.kept_back
    return Fault(
        f"answers of evaluation are at chance{', and the training loss is low' * has_fallen}",
        measured=f"{own:.1%} of {total:.0f} are right, {chance:.1%} would be by chance; of training "
        f"{trained.trace() / max(trained.sum(), 1):.1%} of {trained.sum()}, by the classes that the loader gives; "
        f"training loss {losses.level:.4g}, {losses.start:.4g} at first",
        severity=None if has_fallen else "note",
        where=FindingLocation(step=trace.first_evaluation),
    )


@rule(
    "mode-gap",
    "warning",
    "model.norm_mode data.corrupt_sample eval.mode",
    holds="outputs in evaluation mode near those in training mode, on the same samples",
    do="train from a checkpoint before the running statistics were spoilt, or estimate them anew from training batches "
    "(reset_running_stats(), then passes in training mode); look for inputs far outside of the others",
    is_statistical=True,
)
def mode_gap(record: Record, mode_gaps: list[ModeGap]) -> Fault | None:
    """Look for outputs that a network which has learnt loses in evaluation mode, at the end or twice in a row."""
    last = mode_gaps[-1 if record.is_over else -2 :]
    if (len(last) < 2 and not record.is_over) or not all(map(_is_gap, last)):
        return None
    gap = last[-1]
    return Fault(
        f"outputs in evaluation mode are unlike those in training mode{f' ({gap.path})' if gap.path else ''}",
        measured=f"on the same samples they differ by {math.sqrt(gap.gap):.3g} deviations of the outputs, passes in "
        f"training mode by {math.sqrt(gap.noise):.3g}; training loss {gap.loss:.3g}; {gap.words}"
        f"{_describe_jumps(record, gap.step)}",
        action=_MORE_STEPS if gap.is_young else "",
        severity="note" if gap.is_young else None,  # a score need not suffer from it
        where=FindingLocation(step=gap.step, layer=gap.layer),
    )


def _describe_jumps(record: Record, step: int) -> str:
    """Name the step up to this one whose inputs lay far outside, or else whose loss left its level."""
    for words, sources, least, few in (
        ("inputs lay far outside", record.inputs.values(), _MIN_INPUT, _FEW_INPUTS),
        ("loss left its level", record.losses.values(), _MIN_LOSS, _FEW_LOSSES),
    ):
        jumps = [jump for source in sources for jump in source.jumps if jump.step <= step and _is_far(jump, least, few)]
        if jumps:
            return f"; at step {jumps[-1].step} the {words}"
    return ""


def _is_gap(gap: ModeGap) -> bool:
    has_learnt = gap.loss < _MAX_LEARNT * gap.start or math.isnan(gap.start)
    num_noises = _MIN_NOISES if gap.ratio < _MIN_RATIO else _MIN_NOISES_OF_SPOILT
    return has_learnt and gap.ratio > _MAX_LAG and gap.gap > max(_MIN_GAP, num_noises * gap.noise)
