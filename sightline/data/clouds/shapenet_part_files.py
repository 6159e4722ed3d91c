"""ShapeNetPart as the text benchmark with normals: a file per shape, and the official lists of the splits."""

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
_BYTES_OF_A_POINT = 40
"""At least so many characters has a line of seven numbers, as the release prints them."""


def text_parts(root: Path) -> tuple[list[Shard], list[str]]:
    """The parts of the release, one per split and category, sorted by name; and what is to be reported of the folder.

    Raises DataError with file and line for lists that are missing, damaged, at odds with each other or name what is
    not there.
    """
    by_synset = _read_categories(root / CATEGORIES_FILE)
    in_order = sorted(by_synset.values(), key=lambda category: category.label)
    shapes = [
        shape for split, name in SPLITS.items() for shape in _read_list(_list_path(root, name), split, by_synset, root)
    ]
    _assert_each_once(shapes)
    notes = _assert_there(root, shapes, by_synset)
    parts = []
    for split in SPLITS:
        for category in in_order:
            members = sorted(
                (shape for shape in shapes if (shape.split, shape.category) == (split, category)),
                key=lambda shape: shape.path.name,
            )
            parts.append(_part(split, category, [shape.path for shape in members]))
    return parts, notes


def lists_digest(root: Path) -> str:
    """The SHA-256 of what the official lists say: who is in which split."""
    digest = hashlib.sha256()
    for name in SPLITS.values():
        digest.update(read_file(_list_path(root, name)))
    return digest.hexdigest()


def _list_path(root: Path, name: str) -> Path:
    return root / LISTS_FOLDER / f"shuffled_{name}_file_list.json"


class _Listed(NamedTuple):
    """A shape, and the line of the list that names it."""

    path: Path
    split: str
    category: Category
    where: str


def _read_categories(path: Path) -> dict[str, Category]:
    """Synset -> category, as the release names them. Raises DataError for a line that says something else."""
    if not path.is_file():
        raise DataError(f"{path}: is missing, it names the categories; unpack the release again")
    found: dict[str, Category] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where, words = f"{path}:{number}", line.split()
        if len(words) != 2:
            raise DataError(f"{where}: {line.strip()[:40]!r} is not a name and a synset; get the file again")
        name, synset = words
        category = category_from_name(name)
        if category is None:
            known = [each.name for each in categories()]
            raise DataError(f"{where}: '{name}' is none of the 16 categories{suggest(name.lower(), known)}")
        if category.synset != synset:
            raise DataError(f"{where}: gives {synset} for {name}, it is {category.synset}; get the file again")
        if synset in found:
            raise DataError(f"{where}: names {name} a second time; get the file again")
        found[synset] = category
    return found


def _read_list(path: Path, split: str, by_synset: Mapping[str, Category], root: Path) -> list[_Listed]:
    """The shapes that a list names, `shape_data/<synset>/<id>` each."""
    if not path.is_file():
        raise DataError(f"{path}: is missing, it lists the shapes of the {split} split; unpack the release again")
    found = []
    for number, entry in _entries(path):
        where, pieces = f"{path}:{number}", entry.split("/")
        if len(pieces) != 3 or not all(pieces) or ".." in pieces:
            raise DataError(f"{where}: {entry[:60]!r} is not shape_data/<synset>/<id>; get the file again")
        if pieces[1] not in by_synset:
            raise DataError(
                f"{where}: {entry} is of the synset {pieces[1]}, which {CATEGORIES_FILE} does not name; get both "
                "files again"
            )
        shape = root / pieces[1] / f"{pieces[2]}.txt"
        found.append(_Listed(shape, split, by_synset[pieces[1]], where))
    return found


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a JSON list and the lines that they stand in."""
    try:
        text = read_file(path).decode()
        entries = parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not JSON ({error.msg}); get the file again") from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error}); get the file again") from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries) or not entries:
        raise DataError(f"{path}:1: is not a list of texts, shape_data/<synset>/<id> each; get the file again")
    line, position = 1, 0
    for entry, token in zip(entries, re.finditer(r'"(?:[^"\\]|\\.)*"', text), strict=True):
        line += text.count("\n", position, token.start())
        position = token.start()
        yield line, entry


def _assert_each_once(shapes: Sequence[_Listed]) -> None:
    """Raises DataError for a shape that is listed twice, in one split or in two."""
    seen: dict[Path, _Listed] = {}
    for shape in shapes:
        before = seen.setdefault(shape.path, shape)
        if before is not shape:
            what = "twice" if before.split == shape.split else f"in the splits {before.split} and {shape.split}"
            raise DataError(
                f"{shape.where}: {shape.path.parent.name}/{shape.path.stem} is listed {what}, before at "
                f"{before.where}; get the lists again"
            )


def _assert_there(root: Path, shapes: Sequence[_Listed], by_synset: Mapping[str, Category]) -> list[str]:
    """Raises DataError for a listed file that is missing; returns a note on files that no list names."""
    there = {
        folder / name
        for synset in by_synset
        if (folder := root / synset).is_dir()
        for name in os.listdir(folder)
        if name.endswith(".txt")
    }
    missing = [shape for shape in shapes if shape.path not in there]
    if missing:
        raise DataError(
            f"{missing[0].where}: lists {missing[0].path}, which is missing, as are {len(missing)} of {len(shapes)} "
            "files; unpack the release again"
        )
    unlisted = sorted(there - {shape.path for shape in shapes})
    if not unlisted:
        return []
    return [f"note: {len(unlisted)} files are in no list and left out ({unlisted[0].relative_to(root)}, ...)"]


def _part(split: str, category: Category, paths: Sequence[Path]) -> Shard:
    about = sum(file_size(path) for path in paths) // _BYTES_OF_A_POINT
    return Shard(split, f"{split}/{category.name}", len(paths), tuple(paths), _Rows(category, tuple(paths)), about)


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
