"""A recorded step on disk: a folder with `record.json` and `tensors.safetensors`; no program is in either."""

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
"""Name in a record -> dataclass that modules of ours hand on; no other class is made from a record."""
_NAMES = {kind: name for name, kind in _NESTS.items()}
_KEYS = {"neighbours": "near", "downsampling": "down", "interpolation": "up", "fine_points": "finer"}
"""Fields of these dataclasses that a record calls otherwise."""
_FORMATS = {each.name: each for each in (*FORMATS.values(), TF32)}


@dataclass(frozen=True)
class Record:
    """A step, and all that it takes to run it elsewhere: weights, the batch, and the batch at every stage of the data.

    `stages` are (name, fields) in order, the raw samples first, under no name. `trace` are losses over some optimiser
    steps. `about` names what was recorded, and with what.
    """

    recording: StepRecording
    weights: dict[str, Tensor]
    batch: dict[str, Any]
    stages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    trace: tuple[float, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


def is_record(path: Path) -> bool:
    """Whether a path is the folder of a record."""
    return (path / _DOCUMENT).is_file()


def write_record(path: Path, record: Record) -> None:
    """Write a record into a folder. Raises UserError where something is already there, or cannot be kept."""
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
    """A record from its folder. Raises UserError for one that is damaged or of another version."""
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
        raise UserError(f"{path}: is not a whole record ({type(error).__name__}: {error}); record it again") from None


def _read(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Record:
    read = _Reader(tensors)
    recording = StepRecording(
        [read.call(each) for each in document["calls"]],
        read.nest(document["losses"]),
        read.nest(document["gradients"]),
        _FORMATS[document["format"]],
    )
    stages = [(name, read.nest(fields)) for name, fields in document["stages"]]
    weights, batch = read.nest(document["weights"]), read.nest(document["batch"])
    trace = tuple(math.nan if loss is None else float(loss) for loss in document["trace"])
    return Record(recording, weights, batch, stages, trace, document["about"])


class Writer:
    """Nests as JSON; `tensors` holds each tensor once, under its number."""

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
        """Tensors as {"tensor": number}; dicts, lists, tuples and known dataclasses as what they are."""
        if isinstance(value, Tensor):
            return {"tensor": self._number(value)}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.nest(item) for key, item in value.items()}}
        if isinstance(value, Mapping) and all(isinstance(key, bool | int | float | str | None) for key in value):
            return {"pairs": [[key, self.nest(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return {"list" if isinstance(value, list) else "tuple": [self.nest(item) for item in value]}
        if type(value) in _NAMES:
            names = [each.name for each in dataclasses.fields(value)]
            fields = {_KEYS.get(name, name): self.nest(getattr(value, name)) for name in names}
            return {"class": _NAMES[type(value)], "fields": fields}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise UserError(f"a {type(value).__name__} goes into or out of a module, and cannot be kept in a record")

    def _number(self, tensor: Tensor) -> str:
        place = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in self._numbers:
            self._numbers[place] = str(len(self._numbers))
            self._alive.append(tensor)  # or its storage's number could be another tensor's
            self.tensors[self._numbers[place]] = tensor.detach().cpu().contiguous().clone()
        return self._numbers[place]


class _Reader:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def call(self, plain: Mapping[str, Any]) -> ModuleCall:
        given = {key: self.nest(plain[key]) for key in ("given", "made", "to_given", "to_made", "buffers")}
        kept = {key: plain[key] for key in ("path", "number", "class_name", "parent", "began", "ended")}
        return ModuleCall(**kept, **given, format=_FORMATS[plain["format"]])

    def nest(self, value: Any) -> Any:
        ((kind, held),) = list(value.items())[:1]
        if kind == "tensor":
            return self._tensors[held]
        if kind == "dict":
            return {key: self.nest(item) for key, item in held.items()}
        if kind == "pairs":
            return {key: self.nest(item) for key, item in held}
        if kind in ("list", "tuple"):
            items: Sequence[Any] = [self.nest(item) for item in held]
            return items if kind == "list" else tuple(items)
        if kind == "class":
            names = {key: name for name, key in _KEYS.items()}
            return _NESTS[held](**{names.get(key, key): self.nest(item) for key, item in value["fields"].items()})
        return held
