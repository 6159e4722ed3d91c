"""Rules of a loss alone: a sum that its count divides, weights as stated, no edits, its least value at its targets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sightline.doctor.evidence.losses import ConfidentLosses
from sightline.doctor.evidence.numerics import Descent
from sightline.doctor.evidence.terms import Aim, Divided, Edits, Pull, correlate
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule
from sightline.doctor.subject import LossTerm

_MIN_OWN = 0.99
_MIN_CORRELATION, _MAX_OWN_CORRELATION, _MIN_RATIO = 0.999, 0.95, 1.5
_MAX_MORE = 2
"""Entries that a table of class weights may have beyond the classes."""


@rule(
    "loss-sum",
    "error",
    "loss.normaliser loss.form data.pairing",
    holds="the mean loss of a batch is that of its samples alone, weighted by their counts",
    do="return the SUM from forward, and from count its divisor; look for .mean(), roll, and (B, 1) with (B,)",
)
def samples_add_up(divided: Divided) -> Iterator[Fault]:
    """Compare the mean of a batch with those of its samples."""
    if divided.is_law or divided.is_of_hardest or divided.whole[1] <= 0 or not math.isfinite(divided.whole[0]):
        return
    singles = ", ".join(f"{total:.4g} / {count:.4g}" for total, count in divided.alone[:4])
    yield Fault(
        "the loss of a batch is no mean of the losses of its samples",
        causes=("loss.form",) * divided.is_coupled + ("data.pairing",) * divided.is_of_others + ("loss.normaliser",),
        measured=f"{divided.whole[0]:.6g} / {divided.whole[1]:.6g} for {len(divided.alone)} samples; alone {singles}; "
        + ("outputs of others turn a sample's gradient" if divided.is_coupled else "others scale it at most"),
    )


@rule(
    "loss-sum",
    "warning",
    "loss.normaliser",
    holds="the sum of a batch is that of its parts, where a step is divided into parts",
    do="return the SUM from forward, and from count what it is divided by",
)
def parts_add_up(divided: Divided, term: LossTerm) -> Fault | None:
    """Find means of means: right for a batch, and not for a step of several."""
    total, parts = divided.whole[0], math.fsum(total for total, _ in divided.alone)
    is_sum = math.isclose(total, parts, rel_tol=divided.rounding, abs_tol=1e-12)
    if not term.is_split or not divided.is_law or is_sum:
        return None
    return Fault(
        "the loss is a mean for each part of a step, and not a sum",
        measured=f"sum {total:.6g} of {len(divided.alone)} samples, {parts:.6g} of each alone",
    )


@rule(
    "loss-direction",
    "error",
    "loss.form data.label_mapping",
    holds="targets of a class raise its own score most",
    do="look at the index of the class: an offset, a clamp, an order of classes, an argmax of numbers",
)
def own_class_is_raised(pulls: list[Pull]) -> Iterator[Fault]:
    """Find classes that raise the score of another class most."""
    for pull in pulls:
        raised = (-pull.by_class).clamp(min=0)
        most, chosen = raised.max(dim=1)
        wrong = (raised.diagonal() < _MIN_OWN * most).nonzero().flatten().tolist()
        is_lowered = bool((pull.by_class.diagonal() >= 0).all()) and bool((raised > 0).sum(1).gt(1).all())
        if wrong and not pull.is_of_levels and not is_lowered:
            pairs = ", ".join(f"{number} raises {int(chosen[number])}" for number in wrong[:4])
            yield Fault(
                "targets of a class raise the score of another",
                measured=f"{len(wrong)} of {len(raised)} classes: {pairs}",
            )


@rule(
    "loss-weights",
    "error",
    "loss.weights data.imbalance",
    holds="each class weighs in the gradient what the loss's table says",
    do="look at the index into the table of weights",
)
def weights_as_stated(pulls: list[Pull], term: LossTerm) -> Iterator[Fault]:
    """Compare the gradient of each class with the tables that the loss reads: in another order, or further on."""
    for pull in pulls:
        own = -pull.by_class.diagonal()
        num = len(own)
        for name, table in term.tables.items() if bool(own.any()) else ():
            windows = [(f"from entry {k} on", table[k : k + num]) for k in range(1, len(table) - num + 1)]
            if len(table) == num:
                windows = [("shifted", table.roll(-1)), ("shifted back", table.roll(1)), ("reversed", table.flip(0))]
            if not num <= len(table) <= num + _MAX_MORE or float(table.std()) == 0 or _is_alike(table[:num], own):
                continue
            for change, other in windows:
                if _is_alike(other, own):
                    yield Fault(
                        f"classes weigh what the table '{name}' says {change}",
                        measured=f"gradients {_list(own / own.mean())} by class; the table says "
                        f"{_list(table / table.mean())}",
                    )
                    return


@rule(
    "loss-weights",
    "warning",
    "data.ignore_handling loss.weights",
    holds="each class that has targets has a gradient",
    do="look at ignore_index and at weights of 0",
)
def no_class_left_out(pulls: list[Pull], term: LossTerm, divided: Divided) -> Iterator[Fault]:
    """Find classes whose targets have no gradient, beside some that have one."""
    for pull in pulls:
        own, counts = -pull.by_class.diagonal(), _count_targets(pull, term)
        is_asked = bool(own.any()) and not divided.is_of_hardest
        for number in (own == 0).nonzero().flatten().tolist() if is_asked else ():
            if number != term.ignored and float(counts[number]) > 0:
                yield Fault(
                    f"class {number} is left out of the loss", measured=f"gradients {_list(own / own.mean())} by class"
                )


@rule(
    "loss-weights",
    "warning",
    "loss.weights data.imbalance",
    holds="frequent classes weigh no more than rare ones",
    do="weigh classes by the inverse of their frequency",
)
def frequent_weigh_less(pulls: list[Pull], term: LossTerm) -> Iterator[Fault]:
    """Find weights in the order of the counts of training targets."""
    for pull in pulls:
        own, counts = -pull.by_class.diagonal(), _count_targets(pull, term)
        if not bool((counts > 0).all()) or not bool((own > 0).all()) or term.class_counts is None:
            continue
        ratio = min(float(values.max() / values.min()) for values in (counts, own))
        if ratio > _MIN_RATIO and correlate(counts.argsort().argsort(), own.argsort().argsort()) > _MAX_OWN_CORRELATION:
            yield Fault(
                "frequent classes weigh most",
                measured=f"gradients {_list(own / own.mean())} by class, for {_list(counts)} training targets",
            )


@rule(
    "ignored-targets",
    "error",
    "data.ignore_handling loss.form",
    holds="targets with the label that the data set ignores have no gradient",
    do="make the loss take the fact `ignore_index`, and leave out the targets that have it",
)
def ignored_do_not_count(ignored_places: tuple[int, int]) -> Fault | None:
    """Find places of ignored labels that the loss learns from."""
    num, counted = ignored_places
    if not counted:
        return None
    return Fault(
        "the loss learns from targets that the data set ignores",
        measured=f"a gradient at {counted} of {num} places with the ignored label",
    )


def _count_targets(pull: Pull, term: LossTerm) -> Tensor:
    is_known = term.class_counts is not None and len(term.class_counts) == len(pull.present)
    return (torch.as_tensor(term.class_counts) if is_known else pull.present).double()


def _is_alike(table: Tensor, own: Tensor) -> bool:
    """Return True for tables that are one but for a factor."""
    return torch.allclose(table / table.mean(), own / own.mean(), rtol=1e-3)


def _list(values: Tensor) -> str:
    shown = [f"{value:.3g}" for value in values.tolist()]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


@rule(
    "loss-gradient",
    "error",
    "loss.inplace loss.detached",
    holds="a loss changes neither its arguments nor what its gradient is computed from",
    do="clone before writing; look for .data, masked assignment and in-place operations",
)
def nothing_is_edited(edits: Edits) -> Iterator[Fault]:
    """Find arguments with other values after the forward pass, and tensors edited behind autograd."""
    for path in edits.written[:1]:
        yield Fault("the loss writes into its arguments", measured=f"other values in '{path}' after the forward pass")
    for shape in edits.edited[:1]:
        yield Fault(
            "the loss edits what its gradient is computed from",
            measured=f"other values in a kept tensor {shape} after the forward pass",
        )


@rule(
    "loss-gradient",
    "error",
    "loss.detached loss.form",
    holds="a step along the gradient changes the loss",
    do="look for a detach() or .data of the outputs, and for a value minus its own detached copy",
)
def gradient_of_something(descents: list[Descent], term: LossTerm) -> Iterator[Fault]:
    """Find a loss that has a gradient at outputs, and one value for all of them, or other values and no gradient."""
    for descent in descents:
        if descent.given == 0 and abs(descent.near - descent.far) < 1e-3 * abs(descent.near):
            yield Fault(
                "the loss changes with its outputs, and has no gradient there",
                measured=f"backward gives 0 at all outputs, finite differences {descent.near:.4g}",
            )
        if descent.given > 0 and max(abs(descent.near), abs(descent.far)) < 1e-6 * descent.given:
            yield Fault(
                "the loss does not change along its own gradient",
                measured=f"backward gives a slope of {descent.given:.4g}, finite differences {descent.near:.4g}",
            )


@rule(
    "untrained-loss",
    "error",
    "optim.param_coverage model.unregistered",
    holds="each tensor of a loss that gets a gradient is a registered parameter",
    do="make it an nn.Parameter, and put layers into an nn.ModuleList",
)
def own_tensors_are_registered(edits: Edits) -> Iterator[Fault]:
    """Find tensors with a gradient that are neither outputs nor parameters of the loss."""
    for path, is_parameter in [*edits.own.items()][:1]:
        yield Fault(
            f"the loss learns '{path}', which no optimiser knows",
            causes=("model.unregistered", "optim.param_coverage") if is_parameter else (),
            measured=f"{len(edits.own)} tensor(s) get a gradient and are not in parameters()",
        )


@rule(
    "loss-limits",
    "error",
    "loss.form model.activation",
    holds="a loss of labels that has a floor has it near 0",
    do="give the loss logarithms of shares (log_softmax), or use cross_entropy",
)
def floor_below_zero(loss_of_confident_scores: list[ConfidentLosses], term: LossTerm) -> Iterator[Fault]:
    """Find a loss whose limit for right scores is below 0: shares where it asks for their logarithms."""
    for each in loss_of_confident_scores:
        if each.is_bounded() and each.equal < 0 and each.right[1000.0] < 0:
            yield Fault(
                "the loss of confident right scores is below 0: shares stand for their logarithms",
                measured=f"{each.equal:.4g} for equal scores, {each.right[1000.0]:.4g} for right ones of 1000",
            )


@rule(
    "loss-limits",
    "error",
    "loss.form model.numerics",
    holds="the loss of wrong scores is finite in float32",
    do="take the logarithm of scores by log_softmax or logsigmoid, not of a softmax",
)
def wrong_scores_are_finite(loss_of_confident_scores: list[ConfidentLosses], term: LossTerm) -> Iterator[Fault]:
    """Find a logarithm of a share that is 0."""
    for each in loss_of_confident_scores:
        if math.isfinite(each.wrong[4.0]) and not math.isfinite(each.wrong[1000.0]):
            yield Fault(
                "the loss of wrong scores is not finite",
                measured=f"{each.wrong[4.0]:.4g} for wrong scores of 4, {each.wrong[1000.0]:.4g} for 1000",
            )


@rule(
    "loss-limits",
    "error",
    "loss.form model.numerics",
    holds="the gradient of outputs that equal their targets is finite",
    do="add an epsilon inside the root, or clamp before it",
)
def exact_numbers_are_finite(aims: list[Aim]) -> Iterator[Fault]:
    """Find a root or a quotient of an error that is 0."""
    for aim in aims:
        if not aim.is_finite:
            yield Fault("the gradient of exact outputs is not finite", measured=f"at the targets of '{aim.path}'")


@rule(
    "loss-direction",
    "error",
    "loss.form data.target_encoding",
    holds="the loss has its least value where outputs are their targets",
    do="look at the sign, at what is subtracted, and at the axes of the target",
)
def least_at_targets(aims: list[Aim]) -> Iterator[Fault]:
    """Find outputs with a smaller loss away from their targets than at them, under every link."""
    for aim in aims:
        if aim.is_one_slope:
            yield Fault(f"all elements of '{aim.path}' have one gradient, whose errors differ", measured="a sum alone")
        elif not aim.is_least and not (aim.towards > _MIN_CORRELATION and not aim.is_of_codes):
            is_away = aim.towards < -0.2 and not aim.is_beside_scores
            yield Fault(
                f"the loss is smaller away from the target of '{aim.path}'",
                causes=("quant.distill",) * aim.target_path.startswith("teacher_")
                + (("loss.sign",) if is_away else ("loss.detached",) * aim.is_beside_scores + ("loss.form",)),
                measured=f"a step correlates with the way to the target by {aim.towards:.2f}",
            )


@rule(
    "loss-direction",
    "error",
    "loss.form",
    holds="the gradient of a box's codes does not grow with their error",
    do="use smooth L1 or an overlap: a far box outweighs all others",
)
def far_boxes_do_not_outweigh(aims: list[Aim]) -> Iterator[Fault]:
    """Find squared errors of codes."""
    for aim in aims:
        if aim.is_of_codes and aim.is_least and aim.growth > 3:
            yield Fault(
                f"the loss of '{aim.path}' is a squared error of codes",
                measured=f"{aim.growth:.3g} times the gradient for ten times the error",
            )
