"""Native form of a prepared data set: one array file per split and column, and a manifest that verifies them.

A prepared folder contains `<split>.<column>.npy`, `<split>.name.json` and `manifest.json`; none of them is ever
written again. The manifest carries a digest of its own text, and the size and SHA-256 of every file. Rows of ragged
columns are concatenated, and `<split>.offsets.npy` contains the start of each row (columns.py). A set may list files
of its source in `<split>.listed.json` instead of copying them.

The manifest names one absolute folder, the source that the user gave; `<split>.listed.json` lists the files of every
row below it, with their size, modification time and SHA-256. No entry leads out of that folder by its name; links that
the user keeps in it are followed, since large sets are spread over disks that way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.errors import DataError, MissingDataError, join_some, summarise_error
from sightline.contract.regular_files import check_regular_file, find_outward_link, parse_json, read_regular_file
from sightline.store.files.array_files import check_npy
from sightline.store.files.input_files import prepare_again, read_file
from sightline.store.prepared.columns import OFFSETS


class ListedFile(NamedTuple):
    """File below the listed folder as it was at preparation; `path` is relative to the folder."""

    path: str
    num_bytes: int
    mtime_ns: int
    sha256: str


def list_file(path: Path, root: Path) -> ListedFile:
    """Build the entry of a file below `root`. Raises DataError if it is unreadable, or changes meanwhile."""
    content, status = read_file(path), path.stat()
    if len(content) != status.st_size:
        raise DataError(f"{path}: changed while it was read; wait until it is written, and prepare the set again")
    digest = hashlib.sha256(content).hexdigest()
    return ListedFile(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns, digest)


class FileListing:
    """Listed files of a split by row, below `root`; `where` is the document that lists them.

    Raises DataError for a document of another form, and for a path that leads out of the folder.
    """

    def __init__(self, root: Path, rows: Any, *, where: Path) -> None:
        self._root = root
        self._where = where
        try:
            self._rows = [[ListedFile(*entry) for entry in row] for row in rows]
            outside = next((entry.path for row in self._rows for entry in row if not _is_below(entry.path)), None)
        except TypeError as error:
            raise prepare_again(f"{where}: is not a list of files") from error
        if outside is not None:
            raise prepare_again(f"{where}: lists '{outside}', which is not below {root}")

    def __len__(self) -> int:
        return len(self._rows)

    def paths(self, row: int) -> tuple[Path, ...]:
        """Return the files of a row. Raises DataError naming the first that is missing or has changed."""
        return tuple(self._check_file(entry) for entry in self._rows[row])

    def verify(self) -> int:
        """Check the SHA-256 of every file; return the number of files. Raises DataError naming a wrong one."""
        entries = {entry.path: entry for row in self._rows for entry in row}
        for entry in entries.values():
            path = self._check_file(entry)
            if hashlib.sha256(read_file(path)).hexdigest() != entry.sha256:
                raise self._changed_error(path, "differs from what it held when the set was prepared (SHA-256)")
        return len(entries)

    def digests(self) -> list[list[tuple[str, str]]]:
        """Return path and SHA-256 of the files of each row."""
        return [[(entry.path, entry.sha256) for entry in row] for row in self._rows]

    def _check_file(self, entry: ListedFile) -> Path:
        path = self._root / entry.path
        try:
            status = path.stat()
        except OSError as error:
            raise self._changed_error(path, f"cannot be found ({error.strerror})") from error
        if status.st_size != entry.num_bytes:
            raise self._changed_error(path, f"has {status.st_size} bytes, {entry.num_bytes} when the set was prepared")
        if status.st_mtime_ns != entry.mtime_ns:
            times = " instead of ".join(_time_text(time_ns) for time_ns in (status.st_mtime_ns, entry.mtime_ns))
            raise self._changed_error(path, f"was written again after the set was prepared ({times})")
        return path

    def _changed_error(self, path: Path, fault: str) -> DataError:
        folder = self._where.parent
        return DataError(
            f"{path}: {fault}; {folder} lists it and has no copy: put the file back, or delete {folder} and prepare "
            "the set again"
        )


def _is_below(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path


def _time_text(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(mtime_ns // 10**9)) + f".{mtime_ns % 10**9:09d} UTC"


FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LISTED = "listed"
"""Manifest entry about files listed in place, and part of the names of the documents that list them."""
_ENTRIES = {"format", "set", "source", "columns", "splits", "files", "digest"}


class PreparedSet:
    """Prepared folder with a checked manifest and file sizes. Arrays are mapped on first use, read-only.

    Pickling carries the path and the manifest only, so that a worker process maps the files itself. The folder stays
    the same where a program changes its working directory; `root` is its path as it was given.
    """

    def __init__(self, root: Path, manifest: Mapping[str, Any]) -> None:
        self.root = root
        self._folder = root.absolute()
        self.manifest = manifest
        self._arrays: dict[str, np.ndarray] = {}
        self._listings: dict[str, FileListing] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrays": {}, "_listings": {}}

    @property
    def splits(self) -> list[str]:
        return list(self.manifest["splits"])

    def array(self, split: str, column: str) -> np.ndarray:
        """Return all rows of a column of a split: (rows, *column shape), read-only, mapped from the file.

        For a ragged column, the elements of all rows, concatenated: (elements, *element shape).
        Raises DataError if the file is not the one in the manifest.
        """
        promise = self.manifest["columns"][column]
        length = self._num_elements(split) if self.is_ragged(column) else self._num_rows(split)
        return self._get_array(f"{split}.{column}.npy", (length, *promise["shape"]), promise["dtype"])

    def is_ragged(self, column: str) -> bool:
        """Return True if the rows of a column have lengths of their own."""
        return bool(self.manifest["columns"][column].get("is_ragged", False))

    def offsets(self, split: str) -> np.ndarray:
        """Return the start of each row of the ragged columns and the end of the last: (rows + 1,) int64, read-only.

        Raises DataError as `array` does, and if the values are not the starts of rows.
        """
        file_name = f"{split}.{OFFSETS}.npy"
        is_checked = file_name in self._arrays
        offsets = self._get_array(file_name, (self._num_rows(split) + 1,), "int64")
        min_length = 0 if any(column.get("can_be_empty") for column in self.manifest["columns"].values()) else 1
        is_wrong = offsets[0] or offsets[-1] != self._num_elements(split)
        if not is_checked and (is_wrong or (np.diff(offsets) < min_length).any()):
            del self._arrays[file_name]
            raise prepare_again(f"{self.root / file_name}: does not rise from 0 to {self._num_elements(split)}")
        return offsets

    def row(self, split: str, column: str, index: int) -> np.ndarray:
        """Return one row of a column, read-only, mapped from the file; ragged: (its elements, *element shape)."""
        array = self.array(split, column)
        if not self.is_ragged(column):
            return array[index]
        offsets = self.offsets(split)
        return array[offsets[index] : offsets[index + 1]]

    def rows(self, split: str, column: str) -> Iterator[np.ndarray]:
        """Iterate over the rows of a column, each as `row` returns it."""
        return (self.row(split, column, index) for index in range(self._num_rows(split)))

    def names(self, split: str) -> list[str]:
        """Read the name of every row of a split."""
        path = self._folder / f"{split}.name.json"
        names = _read_json(path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise prepare_again(f"{path}: is not a list of names")
        if len(names) != self._num_rows(split):
            raise prepare_again(f"{path}: names {len(names)} rows of {self._num_rows(split)}")
        return names

    def listing(self, split: str) -> FileListing:
        """Return the files that the rows of a split list in place. Raises DataError if the document has another form.

        A set without listed files has no such document.
        """
        if split not in self._listings:
            document = self._folder / f"{split}.{LISTED}.json"
            listing = FileListing(Path(self.manifest[LISTED]["root"]), _read_json(document), where=document)
            if len(listing) != self._num_rows(split):
                raise prepare_again(f"{document}: lists {len(listing)} rows of {self._num_rows(split)}")
            self._listings[split] = listing
        return self._listings[split]

    def content_sha256(self) -> str:
        """Compute a digest of all that the folder contains and lists, wherever its source is and whenever it was made.

        Files are not read: the manifest and the documents that list files have their digests.
        """
        entries = {key: self.manifest[key] for key in self.manifest.keys() - {"digest", "files", "source", LISTED}}
        files = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        listed = {split: self.listing(split).digests() for split in self.splits if LISTED in self.manifest}
        contents = [entries, {name: digest for name, digest in files.items() if not name.endswith(f".{LISTED}.json")}]
        return hashlib.sha256(json.dumps([*contents, listed], sort_keys=True).encode()).hexdigest()

    def _num_rows(self, split: str) -> int:
        return int(self.manifest["splits"][split]["num_rows"])

    def _num_elements(self, split: str) -> int:
        return int(self.manifest["num_elements"][split])

    def _get_array(self, file_name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Map an array file on first use; shape and dtype must match."""
        if file_name not in self._arrays:
            self._arrays[file_name] = _map_array(self._folder / file_name, shape, np.dtype(dtype))
        return self._arrays[file_name]


_ELSEWHERE = "if the set is elsewhere, give data.root=FOLDER, or without it SIGHTLINE_DATA=FOLDER around all sets"


def open_prepared(root: Path, *, set_names: Sequence[str], options: str = "") -> PreparedSet:
    """Open the prepared set at `root`; check sizes and the manifest's digest, but not the file contents (see `verify`).

    Raises DataError with the command that makes such a folder (of the first of `set_names`, with `options`) if there is
    none or it contains something else; and if a file is missing or has another size.
    """
    if not root.is_dir():
        raise MissingDataError(
            f"{root}: there is no such folder{describe_unfinished(root)}; {_describe_start(root)}{_ELSEWHERE}; "
            f"to make it: {prepare_command(set_names[0], str(root), options)}"
        )
    command = prepare_command(set_names[0], "DIR", options)
    if not (root / MANIFEST).is_file():
        raise MissingDataError(
            f"{root}: is not a prepared set, it holds {summarise_folder(root)}{describe_unfinished(root)}; "
            f"{_ELSEWHERE}; to make one: {command}"
        )
    manifest = read_manifest(root)
    if manifest["set"] not in set_names:
        raise DataError(
            f"{root}: is prepared as '{manifest['set']}', {' or '.join(set_names)} is needed; to make one: {command}"
        )
    check_sizes(root, manifest)
    return PreparedSet(root, manifest)


def _describe_start(root: Path) -> str:
    """Describe the folder from which a relative path was looked up: runs remember it as it was typed."""
    if root.is_absolute():
        return ""
    with contextlib.suppress(OSError):  # the working folder was deleted
        return f"looked in {Path.cwd()}; "
    return ""


def prepare_command(set_name: str, target: str, options: str = "") -> str:
    """Format the command that prepares a set; `options` are `key=value`."""
    return f"sightline data prepare {set_name} --from PATH --to {shlex.quote(target)} {options}".rstrip()


def read_manifest(root: Path) -> dict[str, Any]:
    """Read the manifest of a prepared folder. Raises DataError if it is missing, altered or of another version."""
    path = root / MANIFEST
    if not path.is_file():
        raise DataError(f"{root}: is not a prepared set, there is no {MANIFEST}; sightline data prepare makes one")
    manifest = _read_json(path)
    if not _is_sealed(manifest):
        raise prepare_again(f"{path}: its text was altered after it was written (digest differs)")
    if manifest["format"] != FORMAT_VERSION:
        raise DataError(
            f"{path}: has format version {manifest['format']}, this release reads {FORMAT_VERSION}; prepare it again"
        )
    fault = _form_fault(manifest)
    if fault:
        raise prepare_again(f"{path}: {fault}")
    outside = next((name for key in ("files", "splits", "columns") for name in manifest[key] if "/" in name), None)
    if outside is not None:
        raise prepare_again(f"{path}: names '{outside}', which is not in its own folder")
    if LISTED in manifest and not Path(manifest[LISTED]["root"]).is_absolute():
        raise DataError(f"{path}: lists files below '{manifest[LISTED]['root']}', no absolute path; prepare it again")
    link = find_outward_link(root, [MANIFEST, *sorted(os.listdir(root))])
    if link is not None:
        raise DataError(f"{link}: is a link to {os.readlink(link)}, out of the prepared folder; put the file there")
    return manifest


def _form_fault(manifest: Mapping[str, Any]) -> str:
    """Describe the first missing or mistyped entry that every reader of a set needs; empty if there is none."""
    if not isinstance(manifest["set"], str):
        return "its 'set' is not a name"
    for key, kinds in _FORMS.items():
        if not isinstance(manifest[key], dict):
            return f"its '{key}' is a {type(manifest[key]).__name__}, a mapping is needed"
        for name, entry in manifest[key].items():
            for field, is_sound in kinds.items():
                if not isinstance(entry, dict) or field not in entry or not is_sound(entry[field]):
                    return f"the '{field}' of '{name}' in its '{key}' is missing, or not what a set is described by"
    names = manifest.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "its 'class_names' are not a list of names"
    for key, kind in _TYPES.items():
        value = manifest.get(key)
        is_fine = value is None or isinstance(value, kind) or (kind is float and type(value) is int)
        if not is_fine:
            return f"its '{key}' is a {type(value).__name__}, and must be a {kind.__name__}"
    for name, ends in (manifest.get("ranges") or {}).items():
        if not (isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)):
            return f"its 'ranges' have no two ends of '{name}'"
    for split, facts in manifest["splits"].items():
        if "class_counts" in facts and not _counts_classes(facts["class_counts"], names):
            return f"the 'class_counts' of '{split}' do not count its classes"
    counts = manifest.get("num_elements", {})
    is_ragged = any(column.get("is_ragged") for column in manifest["columns"].values())
    if not isinstance(counts, dict) or (is_ragged and counts.keys() < manifest["splits"].keys()):
        return "its 'num_elements' do not count those of every part"
    if not all(map(_is_count, counts.values())):
        return "its 'num_elements' are not counts"
    if LISTED in manifest and not (
        isinstance(manifest[LISTED], dict) and isinstance(manifest[LISTED].get("root"), str)
    ):
        return f"its '{LISTED}' has no 'root'"
    return ""


def _shorten(text: str, max_length: int = 80) -> str:
    return text if len(text) <= max_length else f"{text[:max_length].rpartition(', ')[0]}, ..."


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 32 and all(map(_is_count, value))


def _counts_classes(value: Any, names: Sequence[str]) -> bool:
    """Return True if `value` counts classes; `names` are empty if the manifest names no classes."""
    return isinstance(value, list) and len(value) == (len(names) or len(value)) and all(map(_is_count, value))


def _is_number_type(value: Any) -> bool:
    try:
        return isinstance(value, str) and np.dtype(value).kind in "biuf"
    except (TypeError, ValueError, SyntaxError):
        return False


_FORMS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "files": {"bytes": _is_count, "sha256": lambda value: isinstance(value, str)},
    "splits": {"num_rows": _is_count},
    "columns": {"shape": _is_shape, "dtype": _is_number_type},
}

_TYPES: Mapping[str, type] = {
    **dict.fromkeys(("source", "options", "preparation", "ranges", "classes", "statistics", "pairs"), dict),
    **dict.fromkeys(("channels", "image_size_px", "radii", "joint_names", "differences", "duplicates"), list),
    **dict.fromkeys(("layout", "up_axis", "unit", "file_unit", "normalisation", "depth_type"), str),
    **dict.fromkeys(("remission_high", "mm_per_unit"), float),
    **dict.fromkeys(("num_ignored", "fewest_points"), int),
}
"""Type of each optional entry."""


def check_sizes(root: Path, manifest: Mapping[str, Any]) -> None:
    """Raise DataError naming the first file that is missing or has another size than in the manifest."""
    for file_name, promise in manifest["files"].items():
        path = root / file_name
        if not path.is_file():
            raise prepare_again(f"{path}: is missing, {MANIFEST} lists it")
        if path.stat().st_size != promise["bytes"]:
            raise prepare_again(f"{path}: has {path.stat().st_size} bytes, {MANIFEST} lists {promise['bytes']}")


def verify(root: Path) -> int:
    """Check the SHA-256 of every file of a prepared folder; return the number of files.

    Files that the set lists in place are read too. Raises DataError naming the first file that differs.
    """
    manifest = read_manifest(root)
    check_sizes(root, manifest)
    for file_name, promise in manifest["files"].items():
        if compute_sha256(root / file_name) != promise["sha256"]:
            raise prepare_again(f"{root / file_name}: differs from what was written (SHA-256)")
    prepared = PreparedSet(root, manifest)
    num_listed = sum(prepared.listing(split).verify() for split in prepared.splits) if LISTED in manifest else 0
    return len(manifest["files"]) + num_listed


def add_digest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with the digest of all its other entries."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return {**body, "digest": hashlib.sha256(text.encode()).hexdigest()}


def _is_sealed(manifest: Any) -> bool:
    """Return True if this is a manifest with all required entries and the digest of its own text."""
    if not isinstance(manifest, dict) or not manifest.keys() >= _ENTRIES:
        return False
    try:
        return add_digest(manifest)["digest"] == manifest["digest"]
    except ValueError:  # a number that is not finite, which no manifest contains
        return False


def compute_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    check_regular_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_contents(folder: Path) -> str:
    """Describe what is in a folder for an error, or that there is no such folder."""
    return f"holds {summarise_folder(folder)}" if folder.is_dir() else "there is no such folder"


def summarise_folder(folder: Path, limit: int = 5) -> str:
    """Summarise a folder's contents for an error: the first few names and how many more."""
    names = sorted(entry.name for entry in folder.iterdir())
    return join_some(names, most=limit) or "nothing"


def _map_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        check_npy(path)
        with np.errstate(over="ignore"):  # an absurdly large shape overflows, and is refused
            array = np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise prepare_again(f"{path}: does not read as an array ({summarise_error(error)})") from error
    if (array.shape, array.dtype) != (shape, dtype):
        raise prepare_again(f"{path}: holds {array.dtype} {array.shape}, the manifest lists {dtype} {shape}")
    return array


def describe_unfinished(root: Path) -> str:
    """Describe the partial folder of an unfinished preparation; empty if there is none."""
    work = root.with_name(root.name + ".partial")
    return f" ({work} is unfinished; the command that made it continues it)" if work.is_dir() else ""


class _Entries(dict[str, Any]):
    """Mapping of a manifest that raises DataError for a missing entry."""

    def __missing__(self, key: str) -> Any:
        raise prepare_again(f"{MANIFEST}: its entries {_shorten(', '.join(self))} lack '{key}'")


def _read_json(path: Path) -> Any:
    try:
        return parse_json(read_regular_file(path), object_hook=_Entries)
    except (OSError, ValueError) as error:
        raise prepare_again(f"{path}: does not read as JSON ({summarise_error(error)})") from error
