"""Matching of a record's weights, inputs and layers with ours: by names, and by order and shape with a note."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError, join_some
from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch
from sightline.instrument import ModuleCall, copy_module
from sightline.workbench.compare.external_model import TensorLayout, layouts_between, match_keys, nearest_layout
from sightline.workbench.compare.records import RecordedTensor, StepRecord

_MAX_SHOWN = 6
Key = tuple[str, int, str]
"""Path and number of a call, and which of its tensors: `in`, `out`, or `gradient` of the result."""


class RecordedCall(NamedTuple):
    """A recorded tensor, the call of ours that computes it, and its values in our layout (None: no layout fits)."""

    recorded: RecordedTensor
    call: ModuleCall
    key: Key
    layout: TensorLayout | None
    values: Tensor | None


def load_weights(
    model: nn.Module, step_record: StepRecord, key_map: Mapping[str, str | None] | None, notes: list[str]
) -> tuple[nn.Module, dict[str, str]]:
    """Copy the model with the record's weights; also return the record's name of each of our tensors."""
    leaves = {name.rpartition(".")[2] for name in step_record.weights}
    parameters = dict(model.named_parameters())
    state = {n: t for n, t in model.state_dict().items() if n in parameters or n.rpartition(".")[2] in leaves}
    left = [name for name in model.state_dict() if name not in state and not name.endswith("num_batches_tracked")]
    modules = {path for path, _ in model.named_modules()}
    tensor_keys = (
        None
        if key_map is None
        else {k: v for k, v in key_map.items() if k not in modules or any(n.startswith(f"{k}.") for n in state)}
    )
    mapping = match_keys(state, step_record.weights, tensor_keys)
    for stage, tensors in (("gradients", step_record.gradients), ("after", step_record.after)):
        unknown = [name for name in tensors if name not in mapping.pairs.values()]
        if unknown:
            raise UserError(
                f"{step_record.path}: {stage}.{unknown[0]}: no tensor of the weights before the step has this name; "
                f"write weights.{unknown[0]} as well"
            )
    notes += [f"guess: {guess}" for guess in mapping.guesses]
    if left:
        notes.append(f"the record has no {join_some(left, most=_MAX_SHOWN)}: they are this network's")
    copied = copy_module(model).double()
    loaded = copied.state_dict()
    for name, other in mapping.pairs.items():
        loaded[name] = step_record.weights[other].reshape(loaded[name].shape)
    copied.load_state_dict(loaded)
    return copied, mapping.pairs


def make_batch(step_record: StepRecord, ours: Batch, notes: list[str]) -> Batch:
    """Return our batch with the record's inputs in place of ours. Raises UserError for a name that is no key of it."""
    tensors = {name: value for name, value in ours.items() if isinstance(value, Tensor)}
    batch = dict(ours)
    for name, values in step_record.inputs.items():
        if name not in tensors:
            known = ", ".join(sorted(tensors))
            raise UserError(f"{step_record.path}: inputs.{name}: the batch has no such key; it has {known}")
        batch[name] = _fit_input(f"{step_record.path}: inputs.{name}", name, values, tensors[name], notes)
    return batch


def _fit_input(where: str, name: str, values: Tensor, ours: Tensor, notes: list[str]) -> Tensor:
    """Convert an input to the kind of numbers of ours, and to the order of axes in which ours has its sizes."""
    if values.is_floating_point() and not ours.is_floating_point():
        if not bool((values == values.round()).all()):
            raise UserError(f"{where}: holds fractions, and the batch has {ours.dtype} there; write whole numbers")
        values = values.to(ours.dtype)
    elif not values.is_floating_point():
        values = values.to(ours.dtype)
    expected = (*values.shape[:1], *ours.shape[1:])
    layouts = [] if values.shape == expected else layouts_between(values.shape, expected)
    if not layouts:
        return values
    notes.append(f"inputs.{name}: {tuple(values.shape)} is read as {tuple(expected)}")
    return layouts[0](values)


def pair_calls(
    step_record: StepRecord,
    calls: Sequence[ModuleCall],
    names: Mapping[str, str],
    model: nn.Module,
    key_map: Mapping[str, str | None],
    notes: list[str],
) -> list[RecordedCall]:
    """Pair the record's tensors with our calls: by weights or names, and between these by order and shape."""
    paths = {path: path for path, _ in model.named_modules() if path}
    paths |= {names[name].rpartition(".")[0]: name.rpartition(".")[0] for name in names}
    paths |= {
        other: path for path, other in key_map.items() if other is not None and path in dict(model.named_modules())
    }
    position = {(call.path, call.call_index): index for index, call in enumerate(calls)}
    recorded = [*step_record.forward, *step_record.output_gradients]
    order = list(dict.fromkeys((tensor.layer, tensor.call_index) for tensor in recorded))
    indices = {
        at: position[paths[at[0]], at[1]] for at in order if at[0] in paths and (paths[at[0]], at[1]) in position
    }
    shapes = {(t.layer, t.call_index): t.values.shape for t in recorded if t.side == "out"}
    _pair_by_shape(order, indices, shapes, calls, model, notes)
    unknown = [layer for layer, index in order if (layer, index) not in indices]
    if unknown and not indices:
        names_of_layers = join_some(unknown, most=3)
        raise UserError(f"{step_record.path}: no layer here is called {names_of_layers}; name ours in a file, --keys")
    if unknown:
        notes.append(f"not compared, no layer here corresponds: {join_some(unknown, most=_MAX_SHOWN)}")
    pairs: list[RecordedCall] = []
    for tensor in recorded:
        call = calls[indices[at]] if (at := (tensor.layer, tensor.call_index)) in indices else None
        pairs += [] if call is None else _pair_tensor(tensor, call, pairs, notes)
    _note_left_out(calls, pairs, model, notes)
    return pairs


def _pair_by_shape(
    order: Sequence[tuple[str, int]],
    indices: dict[tuple[str, int], int],
    shapes: Mapping[tuple[str, int], torch.Size],
    calls: Sequence[ModuleCall],
    model: nn.Module,
    notes: list[str],
) -> None:
    """Pair layers without weights, between those that are paired, with calls whose result has the same sizes."""
    modules = dict(model.named_modules())
    for number, at in enumerate(order):
        if at in indices or at not in shapes:
            continue
        start = max((indices[other] for other in order[:number] if other in indices), default=-1)
        stop = min((indices[other] for other in order[number:] if other in indices), default=len(calls))
        candidates = [
            index
            for index in range(start + 1, stop)
            if _is_plain_layer(modules[calls[index].path]) and _fits(calls[index], shapes[at])
        ]
        if candidates:
            named = [i for i in candidates if calls[i].class_name.lower() in at[0].lower()]
            indices[at] = (named or candidates)[0]
            call = calls[indices[at]]
            notes.append(f"guess: {call.name} ({call.class_name}) = {at[0]}, by order and shape")


def _is_plain_layer(module: nn.Module) -> bool:
    return not list(module.children()) and not list(module.parameters())


def _fits(call: ModuleCall, shape: torch.Size) -> bool:
    tensors = [tensor for _, tensor in tree_leaves(call.outputs)]
    return len(tensors) == 1 and bool(layouts_between(shape, tensors[0].shape))


def _pair_tensor(
    tensor: RecordedTensor, call: ModuleCall, pairs: Sequence[RecordedCall], notes: list[str]
) -> list[RecordedCall]:
    """Pair a tensor with ours in the layout that agrees best; a gradient takes that of its result."""
    ours = [t for _, t in tree_leaves(call.inputs if tensor.side == "in" else call.outputs) if t.is_floating_point()]
    if len(ours) != 1 or not tensor.values.is_floating_point():
        notes.append(f"not compared, {call.name} has {len(ours)} tensors of numbers there: {tensor.name}")
        return []
    if tensor.is_gradient and call.class_name == "Identity":
        notes.append(
            f"not compared, {tensor.name}: hooks on what is passed on unchanged see the gradients of all readers"
        )
        return []
    side = "gradient" if tensor.is_gradient else tensor.side
    result = next((pair for pair in pairs if pair.key == (call.path, call.call_index, "out")), None)
    same = result is not None and tensor.is_gradient and result.recorded.values.shape == tensor.values.shape
    layout = result.layout if result is not None and same else nearest_layout(tensor.values, ours[0])
    values = None if layout is None else layout(tensor.values)
    return [RecordedCall(tensor, call, (call.path, call.call_index, side), layout, values)]


def _note_left_out(
    calls: Sequence[ModuleCall], pairs: Sequence[RecordedCall], model: nn.Module, notes: list[str]
) -> None:
    """Note the layers with weights whose results the record lacks, if it has those of others."""
    have = {pair.key[:2] for pair in pairs if pair.key[2] == "out"}
    modules = dict(model.named_modules())
    left = [c.name for c in calls if (c.path, c.call_index) not in have and list(modules[c.path].parameters(False))]
    if have and left:
        notes.append(f"the record has no result of {join_some(left, most=_MAX_SHOWN)}: the next result shows them too")
