"""Native form of a prepared data set: one array file per split and column, and a manifest that verifies them.

A prepared folder contains `<split>.<column>.npy` and `manifest.json`; none of them is ever written again. The manifest
carries a digest of its own text, the size and SHA-256 of every file, and the name of every row. Rows of ragged columns
are concatenated, and `<split>.offsets.npy` contains the start of each row (columns.py). A set may list files of its
source instead of copying them: the manifest then names one absolute folder, the source that the user gave, and for
every row the files below it, with their size, modification time and SHA-256. No entry leads out of that folder by its
name; links that the user keeps in it are followed, since large sets are spread over disks that way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import numpy as np
from typing_extensions import TypedDict

from sightline.contract.catalogue import are_of_one_area
from sightline.contract.errors import DataError, MissingDataError, join_some, summarise_error
from sightline.contract.regular_files import check_regular_file, find_outward_link, parse_json, read_regular_file
from sightline.contract.schema import suggest_beside
from sightline.contract.validation import Ge, Lt, TypeAdapter, ValidationError
from sightline.store.files.array_files import check_npy
from sightline.store.files.input_files import expand_home, prepare_again, read_file
from sightline.store.prepared.columns import OFFSETS, ColumnForm


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
    """Listed files of a split by row, below `root`; `folder` is the prepared folder that lists them.

    Raises DataError for a path that leads out of `root`.
    """

    def __init__(self, root: Path, rows: Sequence[Sequence[Sequence[Any]]], *, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self._rows = [[ListedFile(*entry) for entry in row] for row in rows]
        outside = next((entry.path for row in self._rows for entry in row if not _is_below(entry.path)), None)
        if outside is not None:
            raise prepare_again(f"{folder / MANIFEST}: lists '{outside}', which is not below {root}")

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
        return DataError(
            f"{path}: {fault}; {self._folder} lists it and has no copy: put the file back, or delete "
            f"{self._folder} and prepare the set again"
        )


def _is_below(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path


def _time_text(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(mtime_ns // 10**9)) + f".{mtime_ns % 10**9:09d} UTC"


FORMAT_VERSION = 3
MANIFEST = "manifest.json"
NAMES = "names"
LISTED = "listed"
"""Manifest entry about the files that are listed in place."""
LISTING = "listed_files"
"""Manifest entry with these files, by split and row."""
CONTENTS = "contents"
"""Manifest entry with a digest of what each row is about, by split: rows with the same digest are copies."""
ROW_ENTRIES = (NAMES, CONTENTS, LISTING)
"""Manifest entries with a value for every row."""

_Count = Annotated[int, Ge(0), Lt(2**48)]
_NumberType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"
]


class _Column(TypedDict):
    shape: list[_Count]
    dtype: _NumberType
    is_ragged: NotRequired[bool]


class _Split(TypedDict):
    num_rows: _Count
    class_counts: NotRequired[list[_Count]]


class _File(TypedDict):
    bytes: _Count
    sha256: str


class _Listed(TypedDict):
    root: str


class _Manifest(TypedDict):
    """Form of the entries that readers of any set use; a set adds others."""

    set: str
    source: dict[str, Any]
    columns: dict[str, _Column]
    splits: dict[str, _Split]
    names: dict[str, list[str]]
    contents: dict[str, list[str]]
    files: dict[str, _File]
    num_elements: NotRequired[dict[str, _Count]]
    listed: NotRequired[_Listed]
    listed_files: NotRequired[dict[str, list[list[tuple[str, int, int, str]]]]]
    ranges: NotRequired[dict[str, tuple[float, float]]]
    options: NotRequired[dict[str, Any]]
    preparation: NotRequired[dict[str, Any]]
    classes: NotRequired[dict[str, Any]]
    statistics: NotRequired[dict[str, Any]]
    pairs: NotRequired[dict[str, Any]]
    class_names: NotRequired[list[str]]
    channels: NotRequired[list[Any]]
    image_size_px: NotRequired[list[Any]]
    radii: NotRequired[list[Any]]
    joint_names: NotRequired[list[Any]]
    differences: NotRequired[list[Any]]
    doubts: NotRequired[list[str]]
    duplicates: NotRequired[list[Any]]
    layout: NotRequired[str]
    up_axis: NotRequired[str | None]
    unit: NotRequired[str | None]
    file_unit: NotRequired[str | float | None]
    normalisation: NotRequired[str]
    depth_type: NotRequired[str]
    remission_high: NotRequired[float | None]
    mm_per_unit: NotRequired[float | None]
    num_ignored: NotRequired[int]
    fewest_points: NotRequired[int]
    constant_channels: NotRequired[dict[str, float]]


class PreparedSet:
    """Prepared folder with a checked manifest and file sizes. Arrays are mapped on first use, read-only.

    Pickling carries the path and the manifest without what it says of every row, so that a worker process maps the
    files itself. The folder stays the same where a program changes its working directory; `root` is its path as given.
    """

    def __init__(self, root: Path, manifest: Mapping[str, Any]) -> None:
        self.root = root
        self._folder = root.absolute()
        self.manifest = _Entries({key: value for key, value in manifest.items() if key not in ROW_ENTRIES})
        self._row_entries: Mapping[str, Any] | None = {key: manifest[key] for key in ROW_ENTRIES if key in manifest}
        self._arrays: dict[str, np.ndarray] = {}
        self._listings: dict[str, FileListing] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrays": {}, "_listings": {}, "_row_entries": None}

    @property
    def splits(self) -> list[str]:
        """The stored splits, in the order of the manifest."""
        return list(self.manifest["splits"])

    def check_forms(self, forms: Mapping[str, ColumnForm]) -> None:
        """Raise DataError if one of these columns is there in another form, of which the arrays are no matter."""
        for name, column in self.manifest["columns"].items():
            if name in forms and not forms[name].fits(column["shape"], column["dtype"]):
                fault = f"its column '{name}' is {column['dtype']} of the shape {column['shape']}, which cannot be"
                raise prepare_again(f"{self.root / MANIFEST}: {fault}")

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
        """Return the name of every row of a split."""
        return list(self._get_row_entry(NAMES, split))

    def name(self, split: str, row: int) -> str:
        """Return the name of a row of a split."""
        return str(self._get_row_entry(NAMES, split)[row])

    def contents(self, split: str) -> list[str]:
        """Return a digest of what each row of a split is about; "" for rows that nothing identifies."""
        return list(self._get_row_entry(CONTENTS, split))

    def listing(self, split: str) -> FileListing:
        """Return the files that the rows of a split list in place, if they do.

        Raises DataError for a path that leads out of the listed folder.
        """
        if split not in self._listings:
            rows = self._get_row_entry(LISTING, split)
            self._listings[split] = FileListing(Path(self.manifest[LISTED]["root"]), rows, folder=self._folder)
        return self._listings[split]

    def _get_row_entry(self, key: str, split: str) -> Sequence[Any]:
        if self._row_entries is None:
            self._row_entries = _read_json(self._folder / MANIFEST)
        rows: Sequence[Any] = self._row_entries[key][split]
        return rows

    def content_sha256(self) -> str:
        """Compute a digest of all that the folder contains and lists, wherever its source is and whenever it was made.

        Files are not read: the manifest has their digests.
        """
        entries = {key: self.manifest[key] for key in self.manifest.keys() - {"digest", "files", "source", LISTED}}
        names = {split: self.names(split) for split in self.splits}
        files = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        listed = {split: self.listing(split).digests() for split in self.splits if LISTED in self.manifest}
        return hashlib.sha256(json.dumps([entries, names, files, listed], sort_keys=True).encode()).hexdigest()

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


def open_prepared(root: Path, *, set_names: Sequence[str], options: str = "", about: str = "") -> PreparedSet:
    """Open the prepared set at `root`; check sizes and the manifest's digest, but not the file contents (see `verify`).

    Raises DataError with the command that makes such a folder (of the first of `set_names`, with `options`, which
    `about` explains) if there is none or it contains something else; and if a file is missing or has another size.
    """
    about = about and f"; {about}"
    if not root.is_dir():
        beside = (file.parent for file in root.parent.glob(f"*/{MANIFEST}"))
        raise MissingDataError(
            f"{root}: there is no such folder{suggest_beside(root, beside)}; {_describe_start(root)}{_ELSEWHERE}; "
            f"to make it{about}: {prepare_command(set_names[0], str(root), options)}"
        )
    if not (root / MANIFEST).is_file():
        target = f"{root.name}_prepared"
        make = prepare_command(set_names[0], target, options, source=str(root))
        raise MissingDataError(
            f"{root}: is not a prepared set, it holds {summarise_folder(root)}; {_ELSEWHERE}; if this is the data "
            f"itself, prepare it, and give data.root={shlex.quote(target)}{about}: {make}"
        )
    manifest = read_manifest(root)
    if manifest["set"] not in set_names:
        advice = f"to make one{about}: {prepare_command(set_names[0], 'DIR', options)}"
        if are_of_one_area("data", manifest["set"], set_names[0]):
            advice = f"to read it as it is: data.name={manifest['set']}; {advice}"
        raise DataError(f"{root}: is prepared as '{manifest['set']}', {' or '.join(set_names)} is needed; {advice}")
    check_sizes(root, manifest)
    return PreparedSet(root, manifest)


def _describe_start(root: Path) -> str:
    """Describe the folder from which a relative path was looked up: runs remember it as it was typed."""
    if root.is_absolute():
        return ""
    with contextlib.suppress(OSError):  # the working folder was deleted
        return f"looked in {Path.cwd()}; "
    return ""


def prepare_command(set_name: str, target: str, options: str = "", *, source: str = "PATH") -> str:
    """Format the command that prepares a set; `options` are `key=value`."""
    return (
        f"sightline data prepare {set_name} --from {shlex.quote(source)} --to {shlex.quote(target)} {options}".rstrip()
    )


def read_manifest(root: Path) -> dict[str, Any]:
    """Read the manifest of a prepared folder. Raises DataError if it is missing, altered or of another version."""
    path = root / MANIFEST
    if not path.is_file():
        raise DataError(f"{root}: is not a prepared set, there is no {MANIFEST}; sightline data prepare makes one")
    manifest = _read_json(path)
    if not _is_sealed(manifest):
        raise prepare_again(f"{path}: its text was altered after it was written (digest differs)")
    if manifest.get("format") != FORMAT_VERSION:
        raise DataError(
            f"{path}: has format version {manifest.get('format')}, {FORMAT_VERSION} is read; delete {root} and "
            f"prepare the set again{_describe_preparation(root, manifest)}"
        )
    if fault := _find_fault(manifest):
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


def _describe_preparation(root: Path, manifest: Mapping[str, Any]) -> str:
    """Describe the command that prepared a set, without its options, as far as its manifest states it."""
    name, source = manifest.get("set"), manifest.get("source")
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(name, str) or not isinstance(path, str):
        return ""
    command = f"sightline data prepare {name} --from {shlex.quote(path)} --to {shlex.quote(str(root))}"
    return f": {command}, with the options that it was prepared with"


def _find_fault(manifest: Mapping[str, Any]) -> str:
    """Describe the first entry that is missing or has another form; empty if there is none."""
    try:
        TypeAdapter(_Manifest).validate_python(manifest)
    except ValidationError as error:
        fault = error.errors()[0]
        return f"its '{'.'.join(map(str, fault['loc']))}' is wrong: {fault['msg']}"
    rows = {split: facts["num_rows"] for split, facts in manifest["splits"].items()}
    for key in ROW_ENTRIES:
        if key in manifest and {split: len(values) for split, values in manifest[key].items()} != rows:
            return f"its '{key}' are not those of the {rows} rows of its splits"
    is_ragged = any(column.get("is_ragged") for column in manifest["columns"].values())
    if is_ragged and manifest.get("num_elements", {}).keys() != rows.keys():
        return "its 'num_elements' do not count those of every split"
    return "" if (LISTED in manifest) == (LISTING in manifest) else f"it has one of '{LISTED}' and '{LISTING}' alone"


def _shorten(text: str, max_length: int = 80) -> str:
    return text if len(text) <= max_length else f"{text[:max_length].rpartition(', ')[0]}, ..."


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
    """Return True if this is a mapping with the digest of its own text."""
    try:
        return isinstance(manifest, dict) and add_digest(manifest)["digest"] == manifest.get("digest")
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


class _Entries(dict[str, Any]):
    """Mapping of a manifest that raises DataError for a missing entry."""

    def __missing__(self, key: str) -> Any:
        raise prepare_again(f"{MANIFEST}: its entries {_shorten(', '.join(self))} lack '{key}'")


def _read_json(path: Path) -> Any:
    try:
        return parse_json(read_regular_file(path), object_hook=_Entries)
    except (OSError, ValueError) as error:
        raise prepare_again(f"{path}: does not read as JSON ({summarise_error(error)})") from error


def prepared_root(root: str | None, set_name: str) -> Path:
    """Return the folder of a prepared set: `root`, else `set_name` in $SIGHTLINE_DATA (default `data`)."""
    if root is not None:
        return expand_home(root)
    return expand_home(os.environ.get("SIGHTLINE_DATA") or "data") / set_name
