"""HDF5 arrays: datasets that are incomplete, or stored outside the file, are refused.

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

from sightline.data.files.array_files import FREE_BYTES, READ_ERRORS, check_decompressed_size, summarise_error
from sightline.data.files.input_files import assert_regular
from sightline.errors import DataError

__all__ = ["NUMBERS", "TEXT", "Hdf5File", "hdf5_names", "open_hdf5", "read_hdf5_arrays"]

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
        """List the names at the root except groups; `array` refuses those that lead out of the file."""
        return [name for name in self.root if _leads_out(self.root, name) or not _is_group(self.root.get(name))]

    def array(self, key: str, *, kinds: str = NUMBERS) -> Any:
        """Return a dataset with a dtype of these `kinds`, to be read whole or in parts.

        Raises DataError naming file and key if it is missing, not an array of the kind, not in this file, incomplete,
        larger than its stored bytes allow, or stored in a way that cannot be read here.
        """
        where = f"{self.path}: {key}"
        if key not in list(self.root):  # not `in self.root`, which would open the file that a link leads to
            available = ", ".join(self.root) or "none"
            advice = f"is it {self.what}?" if self.what else "the file is damaged or in another format"
            raise DataError(f"{self.path}: has no key '{key}', it has {available}; {advice}")
        if _leads_out(self.root, key):
            raise DataError(f"{where} is a link out of this file, or to nothing; store its numbers in this file")
        dataset = self.root[key]
        if not hasattr(dataset, "shape"):
            description = "a group" if _is_group(dataset) else "a type"
            raise DataError(f"{where} is {description}, an array is needed; the file is damaged or in another format")
        _check_kind(where, dataset, kinds)
        _check_stored(where, dataset, self.path.stat().st_size)
        return dataset


@contextmanager
def open_hdf5(path: Path, *, what: str = "") -> Iterator[Hdf5File]:
    """Open a file for reading; `what` as in `Hdf5File`. Raises DataError if it is damaged, also during reading."""
    import h5py  # here, because every verb that lists data sets imports this module

    assert_regular(path)
    try:
        with h5py.File(path, "r") as file:
            yield Hdf5File(path, file, what)
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{path}: does not fit into memory ({summarise_error(error)}); use a machine with more"
        ) from error
    except (*READ_ERRORS, KeyError) as error:
        raise DataError(
            f"{path}: is not a sound HDF5 file ({summarise_error(error)}); it is damaged or in another format"
        ) from error


def read_hdf5_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array at the root of a file, by name; groups are skipped. Raises DataError naming the key."""
    with open_hdf5(path) as file:
        arrays = {name: file.array(name) for name in file.names()}
        return {name: array[...] for name, array in arrays.items()}


def hdf5_names(path: Path) -> list[str]:
    """List the names of the arrays at the root of a file. Raises DataError if it is damaged."""
    with open_hdf5(path) as file:
        return file.names()


def _is_group(item: Any) -> bool:
    return hasattr(item, "keys")


def _leads_out(root: Any, name: str) -> bool:
    """Return True if a name is a link to another file, or to nothing. It is not opened: it may be any file."""
    import h5py

    link = root.get(name, getlink=True)
    if isinstance(link, h5py.HardLink):
        return False
    if not isinstance(link, h5py.SoftLink):
        return True
    group = root
    for part in link.path.strip("/").split("/"):
        if not _is_group(group) or part not in list(group):
            return True
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            return True  # a link to a link: not used in practice, and may lead out of the file
        group = group[part]
    return False


def _check_kind(where: str, dataset: Any, kinds: str) -> None:
    """Raise DataError unless a dataset is an array of these kinds."""
    import h5py

    is_known = dataset.dtype.kind in kinds and (dataset.dtype.kind != "O" or h5py.check_string_dtype(dataset.dtype))
    if dataset.shape is None or not is_known:
        wanted = "numbers" if kinds == NUMBERS else "text"
        raise DataError(
            f"{where} is {dataset.dtype}, not an array of {wanted}; store {wanted}, or leave it out of the file"
        )


def _check_stored(where: str, dataset: Any, num_bytes: int) -> None:
    """Raise DataError unless a dataset is complete and readable in its own file, of `num_bytes`."""
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{where} is stored in other files; store its numbers in this one")
    missing = _missing_filter(dataset)
    if missing:
        raise DataError(f"{where} is compressed by {missing}, which is not installed; store it with gzip or plain")
    stored, element_bytes = dataset.id.get_storage_size(), dataset.id.get_type().get_size()
    claimed = memory_bytes = math.prod(dataset.shape) * element_bytes
    is_complete = claimed <= stored
    if dataset.chunks is not None:  # chunks may be compressed, so they are counted; each is read as a whole
        sides = zip(dataset.shape, dataset.chunks, strict=True)
        num_chunks = math.prod(-(-length // chunk) for length, chunk in sides)
        is_complete = dataset.id.get_num_chunks() >= num_chunks
        memory_bytes = num_chunks * math.prod(dataset.chunks) * element_bytes
    if stored > num_bytes or not is_complete:
        raise DataError(
            f"{where} claims to be {dataset.dtype} {dataset.shape}, {claimed} bytes, and {stored} are stored in a "
            f"file of {num_bytes}; it was not written to the end: copy or download it again"
        )
    check_decompressed_size(
        where, memory_bytes, stored, free_bytes=FREE_BYTES if dataset.dtype.kind == "f" else _MASK_BYTES
    )


def _missing_filter(dataset: Any) -> str:
    """Return the first filter of a dataset that is not installed with HDF5; empty if all are."""
    import h5py

    property_list = dataset.id.get_create_plist()
    filters = [property_list.get_filter(index) for index in range(property_list.get_nfilters())]
    missing = [(code, name) for code, _, _, name in filters if not h5py.h5z.filter_avail(code)]
    return f"the HDF5 filter {missing[0][0]} {missing[0][1].decode('latin-1')}".rstrip() if missing else ""
