"""Recording of one training step: inputs, outputs and their gradients of every module call.

Buffers that a call changes (batch statistics) are recorded before and after. Tensors are recorded without copies,
unless something overwrites one of them.

Recorded steps on disk: a folder with `record.json` and `tensors.safetensors`, without executable code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightline.contract.errors import RunError, UserError
from sightline.contract.pytree import join_path
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.instrument import ModuleCall, Tape, record
from sightline.instrument.formats import FORMATS, TF32, Format, coarser, result_format
from sightline.layers import pyramid as levels
from sightline.runs.run_directory import RunDirectory
from sightline.store.files.atomic_write import disk_failure


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
    """Recorder of the calls of a model's modules, or only of its modules `hooked`.

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
        self.outside = base
        self._base, self._watches, self._copies = base, watches_formats, copies
        self._tape = Tape()
        self._modules = {path: m for path, m in model.named_modules() if hooked is None or path in hooked}
        self._recorded: list[tuple[Tensor, int]] = []
        named = model.named_buffers(remove_duplicate=False)  # layers may share one
        self._buffers = {path: buffer.detach().clone() for path, buffer in named}

    @property
    def calls(self) -> list[ModuleCall]:
        return self._tape.calls

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls made in this context, and their gradients in a backward pass after it."""
        with record(
            self._modules,
            keep=("inputs", "outputs", "gradients"),
            each=self._record_tensor,
            enter=self._note_state,
            leave=self._note_buffers,
            operators=self._note_format if self._watches else None,
        ) as self._tape:
            yield

    def assert_whole(self) -> None:
        """Raise OverwrittenError if a tensor was overwritten since it was recorded."""
        if any(tensor._version != version for tensor, version in self._recorded):
            raise OverwrittenError("a tensor was overwritten after it was recorded")

    def _record_tensor(self, tensor: Tensor) -> Tensor:
        detached = tensor.detach()
        if self._copies:
            return detached.clone()
        self._recorded.append((detached, detached._version))
        return detached

    def _note_state(self, call: ModuleCall, *_: Any) -> None:
        of_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
        call.format, call.random_state = self._base, (torch.get_rng_state(), *of_gpu)

    def _note_buffers(self, call: ModuleCall, module: nn.Module, *_: Any) -> None:
        for name, buffer in module.named_buffers():
            full_name = join_path(call.path, name)
            previous = self._buffers.get(full_name)  # None for a table that a layer makes at its first call
            if previous is not None and not torch.equal(buffer, previous):  # batch norm writes without counting
                current = buffer.detach().clone()
                call.buffers[full_name] = (previous, current)
                self._buffers[full_name] = current

    def _note_format(self, innermost: ModuleCall | None, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        format_ = result_format(operator, result)
        if format_ is None:
            return
        for index in self._tape.running:
            self.calls[index].format = coarser(self.calls[index].format, format_)
        if innermost is None:
            self.outside = coarser(self.outside, format_)


_DOCUMENT, _TENSORS = "record.json", "tensors.safetensors"
_VERSION = 2
_NESTS = {"Edges": levels.Edges, "Level": levels.PyramidLevel, "Spread": levels.InterpolationWeights}
"""Name in a record -> dataclass that our modules pass on; no other class is created from a record."""
_NAMES = {kind: name for name, kind in _NESTS.items()}
_KEYS = {"neighbours": "near", "downsampling": "down", "interpolation": "up", "fine_points": "finer"}
"""Fields of these dataclasses that have another key in a record."""
_TREE_KEYS = {
    "inputs": "given",
    "outputs": "made",
    "input_gradients": "to_given",
    "output_gradients": "to_made",
    "buffers": "buffers",
}
"""Fields of a call that are trees, and their keys in a record."""
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
    write_tensors(path / _TENSORS, writer.tensors)
    RunDirectory(path, is_writer=True).write_text(_DOCUMENT, json.dumps(document, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors into a file. Raises RunError, and leaves no file, if the disk refuses it."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(error))
        refusal = OSError(str(error)) if number is None else OSError(int(number[1]), os.strerror(int(number[1])))
        raise disk_failure(refusal, path) from error


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
        plain = {"path": call.path, "number": call.call_index + 1, "class_name": call.class_name, "parent": call.parent}
        plain |= {"format": call.format.name, "began": call.began, "ended": call.ended}
        return plain | {key: self.nest(getattr(call, name)) for name, key in _TREE_KEYS.items()}

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
        trees = {name: self.nest(plain[key]) for name, key in _TREE_KEYS.items()}
        attributes = {key: plain[key] for key in ("path", "class_name", "parent", "began", "ended")}
        return ModuleCall(call_index=plain["number"] - 1, **attributes, **trees, format=_FORMATS[plain["format"]])

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
