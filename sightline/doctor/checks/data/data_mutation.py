"""Samples that change by being read: something edits what the data set stores."""

from __future__ import annotations

import hashlib
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.data.loading.sample_arrays import array_leaves, as_bytes
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.doctor.core.object_graph import find_generators, iter_reachable, preserve_generators
from sightline.doctor.core.sample_statistics import describe_sample, distinct_parts
from sightline.engine.build import DataSubset
from sightline.engine.records import preserve_rng_state
from sightline.numba_kernels import compute_seconds
from sightline.types import SampleKey

__all__ = ["data_mutation"]

_MOST_SAMPLES = 32
_MOST_BYTES = 2**26
_MOST_SECONDS = 0.5  # of this thread's own time, which other load leaves as it is
_MOST_WAITED = 2.0  # by the clock on the wall: a disk may be slow
_NUM_READS = 3

Tensors = dict[str, Tensor]


class Drift(NamedTuple):
    """What differed between two reads of one key."""

    key: SampleKey
    field: str
    read: int
    change: str


class WriteLocation(NamedTuple):
    """A line of code that writes into what a data set stores."""

    file: str
    line: int
    function: str


@check("G13", "data-mutation", "preflight")
def data_mutation(context: Context) -> list[Finding]:
    """The same key gives the same bits, read again and again in this process (worker processes would mask it)."""
    findings = []
    for part in distinct_parts(context.built.data):
        before = _stored(part)
        try:
            reads = _Reads(part, context.config.seed)
            drift = reads.first_drift()
        except Exception:  # noqa: BLE001 - a part that cannot be read is what the check `first-step` reports
            continue
        if drift is not None:
            findings.append(_of_drift(context, part, drift, reads, _changed(part, before)))
    return findings


class _Reads:
    """Reads of samples spread over a part; up to 32 of them, fewer where they are large or slow to read."""

    def __init__(self, part: DataSubset, seed: int) -> None:
        self.part = part
        self._generators = find_generators(part)
        started, began = compute_seconds(), time.perf_counter()
        first = self.read(SampleKey(int(part.indices[0]), 0, seed))
        share = max((compute_seconds() - started) / _MOST_SECONDS, (time.perf_counter() - began) / _MOST_WAITED)
        num_bytes = sum(tensor.nbytes for tensor in first.values())
        limits = (_MOST_SAMPLES, _MOST_BYTES // max(1, num_bytes), int(1 / (_NUM_READS * share)))
        count = max(2, min(limits))
        self.keys = [SampleKey(int(index), 0, seed) for index in part.evenly_spaced_indices(count)]

    @property
    def extent(self) -> str:
        return f"{len(self.keys)} samples of the {self.part.split} part, {_NUM_READS} reads each"

    def read(self, key: SampleKey) -> Tensors:
        """Copies of a sample's tensors after the transforms; random states, those of the set too, are put back."""
        with preserve_rng_state(), preserve_generators(self._generators):
            batch = self.part.reader([key])
        return {
            leaf: tensor.detach().clone() for name, value in batch.items() for leaf, tensor in array_leaves(value, name)
        }

    def first_drift(self) -> Drift | None:
        """The first sample and field that a later read gives with other bits."""
        first = [self.read(key) for key in self.keys]
        for number in range(1, _NUM_READS):
            for key, before in zip(self.keys, first, strict=True):
                after = self.read(key)
                changes = {n: _change(before.get(n), after.get(n)) for n in sorted(before.keys() | after.keys())}
                for field, change in changes.items():
                    if change:
                        return Drift(key, field, number + 1, change)
        return None

    def writer(self, key: SampleKey) -> WriteLocation | None:
        """The line that writes when this key is read with everything stored held still."""
        try:
            with _protected(self.part), _RefuseWrites([array for _, array in _arrays(self.part)]):
                self.read(key)
        except ValueError as error:
            first = error.__cause__ or error  # a reader retells what a data set raises
            frames = [f for f in traceback.extract_tb(first.__traceback__) if not _is_passed_over(f.filename)]
            if "read-only" in str(error) and frames:
                return WriteLocation(frames[-1].filename, frames[-1].lineno or 0, frames[-1].name)
        return None


def _change(before: Tensor | None, after: Tensor | None) -> str:
    """How two tensors differ, in words; empty where they have the same bits."""
    if before is None or after is None:
        return "is there in one of the reads only"
    if before.shape != after.shape or before.dtype != after.dtype:
        return f"{before.dtype} {tuple(before.shape)}, then {after.dtype} {tuple(after.shape)}"
    if np.array_equal(as_bytes(before), as_bytes(after)):
        return ""
    difference = (after.double() - before.double()).abs()
    is_changed = (after != before) & ~((after != after) & (before != before))
    return f"{int(is_changed.sum())} of {before.numel()} values, by {float(difference.nan_to_num().max()):.6g} at most"


# --- who wrote it -----------------------------------------------------------------------------------------------------


def _arrays(part: DataSubset) -> list[tuple[str, Any]]:
    return [(path, array) for path, array in iter_reachable(part.dataset, (np.ndarray, Tensor)) if _nbytes(array)]


def _nbytes(array: Any) -> int:
    is_plain = isinstance(array, Tensor) or array.dtype.kind in "biufc"
    return int(array.nbytes) if is_plain else 0


def _stored(part: DataSubset) -> dict[str, str]:
    """Digests of the arrays that a data set holds, up to 64 MiB of them."""
    digests: dict[str, str] = {}
    left = _MOST_BYTES
    for path, array in _arrays(part):
        left -= _nbytes(array)
        if left < 0:
            break
        digests[path] = hashlib.sha256(as_bytes(array).tobytes()).hexdigest()
    return digests


def _changed(part: DataSubset, before: dict[str, str]) -> list[str]:
    after = _stored(part)
    return [path for path, digest in before.items() if after.get(path, digest) != digest]


@contextmanager
def _protected(part: DataSubset) -> Iterator[None]:
    """NumPy refuses writes to what the data set holds; the flags are as before afterwards."""
    arrays = [array for _, array in _arrays(part) if isinstance(array, np.ndarray) and array.flags.writeable]
    for array in arrays:
        array.flags.writeable = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that it does not heed NumPy's flags; we watch it ourselves
            yield
    finally:
        for array in sorted(arrays, key=lambda each: each.base is not None):  # a view can only follow its base
            with suppress(ValueError):
                array.flags.writeable = True


class _RefuseWrites(TorchDispatchMode):
    """Raises where torch would write into the memory of one of these arrays and tensors."""

    def __init__(self, arrays: Sequence[np.ndarray | Tensor]) -> None:
        super().__init__()
        self._spans = [_span(array) for array in arrays]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {**dict(enumerate(args)), **(kwargs or {})}
        for place, declared in enumerate(func._schema.arguments):
            value = given.get(declared.name if declared.kwarg_only else place)
            is_written = declared.alias_info is not None and declared.alias_info.is_write
            if is_written and isinstance(value, Tensor) and self._is_stored(value.data_ptr()):
                raise ValueError("a stored tensor is read-only while it is watched")
        return func(*args, **(kwargs or {}))

    def _is_stored(self, address: int) -> bool:
        return any(start <= address < end for start, end in self._spans)


def _span(array: np.ndarray | Tensor) -> tuple[int, int]:
    start = array.data_ptr() if isinstance(array, Tensor) else array.__array_interface__["data"][0]
    return start, start + int(array.nbytes)


def _is_passed_over(filename: str) -> bool:
    """Lines of libraries and of this check, which merely lead to the one that writes."""
    return "site-packages" in filename or filename == __file__


def _of_drift(context: Context, part: DataSubset, drift: Drift, reads: _Reads, changed: list[str]) -> Finding:
    writer = reads.writer(drift.key)
    is_stored = bool(changed) or writer is not None
    causes = ("data.item_mutation", "data.duplicate_randomness", "sys.nondeterminism")
    written = f"; written by {writer.function} ({Path(writer.file).name}:{writer.line})" if writer else ""
    held = f"; stored and changed: {', '.join(changed[:4])}" if changed else ""
    place = context.place("data")
    return data_mutation.finding(
        FindingLocation(
            file=writer.file if writer else place.file,
            line=writer.line if writer else place.line,
            dataset=f"{context.config.data.name}/{part.split}",
            sample=drift.key.index,
            config_path="data",
        ),
        f"'{drift.field}' changes by being read" + ("" if is_stored else ", though nothing stored does"),
        causes=causes,
        measured=f"{describe_sample(part.dataset, drift.key.index)}: read 1 and read {drift.read} of one key differ in "
        f"{drift.change}{written}{held}",
        expected="equal bits: a sample is a function of (index, epoch, seed), and reading changes nothing stored",
        action="copy before editing (`x = x - m`, not `x -= m`), and mark stored arrays read-only"
        if is_stored
        else "take nothing but the key into a sample: no counter, clock or generator of the data set's own",
        evidence={"field": drift.field, "looked_at": reads.extent},
    )
