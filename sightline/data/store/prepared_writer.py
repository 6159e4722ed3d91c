"""Write a data set in native form: never half-written, and continued where a killed run stopped.

Work goes on in `<target>.partial`: `set/` is the folder to be, `parts/` holds one note per finished part (names and
hashes), `origin.json` names what is being prepared. At the end `set/` is renamed to the target.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from sightline.data.files.input_files import file_size
from sightline.data.store.columns import ColumnSpec, SampleRow, SplitWriter
from sightline.data.store.file_listing import ListedFile, list_file
from sightline.data.store.prepared_set import (
    FORMAT_VERSION,
    LISTED,
    MANIFEST,
    PreparedSet,
    add_digest,
    check_sizes,
    read_manifest,
    sha256_of,
    summarise_folder,
)
from sightline.data.store.unusable import FaultCollector
from sightline.errors import DataError, RunError
from sightline.regular_files import parse_json, read_regular_file

__all__ = [
    "ColumnSpec",
    "PreparationPlan",
    "Progress",
    "SampleRow",
    "Shard",
    "assert_extent",
    "find_duplicates",
    "iterate_batches",
    "normalize_to_unit_sphere",
    "write_prepared_set",
]

T = TypeVar("T")
Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with the rows done, the rows in all, and what is being read."""


@dataclass(frozen=True)
class Shard:
    """Rows that follow each other in a split and are read, and read again, together; `files` is what they depend on.

    `about_elements` is a guess of how many elements the rows have in all where columns are ragged: so much room is
    asked for before the work begins.
    """

    split: str
    title: str
    num_rows: int
    files: tuple[Path, ...]
    rows: Callable[[], Iterator[SampleRow]]
    estimated_elements: int = 0


@dataclass(frozen=True)
class PreparationPlan:
    """All that is to be prepared. `about` goes into the manifest as it is; `summarise` adds what the arrays show.

    `options` are what the result depends on beyond its files. With `lists_files` the rows name files below `source`
    that stay where they are.
    """

    set_name: str
    layout: str
    source: Path
    columns: Mapping[str, ColumnSpec]
    shards: tuple[Shard, ...]
    manifest_extra: Mapping[str, Any]
    summarise: Callable[[PreparedSet], Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    lists_files: bool = False

    @property
    def split_sizes(self) -> dict[str, int]:
        sizes: Counter[str] = Counter()
        for part in self.shards:
            sizes[part.split] += part.num_rows
        return {split: size for split, size in sizes.items() if size}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sorted list of source files with their sizes, and their times where they are listed."""
        files = {file for part in self.shards for file in part.files}
        times = {file: [file.stat().st_mtime_ns] if self.lists_files else [] for file in files}
        return _digest(sorted([os.path.relpath(file, self.source), file_size(file), *times[file]] for file in files))


def write_prepared_set(plan: PreparationPlan, target: Path, *, progress: Progress) -> dict[str, Any]:
    """Prepare a set at `target`; returns its manifest with `root` and `outcome` (`prepared` or `already there`).

    A run that was killed is continued: parts whose files, count and checksum still agree are kept. The result has the
    same bits either way.
    A partial folder of the same set and source as they were before is begun anew.
    Raises DataError for a faulty source, with every file that cannot be used, and for a target or a partial folder that
    holds something else.
    """
    target = target.resolve()
    work = target.with_name(target.name + ".partial")
    there = _already_there(plan, target)
    if there is not None:
        if _read_note(work / "origin.json") and not (work / "set").exists():  # left by a run killed after the renaming
            shutil.rmtree(work, ignore_errors=True)
        return {**there, "root": str(target), "outcome": "already there"}
    _claim(work, plan)
    with _alone(work), _room_for(work):
        filled = _fill(work, plan, progress, FaultCollector(target))
        manifest = _finish(work / "set", plan, filled)
    try:
        os.rename(work / "set", target)
    except OSError as error:
        raise RunError(
            f"{target}: cannot be put in place ({error.strerror}); the prepared files are in {work / 'set'}"
        ) from error
    _flush_folder(target.parent)
    shutil.rmtree(work)
    return {**manifest, "root": str(target), "outcome": "prepared"}


@contextmanager
def _room_for(work: Path) -> Iterator[None]:
    """Raises RunError where the disk, or the limit on a file's size, has no room for what is written."""
    try:
        yield
    except OSError as error:
        is_source = error.filename is not None and not Path(error.filename).is_relative_to(work)
        if is_source or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        advice = (
            "raise the limit on the size of a file (ulimit -f)" if error.errno == errno.EFBIG else "free some space"
        )
        raise RunError(
            f"{work}: cannot write: {error.strerror}; {advice} and give the same command again, which goes on there"
        ) from error


def normalize_to_unit_sphere(points: np.ndarray, *, where: str) -> np.ndarray:
    """The points (N, 3) about their mean, the farthest at distance 1; float32.

    Raises DataError, led by `where`, if all coincide, and for coordinates so large that distances are not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        centred = points - points.mean(axis=0, dtype=np.float64)
        radius = np.linalg.norm(centred, axis=1).max()
    if not np.isfinite(radius):
        raise DataError(f"{where}: a coordinate is {np.abs(points).max():.4g}; get the file again")
    if not radius > 0:
        raise DataError(f"{where}: all {len(points)} points coincide, so there is no shape; leave the file out")
    return (centred / radius).astype(np.float32)


def assert_extent(points: np.ndarray, *, where: str) -> None:
    """Raises DataError, led by `where`, if all points coincide: zeros where nothing was written, as a rule."""
    if (points == points[0]).all():
        raise DataError(f"{where}: all {len(points)} points coincide, so there is no shape; get the file again")


def find_duplicates(prepared: PreparedSet, column: str) -> list[list[str]]:
    """Groups of rows whose values in this column have the same bytes, each as `split/name`, over all splits."""
    seen: defaultdict[bytes, list[str]] = defaultdict(list)
    for split in prepared.splits:
        for name, row in zip(prepared.names(split), prepared.rows(split, column), strict=True):
            seen[hashlib.sha256(row.data).digest()].append(f"{split}/{name}")
    return [group for group in seen.values() if len(group) > 1]


def iterate_batches(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """The items in their order, so many together; fewer at the end."""
    left = iter(items)
    while batch := tuple(itertools.islice(left, size)):
        yield batch


def _already_there(plan: PreparationPlan, target: Path) -> dict[str, Any] | None:
    """The manifest of the same set at the target; None where there is nothing. Raises DataError for anything else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / MANIFEST).is_file():
        found = f"holds {summarise_folder(target)}" if target.is_dir() else "is a file"
        raise DataError(f"{target}: {found}, nothing that sightline prepared; give another place with --to")
    manifest = read_manifest(target)
    if (manifest["set"], manifest["source"]["path"]) != (plan.set_name, str(plan.source)):
        raise DataError(
            f"{target}: holds '{manifest['set']}' prepared from {manifest['source']['path']}, not '{plan.set_name}' "
            f"from {plan.source}; delete it or give another place with --to"
        )
    before = manifest.get("options", {})
    other = [key for key in {**before, **plan.options} if before.get(key) != plan.options.get(key)]
    if other:
        raise DataError(
            f"{target}: was prepared with {other[0]} = {before.get(other[0])}, now it is {plan.options.get(other[0])}; "
            "delete it to prepare it again, or give another place with --to"
        )
    if manifest["source"]["fingerprint"] != plan.fingerprint:
        raise DataError(
            f"{target}: was prepared from {plan.source} before its files changed; delete it to prepare it again"
        )
    check_sizes(target, manifest)
    return manifest


def _claim(work: Path, plan: PreparationPlan) -> None:
    """Make the partial folder, or check that it is an unfinished preparation of the very same thing."""
    origin = {
        "format": FORMAT_VERSION,
        "set": plan.set_name,
        "layout": plan.layout,
        "source": str(plan.source),
        "columns": _columns_json(plan),
        "split_sizes": plan.split_sizes,
        **({"options": dict(plan.options)} if plan.options else {}),
    }
    note = work / "origin.json"
    if _read_note(note) == origin:
        (work / "set").mkdir(exist_ok=True)
        return
    _forget_earlier(work, plan)
    if work.exists():
        raise DataError(
            f"{work}: is an unfinished preparation of something else (see {note.name} in it), not of "
            f"'{plan.set_name}' from {plan.source} as it is now; delete it or give another place with --to"
        )
    try:
        for folder in (work / "parts", work / "set"):
            folder.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{work}: cannot be made ({error.strerror}); give another place with --to") from error
    needed = _bytes_needed(plan)
    free = shutil.disk_usage(work).free
    if needed > free:
        shutil.rmtree(work)
        raise RunError(
            f"{work.parent}: {needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free; make room"
        )
    _write_json(note, origin)


def _forget_earlier(work: Path, plan: PreparationPlan) -> None:
    """Remove an unfinished preparation of the same set and source, whose files or options were others then."""
    found = _read_note(work / "origin.json")
    if (found.get("set"), found.get("source")) == (plan.set_name, str(plan.source)):
        with _locked(work):
            shutil.rmtree(work)


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the partial folder, and remove it where not even one part was finished in it.

    Raises RunError where another process holds it, or where it was moved or deleted meanwhile.
    """
    with _locked(work) as held:
        lost = RunError(f"{work}: was moved or deleted while the set was prepared in it; prepare it again")
        try:
            yield
        except OSError as error:
            if not _is_there(work, held):
                raise lost from error
            raise
        finally:
            if _is_there(work, held) and (work / "parts").is_dir() and not any((work / "parts").iterdir()):
                shutil.rmtree(work)
        if not _is_there(work, held):
            raise lost


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[os.stat_result]:
    """Hold the note of a partial folder's origin by a lock of the kernel's, which ends with the process that has it."""
    with (work / "origin.json").open("rb") as note:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{work}: another process prepares this set; wait for it") from None
        yield os.fstat(note.fileno())


def _is_there(work: Path, held: os.stat_result) -> bool:
    try:
        return os.path.samestat(held, os.stat(work / "origin.json"))
    except OSError:
        return False


class _Written(NamedTuple):
    """The names of rows, and the files that each of them lists."""

    names: list[str]
    listed: list[list[ListedFile]]


class _Filled(NamedTuple):
    """All rows, and the number of elements of the ragged columns, by split."""

    rows: dict[str, _Written]
    num_elements: dict[str, int]


def _fill(work: Path, plan: PreparationPlan, progress: Progress, unusable: FaultCollector) -> _Filled:
    """Write the rows of every unfinished part; returns what only the rows could show.

    After the first row that cannot be read the others are only read, to find all that cannot.
    """
    rows = {split: _Written([], []) for split in plan.split_sizes}
    num_done, num_all = 0, sum(plan.split_sizes.values())
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(SplitWriter(work / "set", split, size, plan.columns))
            for split, size in plan.split_sizes.items()
        }
        for index, part in enumerate(part for part in plan.shards if part.num_rows):
            writer = writers[part.split]
            note = work / "parts" / f"{index:05d}.json"
            kept = _kept_rows(note, part, writer)
            if kept is None:
                note.unlink(missing_ok=True)
                advance = partial(_advance, progress, part.title, num_done, num_all)
                kept = _write_rows(part, writer, plan.source if plan.lists_files else None, advance, unusable)
                if unusable:
                    continue
                listed = {LISTED: kept.listed} if plan.lists_files else {}
                _write_json(note, {**_state(part), **_stretch(writer), "names": kept.names, **listed})
            else:
                progress(num_done + part.num_rows, num_all, f"{part.title}: kept from the run before")
            rows[part.split].names.extend(kept.names)
            rows[part.split].listed.extend(kept.listed)
            num_done += part.num_rows
        unusable.raise_any(num_all)
        return _Filled(rows, {split: writer.finish() for split, writer in writers.items()})


def _advance(progress: Progress, title: str, before: int, num_all: int, done: int) -> None:
    progress(before + done, num_all, title)


def _write_rows(
    part: Shard, writer: SplitWriter, root: Path | None, done: Callable[[int], None], unusable: FaultCollector
) -> _Written:
    """Put the rows of a part; `root` is the folder below which they list files, None where they list none."""
    written = _Written([], [])
    writer.begin()
    for row in unusable.skip_unusable(part.rows):
        try:
            writer.put(row)
        except DataError as error:
            unusable.add(error)
            continue
        written.names.append(row.name)
        if root is not None:
            written.listed.append([list_file(path, root) for path in row.files])
        done(len(written.names))
    assert unusable or len(written.names) == part.num_rows, (
        f"{part.title}: {len(written.names)} rows, {part.num_rows} were promised"
    )
    return written


def _kept_rows(note: Path, part: Shard, writer: SplitWriter) -> _Written | None:
    """The rows of a finished part if its files, its number of rows and the checksums of its columns still agree."""
    found = _read_note(note)
    names, lengths, checksums = found.pop("names", None), found.pop("lengths", None), found.pop("crc32", None)
    listed = found.pop(LISTED, [])
    is_kept = checksums and found == _state(part) and writer.keep(part.num_rows, lengths, checksums)
    return _Written(names, [[ListedFile(*entry) for entry in row] for row in listed]) if is_kept else None


def _state(part: Shard) -> dict[str, Any]:
    files = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in part.files]
    return {"files": _digest(files), "num_rows": part.num_rows}


def _stretch(writer: SplitWriter) -> dict[str, Any]:
    lengths = writer.lengths()
    return {"crc32": writer.checksums(), **({} if lengths is None else {"lengths": lengths})}


def _finish(folder: Path, plan: PreparationPlan, filled: _Filled) -> dict[str, Any]:
    """Write names and manifest, and force everything to the disk."""
    for split in plan.split_sizes:
        _write_json(folder / f"{split}.name.json", filled.rows[split].names)
        if plan.lists_files:
            _write_json(folder / f"{split}.{LISTED}.json", filled.rows[split].listed, indent=None)
    draft: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "set": plan.set_name,
        "layout": plan.layout,
        "source": {"path": str(plan.source), "fingerprint": plan.fingerprint},
        "columns": _columns_json(plan),
        "splits": {split: {"num_rows": size} for split, size in plan.split_sizes.items()},
        **({"num_elements": filled.num_elements} if any(each.is_ragged for each in plan.columns.values()) else {}),
        "num_nonfinite": 0,
        **({"options": dict(plan.options)} if plan.options else {}),
        **({LISTED: _listed_files(plan, filled)} if plan.lists_files else {}),
        **plan.manifest_extra,
    }
    prepared = PreparedSet(folder, draft)
    draft["ranges"] = {
        name: [min(low for low, _ in bounds), max(high for _, high in bounds)]
        for name in plan.columns
        if (bounds := [_range(each) for split in prepared.splits if (each := prepared.array(split, name)).size])
    }
    draft |= plan.summarise(prepared)
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    draft["files"] = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
    manifest = add_digest(draft)
    _write_json(folder / MANIFEST, manifest)
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _flush_folder(folder)
    return manifest


def _listed_files(plan: PreparationPlan, filled: _Filled) -> dict[str, Any]:
    """Where the files lie, how many there are, and their bytes."""
    files = {each.path: each.num_bytes for rows in filled.rows.values() for row in rows.listed for each in row}
    return {"root": str(plan.source), "num_files": len(files), "num_bytes": sum(files.values())}


def _range(array: np.ndarray) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def _columns_json(plan: PreparationPlan) -> dict[str, Any]:
    return {
        name: {
            "shape": list(column.shape),
            "dtype": column.dtype,
            **({"is_ragged": True} if column.is_ragged else {}),
            **({"can_be_empty": True} if column.can_be_empty else {}),
        }
        for name, column in plan.columns.items()
    }


def _bytes_needed(plan: PreparationPlan) -> int:
    num_rows, num_elements = sum(plan.split_sizes.values()), sum(part.estimated_elements for part in plan.shards)
    columns = plan.columns.values()
    return sum(each.num_bytes * (num_elements if each.is_ragged else num_rows) for each in columns)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _read_note(path: Path) -> dict[str, Any]:
    """A note of an earlier run; empty where there is none that reads, or where it was cut short."""
    try:
        return parse_json(read_regular_file(path))
    except (OSError, ValueError):
        return {}


def _write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=indent, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
