"""Packed quantised model: one small file (`.slq`), and its exact size before it is written.

`SLQ1`, the length of the header (32 bits), the header (canonical JSON), the tensors in order, and the CRC-32
of these; little-endian. The file contains no code. Kinds of tensors: `kq`, codes of a codebook in half precision
(or float32 where half cannot hold it), of the whole tensor or of each entry of its first axis; `lq`, whole multiples of
a float32 step; `f16`, numbers of half precision that are float32 in the model; and plain ones.

Bit packing of codes of 1 to 8 bits: element i takes bits [i b, (i + 1) b) of the stream, lowest bit first.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import zlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.errors import CheckpointError, UserError
from sightline.contract.regular_files import assert_fits_memory, check_regular_file, parse_json, read_regular_file
from sightline.parts.quantisation.parametrised import (
    Codebook,
    HalfPrecision,
    UniformQuantiser,
    dense_state_dict,
    quantised_weights,
)
from sightline.store.files.atomic_write import REPEAT, disk_failure, replace_atomic


def packed_length(count: int, bits: int) -> int:
    """Return the number of bytes of `count` codes; the last byte is padded with zeros."""
    return -(-count * bits // 8)


def pack_bits(codes: np.ndarray, bits: int) -> bytes:
    """Pack codes (n,) uint8 below 2^bits: eight of them are `bits` bytes, combined in one 64-bit word."""
    words_64 = np.zeros(-(-len(codes) // 8), np.uint64)
    for slot in range(8):
        column = codes[slot::8]
        words_64[: len(column)] |= column.astype(np.uint64) << np.uint64(slot * bits)
    stream = words_64.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :bits]
    return stream.tobytes()[: packed_length(len(codes), bits)]


def unpack_bits(data: bytes | memoryview, count: int, bits: int) -> np.ndarray:
    """Unpack the codes (count,) uint8 of a stream of `packed_length(count, bits)` bytes.

    Raises ValueError if the padding bits of the last byte are not zero.
    """
    num_words = -(-count // 8)
    stream = np.zeros(num_words * bits, np.uint8)
    stream[: packed_length(count, bits)] = np.frombuffer(data, np.uint8, packed_length(count, bits))
    word_bytes = np.zeros((num_words, 8), np.uint8)
    word_bytes[:, :bits] = stream.reshape(-1, bits)
    words_64 = word_bytes.view("<u8")[:, 0]
    codes = np.empty((num_words, 8), np.uint8)
    for slot in range(8):
        codes[:, slot] = (words_64 >> np.uint64(slot * bits)) & np.uint64(2**bits - 1)
    flat = codes.reshape(-1)
    if flat[count:].any():
        raise ValueError("the bits after the last code are not zero")
    return flat[:count]


_MAGIC = b"SLQ1"
_START = len(_MAGIC) + 4
_VERSION = 1
_MAX_BYTES = 1 << 36
_MAX_HEADER = 1 << 26
_MAX_ELEMENTS = 1 << 40
_MAX_EXTRA_LINE_LENGTH = 80
"""Maximal number of characters by which the header line of a coded tensor is longer than that of a plain one."""
_PLAIN: dict[str, tuple[np.dtype[Any], torch.dtype]] = {
    "f32": (np.dtype("<f4"), torch.float32),
    "f16": (np.dtype("<f2"), torch.float32),
    "f64": (np.dtype("<f8"), torch.float64),
    "i64": (np.dtype("<i8"), torch.int64),
    "i32": (np.dtype("<i4"), torch.int32),
    "u8": (np.dtype("u1"), torch.uint8),
    "bool": (np.dtype("?"), torch.bool),
}
"""Type in the file and in the model."""
_KIND_OF = {dtype: kind for kind, (_, dtype) in _PLAIN.items() if kind != "f16"}
_FIELDS = {"k": "num_centroids", "book": "codebook_dtype"}
"""Keys of a file's header whose fields have other names."""


@dataclass(frozen=True)
class PackedTensorSpec:
    """Storage of one tensor in a packed file, without its numbers: all that its bytes depend on.

    For codes: their `bits`, the number of their values (`num_centroids`), and the number (`groups`) of codebooks or
    steps of the tensor, whose numbers are of `codebook_dtype` (f16, f32).
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    bits: int = 0
    num_centroids: int = 0
    groups: int = 1
    codebook_dtype: str = "f16"

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def book_bytes(self) -> int:
        """Bytes of the codebooks, or of the steps."""
        numbers = {"kq": self.num_centroids * self.groups, "lq": self.groups}.get(self.kind, 0)
        return numbers * _PLAIN[self.codebook_dtype][0].itemsize

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes, or of plain values."""
        if self.kind in ("kq", "lq"):
            return packed_length(self.count, self.bits)
        return self.count * _PLAIN[self.kind][0].itemsize

    @property
    def state_bytes(self) -> int:
        """Bytes of the tensor in the model; codes are float32 there."""
        return self.count * _PLAIN.get(self.kind, _PLAIN["f32"])[1].itemsize

    def line(self, start: int) -> dict[str, Any]:
        """Build the header entry of a tensor whose bytes begin at `start` of the payload."""
        offset = start + self.book_bytes
        line = {"name": self.name, "shape": list(self.shape), "kind": self.kind, "off": offset, "len": self.code_bytes}
        if self.kind in ("kq", "lq"):
            line |= {
                "bits": self.bits,
                "k": self.num_centroids,
                "cb_off": start,
                "groups": self.groups,
                "book": self.codebook_dtype,
            }
        return line


def planned_tensor_spec(
    name: str, shape: Sequence[int], *, kind: str, bits: int = 0, k: int = 0, groups: int = 1, is_float32: bool = False
) -> PackedTensorSpec:
    """Return the smallest storage of a weight that a policy made `codebook`, `linear`, `fp16` or `fp32`.

    `k` is the number of centroids (of the channel with most of them). A codebook that is not smaller than its weights
    in half precision (or float32) is replaced by them: they are the same numbers. Its longer line in the header counts,
    so that a codebook with fewer centroids never makes a larger file.
    """
    plain = PackedTensorSpec(
        name, tuple(shape), "f16" if kind == "fp16" or (kind == "codebook" and not is_float32) else "f32"
    )
    if kind == "codebook":
        book = "f32" if is_float32 else "f16"
        coded = PackedTensorSpec(name, tuple(shape), "kq", max(1, (k - 1).bit_length()), k, groups, book)
    elif kind == "linear":
        coded = PackedTensorSpec(name, tuple(shape), "lq", bits, 2**bits - 1, groups, "f32")
    else:
        return plain
    return coded if coded.book_bytes + coded.code_bytes + _MAX_EXTRA_LINE_LENGTH < plain.code_bytes else plain


class _Content(NamedTuple):
    """Numbers of an entry: the codebook or steps (empty for plain tensors), and codes or values."""

    entry: PackedTensorSpec
    book: np.ndarray
    values: np.ndarray

    def data(self) -> bytes:
        entry = self.entry
        if entry.kind in ("kq", "lq"):
            return self.book.astype(_PLAIN[entry.codebook_dtype][0]).tobytes() + pack_bits(self.values, entry.bits)
        return self.values.astype(_PLAIN[entry.kind][0]).tobytes()


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


class CompressionRatios(NamedTuple):
    """Compression ratios to float32: of the weights' codes alone (as HAQ counts), with codebooks, and of the file."""

    weights: float
    codebook: float
    file: float


def compression_ratios(
    layers: Iterable[tuple[int, int, int]], *, file_bytes: int, state: Mapping[str, Tensor]
) -> CompressionRatios:
    """Compute the ratios of a quantised model to float32: codes, codes and codebooks, the file.

    `layers` contains (number of weights, bits, bytes of the codebook) per layer; `state` is that of the float model.
    The file is compared with all of that state, the other sizes with the layers' weights.
    """
    layers = list(layers)
    count = sum(size for size, _, _ in layers)
    coded = sum(packed_length(size, bits) + book for size, bits, book in layers)
    file = file_bytes / float_bytes(state)
    if not count:  # every tensor is stored as it is
        return CompressionRatios(1.0, 1.0, file)
    return CompressionRatios(sum(size * bits for size, bits, _ in layers) / (32 * count), coded / (4 * count), file)


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


def _collect_contents(model: nn.Module, halves: Collection[str]) -> tuple[list[_Content], dict[str, str]]:
    state = dense_state_dict(model)
    choices = {_memory_key(state[name]): choice for name, choice in quantised_weights(model).items()}
    choices |= {_memory_key(state[name]): (HalfPrecision(), state[name]) for name in halves if state[name].numel()}
    unique, tied = unique_tensors(state)
    return [
        _make_content(name, tensor, *choices.get(_memory_key(tensor), (None, tensor)))
        for name, tensor in unique.items()
    ], tied


def unique_tensors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a state's tensors in the order of a file, shared ones once, and the holder of every further name."""
    unique: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[object, str] = {}
    for name in sorted(state):
        holder = names.setdefault(_memory_key(state[name]), name) if state[name].numel() else name
        if holder == name:
            unique[name] = state[name]
        else:
            tied[name] = holder
    return unique, tied


def float_bytes(state: Mapping[str, Tensor]) -> int:
    """Count the bytes of a float model's state, shared tensors once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in unique_tensors(state)[0].values())


def _memory_key(tensor: Tensor) -> Hashable:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def tensor_spec(
    name: str, tensor: Tensor, quantiser: nn.Module | None = None, original: Tensor | None = None
) -> PackedTensorSpec:
    """Return the storage of a tensor, which a `quantiser` computes from `original` if given."""
    return _make_content(name, tensor, quantiser, tensor if original is None else original).entry


def _make_content(name: str, tensor: Tensor, quantiser: nn.Module | None, original: Tensor) -> _Content:
    tensor, original = tensor.detach().cpu(), original.detach()
    if quantiser is not None and tensor.dtype != torch.float32:
        raise UserError(f"{name}: is {tensor.dtype}; only quantised models in float32 are packed: call model.float()")
    if quantiser is not None and not torch.isfinite(tensor).all():
        raise UserError(f"{name}: quantised weights are not finite; the training diverged, take an earlier checkpoint")
    if tensor.dtype not in _KIND_OF:
        raise UserError(f"{name}: a packed file holds no {tensor.dtype}")
    values, none = tensor.contiguous().numpy().reshape(-1), np.empty(0)
    match quantiser:
        case Codebook():
            return _encode_codebook(name, tensor, quantiser, original)
        case UniformQuantiser():
            grid = quantiser.grid
            entry = planned_tensor_spec(
                name, tensor.shape, kind="linear", bits=quantiser.bits, groups=grid.step.numel()
            )
            if entry.kind == "lq":
                codes = (grid.codes(original) - grid.low).to(torch.uint8).cpu().numpy().reshape(-1)
                return _Content(entry, grid.step.cpu().numpy().reshape(-1), codes)
            return _Content(entry, none, values)
        case HalfPrecision():
            return _Content(planned_tensor_spec(name, tensor.shape, kind="fp16"), none, values)
        case _:
            return _Content(PackedTensorSpec(name, tuple(tensor.shape), _KIND_OF[tensor.dtype]), none, values)


def _encode_codebook(name: str, tensor: Tensor, quantiser: Codebook, centres: Tensor) -> _Content:
    """Encode a tensor by its used centroids, in ascending order, equal ones merged."""
    labels = quantiser.labels.cpu().numpy().reshape(centres.shape[0] if centres.ndim == 2 else 1, -1)
    centroids = quantiser.as_stored(centres).cpu().numpy().reshape(len(labels), -1) + np.float32(0)  # no -0
    books, codes = [], np.empty_like(labels)
    for row, (codes_of_row, numbers) in enumerate(zip(labels, centroids, strict=True)):
        is_used = np.bincount(codes_of_row, minlength=len(numbers)) > 0
        books.append(np.unique(numbers[is_used]))
        codes[row] = np.searchsorted(books[-1], numbers).astype(np.uint8)[codes_of_row]
    k, is_float32 = max(map(len, books)), bool(quantiser.is_float32)
    entry = planned_tensor_spec(name, tensor.shape, kind="codebook", k=k, groups=len(books), is_float32=is_float32)
    if entry.kind != "kq":
        return _Content(entry, np.empty(0), tensor.numpy().reshape(-1))
    book = np.stack([np.pad(numbers, (0, k - len(numbers)), mode="edge") for numbers in books])
    return _Content(entry, book, codes.reshape(-1))


# --- reading ---------------------------------------------------------------------------------------------------------


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
    except _FaultError as fault:
        raise CheckpointError(f"{path}: {fault}; pack the model again") from fault


class _FaultError(Exception):
    """Fault in the bytes of a packed file."""


def _read_head(path: Path) -> tuple[dict[str, Any], list[PackedTensorSpec], dict[str, str], int]:
    """Read metadata, entries and ties of a file, and the offset of its tensors; no more of it is read.

    Raises _FaultError for a file whose size is not the one that they promise.
    """
    size = check_regular_file(path)
    with path.open("rb") as file:
        start = file.read(_START)
        if start[: len(_MAGIC)] != _MAGIC:
            raise _FaultError("is not a packed model of sightline: it does not begin with SLQ1")
        if size < _START + 4:
            raise _FaultError(f"is truncated: {size} bytes")
        (length,) = struct.unpack("<I", start[len(_MAGIC) :])
        if length > min(_MAX_HEADER, size - _START - 4):
            raise _FaultError(f"is truncated or damaged: its header has {length:,} bytes, the file {size:,}")
        header = _parse_header(file.read(length))
    entries, names, stop = [], set[str](), 0
    for line in header["tensors"]:
        entries.append(_parse_entry(line, stop))
        stop += entries[-1].book_bytes + entries[-1].code_bytes
        if entries[-1].name in names:
            raise _FaultError(f"{entries[-1].name!r} is listed twice")
        names.add(entries[-1].name)
    expected_size = _START + length + stop + 4
    if size < expected_size:
        raise _FaultError(f"is truncated: {size:,} bytes of {expected_size:,}")
    if size > expected_size:
        raise _FaultError(f"{size - expected_size:,} bytes belong to no tensor")
    for name, holder in header["tied"].items():
        if name in names or not isinstance(holder, str) or holder not in names:
            raise _FaultError(f"{name!r} is tied to {holder!r}, which the tensors do not allow")
    return header["meta"], entries, header["tied"], _START + length


def _parse(
    data: memoryview, meta: dict[str, Any], entries: list[PackedTensorSpec], tied: Mapping[str, str], start: int
) -> PackedModel:
    (checksum,) = struct.unpack("<I", data[-4:])
    if zlib.crc32(data[:-4]) != checksum:
        raise _FaultError("is damaged: its CRC-32 is not the one that was written")
    state = {}
    for entry in entries:
        stop = start + entry.book_bytes + entry.code_bytes
        state[entry.name] = _decode_tensor(entry, data[start:stop])
        start = stop
    return PackedModel(state | {name: state[holder] for name, holder in tied.items()}, meta, entries)


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text)
        is_canonical = isinstance(header, dict) and _render_canonical(header) == text
    except (ValueError, TypeError) as error:
        raise _FaultError(f"has a damaged header: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(header, dict):
        raise _FaultError("has a damaged header: it is not a mapping")
    if header.get("version") != _VERSION or isinstance(header["version"], bool):
        raise _FaultError(f"is of version {header.get('version')!r:.40}; this sightline reads version {_VERSION}")
    kinds = {"version": int, "meta": dict, "tensors": list, "tied": dict}
    if not is_canonical or header.keys() != kinds.keys():
        raise _FaultError("has a header that is not in canonical form")
    for key, kind in kinds.items():
        if not isinstance(header[key], kind):
            raise _FaultError(f"has a header whose '{key}' is a {type(header[key]).__name__}")
    return header


def _parse_entry(line: object, start: int) -> PackedTensorSpec:
    """Parse the header line of a tensor; it must equal the line that its entry writes at `start`."""
    if not isinstance(line, dict) or not isinstance(line.get("name"), str):
        raise _FaultError("has a header with a tensor without a name")
    name, shape, kind = line["name"], line.get("shape"), line.get("kind")
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise _FaultError(f"{name!r} has no shape")
    if len(shape) > 16 or math.prod(max(length, 1) for length in shape) > _MAX_ELEMENTS:
        raise _FaultError(f"{name!r} has an absurd shape")
    if not isinstance(kind, str) or kind not in ("kq", "lq", *_PLAIN):
        raise _FaultError(f"{name!r} is of an unknown kind")
    coded: dict[str, Any] = {}
    if kind in ("kq", "lq"):
        coded = {key: line.get(key) for key in ("bits", "k", "groups", "book")}
        bits, k, groups, book = coded.values()
        if not (type(bits) is type(k) is type(groups) is int and 1 <= bits <= 8 and 1 <= k <= 2**bits):
            raise _FaultError(f"{name!r} has codes of {bits!r:.20} bits with {k!r:.20} values")
        if not isinstance(book, str) or book not in ("f16", "f32") or groups not in (1, *shape[:1]) or groups < 1:
            raise _FaultError(f"{name!r} has {groups!r:.20} codebooks of {book!r:.20}")
        if kind == "lq" and (k != 2**bits - 1 or book != "f32" or bits < 2):
            raise _FaultError(f"{name!r} has steps of {book} for {k} values of {bits} bits")
    entry = PackedTensorSpec(name, tuple(shape), kind, **{_FIELDS.get(key, key): value for key, value in coded.items()})
    if _render_canonical(line) != _render_canonical(entry.line(start)):
        raise _FaultError(f"{name!r} has offsets or lengths that its shape and its place do not give")
    return entry


def _decode_tensor(entry: PackedTensorSpec, data: memoryview) -> Tensor:
    if entry.kind not in ("kq", "lq"):
        stored, dtype = _PLAIN[entry.kind]
        if entry.kind == "bool" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
            raise _FaultError(f"{entry.name!r} holds bytes that are neither 0 nor 1")
        return torch.from_numpy(np.frombuffer(data, stored).reshape(entry.shape).copy()).to(dtype)
    book = (
        np.frombuffer(data[: entry.book_bytes], _PLAIN[entry.codebook_dtype][0])
        .astype(np.float32)
        .reshape(entry.groups, -1)
    )
    is_sound = np.isfinite(book).all() and (entry.kind == "lq" or (np.diff(book, axis=1) >= 0).all())
    if not is_sound or (entry.kind == "lq" and (book <= 0).any()):
        raise _FaultError(f"{entry.name!r} has a codebook that is not finite or not in order")
    try:
        codes = unpack_bits(data[entry.book_bytes :], entry.count, entry.bits)
    except ValueError as error:
        raise _FaultError(f"{entry.name!r}: {error}") from error
    if len(codes) and codes.max() >= entry.num_centroids:
        raise _FaultError(f"{entry.name!r} has a code {codes.max()}, but {entry.num_centroids} values")
    rows = codes.reshape(entry.groups, -1)
    if entry.kind == "kq":
        values = book[np.arange(entry.groups)[:, None], rows]
    else:
        values = (rows.astype(np.float32) - np.float32(entry.num_centroids // 2)) * book
    return torch.from_numpy(values.reshape(entry.shape))
