"""Tensors of a packed file: the storage of one, the bytes that it takes, and its numbers from these.

Kinds: `kq`, codes of a codebook in half precision (or float32 where half cannot hold it), of the whole tensor or of
each entry of its first axis; `lq`, whole multiples of a float32 step; `f16`, numbers of half precision that are float32
in the model; and plain ones.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sightline.compression.bit_packing import pack_bits, packed_length, unpack_bits
from sightline.compression.codebooks import Codebook
from sightline.compression.grids import UniformQuantiser
from sightline.compression.half_precision import HalfPrecision
from sightline.contract.errors import UserError

_MAX_EXTRA_LINE_LENGTH = 80
"""Maximal number of characters by which the header line of a coded tensor is longer than that of a plain one."""
PLAIN_TYPES: dict[str, tuple[np.dtype[Any], torch.dtype]] = {
    "f32": (np.dtype("<f4"), torch.float32),
    "f16": (np.dtype("<f2"), torch.float32),
    "f64": (np.dtype("<f8"), torch.float64),
    "i64": (np.dtype("<i8"), torch.int64),
    "i32": (np.dtype("<i4"), torch.int32),
    "u8": (np.dtype("u1"), torch.uint8),
    "bool": (np.dtype("?"), torch.bool),
}
"""Type in the file and in the model."""
_KIND_OF = {dtype: kind for kind, (_, dtype) in PLAIN_TYPES.items() if kind != "f16"}


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
        """The number of values of the tensor."""
        return math.prod(self.shape)

    @property
    def book_bytes(self) -> int:
        """Bytes of the codebooks, or of the steps."""
        numbers = {"kq": self.num_centroids * self.groups, "lq": self.groups}.get(self.kind, 0)
        return numbers * PLAIN_TYPES[self.codebook_dtype][0].itemsize

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes, or of plain values."""
        if self.kind in ("kq", "lq"):
            return packed_length(self.count, self.bits)
        return self.count * PLAIN_TYPES[self.kind][0].itemsize

    @property
    def state_bytes(self) -> int:
        """Bytes of the tensor in the model; codes are float32 there."""
        return self.count * PLAIN_TYPES.get(self.kind, PLAIN_TYPES["f32"])[1].itemsize

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


class Content(NamedTuple):
    """Numbers of an entry: the codebook or steps (empty for plain tensors), and codes or values."""

    entry: PackedTensorSpec
    book: np.ndarray
    values: np.ndarray

    def data(self) -> bytes:
        entry = self.entry
        if entry.kind in ("kq", "lq"):
            return self.book.astype(PLAIN_TYPES[entry.codebook_dtype][0]).tobytes() + pack_bits(self.values, entry.bits)
        return self.values.astype(PLAIN_TYPES[entry.kind][0]).tobytes()


def unique_tensors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a state's tensors in the order of a file, shared ones once, and the holder of every further name."""
    unique: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[object, str] = {}
    for name in sorted(state):
        holder = names.setdefault(memory_key(state[name]), name) if state[name].numel() else name
        if holder == name:
            unique[name] = state[name]
        else:
            tied[name] = holder
    return unique, tied


def memory_key(tensor: Tensor) -> Hashable:
    """Return what all names of a shared tensor have in common."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def tensor_spec(
    name: str, tensor: Tensor, quantiser: nn.Module | None = None, original: Tensor | None = None
) -> PackedTensorSpec:
    """Return the storage of a tensor, which a `quantiser` computes from `original` if given."""
    return encode_tensor(name, tensor, quantiser, tensor if original is None else original).entry


def encode_tensor(name: str, tensor: Tensor, quantiser: nn.Module | None, original: Tensor) -> Content:
    """Encode a tensor (any shape), which a `quantiser` computes from `original`, in its smallest storage.

    Raises UserError for numbers that the file cannot store.
    """
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
                codes = (grid.codes(original) + grid.most).to(torch.uint8).cpu().numpy().reshape(-1)
                return Content(entry, grid.step.cpu().numpy().reshape(-1), codes)
            return Content(entry, none, values)
        case HalfPrecision():
            return Content(planned_tensor_spec(name, tensor.shape, kind="fp16"), none, values)
        case _:
            return Content(PackedTensorSpec(name, tuple(tensor.shape), _KIND_OF[tensor.dtype]), none, values)


def _encode_codebook(name: str, tensor: Tensor, quantiser: Codebook, centres: Tensor) -> Content:
    """Encode a tensor by its used centroids, in ascending order, equal ones merged."""
    labels = quantiser.rows(quantiser.labels).cpu().numpy()
    centroids = quantiser.rows(quantiser.as_stored(centres)).cpu().numpy() + np.float32(0)  # no -0
    books, codes = [], np.empty_like(labels)
    for row, (codes_of_row, numbers) in enumerate(zip(labels, centroids, strict=True)):
        is_used = np.bincount(codes_of_row, minlength=len(numbers)) > 0
        books.append(np.unique(numbers[is_used]))
        codes[row] = np.searchsorted(books[-1], numbers).astype(np.uint8)[codes_of_row]
    k, is_float32 = max(map(len, books)), bool(quantiser.is_float32)
    entry = planned_tensor_spec(name, tensor.shape, kind="codebook", k=k, groups=len(books), is_float32=is_float32)
    if entry.kind != "kq":
        return Content(entry, np.empty(0), tensor.numpy().reshape(-1))
    book = np.stack([np.pad(numbers, (0, k - len(numbers)), mode="edge") for numbers in books])
    return Content(entry, book, codes.reshape(-1))


class FaultError(Exception):
    """Fault in the bytes of a packed file."""


def decode_tensor(entry: PackedTensorSpec, data: memoryview) -> Tensor:
    """Decode a tensor of the shape of its entry. Raises FaultError for bytes that `Content.data` does not write."""
    if entry.kind not in ("kq", "lq"):
        stored, dtype = PLAIN_TYPES[entry.kind]
        if entry.kind == "bool" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
            raise FaultError(f"{entry.name!r} holds bytes that are neither 0 nor 1")
        return torch.from_numpy(np.frombuffer(data, stored).reshape(entry.shape).copy()).to(dtype)
    book = (
        np.frombuffer(data[: entry.book_bytes], PLAIN_TYPES[entry.codebook_dtype][0])
        .astype(np.float32)
        .reshape(entry.groups, -1)
    )
    is_sound = np.isfinite(book).all() and (entry.kind == "lq" or (np.diff(book, axis=1) >= 0).all())
    if not is_sound or (entry.kind == "lq" and (book <= 0).any()):
        raise FaultError(f"{entry.name!r} has a codebook that is not finite or not in order")
    try:
        codes = unpack_bits(data[entry.book_bytes :], entry.count, entry.bits)
    except ValueError as error:
        raise FaultError(f"{entry.name!r}: {error}") from error
    if len(codes) and codes.max() >= entry.num_centroids:
        raise FaultError(f"{entry.name!r} has a code {codes.max()}, but {entry.num_centroids} values")
    rows = codes.reshape(entry.groups, -1)
    if entry.kind == "kq":
        values = book[np.arange(entry.groups)[:, None], rows]
    else:
        values = (rows.astype(np.float32) - np.float32(entry.num_centroids // 2)) * book
    return torch.from_numpy(values.reshape(entry.shape))
