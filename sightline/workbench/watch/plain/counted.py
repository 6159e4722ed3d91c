"""Places that count in a loss: a class, or the near half of a depth map, that is left out with what has no target."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sightline.contract.pytree import tree_leaves
from sightline.workbench.check.core.sample_statistics import class_axis
from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.loop import Found
from sightline.workbench.watch.plain.loss import Pass

logger = logging.getLogger(__name__)

_MIN_PLACES, _MIN_DISTINCT = 64, 50
_MIN_LEFT_OUT, _MAX_LEFT_OUT, _MIN_COUNTED, _MAX_WEIGHT = 0.2, 0.9, 0.99, 1.2
_MAX_OFF = 0.25
"""Largest distance of the mean of a batch from that of the set, in standard deviations."""
_MAX_GAP = 0.05
"""Largest gap between the targets that count and those that do not, as a share of their whole range."""


def judge_counted(passed: Pass, loss: Callable[[Any, Any], Tensor]) -> Iterator[Found]:
    """Yield what a loss leaves out that it should not, by the gradients at the outputs of a batch."""
    for judge in (_judge_classes, _judge_threshold):
        try:
            yield from judge(passed, loss)
        except Exception:
            logger.debug("a relation of what counts does not apply to this batch", exc_info=True)


def _list_pulls(passed: Pass) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the outputs with their gradients."""
    outputs = [tensor for _, tensor in tree_leaves(passed.outputs) if tensor.requires_grad]
    gradients = torch.autograd.grad(passed.value, outputs, retain_graph=True, allow_unused=True)
    for output, gradient in zip(outputs, gradients, strict=True):
        if gradient is not None:
            yield output.detach(), gradient


def _judge_classes(passed: Pass, loss: Callable[[Any, Any], Tensor]) -> Iterator[Found]:
    """Labels that are no class do not count; where they do not, a class that does not count either is a slip."""
    weights = [getattr(loss, "weight", None), *passed.list_class_weights()]
    labels = [tensor for _, tensor in tree_leaves(passed.target) if tensor.dtype == torch.int64 and tensor.ndim > 0]
    for output, gradient in _list_pulls(passed) if len(labels) == 1 else ():
        axis = class_axis(output, labels[0])
        if axis is None or labels[0].numel() < _MIN_PLACES:
            continue
        sizes, number = gradient.abs().sum(dim=axis), output.shape[axis]
        counts = sizes > 0
        classes = labels[0].unique().tolist()
        silent = [label for label in classes if not bool(counts[labels[0] == label].any())]
        outside = [label for label in silent if not 0 <= label < number]
        inside = [label for label in silent if 0 <= label < number]
        for weight in (weight for weight in weights if isinstance(weight, Tensor) and weight.numel() == number):
            inside = [label for label in inside if float(weight[label]) != 0]
        if outside and inside and _counts_alike(labels[0], sizes, [label for label in classes if label not in silent]):
            num = int((labels[0] == inside[0]).sum())
            yield report(
                "loss-form",
                f"class {inside[0]} does not count in the loss, and {outside[0]}, which is no class, does not either",
                severity="error",
                causes=("data.ignore_handling", "data.label_mapping", "loss.form"),
                measured=f"no gradient at all {num} places of class {inside[0]}, of {number} classes, and at all "
                f"{int((labels[0] == outside[0]).sum())} of label {outside[0]}",
                expected="one ignored label, outside of the classes",
                action=f"give ignore_index={outside[0]} to the loss, and do not clamp or move the labels before it",
            )
            return


def _counts_alike(labels: Tensor, sizes: Tensor, classes: list[int]) -> bool:
    """Return True if all places of these classes count, and about as much: no hardest places, no weights of classes."""
    shares = torch.stack([(sizes[labels == label] > 0).double().mean() for label in classes])
    means = torch.stack([sizes[labels == label].mean() for label in classes])
    return len(classes) > 0 and float(shares.min()) >= _MIN_COUNTED and float(means.max() / means.min()) < _MAX_WEIGHT


def _judge_threshold(passed: Pass, loss: Callable[[Any, Any], Tensor]) -> Iterator[Found]:
    """A mask of what has a target lies at a gap of the targets, as between 0 and the nearest depth.

    One at 0, or at the mean, was taken after the target had been standardised; elsewhere it may be of a range.
    """
    for output, gradient in _list_pulls(passed):
        targets = [t for _, t in tree_leaves(passed.target) if t.shape == output.shape and t.is_floating_point()]
        if len(targets) != 1 or output.ndim < 3:
            continue
        counts, values = (gradient != 0).flatten(), targets[0].flatten()
        values, counts = values[values.isfinite()], counts[values.isfinite()]
        values, counts = values[values != 0], counts[values != 0]  # 0 marks a hole
        left_out = float((~counts).double().mean()) if len(counts) else 0.0
        if not _MIN_LEFT_OUT < left_out < _MAX_LEFT_OUT or len(values[~counts].unique()) < _MIN_DISTINCT:
            continue  # one number that is left out marks holes
        highest, lowest = float(values[~counts].max()), float(values[counts].min())
        span = float(values.max() - values.min())
        if highest <= lowest <= highest + _MAX_GAP * span:
            middle, slack = float(values.mean()), _MAX_OFF * float(values.std())
            is_standardised = highest <= 0 <= lowest or highest - slack <= middle <= lowest + slack
            yield report(
                "loss-form",
                f"targets below {lowest:.3g} do not count in the loss, though they are no holes",
                severity="warning" if is_standardised else "note",  # a range may be asked for
                causes=("data.ignore_handling", "data.normalisation", "loss.form"),
                measured=f"{left_out:.0%} of the targets that are not 0 give no gradient: all up to {highest:.4g}; all "
                f"from {lowest:.4g} on do",
                expected="a mask of what has a target, at a gap of the targets",
                action="take the mask (target > 0) before the target is standardised",
            )
            return
