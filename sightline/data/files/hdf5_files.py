"""Arrays in HDF5 files: every number comes from the file itself; what was never written, or lies elsewhere, is refused.

HDF5 fills what was never written with zeros, and follows links, virtual datasets and raw storage into other files.
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
"""Kinds of NumPy types; of Python objects (O) strings alone are read."""
_MASK_BYTES = 2**30
"""Up to this whole numbers are read however well they were compressed: a mask may hold one number a million times."""


@dataclass(frozen=True)
class Hdf5File:
    """The arrays at the root of an open file. `what` is the kind of file it should be, for errors; may be empty."""

    path: Path
    root: Any
    what: str = ""

    def names(self) -> list[str]:
        """Every name at the root except those of groups; `array` refuses those that lead out of the file."""
        return [name for name in self.root if _leads_out(self.root, name) or not _is_group(self.root.get(name))]

    def array(self, key: str, *, kinds: str = NUMBERS) -> Any:
        """A dataset, to be read whole or in parts, with a type of these `kinds`.

        Raises DataError naming file and key if it is missing, not an array of the kind, not in this file, not written
        to the end, larger than its stored bytes allow, or stored in a way that cannot be read here.
        """
        where = f"{self.path}: {key}"
        if key not in list(self.root):  # not `in self.root`, which would open the file that a link leads to
            held = ", ".join(self.root) or "none"
            advice = f"is it {self.what}?" if self.what else "get the file again"
            raise DataError(f"{self.path}: has no key '{key}', it has {held}; {advice}")
        if _leads_out(self.root, key):
            raise DataError(f"{where} is a link out of this file, or to nothing; store its numbers in this file")
        dataset = self.root[key]
        if not hasattr(dataset, "shape"):
            found = "a group" if _is_group(dataset) else "a type"
            raise DataError(f"{where} is {found}, an array is needed; get the file again")
        _check_kind(where, dataset, kinds)
        _check_stored(where, dataset, self.path.stat().st_size)
        return dataset


@contextmanager
def open_hdf5(path: Path, *, what: str = "") -> Iterator[Hdf5File]:
    """A file, open for reading; `what` as of `Hdf5File`. Raises DataError if it is damaged, also while it is read."""
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
        raise DataError(f"{path}: is not a sound HDF5 file ({summarise_error(error)}); get it again") from error


def read_hdf5_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array at the root of a file by its name; groups are left out. Raises DataError naming the key."""
    with open_hdf5(path) as file:
        arrays = {name: file.array(name) for name in file.names()}
        return {name: array[...] for name, array in arrays.items()}


def hdf5_names(path: Path) -> list[str]:
    """The names of the arrays at the root of a file. Raises DataError if it is damaged."""
    with open_hdf5(path) as file:
        return file.names()


def _is_group(item: Any) -> bool:
    return hasattr(item, "keys")


def _leads_out(root: Any, name: str) -> bool:
    """Whether a name is a link to another file, or to nothing. It is not opened: that could run into any file."""
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
            return True  # a link to a link: nobody writes one, and it may lead anywhere
        group = group[part]
    return False


def _check_kind(where: str, dataset: Any, kinds: str) -> None:
    import h5py

    is_known = dataset.dtype.kind in kinds and (dataset.dtype.kind != "O" or h5py.check_string_dtype(dataset.dtype))
    if dataset.shape is None or not is_known:
        wanted = "numbers" if kinds == NUMBERS else "text"
        raise DataError(
            f"{where} is {dataset.dtype}, no array of {wanted}; store {wanted}, or leave it out of the file"
        )


def _check_stored(where: str, dataset: Any, num_bytes: int) -> None:
    """Raises DataError unless all elements of a dataset are stored in its own file, of `num_bytes`, and can be read."""
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{where} lies in other files; store its numbers in this one")
    missing = _missing_filter(dataset)
    if missing:
        raise DataError(f"{where} is compressed by {missing}, which is not installed; store it with gzip or plain")
    stored, element_bytes = dataset.id.get_storage_size(), dataset.id.get_type().get_size()
    claimed = in_memory = math.prod(dataset.shape) * element_bytes
    is_whole = claimed <= stored
    if dataset.chunks is not None:  # they may be compressed, so they are counted; each is read whole
        sides = zip(dataset.shape, dataset.chunks, strict=True)
        num_chunks = math.prod(-(-length // chunk) for length, chunk in sides)
        is_whole = dataset.id.get_num_chunks() >= num_chunks
        in_memory = num_chunks * math.prod(dataset.chunks) * element_bytes
    if stored > num_bytes or not is_whole:
        raise DataError(
            f"{where} claims to be {dataset.dtype} {dataset.shape}, {claimed} bytes, and {stored} are stored in a "
            f"file of {num_bytes}; it was not written to the end: get it again"
        )
    check_decompressed_size(
        where, in_memory, stored, free_bytes=FREE_BYTES if dataset.dtype.kind == "f" else _MASK_BYTES
    )


def _missing_filter(dataset: Any) -> str:
    """The first filter of a dataset that this installation of HDF5 does not have; empty where it has all."""
    import h5py

    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(index) for index in range(plan.get_nfilters())]
    missing = [(code, name) for code, _, _, name in filters if not h5py.h5z.filter_avail(code)]
    return f"the HDF5 filter {missing[0][0]} {missing[0][1].decode('latin-1')}".rstrip() if missing else ""
