"""Packed quantised model: one small file (`.slq`), and its exact size before it is written.

`SLQ1`, the length of the header (32 bits), the header (canonical JSON), the tensors in order, and the CRC-32
of these; little-endian. The file contains no code.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from sightline.compression.half_precision import HalfPrecision
from sightline.compression.packed_tensors import (
    PLAIN_TYPES,
    Content,
    FaultError,
    PackedTensorSpec,
    decode_tensor,
    encode_tensor,
    memory_key,
    unique_tensors,
)
from sightline.compression.parametrised import dense_state_dict, quantised_weights
from sightline.contract.errors import CheckpointError, UserError
from sightline.contract.regular_files import assert_fits_memory, check_regular_file, parse_json, read_regular_file
from sightline.store.files.atomic_write import REPEAT, disk_failure, replace_atomic

_MAGIC = b"SLQ1"
_START = len(_MAGIC) + 4
_VERSION = 1
_MAX_BYTES = 1 << 36
_MAX_HEADER = 1 << 26
_MAX_ELEMENTS = 1 << 40
_FIELDS = {"k": "num_centroids", "book": "codebook_dtype"}
"""Keys of a file's header whose fields have other names."""


def tensor_specs(model: nn.Module, halves: Collection[str] = ()) -> tuple[list[PackedTensorSpec], dict[str, str]]:
    """Return the storage of each tensor of a model's state, and for further names of a shared one its first name.

    `halves` are plain tensors that were rounded to half precision.
    """
    contents, tied = _collect_contents(model, halves)
    return [content.entry for content in contents], tied


def packed_size(
    entries: Iterable[PackedTensorSpec], meta: Mapping[str, Any], *, tied: Mapping[str, str] | None = None
) -> int:
    """Compute the exact number of bytes of the file that `write_packed` writes."""
    entries = sorted(entries, key=lambda entry: entry.name)
    payload = sum(entry.book_bytes + entry.code_bytes for entry in entries)
    return len(_MAGIC) + 4 + len(_render_header(entries, meta, tied or {})) + payload + 4


def write_packed(path: Path, model: nn.Module, meta: Mapping[str, Any], halves: Collection[str] = ()) -> int:
    """Write a model and its metadata (`meta`: config, class names, metrics ...); return the number of bytes.

    `halves` as in `tensor_specs`.
    Raises UserError for numbers that the file cannot store, RunError if the disk refuses it.
    """
    contents, tied = _collect_contents(model, halves)
    header = _render_header([content.entry for content in contents], meta, tied)
    data = b"".join([_MAGIC, struct.pack("<I", len(header)), header, *(content.data() for content in contents)])
    data += struct.pack("<I", zlib.crc32(data))
    assert len(data) == packed_size([content.entry for content in contents], meta, tied=tied)
    try:
        replace_atomic(path, data)
    except OSError as error:
        raise disk_failure(error, path, again=REPEAT) from error
    return len(data)


def _render_header(entries: Sequence[PackedTensorSpec], meta: Mapping[str, Any], tied: Mapping[str, str]) -> bytes:
    lines, start = [], 0
    for entry in entries:
        lines.append(entry.line(start))
        start += entry.book_bytes + entry.code_bytes
    try:
        return _render_canonical({"version": _VERSION, "meta": dict(meta), "tensors": lines, "tied": dict(tied)})
    except (TypeError, ValueError) as error:
        raise UserError(f"meta: cannot be written as JSON: {error}") from error


def _render_canonical(document: Mapping[str, Any]) -> bytes:
    """Return the canonical JSON text of a document: sorted keys, no spaces, no NaN. Raises TypeError or ValueError."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _collect_contents(model: nn.Module, halves: Collection[str]) -> tuple[list[Content], dict[str, str]]:
    state = dense_state_dict(model)
    choices = {memory_key(state[name]): choice for name, choice in quantised_weights(model).items()}
    choices |= {memory_key(state[name]): (HalfPrecision(), state[name]) for name in halves if state[name].numel()}
    unique, tied = unique_tensors(state)
    return [
        encode_tensor(name, tensor, *choices.get(memory_key(tensor), (None, tensor))) for name, tensor in unique.items()
    ], tied


class PackedModel(NamedTuple):
    """Content of a packed file: state of the dense model, metadata, and storage of its tensors."""

    state: dict[str, Tensor]
    meta: dict[str, Any]
    entries: list[PackedTensorSpec]


def read_packed(path: Path) -> PackedModel:
    """Read a packed file; tensors are bitwise equal to the simulated model's, and shared ones are one tensor.

    Raises CheckpointError, naming the file and the fault, for anything that `write_packed` did not write.
    """
    with _faults_reported(path):
        meta, entries, tied, start = _read_head(path)
        assert_fits_memory(path, sum(entry.state_bytes for entry in entries))
        return _parse(memoryview(read_regular_file(path, max_bytes=_MAX_BYTES)), meta, entries, tied, start)


def assert_whole(path: Path) -> None:
    """Raise CheckpointError for a file whose size differs from the one in its header; only the header is read."""
    with _faults_reported(path):
        _read_head(path)


@contextlib.contextmanager
def _faults_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except FaultError as fault:
        raise CheckpointError(f"{path}: {fault}; pack the model again") from fault


def _read_head(path: Path) -> tuple[dict[str, Any], list[PackedTensorSpec], dict[str, str], int]:
    """Read metadata, entries and ties of a file, and the offset of its tensors; no more of it is read.

    Raises FaultError for a file whose size is not the one that they promise.
    """
    size = check_regular_file(path)
    with path.open("rb") as file:
        start = file.read(_START)
        if start[: len(_MAGIC)] != _MAGIC:
            raise FaultError("is not a packed model of sightline: it does not begin with SLQ1")
        if size < _START + 4:
            raise FaultError(f"is truncated: {size} bytes")
        (length,) = struct.unpack("<I", start[len(_MAGIC) :])
        if length > min(_MAX_HEADER, size - _START - 4):
            raise FaultError(f"is truncated or damaged: its header has {length:,} bytes, the file {size:,}")
        header = _parse_header(file.read(length))
    entries, names, stop = [], set[str](), 0
    for line in header["tensors"]:
        entries.append(_parse_entry(line, stop))
        stop += entries[-1].book_bytes + entries[-1].code_bytes
        if entries[-1].name in names:
            raise FaultError(f"{entries[-1].name!r} is listed twice")
        names.add(entries[-1].name)
    expected_size = _START + length + stop + 4
    if size < expected_size:
        raise FaultError(f"is truncated: {size:,} bytes of {expected_size:,}")
    if size > expected_size:
        raise FaultError(f"{size - expected_size:,} bytes belong to no tensor")
    for name, holder in header["tied"].items():
        if name in names or not isinstance(holder, str) or holder not in names:
            raise FaultError(f"{name!r} is tied to {holder!r}, which the tensors do not allow")
    return header["meta"], entries, header["tied"], _START + length


def _parse(
    data: memoryview, meta: dict[str, Any], entries: list[PackedTensorSpec], tied: Mapping[str, str], start: int
) -> PackedModel:
    (checksum,) = struct.unpack("<I", data[-4:])
    if zlib.crc32(data[:-4]) != checksum:
        raise FaultError("is damaged: its CRC-32 is not the one that was written")
    state = {}
    for entry in entries:
        stop = start + entry.book_bytes + entry.code_bytes
        state[entry.name] = decode_tensor(entry, data[start:stop])
        start = stop
    return PackedModel(state | {name: state[holder] for name, holder in tied.items()}, meta, entries)


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text)
        is_canonical = isinstance(header, dict) and _render_canonical(header) == text
    except (ValueError, TypeError) as error:
        raise FaultError(f"has a damaged header: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(header, dict):
        raise FaultError("has a damaged header: it is not a mapping")
    if header.get("version") != _VERSION or isinstance(header["version"], bool):
        raise FaultError(f"is of version {header.get('version')!r:.40}; this sightline reads version {_VERSION}")
    kinds = {"version": int, "meta": dict, "tensors": list, "tied": dict}
    if not is_canonical or header.keys() != kinds.keys():
        raise FaultError("has a header that is not in canonical form")
    for key, kind in kinds.items():
        if not isinstance(header[key], kind):
            raise FaultError(f"has a header whose '{key}' is a {type(header[key]).__name__}")
    return header


def _parse_entry(line: object, start: int) -> PackedTensorSpec:
    """Parse the header line of a tensor; it must equal the line that its entry writes at `start`."""
    if not isinstance(line, dict) or not isinstance(line.get("name"), str):
        raise FaultError("has a header with a tensor without a name")
    name, shape, kind = line["name"], line.get("shape"), line.get("kind")
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise FaultError(f"{name!r} has no shape")
    if len(shape) > 16 or math.prod(max(length, 1) for length in shape) > _MAX_ELEMENTS:
        raise FaultError(f"{name!r} has an absurd shape")
    if not isinstance(kind, str) or kind not in ("kq", "lq", *PLAIN_TYPES):
        raise FaultError(f"{name!r} is of an unknown kind")
    coded: dict[str, Any] = {}
    if kind in ("kq", "lq"):
        coded = {key: line.get(key) for key in ("bits", "k", "groups", "book")}
        bits, k, groups, book = coded.values()
        if not (type(bits) is type(k) is type(groups) is int and 1 <= bits <= 8 and 1 <= k <= 2**bits):
            raise FaultError(f"{name!r} has codes of {bits!r:.20} bits with {k!r:.20} values")
        if not isinstance(book, str) or book not in ("f16", "f32") or groups not in (1, *shape[:1]) or groups < 1:
            raise FaultError(f"{name!r} has {groups!r:.20} codebooks of {book!r:.20}")
        if kind == "lq" and (k != 2**bits - 1 or book != "f32" or bits < 2):
            raise FaultError(f"{name!r} has steps of {book} for {k} values of {bits} bits")
    entry = PackedTensorSpec(name, tuple(shape), kind, **{_FIELDS.get(key, key): value for key, value in coded.items()})
    if _render_canonical(line) != _render_canonical(entry.line(start)):
        raise FaultError(f"{name!r} has offsets or lengths that its shape and its place do not give")
    return entry
