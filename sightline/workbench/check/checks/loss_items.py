"""Checks of a loss as a sum over items: its gradient, which outputs meet which targets, and its divisor.

Relations that any loss must hold, with samples and labels that the check chooses. What each fault is
called, its causes and what to do are rows of losses.json.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.doctor.finding import Finding
from sightline.workbench.check.context import CHECKS, Context, check, losses
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain, is_near, make_fault, read_diagnoses
from sightline.workbench.check.oracles.loss_case import Goal, LossCase, draw, is_ordinal

Relation = Callable[[LossCase], Fault | None]
"""Relation that a loss must hold: the fault if it does not."""

_DIAGNOSES = Path(__file__).with_name("losses.json")
_MIN_OWN = 0.99
"""Rise of a label's own class, as a share of the largest."""
_MIN_DISTANCES, _FAR, _SLACK = 8, (0.0, 100.0, 1000.0), 1e-5
"""Outputs, at least, that are distances; how far other classes are; rounding of a floor."""
_MIN_MAPPED_SHARE = 0.75
"""Share of what a target raises that goes to another class than its own."""


def diagnose(case: LossCase, diagnosis: str, measured: str, **words: Any) -> Fault:
    """Make the fault of a loss by its row of losses.json, with what was measured and the words that the row names."""
    evidence = {"field": case.name, "diagnosis": diagnosis}
    fault = make_fault(_DIAGNOSES, diagnosis, measured, at=case.path, evidence=evidence, **words)
    return dataclasses.replace(fault, summary=f"the loss '{case.name}' {fault.summary}")


def suppose(diagnosis: str, prediction: float | None = None) -> Hypothesis:
    """Make the hypothesis of a row of losses.json, whose name is its text."""
    return Hypothesis(read_diagnoses(_DIAGNOSES)[diagnosis]["causes"][0], diagnosis, prediction)


def find(case: LossCase, relation: Relation, *causes: Relation) -> Fault | None:
    """Return what a relation finds, judged once; nothing if one of the `causes`, which explain it, has a fault."""
    if any(find(case, cause) is not None for cause in causes):
        return None
    if relation not in case.memo:
        case.memo[relation] = relation(case)
    found: Fault | None = case.memo[relation]
    return found


def tolerate(function: Callable[..., Fault | None]) -> Callable[..., Fault | Finding | None]:
    """Return a rule's function whose errors become a note: a loss may reject what a check gives it."""

    @functools.wraps(function)
    def judge(context: Context, case: LossCase) -> Fault | Finding | None:
        try:
            return function(context, case)
        except Exception as error:  # noqa: BLE001 - any error of a user's loss
            return CHECKS[function.__name__.replace("_", "-")].not_run(context, error)

    return judge


# --- gradients --------------------------------------------------------------------------------------------------------


@check("loss-gradient", "preflight", each=losses)
@tolerate
def loss_gradient(context: Context, case: LossCase) -> Fault | None:
    """A loss passes a gradient to an output, and changes neither its arguments nor what its gradient is computed from.

    Finds: Losses whose gradient is not theirs: cut off, or of values that are edited behind autograd.
    """
    is_cut = not context.dry_run.terms[case.name].requires_grad  # `no-gradient` reports it
    return find(case, is_edited) or (None if is_cut else find(case, is_silent)) or find(case, is_constant, is_silent)


def is_silent(case: LossCase) -> Fault | None:
    """Return a fault if no output gets a gradient."""
    measured = "the gradient of its sum is 0 for every element, at random outputs"
    return None if case.keys else diagnose(case, "silent", measured, keys=" and ".join(case.idle))


def is_constant(case: LossCase) -> Fault | None:
    """Return a fault if the value is the same for all outputs, although they get a gradient."""
    drawn = [
        {
            key: 2.0**number * draw(value).flatten().roll(3 * number + place).view(value.shape)
            for place, (key, value) in outputs
        }
        for number, outputs in ((number, enumerate(case.outputs.items())) for number in range(3))
    ]
    values = [case.value(outputs) for outputs in drawn]
    size = sum(float(value.abs().sum()) for value in case.gradient(drawn[0]).values())
    is_same = all(math.isclose(value, values[0], rel_tol=1e-12) for value in values)
    measured = f"{values[0]:.6g} for three sets of outputs, whose gradients add up to {size:.4g}"
    return diagnose(case, "constant", measured) if is_same and size > 0 else None


def is_edited(case: LossCase) -> Fault | None:
    """Return a fault if the forward pass edits its arguments, or tensors that autograd keeps for the backward pass."""
    for goal in class_goals(case)[:1]:  # the step's own labels have been written into already
        case, _ = with_every_class(case, goal)
    given = {key: value.clone() if isinstance(value, Tensor) else value for key, value in case.values.items()}
    given |= {key: given[key].requires_grad_() for key in case.keys}
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append((tensor, tensor.detach().clone()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        case.sum({key: value.clone() if key in case.keys else value for key, value in given.items()})
    tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    written = [key for key, value in tensors.items() if _differ(value, case.values[key])]
    edited = [before for after, before in kept if _differ(after.detach(), before)]
    for key in written[:1]:
        return diagnose(case, "written", f"other values in '{key}' after the forward pass", key=key)
    for before in edited[:1]:
        return diagnose(case, "edited", f"other values in a kept tensor {tuple(before.shape)} after the forward pass")
    return None


def _differ(after: Tensor, before: Tensor) -> bool:
    is_same = torch.isclose(after, before, rtol=0.0, atol=0.0, equal_nan=True)
    return not bool(is_same.all())


@check("untrained-loss", "preflight", each=losses)
@tolerate
def untrained_loss(context: Context, case: LossCase) -> Fault | None:
    """Each tensor of a loss that gets a gradient is a registered parameter.

    Finds: Losses with tensors or layers that get gradients, and that no optimiser trains.
    """
    registered = set() if case.loss is None else {id(parameter) for parameter in case.loss.parameters()}
    tensors = {path: tensor for path, tensor in case.trainable_tensors.items() if id(tensor) not in registered}
    if not tensors or not case.keys:
        return None
    with torch.enable_grad():
        gradients = torch.autograd.grad(case.sum(), [*tensors.values()], allow_unused=True)
    paths = [path for path, gradient in zip(tensors, gradients, strict=True) if gradient is not None]
    for path in paths[:1]:
        kind = "unregistered layer" if isinstance(tensors[path], nn.Parameter) else "plain tensor"
        return diagnose(case, kind, f"{len(paths)} tensor(s) get a gradient and are not in parameters()", path=path)
    return None


# --- sums over samples ------------------------------------------------------------------------------------------------


@check("loss-sum", "preflight", each=losses)
@tolerate
def loss_sum(context: Context, case: LossCase) -> Fault | None:
    """The mean loss of a few samples is that of each alone, weighted by their counts; outputs meet their own targets.

    Finds: Losses that return means for sums, whose divisor is wrong, or that compare outputs with others' targets.
    """
    parts = max(context.config.train.micro_batches, context.world.size)
    fault = find(case, is_mispaired, is_silent) or find(case, is_misdivided, is_silent, is_mispaired)
    return fault or (find(case, is_split, is_silent) if parts > 1 else None)


def is_mispaired(case: LossCase) -> Fault | None:
    """Return a fault if another label changes the gradient of other targets, and not of its own."""
    for goal in class_goals(case)[:1]:
        label = case.values[goal.target_key]
        targets = goal.is_target.flatten().nonzero().flatten()
        if len(targets) < 3:
            return None
        target, changed = int(targets[len(targets) // 2]), label.flatten().clone()
        changed[target] = (changed[target] + 1) % goal.num_classes
        plain, other = (
            case.gradient({**case.at(0.0), goal.target_key: rows})[goal.key]
            for rows in (label, changed.view(label.shape))
        )
        moved = (plain != other).any(dim=goal.class_axis).flatten()
        if bool(moved.any()) and not bool(moved[target]):
            first = int(moved.nonzero()[0])
            measured = f"another label of target {target} changes the gradient of target {first}, and not its own"
            return diagnose(case, "mispaired", measured)
    return None


def is_misdivided(case: LossCase) -> Fault | None:
    """Return a fault if the mean of some samples is not that of each alone, weighted by their counts."""
    if case.num_samples < 2 or case.counter is None or "second_match" in case.values:  # rows of the whole batch
        return None
    (sums, counts), total, count = _alone(case), case.value(), case.count()
    if count <= 0 or math.fsum(counts) <= 0 or not math.isfinite(total):
        return None
    mean, expected = total / count, math.fsum(sums) / math.fsum(counts)
    if math.isclose(mean, expected, rel_tol=case.rounding, abs_tol=1e-12) or chooses_hardest(case):
        return None
    is_exact = is_near(10 * case.rounding)
    best, *_ = explain(
        mean, expected, _list_divisors(case, count), likeness=is_exact, above=0.0, otherwise=suppose("mixed")
    )
    diagnosis = "coupled" if best.text == "mixed" and _are_coupled(case) else best.text
    singles = ", ".join(f"{value:.4g} / {number:.4g}" for value, number in zip(sums, counts, strict=True))
    measured = f"{total:.6g} / {count:.6g} for {case.num_samples} samples; alone {singles}"
    return diagnose(case, diagnosis, measured, expected=expected)


def _are_coupled(case: LossCase) -> bool:
    """Return True if other outputs of the other samples change the first one's gradient: it is no common divisor."""
    outputs, drawn = case.outputs, {}
    for key, value in outputs.items():
        drawn[key] = draw(value)
        drawn[key][case.rows(key, 0)] = value[case.rows(key, 0)]
    plain, other = case.gradient(), case.gradient(drawn)
    firsts = [(plain[key][rows], other[key][rows]) for key in outputs for rows in [case.rows(key, 0)]]
    return not all(torch.allclose(before, after, rtol=case.rounding, atol=1e-9) for before, after in firsts)


def chooses_hardest(case: LossCase) -> bool:
    """Return True for a loss of the hardest items of a batch, which is no sum over items on purpose.

    Items that have a gradient alone, and none in the batch, are those of smaller ones, wherever they stand.
    """
    turned = [*range(1, case.num_samples), 0]
    batched, rotated = case.gradient(), case.samples(turned).gradient()
    alone = [case.samples([row]).gradient() for row in range(case.num_samples)]
    for goal in class_goals(case):
        axis, key = goal.class_axis, goal.key
        sizes, others = (gradient[key].norm(dim=axis).flatten() for gradient in (batched, rotated))
        singles = torch.cat([gradient[key].norm(dim=axis).flatten() for gradient in alone])
        is_chosen = sizes > 0
        if singles.shape != sizes.shape or bool(is_chosen.all()) or not bool(is_chosen.any()):
            continue
        is_same_set = torch.allclose(sizes.sort().values, others.sort().values, rtol=1e-6, atol=0.0)
        factor = (sizes / singles)[is_chosen & (singles > 0)]
        is_scaled = bool(len(factor)) and torch.allclose(factor, factor[:1].expand_as(factor), rtol=1e-6)
        left = singles[~is_chosen & (singles > 0)]
        if is_same_set and is_scaled and len(left) and bool(left.mean() < singles[is_chosen].mean()):
            return True
    return False


def is_mixed(case: LossCase) -> Fault | None:
    """Return the fault of a wrong sum if outputs meet the targets of other samples."""
    fault = find(case, is_misdivided, is_silent, is_mispaired)
    is_of_others = fault is not None and fault.evidence["diagnosis"] in ("coupled", "crossed", "mixed", "rolled")
    return fault if is_of_others else None


def is_split(case: LossCase) -> Fault | None:
    """Return a fault if the sum of some samples is not that of each alone, even if the mean is."""
    if case.num_samples < 2 or case.counter is None:
        return None
    (sums, _), total = _alone(case), case.value()
    is_additive = math.isclose(total, math.fsum(sums), rel_tol=case.rounding, abs_tol=1e-12)
    measured = f"sum {total:.6g} of {case.num_samples} samples, {math.fsum(sums):.6g} of each alone"
    return None if is_additive else diagnose(case, "split", measured)


def _alone(case: LossCase) -> tuple[list[float], list[float]]:
    """Return the sum and the count of each sample alone."""
    if "alone" not in case.memo:
        singles = [case.samples([row]) for row in range(case.num_samples)]
        case.memo["alone"] = [single.value() for single in singles], [single.count() for single in singles]
    found: tuple[list[float], list[float]] = case.memo["alone"]
    return found


def _list_divisors(case: LossCase, count: float) -> Iterator[Hypothesis]:
    """Yield what the sum of all samples may be instead, divided by their count."""
    (sums, counts), size = _alone(case), case.num_samples
    total = math.fsum(sums)
    if not math.isclose(count, math.fsum(counts), rel_tol=case.rounding):
        yield suppose("count", total / count)
    weighted = math.fsum(value * number for value, number in zip(sums, counts, strict=True)) / math.fsum(counts)
    for diagnosis, value in (("mean", weighted), ("divided", total / size), ("multiplied", total * size)):
        yield suppose(diagnosis, value / count)
    for kept in (sums[::2], sums[1::2], sums[: size // 2], sums[1:], sums[:-1]):
        yield suppose("unsummed", math.fsum(kept) / count)
    try:
        pairs = [[case.samples([i], [j]).value() for j in range(size)] for i in range(size)]
    except Exception:  # noqa: BLE001 - samples of other sizes do not meet
        return
    for shift in range(1, size):
        yield suppose("rolled", math.fsum(pairs[row][(row + shift) % size] for row in range(size)) / count)
    for divisor in (1, size, size**2):
        yield suppose("crossed", math.fsum(map(math.fsum, pairs)) / divisor / count)


# --- classes ----------------------------------------------------------------------------------------------------------


def class_goals(case: LossCase) -> list[Goal]:
    """List the goals of scores of at least three classes that get a gradient."""
    return [goal for goal in case.goals if goal.key in case.keys and goal.num_classes > 2]


def with_every_class(case: LossCase, goal: Goal) -> tuple[LossCase, Tensor]:
    """Return the case with the classes in turn for labels, on enough samples for all, and the mask of these targets."""
    is_target = goal.is_target
    repeats = -(-goal.num_classes // max(1, int(is_target.sum())))
    if repeats > 1:
        case = case.samples([*range(case.num_samples)] * repeats)
        is_target = torch.cat([is_target] * repeats)
    label = case.values[goal.target_key].clone()
    label[is_target] = (torch.arange(int(is_target.sum()), device=label.device) % goal.num_classes).to(label)
    return dataclasses.replace(case, values={**case.values, goal.target_key: label}, memo={}), is_target


def class_gradients(case: LossCase, goal: Goal) -> Tensor:
    """Return the mean gradient (C, C) of scores of 0, by the target's class, with every class among the targets."""
    key = ("classes", goal.key)
    if key not in case.memo:
        full, is_target = with_every_class(case, goal)
        label = full.values[goal.target_key][is_target].long()
        gradient_NC = full.gradient(full.at(0.0))[goal.key].movedim(goal.class_axis, -1)[is_target].double()
        total = gradient_NC.new_zeros(goal.num_classes, goal.num_classes).index_add_(0, label, gradient_NC)
        case.memo[key] = total / torch.bincount(label, minlength=goal.num_classes).clamp(min=1)[:, None]
    found: Tensor = case.memo[key]
    return found


def has_other_outputs(case: LossCase) -> bool:
    """Return True if the outputs beside labels are no scores of classes, but levels of an order, or distances."""
    if "other outputs" not in case.memo:
        goals = [goal for goal in case.goals if goal.num_classes]
        case.memo["other outputs"] = any(_is_of_levels(case, goal) or _is_of_distances(case, goal) for goal in goals)
    found: bool = case.memo["other outputs"]
    return found


def _is_of_levels(case: LossCase, goal: Goal) -> bool:
    """Return True for levels of ordinal regression, asked at scores that fall, or rise, from one to the next."""
    full, is_target = with_every_class(case, goal)
    label = full.values[goal.target_key][is_target].long()
    shape = [1] * full.values[goal.key].ndim
    shape[goal.class_axis] = -1
    for end in (-2.0, 2.0):
        scores = torch.linspace(-end, end, goal.num_classes).view(shape).expand_as(full.values[goal.key])
        pull_NC = full.gradient({goal.key: scores.to(full.values[goal.key])})[goal.key].movedim(goal.class_axis, -1)
        classes = label.unique()
        raised, lowered = (
            torch.stack([(sign * pull_NC[is_target][label == c] < 0).any(dim=0) for c in classes]) for sign in (1, -1)
        )
        if is_ordinal(raised, lowered):
            return True
    return False


def _is_of_distances(case: LossCase, goal: Goal) -> bool:
    """Return True for outputs of at least 0 whose loss has its floor where the true class has 0, and others are far."""
    output = case.values[goal.key]
    if output.numel() < _MIN_DISTANCES or float(output.min()) < -_SLACK * float(output.abs().max()):
        return False
    near, far, farther = (case.value(case.at(0.0, others=others, goals=[goal])) for others in _FAR)
    return far < near and math.isclose(far, farther, abs_tol=_SLACK * abs(near))


def is_remapped(case: LossCase) -> Fault | None:
    """Return a fault if targets of a class raise the score of one other class, and hardly any else."""
    return _judge_classes(case, "remapped", _MIN_MAPPED_SHARE)


def is_outranked(case: LossCase) -> Fault | None:
    """Return a fault if targets of a class raise the score of another class most."""
    return _judge_classes(case, "outranked", 0.0)


def _judge_classes(case: LossCase, diagnosis: str, min_share: float) -> Fault | None:
    for goal in class_goals(case):
        raised_CC = (-class_gradients(case, goal)).clamp(min=0)
        most, chosen = raised_CC.max(dim=1)
        share = most / raised_CC.sum(dim=1).clamp(min=1e-300)
        wrong = ((raised_CC.diagonal() < _MIN_OWN * most) & (share > min_share)).nonzero().flatten().tolist()
        if wrong:
            pairs = ", ".join(f"{number} raises {int(chosen[number])}" for number in wrong[:4])
            measured = f"{len(wrong)} of {goal.num_classes} classes: {pairs}"
            return diagnose(case, diagnosis, measured, key=goal.target_key)
    return None
