"""Text release of ShapeNetPart with normals: a file per shape, and the official lists of the splits."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sightline.data.clouds.shapenet_part_categories import SPLITS, Category, categories, category_from_name, row_values
from sightline.data.files.input_files import file_size, read_file
from sightline.data.files.text_tables import read_table, read_text
from sightline.data.store.prepared_writer import SampleRow, Shard
from sightline.errors import DataError
from sightline.regular_files import parse_json
from sightline.schema import suggest

__all__ = ["CATEGORIES_FILE", "LISTS_FOLDER", "lists_digest", "text_parts"]

CATEGORIES_FILE = "synsetoffset2category.txt"
LISTS_FOLDER = "train_test_split"
_NUM_COLUMNS = 7
_MIN_BYTES_PER_POINT = 40
"""Smallest length of a line of seven numbers as the release prints them."""


def text_parts(root: Path) -> tuple[list[Shard], list[str]]:
    """List the shards of the release, one per split and category, sorted by name; return them with report notes.

    Raises DataError with file and line for lists that are missing, damaged, contradictory or name a missing file.
    """
    by_synset = _read_categories(root / CATEGORIES_FILE)
    in_order = sorted(by_synset.values(), key=lambda category: category.label)
    shapes = [
        shape for split, name in SPLITS.items() for shape in _read_list(_list_path(root, name), split, by_synset, root)
    ]
    _assert_each_once(shapes)
    notes = _check_files(root, shapes, by_synset)
    parts = []
    for split in SPLITS:
        for category in in_order:
            members = sorted(
                (shape for shape in shapes if (shape.split, shape.category) == (split, category)),
                key=lambda shape: shape.path.name,
            )
            parts.append(_make_shard(split, category, [shape.path for shape in members]))
    return parts, notes


def lists_digest(root: Path) -> str:
    """Return the SHA-256 of the official lists of the splits."""
    digest = hashlib.sha256()
    for name in SPLITS.values():
        digest.update(read_file(_list_path(root, name)))
    return digest.hexdigest()


def _list_path(root: Path, name: str) -> Path:
    """Return the path of the official list of a split."""
    return root / LISTS_FOLDER / f"shuffled_{name}_file_list.json"


class _Listed(NamedTuple):
    """Listed shape, with the line of the list that names it."""

    path: Path
    split: str
    category: Category
    where: str


def _read_categories(path: Path) -> dict[str, Category]:
    """Read synset -> category, as the release names them. Raises DataError for a line in another form."""
    if not path.is_file():
        raise DataError(f"{path}: is missing, it names the categories; unpack the release again")
    by_synset: dict[str, Category] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where, fields = f"{path}:{number}", line.split()
        if len(fields) != 2:
            raise DataError(f"{where}: {line.strip()[:40]!r} is not a name and a synset; download the file again")
        name, synset = fields
        category = category_from_name(name)
        if category is None:
            valid_names = [category.name for category in categories()]
            raise DataError(f"{where}: '{name}' is not one of the 16 categories{suggest(name.lower(), valid_names)}")
        if category.synset != synset:
            raise DataError(f"{where}: gives {synset} for {name}, it is {category.synset}; download the file again")
        if synset in by_synset:
            raise DataError(f"{where}: names {name} a second time; download the file again")
        by_synset[synset] = category
    return by_synset


def _read_list(path: Path, split: str, by_synset: Mapping[str, Category], root: Path) -> list[_Listed]:
    """Read the shapes of an official list, `shape_data/<synset>/<id>` each."""
    if not path.is_file():
        raise DataError(f"{path}: is missing, it lists the shapes of the {split} split; unpack the release again")
    shapes = []
    for number, entry in _read_entries(path):
        where, pieces = f"{path}:{number}", entry.split("/")
        if len(pieces) != 3 or not all(pieces) or ".." in pieces:
            raise DataError(f"{where}: {entry[:60]!r} is not shape_data/<synset>/<id>; download the file again")
        if pieces[1] not in by_synset:
            raise DataError(
                f"{where}: {entry} is of the synset {pieces[1]}, which {CATEGORIES_FILE} does not name; download both "
                "files again"
            )
        shape = root / pieces[1] / f"{pieces[2]}.txt"
        shapes.append(_Listed(shape, split, by_synset[pieces[1]], where))
    return shapes


def _read_entries(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of every entry of a JSON list."""
    try:
        text = read_file(path).decode()
        entries = parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not JSON ({error.msg}); download the file again") from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error}); download the file again") from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries) or not entries:
        raise DataError(f"{path}:1: is not a list of texts, shape_data/<synset>/<id> each; download the file again")
    line, position = 1, 0
    for entry, token in zip(entries, re.finditer(r'"(?:[^"\\]|\\.)*"', text), strict=True):
        line += text.count("\n", position, token.start())
        position = token.start()
        yield line, entry


def _assert_each_once(shapes: Sequence[_Listed]) -> None:
    """Raise DataError for a shape that is listed twice, in one split or in two."""
    first_by_path: dict[Path, _Listed] = {}
    for shape in shapes:
        first = first_by_path.setdefault(shape.path, shape)
        if first is not shape:
            repetition = "twice" if first.split == shape.split else f"in the splits {first.split} and {shape.split}"
            raise DataError(
                f"{shape.where}: {shape.path.parent.name}/{shape.path.stem} is listed {repetition}, before at "
                f"{first.where}; download the lists again"
            )


def _check_files(root: Path, shapes: Sequence[_Listed], by_synset: Mapping[str, Category]) -> list[str]:
    """Raise DataError for a missing file of a list; return a note on files that no list names."""
    existing = {
        folder / name
        for synset in by_synset
        if (folder := root / synset).is_dir()
        for name in os.listdir(folder)
        if name.endswith(".txt")
    }
    missing = [shape for shape in shapes if shape.path not in existing]
    if missing:
        raise DataError(
            f"{missing[0].where}: lists {missing[0].path}, which is missing, as are {len(missing)} of {len(shapes)} "
            "files; unpack the release again"
        )
    unlisted = sorted(existing - {shape.path for shape in shapes})
    if not unlisted:
        return []
    return [f"note: {len(unlisted)} files are in no list and left out ({unlisted[0].relative_to(root)}, ...)"]


def _make_shard(split: str, category: Category, paths: Sequence[Path]) -> Shard:
    """Make the shard of one category of one split."""
    estimated_points = sum(file_size(path) for path in paths) // _MIN_BYTES_PER_POINT
    return Shard(
        split, f"{split}/{category.name}", len(paths), tuple(paths), _Rows(category, tuple(paths)), estimated_points
    )


@dataclass(frozen=True)
class _Rows:
    category: Category
    paths: tuple[Path, ...]

    def __call__(self) -> Iterator[SampleRow]:
        return map(self._row, self.paths)

    def _row(self, path: Path) -> SampleRow:
        table = read_table(path, num_columns=_NUM_COLUMNS)
        values = row_values(
            self.category,
            points=table[:, :3],
            normals=table[:, 3:6],
            parts=table[:, 6],
            where=str(path),
            place_of=lambda row: f"{path}:{row + 1}",
        )
        return SampleRow(f"{path.parent.name}/{path.stem}", str(path), values)
