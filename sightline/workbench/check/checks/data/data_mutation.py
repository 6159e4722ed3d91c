"""Samples that change when they are read: something edits what the data set stores."""

from __future__ import annotations

import hashlib
import itertools
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sightline import instrument
from sightline.contract.types import SampleKey
from sightline.doctor.objects import find_generators, iter_reachable, preserve_generators
from sightline.engine.build import DataSubset
from sightline.instrument.random_state import preserve_random_state
from sightline.ops.numba_kernels import compute_seconds
from sightline.store.loading.batch_reader import array_leaves, as_bytes
from sightline.workbench.check.context import Context, check, splits
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import describe_sample

_MAX_SAMPLES = 32
_MAX_BYTES = 2**26
_MAX_WAIT_S = 2.0  # wall-clock time: a disk may be slow
_NUM_READS = 3
_NUM_DRIFT_READS = 7  # random numbers rise or fall in all six steps once in 2,520 times

Tensors = dict[str, Tensor]


class Drift(NamedTuple):
    """Difference between two reads of a key: the field, the number of the later read, and the change."""

    key: SampleKey
    field: str
    read: int
    change: str


class WriteLocation(NamedTuple):
    """Line of code that writes into the stored arrays of a data set."""

    file: str
    line: int
    function: str


@check("data-mutation", "preflight", each=splits)
def data_mutation(context: Context, part: DataSubset) -> Fault | None:
    """Repeated reads of a key in this process give the same bits (worker processes would hide a change).

    Finds: Samples that change when they are read: something edits what the data set stores.
    """
    try:
        reads = _Reads(part, context.config.seed, context.reading_s)
        drift = reads.find_drift()
    except Exception:  # noqa: BLE001 - a part that cannot be read is what the check `first-step` reports
        return None
    if drift is None:
        return None
    changed, writer = reads.list_changed(drift.key), reads.find_writer(drift.key)
    is_stored = bool(changed) or writer is not None
    is_random = not is_stored and reads.is_random(drift)
    causes = ["data.item_mutation", "data.duplicate_randomness", "sys.nondeterminism"]
    writer_text = f"; written by {writer.function} ({Path(writer.file).name}:{writer.line})" if writer else ""
    changed_text = f"; stored and changed: {', '.join(changed[:4])}" if changed else ""
    dataset, sample = f"{context.config.data.name}/{part.split}", drift.key.index
    where = context.place("data", dataset=dataset, sample=sample)
    return Fault(
        f"'{drift.field}' changes when it is read" + ("" if is_stored else ", although no stored array does"),
        causes=[*causes[1:], causes[0]] if is_random else causes,
        where=replace(where, file=writer.file, line=writer.line) if writer else where,
        measured=f"{describe_sample(part.dataset, sample)}: read 1 and read {drift.read} of one key differ in "
        f"{drift.change}{writer_text}{changed_text}",
        expected="equal bits: a sample is a function of (index, epoch, seed), and reading changes nothing stored",
        action="copy before editing (`x = x - m`, not `x -= m`), and mark stored arrays read-only"
        if is_stored
        else "compute samples from the key alone: without a counter, clock or generator of the data set",
        evidence={"field": drift.field, "looked_at": reads.extent},
    )


class _Reads:
    """Repeated reads of up to 32 samples spread over a part; fewer if they are large or slow to read.

    The first sample is read when the object is made.
    """

    def __init__(self, part: DataSubset, seed: int, max_seconds: float) -> None:
        self.part = part
        self._generators = find_generators(part)
        cpu_start, wall_start = compute_seconds(), time.perf_counter()
        sample = self.read(SampleKey(int(part.indices[0]), 0, seed))
        share = max((compute_seconds() - cpu_start) / max_seconds, (time.perf_counter() - wall_start) / _MAX_WAIT_S)
        num_bytes = sum(tensor.nbytes for tensor in sample.values())
        limits = (_MAX_SAMPLES, _MAX_BYTES // max(1, num_bytes), int(1 / (_NUM_READS * share)))
        count = max(2, min(limits))
        keys = [SampleKey(int(index), 0, seed) for index in part.evenly_spaced_indices(count)]
        self.keys = [*keys[::3], *keys[1::3], *keys[2::3]]  # the first of them are spread, too
        self._first_reads = [sample]
        self._max_seconds = max_seconds / _NUM_READS

    @property
    def extent(self) -> str:
        return f"{len(self.keys)} samples of the {self.part.split} part, {_NUM_READS} reads each"

    def read(self, key: SampleKey) -> Tensors:
        """Read a sample with its transforms; return copies of its tensors and restore all random states."""
        with preserve_random_state(), preserve_generators(self._generators):
            batch = self.part.reader([key])
        return {
            leaf: tensor.detach().clone() for name, value in batch.items() for leaf, tensor in array_leaves(value, name)
        }

    def find_drift(self) -> Drift | None:
        """Find the first sample and field whose bits differ in a later read."""
        first_reads = self._first_reads
        started = compute_seconds()
        while len(first_reads) < len(self.keys) and (
            len(first_reads) < 2 or compute_seconds() - started < self._max_seconds
        ):
            first_reads.append(self.read(self.keys[len(first_reads)]))
        self.keys = self.keys[: len(first_reads)]
        for number in range(1, _NUM_READS):
            for key, before in zip(self.keys, first_reads, strict=True):
                after = self.read(key)
                changes = {
                    n: _describe_change(before.get(n), after.get(n)) for n in sorted(before.keys() | after.keys())
                }
                for field, change in changes.items():
                    if change:
                        return Drift(key, field, number + 1, change)
        return None

    def is_random(self, drift: Drift) -> bool:
        """Return True if a field goes back and forth from read to read; what is edited in place drifts one way."""
        values = [
            tensor for _ in range(_NUM_DRIFT_READS) if (tensor := self.read(drift.key).get(drift.field)) is not None
        ]
        if len({tensor.shape for tensor in values}) != 1:
            return False
        steps = [(after.double() - before.double()).nan_to_num() for before, after in itertools.pairwise(values)]
        return any(float((first * second).sum()) < 0 for first, second in itertools.pairwise(steps))

    def list_changed(self, key: SampleKey) -> list[str]:
        """List the stored arrays that one more read of this key changes; a cache is full by now, and does not."""
        before = _digest_arrays(self.part)
        self.read(key)
        after = _digest_arrays(self.part)
        return [path for path, digest in before.items() if after.get(path, digest) != digest]

    def find_writer(self, key: SampleKey) -> WriteLocation | None:
        """Find the line that writes when this key is read with all stored arrays write-protected."""
        try:
            with _protect_arrays(self.part), _refuse_writes([array for _, array in _list_arrays(self.part)]):
                self.read(key)
        except ValueError as error:
            original = error.__cause__ or error  # a reader wraps what a data set raises
            frames = [f for f in traceback.extract_tb(original.__traceback__) if not _is_skipped_file(f.filename)]
            if "read-only" in str(error) and frames:
                return WriteLocation(frames[-1].filename, frames[-1].lineno or 0, frames[-1].name)
        return None


def _describe_change(before: Tensor | None, after: Tensor | None) -> str:
    """Describe the difference between two tensors; empty if they have the same bits."""
    if before is None or after is None:
        return "its presence: one of the reads lacks it"
    if before.shape != after.shape or before.dtype != after.dtype:
        return f"{before.dtype} {tuple(before.shape)}, then {after.dtype} {tuple(after.shape)}"
    if np.array_equal(as_bytes(before), as_bytes(after)):
        return ""
    difference = (after.double() - before.double()).abs()
    is_changed = (after != before) & ~((after != after) & (before != before))
    return f"{int(is_changed.sum())} of {before.numel()} values, by {float(difference.nan_to_num().max()):.6g} at most"


# --- who wrote it -----------------------------------------------------------------------------------------------------


def _list_arrays(part: DataSubset) -> list[tuple[str, Any]]:
    return [(path, array) for path, array in iter_reachable(part.dataset, (np.ndarray, Tensor)) if _count_bytes(array)]


def _count_bytes(array: Any) -> int:
    is_plain = isinstance(array, Tensor) or array.dtype.kind in "biufc"
    return int(array.nbytes) if is_plain else 0


def _digest_arrays(part: DataSubset) -> dict[str, str]:
    """Compute the SHA-256 digests of a data set's arrays by their paths, of at most 64 MiB."""
    digests: dict[str, str] = {}
    bytes_left = _MAX_BYTES
    for path, array in _list_arrays(part):
        bytes_left -= _count_bytes(array)
        if bytes_left < 0:
            break
        digests[path] = hashlib.sha256(as_bytes(array).tobytes()).hexdigest()
    return digests


@contextmanager
def _protect_arrays(part: DataSubset) -> Iterator[None]:
    """Context in which NumPy refuses writes to the data set's arrays; it restores their flags."""
    arrays = [array for _, array in _list_arrays(part) if isinstance(array, np.ndarray) and array.flags.writeable]
    for array in arrays:
        array.flags.writeable = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that it ignores NumPy's flags; `_refuse_writes` watches torch
            yield
    finally:
        for array in sorted(arrays, key=lambda item: item.base is not None):  # a view can only follow its base
            with suppress(ValueError):
                array.flags.writeable = True


def _refuse_writes(arrays: Sequence[np.ndarray | Tensor]) -> instrument.InterceptedOperators:
    """Return a mode that raises if torch would write into the memory of one of these arrays and tensors."""
    spans = [_find_memory_span(array) for array in arrays]

    def run(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        for index, declared in enumerate(operator._schema.arguments):
            value = arguments.get(declared.name if declared.kwarg_only else index)
            is_written = declared.alias_info is not None and declared.alias_info.is_write
            if is_written and isinstance(value, Tensor) and any(a <= value.data_ptr() < b for a, b in spans):
                raise ValueError("a stored tensor is read-only while it is watched")
        return operator(*args, **kwargs)

    return instrument.InterceptedOperators(run)


def _find_memory_span(array: np.ndarray | Tensor) -> tuple[int, int]:
    start = array.data_ptr() if isinstance(array, Tensor) else array.__array_interface__["data"][0]
    return start, start + int(array.nbytes)


def _is_skipped_file(filename: str) -> bool:
    """Return True for files of libraries and of this check, which only lead to the line that writes."""
    return "site-packages" in filename or filename in (__file__, instrument.__file__)


_MAX_LISTED = 3
