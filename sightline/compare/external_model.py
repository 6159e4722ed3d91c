"""External reference networks: their layers aligned with ours, one by one or in segments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sightline.compare.formats import FORMATS
from sightline.compare.keys import KeyMapping, load_matched_weights, match_keys
from sightline.compare.layouts import TensorLayout, layouts_between, nearest_layout
from sightline.compare.recording import ModuleCall, Recorder, StepRecording
from sightline.errors import RunError, UserError
from sightline.plugins import Plugin, run_file
from sightline.pytree import tree_leaves, tree_map

__all__ = ["ExternalModel", "build_reference", "has_same_structure", "translate_recording"]

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


def has_same_structure(ours: nn.Module, theirs: nn.Module) -> bool:
    """Return True if a reference is our own model, perhaps modified: equal class name, module names and shapes."""
    same_names = [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (ours, theirs)]
    return type(ours).__qualname__ == type(theirs).__qualname__ and same_names and shapes[0] == shapes[1]


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
    outputs = {path: tensor.shape for path, tensor in tree_leaves(root.made)}
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
    initial = {name: buffer.clone() for name, buffer in foreign.named_buffers()}
    recorder = Recorder(foreign, base=FORMATS[torch.float64], watches_formats=False, copies=False)
    args, kwargs = tree_map(root.given, lambda _, t: t.double() if t.is_floating_point() else t)
    note = ""
    try:
        with recorder.recording():
            foreign(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the calls before any failure can be compared
        note = f"the reference alone fails: {type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        for name, buffer in foreign.named_buffers():
            buffer.copy_(initial[name])
    return recorder.calls, note


def _align_calls(
    ours: Sequence[ModuleCall], theirs: Sequence[ModuleCall], keys: KeyMapping
) -> list[tuple[ModuleCall, ModuleCall]]:
    """Pair the innermost calls of both in order, by equal weights, or by equal classes between these."""
    modules = {name.rpartition(".")[0]: f"{_NETWORK}.{o}".rpartition(".")[0] for name, o in keys.pairs.items()}
    their_modules = set(modules.values())
    first, second = _innermost_calls(ours), _innermost_calls(theirs)
    our_labels = [(modules[c.path], c.number) if c.path in modules else c.class_name for c in first]
    their_labels = [(c.path, c.number) if c.path in their_modules else c.class_name for c in second]
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
    input_pairs = _pair_tensors(our_call.given, their_call.given)
    output_pairs = _pair_tensors(our_call.made, their_call.made, may_differ=True)
    if input_pairs is None or output_pairs is None:
        return None
    changed = {f"{_NETWORK}.{buffers[name]}": values for name, values in our_call.buffers.items() if name in buffers}
    return replace(
        our_call,
        path=their_call.path,
        number=their_call.number,
        shown=our_call.name,
        parent=0,
        given=_fill_tree(their_call.given, input_pairs),
        made=_fill_tree(their_call.made, output_pairs),
        to_given=_convert_gradients(our_call.to_given, input_pairs),
        to_made=_convert_gradients(our_call.to_made, output_pairs),
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
