"""Arrays of HDF5 files: what is incomplete, or stored outside the file, is refused.

HDF5 fills missing data with zeros, and follows links, virtual datasets and raw storage into other files.
Nothing else in the package opens HDF5 files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.input_files import (
    FREE_BYTES,
    assert_regular,
    check_decompressed_size,
    convert_errors,
    copy_again,
    damaged,
)

NUMBERS = "biuf"
TEXT = "SO"
"""Kinds of NumPy dtypes; of Python objects (O) only strings are read."""
_MASK_BYTES = 2**30
"""Size up to which integers are read regardless of compression: a mask may repeat one number a million times."""


@dataclass(frozen=True)
class Hdf5File:
    """Arrays at the root of an open file. `what` names the expected kind of file in errors; may be empty."""

    path: Path
    root: Any
    what: str = ""

    def names(self) -> list[str]:
        """List the names at the root except groups; `array` refuses those that are links."""
        return [name for name in self.root if self._is_link(name) or not hasattr(self.root.get(name), "keys")]

    def array(self, key: str, *, kinds: str = NUMBERS) -> Any:
        """Return a dataset with a dtype of these `kinds`, to be read whole or in parts.

        Raises DataError naming file and key if it is missing, not an array of the kind, not in this file, incomplete,
        larger than its stored bytes allow, or stored in a way that cannot be read here.
        """
        import h5py

        where = f"{self.path}: {key}"
        if key not in list(self.root):  # not `in self.root`, which would open the file that a link leads to
            available = ", ".join(self.root) or "none"
            advice = f"is it {self.what}?" if self.what else "the file is damaged or in another format"
            raise DataError(f"{self.path}: has no key '{key}', it has {available}; {advice}")
        if self._is_link(key):
            raise DataError(f"{where} is a link, which may lead to any file; store its numbers under this name")
        dataset, expected = self.root[key], "numbers" if kinds == NUMBERS else "text"
        if not isinstance(dataset, h5py.Dataset):
            raise damaged(
                f"{where} is {'a group' if isinstance(dataset, h5py.Group) else 'a type'}, an array is needed"
            )
        is_known = dataset.dtype.kind in kinds and (dataset.dtype.kind != "O" or h5py.check_string_dtype(dataset.dtype))
        if dataset.shape is None or not is_known:
            raise DataError(
                f"{where} is {dataset.dtype}, not an array of {expected}; store {expected}, or leave it out of the file"
            )
        _check_stored(where, dataset, self.path.stat().st_size)
        return dataset

    def _is_link(self, name: str) -> bool:
        """Return True if a name is a link. It is not opened: it may lead to any file."""
        import h5py

        return not isinstance(self.root.get(name, getlink=True), h5py.HardLink)


@contextmanager
def open_hdf5(path: Path, *, what: str = "") -> Iterator[Hdf5File]:
    """Open a file for reading; `what` as in `Hdf5File`. Raises DataError if it is damaged, also during reading."""
    import h5py  # here, because every verb that lists data sets imports this module

    assert_regular(path)
    with convert_errors(path, "is not a sound HDF5 file"), h5py.File(path, "r") as file:
        yield Hdf5File(path, file, what)


def read_hdf5_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array at the root of a file, by name; groups are skipped. Raises DataError naming the key."""
    with open_hdf5(path) as file:
        arrays = {name: file.array(name) for name in file.names()}
        return {name: array[...] for name, array in arrays.items()}


def _check_stored(where: str, dataset: Any, num_bytes: int) -> None:
    """Raise DataError unless a dataset is complete and readable in its own file, of `num_bytes`."""
    import h5py

    if dataset.is_virtual or dataset.external:
        raise DataError(f"{where} is stored in other files; store its numbers in this one")
    plan = dataset.id.get_create_plist()
    for code, _, _, name in map(plan.get_filter, range(plan.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            kind = f"{code} {name.decode('latin-1')}".rstrip()
            raise DataError(
                f"{where} is compressed by the HDF5 filter {kind}, which is not installed; store it with gzip or plain"
            )
    stored, element_bytes = dataset.id.get_storage_size(), dataset.id.get_type().get_size()
    claimed = memory_bytes = math.prod(dataset.shape) * element_bytes
    is_complete = claimed <= stored
    if dataset.chunks is not None:  # chunks may be compressed, so they are counted; each is read as a whole
        sides = zip(dataset.shape, dataset.chunks, strict=True)
        num_chunks = math.prod(-(-length // chunk) for length, chunk in sides)
        is_complete = dataset.id.get_num_chunks() >= num_chunks
        memory_bytes = num_chunks * math.prod(dataset.chunks) * element_bytes
    if stored > num_bytes or not is_complete:
        raise copy_again(
            f"{where} claims to be {dataset.dtype} {dataset.shape}, {claimed} bytes, and {stored} are stored in a "
            f"file of {num_bytes}; it was not written to the end"
        )
    free_bytes = FREE_BYTES if dataset.dtype.kind == "f" else _MASK_BYTES
    check_decompressed_size(where, memory_bytes, stored, free_bytes=free_bytes)
