"""Files of ShapeNetPart: its categories and parts, and the shards of its two layouts.

The text release has a file per shape, with normals, and the official lists of the splits; files of the HDF5 release
hold many shapes each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.areas.clouds.sets.labelled_clouds import check_labelled_clouds
from sightline.contract.errors import DataError
from sightline.contract.regular_files import parse_json
from sightline.contract.schema import suggest
from sightline.store.cloud_preparation import check_finite, check_labels
from sightline.store.files.array_files import check_array
from sightline.store.files.hdf5_files import Hdf5File, open_hdf5
from sightline.store.files.input_files import download_again, file_size, natural_sort_key, read_file, unpack_again
from sightline.store.files.text_tables import read_table, read_text
from sightline.store.prepared.prepared_writer import ColumnSpec, SampleRow, Shard, normalize_to_unit_sphere

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Our name of each official split, with that of the release."""


class Category(NamedTuple):
    """Category with its label, and its parts numbered from 0 to 49."""

    name: str
    label: int
    synset: str
    parts: tuple[int, ...]


def published_counts() -> dict[str, Any]:
    """Read the published facts: categories with sizes and parts, layouts, terms of use."""
    return json.loads(Path(__file__).with_name("shapenet_part.json").read_text(encoding="utf-8"))


def categories() -> tuple[Category, ...]:
    """Return the sixteen categories in the order of their labels; parts are numbered in the same order."""
    result: list[Category] = []
    for label, (name, facts) in enumerate(published_counts()["categories"].items()):
        first = result[-1].parts[-1] + 1 if result else 0
        result.append(Category(name, label, facts["synset"], tuple(range(first, first + facts["num_parts"]))))
    return tuple(result)


def category_from_name(name: str) -> Category | None:
    """Return the category of a name in any public spelling (Motorbike, motor, ...), None if unknown."""
    plain = name.lower()
    plain = published_counts()["aliases"].get(plain, plain)
    return next((category for category in categories() if category.name == plain), None)


def part_names() -> tuple[str, ...]:
    """Return a name for each of the fifty parts, which releases only number: `chair_0` is a chair's first part."""
    return tuple(f"{category.name}_{index}" for category in categories() for index in range(len(category.parts)))


def make_columns(*, has_normals: bool) -> dict[str, ColumnSpec]:
    """Return the columns of a row: points, normals if there are any, part labels, category."""
    names = ("points", "normals") if has_normals else ("points",)
    return {
        **{name: ColumnSpec((3,), "float32", is_ragged=True) for name in names},
        "label": ColumnSpec((), "uint8", is_ragged=True),
        "category": ColumnSpec((), "int64"),
    }


def row_values(
    category: Category,
    *,
    points: np.ndarray,
    normals: np.ndarray | None,
    parts: np.ndarray,
    where: str,
    locate: Callable[[int], str],
) -> dict[str, Any]:
    """Compute the values of a row from points (N, 3), normals (N, 3) and parts (N,): unit sphere, unit normals.

    Raises DataError, beginning with `locate` of the first wrong point, for a part that the category does not have,
    and for a normal whose length is not finite; beginning with `where` for a shape whose points coincide.
    """
    is_foreign = ~np.isin(parts, category.parts)
    if is_foreign.any():
        first = int(np.argmax(is_foreign))
        raise download_again(
            f"{locate(first)}: part {parts[first]:g} is none of {category.name}'s ({category.parts[0]} to "
            f"{category.parts[-1]})"
        )
    values = {"points": normalize_to_unit_sphere(points, where=where), "label": parts, "category": category.label}
    if normals is not None:
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        if not np.isfinite(lengths).all():
            first = int(np.argmin(np.isfinite(lengths)))
            raise download_again(f"{locate(first)}: the normal is too long to be one")
        values["normals"] = normals / np.where(lengths > 0, lengths, 1.0)
    return values


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
    _assert_listed_once(shapes)
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
        raise unpack_again(f"{path}: is missing, it names the categories")
    by_synset: dict[str, Category] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where, fields = f"{path}:{number}", line.split()
        if len(fields) != 2:
            raise download_again(f"{where}: {line.strip()[:40]!r} is not a name and a synset")
        name, synset = fields
        category = category_from_name(name)
        if category is None:
            valid_names = [category.name for category in categories()]
            raise DataError(f"{where}: '{name}' is not one of the 16 categories{suggest(name.lower(), valid_names)}")
        if category.synset != synset:
            raise download_again(f"{where}: gives {synset} for {name}, it is {category.synset}")
        if synset in by_synset:
            raise download_again(f"{where}: names {name} a second time")
        by_synset[synset] = category
    return by_synset


def _read_list(path: Path, split: str, by_synset: Mapping[str, Category], root: Path) -> list[_Listed]:
    """Read the shapes of an official list, `shape_data/<synset>/<id>` each."""
    if not path.is_file():
        raise unpack_again(f"{path}: is missing, it lists the shapes of the {split} split")
    shapes = []
    for number, entry in _read_entries(path):
        where, pieces = f"{path}:{number}", entry.split("/")
        if len(pieces) != 3 or not all(pieces) or ".." in pieces:
            raise download_again(f"{where}: {entry[:60]!r} is not shape_data/<synset>/<id>")
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
        raise download_again(f"{path}:{error.lineno}: is not JSON ({error.msg})") from error
    except DataError:
        raise
    except ValueError as error:
        raise download_again(f"{path}: cannot be read ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries) or not entries:
        raise download_again(f"{path}:1: is not a list of texts, shape_data/<synset>/<id> each")
    line, position = 1, 0
    for entry, token in zip(entries, re.finditer(r'"(?:[^"\\]|\\.)*"', text), strict=True):
        line += text.count("\n", position, token.start())
        position = token.start()
        yield line, entry


def _assert_listed_once(shapes: Sequence[_Listed]) -> None:
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
        raise unpack_again(
            f"{missing[0].where}: lists {missing[0].path}, which is missing, as are {len(missing)} of {len(shapes)} "
            "files"
        )
    unlisted = sorted(existing - {shape.path for shape in shapes})
    if not unlisted:
        return []
    return [f"note: {len(unlisted)} files are in no list and left out ({unlisted[0].relative_to(root)}, ...)"]


def _make_shard(split: str, category: Category, paths: Sequence[Path]) -> Shard:
    """Make the shard of one category of one split."""
    estimated_points = sum(file_size(path) for path in paths) // _MIN_BYTES_PER_POINT
    rows = partial(map, partial(_read_row, category), paths)
    return Shard(split, f"{split}/{category.name}", len(paths), tuple(paths), rows, estimated_points)


def _read_row(category: Category, path: Path) -> SampleRow:
    table = read_table(path, num_columns=_NUM_COLUMNS)
    values = row_values(
        category,
        points=table[:, :3],
        normals=table[:, 3:6],
        parts=table[:, 6],
        where=str(path),
        locate=lambda row: f"{path}:{row + 1}",
    )
    return SampleRow(f"{path.parent.name}/{path.stem}", str(path), values)


_KEYS = ("data", "label", "pid")
_WHAT = "a file of ShapeNetPart"


def hdf5_files(root: Path, split: str) -> list[Path]:
    """List the files of a split, those with the release's word for it in their names, sorted by number."""
    return sorted(root.glob(f"*{SPLITS[split]}*.h5"), key=lambda path: natural_sort_key(path.name))


def hdf5_parts(root: Path) -> list[Shard]:
    """List the shards of the release, one per file; shapes are not read yet. Raises DataError with file and key."""
    all_categories, parts = categories(), []
    for split in SPLITS:
        files = hdf5_files(root, split)
        if not files:
            raise unpack_again(f"{root}: holds no *{SPLITS[split]}*.h5, the {split} split")
        _assert_no_gap(files)
        for path in files:
            num_shapes, num_points = _scan(path, len(all_categories))
            rows = partial(_iterate_rows, path, all_categories)
            parts.append(Shard(split, path.name, num_shapes, (path,), rows, num_shapes * num_points))
    return parts


def _assert_no_gap(files: list[Path]) -> None:
    """Raise DataError if the numbers in the file names of a split leave one out."""
    matches = [re.search(r"(\d+)\.h5$", path.name) for path in files]
    if len(files) == 1 and matches[0] is None:
        return
    numbers = [int(number[1]) if number else -1 for number in matches]
    if numbers != list(range(len(files))):
        gap = next(number for number in range(len(files)) if number not in numbers)
        stem = files[0].name[: matches[0].start(1)] if matches[0] else files[0].stem
        raise unpack_again(
            f"{files[0].parent / f'{stem}{gap}.h5'}: is missing, there are {', '.join(path.name for path in files)}"
        )


def _read_arrays(path: Path, file: Hdf5File) -> list[Any]:
    """Return the three data sets of a file after a check of shapes and types. Raises DataError naming the key."""
    data, label, pid = arrays = [file.array(key) for key in _KEYS]
    check_labelled_clouds(data, label, where=str(path))
    needed = f"integers {data.shape[:2]} are needed"
    check_array(pid, where=f"{path}: 'pid'", kinds="iu", shapes=[data.shape[:2]], needed=needed)
    return arrays


def _scan(path: Path, num_categories: int) -> tuple[int, int]:
    """Read the numbers of shapes and points of a file. Raises DataError for wrong keys and labels out of range."""
    with open_hdf5(path, what=_WHAT) as file:
        data, label, _ = _read_arrays(path, file)
        check_labels(label[...].reshape(-1), num_categories, where=f"{path}: label", noun="categories")
        return data.shape[0], data.shape[1]


def _iterate_rows(path: Path, known: tuple[Category, ...]) -> Iterator[SampleRow]:
    with open_hdf5(path, what=_WHAT) as file:
        points, labels, parts = (array[...] for array in _read_arrays(path, file))

    def row(index: int, label: int) -> SampleRow:
        where = f"{path}: shape {index}"
        check_finite(points[index], where=f"{where}: data")
        values = row_values(
            known[label],
            points=points[index],
            normals=None,
            parts=parts[index],
            where=where,
            locate=lambda point: f"{path}: pid[{index}, {point}]",
        )
        return SampleRow(f"{path.stem}/{index:04d}", where, values)

    return map(row, range(len(points)), labels.reshape(-1).tolist())
