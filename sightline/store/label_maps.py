"""Label maps from raw ids to consecutive classes and back, in the format of semantic-kitti-api."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contract.errors import DataError, join_some
from sightline.contract.regular_files import read_regular_file
from sightline.store.files.input_files import expand_home, parsed_yaml
from sightline.store.files.scan_files import MAX_ID
from sightline.store.files.text_tables import parse_count

IGNORE_INDEX = 255
"""Class of points that are neither trained on nor scored, in maps that do not ignore class 0."""
_UNKNOWN = -1
_MAX_NAMED = 3


class LabelMap:
    """Checked label map: every class 0 to C-1 has an id, which maps back to that class.

    `class_names` and `ids_of_classes` have C entries, class 0 first; `colors_rgb` and `frequencies` too, or none.
    `ignore_index` is 0 if the map ignores class 0, else 255, to which the map may map ids.
    """

    def __init__(self, tables: Mapping[str, Any], *, where: str) -> None:
        self.where = where
        to_class = _read_table(tables, "learning_map", where, int, high=MAX_ID)
        to_id = _read_table(tables, "learning_map_inv", where, int, high=MAX_ID)
        names = _read_table(tables, "labels", where, str, high=MAX_ID)
        self.ignore_index = _read_ignore_index(tables, where)
        self.ids_of_classes = _check_inverse(to_class, to_id, self.ignore_index, where)
        missing = [raw for raw in self.ids_of_classes if raw not in names]
        if missing:
            raise DataError(f"{where}: labels: has no name for the id {missing[0]}; name every id")
        self.class_names = tuple(names[raw] for raw in self.ids_of_classes)
        if len(set(self.class_names)) < len(self.class_names):
            repeated = next(name for name in self.class_names if self.class_names.count(name) > 1)
            raise DataError(f"{where}: labels: two classes are called '{repeated}'; give each a name of its own")
        self.colors_rgb = _read_colors(tables, self.ids_of_classes, where)
        self.frequencies = _read_frequencies(tables, len(to_id), where)
        self._names = names
        self._class_by_id = np.full(MAX_ID + 1, _UNKNOWN, dtype=np.int16)
        self._class_by_id[list(to_class)] = list(to_class.values())

    @property
    def num_classes(self) -> int:
        return len(self.ids_of_classes)

    def classes(self, ids: np.ndarray, *, where: str) -> np.ndarray:
        """Map ids (N,) to classes (N,) int64. Raises DataError with `where`, ids and counts for unknown ids."""
        classes = self._class_by_id[ids].astype(np.int64)
        if (classes == _UNKNOWN).any():
            unknown, counts = np.unique(ids[classes == _UNKNOWN], return_counts=True)
            raise DataError(f"{where}: {self._format_unknown_ids(unknown, counts)}")
        return classes

    def ids(self, classes: np.ndarray) -> np.ndarray:
        """Map classes (N,) to the ids (N,) uint32 of files; a class with several ids has the map's inverse id."""
        return np.asarray(self.ids_of_classes, dtype=np.uint32)[classes]

    def counts(self, ids: np.ndarray, counts: np.ndarray, *, where: str) -> np.ndarray:
        """Sum points per id (ids (K,), counts (K,)) to points per class (C,) int64. Raises as `classes`."""
        classes = self._class_by_id[ids]
        if ((classes == _UNKNOWN) & (counts > 0)).any():
            is_unknown = (classes == _UNKNOWN) & (counts > 0)
            raise DataError(f"{where}: {self._format_unknown_ids(ids[is_unknown], counts[is_unknown])}")
        is_class = (classes >= 0) & (classes < self.num_classes)
        class_counts = np.zeros(self.num_classes, dtype=np.int64)
        np.add.at(class_counts, classes[is_class], counts[is_class])
        return class_counts

    def label_name(self, raw: int) -> str:
        """Return the map's name of an id; `id 5` if it has none."""
        return self._names.get(raw, f"id {raw}")

    def has_id(self, raw: int) -> bool:
        """Return True if the map has the id, for a class or to be ignored."""
        return bool(self._class_by_id[raw] != _UNKNOWN)

    def tables_with(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the tables of this map, extended by a class `id_<n>` for each of the missing `ids`."""
        mapped_ids = np.flatnonzero(self._class_by_id != _UNKNOWN).tolist()
        to_class = {raw: int(self._class_by_id[raw]) for raw in mapped_ids}
        to_id = dict(enumerate(self.ids_of_classes))
        for raw in ids:
            to_class[raw], to_id[len(to_id)] = len(to_id), raw
        return {
            "labels": {raw: self._names.get(raw, f"id_{raw}") for raw in sorted(to_class)},
            "learning_map": dict(sorted(to_class.items())),
            "learning_map_inv": to_id,
            "learning_ignore": {0: self.ignore_index == 0},
        }

    def _format_unknown_ids(self, ids: np.ndarray, counts: np.ndarray) -> str:
        texts = [f"{raw} ({count} points)" for raw, count in zip(ids.tolist(), counts.tolist(), strict=True)]
        subject = "the label id" if len(texts) == 1 else "the label ids"
        return (
            f"{subject} {join_some(texts, most=_MAX_NAMED)} not in the map {self.where}; add them to a map of your "
            "own: data.label_map=FILE.yaml"
        )


def identity_map(ids: Sequence[int], id_names: Mapping[int, str], *, where: str) -> LabelMap:
    """Build a map with one class per id, in ascending order; id 0, if present, is ignored.

    Ids without a name in `id_names` are called `id_<n>`.
    """
    names = {raw: id_names.get(raw, f"id_{raw}" if raw else "unlabeled") for raw in sorted(ids)}
    to_class = {raw: label for label, raw in enumerate(names)}
    to_id = {label: raw for raw, label in to_class.items()}
    tables = {"labels": names, "learning_map": to_class, "learning_map_inv": to_id, "learning_ignore": {0: 0 in names}}
    return LabelMap(tables, where=where)


def read_label_map(name: str, builtin: Mapping[str, Path]) -> LabelMap:
    """Read a label map by one of the names in `builtin`, or from the user's YAML or JSON file.

    Raises DataError with file and entry for an incomplete map.
    """
    path = builtin[name] if name in builtin else expand_home(name)
    try:
        content = read_regular_file(path)
    except OSError as error:
        others = f"; built-in maps: {', '.join(builtin)}" if builtin else ""
        raise DataError(f"{path}: cannot be read as a label map ({error.strerror}){others}") from error
    tables = parsed_yaml(content, path, name="a label map")
    if not isinstance(tables, dict):
        raise DataError(f"{path}: is not a label map; it needs labels, learning_map and learning_map_inv")
    return LabelMap(tables, where=name if name in builtin else str(path))


def _iterate_entries(tables: Mapping[str, Any], name: str, where: str, *, high: int) -> Iterator[tuple[int, Any]]:
    """Yield the entries of a table with integer keys, which files may store as text; none without the table."""
    table = tables.get(name)
    if table is None:
        return
    if not isinstance(table, Mapping):
        raise DataError(f"{where}: {name}: is {_shorten(table)}, not a table; write it as semantic-kitti-api's maps")
    keys: set[int] = set()
    for raw_key, value in table.items():
        key = parse_count(raw_key) if isinstance(raw_key, str) else raw_key
        if type(key) is not int or key not in range(high + 1):
            raise DataError(f"{where}: {name}: the key {raw_key} is not a whole number from 0 to {high}")
        if key in keys:
            raise DataError(f"{where}: {name}: names {key} a second time; remove one")
        keys.add(key)
        yield key, value


def _read_table(tables: Mapping[str, Any], name: str, where: str, kind: type, *, high: int) -> dict[int, Any]:
    """Read a non-empty table from integers to values of one type."""
    entries = {}
    for key, value in _iterate_entries(tables, name, where, high=high):
        if type(value) is not kind or (kind is int and value not in range(high + 1)):
            needed = "a name" if kind is str else f"a whole number from 0 to {high}"
            raise DataError(f"{where}: {name}: {key} maps to {_shorten(value)}, {needed} is needed")
        entries[key] = value
    if not entries:
        raise DataError(f"{where}: has no table '{name}'; write it as semantic-kitti-api's maps")
    return entries


def _read_ignore_index(tables: Mapping[str, Any], where: str) -> int:
    """Return 0 if the map ignores class 0, else 255. Raises DataError if it ignores any other class."""
    marks = dict(_iterate_entries(tables, "learning_ignore", where, high=MAX_ID))
    wrong = next((key for key, mark in marks.items() if mark not in (False, True)), None)
    if wrong is not None:
        raise DataError(f"{where}: learning_ignore: {wrong} is {_shorten(marks[wrong])}, true or false is needed")
    ignored = [key for key, is_marked in marks.items() if is_marked]
    if any(ignored):
        raise DataError(
            f"{where}: learning_ignore: ignores class {max(ignored)}; map ids that are not scored to class 0, and "
            f"ignore that, or map them to {IGNORE_INDEX}"
        )
    return 0 if ignored else IGNORE_INDEX


def _read_frequencies(tables: Mapping[str, Any], num_classes: int, where: str) -> tuple[float, ...]:
    """Read the share of every class in all points, class 0 first; () if the map has none."""
    shares = dict(_iterate_entries(tables, "class_frequency", where, high=MAX_ID))
    if not shares:
        return ()
    if sorted(shares) != list(range(num_classes)):
        mismatch = min({*shares} ^ {*range(num_classes)})
        raise DataError(
            f"{where}: class_frequency: {'lacks' if mismatch < num_classes else 'has'} the class {mismatch}; a share "
            f"for each of the classes 0 to {num_classes - 1} is needed"
        )
    for label, share in shares.items():
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise DataError(f"{where}: class_frequency: {label} has {_shorten(share)}, a share from 0 to 1 is needed")
    if not any(shares.values()):
        raise DataError(f"{where}: class_frequency: every share is 0; state those of your scans, or leave it out")
    return tuple(shares[label] for label in range(num_classes))


def _check_inverse(
    to_class: Mapping[int, int], to_id: Mapping[int, int], ignore_index: int, where: str
) -> tuple[int, ...]:
    """Return the id of every class. Raises DataError if classes have gaps, or an id does not map back to its class."""
    num_classes = len(to_id)
    if num_classes > ignore_index == IGNORE_INDEX:
        raise DataError(f"{where}: learning_map_inv: has {num_classes} classes, at most {IGNORE_INDEX} are possible")
    gap = next((k for k in range(num_classes) if k not in to_id), None)
    if gap is not None:
        raise DataError(f"{where}: learning_map_inv: has no class {gap}, but class {max(to_id)}; number from 0 on")
    for raw, label in to_class.items():
        if label >= num_classes and label != ignore_index:
            raise DataError(
                f"{where}: learning_map: {raw} maps to class {label}, learning_map_inv has the classes 0 to "
                f"{num_classes - 1}; add it there, or number without gaps"
            )
    for label, raw in to_id.items():
        if to_class.get(raw) != label:
            raise DataError(
                f"{where}: learning_map_inv: class {label} has the id {raw}, which learning_map maps to "
                f"{to_class.get(raw, 'nothing')}; they must agree"
            )
    return tuple(to_id[label] for label in range(num_classes))


def _read_colors(tables: Mapping[str, Any], ids: tuple[int, ...], where: str) -> tuple[tuple[int, int, int], ...]:
    """Read the RGB colours of every class from the map's BGR; () if the map has none."""
    colors = dict(_iterate_entries(tables, "color_map", where, high=MAX_ID))
    if tables.get("color_map") is None:
        return ()
    for raw in ids:
        color = colors.get(raw)
        numbers = color if isinstance(color, list) and len(color) == 3 else [None]
        if not all(type(number) is int and number in range(256) for number in numbers):
            raise DataError(
                f"{where}: color_map: {raw} has {_shorten(color)}, blue, green and red from 0 to 255 are needed"
            )
    return tuple((red, green, blue) for blue, green, red in (colors[raw] for raw in ids))


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
