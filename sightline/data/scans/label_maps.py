"""From the ids in label files to consecutive classes and back: data files in the format of semantic-kitti-api."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.files.text_tables import parse_count
from sightline.data.files.yaml_files import parsed_yaml
from sightline.errors import DataError
from sightline.regular_files import read_regular_file

__all__ = ["IGNORE_INDEX", "MAX_ID", "LabelMap", "identity_map", "read_label_map"]

IGNORE_INDEX = 255
"""The class of points that are neither trained on nor scored, in maps whose class 0 counts as any other."""
MAX_ID = 2**16 - 1
"""Files keep ids in 16 bits; the upper half of a label is an instance."""
_UNKNOWN = -1
_MOST_NAMED = 3


class LabelMap:
    """A checked label map: every class 0 to C-1 has an id, and the id of a class leads back to that class.

    `class_names` and `ids_of_classes` have C entries, class 0 first; `colors_rgb` and `frequencies` too, or none.
    `ignore_index` is 0 where the map ignores class 0, else 255, which ids of the map may lead to.
    """

    def __init__(self, tables: Mapping[str, Any], *, where: str) -> None:
        self.where = where
        to_class = _table(tables, "learning_map", where, int, high=MAX_ID)
        to_id = _table(tables, "learning_map_inv", where, int, high=MAX_ID)
        names = _table(tables, "labels", where, str, high=MAX_ID)
        self.ignore_index = _ignored(tables, where)
        self.ids_of_classes = _checked_ids(to_class, to_id, self.ignore_index, where)
        missing = [raw for raw in self.ids_of_classes if raw not in names]
        if missing:
            raise DataError(f"{where}: labels: has no name for the id {missing[0]}; name every id")
        self.class_names = tuple(names[raw] for raw in self.ids_of_classes)
        if len(set(self.class_names)) < len(self.class_names):
            twice = next(name for name in self.class_names if self.class_names.count(name) > 1)
            raise DataError(f"{where}: labels: two classes are called '{twice}'; give each a name of its own")
        self.colors_rgb = _colors(tables, self.ids_of_classes, where)
        self.frequencies = _frequencies(tables, len(to_id), where)
        self._names = names
        self._class_of = np.full(MAX_ID + 1, _UNKNOWN, dtype=np.int16)
        self._class_of[list(to_class)] = list(to_class.values())

    @property
    def num_classes(self) -> int:
        return len(self.ids_of_classes)

    def classes(self, ids: np.ndarray, *, where: str) -> np.ndarray:
        """The classes (N,) int64 of ids (N,). Raises DataError with `where`, the id and its count for unknown ones."""
        found = self._class_of[ids].astype(np.int64)
        if (found == _UNKNOWN).any():
            unknown, counts = np.unique(ids[found == _UNKNOWN], return_counts=True)
            raise DataError(f"{where}: {self._unknown_ids(unknown, counts)}")
        return found

    def ids(self, classes: np.ndarray) -> np.ndarray:
        """The ids (N,) uint32 that files hold for these classes (N,); of a class with several, that of the map."""
        return np.asarray(self.ids_of_classes, dtype=np.uint32)[classes]

    def counts(self, ids: np.ndarray, counts: np.ndarray, *, where: str) -> np.ndarray:
        """Points of each class (C,) int64 from points `counts` (K,) of each id (K,). Raises as `classes`."""
        found = self._class_of[ids]
        if ((found == _UNKNOWN) & (counts > 0)).any():
            is_unknown = (found == _UNKNOWN) & (counts > 0)
            raise DataError(f"{where}: {self._unknown_ids(ids[is_unknown], counts[is_unknown])}")
        is_class = (found >= 0) & (found < self.num_classes)
        summed = np.zeros(self.num_classes, dtype=np.int64)
        np.add.at(summed, found[is_class], counts[is_class])
        return summed

    def name_of(self, raw: int) -> str:
        """What the map calls an id; `id 5` for one that it does not name."""
        return self._names.get(raw, f"id {raw}")

    def has_id(self, raw: int) -> bool:
        """Whether the map leads an id to a class, or to be ignored."""
        return bool(self._class_of[raw] != _UNKNOWN)

    def tables_with(self, ids: Sequence[int]) -> dict[str, Any]:
        """The tables of a map that has these further ids too, which it lacks, each as a class `id_<n>` of its own."""
        known = np.flatnonzero(self._class_of != _UNKNOWN).tolist()
        forth = {raw: int(self._class_of[raw]) for raw in known}
        back = dict(enumerate(self.ids_of_classes))
        for raw in ids:
            forth[raw], back[len(back)] = len(back), raw
        return {
            "labels": {raw: self._names.get(raw, f"id_{raw}") for raw in sorted(forth)},
            "learning_map": dict(sorted(forth.items())),
            "learning_map_inv": back,
            "learning_ignore": {0: self.ignore_index == 0},
        }

    def _unknown_ids(self, ids: np.ndarray, counts: np.ndarray) -> str:
        named = [f"{raw} ({count} points)" for raw, count in zip(ids.tolist(), counts.tolist(), strict=True)]
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        ids_are = "the label id" if len(named) == 1 else "the label ids"
        return (
            f"{ids_are} {', '.join(named[:_MOST_NAMED])}{more} not in the map {self.where}; add them to a map of your "
            "own: data.label_map=FILE.yaml"
        )


def identity_map(ids: Sequence[int], *, where: str) -> LabelMap:
    """Every id as a class of its own, in ascending order, as `id_<n>`; id 0, if it is there, is ignored."""
    names = {raw: "unlabeled" if raw == 0 else f"id_{raw}" for raw in sorted(ids)}
    forth = {raw: label for label, raw in enumerate(names)}
    back = {label: raw for raw, label in forth.items()}
    tables = {"labels": names, "learning_map": forth, "learning_map_inv": back, "learning_ignore": {0: 0 in names}}
    return LabelMap(tables, where=where)


def read_label_map(name: str, builtin: Mapping[str, str]) -> LabelMap:
    """A map by one of the names in `builtin`, or from the user's YAML or JSON file.

    Raises DataError naming file and entry for a map that is not whole.
    """
    path = Path(__file__).with_name(builtin[name]) if name in builtin else Path(name).expanduser()
    try:
        content = read_regular_file(path)
    except OSError as error:
        others = f"; the maps that are there: {', '.join(builtin)}" if builtin else ""
        raise DataError(f"{path}: cannot be read as a label map ({error.strerror}){others}") from error
    tables = parsed_yaml(content, path, name="a label map")
    if not isinstance(tables, dict):
        raise DataError(f"{path}: is not a label map; it needs labels, learning_map and learning_map_inv")
    return LabelMap(tables, where=name if name in builtin else str(path))


def _entries(tables: Mapping[str, Any], name: str, where: str, *, high: int) -> Iterator[tuple[int, Any]]:
    """The entries of a table from whole numbers, which files have as text; none where there is no such table."""
    table = tables.get(name)
    if table is None:
        return
    if not isinstance(table, Mapping):
        raise DataError(f"{where}: {name}: is {_cut(table)}, not a table; write it as semantic-kitti-api's maps")
    seen: set[int] = set()
    for given, value in table.items():
        key = parse_count(given) if isinstance(given, str) else given
        if type(key) is not int or key not in range(high + 1):
            raise DataError(f"{where}: {name}: the key {given} is not a whole number from 0 to {high}")
        if key in seen:
            raise DataError(f"{where}: {name}: names {key} a second time; remove one")
        seen.add(key)
        yield key, value


def _table(tables: Mapping[str, Any], name: str, where: str, kind: type, *, high: int) -> dict[int, Any]:
    """A table from whole numbers to values of one type, which has at least one entry."""
    checked = {}
    for key, value in _entries(tables, name, where, high=high):
        if type(value) is not kind or (kind is int and value not in range(high + 1)):
            needed = "a name" if kind is str else f"a whole number from 0 to {high}"
            raise DataError(f"{where}: {name}: {key} leads to {_cut(value)}, {needed} is needed")
        checked[key] = value
    if not checked:
        raise DataError(f"{where}: has no table '{name}'; write it as semantic-kitti-api's maps")
    return checked


def _ignored(tables: Mapping[str, Any], where: str) -> int:
    """Class 0 where the map ignores it, else 255. Raises DataError where it ignores any other class."""
    marks = dict(_entries(tables, "learning_ignore", where, high=MAX_ID))
    wrong = next((key for key, mark in marks.items() if mark not in (False, True)), None)
    if wrong is not None:
        raise DataError(f"{where}: learning_ignore: {wrong} leads to {_cut(marks[wrong])}, true or false is needed")
    ignored = [key for key, is_so in marks.items() if is_so]
    if any(ignored):
        raise DataError(
            f"{where}: learning_ignore: ignores class {max(ignored)}; map ids that nobody scores to class 0, and "
            f"ignore that, or map them to {IGNORE_INDEX}"
        )
    return 0 if ignored else IGNORE_INDEX


def _frequencies(tables: Mapping[str, Any], num_classes: int, where: str) -> tuple[float, ...]:
    """The share of every class in all points, class 0 first; none where the map has none."""
    shares = dict(_entries(tables, "class_frequency", where, high=MAX_ID))
    if not shares:
        return ()
    if sorted(shares) != list(range(num_classes)):
        odd = min({*shares} ^ {*range(num_classes)})
        raise DataError(
            f"{where}: class_frequency: {'lacks' if odd < num_classes else 'has'} the class {odd}; a share for each of "
            f"the classes 0 to {num_classes - 1} is needed"
        )
    for label, share in shares.items():
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise DataError(f"{where}: class_frequency: {label} has {_cut(share)}, a share from 0 to 1 is needed")
    if not any(shares.values()):
        raise DataError(f"{where}: class_frequency: every share is 0; state those of your scans, or leave it out")
    return tuple(shares[label] for label in range(num_classes))


def _checked_ids(
    to_class: Mapping[int, int], to_id: Mapping[int, int], ignore_index: int, where: str
) -> tuple[int, ...]:
    """The id of every class. Raises DataError where classes have gaps or an id does not lead back to its class."""
    num_classes = len(to_id)
    if num_classes > ignore_index == IGNORE_INDEX:
        raise DataError(
            f"{where}: learning_map_inv: has {num_classes} classes, {IGNORE_INDEX} are possible beside class 255"
        )
    gap = next((k for k in range(num_classes) if k not in to_id), None)
    if gap is not None:
        raise DataError(f"{where}: learning_map_inv: has no class {gap}, but class {max(to_id)}; number from 0 on")
    for raw, label in to_class.items():
        if label >= num_classes and label != ignore_index:
            raise DataError(
                f"{where}: learning_map: {raw} leads to class {label}, learning_map_inv has the classes 0 to "
                f"{num_classes - 1}; add it there, or number without gaps"
            )
    for label, raw in to_id.items():
        if to_class.get(raw) != label:
            raise DataError(
                f"{where}: learning_map_inv: class {label} has the id {raw}, which learning_map leads to "
                f"{to_class.get(raw, 'nothing')}; they must agree"
            )
    return tuple(to_id[label] for label in range(num_classes))


def _colors(tables: Mapping[str, Any], ids: tuple[int, ...], where: str) -> tuple[tuple[int, int, int], ...]:
    """Red, green and blue of every class from the map's blue, green and red; none where the map has none."""
    colors = dict(_entries(tables, "color_map", where, high=MAX_ID))
    if tables.get("color_map") is None:
        return ()
    for raw in ids:
        color = colors.get(raw)
        numbers = color if isinstance(color, list) and len(color) == 3 else [None]
        if not all(type(each) is int and each in range(256) for each in numbers):
            raise DataError(
                f"{where}: color_map: {raw} has {_cut(color)}, blue, green and red from 0 to 255 are needed"
            )
    return tuple((red, green, blue) for blue, green, red in (colors[raw] for raw in ids))


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
