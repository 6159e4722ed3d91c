"""Label maps from raw ids to consecutive classes and back, in the format of semantic-kitti-api."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
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
_ADVICE = "add them to a map of your own: data.label_map=FILE.yaml"


class LabelMap:
    """Checked label map: every class 0 to C-1 has an id, which maps back to that class.

    `class_names` and `ids_of_classes` have C entries, class 0 first; `colors_rgb` and `frequencies` too, or none.
    `ignore_index` is 0 if the map ignores class 0, else 255, to which the map may map ids. `advice` is what to do about
    an id that is not in the map.
    """

    def __init__(self, tables: Mapping[str, Any], *, where: str, advice: str = _ADVICE) -> None:
        self.where, self._advice = where, advice
        read = partial(_read_table, tables, where)
        to_class = read("learning_map", _is_id, f"a whole number from 0 to {MAX_ID}")
        to_id = read("learning_map_inv", _is_id, f"a whole number from 0 to {MAX_ID}")
        self._names = read("labels", lambda value: type(value) is str, "a name")
        ignored = read("learning_ignore", lambda value: type(value) is bool, "true or false", optional=True)
        shares = read("class_frequency", _is_share, "a share from 0 to 1", optional=True)
        colors = read("color_map", _is_color, "blue, green and red from 0 to 255", optional=True)
        self.ignore_index = 0 if ignored.get(0) else IGNORE_INDEX
        self.ids_of_classes = _check_inverse(to_class, to_id, self.ignore_index, where)
        self.class_names = tuple(_look_up(self._names, self.ids_of_classes, f"{where}: labels", "id"))
        self.colors_rgb = tuple(
            (red, green, blue)
            for blue, green, red in _look_up(colors, self.ids_of_classes if colors else (), f"{where}: color_map", "id")
        )
        classes = range(len(to_id) if shares else 0)
        self.frequencies = tuple(_look_up(shares, classes, f"{where}: class_frequency", "class"))
        repeated = [name for name in self.class_names if self.class_names.count(name) > 1]
        wrong = [label for label, is_ignored in ignored.items() if label and is_ignored]
        if repeated:
            raise DataError(f"{where}: labels: two classes are called '{repeated[0]}'; give each a name of its own")
        if wrong:
            raise DataError(
                f"{where}: learning_ignore: ignores class {wrong[0]}; map ids that are not scored to class 0, and "
                f"ignore that, or map them to {IGNORE_INDEX}"
            )
        if len(shares) > len(self.frequencies) or (shares and not any(self.frequencies)):
            raise DataError(
                f"{where}: class_frequency: needs a share of each of the classes 0 to {len(to_id) - 1}, and of no "
                f"other, and one above 0; has {_shorten(shares)}"
            )
        self._class_by_id = np.full(MAX_ID + 1, _UNKNOWN, dtype=np.int16)
        self._class_by_id[list(to_class)] = list(to_class.values())

    @property
    def num_classes(self) -> int:
        """The number of classes."""
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

    def _format_unknown_ids(self, ids: np.ndarray, counts: np.ndarray) -> str:
        texts = [f"{raw} ({count} points)" for raw, count in zip(ids.tolist(), counts.tolist(), strict=True)]
        subject = "the label id" if len(texts) == 1 else "the label ids"
        return f"{subject} {join_some(texts, most=_MAX_NAMED)} not in the map {self.where}; {self._advice}"


def identity_map(ids: Sequence[int], id_names: Mapping[int, str], *, where: str) -> LabelMap:
    """Build a map with one class per id, in ascending order; id 0, if present, is ignored.

    Ids without a name in `id_names` are called `id_<n>`.
    """
    names = {raw: id_names.get(raw, f"id_{raw}" if raw else "unlabeled") for raw in sorted(ids)}
    to_class = {raw: label for label, raw in enumerate(names)}
    to_id = {label: raw for raw, label in to_class.items()}
    tables = {"labels": names, "learning_map": to_class, "learning_map_inv": to_id, "learning_ignore": {0: 0 in names}}
    return LabelMap(tables, where=where)


def make_label_map(names: Sequence[str | None], *, where: str = "data.label_map") -> LabelMap:
    """Build a map with one class for each named id, of the ids 0, 1, 2 and so on; ids without a name are ignored.

    Raises DataError, led by `where`, if no id has a name, and for two of one name.
    """
    named = {raw: name for raw, name in enumerate(names) if name is not None}
    if not named:
        raise DataError(f"{where}: names no class; give the names of the ids 0, 1, 2 ..., null for one to ignore")
    ignores_zero = 0 not in named
    labels = {**({0: "unlabeled"} if ignores_zero else {}), **named}
    to_id = dict(enumerate(labels))
    ignored = 0 if ignores_zero else IGNORE_INDEX
    to_class = {**dict.fromkeys(range(len(names)), ignored), **{raw: label for label, raw in to_id.items()}}
    tables = {"labels": labels, "learning_map": to_class, "learning_map_inv": to_id}
    return LabelMap({**tables, "learning_ignore": {0: ignores_zero}}, where=where)


def map_names(
    categories: Mapping[int, str], classes: Mapping[str, Sequence[str]], *, ignored: Collection[str], where: str
) -> LabelMap:
    """Build a map of ids by the names of their `categories`: a class has the ids of one or more categories.

    Ids of `ignored` categories are of no class, and those of any other are not in the map. Raises DataError for a class
    without an id.
    """
    raw_ids = {name: raw for raw, name in categories.items()}
    to_class = {raw_ids[name]: IGNORE_INDEX for name in ignored if name in raw_ids}
    to_id = {}
    for index, (name, members) in enumerate(classes.items()):
        own = [raw_ids[member] for member in members if member in raw_ids]
        if not own:
            raise DataError(f"{where}: names no category of the class '{name}' ({', '.join(members)}); get it again")
        to_class |= dict.fromkeys(own, index)
        to_id[index] = own[0]
    labels = {to_id[index]: name for index, name in enumerate(classes)}
    return LabelMap({"labels": labels, "learning_map": to_class, "learning_map_inv": to_id}, where=where)


def read_label_map(name: str | Sequence[str | None], builtin: Mapping[str, Path]) -> LabelMap:
    """Read a label map by one of the names in `builtin`, or from the user's YAML or JSON file, or make one of names.

    Raises DataError with file and entry for an incomplete map.
    """
    if not isinstance(name, str):
        return make_label_map(name)
    path = builtin[name] if name in builtin else expand_home(name)
    try:
        content = read_regular_file(path)
    except OSError as error:
        hint = f"; built-in maps: {', '.join(builtin)}" if builtin else ""
        raise DataError(f"{path}: cannot be read as a label map ({error.strerror}){hint}") from error
    tables = parsed_yaml(content, path, name="a label map")
    if not isinstance(tables, dict):
        raise DataError(f"{path}: is not a label map; it needs labels, learning_map and learning_map_inv")
    return LabelMap(tables, where=name if name in builtin else str(path))


def _read_table(
    tables: Mapping[str, Any],
    where: str,
    name: str,
    is_valid: Callable[[Any], bool],
    needed: str,
    *,
    optional: bool = False,
) -> dict[int, Any]:
    """Read a table from integers, which files may store as text, to valid values; empty without an optional table."""
    table = tables.get(name)
    if not isinstance(table, Mapping | None):
        raise DataError(f"{where}: {name}: is {_shorten(table)}, not a table; write it as semantic-kitti-api's maps")
    entries: dict[int, Any] = {}
    for raw_key, value in (table or {}).items():
        key: Any = parse_count(raw_key) if isinstance(raw_key, str) else raw_key
        if not _is_id(key):
            raise DataError(f"{where}: {name}: the key {raw_key} is not a whole number from 0 to {MAX_ID}")
        if key in entries:
            raise DataError(f"{where}: {name}: names {key} a second time; remove one")
        if not is_valid(value):
            raise DataError(f"{where}: {name}: {key} is {_shorten(value)}, {needed} is needed")
        entries[key] = value
    if not entries and not optional:
        raise DataError(f"{where}: has no table '{name}'; write it as semantic-kitti-api's maps")
    return entries


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


def _is_color(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(channel) is int and 0 <= channel < 256 for channel in value)
    )


def _look_up(entries: Mapping[int, Any], keys: Sequence[int], where: str, noun: str) -> list[Any]:
    """Return the values of keys. Raises DataError for a missing one."""
    missing = [key for key in keys if key not in entries]
    if missing:
        raise DataError(f"{where}: has no entry for the {noun} {missing[0]}; every {noun} needs one")
    return [entries[key] for key in keys]


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


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
