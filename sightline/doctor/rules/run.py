"""Rules of a live loop: its updates, its learning rates, its losses, and what it reads in either phase."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

import torch

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence.levels import Levels
from sightline.doctor.evidence.run import Cycle, InputShift, MixedBatches, Plateau
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.doctor.trace import Trace

_MIN_BACKWARD, _MIN_LATE = 5, 25
_MIN_CYCLES, _MAX_CYCLE = 3, 25
_MAX_CLIP, _MAX_SHARE, _MIN_CLIPS = 0.01, 1e-4, 4
_MIN_FALL, _MIN_ACCELERATION = 1e3, 1.5
_MAX_SLOPE, _MIN_Z = -0.6, 4.0
_MAX_COLLAPSE, _MIN_LEFT = 0.01, 0.5
_MIN_ADDENDS = 3
_NEAR = 0.02
"""Share by which a loss at a trivial level may differ from it."""
_STUCK = 0.01
"""Share by which a loss moves at most where nothing is learnt."""
_MIN_LEFT_BY_CONSTANTS = 1e-4
"""Share of the loss of zeros that constants leave of targets that are not alike, as labels of the same class are."""
_MIN_MIXED, _MIN_SEEN, _MIN_BATCHES = 0.9, 5, 1.5


@rule(
    "no-update",
    "error",
    "optim.step_order optim.param_coverage",
    holds="the gradients of a training loop move its weights",
    do="call optimizer.step() after loss.backward()",
)
def no_update(trace: Trace) -> Fault | None:
    """Look for backward passes in training mode after which nothing has moved a weight, or nothing any more."""
    if trace.num_training_backward == 0:
        raise NotApplicableError("no backward pass in training mode")
    most = trace.most_unused  # passes of other lines are for others: maps of saliency, the information of weights
    late = [n for site, n in trace.unused.items() if site in most and n >= max(_MIN_LATE, 2 * most[site] + 1)]
    if trace.is_over and late:
        return Fault(
            f"the last {late[0]} backward passes in training mode have no update after them",
            measured=f"{trace.num_updates} updates, before each of which this line calls backward at most "
            f"{max(most.values())} times",
        )
    if not trace.is_over or trace.num_updates or trace.num_training_backward < _MIN_BACKWARD or any(trace.changed):
        return None
    return Fault(
        f"{trace.num_training_backward} backward passes in training mode, and no update",
        measured=f"{trace.num_backward} backward passes, 0 updates; all weights are those of the first pass",
    )


@rule(
    "evaluation-inputs",
    "warning",
    "data.normalisation eval.protocol",
    holds="a model is evaluated on inputs of the range that it is trained on",
    do="give the evaluation's transform the normalisation that the training's has, and the same order of channels",
    is_statistical=True,
)
def evaluation_inputs(input_shifts: list[InputShift]) -> Iterator[Fault]:
    """Compare inputs of both phases by channel; the null is what one training batch differs from the others."""
    for shift in input_shifts:
        if shift.is_unlike:
            yield Fault(
                f"inputs of evaluation passes are unlike those of training{f' ({shift.path})' if shift.path else ''}",
                measured=f"training: mean {shift.mean[0]:.3g}, deviation {shift.deviation[0]:.3g}; evaluation: mean "
                f"{shift.mean[1]:.3g}, deviation {shift.deviation[1]:.3g}; between training batches z = {shift.z:.1f}",
            )


@rule(
    "restarted-rate",
    "warning",
    "optim.scheduler",
    holds="a learning rate that falls to 0 and rises again does so over epochs",
    do="step the schedule once an epoch, or give it the number of updates as its length",
)
def restarted_rate(rate_cycles: dict[str, Cycle]) -> Iterator[Fault]:
    """Count how often a rate falls to nothing and returns within an epoch."""
    for name, cycle in rate_cycles.items():
        short = cycle.period < (cycle.epoch or 2 * _MAX_CYCLE) / 2
        if cycle.number >= _MIN_CYCLES and short:
            epoch = f"an epoch has {cycle.epoch:.0f}" if cycle.epoch else "the length of an epoch is not known"
            yield Fault(
                f"the learning rate of {name} falls to 0 and returns each {cycle.period:.0f} updates",
                measured=f"{cycle.number} times in {cycle.num_updates} updates; {epoch}",
            )


@rule(
    "clipped-away",
    "warning",
    "optim.clip",
    holds="clipping bounds rare large gradients, and leaves others as they are",
    do="raise the bound of clip_grad_norm_ to the usual norm of the gradients",
    is_statistical=True,
)
def clipped_away(trace: Trace) -> Iterator[Fault]:
    """Look for updates that each use a hundredth of their gradient, and move the weights by next to nothing."""
    if not trace.clips:
        raise NotApplicableError("no norms before and after clipping")
    for name, clips in trace.clips.items():
        numbers = [[float(value) for value in clip] for clip in clips]
        if len(numbers) < _MIN_CLIPS or min(used for _, used, _ in numbers) <= 0:
            continue
        most = max(used / max(norm, 1e-30) for norm, used, _ in numbers)
        share = max(share for *_, share in numbers)
        if most < _MAX_CLIP and share < _MAX_SHARE:
            norm = statistics.median(norm for norm, *_ in numbers)
            yield Fault(
                f"every update of {name} is clipped to less than a hundredth of its gradient",
                measured=f"norm {norm:.3g}, used {numbers[-1][1]:.3g}; an update is at most {share:.1g} of the weights",
            )


@rule(
    "unbounded-loss",
    "warning",
    "loss.sign loss.form",
    holds="a loss that is minimised has a lower bound",
    do="look for a term with the wrong sign: a divergence, a penalty or an entropy that should be added",
    is_statistical=True,
)
def unbounded_loss(curves: list[list[float]]) -> Iterator[Fault]:
    """Look for a loss below any constant that falls ever faster."""
    for curve in curves:
        start = max(map(abs, curve[: max(len(curve) // 20, 1)]))
        now = [curve[round(part * (len(curve) - 1))] for part in (0.25, 0.5, 0.75, 1)]
        falls = [before - after for before, after in itertools.pairwise(now)]
        accelerates = all(b > _MIN_ACCELERATION * a > 0 for a, b in itertools.pairwise(falls))
        if now[-1] < -_MIN_FALL * max(start, 1e-3) and accelerates:
            yield Fault(
                "the loss falls below any bound, ever faster",
                measured=f"{curve[0]:.3g} at first, then {', '.join(f'{value:.3g}' for value in now)} by quarters",
            )
            return


@rule(
    "trivial-plateau",
    "warning",
    "model.constant_output model.activation model.init optim.lr data.target_encoding",
    holds="a loss that leaves the level of outputs that need no network, while training goes on",
    do="check the network before training (sightline check, fit): last activation, gradients, learning rate, targets",
    is_statistical=True,
)
def trivial_plateau(plateau: Plateau, trained_levels: Levels) -> Fault | None:
    """Compare a loss that stays where it is with that of zeros and of the best constants, on the same samples.

    It is a warning where maps stay at zeros, or where the loss of maps is what it was in the first steps, on the same
    samples, too. One that has moved is a note: a slow start takes a hundred steps, and a signal may be so weak that no
    network gets far below constants.
    """
    level = trained_levels
    least = _MIN_LEFT_BY_CONSTANTS * level.zero if 0 < level.zero < math.inf else 0.0
    if not level.constant > least or level.start < (1 - _NEAR) * level.constant:
        return None
    is_zero = abs(level.start - level.zero) <= _NEAR * level.zero
    name, value = ("all-zero outputs", level.zero) if is_zero else ("the best constants", level.constant)
    has_moved = max(abs(loss - plateau.mean) for loss in (plateau.start, level.start)) > _STUCK * plateau.mean
    side = "at" if level.start <= (1 + _NEAR) * value else "above"
    return Fault(
        f"the loss stays {side} the level of {name}, while training goes on",
        measured=f"{plateau.start:.4g} at first, {plateau.mean:.4g} from step {plateau.first} to {plateau.last}; on "
        f"the same samples the trained network has {level.start:.4g}, {name} {value:.4g}",
        severity=None if level.are_maps and (is_zero or not has_moved) else "note",
    )


@rule(
    "averaged-means",
    "warning",
    "optim.grad_accumulation loss.normaliser",
    holds="each label of an accumulated batch weighs the same, whichever micro-batch it is in",
    do="sum the losses of the micro-batches, and divide by the number of labels of all of them",
    is_statistical=True,
)
def averaged_means(pull_slope: tuple[float, float, int, int]) -> Fault | None:
    """Ask whether pulls at single outputs shrink as a micro-batch has more of them, as those of a mean do."""
    slope, z, least, most = pull_slope
    if slope > _MAX_SLOPE or z < _MIN_Z:
        return None
    return Fault(
        "labels of small micro-batches weigh more than those of large ones",
        measured=f"micro-batches of one update pull at {least} to {most} outputs, at each by counts to the power of "
        f"{slope:.2f} (z = {z:.1f}); 0 is equal, -1 a mean of each",
    )


@rule(
    "collapsed-outputs",
    "warning",
    "loss.collapse model.constant_output",
    holds="outputs of unlike samples stay apart while the loss is high",
    do="lower the learning rate, mine less hard pairs at first, or normalise the embeddings",
    is_statistical=True,
)
def collapsed_outputs(trace: Trace, curves: list[list[float]]) -> Iterator[Fault]:
    """Look for a spread over samples that vanishes while the loss stays where it was."""
    if not trace.spreads:
        raise NotApplicableError("no outputs of several samples")
    for path, spreads in trace.spreads.items():
        values = [float(value) for _, value in spreads]
        if len(values) < 4 or not values[0] or len(curves) != 1:
            continue
        part = max(len(curves[0]) // 10, 1)
        first, last = (statistics.fmean(curve) for curve in (curves[0][:part], curves[0][-part:]))
        if max(values[-2:]) < _MAX_COLLAPSE * values[0] and last > _MIN_LEFT * first > 0:
            yield Fault(
                f"outputs of all samples have become equal{f' ({path})' if path else ''}, and the loss stands",
                measured=f"spread over samples {values[0]:.3g} at first, {values[-1]:.3g} now; loss {first:.3g}, then "
                f"{last:.3g}",
            )
            return


@rule(
    "idle-addend",
    "warning",
    "loss.detached optim.param_coverage",
    holds="each addend of a loss trains something that is updated next",
    do="take away the detach() between the term and the network that it should train",
)
def idle_addend(trace: Trace) -> Fault | None:
    """Look for an addend below which are parameters of other optimisers alone than those that step."""
    judged = [each for each in trace.addends if len(each.leaves) > 1 and each.updated]
    if not judged:
        raise NotApplicableError("no sum of losses before an update")
    idle = [
        sum(bool(leaves & trace.held) and not leaves & each.updated for leaves in each.leaves)
        if any(leaves & each.updated for leaves in each.leaves)
        else 0
        for each in judged
    ]
    number = sum(map(bool, idle))
    if number < _MIN_ADDENDS:
        return None
    return Fault(
        "an addend of the loss reaches no parameter that the next update moves",
        measured=f"in {number} of {len(judged)} backward passes; it reaches parameters of another optimiser alone",
    )


@rule(
    "averaged-norms",
    "warning",
    "ckpt.stale eval.mode",
    holds="an average of weights keeps the norms that the model keeps",
    do="normalise such tensors of the average after each of its updates, or copy them",
)
def averaged_norms(trace: Trace) -> Iterator[Fault]:
    """Look for rows that move but have one norm at all times in the model, and of another in the average."""
    if not trace.norms:
        raise NotApplicableError("no average of weights given")
    for name, norms in trace.norms.items():
        own, spread, average = (torch.tensor([float(n[i]) for n in norms]) for i in range(3))
        is_constant = float(spread.max()) < 1e-3 and float(own.max() - own.min()) < 1e-3 * float(own.mean())
        has_moved = float((norms[-1].few - norms[0].few).norm()) > 1e-2 * float(norms[0].few.norm())
        if len(norms) > 2 and is_constant and has_moved and abs(float(average[-1] / own[-1]) - 1) > 0.01:
            yield Fault(
                f"'{name}' has rows of norm {float(own[-1]):.3g} in the model, and others in the average of weights",
                measured=f"mean norm in the average {float(average[-1]):.3g}",
            )
            return


@rule(
    "evaluated-training-samples",
    "warning",
    "data.split",
    holds="what is evaluated has not been trained on",
    do="split the samples before they are put into data sets, and give each to one of them",
)
def evaluated_training_samples(evaluated_share: tuple[float, int, bool]) -> Fault | None:
    """Look for samples of another data set than that of training, which were all trained on."""
    share, number, is_other = evaluated_share
    if share < 0.95 or not is_other:
        return None
    return Fault(
        "the samples of the evaluation's data set are those of training",
        measured=f"{share:.0%} of {number} samples in evaluation passes are equal to samples in training passes",
    )


@rule(
    "split-overlap",
    "error",
    "data.split data.label_leak",
    holds="evaluated samples that no update has seen",
    do="split once, by one permutation, and keep both parts",
)
def split_overlap(mixed_batches: MixedBatches) -> Fault | None:
    """Look for batches of both kinds: an evaluation of the training set has rows of it alone."""
    touched, mixed, rows, seen, largest = mixed_batches
    is_many = rows > _MIN_BATCHES * largest  # and not one at a border of two sets
    is_all = mixed >= max(2, _MIN_MIXED * touched)
    if not (is_many or is_all) or seen < _MIN_SEEN or rows - seen < _MIN_SEEN:
        return None
    return Fault(
        f"{seen} of {rows} samples that are evaluated are trained on, too: the split overlaps",
        measured=f"inputs with equal bits in an update, in {mixed} of {touched} batches with any",
    )


@rule(
    "mismatched-views",
    "warning",
    "data.duplicate_randomness data.pairing",
    holds="two passes of one loss see other inputs, or draw other numbers",
    do="give each pass its own view of the samples",
)
def one_view_twice(twin_passes: tuple[int, int]) -> Fault | None:
    """Find losses of two passes whose outputs are equal to the bit."""
    number, equal = twin_passes
    if equal < max(2, number):
        return None
    return Fault(
        "the loss compares two passes of the model with the same outputs: both see the same view",
        measured=f"equal bits in all {number} measured losses of two passes",
    )


@rule(
    "same-batch",
    "warning",
    "data.ordering data.sampling data.duplicate_randomness",
    holds="another batch at each update",
    do="look at the loader and at its iterator; declare it with watch(..., declared=('same-batch',)) if intended",
)
def same_batch(num_same: int, is_whole_set: bool) -> Fault | None:
    """Look for updates in a row with one batch, which is not all that there is."""
    if is_whole_set:
        return None
    return Fault(f"the model gets the same batch at {num_same} updates in a row", measured="inputs with equal bits")


@rule(
    "same-samples",
    "warning",
    "dist.sampler data.sampling data.duplicate_randomness",
    holds="other samples on each process",
    do="give the loader a torch.utils.data.DistributedSampler; declare it with watch(..., declared=('same-samples',)) "
    "if several processes share one sample",
)
def same_samples(ranks: tuple[int, int], common_steps: Sequence[str], changed_steps: Sequence[str]) -> Fault | None:
    """Look for two processes with equal inputs at all common steps, of which one may be a first batch of zeros."""
    if not changed_steps:
        return None
    return Fault(
        f"ranks {ranks[0]} and {ranks[1]} train on the same samples: each adds nothing to the other",
        measured=f"inputs with equal bits on both ranks at steps {', '.join(common_steps[:5])}",
        where=FindingLocation(step=int(changed_steps[0])),
    )
