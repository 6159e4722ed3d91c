"""Relations of a user's loss with the outputs and targets of real batches: graph, padding, weights, boxes, angles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.workbench.check.checks.data.images import input_statistics
from sightline.workbench.check.checks.data.point_labels import padded_points
from sightline.workbench.check.checks.loss_values import loss_weights
from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.custom_backward import judge_functions
from sightline.workbench.watch.loop import Found
from sightline.workbench.watch.loss_graph import LossGraph
from sightline.workbench.watch.plain_setup import call_model

_MAX_NODES = 3000
_MIN_ROWS, _MAX_UNORDERED = 16, 0.2
_MIN_ANGLES, _EDGE = 64, 0.03
_MIN_WEIGHT_RATIO = 3.0
_BYTE = 255


class Pass(NamedTuple):
    """Forward pass of a batch: `outputs` with their history, and the value of the loss."""

    inputs: Any
    target: Any
    outputs: Any
    value: Tensor
    parameters: Mapping[int, Tensor]

    def list_reached(self) -> set[int]:
        """List the parameters of the user's model to which the loss gives a gradient, by identity."""
        needed = {key: p for key, p in self.parameters.items() if p.requires_grad}
        gradients = torch.autograd.grad(self.value, [*needed.values()], retain_graph=True, allow_unused=True)
        return {key for key, gradient in zip(needed, gradients, strict=True) if gradient is not None}


def run_batch(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], pair: tuple[Any, Any], device: torch.device
) -> Pass:
    """Compute the loss of a batch with a copy of the model in training mode; the graph begins at the inputs."""
    inputs, target = tree_map(pair, lambda _, tensor: tensor.to(device))
    copied = copy.deepcopy(model).train()
    outputs = call_model(copied, tree_map(inputs, _begin_graph))
    copies = dict(zip(map(id, model.parameters()), copied.parameters(), strict=True))
    return Pass(inputs, target, outputs, loss(outputs, target), copies)


def _begin_graph(path: str, tensor: Tensor) -> Tensor:
    """Return a tensor whose views have a history, and that may be written to."""
    return tensor.detach().clone().requires_grad_() + 0 if tensor.is_floating_point() else tensor


def judge_loss(
    passed: Pass, model: nn.Module, loss: Callable[[Any, Any], Tensor], pairs: Sequence[tuple[Any, Any]]
) -> Iterator[Found]:
    """Yield what no loss, and no batch, may do, of a batch that has been run, and of others."""
    device = passed.value.device
    for judge in (
        _judge_graph,
        _judge_padding,
        _judge_boxes,
        _judge_bytes,
        partial(_judge_weights, loss, pairs),
        partial(_judge_angles, loss, pairs),
        lambda passed: judge_functions(passed.value, lambda: run_batch(model, loss, pairs[0], device)),
    ):
        with suppress(Exception):  # other shapes than a relation is about
            yield from judge(passed)


def _first(tree: Any) -> Tensor:
    return next(tensor for _, tensor in tree_leaves(tree))


def _judge_graph(passed: Pass) -> Iterator[Found]:
    if passed.value.grad_fn is not None:
        yield from LossGraph(passed.value.grad_fn, _MAX_NODES).find_faults()


def _judge_padding(passed: Pass) -> Iterator[Found]:
    """Rows of zeros that fill samples up to one length change no loss: its gradient at their outputs is zero."""
    rows, outputs = _first(passed.inputs), _first(passed.outputs)
    if rows.ndim != 3 or outputs.ndim < 2 or outputs.shape[:2] != rows.shape[:2] or not rows.is_floating_point():
        return
    is_zero = (rows == 0).all(dim=-1)
    is_padding = is_zero.flip(1).cumprod(dim=1).flip(1).bool()
    lengths = (~is_padding).sum(dim=1)
    if len(lengths.unique()) < 3 or int(lengths.max()) < _MIN_ROWS:
        return
    (gradient,) = torch.autograd.grad(passed.value, outputs, retain_graph=True)
    counted = (gradient.flatten(2) if gradient.ndim > 2 else gradient[..., None]).abs().sum(dim=-1)[is_padding] > 0
    if bool(counted.any()):
        yield padded_points.with_fault(
            "padding counts in the loss: the rows of zeros after a sample's last one have targets",
            severity="error",
            causes=("data.padding", "data.ignore_handling"),
            measured=f"{int(counted.sum())} of {len(counted)} padded rows give a gradient; samples of "
            f"{int(lengths.min())} .. {int(lengths.max())} rows",
            expected="no gradient at padded rows",
            action="give padding a target that the loss ignores (ignore_index), or multiply by a mask",
        )


def _judge_boxes(passed: Pass) -> Iterator[Found]:
    """A model whose boxes have left < right and top < bottom by construction is compared with such boxes."""
    outputs, target = _first(passed.outputs), _first(passed.target)
    if outputs.shape != target.shape or outputs.shape[-1] != 4 or not target.is_floating_point():
        return
    predicted, wanted = (_is_ordered(boxes.detach().reshape(-1, 4)) for boxes in (outputs, target))
    if len(predicted) >= _MIN_ROWS and bool(predicted.all()) and float(wanted.float().mean()) < 1 - _MAX_UNORDERED:
        yield report(
            "loss-form",
            "the model's boxes are corners, the targets are not: (x, y, w, h) where (x1, y1, x2, y2) is meant",
            causes=("assign.box_format", "data.target_encoding"),
            measured=f"left < right and top < bottom in {len(predicted)} of {len(predicted)} predicted boxes, and in "
            f"{int(wanted.sum())} of {len(wanted)} targets",
            expected="one format on both sides of the loss",
            action="convert the targets to corners, or compare in their format",
        )


def _is_ordered(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _judge_bytes(passed: Pass) -> Iterator[Found]:
    """Images are not k / 255 / 255: bytes are divided once."""
    images = _first(passed.inputs)
    if images.ndim != 4 or not images.is_floating_point() or 0 not in (images.shape[1] % 3, images.shape[1] // 2):
        return
    levels = images * _BYTE * _BYTE
    is_whole = bool(((levels - levels.round()).abs() < 1e-2).all())
    if (
        is_whole
        and float(images.min()) >= 0
        and len(levels.round().unique()) > 8
        and float(levels.max()) <= _BYTE + 0.5
    ):
        yield input_statistics.with_fault(
            "images are divided by 255 twice: their values end at 1 / 255",
            severity="error",
            causes=("data.normalisation",),
            measured=f"values 0 .. {float(images.max()):.4g}, whole multiples of 1 / 65025",
            expected="values up to 1",
            action="divide once: ToTensor and the like do it for uint8",
        )


def _judge_weights(loss: Any, pairs: Sequence[tuple[Any, Any]], passed: Pass) -> Iterator[Found]:
    """Class weights do not rise with the number of a class: they are to help the rare ones."""
    weight = getattr(loss, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or passed.target.is_floating_point():
        return
    labels = torch.cat([target.flatten() for _, target in pairs])
    labels = labels[(labels >= 0) & (labels < len(weight)) & (labels != getattr(loss, "ignore_index", -100))]
    counts = torch.bincount(labels, minlength=len(weight))
    order = counts.argsort()[-int((counts > 0).sum()) :]
    rising = weight.to(counts.device)[order]
    if len(order) > 2 and bool((rising.diff() > 0).all()) and float(rising[-1]) > _MIN_WEIGHT_RATIO * float(rising[0]):
        yield loss_weights.with_fault(
            "class weights are those of frequent classes: the more samples a class has, the more each of them counts",
            severity="error",
            causes=("loss.weights", "data.imbalance"),
            measured=f"class {int(order[-1])}, the most frequent, has the weight {float(rising[-1]):.3g}; class "
            f"{int(order[0])}, the rarest, {float(rising[0]):.3g}",
            expected="weights that fall with the number of samples",
            action="invert them: 1 / count, not count",
        )


def _judge_angles(loss: Any, pairs: Sequence[tuple[Any, Any]], passed: Pass) -> Iterator[Found]:
    """Targets that fill -pi .. pi, or 0 .. 2 pi, are angles: a whole turn of an output changes no loss."""
    target = torch.cat([_first(target) for _, target in pairs])
    if passed.outputs.shape != passed.target.shape or not target.is_floating_point() or target.ndim > 2:
        return
    columns = target.reshape(len(target), -1)
    for index, column in enumerate(columns.T):
        low, high = float(column.min()), float(column.max())
        turns = [
            half
            for half in (math.pi, 180.0)
            if len(column) >= _MIN_ANGLES and any(_fills(low, high, start, half) for start in (-half, 0.0))
        ]
        if not turns:
            continue
        turned = passed.outputs.detach().clone()
        turned.reshape(len(turned), -1)[:, index] += 2 * turns[0]
        before, after = (float(loss(o, passed.target)) for o in (passed.outputs.detach(), turned))
        if abs(after - before) > 1e-3 * (1 + abs(before)):
            yield report(
                "loss-form",
                "the targets fill a whole turn as angles do, and the loss does not know that its ends are one: "
                "differences are not wrapped",
                severity="warning",
                causes=("loss.form", "data.target_encoding"),
                measured=f"targets {low:.4g} .. {high:.4g}; the loss of outputs a whole turn further is "
                f"{after:.3g} for {before:.3g}",
                expected="the same loss after a whole turn",
                action="wrap the difference, atan2(sin(d), cos(d)), or predict sine and cosine",
            )
            return


def _fills(low: float, high: float, start: float, half: float) -> bool:
    slack = 1e-4 * half
    is_inside = low >= start - slack and high <= start + 2 * half + slack
    return is_inside and low < start + _EDGE * half and high > start + (2 - _EDGE) * half
