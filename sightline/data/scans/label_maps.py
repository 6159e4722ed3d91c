"""From the ids in label files to consecutive classes and back: data files in the format of semantic-kitti-api."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sightline.errors import DataError
from sightline.plain_files import read_plain

__all__ = ["IGNORED", "MAX_ID", "LabelMap", "identity_map", "read_label_map"]

IGNORED = 255
"""The class of points that are neither trained on nor scored, in maps whose class 0 counts as any other."""
MAX_ID = 2**16 - 1
"""Files keep ids in 16 bits; the upper half of a label is an instance."""
_MAX_BYTES = 200_000
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
        self.ignore_index = _ignored(tables.get("learning_ignore"), where)
        self.ids_of_classes = _checked_ids(to_class, to_id, self.ignore_index, where)
        missing = [raw for raw in self.ids_of_classes if raw not in names]
        if missing:
            raise DataError(f"{where}: labels: has no name for the id {missing[0]}; name every id")
        self.class_names = tuple(names[raw] for raw in self.ids_of_classes)
        if len(set(self.class_names)) < len(self.class_names):
            twice = next(name for name in self.class_names if self.class_names.count(name) > 1)
            raise DataError(f"{where}: labels: two classes are called '{twice}'; give each a name of its own")
        self.colors_rgb = _colors(tables.get("color_map"), self.ids_of_classes, where)
        self.frequencies = tuple((tables.get("class_frequency") or {}).values())
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
        text = read_plain(path, max_bytes=_MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        others = f"; the maps that are there: {', '.join(builtin)}" if builtin else ""
        raise DataError(f"{path}: cannot be read as a label map ({reason}){others}") from error
    return LabelMap(_read_yaml(text, path), where=name if name in builtin else str(path))


def _read_yaml(text: str, path: Path) -> Mapping[str, Any]:
    """The tables of a document of plain values. Raises DataError with the line for one that is none."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        tables = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise DataError(f"{place}: does not read as YAML; write it as semantic-kitti-api's maps") from error
    finally:
        loader.dispose()
    if node is None or not isinstance(tables, Mapping):
        raise DataError(f"{path}: is not a label map; it needs labels, learning_map and learning_map_inv")
    _check_twice(node, path)
    return tables


def _check_twice(node: yaml.Node, path: Path) -> None:
    """Raises DataError for a key that a mapping names twice: of two classes for one id nobody knows which is meant."""
    for _, table in node.value:
        seen: set[Hashable] = set()
        for key, _ in table.value if isinstance(table, yaml.MappingNode) else ():
            if key.value in seen:
                raise DataError(f"{path}:{key.start_mark.line + 1}: names {key.value} a second time; remove one")
            seen.add(key.value)


def _table(tables: Mapping[str, Any], name: str, where: str, kind: type, *, high: int) -> dict[int, Any]:
    """A table from whole numbers. JSON has text for keys, so text of digits counts as a number."""
    table = tables.get(name)
    if not isinstance(table, Mapping) or not table:
        raise DataError(f"{where}: has no table '{name}'; write it as semantic-kitti-api's maps")
    checked = {}
    for given, value in table.items():
        key = int(given) if isinstance(given, str) and given.isdecimal() else given
        if type(key) is not int or key not in range(high + 1):
            raise DataError(f"{where}: {name}: the key {given!r} is not a whole number from 0 to {high}")
        if type(value) is not kind or (kind is int and value not in range(high + 1)):
            needed = "a name" if kind is str else f"a whole number from 0 to {high}"
            raise DataError(f"{where}: {name}: {key} leads to {value!r}, {needed} is needed")
        checked[key] = value
    return checked


def _ignored(table: object, where: str) -> int:
    """Class 0 where the map ignores it, else 255. Raises DataError where it ignores any other class."""
    ignored = [int(key) for key, is_so in table.items() if is_so] if isinstance(table, Mapping) else []
    if any(ignored):
        raise DataError(
            f"{where}: learning_ignore: ignores class {max(ignored)}; map ids that nobody scores to class 0, and "
            f"ignore that, or map them to {IGNORED}"
        )
    return 0 if ignored else IGNORED


def _checked_ids(
    to_class: Mapping[int, int], to_id: Mapping[int, int], ignore_index: int, where: str
) -> tuple[int, ...]:
    """The id of every class. Raises DataError where classes have gaps or an id does not lead back to its class."""
    num_classes = len(to_id)
    if num_classes > ignore_index == IGNORED:
        raise DataError(
            f"{where}: learning_map_inv: has {num_classes} classes, {IGNORED} are possible beside class 255"
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


def _colors(table: object, ids: tuple[int, ...], where: str) -> tuple[tuple[int, int, int], ...]:
    """Red, green and blue of every class from the map's blue, green and red; none where the map has none."""
    if table is None:
        return ()
    colors = {int(key): value for key, value in table.items()} if isinstance(table, Mapping) else {}
    for raw in ids:
        color = colors.get(raw)
        if not (isinstance(color, list) and len(color) == 3 and all(each in range(256) for each in color)):
            raise DataError(f"{where}: color_map: {raw} has {color!r}, blue, green and red from 0 to 255 are needed")
    return tuple((red, green, blue) for blue, green, red in (colors[raw] for raw in ids))
