"""Rules of a loss: it falls towards its targets, at their places, and has its least value there."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves
from sightline.doctor.evidence.levels import FreeLoss, Levels
from sightline.doctor.evidence.losses import (
    SHARES,
    SIGNED,
    Addend,
    ConfidentLosses,
    Free,
    Labelled,
    Seen,
    Shares,
    Squashed,
)
from sightline.doctor.evidence.numerics import Descent
from sightline.doctor.evidence.passes import Slope
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule
from sightline.doctor.subject import LossTerm, Pass

_MIN_SPREAD, _MAX_SORTED = 8.0, 2.0
_MAX_START, _NEAR = 10.0, 0.2
"""First loss in those of trivial outputs: far above them, and explained by them."""
_TWICE = {
    "LogSoftmax of Softmax": ("cross entropy of probabilities: softmax is applied twice", ""),
    "LogSoftmax of Sigmoid": ("cross entropy of sigmoid outputs: softmax of numbers from 0 to 1", ""),
    "LogSoftmax of Relu": (
        "cross entropy of rectified logits: a class at 0 gets no gradient to fall",
        "model.activation loss.double_softmax",
    ),
    "BinaryCrossEntropyWithLogits of Sigmoid": (
        "binary cross entropy with logits of probabilities: sigmoid twice",
        "",
    ),
    "BinaryCrossEntropyWithLogits of Softmax": ("binary cross entropy with logits of softmax outputs", ""),
    **dict.fromkeys(
        ("NllLoss of Softmax", "NllLoss2D of Softmax"),
        ("NLL loss of probabilities: the logarithm is missing", "loss.form model.activation"),
    ),
}
"""What it means that a loss applies an operation to the result of another, and the causes, if not those of the rule."""
_SMOOTH = 1e-3
"""Share by which slopes at two steps may differ where a loss is smooth."""


@rule(
    "loss-direction",
    "error",
    "loss.sign loss.form",
    holds="right scores have a smaller loss than wrong ones",
    do="change the sign of the loss (1 - Dice, -log p), or exchange the labels",
)
def loss_direction(loss_of_confident_scores: list[ConfidentLosses]) -> Iterator[Fault]:
    """Compare right with wrong scores of one size; at each place the gradient must raise the wrong class, too."""
    for each in loss_of_confident_scores:
        right, wrong = each.right[4.0], each.wrong[4.0]
        is_score = each.range in SHARES | SIGNED or bool((each.item.slope.output < 0).any())  # others may be distances
        is_score = is_score or each.wrong[1000.0] < -abs(each.equal) - 1
        is_pushed = min(each.item.agreement[1], each.item.pushed_in_each) >= 0.95
        if is_score and right > wrong + 1e-4 * abs(wrong) and is_pushed:
            yield Fault(
                f"the loss{_name(each.item)} falls away from its labels",
                measured=f"{right:.4g} for right scores of 4, {wrong:.4g} for wrong ones; the gradient lowers the "
                f"labelled class at {each.item.agreement[1]:.0%} of {len(each.item.labels)} places",
            )


@rule(
    "loss-direction",
    "warning",
    "loss.sign loss.form",
    holds="each addend of a loss that follows labels leads towards them",
    do="change the sign of this addend",
    is_statistical=True,
)
def addend_direction(addends: list[Addend]) -> Iterator[Fault]:
    """Compare the addends of a loss: one that lowers the labelled class everywhere beside one that raises it."""
    items = [(addend, item) for addend in addends for item in addend.items]
    for addend, item in items:
        others = [other for _, other in items if other.slope.path == item.slope.path and other.agreement[0] >= 0.95]
        even = [e for e in addend.even if e.slope.path == item.slope.path and e.agreement[1] >= 0.95]
        if item.agreement[1] >= 0.95 and others and even:
            yield Fault(
                f"addend {addend.place + 1} of the loss leads away from the labels that another leads to",
                measured=f"it lowers the labelled class at {item.agreement[1]:.0%} of {len(item.labels)} places",
            )


@rule(
    "double-softmax",
    "error",
    "loss.double_softmax model.activation",
    holds="logits for a loss with an activation of its own: confident right scores then have a loss near 0",
    do="give the loss the outputs of the last linear layer, without a softmax or sigmoid before it",
)
def double_softmax(squashed: list[Squashed]) -> Iterator[Fault]:
    """Find scores that are squashed twice: by the operations of a live loss, or by the losses of confident scores.

    These have a limit for right and for wrong scores, and keep a large share for the right ones.
    """
    for operation, before, asked in squashed:
        if asked is None:
            if f"{operation} of {before}" in _TWICE:
                summary, causes = _TWICE[f"{operation} of {before}"]
                yield Fault(
                    summary,
                    measured=f"{operation} of the loss reads the output of {before}",
                    causes=causes.split(),
                    severity="warning" if before == "Relu" else None,
                )
            continue
        floor, top = asked.right[30.0], asked.wrong[30.0]
        if asked.is_bounded() and floor > 0.2 * asked.equal > 0 and floor < top:
            yield Fault(
                f"the loss{_name(asked.item)} cannot come near 0: its scores are squashed twice",
                measured=f"{floor:.4g} for confident right scores, {top:.4g} for wrong ones, "
                f"{asked.equal:.4g} for equal",
                severity="error" if before in ("Softmax", "Sigmoid") else "warning",
            )


@rule(
    "loss-form",
    "error",
    "loss.form model.activation",
    holds="a loss of labels has a least value",
    do="give the loss logarithms of shares (log_softmax), or use cross_entropy",
)
def linear_loss(loss_of_confident_scores: list[ConfidentLosses]) -> Iterator[Fault]:
    """Find a loss of labels that falls in proportion to the right score, without end."""
    for each in loss_of_confident_scores:
        near, far = each.right[30.0] - each.equal, each.right[1000.0] - each.equal
        if near < 0 and far < -abs(each.equal) and abs(far / near / (1000 / 30) - 1) < 0.02:
            yield Fault(
                f"the loss{_name(each.item)} falls in proportion to the labelled score, without a least value",
                measured=f"{each.right[30.0]:.4g} for right scores of 30, {each.right[1000.0]:.4g} for 1000",
            )


@rule(
    "loss-unbounded",
    "warning",
    "loss.sign loss.form",
    holds="a loss has a least value",
    do="look for a term with a wrong sign: a squared error or a divergence that is rewarded",
    is_statistical=True,
)
def unbounded_loss(free: Free) -> Fault | None:
    """Find free outputs along which the loss falls faster than in proportion, as no score of a critic does."""
    if free.is_converged or free.growth < 5 or free.best >= free.start:
        return None
    return Fault(
        "the loss has no least value: it falls faster than the outputs grow",
        measured=f"outputs that move three times as far lower the loss {free.growth:.1f} times as much",
    )


@rule(
    "loss-unbounded",
    "warning",
    "loss.form model.activation loss.sign",
    holds="a loss that compares numbers or shares with targets has a least value",
    do="give the loss what it asks for: logarithms of shares (kl_div), shares instead of scores (Dice)",
    is_statistical=True,
)
def endless_comparison(free: Free, slopes: list[Slope], passed: Pass) -> Iterator[Fault]:
    """Find a loss of outputs against a target of their shape that falls in proportion to the outputs."""
    if free.is_converged or not 2.5 < free.growth < 5 or free.best >= min(free.start, 0):
        return
    for slope in slopes:
        for _, target in dense_leaves(passed.batch.target):
            is_match = target.is_floating_point() and target.squeeze().shape == slope.output.squeeze().shape
            if is_match and target.numel() > 7 and bool((target >= 0).all()) and len(target.unique()) > 1:
                yield Fault(
                    "the loss falls in proportion to the outputs, without a least value",
                    measured=f"{free.start:.4g} at the outputs, {free.best:.4g} at free ones; {free.growth:.1f} times "
                    "the gain at three times the way",
                )
                return


@rule(
    "loss-form",
    "warning",
    "loss.form",
    holds="a loss of shares has its least value where the outputs give these shares",
    do="give kl_div log_softmax(outputs) first and shares as target, with one temperature for both",
    is_statistical=True,
)
def shares_are_no_best(soft_targets: list[Shares]) -> Iterator[Fault]:
    """Find an addend that reads shares, and has a slope at the outputs that give them, whatever the temperature."""
    for each in soft_targets:
        if each.least > 0.1:
            yield Fault(
                f"addend {each.place + 1} of the loss has no least value where outputs give the target's shares",
                measured=f"its gradient there is {each.least:.2g} times that at shares of other samples",
            )


@rule(
    "softmax-axis",
    "error",
    "loss.form cfg.axis_swap",
    holds="shares of the classes sum to 1 at each place",
    do="take the softmax over the axis of the classes",
)
def softmax_axis(labelled: list[Labelled]) -> Iterator[Fault]:
    """Find gradients, or shares, that sum to a constant over another axis than that of the classes."""
    for item in labelled:
        if item.axis is None or item.agreement[0] < 0.95:
            continue
        output, gradient = item.slope.output.double(), item.slope.gradient.double()
        num = output.shape[item.axis]
        for axis in (a for a in range(output.ndim) if a != item.axis and output.shape[a] not in (1, num)):
            pairs = [(gradient, 0.0)] + [(s, 1.0) for s in (output, output.exp()) if bool((s >= 0).all())]
            for values, total in pairs:
                size = float(values.abs().max()) or 1.0  # a head that begins at zero
                here, there = (float((values.sum(a) - total).abs().max()) / size for a in (axis, item.axis))
                if here < 1e-5 and there > 1e-2:
                    yield Fault(
                        f"the softmax of the output{_name(item)} is over axis {axis}, its classes are axis {item.axis}",
                        measured=f"{'gradients' if total == 0 else 'shares'} sum to {total:g} over axis {axis} of "
                        f"{tuple(output.shape)}",
                    )
                    return


@rule(
    "misplaced-targets",
    "error",
    "data.pairing cfg.axis_swap loss.form",
    holds="the loss compares each place with its own label",
    do="look for a reshape, view, roll, flip or sort between outputs and targets, and exchange axes by permute",
    is_statistical=True,
)
def misplaced_labels(labelled: list[Labelled], certain_places: dict[str, tuple[float, float]]) -> Iterator[Fault]:
    """Find the classes that the loss pulls up to be the labels, one for one, but of other places."""
    for item in labelled:
        num = item.gradient.shape[-1]
        labels, pulled = item.labels, item.pulled
        is_same = torch.equal(labels.bincount(minlength=num), pulled.bincount(minlength=num))
        share = item.agreement[0]
        own, pulled_loss = certain_places.get(item.slope.path, (0.0, 0.0))
        if item.axis is not None and is_same and share < 0.9 and num > 2 and own > pulled_loss + 0.1 * abs(own):
            yield Fault(
                f"the loss{_name(item)} compares outputs with the labels of other places",
                measured=f"the class pulled up is the label at {share:.0%} of {len(labels)} places, though all "
                f"classes occur as often; {own:.4g} for scores of the labels, {pulled_loss:.4g} for those pulled up",
            )


@rule(
    "misplaced-targets",
    "error",
    "data.pairing cfg.axis_swap loss.form",
    holds="the best outputs are the targets, each at its place",
    do="look for a reshape, view, roll, flip or sort between outputs and targets",
    is_statistical=True,
)
def misplaced_numbers(best_numbers: list[tuple[str, Tensor, Tensor, float, float]]) -> Iterator[Fault]:
    """Find best outputs that are the targets' numbers, one for one, at other places, and the targets no best."""
    for path, best, target, at_target, floor in best_numbers:
        spread = float(target.std())
        is_same = bool(((best.sort()[0] - target.sort()[0]).abs() < 0.01 * spread).all())
        share = float(((best - target).abs() < 0.01 * spread).double().mean())
        if is_same and share < 0.9 and at_target > floor + 0.01 * abs(at_target):
            yield Fault(
                f"the loss compares the output {path} with the targets of other places".replace("  ", " "),
                measured=f"the best outputs are the targets in another order; {share:.0%} are at their places",
            )


@rule(
    "target-units",
    "warning",
    "data.target_encoding data.normalisation loss.form",
    holds="the outputs that a normalised target asks for are of its own size",
    do="normalise both or none: compare the output with the target before either is turned into its unit",
    is_statistical=True,
)
def target_units(best_numbers: list[tuple[str, Tensor, Tensor, float, float]]) -> Iterator[Fault]:
    """Find best outputs that are a multiple of the target, shifted, where the target is normalised."""
    for path, best, target, _, _ in best_numbers:
        mean, spread = float(target.mean()), float(target.std())
        correlation = float(torch.corrcoef(torch.stack((best, target)))[0, 1])
        factor = float(best.std()) / spread
        offset = float(best.mean()) - factor * mean
        is_normalised = abs(mean) < 1 and 0.3 < spread < 3
        if is_normalised and correlation > 0.999 and (factor < 0.1 or factor > 10 or abs(offset) > 3):
            yield Fault(
                f"the output {path} is compared in other units than the target".replace("  ", " "),
                measured=f"target {mean:.3g} ± {spread:.3g}; the outputs with the least loss are {factor:.3g} times "
                f"it and {offset:+.3g}",
            )


@rule(
    "label-input",
    "error",
    "data.label_leak model.structure",
    holds="an output does not see its own label among the inputs",
    do="shift the targets by one (inputs[:, :-1], targets[:, 1:]), or mask what comes next in the attention",
)
def label_is_input(labelled: list[Labelled], seen_tokens: dict[str, Seen], passed: Pass) -> Iterator[Fault]:
    """Find labels that equal the token at the same place of a causal model, or the next one in a model that sees it."""
    tokens = {path: t for path, t in dense_leaves(passed.batch.inputs) if path in seen_tokens}
    for item in labelled:
        pulled, counted = item.gradient.argmin(-1), item.is_counted
        for path, values in tokens.items():
            if values.shape != pulled.shape or item.agreement[0] < 0.95:
                continue
            for ahead in range(3):
                is_seen = seen_tokens[path].later if ahead else seen_tokens[path] == Seen(own=True, later=False)
                end = values.shape[1] - ahead
                is_asked = counted[:, :end]
                answers = values[:, ahead:][is_asked]
                share = float((pulled[:, :end][is_asked] == answers).double().mean())
                if share == 1.0 and len(answers.unique()) > 3 and is_seen:
                    yield Fault(
                        "each label is a token that the model sees" + (" ahead" if ahead else " at the same place"),
                        measured=f"{len(answers)} labels equal the input {ahead} places later".replace(" 0 p", " 0 p"),
                    )
                    return


@rule(
    "loss-weights",
    "warning",
    "loss.weights data.imbalance",
    holds="classes with few labels do not weigh less than those with many",
    do="weigh classes by the inverse of their frequency",
    is_statistical=True,
)
def weights_upside_down(class_weights: list[tuple[Labelled, Tensor, Tensor]]) -> Iterator[Fault]:
    """Find weights of classes that rise with the numbers of labels."""
    for item, weights, counts in class_weights:
        spread, imbalance = (float(each.max() / each.min()) for each in (weights, counts))
        if len(weights) < 2 or spread < (2 if len(weights) > 2 else 5) or imbalance < 2:
            continue
        correlation = float(torch.corrcoef(torch.stack((weights.log(), counts.log())))[0, 1])
        if correlation > 0.8:
            yield Fault(
                f"rare classes weigh least in the loss{_name(item)}",
                measured=f"the commonest class has {imbalance:.3g} times the labels of the rarest; weights differ "
                f"{spread:.3g} times, and rise with the labels (correlation {correlation:.2f})",
            )


@rule(
    "loss-weights",
    "warning",
    "loss.weights data.label_mapping",
    holds="the weight of class c at place c",
    do="count by class: torch.bincount(labels, minlength=C); Counter.most_common() sorts by count",
    is_statistical=True,
)
def weights_of_others(class_weights: list[tuple[Labelled, Tensor, Tensor]]) -> Iterator[Fault]:
    """Find weights that are the inverse of counts in another order than that of the classes."""
    for item, weights, counts in class_weights:
        own, ordered = weights * counts, weights.sort(descending=True)[0] * counts.sort()[0]
        spread, least = (float(each.max() / each.min()) for each in (own, ordered))
        if len(weights) > 2 and spread > _MIN_SPREAD and least < min(_MAX_SORTED, spread**0.2):
            yield Fault(
                f"class weights are those of other classes{_name(item)}: in another order they are 1 / count",
                measured=f"weight times count differs by a factor of {spread:.3g}; sorted, by {least:.3g}",
            )


def _name(item: Labelled) -> str:
    return f" of '{item.slope.path}'" if item.slope.path else ""


@rule(
    "uphill-gradient",
    "warning",
    "loss.sign loss.form model.numerics",
    holds="a small step along the gradient of the loss at an output raises the loss",
    do="compare backward() with torch.autograd.gradcheck; look for detach() and .data in what the loss subtracts",
)
def uphill_gradient(descents: list[Descent]) -> Iterator[Fault]:
    """Name outputs along whose gradient the loss falls, at two steps alike, in float64."""
    for descent in descents:
        is_smooth = abs(descent.near - descent.far) < _SMOOTH * abs(descent.near)
        if is_smooth and descent.near < -_SMOOTH * descent.given < 0:
            yield Fault(
                "the loss falls along its own gradient: training raises it",
                measured=f"backward gives a slope of {descent.given:.4g}, finite differences {descent.near:.4g}"
                + (f" at the output {descent.path}" if descent.path else ""),
            )


@rule(
    "initial-loss",
    "warning",
    "model.init data.target_encoding data.normalisation",
    holds="a first loss of at most ten times that of all-zero outputs, or of the best constants",
    do="start the last layer smaller, as the paper does, or bring the targets to the size of the outputs",
    is_statistical=True,
)
def loss_begins_high(levels: Levels, term: LossTerm) -> Fault | None:
    """Compare the first value of a loss of maps, volumes or coordinates with that of outputs that need no network."""
    return compare_start(levels)


def compare_start(levels: Levels) -> Fault | None:
    """Return the fault of a first loss that is far above those of trivial outputs; up to 100 times it is a note."""
    trivial = max(levels.zero, levels.constant)
    if levels.constant < 0 or not trivial > 0 or levels.start <= _MAX_START * trivial:
        return None
    return Fault(
        f"the network begins {levels.start / trivial:.3g} times worse than outputs that need no network",
        measured=_describe_levels(levels, "outputs"),
        severity=None if levels.start > _MAX_START**2 * trivial else "note",
    )


@rule(
    "initial-squares",
    "note",
    "model.init",
    holds="a loss that leaves the level of all-zero maps as the maps get their peaks",
    do="follow the metric: this loss hardly moves at first, while the peaks move to their places",
    is_statistical=True,
)
def begins_at_zeros(levels: Levels, free_loss: FreeLoss, passed: Pass) -> Fault | None:
    """Explain the first loss of maps and volumes that begin near 0 by the loss of zeros, which is that of the data."""
    maps = {t.shape for t in free_loss.outputs.values() if t.ndim > 3}
    targets = [t for _, t in dense_leaves(passed.batch.target) if t.is_floating_point() and t.shape in maps]
    if not targets or not abs(levels.start - levels.zero) <= _NEAR * levels.zero:
        return None
    if levels.constant < (1 - _NEAR) * levels.zero:  # as of depth: the loss falls at once
        return None
    return Fault(_describe_levels(levels, "maps"), measured=_describe_levels(levels, "maps"))


def _describe_levels(levels: Levels, what: str) -> str:
    known = "" if math.isnan(levels.constant) else f", best constants {levels.constant:.5g}"
    return f"first loss {levels.start:.5g}, all-zero {what} {levels.zero:.5g}{known}"
