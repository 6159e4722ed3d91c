"""A reference of others: its layers beside ours, one by one where they can be aligned, else by stretches."""

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
    """What `build()` of a user's file gives. Raises UserError where there is none, or it gives no module."""
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
    """Whether a reference is our own model, perhaps with something changed: the same class, modules and tensors."""
    same_names = [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (ours, theirs)]
    return type(ours).__qualname__ == type(theirs).__qualname__ and same_names and shapes[0] == shapes[1]


class ExternalModel(nn.Module):
    """Their network in our clothes: called with our inputs by name, giving our outputs under our names."""

    def __init__(self, network: nn.Module, outputs: Mapping[str, torch.Size]) -> None:
        super().__init__()
        self.network = network
        self._outputs = dict(outputs)

    def forward(self, **given: Any) -> dict[str, Any]:
        given = {name: value for name, value in given.items() if value is not None}
        parameters = inspect.signature(self.network.forward).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        is_named = takes_any or all(name in parameters for name in given)
        return self._named(self.network(**given) if is_named else self.network(*given.values()))

    def _named(self, made: Any) -> dict[str, Any]:
        """Their results under our names: by name, else in order; in our layout where it is another."""
        found = dict(tree_leaves(made))
        if not self._outputs.keys() <= found.keys():
            found = dict(zip(self._outputs, found.values(), strict=False))
        missing = sorted(self._outputs.keys() - found.keys())
        if missing:
            raise RunError(f"the reference gives {len(found)} results, but none that could be '{missing[0]}'")
        named: dict[str, Any] = {}
        for name, shape in self._outputs.items():
            ways = layouts_between(found[name].shape, shape)
            named[name] = ways[0](found[name]) if ways else found[name]
        return named


@dataclass(frozen=True)
class Bridge:
    """Called for our model: their network, computing with our model's parameters, so that gradients come to these."""

    model: nn.Module
    foreign: ExternalModel
    pairs: Mapping[str, str]

    @property
    def network(self) -> nn.Module:
        """Where the layers are that compute."""
        return self.foreign.network

    def __call__(self, **given: Any) -> dict[str, Any]:
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        state = self.foreign.state_dict()
        lent = {
            f"{_NETWORK}.{other}": own[name].view(state[f"{_NETWORK}.{other}"].shape)
            for name, other in self.pairs.items()
        }
        made: dict[str, Any] = functional_call(self.foreign, lent, (), given)
        return made


def prepare_foreign(
    ours: nn.Module, theirs: nn.Module, keys: Mapping[str, str | None] | None, recording: StepRecording
) -> tuple[ExternalModel, KeyMapping]:
    """Their network with our weights, in float64 and training mode, and which tensor is which."""
    root = recording.calls[0]
    found = match_keys(ours.state_dict(), theirs.state_dict(), keys)
    load_matched_weights(theirs, ours.state_dict(), found.pairs)
    outputs = {place: tensor.shape for place, tensor in tree_leaves(root.made)}
    return ExternalModel(theirs, outputs).double().train(), found


@torch.no_grad()
def translate_recording(
    recording: StepRecording, foreign: ExternalModel, keys: KeyMapping
) -> tuple[StepRecording, list[str]]:
    """A recording in the terms of their network: the calls that both have, in their layout, under their paths.

    What neither has alone lies between these and is judged as a stretch. Notes list what could not be aligned.
    """
    root = recording.calls[0]
    theirs, note = _calls_of(foreign, root)
    pairs = _aligned(recording.calls, theirs, keys)
    calls = [replace(root, buffers={})]
    for own, other in pairs:
        call = _as_theirs(own, other, keys.pairs)
        if call is not None:
            calls.append(call)
    calls[0].buffers = _left_over(recording.calls, calls, keys.pairs)
    shapes = {name: p.shape for name, p in foreign.named_parameters()}
    gradients = {
        f"{_NETWORK}.{keys.pairs[name]}": gradient.reshape(shapes[f"{_NETWORK}.{keys.pairs[name]}"])
        for name, gradient in recording.gradients.items()
        if name in keys.pairs
    }
    own_leaves = _innermost(recording.calls)
    notes = [note] if note else []
    notes.append(f"{len(calls) - 1} calls of {len(own_leaves)} of ours and {len(_innermost(theirs))} of theirs align")
    return replace(recording, calls=calls, gradients=gradients, is_partial=True), notes


def _calls_of(foreign: ExternalModel, root: ModuleCall) -> tuple[list[ModuleCall], str]:
    """The calls of a run of their network alone on our inputs; where it fails, those until then, and a note."""
    before = {name: buffer.clone() for name, buffer in foreign.named_buffers()}
    recorder = Recorder(foreign, base=FORMATS[torch.float64], watches_formats=False, copies=False)
    args, kwargs = tree_map(root.given, lambda _, t: t.double() if t.is_floating_point() else t)
    note = ""
    try:
        with recorder.recording():
            foreign(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever it fails of, what ran until then can be compared
        note = f"the reference alone fails: {type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        for name, buffer in foreign.named_buffers():
            buffer.copy_(before[name])
    return recorder.calls, note


def _aligned(
    ours: Sequence[ModuleCall], theirs: Sequence[ModuleCall], keys: KeyMapping
) -> list[tuple[ModuleCall, ModuleCall]]:
    """Innermost calls of both, in order: those with the same weights, and between them those of the same class."""
    modules = {name.rpartition(".")[0]: f"{_NETWORK}.{o}".rpartition(".")[0] for name, o in keys.pairs.items()}
    known = set(modules.values())
    first, second = _innermost(ours), _innermost(theirs)
    words = [(modules[c.path], c.number) if c.path in modules else c.class_name for c in first]
    others = [(c.path, c.number) if c.path in known else c.class_name for c in second]
    matcher = SequenceMatcher(None, words, others, autojunk=False)
    pairs = []
    for block in matcher.get_matching_blocks():
        pairs += list(zip(first[block.a :][: block.size], second[block.b :][: block.size], strict=True))
    return pairs


def _innermost(calls: Sequence[ModuleCall]) -> list[ModuleCall]:
    """The calls with none inside."""
    around = {call.parent for call in calls}
    return [call for index, call in enumerate(calls) if index not in around]


def _as_theirs(own: ModuleCall, other: ModuleCall, buffers: Mapping[str, str]) -> ModuleCall | None:
    """Our call with its tensors where their call has them; None where these cannot be the same tensors."""
    given = _paired(own.given, other.given)
    made = _paired(own.made, other.made, may_differ=True)
    if given is None or made is None:
        return None
    changed = {f"{_NETWORK}.{buffers[name]}": values for name, values in own.buffers.items() if name in buffers}
    return replace(
        own,
        path=other.path,
        number=other.number,
        shown=own.name,
        parent=0,
        given=_filled(other.given, given),
        made=_filled(other.made, made),
        to_given=_renamed(own.to_given, given),
        to_made=_renamed(own.to_made, made),
        buffers=changed,
    )


def _left_over(ours: Sequence[ModuleCall], aligned: Sequence[ModuleCall], names: Mapping[str, str]) -> dict[str, Any]:
    """Buffers that changed in calls that are not aligned: what the whole network did to them."""
    changed: dict[str, tuple[Tensor, Tensor]] = {}
    for call in ours:
        for name, (before, after) in call.buffers.items():
            if name in names:
                changed[f"{_NETWORK}.{names[name]}"] = (changed.get(f"{_NETWORK}.{names[name]}", (before,))[0], after)
    known = {name for call in aligned for name in call.buffers}
    return {name: both for name, both in changed.items() if name not in known}


@dataclass(frozen=True)
class _Pair:
    """Our tensor at `place`, its place in their call, and how it comes into their layout."""

    place: str
    other: str
    layout: TensorLayout | None
    tensor: Tensor

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor if self.layout is None else self.layout(tensor)


def _paired(own: Any, other: Any, *, may_differ: bool = False) -> list[_Pair] | None:
    """Tensors in order, each in their layout; None where there are more on one side or shapes forbid it."""
    first, second = list(tree_leaves(own)), list(tree_leaves(other))
    if len(first) != len(second):
        return None
    pairs = []
    for (place, tensor), (there, wanted) in zip(first, second, strict=True):
        layout = nearest_layout(tensor, wanted)
        if layout is None and not (may_differ and tensor.ndim == wanted.ndim):
            return None
        pairs.append(_Pair(place, there, layout, tensor))
    return pairs


def _filled(nest: Any, pairs: Sequence[_Pair]) -> Any:
    by_place = {pair.other: pair for pair in pairs}
    return tree_map(nest, lambda place, _: by_place[place](by_place[place].tensor))


def _renamed(gradients: Mapping[str, Tensor], pairs: Sequence[_Pair]) -> dict[str, Tensor]:
    by_place = {pair.place: pair for pair in pairs}
    return {by_place[place].other: by_place[place](gradient) for place, gradient in gradients.items()}
