"""Recording of one training step: inputs, outputs and their gradients of every module call.

A module reads and returns tensors through views of their own (taps), so that the recorded gradient is that of this call
alone, even if other modules read the same tensor. Buffers that a call changes (batch statistics) are recorded before
and after. Tensors are recorded without copies, unless something overwrites one of them.

Recorded steps on disk: a folder with `record.json` and `tensors.safetensors`, without executable code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.compare.formats import FORMATS, TF32, Format, coarser, get_format
from sightline.errors import RunError, UserError
from sightline.geometry import packed as levels
from sightline.module_hooks import module_hooks
from sightline.pytree import tree_map
from sightline.regular_files import parse_json, read_regular_file
from sightline.runs.run_directory import RunDirectory


@dataclass
class ModuleCall:
    """One call of a module: `number` counts the calls of this module from 1, `parent` is the enclosing call.

    `given` is `(args, kwargs)`, `made` the result; `to_given` and `to_made` are the gradients of their tensors, by
    path, from this call alone. `began` and `ended` are ticks of one clock over all calls. `buffers` are the changed
    buffers, before and after. `format` is the coarsest number format inside. `shown` is the name to print if `path`
    belongs to another network's module.
    """

    path: str
    number: int
    class_name: str
    parent: int | None
    given: Any
    format: Format
    made: Any = None
    to_given: dict[str, Tensor] = field(default_factory=dict)
    to_made: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    random_state: Tensor | None = None
    began: int = 0
    ended: int = 0
    shown: str = ""

    @property
    def name(self) -> str:
        """The path, with the number of the call if it is not the first."""
        if self.shown:
            return self.shown
        path = self.path or "(model)"
        return path if self.number == 1 else f"{path} (call {self.number})"


@dataclass
class StepRecording:
    """Recorded training step of one variant: calls in the order of their start, losses, parameter gradients.

    `losses` are the terms and `total`, their weighted sum, computed in `format`; calls without a parent are the model's
    own. `is_partial` marks that calls are missing because another network does not have them. `prepared` are the values
    that the task computed from the batch before the forward pass: counts, and contexts such as which prior belongs to
    which box.
    """

    calls: list[ModuleCall]
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]
    format: Format
    is_partial: bool = False
    prepared: Any = None


class OverwrittenError(RunError):
    """A tensor was overwritten after it was recorded: the step has to be recorded with copies."""


class Recorder:
    """Recorder of module calls by hooks on a model, or only on its modules `hooked`.

    `copies` copies all tensors, for models that overwrite their own. `outside` is the coarsest format outside the
    model: that of the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        base: Format,
        watches_formats: bool,
        copies: bool,
        hooked: Sequence[str] | None = None,
    ) -> None:
        self.calls: list[ModuleCall] = []
        self.outside = base
        self._base, self._watches, self._copies = base, watches_formats, copies
        modules = dict(model.named_modules())
        self._paths = {module: path for path, module in modules.items() if hooked is None or path in hooked}
        self._numbers: dict[nn.Module, int] = {}
        self._stack: list[int] = []
        self._ticks = 0
        self._is_on = False
        self._recorded: list[tuple[Tensor, int]] = []
        self._buffers = {path: (b, b.detach().clone()) for path, b in model.named_buffers()}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls made in this context, and their gradients in a backward pass after it."""
        self._is_on = True
        formats = Formats(self._note_format) if self._watches else contextlib.nullcontext()
        try:
            with module_hooks(self._paths, self._enter, self._leave), formats:
                yield
        finally:
            self._is_on = False

    def assert_whole(self) -> None:
        """Raise OverwrittenError if a tensor was overwritten since it was recorded."""
        if any(tensor._version != version for tensor, version in self._recorded):
            raise OverwrittenError("a tensor was overwritten after it was recorded")

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._is_on:
            return None
        self._numbers[module] = self._numbers.get(module, 0) + 1
        call = ModuleCall(
            self._paths[module],
            self._numbers[module],
            type(module).__name__,
            self._stack[-1] if self._stack else None,
            tree_map((args, kwargs), self._record_tensor),
            self._base,
            random_state=torch.get_rng_state(),
            began=self._tick(),
        )
        self._stack.append(len(self.calls))
        self.calls.append(call)
        return tree_map((args, kwargs), _make_tap(call.to_given))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        if not self._is_on:
            return None
        call = self.calls[self._stack.pop()]
        call.made = tree_map(outputs, self._record_tensor)
        call.ended = self._tick()
        self._note_buffers(call, module)
        return tree_map(outputs, _make_tap(call.to_made))

    def _tick(self) -> int:
        self._ticks += 1
        return self._ticks

    def _record_tensor(self, path: str, tensor: Tensor) -> Tensor:
        detached = tensor.detach()
        if self._copies:
            return detached.clone()
        self._recorded.append((detached, detached._version))
        return detached

    def _note_buffers(self, call: ModuleCall, module: nn.Module) -> None:
        path = self._paths[module]
        for name, _ in module.named_buffers():
            full_name = f"{path}.{name}" if path else name
            buffer, previous = self._buffers[full_name]
            if not torch.equal(buffer, previous):  # torch's batch norm writes without counting a version
                current = buffer.detach().clone()
                call.buffers[full_name] = (previous, current)
                self._buffers[full_name] = (buffer, current)

    def _note_format(self, format_: Format) -> None:
        for index in self._stack:
            self.calls[index].format = coarser(self.calls[index].format, format_)
        if not self._stack:
            self.outside = coarser(self.outside, format_)


def _make_tap(gradients: dict[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """Return a function that replaces a tensor by a view and stores the view's gradient in `gradients`, by path."""

    def tap(path: str, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad or not torch.is_grad_enabled():
            return tensor
        view = tensor.view_as(tensor)
        view.register_hook(lambda gradient: gradients.__setitem__(path, gradient.detach()))
        return view

    return tap


class Formats(TorchDispatchMode):
    """Mode that reports the format of every operator's result, and TF32 for products that may round to it."""

    def __init__(self, report: Callable[[Format], None]) -> None:
        super().__init__()
        self._report = report

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self._report(get_format(result.dtype))
            if result.is_cuda and result.dtype == torch.float32 and _may_be_tf32(func):
                self._report(TF32)
        return result


def _may_be_tf32(func: Any) -> bool:
    name = func.overloadpacket.__name__
    if "conv" in name:
        return bool(torch.backends.cudnn.allow_tf32)
    return name in ("mm", "addmm", "bmm", "baddbmm") and bool(torch.backends.cuda.matmul.allow_tf32)


_DOCUMENT, _TENSORS = "record.json", "tensors.safetensors"
_VERSION = 2
_NESTS = {"Edges": levels.Edges, "Level": levels.PyramidLevel, "Spread": levels.InterpolationWeights}
"""Name in a record -> dataclass that our modules pass on; no other class is created from a record."""
_NAMES = {kind: name for name, kind in _NESTS.items()}
_KEYS = {"neighbours": "near", "downsampling": "down", "interpolation": "up", "fine_points": "finer"}
"""Fields of these dataclasses that have another key in a record."""
_FORMATS = {format_.name: format_ for format_ in (*FORMATS.values(), TF32)}


@dataclass(frozen=True)
class Record:
    """Recorded step with everything needed to repeat it elsewhere: weights, batch and data stages.

    `stages` are (name, fields) in order; the raw samples come first, with an empty name. `trace` are losses over some
    optimiser steps. `about` describes the recorded run and its environment.
    """

    recording: StepRecording
    weights: dict[str, Tensor]
    batch: dict[str, Any]
    stages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    trace: tuple[float, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


def is_record(path: Path) -> bool:
    """Return True if a path is the folder of a record."""
    return (path / _DOCUMENT).is_file()


def write_record(path: Path, record: Record) -> None:
    """Write a record into a folder. Raises UserError if the folder is not empty or a value cannot be stored."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--out {path}: is not an empty folder; give another")
    writer = Writer()
    recording = record.recording
    document = {
        "version": _VERSION,
        "about": record.about,
        "format": recording.format.name,
        "calls": [writer.call(call) for call in recording.calls],
        "losses": writer.nest(recording.losses),
        "gradients": writer.nest(recording.gradients),
        "weights": writer.nest(record.weights),
        "batch": writer.nest(record.batch),
        "stages": [[name, writer.nest(fields)] for name, fields in record.stages],
        "trace": [loss if math.isfinite(loss) else None for loss in record.trace],
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file(writer.tensors, path / _TENSORS)
    RunDirectory(path, is_writer=True).write_text(_DOCUMENT, json.dumps(document, allow_nan=False) + "\n")


def read_record(path: Path) -> Record:
    """Read a record from its folder. Raises UserError if it is damaged or of another version."""
    try:
        document = parse_json(read_regular_file(path / _DOCUMENT))
        tensors = load_file(path / _TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a record: {error}; record the step again") from None
    if not isinstance(document, dict):
        raise UserError(
            f"{path}: is not a record: {_DOCUMENT} holds a {type(document).__name__}; record the step again"
        )
    if document.get("version") != _VERSION:
        raise UserError(
            f"{path}: is a record of version {document.get('version')}, this is {_VERSION}; record it again"
        )
    try:
        return _read(document, tensors)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path}: is not a complete record ({type(error).__name__}: {error}); record it again"
        ) from None


def _read(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Record:
    read = _Reader(tensors)
    recording = StepRecording(
        [read.call(call) for call in document["calls"]],
        read.nest(document["losses"]),
        read.nest(document["gradients"]),
        _FORMATS[document["format"]],
    )
    stages = [(name, read.nest(fields)) for name, fields in document["stages"]]
    weights, batch = read.nest(document["weights"]), read.nest(document["batch"])
    trace = tuple(math.nan if loss is None else float(loss) for loss in document["trace"])
    return Record(recording, weights, batch, stages, trace, document["about"])


class Writer:
    """Encoder of trees as JSON; `tensors` has each tensor once, under its number."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._numbers: dict[tuple[Any, ...], str] = {}
        self._alive: list[Tensor] = []

    def call(self, call: ModuleCall) -> dict[str, Any]:
        plain = {"path": call.path, "number": call.number, "class_name": call.class_name, "parent": call.parent}
        plain |= {"format": call.format.name, "began": call.began, "ended": call.ended}
        nests = {key: self.nest(getattr(call, key)) for key in ("given", "made", "to_given", "to_made", "buffers")}
        return plain | nests

    def nest(self, value: Any) -> Any:
        """Encode a tree: tensors as {"tensor": number}; dicts, lists, tuples and known dataclasses by their kind."""
        if isinstance(value, Tensor):
            return {"tensor": self._register(value)}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.nest(item) for key, item in value.items()}}
        if isinstance(value, Mapping) and all(isinstance(key, bool | int | float | str | None) for key in value):
            return {"pairs": [[key, self.nest(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return {"list" if isinstance(value, list) else "tuple": [self.nest(item) for item in value]}
        if type(value) in _NAMES:
            names = [field_.name for field_ in dataclasses.fields(value)]
            fields = {_KEYS.get(name, name): self.nest(getattr(value, name)) for name in names}
            return {"class": _NAMES[type(value)], "fields": fields}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise UserError(f"a {type(value).__name__} is an input or output of a module, and cannot be stored in a record")

    def _register(self, tensor: Tensor) -> str:
        identity = (
            tensor.untyped_storage()._cdata,
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        if identity not in self._numbers:
            self._numbers[identity] = str(len(self._numbers))
            self._alive.append(tensor)  # else another tensor could get its storage's number
            self.tensors[self._numbers[identity]] = tensor.detach().cpu().contiguous().clone()
        return self._numbers[identity]


class _Reader:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def call(self, plain: Mapping[str, Any]) -> ModuleCall:
        trees = {key: self.nest(plain[key]) for key in ("given", "made", "to_given", "to_made", "buffers")}
        attributes = {key: plain[key] for key in ("path", "number", "class_name", "parent", "began", "ended")}
        return ModuleCall(**attributes, **trees, format=_FORMATS[plain["format"]])

    def nest(self, value: Any) -> Any:
        ((kind, content),) = list(value.items())[:1]
        if kind == "tensor":
            return self._tensors[content]
        if kind == "dict":
            return {key: self.nest(item) for key, item in content.items()}
        if kind == "pairs":
            return {key: self.nest(item) for key, item in content}
        if kind in ("list", "tuple"):
            items: Sequence[Any] = [self.nest(item) for item in content]
            return items if kind == "list" else tuple(items)
        if kind == "class":
            names = {key: name for name, key in _KEYS.items()}
            return _NESTS[content](**{names.get(key, key): self.nest(item) for key, item in value["fields"].items()})
        return content
