"""External reference networks: weights, layers and layouts of tensors matched with ours, one by one or in segments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import permutations
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sightline.contract.errors import RunError, UserError, join_some
from sightline.contract.plugins import Plugin, run_file
from sightline.contract.pytree import tree_cast, tree_leaves, tree_map
from sightline.contract.schema import suggest
from sightline.instrument import ModuleCall, preserve_buffers, record
from sightline.workbench.compare.recording import StepRecording

_MAX_SHOWN = 4
_COUNTER = "num_batches_tracked"


class KeyMapping(NamedTuple):
    """Mapping of our tensor names to theirs, and a description of each guess."""

    pairs: dict[str, str]
    guesses: tuple[str, ...]


def match_keys(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], key_map: Mapping[str, str | None] | None
) -> KeyMapping:
    """Match every tensor of `ours` with one of `theirs`.

    `key_map` maps our names of tensors, or of modules for all their tensors, to their names, or to None for tensors
    without a counterpart. Other tensors are matched by equal names. Without a map, modules with the same tensors are
    also paired in their order, and each of these guesses is listed. Shapes agree except for axes of length 1.
    Raises UserError if a tensor of either network stays unmatched.
    """
    pairs, left_out = _match_by_map(ours, theirs, key_map or {})
    used_names = set(pairs.values())
    shared_names = ours.keys() & theirs.keys() - pairs.keys() - left_out - used_names
    pairs |= {
        name: name
        for name in ours
        if name in shared_names and _squeezed_shape(ours[name]) == _squeezed_shape(theirs[name])
    }
    open_ours = {n: t for n, t in ours.items() if n not in pairs and n not in left_out and not n.endswith(_COUNTER)}
    used_names = set(pairs.values())
    open_theirs = {n: t for n, t in theirs.items() if n not in used_names and not n.endswith(_COUNTER)}
    guesses: list[str] = []
    if key_map is None:
        guessed = _match_by_shape(open_ours, open_theirs, guesses)
        pairs |= guessed
        open_ours = {n: t for n, t in open_ours.items() if n not in guessed}
        open_theirs = {n: t for n, t in open_theirs.items() if n not in guessed.values()}
    if open_ours or open_theirs:
        raise UserError(_format_unmatched(open_ours, open_theirs, is_guessed=key_map is None))
    modules = {name.rpartition(".")[0]: other.rpartition(".")[0] for name, other in pairs.items()}
    for name in ours:
        module, _, leaf = name.rpartition(".")
        if leaf == _COUNTER and name not in pairs and _join(modules.get(module, ""), leaf) in theirs:
            pairs[name] = _join(modules[module], leaf)
    return KeyMapping(pairs, tuple(guesses))


def load_matched_weights(theirs: nn.Module, ours: Mapping[str, Tensor], pairs: Mapping[str, str]) -> None:
    """Load our weights into their network, in place."""
    state = theirs.state_dict()
    for name, other in pairs.items():
        state[other] = ours[name].detach().reshape(state[other].shape).to(state[other])
    theirs.load_state_dict(state)


def _match_by_map(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], key_map: Mapping[str, str | None]
) -> tuple[dict[str, str], set[str]]:
    """Return the map's name for each of our tensors (the longest key wins), and the tensors that it omits."""
    unknown = [key for key in key_map if key not in ours and not any(name.startswith(f"{key}.") for name in ours)]
    if unknown:
        raise UserError(f"--keys: the model has no tensor or module '{unknown[0]}'{suggest(unknown[0], list(ours))}")
    pairs, left_out = {}, set()
    for name in ours:
        key = next((key for key in _prefixes(name) if key in key_map), None)
        if key is None:
            continue
        target = key_map[key]
        if target is None:
            left_out.add(name)
            continue
        other = target + name[len(key) :]
        if other not in theirs:
            if name.endswith(_COUNTER):
                continue
            raise UserError(
                f"--keys: '{name}' is to be '{other}', which the reference lacks{suggest(other, list(theirs))}"
            )
        if _squeezed_shape(ours[name]) != _squeezed_shape(theirs[other]):
            shapes = f"{tuple(ours[name].shape)} and {tuple(theirs[other].shape)}"
            raise UserError(f"--keys: '{name}' and '{other}' have the shapes {shapes}, which differ")
        pairs[name] = other
    return pairs, left_out


def _match_by_shape(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], guesses: list[str]) -> dict[str, str]:
    """Pair modules with the same tensor names and shapes, in the order of each network."""
    pairs: dict[str, str] = {}
    kinds, other_kinds = _group_by_kind(ours), _group_by_kind(theirs)
    for kind, modules in kinds.items():
        their_modules = other_kinds.get(kind, [])
        if len(their_modules) != len(modules):
            continue
        for index, (module, their_module) in enumerate(zip(modules, their_modules, strict=True)):
            reason = "the only one" if len(modules) == 1 else f"number {index + 1} of {len(modules)}"
            shapes = ", ".join(f"{name} {shape}" for name, shape in kind)
            guesses.append(f"{module or '(model)'} = {their_module or '(model)'}, {reason} with {shapes}")
            pairs |= {_join(module, name): _join(their_module, name) for name, _ in kind}
    return pairs


Kind = tuple[tuple[str, tuple[int, ...]], ...]


def _group_by_kind(tensors: Mapping[str, Tensor]) -> dict[Kind, list[str]]:
    tensors_by_module: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        tensors_by_module.setdefault(module, []).append((leaf, _squeezed_shape(tensor)))
    kinds: dict[Kind, list[str]] = {}
    for module, leaves in tensors_by_module.items():
        kinds.setdefault(tuple(sorted(leaves)), []).append(module)
    return kinds


def _squeezed_shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _format_unmatched(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, is_guessed: bool) -> str:
    sides = [("of the model", ours), ("of the reference", theirs)]
    unmatched = "; ".join(f"{_format_tensors(side)} {side_name}" for side_name, side in sides if side)
    reason = "no name or shape determines" if is_guessed else "the map does not determine"
    return (
        f"--keys: {reason} which tensors correspond: {unmatched}; "
        "give a JSON file of our names and theirs, null for none"
    )


def _format_tensors(tensors: Mapping[str, Tensor]) -> str:
    return join_some([f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()], most=_MAX_SHOWN)


_MAX_AXES = 6


@dataclass(frozen=True)
class TensorLayout:
    """Conversion to another layout: reshape to `first`, permute the axes by `order`, reshape to `last`."""

    first: tuple[int, ...]
    order: tuple[int, ...]
    last: tuple[int, ...]

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.first).permute(self.order).reshape(self.last)

    @property
    def is_plain(self) -> bool:
        """True if no axes are permuted."""
        return self.order == tuple(range(len(self.order)))


def layouts_between(ours: Sequence[int], theirs: Sequence[int]) -> list[TensorLayout]:
    """List the layouts that convert one shape to the other, those that keep the order of axes first.

    Axes of length 1 may be added or removed; neighbouring axes may be merged or split.
    """
    ours, theirs = tuple(ours), tuple(theirs)
    if prod(ours) != prod(theirs):
        return []
    layouts = (
        [TensorLayout(ours, tuple(range(len(ours))), theirs)]
        if _can_merge(ours, theirs) or _can_merge(theirs, ours)
        else []
    )
    for order in _axis_orders(theirs):  # ours, split into their axes in another order
        ordered = tuple(theirs[axis] for axis in order)
        if _can_merge(ordered, ours):
            inverse = tuple(order.index(axis) for axis in range(len(theirs)))
            layouts.append(TensorLayout(ordered, inverse, theirs))
    for order in _axis_orders(ours):  # ours in another order, some of its axes joined
        if _can_merge(tuple(ours[axis] for axis in order), theirs):
            layouts.append(TensorLayout(ours, order, theirs))
    return list(dict.fromkeys(layouts))


def nearest_layout(ours: Tensor, theirs: Tensor) -> TensorLayout | None:
    """Return the layout with the smallest mean distance from `ours` to `theirs`; None if the shapes allow none."""
    candidates = layouts_between(ours.shape, theirs.shape)
    if len(candidates) < 2 or not theirs.is_floating_point():
        return candidates[0] if candidates else None
    wide = theirs.double()
    distances = [float((layout(ours).to(wide) - wide).abs().nan_to_num(torch.inf).mean()) for layout in candidates]
    return candidates[min(range(len(candidates)), key=lambda index: distances[index])]


def _axis_orders(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if len(shape) <= _MAX_AXES:
        yield from permutations(range(len(shape)))


def _can_merge(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    """Return True if merging neighbouring axes of `fine` gives the axes of `coarse`."""
    ends = {1}
    for size in fine:
        ends.add(max(ends) * size)
    return all(end in ends for end in _cumulative_sizes(coarse))


def _cumulative_sizes(shape: tuple[int, ...]) -> list[int]:
    return [prod(shape[: axis + 1]) for axis in range(len(shape))]


_NETWORK = "network"


def build_reference(path: Path) -> nn.Module:
    """Build the module with `build()` of a user's file. Raises UserError if that fails or returns no module."""
    plugin = Plugin(path, option="--against")
    build = getattr(run_file(plugin), "build", None)
    if not callable(build):
        raise UserError(f"--against {path}: defines no function build(); it has to return the reference as a nn.Module")
    try:
        module = build()
    except Exception as error:
        notes = " ".join(str(error).split())
        raise UserError(f"--against {path}: build() fails: {type(error).__name__}: {notes}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"--against {path}: build() returns a {type(module).__name__}; it has to return a nn.Module")
    return module


class ExternalModel(nn.Module):
    """Adapter around their network: takes our inputs by name and returns our outputs under our names."""

    def __init__(self, network: nn.Module, outputs: Mapping[str, torch.Size]) -> None:
        super().__init__()
        self.network = network
        self._outputs = dict(outputs)

    def forward(self, **inputs: Any) -> dict[str, Any]:
        inputs = {name: value for name, value in inputs.items() if value is not None}
        parameters = inspect.signature(self.network.forward).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        is_named = takes_any or all(name in parameters for name in inputs)
        return self._name_outputs(self.network(**inputs) if is_named else self.network(*inputs.values()))

    def _name_outputs(self, outputs: Any) -> dict[str, Any]:
        """Assign their outputs to our names, by name or else in order, and permute them to our layout."""
        tensors = dict(tree_leaves(outputs))
        if not self._outputs.keys() <= tensors.keys():
            tensors = dict(zip(self._outputs, tensors.values(), strict=False))
        missing = sorted(self._outputs.keys() - tensors.keys())
        if missing:
            raise RunError(f"the reference returns {len(tensors)} outputs, none of which can be '{missing[0]}'")
        results: dict[str, Any] = {}
        for name, shape in self._outputs.items():
            layouts = layouts_between(tensors[name].shape, shape)
            results[name] = layouts[0](tensors[name]) if layouts else tensors[name]
        return results


@dataclass(frozen=True)
class Bridge:
    """Callable replacement of our model: their network with our model's parameters, which receive the gradients."""

    model: nn.Module
    foreign: ExternalModel
    pairs: Mapping[str, str]

    @property
    def network(self) -> nn.Module:
        """Network whose layers compute."""
        return self.foreign.network

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        state = self.foreign.state_dict()
        parameters = {
            f"{_NETWORK}.{other}": tensors[name].view(state[f"{_NETWORK}.{other}"].shape)
            for name, other in self.pairs.items()
        }
        outputs: dict[str, Any] = functional_call(self.foreign, parameters, (), inputs)
        return outputs


def prepare_foreign(
    ours: nn.Module, theirs: nn.Module, keys: Mapping[str, str | None] | None, recording: StepRecording
) -> tuple[ExternalModel, KeyMapping]:
    """Load our weights into their network, in float64 and training mode; return it and the mapping of tensors."""
    root = recording.calls[0]
    mapping = match_keys(ours.state_dict(), theirs.state_dict(), keys)
    load_matched_weights(theirs, ours.state_dict(), mapping.pairs)
    outputs = {path: tensor.shape for path, tensor in tree_leaves(root.outputs)}
    return ExternalModel(theirs, outputs).double().train(), mapping


@torch.no_grad()
def translate_recording(
    recording: StepRecording, foreign: ExternalModel, keys: KeyMapping
) -> tuple[StepRecording, list[str]]:
    """Translate a recording to their network: the calls that both have, in their layout, under their paths.

    Code between two aligned calls is judged as one segment. Notes report how many calls could be aligned.
    """
    root = recording.calls[0]
    theirs, note = _record_calls(foreign, root)
    pairs = _align_calls(recording.calls, theirs, keys)
    calls = [replace(root, buffers={})]
    for our_call, their_call in pairs:
        call = _convert_call(our_call, their_call, keys.pairs)
        if call is not None:
            calls.append(call)
    calls[0].buffers = _collect_other_buffers(recording.calls, calls, keys.pairs)
    shapes = {name: p.shape for name, p in foreign.named_parameters()}
    gradients = {
        f"{_NETWORK}.{keys.pairs[name]}": gradient.reshape(shapes[f"{_NETWORK}.{keys.pairs[name]}"])
        for name, gradient in recording.gradients.items()
        if name in keys.pairs
    }
    our_leaves = _innermost_calls(recording.calls)
    notes = [note] if note else []
    notes.append(
        f"{len(calls) - 1} calls of {len(our_leaves)} of ours and {len(_innermost_calls(theirs))} of theirs align"
    )
    return replace(recording, calls=calls, gradients=gradients, is_partial=True), notes


def _record_calls(foreign: ExternalModel, root: ModuleCall) -> tuple[list[ModuleCall], str]:
    """Record the calls of their network on our inputs; if it fails, the calls until then, and a note."""
    args, kwargs = tree_cast(root.inputs, torch.float64)
    note = ""
    try:
        with preserve_buffers(foreign), record(foreign, keep=("inputs", "outputs")) as tape:
            foreign(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the calls before any failure can be compared
        note = f"the reference alone fails: {type(error).__name__}: {' '.join(str(error).split())}"
    return tape.calls, note


def _align_calls(
    ours: Sequence[ModuleCall], theirs: Sequence[ModuleCall], keys: KeyMapping
) -> list[tuple[ModuleCall, ModuleCall]]:
    """Pair the innermost calls of both in order, by equal weights, or by equal classes between these."""
    modules = {name.rpartition(".")[0]: f"{_NETWORK}.{o}".rpartition(".")[0] for name, o in keys.pairs.items()}
    their_modules = set(modules.values())
    first, second = _innermost_calls(ours), _innermost_calls(theirs)
    our_labels = [(modules[c.path], c.call_index) if c.path in modules else c.class_name for c in first]
    their_labels = [(c.path, c.call_index) if c.path in their_modules else c.class_name for c in second]
    matcher = SequenceMatcher(None, our_labels, their_labels, autojunk=False)
    pairs = []
    for block in matcher.get_matching_blocks():
        pairs += list(zip(first[block.a :][: block.size], second[block.b :][: block.size], strict=True))
    return pairs


def _innermost_calls(calls: Sequence[ModuleCall]) -> list[ModuleCall]:
    """Return the calls that contain no other call."""
    parents = {call.parent for call in calls}
    return [call for index, call in enumerate(calls) if index not in parents]


def _convert_call(our_call: ModuleCall, their_call: ModuleCall, buffers: Mapping[str, str]) -> ModuleCall | None:
    """Convert our call to the structure of their call; None if the tensors cannot correspond."""
    input_pairs = _pair_tensors(our_call.inputs, their_call.inputs)
    output_pairs = _pair_tensors(our_call.outputs, their_call.outputs, may_differ=True)
    if input_pairs is None or output_pairs is None:
        return None
    changed = {f"{_NETWORK}.{buffers[name]}": values for name, values in our_call.buffers.items() if name in buffers}
    return replace(
        our_call,
        path=their_call.path,
        call_index=their_call.call_index,
        shown=our_call.name,
        parent=0,
        inputs=_fill_tree(their_call.inputs, input_pairs),
        outputs=_fill_tree(their_call.outputs, output_pairs),
        input_gradients=_convert_gradients(our_call.input_gradients, input_pairs),
        output_gradients=_convert_gradients(our_call.output_gradients, output_pairs),
        buffers=changed,
    )


def _collect_other_buffers(
    ours: Sequence[ModuleCall], aligned: Sequence[ModuleCall], names: Mapping[str, str]
) -> dict[str, Any]:
    """Collect buffers (initial, final) that changed only in calls that are not aligned, by their names."""
    changed: dict[str, tuple[Tensor, Tensor]] = {}
    for call in ours:
        for name, (initial, final) in call.buffers.items():
            if name in names:
                changed[f"{_NETWORK}.{names[name]}"] = (changed.get(f"{_NETWORK}.{names[name]}", (initial,))[0], final)
    aligned_names = {name for call in aligned for name in call.buffers}
    return {name: values for name, values in changed.items() if name not in aligned_names}


@dataclass(frozen=True)
class _Pair:
    """Our tensor at `path`, its path `their_path` in their call, and its conversion to their layout."""

    path: str
    their_path: str
    layout: TensorLayout | None
    tensor: Tensor

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor if self.layout is None else self.layout(tensor)


def _pair_tensors(our_tree: Any, their_tree: Any, *, may_differ: bool = False) -> list[_Pair] | None:
    """Pair the tensors of two trees in order, with their layouts; None if counts or shapes do not match."""
    first, second = list(tree_leaves(our_tree)), list(tree_leaves(their_tree))
    if len(first) != len(second):
        return None
    pairs = []
    for (path, tensor), (their_path, their_tensor) in zip(first, second, strict=True):
        layout = nearest_layout(tensor, their_tensor)
        if layout is None and not (may_differ and tensor.ndim == their_tensor.ndim):
            return None
        pairs.append(_Pair(path, their_path, layout, tensor))
    return pairs


def _fill_tree(nest: Any, pairs: Sequence[_Pair]) -> Any:
    pair_by_path = {pair.their_path: pair for pair in pairs}
    return tree_map(nest, lambda path, _: pair_by_path[path](pair_by_path[path].tensor))


def _convert_gradients(gradients: Mapping[str, Tensor], pairs: Sequence[_Pair]) -> dict[str, Tensor]:
    pair_by_path = {pair.path: pair for pair in pairs}
    return {pair_by_path[path].their_path: pair_by_path[path](gradient) for path, gradient in gradients.items()}
