"""Relations of a user's loss with the outputs and targets of real batches: graph, padding, weights, boxes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline import instrument
from sightline.contract.pytree import is_dense, tree_leaves, tree_map
from sightline.doctor.autograd_graph import get_node_name, iter_nodes, skip_shape_operations
from sightline.doctor.batches import BatchForm, call_model
from sightline.instrument import copy_module
from sightline.workbench.check.checks.data.label_leak import label_input
from sightline.workbench.check.checks.data.point_labels import padded_points
from sightline.workbench.check.checks.loss_values import loss_weights
from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.loop import Found
from sightline.workbench.watch.loss_graph import UNBOUNDED, LossGraph, get_shape, is_of_all_pairs, list_variables
from sightline.workbench.watch.overlaps import judge_overlaps
from sightline.workbench.watch.plain.byte_images import judge_bytes
from sightline.workbench.watch.plain.custom_backward import judge_functions
from sightline.workbench.watch.plain.loss_calls import judge_calls
from sightline.workbench.watch.plain.rotations import judge_angles, judge_quaternions

logger = logging.getLogger(__name__)

_MAX_NODES = 3000
_MIN_ROWS, _MAX_UNORDERED = 16, 0.2
_MIN_WEIGHT_RATIO = 3.0
_DEVIATIONS, _MAX_SLACK = 4.0, 1.3
"""Standard deviations that counts of a few batches are off, and the largest factor by which class weights may be."""
_MIN_PADDED = 0.1
_HIGH, _BELOW = 0.6, 20.0
_MAX_ROUTED = 16
_FORMAT = "assign.box_format"


class Pass(NamedTuple):
    """Forward pass of a batch: `outputs` with their history, which begins at `begun`, and the value of the loss."""

    inputs: Any
    target: Any
    outputs: Any
    value: Tensor
    parameters: Mapping[int, Tensor]
    begun: Any

    def list_reached(self) -> set[int]:
        """List the parameters of the user's model to which the loss gives a gradient, by identity."""
        needed = {key: p for key, p in self.parameters.items() if p.requires_grad}
        gradients = torch.autograd.grad(self.value, [*needed.values()], retain_graph=True, allow_unused=True)
        return {key for key, gradient in zip(needed, gradients, strict=True) if gradient is not None}

    def reaches_all(self) -> bool:
        """Return True if every parameter that needs a gradient gets one that is not zero."""
        needed = [p for p in self.parameters.values() if p.requires_grad]
        return all(_is_some(g) for g in torch.autograd.grad(self.value, needed, retain_graph=True, allow_unused=True))

    def reaches_outputs(self) -> bool:
        """Return True if an output gets a gradient that is not zero."""
        outputs = [tensor for _, tensor in tree_leaves(self.outputs) if tensor.requires_grad]
        return any(_is_some(g) for g in torch.autograd.grad(self.value, outputs, retain_graph=True, allow_unused=True))

    def marks_targets(self) -> bool:
        """Return True if targets are not finite, though the loss is: NaN marks those that are not known."""
        is_marked = any(t.is_floating_point() and not bool(t.isfinite().all()) for _, t in tree_leaves(self.target))
        return is_marked and bool(self.value.isfinite())

    def is_unbounded(self) -> bool:
        """Return True if an output comes from a layer whose numbers have no bound."""
        nodes = [skip_shape_operations(t.grad_fn) for _, t in tree_leaves(self.outputs) if t.grad_fn is not None]
        return any(get_node_name(node) in UNBOUNDED for node in nodes)

    def ignores_names(self, loss: Callable[[Any, Any], Tensor]) -> bool:
        """Return True if classes may be renamed: labels say which places belong together, as those of instances."""
        outputs = tree_map(self.outputs, lambda _, tensor: tensor.detach())
        renamed = tree_map(self.target, lambda _, t: t if t.is_floating_point() else _rename_classes(t))
        return math.isclose(float(loss(outputs, renamed)), float(self.value.detach()), rel_tol=1e-6)

    def uses(self, name: str) -> bool:
        """Return True if an operator whose name begins so is among those of the loss."""
        return any(get_node_name(node).startswith(name) for node in iter_nodes([self.value.grad_fn]))

    def list_class_weights(self) -> list[Tensor]:
        """List the weights of classes that cross entropies of the loss have."""
        nodes = [node for node in iter_nodes([self.value.grad_fn]) if get_node_name(node).startswith("NllLoss")]
        return [weight for node in nodes if (weight := node._saved_weight) is not None]

    def list_read_by_loss(self) -> set[int]:
        """List the user's own parameters that the loss reads itself, and not from the outputs of the copy."""
        return list_variables(iter_nodes([self.value.grad_fn])) & set(self.parameters)


def _rename_classes(labels: Tensor) -> Tensor:
    return torch.where(labels >= 0, (labels + 1) % (labels.max() + 1).clamp(min=1), labels)


def _is_some(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def run_batch(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], pair: tuple[Any, Any], device: torch.device
) -> Pass:
    """Compute the loss of a batch with a copy of the model in training mode; the graph begins at the inputs."""
    inputs, target = tree_map(pair, lambda _, tensor: tensor.to(device))
    copied = copy_module(model).train()
    begun = tree_map(inputs, _begin_graph)
    outputs = call_model(copied, begun)
    copies = dict(zip(map(id, model.parameters()), copied.parameters(), strict=True))
    return Pass(inputs, target, outputs, loss(outputs, target), copies, begun)


def list_routes(model: nn.Module, pair: tuple[Any, Any]) -> frozenset[str]:
    """List the modules that run for any of the first samples alone; none, if for each of them the same modules run.

    Others may run for other samples: experts, of which a gate chooses.
    """
    copied, used = copy_module(model).eval(), set()
    for row in range(min(_MAX_ROUTED, len(_first(pair)))):
        single = tree_map(pair[0], partial(_take_one, row))
        try:
            with torch.no_grad(), instrument.record(dict(copied.named_modules())) as tape:
                call_model(copied, single)
        except Exception:  # noqa: BLE001 - the model may need several samples
            return frozenset()
        used.add(frozenset(call.path for call in tape.calls))
    return frozenset().union(*used) if len(used) > 1 else frozenset()


def _take_one(row: int, path: str, tensor: Tensor) -> Tensor:
    return tensor[row : row + 1]


def _begin_graph(path: str, tensor: Tensor) -> Tensor:
    """Return a tensor whose views have a history, and that may be written to."""
    is_number = tensor.is_floating_point() and is_dense(tensor)
    return tensor.detach().clone().requires_grad_() + 0 if is_number else tensor


def judge_loss(
    passed: Pass, model: nn.Module, loss: Callable[[Any, Any], Tensor], pairs: Sequence[tuple[Any, Any]]
) -> Iterator[Found]:
    """Yield what no loss, and no batch, may do, of a batch that has been run, and of others."""
    device, targets, has_format = passed.value.device, [target for _, target in pairs], False
    for judge in (
        _judge_graph,
        _judge_padding,
        _judge_boxes,
        _judge_empty_boxes,
        partial(_judge_peaks, loss),
        _judge_sample_weights,
        lambda passed: judge_bytes(_first(passed.inputs).detach()),
        partial(_judge_weights, loss, pairs),
        lambda passed: judge_angles(
            loss, passed.outputs, passed.target, *(torch.cat([_first(p[side]) for p in pairs]) for side in (1, 0))
        ),
        lambda passed: judge_quaternions(loss, passed.outputs, passed.target, targets),
        partial(_judge_order, model),
        lambda passed: judge_functions(passed.value, lambda: run_batch(model, loss, pairs[0], device)),
        lambda passed: judge_calls(loss, lambda noted: run_batch(model, noted, pairs[0], device).value),
    ):
        try:
            for rule, fault in judge(passed):
                if not has_format or _FORMAT not in fault.causes:  # two relations may see one pair of formats
                    yield rule, fault
                has_format = has_format or _FORMAT in fault.causes
        except Exception:
            logger.debug("a relation of the loss does not apply to this batch", exc_info=True)


def judge_keys(model: nn.Module, form: BatchForm, pair: tuple[Any, Any]) -> Iterator[Found]:
    """Yield a fault for a model that reads the classes of a mapping that its loss compares it with."""
    inputs, target = pair
    names = [name for name in form.targets if name in form.inputs]
    if names != list(form.targets) or len(names) != 1 or not isinstance(target, Tensor) or target.is_floating_point():
        return
    copied = copy_module(model).eval()
    try:
        with torch.no_grad():
            outputs = [
                _first(call_model(copied, {**inputs, names[0]: label})) for label in (target, target.roll(1, dims=0))
            ]
    except Exception:  # noqa: BLE001 - the first step reports it
        return
    if not torch.equal(*outputs):
        yield label_input.with_fault(
            f"the model reads '{names[0]}', which the loss compares its outputs with",
            measured=f"the outputs change if '{names[0]}' is exchanged between samples, in evaluation mode",
        )


def _first(tree: Any) -> Tensor:
    return next(tensor for _, tensor in tree_leaves(tree))


def _judge_graph(passed: Pass) -> Iterator[Found]:
    if passed.value.grad_fn is not None:
        yield from LossGraph(passed.value.grad_fn, _MAX_NODES).find_faults()
        yield from judge_overlaps(passed.value, _MAX_NODES)


def _judge_padding(passed: Pass) -> Iterator[Found]:
    """Rows of zeros that fill samples up to one length change no loss: its gradient at their outputs is zero."""
    rows, outputs = _first(passed.inputs), _first(passed.outputs)
    is_tokens = rows.ndim == 2 and not rows.is_floating_point()
    if not is_tokens and (rows.ndim != 3 or not rows.is_floating_point()):
        return
    if outputs.ndim < 2 or outputs.shape[:2] != rows.shape[:2]:
        return
    is_zero = rows == 0 if is_tokens else (rows == 0).all(dim=-1)
    is_padding = is_zero.flip(1).cumprod(dim=1).flip(1).bool()
    lengths = (~is_padding).sum(dim=1)
    if len(lengths.unique()) < 3 or int(lengths.max()) < _MIN_ROWS:
        return
    if is_tokens and float(is_padding.float().mean()) < _MIN_PADDED:  # a token 0 may come last by chance
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
    if passed.is_unbounded() or not bool((target[..., 2:] > 0).all()):
        return  # the corners of a plain layer are in order by chance, and boxes have sides: shares of classes may be 0
    predicted, wanted = (_is_ordered(boxes.detach().reshape(-1, 4)) for boxes in (outputs, target))
    if len(predicted) >= _MIN_ROWS and bool(predicted.all()) and float(wanted.float().mean()) < 1 - _MAX_UNORDERED:
        yield report(
            "loss-form",
            "the model's boxes are corners, the targets are not: (x, y, w, h) where (x1, y1, x2, y2) is meant",
            causes=(_FORMAT, "data.target_encoding"),
            measured=f"left < right and top < bottom in {len(predicted)} of {len(predicted)} predicted boxes, and in "
            f"{int(wanted.sum())} of {len(wanted)} targets",
            expected="one format on both sides of the loss",
            action="convert the targets to corners, or compare in their format",
        )


def _list_matched(passed: Pass) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Iterate over outputs and float targets of one shape that belong to one another alone, with their gradients."""
    outputs = [tensor for _, tensor in tree_leaves(passed.outputs) if tensor.requires_grad]
    inputs = [tensor for _, tensor in tree_leaves(passed.inputs)]
    targets = [
        tensor
        for _, tensor in tree_leaves(passed.target)
        if tensor.is_floating_point() and not any(torch.equal(tensor, own) for own in inputs)
    ]
    for output in outputs:
        matched = [target for target in targets if target.shape == output.shape]
        if len(matched) == 1 and sum(other.shape == output.shape for other in outputs) == 1:
            (gradient,) = torch.autograd.grad(passed.value, output, retain_graph=True, allow_unused=True)
            if gradient is not None:
                yield output.detach(), matched[0], gradient


def _judge_empty_boxes(passed: Pass) -> Iterator[Found]:
    """A box of four zeros is none: where most targets are such, the loss has no gradient there."""
    for _, target, gradient in _list_matched(passed):
        if target.ndim != 3 or target.shape[-1] != 4:
            continue
        is_empty = (target == 0).all(dim=-1)
        share = float(is_empty.float().mean())
        if not 0.5 < share < 1 or not bool((target[~is_empty][:, 2:] > 0).all()):
            continue
        num_pulled = int((gradient[is_empty] != 0).any(dim=-1).sum())
        if num_pulled > 0.5 * int(is_empty.sum()):
            yield report(
                "loss-form",
                "boxes that do not exist count in the loss: places without an object are pulled to a box of zeros",
                causes=("loss.normaliser", "data.ignore_handling"),
                measured=f"a gradient at {num_pulled} of {int(is_empty.sum())} places whose target is 0, 0, 0, 0; "
                f"{1 - share:.1%} of all have a box",
                expected="a gradient at places with a box alone",
                action="take the places with an object first (output[mask], target[mask]), and then the mean",
            )


def _judge_peaks(loss: Callable[[Any, Any], Tensor], passed: Pass) -> Iterator[Found]:
    """A loss pushes outputs up where a target map is highest and they are lower, if not here, from far below."""
    for output, target, gradient in _list_matched(passed):
        if target.ndim < 3 or not bool(((target >= 0) & (target <= 1)).all()):
            continue
        is_share = bool(((output >= 0) & (output <= 1)).all())
        scores = output if is_share else output.sigmoid()
        is_peak = (target >= target.amax(dim=(-2, -1), keepdim=True)) & (target > _HIGH) & (scores < target)
        if int(is_peak.sum()) <= 2 or not bool((gradient > 0).any()) or bool((gradient[is_peak] < 0).any()):
            continue
        if not _is_pulled_up(
            loss, passed, torch.where(is_peak, output * 1e-4 if is_share else output - _BELOW, output)
        ):
            yield report(
                "loss-form",
                "nothing pushes the highest places of the target maps up: no place counts as an object",
                causes=("loss.form", "data.target_encoding"),
                measured=f"the gradient is 0 or falls at all {int(is_peak.sum())} highest places; target up to "
                f"{float(target.max()):.4g}, outputs below",
                expected="a loss that falls if these outputs rise",
                action="a focal loss of heat maps counts places where the target is exactly 1: round centres to places "
                "before drawing, or compare with >= 0.99",
            )


def _is_pulled_up(loss: Callable[[Any, Any], Tensor], passed: Pass, lowered: Tensor) -> bool:
    """Return True if the loss pushes lowered outputs up: they may be logarithms of the target, or its other scale."""
    lowered = lowered.requires_grad_()
    outputs = tree_map(passed.outputs, lambda _, each: lowered if each.shape == lowered.shape else each)
    (gradient,) = torch.autograd.grad(loss(outputs, passed.target), lowered)
    return bool((gradient < 0).any())


def _judge_sample_weights(passed: Pass) -> Iterator[Found]:
    """A number for each sample, (B,), meets the first axis of what is (B, K), and not the last: K may equal B."""
    given = [t for _, t in tree_leaves(passed.target) if t.ndim == 1 and len(t) > 1]
    for node in LossGraph(passed.value.grad_fn, _MAX_NODES).nodes if given else ():
        shape = get_shape(node)
        if get_node_name(node) != "Mul" or len(shape) != 2 or shape[0] != shape[1] or is_of_all_pairs(node):
            continue
        factors = [getattr(node, f"_saved_{name}", None) for name in ("self", "other")]
        if any(
            isinstance(f, Tensor) and f.ndim == 1 and f.data_ptr() == t.data_ptr() and f.shape == t.shape == shape[:1]
            for f in factors
            for t in given
        ):
            yield report(
                "loss-form",
                f"a number for each of {shape[0]} samples is multiplied along the other axis of {shape}",
                causes=("loss.form", "loss.weights"),
                measured=f"({shape[0]},) of the target times {shape}: sample i weighs column i of all samples",
                expected="one weight for each row",
                action="give the weights the other axes (weight[:, None])",
            )
            return


def _is_ordered(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _judge_order(model: nn.Module, passed: Pass) -> Iterator[Found]:
    """Outputs before the last token do not depend on it, if each target is the next token of the inputs."""
    tokens, targets = passed.inputs, passed.target
    if not isinstance(tokens, Tensor) or not isinstance(targets, Tensor) or tokens.is_floating_point():
        return
    if tokens.ndim != 2 or tokens.numel() != targets.numel() or min(tokens.shape) < 2 or tokens.shape[1] < 4:
        return
    targets = targets.reshape(tokens.shape)
    is_counted = targets[:, :-1] >= 0
    is_next = bool((targets[:, :-1] == tokens[:, 1:])[is_counted].all()) and bool(is_counted[:, -1].any())
    changed = tokens.clone()
    changed[:, -1] = tokens.roll(1, 0)[:, -1]
    is_other = (changed[:, -1] != tokens[:, -1]) & is_counted[:, -1]
    if not is_next or not bool(is_other.any()) or bool((tokens[:, 1:] == tokens[:, :-1]).all()):
        return
    copied = copy_module(model).eval()
    with torch.no_grad():
        before, after = (_by_token(_first(call_model(copied, words)), tokens) for words in (tokens, changed))
    if before is None or after is None:
        return
    moved = (after - before)[:, :-1][is_other].abs().max()
    if float(moved) > 1e-4 * float(before.abs().max()):
        yield label_input.with_fault(
            "each output depends on the token that it is to predict: the attention sees what comes next",
            causes=("data.label_leak", "model.structure"),
            measured=f"another last token changes earlier outputs by up to {float(moved):.3g}",
            expected="outputs of the tokens up to their own place",
            action="look at the diagonal of the causal mask: torch.triu(ones, 1) hides what comes next",
        )


def _by_token(outputs: Tensor, tokens: Tensor) -> Tensor | None:
    """Return outputs as (B, T, V), of that shape, (B T, V) or (B, V, T); None for others."""
    num, length = tokens.shape
    if outputs.ndim == 2 and len(outputs) == num * length:
        return outputs.reshape(num, length, -1)
    if outputs.ndim != 3 or len(outputs) != num or length not in outputs.shape[1:]:
        return None
    return outputs if outputs.shape[1] == length else outputs.transpose(1, 2)


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
    present = counts[order].double()
    surprise = float(((present - present.mean()).square() / present.mean()).sum())  # chi squared of equal frequencies
    is_uneven = surprise > len(order) + _DEVIATIONS * (2 * len(order)) ** 0.5
    is_rising = len(order) > 2 and bool((rising.diff() > 0).all())
    if is_rising and is_uneven and float(rising[-1]) > _MIN_WEIGHT_RATIO * float(rising[0]):
        yield loss_weights.with_fault(
            "class weights are those of frequent classes: the more samples a class has, the more each of them counts",
            severity="error",
            causes=("loss.weights", "data.imbalance"),
            measured=f"class {int(order[-1])}, the most frequent, has the weight {float(rising[-1]):.3g}; class "
            f"{int(order[0])}, the rarest, {float(rising[0]):.3g}",
            expected="weights that fall with the number of samples",
            action="invert them: 1 / count, not count",
        )
        return
    counted = counts.double()
    for power in (1.0, 0.5) if len(counts) > 2 and bool((counts > 0).all() and (weight > 0).all()) else ():
        slack = 1 + _DEVIATIONS * power * float(counted.min()) ** -0.5
        given, own = weight.double().to(counts.device), counted**-power
        spread, sorted_spread = (_measure_spread(a / b) for a, b in ((given, own), (given.sort()[0], own.sort()[0])))
        if slack < _MAX_SLACK and sorted_spread < slack and spread > 2 * slack:
            yield loss_weights.with_fault(
                "class weights are those of other classes: in another order they are 1 / count"
                + ("" if power == 1 else " to the power of 0.5"),
                severity="warning",
                causes=("loss.weights", "data.label_mapping"),
                measured=f"weight times count differs by a factor of {spread:.3g}; sorted, by {sorted_spread:.3g}",
                expected="the weight of class c at place c",
                action="count by class: torch.bincount(labels, minlength=C); Counter.most_common() sorts by count",
            )
            return


def _measure_spread(values: Tensor) -> float:
    return float(values.max() / values.min())
