"""What counts in a loss and what does not: classes, a range of the targets, the samples that rows of a target reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.losses import Labelled, value_of
from sightline.doctor.evidence.matched import Matched
from sightline.doctor.evidence.passes import Slope
from sightline.doctor.objects import iter_reachable
from sightline.doctor.subject import Pass, Subject, count_samples, replace_leaf
from sightline.instrument.random_state import seed_all

_MIN_PLACES, _MIN_DISTINCT, _MIN_ROWS = 64, 50, 6
_MIN_LEFT_OUT, _MAX_LEFT_OUT, _MIN_COUNTED, _MAX_WEIGHT = 0.2, 0.9, 0.99, 2.0
_MAX_OFF, _MAX_GAP = 0.25, 0.05
"""Largest distance of a batch's mean from that of its set, in standard deviations; a gap, as a share of the range."""


class Silent(NamedTuple):
    """Class without a gradient at its places, beside a label that is no class and has none; all others count alike."""

    label: int
    num: int
    outside: int
    num_outside: int
    num_classes: int


@measure()
def silent_classes(subject: Subject, labelled: list[Labelled]) -> list[Silent]:
    """Find classes that do not count where labels that are no class do not, either."""
    found = []
    for item in labelled:
        labels, number = item.wanted, item.gradient.shape[-1]
        sizes = item.gradient.abs().sum(-1)
        classes = labels.unique().tolist()
        if item.axis is None or item.shift or labels.numel() < _MIN_PLACES:
            continue
        silent = [label for label in classes if not bool((sizes[labels == label] > 0).any())]
        outside = [label for label in silent if not 0 <= label < number]
        inside = [label for label in silent if 0 <= label < number and not _is_weighted_away(subject, label, number)]
        if outside and inside and _counts_alike(labels, sizes, [each for each in classes if each not in silent]):
            counts = [int((labels == label).sum()) for label in (inside[0], outside[0])]
            found.append(Silent(inside[0], counts[0], outside[0], counts[1], number))
    return found


def _is_weighted_away(subject: Subject, label: int, number: int) -> bool:
    """Return True if the loss reaches weights of classes of which that of the label is 0."""
    tensors = (tensor for _, tensor in iter_reachable(subject.form.loss, Tensor))
    return any(t.shape == (number,) and t.is_floating_point() and float(t[label]) == 0 for t in tensors)


def _counts_alike(labels: Tensor, sizes: Tensor, classes: list[int]) -> bool:
    """Return True if all places of these classes count, and about as much: no hardest places, no weights of classes."""
    shares = [float((sizes[labels == label] > 0).double().mean()) for label in classes]
    means = [float(sizes[labels == label].mean()) for label in classes]
    return bool(classes) and min(shares) >= _MIN_COUNTED and max(means) < _MAX_WEIGHT * min(means)


class Threshold(NamedTuple):
    """Bound of a target below which nothing counts, 0 apart: the share left out, and whether it lies at the middle."""

    share: float
    highest: float
    lowest: float
    is_standardised: bool


@measure()
def thresholds(matched: list[Matched]) -> list[Threshold]:
    """Find targets that count above some number alone, without a gap there: no mask of what has a target."""
    found = []
    for item in matched:
        if item.target.ndim < 3:
            continue
        counts, values = (item.slope.gradient != 0).flatten(), item.target.flatten()
        is_some = values.isfinite() & (values != 0)  # 0 marks a hole
        counts, values = counts[is_some], values[is_some]
        left_out = float((~counts).double().mean()) if len(counts) else 0.0
        if not _MIN_LEFT_OUT < left_out < _MAX_LEFT_OUT or len(values[~counts].unique()) < _MIN_DISTINCT:
            continue  # one number that is left out marks holes
        highest, lowest = float(values[~counts].max()), float(values[counts].min())
        span = float(values.max() - values.min())
        if highest <= lowest <= highest + _MAX_GAP * span:
            middle, slack = float(values.mean()), _MAX_OFF * float(values.std())
            is_middle = highest <= 0 <= lowest or highest - slack <= middle <= lowest + slack
            found.append(Threshold(left_out, highest, lowest, is_middle))
    return found


class RowsReach(NamedTuple):
    """Rows of a target that are not one a sample, the samples of the batches, and how many answer to the rows."""

    path: str
    rows: int
    samples: int
    answering: int


@measure(passes=3)
def rows_reach(subject: Subject, passed: Pass, slopes: list[Slope]) -> list[RowsReach]:
    """Move the fractional numbers of rows, as of boxes, and see the gradients of which samples' outputs move."""
    found = []
    size = max((len(slope.output) for slope in slopes if slope.output.ndim > 2), default=0)
    for path, rows in dense_leaves(passed.batch.target) if size > 1 and not count_samples(passed.batch) else ():
        if not rows.is_floating_point() or rows.ndim != 2 or len(rows) < max(_MIN_ROWS, size + 1):
            continue
        is_fractional = (rows != rows.round()).any(dim=0)
        if not bool(is_fractional.any()):
            continue
        noise = 1 - 0.02 * torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
        moved = replace_leaf(passed.batch.target, path, torch.where(is_fractional, rows * noise, rows))
        leaves = {s.path: s.output.detach().clone().requires_grad_() for s in slopes if len(s.output) == size}
        gradients = torch.autograd.grad(value_of(subject, passed, dict(leaves), moved), list(leaves.values()))
        before = [slope.gradient for slope in slopes if slope.path in leaves]
        changes = [(new - old).flatten(1).abs().sum(1) for new, old in zip(gradients, before, strict=True)]
        found.append(RowsReach(path, len(rows), size, int((torch.stack(changes).sum(0) > 0).sum())))
    if not found:
        raise NotApplicableError("no rows of several samples in the target")
    return found


class HiddenPlaces(NamedTuple):
    """Places of inputs that are the target: hidden from the model, counted by the loss, and both."""

    places: int
    hidden: int
    counted: int
    both: int


@measure(passes=2)
def hidden_places(subject: Subject) -> HiddenPlaces:
    """Find the numbers of an input that no output depends on, as of hidden patches, and those that the loss counts."""
    batch = subject.batches[0]
    leaves = {path: tensor for path, tensor in dense_leaves(batch.inputs) if tensor.is_floating_point()}
    for path, target in dense_leaves(batch.target):
        same = next((own for own, t in leaves.items() if t.shape == target.shape and torch.equal(t, target)), None)
        if same is None:
            continue
        model = subject.jitter(subject.copy("train"), seed=0)
        source, wanted = (target.detach().clone().requires_grad_() for _ in range(2))
        seed_all(0)
        outputs = subject.call(model, replace_leaf(batch.inputs, same, source + 0))
        noise = torch.Generator().manual_seed(0)
        moving = [tensor for _, tensor in dense_leaves(outputs) if tensor.requires_grad]
        parts = [(tensor * torch.randn(tensor.shape, generator=noise).to(tensor)).sum() for tensor in moving]
        (reach,) = torch.autograd.grad(torch.stack(parts).sum(), [source], retain_graph=True, allow_unused=True)
        value = subject.evaluate(model, outputs, replace_leaf(batch.target, path, wanted))
        (pull,) = torch.autograd.grad(value, [wanted], allow_unused=True) if value.requires_grad else (None,)
        if reach is None or pull is None:  # what the loss reads of it has no slope, as that of labels and masks
            continue
        hidden, counted = reach == 0, pull != 0
        return HiddenPlaces(hidden.numel(), int(hidden.sum()), int(counted.sum()), int((hidden & counted).sum()))
    raise NotApplicableError("no input that is the target")


@measure(passes=2)
def read_labels(subject: Subject, passed: Pass, labelled: list[Labelled]) -> list[str]:
    """List inputs that are the labels of an output of classes, and answers to: others move it.

    Not those that it does without: a margin for the labelled class is computed where labels are given.
    """
    targets, found = dict(dense_leaves(passed.batch.target)), []
    for item in labelled:
        labels = targets[item.target_path]
        same = [p for p, t in dense_leaves(passed.batch.inputs) if t.shape == labels.shape and torch.equal(t, labels)]
        if item.axis is None or item.shift or not same or torch.equal(labels, labels.roll(1, 0)):
            continue
        model = subject.jitter(subject.copy("eval"), seed=0)
        alone = {"model": model, "inputs": _leave_out(passed.batch.inputs, same[0])}
        if not isinstance(attempt("without labels", subject.call, alone), MissingError):
            continue
        outputs = []
        for given in (labels, labels.roll(1, 0)):
            seed_all(0)
            with torch.no_grad():
                changed = subject.call(model, replace_leaf(passed.batch.inputs, same[0], given))
            outputs.append(dict(dense_leaves(changed))[item.slope.path])
        if not torch.allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-5):
            found.append(same[0])
    return found


def _leave_out(inputs: Any, path: str) -> Any:
    """Leave an input out of a mapping or a tuple of arguments."""
    if isinstance(inputs, Mapping):
        return {name: value for name, value in inputs.items() if name != path}
    return tuple(each for number, each in enumerate(inputs) if str(number) != path) if path else ()
