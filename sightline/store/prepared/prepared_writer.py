"""Atomic writer of prepared data sets: all rows in a partial folder, which then becomes the set."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias

import numpy as np
from typing_extensions import TypeVar

from sightline.contract.errors import DataError, RunError
from sightline.store.files.atomic_write import REPEAT, replace_atomic, sync_folder, whole_folder
from sightline.store.files.input_files import damaged, download_again, file_status, list_files
from sightline.store.prepared.columns import ColumnSpec, SampleRow, SplitWriter
from sightline.store.prepared.copies import describe_copies, digest_content, group_copies, name_copies
from sightline.store.prepared.prepared_set import (
    CONTENTS,
    FORMAT_VERSION,
    LISTED,
    LISTING,
    MANIFEST,
    NAMES,
    ROW_ENTRIES,
    ListedFile,
    PreparedSet,
    add_digest,
    check_sizes,
    compute_sha256,
    list_file,
    read_manifest,
    summarise_folder,
)
from sightline.store.remarks import join_remarks, remark_kind

T = TypeVar("T")
Row = TypeVar("Row", default=SampleRow)
Progress: TypeAlias = Callable[[int, int, str], None]
"""Callback with the number of finished rows, the total number of rows, and the title of the current shard."""


@dataclass(frozen=True)
class Shard(Generic[Row]):
    """Consecutive rows of a split, of one title in reports of progress.

    `files` are the files that the rows are read from. `estimated_elements` estimates the number of elements, such as
    points, that these rows add to each ragged column: if the disk has too little space, nothing is prepared.
    """

    split: str
    title: str
    num_rows: int
    files: tuple[Path, ...]
    rows: Callable[[], Iterator[Row]]
    estimated_elements: int = 0


@dataclass(frozen=True)
class PreparationPlan:
    """Plan of a preparation; `manifest_extra` is copied into the manifest, `summarise` adds entries from the arrays.

    `options` are everything that the result depends on beyond its files. With `lists_files` the rows name files below
    `source` that are listed in place. `notes` are for those who look at the plan; a manifest gets its own.
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
    notes: Sequence[str] = ()

    @property
    def files(self) -> set[Path]:
        """The files that rows are read from."""
        return {file for shard in self.shards for file in shard.files}

    @property
    def split_sizes(self) -> dict[str, int]:
        """The number of rows of each split that has any."""
        sizes: Counter[str] = Counter()
        for shard in self.shards:
            sizes[shard.split] += shard.num_rows
        return {split: size for split, size in sizes.items() if size}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sorted list of source files with their sizes and times."""
        stated = ((file, file_status(file)) for file in self.files)
        entries = ([_relative(file, self.source), s.st_size, s.st_mtime_ns] for file, s in stated)
        return digest_json(sorted(entries))


def _relative(file: Path, root: Path) -> str:
    """Return the path of a file from a folder on, as `os.path.relpath`, which takes long, does."""
    path, start = str(file), os.path.join(root, "")
    return path[len(start) :] if path.startswith(start) and ".." not in file.parts else os.path.relpath(file, root)


def write_prepared_set(plan: PreparationPlan, target: Path, *, progress: Progress) -> dict[str, Any]:
    """Prepare a set at `target`; return its manifest with `root` and `outcome` (`prepared` or `already there`).

    Raises DataError for a faulty source, with every file that cannot be used, for one that changes meanwhile, and for a
    target or a partial folder that contains something else.
    """
    target = target.resolve()
    existing_manifest = _read_existing(plan, target)
    if existing_manifest is not None:
        return _make_report(existing_manifest, target, "already there")
    with whole_folder(target) as folder:
        _assert_room(folder, plan)
        fingerprint = None
        with contextlib.suppress(DataError):  # files that cannot be read are reported all together
            fingerprint = plan.fingerprint
        written = _fill(folder, plan, progress, FaultCollector(target))
        manifest = _finish(folder, plan, written)
        if manifest["source"]["fingerprint"] != fingerprint:
            raise DataError(f"{plan.source}: its files changed while they were read; prepare the set again")
    return _make_report(manifest, target, "prepared")


def digest_tree(source: Path, files: Collection[Path] = ()) -> str | None:
    """Return the SHA-256 of all files below a folder with their sizes and times; None if `files` are not all below."""
    paths = list_files(source) if source.is_dir() else []
    if not paths or not {*files} <= {*paths}:
        return None
    stated = [(str(path), path.stat()) for path in paths]
    return digest_json(sorted([path, status.st_size, status.st_mtime_ns] for path, status in stated))


def find_prepared(source: Path, target: Path, *, set_name: str, stated: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the report of a set that was prepared from the same files with the same options; None if it may not be."""
    target = target.resolve()
    with contextlib.suppress(DataError, OSError):
        manifest = read_manifest(target)
        origin = (manifest["set"], manifest["source"]["path"], manifest.get("stated_options"))
        tree = manifest["source"].get("tree")
        if origin == (set_name, str(source), json.loads(json.dumps(stated))) and tree and tree == digest_tree(source):
            check_sizes(target, manifest)
            return _make_report(manifest, target, "already there")
    return None


def _make_report(manifest: Mapping[str, Any], target: Path, outcome: str) -> dict[str, Any]:
    """Return the manifest without what it says of every row, and what became of the command."""
    entries = {key: value for key, value in manifest.items() if key not in ROW_ENTRIES}
    return {**entries, "root": str(target), "outcome": outcome}


def _assert_room(folder: Path, plan: PreparationPlan) -> None:
    """Raise RunError if the disk has less room than the arrays need."""
    num_rows, num_elements = sum(plan.split_sizes.values()), sum(shard.estimated_elements for shard in plan.shards)
    columns = plan.columns.values()
    needed = sum(column.num_bytes * (num_elements if column.is_ragged else num_rows) for column in columns)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder.parent.parent}: {needed:,} bytes are needed, {free:,} are free; make room there and {REPEAT}"
        )


def normalize_to_unit_sphere(points: np.ndarray, *, where: str) -> np.ndarray:
    """Centre the points (N, 3) on their mean and scale the largest distance to 1; float32.

    Raises DataError, beginning with `where`, if all coincide, and for coordinates so large that distances overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        centred = points - points.mean(axis=0, dtype=np.float64)
        radius = np.linalg.norm(centred, axis=1).max()
    if not np.isfinite(radius):
        raise damaged(f"{where}: a coordinate is {np.abs(points).max():.4g}")
    if not radius > 0:
        raise DataError(f"{where}: all {len(points)} points coincide, so the shape has no extent; leave the file out")
    return (centred / radius).astype(np.float32)


def assert_extent(points: np.ndarray, *, where: str) -> None:
    """Raise DataError, beginning with `where`, if all points coincide (as zeros of unwritten data do)."""
    if (points == points[0]).all():
        raise download_again(f"{where}: all {len(points)} points coincide, so the shape has no extent")


def iterate_batches(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yield the items in their order, `size` at a time; the last batch may be smaller."""
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


_MAX_PRINTED = 8
"""Maximum number of printed faults; with the line before and the line after them ten lines."""
_MAX_FAULTS = 10_000


class FaultCollector:
    """Collector of the errors of reading a set's rows; `report` is the file that lists all if there are many."""

    def __init__(self, target: Path) -> None:
        self.report = target.with_name(f"{target.name}.unusable.txt")
        self._faults: list[str] = []
        self._last: DataError | None = None

    def __bool__(self) -> bool:
        return bool(self._faults)

    def skip_unusable(self, begin: Callable[[], Iterator[SampleRow]]) -> Iterator[SampleRow]:
        """Iterate over the readable rows of `begin()` and collect the errors of the others.

        Reading goes on after an error if the iterator does: a `map` does, a generator does not.
        """
        try:
            rows = begin()
        except DataError as error:
            self.add(error)
            return
        while len(self._faults) < _MAX_FAULTS:
            try:
                yield next(rows)
            except StopIteration:
                return
            except DataError as error:
                self.add(error)

    def add(self, error: DataError) -> None:
        """Add the fault of one more file or shard."""
        self._faults.append(str(error))
        self._last = error

    def raise_any(self, num_rows: int) -> None:
        """Raise DataError with every fault: a single one unchanged, several below a line that counts them."""
        self.report.unlink(missing_ok=True)
        if self._last is None:
            return
        if len(self._faults) == 1:
            raise self._last
        lines = [f"{len(self._faults)} of {num_rows} samples cannot be used; mend their files, or leave them out:"]
        lines += self._faults[:_MAX_PRINTED]
        if len(self._faults) > _MAX_PRINTED:
            lines.append(f"and {len(self._faults) - _MAX_PRINTED} more")
            with contextlib.suppress(OSError):
                text = "".join(f"{line}\n" for line in self._faults)
                self.report.write_text(text, encoding="utf-8", errors="replace")
                lines[-1] += f"; all are in {self.report}"
        raise DataError.from_lines(lines)


def _read_existing(plan: PreparationPlan, target: Path) -> dict[str, Any] | None:
    """Read the manifest of the same set at the target; None if it is empty. Raises DataError for anything else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / MANIFEST).is_file():
        contents = f"holds {summarise_folder(target)}" if target.is_dir() else "is a file"
        raise DataError(f"{target}: {contents}, which sightline did not prepare; give another folder with --to")
    manifest = read_manifest(target)
    if (manifest["set"], manifest["source"]["path"]) != (plan.set_name, str(plan.source)):
        raise DataError(
            f"{target}: holds '{manifest['set']}' prepared from {manifest['source']['path']}, not '{plan.set_name}' "
            f"from {plan.source}; delete it or give another folder with --to"
        )
    stored = manifest.get("options", {})
    changed = [key for key in {**stored, **plan.options} if stored.get(key) != plan.options.get(key)]
    if changed:
        raise DataError(
            f"{target}: was prepared with {changed[0]} = {stored.get(changed[0])}, now it is "
            f"{plan.options.get(changed[0])}; delete it to prepare it again, or give another folder with --to"
        )
    if manifest["source"]["fingerprint"] != plan.fingerprint:
        raise DataError(
            f"{target}: was prepared from {plan.source} before its files changed (size or time); delete it to prepare "
            "it again"
        )
    check_sizes(target, manifest)
    return manifest


class _Written(NamedTuple):
    """Names and digests of written rows, files that each row lists, and pairs of a note and the file it is about."""

    names: list[str]
    contents: list[str]
    listed: list[list[ListedFile]]
    notes: list[list[str]]


class _Filled(NamedTuple):
    """Written rows, and the number of elements of the ragged columns, by split."""

    rows: dict[str, _Written]
    num_elements: dict[str, int]


def _fill(folder: Path, plan: PreparationPlan, progress: Progress, unusable: FaultCollector) -> _Filled:
    """Write the rows of every shard; return their names and numbers of elements.

    After the first unreadable row the others are read too, to find all unreadable rows.
    """
    rows = {split: _Written([], [], [], []) for split in plan.split_sizes}
    num_done, num_all = 0, sum(plan.split_sizes.values())
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(SplitWriter(folder, split, size, plan.columns))
            for split, size in plan.split_sizes.items()
        }
        for shard in (shard for shard in plan.shards if shard.num_rows):
            advance = partial(_advance, progress, shard.title, num_done, num_all)
            root = plan.source if plan.lists_files else None
            _write_rows(shard, writers[shard.split], root, advance, unusable, rows[shard.split])
            num_done += shard.num_rows
        unusable.raise_any(num_all)
        return _Filled(rows, {split: writer.finish() for split, writer in writers.items()})


def _advance(progress: Progress, title: str, num_before: int, num_all: int, done: int) -> None:
    progress(num_before + done, num_all, title)


def _write_rows(
    shard: Shard,
    writer: SplitWriter,
    root: Path | None,
    done: Callable[[int], None],
    unusable: FaultCollector,
    written: _Written,
) -> None:
    """Write the rows of a shard; `root` is the folder below which they list files, None if they list none."""
    num_written = 0
    for row in unusable.skip_unusable(shard.rows):
        try:
            writer.put(row)
        except DataError as error:
            unusable.add(error)
            continue
        written.names.append(row.name)
        written.notes.extend([note, row.where] for note in row.notes)
        listed = [] if root is None else [list_file(path, root) for path in row.files]
        if root is not None:
            written.listed.append(listed)
        written.contents.append(digest_content(row, writer.columns, listed))
        num_written += 1
        done(num_written)
    assert unusable or num_written == shard.num_rows, (
        f"{shard.title}: {num_written} rows, {shard.num_rows} were promised"
    )


def _finish(folder: Path, plan: PreparationPlan, filled: _Filled) -> dict[str, Any]:
    """Write the manifest, and flush everything to the disk."""
    draft: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "set": plan.set_name,
        "layout": plan.layout,
        "source": {
            "path": str(plan.source),
            "fingerprint": plan.fingerprint,
            "tree": digest_tree(plan.source, plan.files),
        },
        "columns": _columns_json(plan),
        "splits": {split: {"num_rows": size} for split, size in plan.split_sizes.items()},
        **({"num_elements": filled.num_elements} if any(array.is_ragged for array in plan.columns.values()) else {}),
        NAMES: {split: rows.names for split, rows in filled.rows.items()},
        CONTENTS: {split: rows.contents for split, rows in filled.rows.items()},
        **({"options": dict(plan.options)} if plan.options else {}),
        **(_list_files(plan, filled) if plan.lists_files else {}),
        **plan.manifest_extra,
    }
    prepared = PreparedSet(folder, draft)
    draft["ranges"] = {}
    for name in plan.columns:
        arrays = [array for split in prepared.splits if (array := prepared.array(split, name)).size]
        if arrays:
            draft["ranges"][name] = [min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)]
    draft |= plan.summarise(prepared)
    groups = group_copies(prepared)
    draft["duplicates"] = name_copies(prepared, groups)
    notes = _group_notes([note for rows in filled.rows.values() for note in rows.notes])
    notes += describe_copies(prepared, groups)
    if notes:
        draft["differences"] = [*draft.get("differences", ()), *notes]
    files = sorted(folder.glob("*.npy"))
    draft["files"] = {path.name: {"bytes": path.stat().st_size, "sha256": compute_sha256(path)} for path in files}
    manifest = add_digest(draft)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items())
    replace_atomic(folder / MANIFEST, f"{{{lines}}}\n".encode())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
    return manifest


def _group_notes(notes: Sequence[Sequence[str]]) -> list[str]:
    """List the notes of each kind once, with the number of their files and the first."""
    kinds: defaultdict[str, list[Sequence[str]]] = defaultdict(list)
    for pair in notes:
        kinds[remark_kind(pair[0])].append(pair)
    return [
        f"{join_remarks([note for note, _ in pairs])} ({len(pairs)} file{'s' * (len(pairs) > 1)}, first: {pairs[0][1]})"
        for pairs in kinds.values()
    ]


def _list_files(plan: PreparationPlan, filled: _Filled) -> dict[str, Any]:
    """Return the manifest entries of the listed files: root, number and total bytes, and those of every row."""
    num_bytes = {file.path: file.num_bytes for rows in filled.rows.values() for row in rows.listed for file in row}
    summary = {"root": str(plan.source), "num_files": len(num_bytes), "num_bytes": sum(num_bytes.values())}
    return {LISTED: summary, LISTING: {split: rows.listed for split, rows in filled.rows.items()}}


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


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a value as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
