"""Recorded steps on disk: a folder with `record.json` and `tensors.safetensors`, without executable code."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import sightline.geometry.point_pyramid as levels
from sightline.compare.formats import FORMATS, TF32
from sightline.compare.recording import ModuleCall, StepRecording
from sightline.errors import UserError
from sightline.regular_files import parse_json, read_regular_file
from sightline.runs.run_directory import RunDirectory

__all__ = ["Record", "Writer", "is_record", "read_record", "write_record"]

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
