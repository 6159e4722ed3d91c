"""Files of one checkpoint: synced to disk, every byte verified before use, no pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sightline.contract.errors import CheckpointError, UserError
from sightline.contract.regular_files import MAX_BYTES, check_regular_file, parse_json, read_regular_file
from sightline.store.files.atomic_write import create_synced, sync_folder

FORMAT_VERSION = 1

_TENSORS = {part: f"{part}.safetensors" for part in ("model", "optimizer", "ema", "losses", "losses_ema")}
_STATE, _MANIFEST = "state.json", "manifest.json"
_REQUIRED = frozenset({_TENSORS["model"], _STATE})
_ALLOWED = _REQUIRED | {*_TENSORS.values()}
OWN_FILES = _ALLOWED | {_MANIFEST}
"""Names of the files of a checkpoint; any other file in its folder is the user's."""
_MAX_MANIFEST_BYTES = 1 << 16
_MAX_HEADER_BYTES = 100_000_000
"""Limit of the library that reads these files."""
_MAX_TENSORS = 1 << 16
_DATA_END = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d{1,19}\s*,\s*(\d{1,19})\s*\]')
"""Entry of a tensor in the header of its file, with the end of its bytes."""
_STEP = re.compile(r"step_(\d{8,})(\.replaced)?", re.ASCII)
_NON_FINITE = "non_finite"


class OtherFormatError(UserError):
    """Checkpoint of another format, which may be sound: never taken for damage, set aside or replaced."""


@dataclass(frozen=True)
class Snapshot:
    """Content of a checkpoint.

    `model` is a state dict (parameters and buffers, names without `module.` or `_orig_mod.`); `optimizer` is keyed
    `<parameter name>/<slot>`; `losses` and their average `losses_ema`, keyed
    `<loss>.<parameter>`, are there where losses learn; `state` holds plain values (numbers, text, lists, mappings with
    text keys): tuples come back as lists, everything else as it was, NaN and infinities included.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]
    losses: dict[str, Tensor] | None = None
    losses_ema: dict[str, Tensor] | None = None

    @property
    def evaluation_weights(self) -> dict[str, Tensor]:
        """The weights to evaluate: the EMA if there is one."""
        return self.model if self.ema is None else self.ema

    @property
    def evaluated_losses(self) -> dict[str, Tensor]:
        """The parameters of losses to evaluate: their EMA, if any; empty without losses that have parameters."""
        return self.losses_ema or self.losses or {}


def write_snapshot(folder: Path, snapshot: Snapshot, *, best_step: int | None) -> None:
    """Write a checkpoint into a new folder, the manifest last, and sync it to disk."""
    folder.mkdir()
    files = {}
    for name, data in _render_files(snapshot, best_step=best_step):
        _write(folder / name, data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _write(folder / _MANIFEST, _render_manifest({"format_version": FORMAT_VERSION, "files": files}))
    sync_folder(folder)


def _write(path: Path, data: bytes) -> None:
    with create_synced(path) as file:
        file.write(data)


def is_sound(folder: Path) -> bool:
    """Return True if a checkpoint is read whole. Raises OtherFormatError for one of another format."""
    try:
        read_snapshot(folder)
    except CheckpointError:
        return False
    return True


def _render_files(snapshot: Snapshot, *, best_step: int | None) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a checkpoint, so that only one of them is in memory at a time."""
    tied = {}
    for part, name in _TENSORS.items():
        tensors = getattr(snapshot, part)
        if tensors is not None:
            stored, tied[part] = _untie(tensors, part)
            yield name, safetensors.torch.save(stored)
    document = {
        "format_version": FORMAT_VERSION,
        "step": snapshot.step,
        "best_step": best_step,
        "tied": tied,
        "state": _to_plain(snapshot.state, "state"),
    }
    yield _STATE, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def _untie(tensors: Mapping[str, Tensor], part: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copy distinct tensors to the CPU, and map every further name of the same memory to its first name."""
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    holders: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        assert isinstance(tensor, Tensor), f"{part}: '{name}' is a {type(tensor).__name__}, not a tensor"
        assert "_orig_mod" not in name.split("."), f"{part}: '{name}' is named after its compiled wrapper"
        memory_key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and memory_key in holders:
            tied[name] = holders[memory_key]
            continue
        holders[memory_key] = name
        stored[name] = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    assert len(stored) <= _MAX_TENSORS, f"{part}: {len(stored):,} tensors, a checkpoint holds {_MAX_TENSORS:,}"
    return stored, tied


def _to_plain(value: object, where: str) -> object:
    """Convert a value to exact JSON; a value that cannot be converted is a programming error."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_NON_FINITE: str(float(value))}
    if isinstance(value, list | tuple):
        return [_to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    assert isinstance(value, Mapping), f"{where} is a {type(value).__name__}, which a checkpoint's state cannot hold"
    assert all(isinstance(key, str) for key in value), f"{where}: keys must be text"
    assert set(value) != {_NON_FINITE}, f"{where}: the key '{_NON_FINITE}' is taken"
    return {key: _to_plain(item, f"{where}.{key}") for key, item in value.items()}


def _render_manifest(entries: Mapping[str, object]) -> bytes:
    """Render a manifest: the entries, closed by the SHA-256 of the text without that last entry."""
    digest = hashlib.sha256(json.dumps(entries, indent=1).encode()).hexdigest()
    return (json.dumps({**entries, "sha256": digest}, indent=1) + "\n").encode()


def parse_step(folder: Path) -> int | None:
    """Parse the step of a checkpoint folder's name; None for any other name."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def read_snapshot(folder: Path) -> Snapshot:
    """Read the snapshot in a folder, verified first. Raises CheckpointError, naming the file."""
    files = _read_verified(folder)
    document = _read_state(folder, files)
    parts = {
        part: _retie(_parse_tensors(folder / name, files.pop(name)), document["tied"].get(part, {}), folder / _STATE)
        for part, name in _TENSORS.items()
        if name in files
    }
    return Snapshot(
        step=document["step"],
        model=parts["model"],
        optimizer=parts.get("optimizer", {}),
        ema=parts.get("ema"),
        state=document["state"],
        losses=parts.get("losses"),
        losses_ema=parts.get("losses_ema"),
    )


def read_steps(folder: Path) -> tuple[int, int | None]:
    """Read the step of a checkpoint folder, verified, and the best step at that time."""
    document = _read_state(folder, _read_verified(folder))
    return document["step"], document["best_step"]


def _read_verified(folder: Path) -> dict[str, bytes]:
    """Read the bytes of every file but the manifest, and verify them by it."""
    listed = _read_manifest(folder)
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    for name in sorted(listed.keys() - present):
        raise CheckpointError(f"{folder / name}: is missing")
    for name in sorted(present & _ALLOWED - listed.keys()):
        raise CheckpointError(f"{folder / name}: is not part of this checkpoint; move it elsewhere")
    files = {}
    for name, (size, digest) in listed.items():
        files[name] = _read_bytes(folder / name, size)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise CheckpointError(f"{folder / name}: damaged: its SHA-256 is not the one that was saved")
    return files


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Read size and SHA-256 of each file from a checkpoint's manifest, verified first."""
    path = folder / _MANIFEST
    data = _read_bytes(path, None)
    entries = _parse_json(path, data)
    digest = entries.pop("sha256", None)
    if digest is None or data != _render_manifest(entries):
        raise CheckpointError(f"{path}: damaged: its SHA-256 is not the one that was saved")
    _assert_readable_version(path, entries)
    files = entries.get("files")
    if not isinstance(files, dict) or entries.keys() != {"format_version", "files"}:
        raise CheckpointError(f"{path}: is not the manifest of a checkpoint")
    for name in sorted(files.keys() ^ _REQUIRED):
        if name not in _ALLOWED or name in _REQUIRED:
            raise CheckpointError(f"{path}: lists no '{name}'" if name in _REQUIRED else f"{path}: lists {name!r}")
    return {name: _parse_entry(path, name, entry) for name, entry in files.items()}


def _parse_entry(path: Path, name: str, entry: object) -> tuple[int, str]:
    if isinstance(entry, dict) and entry.keys() == {"size", "sha256"}:
        size, digest = entry["size"], entry["sha256"]
        if type(size) is int and size >= 0 and isinstance(digest, str):
            return size, digest
    raise CheckpointError(f"{path}: the entry of '{name}' is not a size and a SHA-256")


def _read_bytes(path: Path, size: int | None) -> bytes:
    """Read a regular file of exactly `size` bytes (a manifest's, if None); links, pipes and folders are refused."""
    try:
        num_bytes = check_regular_file(path, allow_link=False)
        if size is not None and num_bytes != size:
            raise CheckpointError(f"{path}: damaged: {num_bytes} bytes, {size} were saved")
        if size is None and num_bytes > _MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{path}: {num_bytes} bytes, too large for a manifest")
        if path.suffix == ".safetensors":
            _assert_stated_size(path, num_bytes)
        return read_regular_file(path, max_bytes=max(num_bytes, MAX_BYTES), allow_link=False)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _assert_stated_size(path: Path, num_bytes: int) -> None:
    """Raise CheckpointError unless the header of a tensor file states its size, and no absurd number of tensors.

    Only the header is read: a sparse file would fill the memory, and many empty tensors take seconds.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= min(num_bytes, _MAX_HEADER_BYTES) else b""
    ends = [int(end) for end in _DATA_END.findall(header)]
    if len(ends) > _MAX_TENSORS:
        raise CheckpointError(f"{path}: holds {len(ends):,} tensors, a checkpoint at most {_MAX_TENSORS:,}")
    stated = 8 + length + max(ends, default=0)
    if stated != num_bytes:
        raise CheckpointError(f"{path}: damaged: {num_bytes:,} bytes, its header states {stated:,}")


def _read_state(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    path = folder / _STATE
    document = _parse_json(path, files[_STATE])
    _assert_readable_version(path, document)
    kinds = {"format_version": int, "step": int, "best_step": int | None, "tied": dict, "state": dict}
    for key in sorted(document.keys() ^ kinds.keys()):
        raise CheckpointError(f"{path}: {'unknown key' if key in document else 'has no'} {key!r}")
    for key, kind in kinds.items():
        if not isinstance(document[key], kind) or isinstance(document[key], bool):
            raise CheckpointError(f"{path}: '{key}' is a {type(document[key]).__name__}")
    if document["step"] < 0 or parse_step(folder) not in (None, document["step"]):
        raise CheckpointError(f"{path}: is of step {document['step']}, but the folder is called {folder.name}")
    return document


def _assert_readable_version(path: Path, document: Mapping[str, Any]) -> None:
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise OtherFormatError(
            f"{path}: has the format {version!r:.20}, this sightline reads {FORMAT_VERSION}; use the version that "
            "wrote it, or move this checkpoint out of the run"
        )


def _parse_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        document = parse_json(data.decode(), object_pairs_hook=_as_mapping, parse_constant=_refuse_constant)
        if not isinstance(document, dict):
            raise ValueError("holds no mapping")
        return document
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {_format_one_line(error)}") from error


def _as_mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any] | float:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key is given twice")
    if mapping.keys() != {_NON_FINITE}:
        return mapping
    if mapping[_NON_FINITE] not in ("nan", "inf", "-inf"):
        raise ValueError(f"'{_NON_FINITE}' holds neither nan, inf nor -inf")
    return float(mapping[_NON_FINITE])


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


def _format_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _parse_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: is not a safetensors file that this version reads: {_format_one_line(error)}"
        ) from error


def _retie(tensors: dict[str, Tensor], tied: object, path: Path) -> dict[str, Tensor]:
    """Restore every further name of a shared tensor as the same tensor."""
    if not isinstance(tied, dict):
        raise CheckpointError(f"{path}: 'tied' does not hold mappings")
    for name, holder in tied.items():
        if not isinstance(holder, str) or holder not in tensors or name in tensors:
            raise CheckpointError(f"{path}: {name!r} is tied to {holder!r}, which the tensors do not allow")
    return tensors | {name: tensors[holder] for name, holder in tied.items()}
