"""Rooms of ScanNet v2 in each of its layouts: their files, and the part that each is in."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from sightline.areas.scenes.sets.scannet_files import CLASSES, Classes
from sightline.contract.errors import DataError
from sightline.store.files.input_files import list_folders
from sightline.store.files.text_tables import read_text, split_lines

Layout = Literal["segments", "labels", "converted"]
"""Where the labels of vertices are: in groups of segments, in a second mesh, or in arrays that Pointcept makes."""
_LISTS = {"train": "scannetv2_train.txt", "test": "scannetv2_val.txt"}
_FOLDERS = {"train": "train", "test": "val"}
_MESH, _GROUPS = "{}_vh_clean_2.ply", "{}.aggregation.json"
_FILES: dict[Layout, tuple[str, ...]] = {
    "segments": (_MESH, _GROUPS, "{}_vh_clean_2.0.010000.segs.json"),
    "labels": (_MESH, "{}_vh_clean_2.labels.ply"),
}
_ROOM = re.compile(r"scene\d{4}_\d{2}")


class ListedRoom(NamedTuple):
    """Room: its split, name and files, the coordinates first."""

    split: str
    name: str
    files: tuple[Path, ...]


class RoomList(NamedTuple):
    """Rooms of a source, those that train first: their layout, what divides them, and notes."""

    layout: Layout
    rooms: list[ListedRoom]
    split: str
    notes: list[str]


def list_rooms(root: Path, classes: Classes) -> RoomList:
    """List the rooms in `scans`, or else in the folders `train` and `val` of converted rooms.

    Of `scans`, both lists of names beside it divide the rooms; without them the official validation part is tested.
    Raises DataError for a list, a room or one of its files that is missing.
    """
    return _list_scans(root, classes) if (root / "scans").is_dir() else _list_converted(root, classes)


@functools.cache
def official_validation() -> frozenset[str]:
    """Return the names of the 312 scans of the official validation part; all scans of a room are in one part."""
    path = Path(__file__).with_name("scannet_validation.json")
    rooms = json.loads(path.read_text(encoding="utf-8"))["rooms_by_number_of_scans"]
    return frozenset(
        f"scene{room}_{number:02d}"
        for count, lines in rooms.items()
        for room in " ".join(lines).split()
        for number in range(int(count))
    )


class _NamedRoom(NamedTuple):
    split: str
    name: str
    where: str


def _list_scans(root: Path, classes: Classes) -> RoomList:
    scans, notes = root / "scans", list[str]()
    if any((root / file).exists() for file in _LISTS.values()):
        named, split = list(_read_lists(root)), f"{_LISTS['train']} trains, {_LISTS['test']} tests"
    else:
        folders = [folder.name for folder in list_folders(scans)]
        rooms, official = [name for name in folders if _ROOM.fullmatch(name)], official_validation()
        parts = {"train": [name for name in rooms if name not in official]}
        parts["test"] = [name for name in rooms if name in official]
        named = [_NamedRoom(part, name, str(scans / name)) for part, names in parts.items() for name in names]
        split = "the official validation part tests, all other rooms train"
        others = [name for name in folders if name not in rooms]
        notes += [f"{len(others)} folders of scans are no rooms, such as {others[0]}: left out"] if others else []
    notes += _note_part([room.name for room in named if room.split == "test"])
    if empty := next((part for part in _LISTS if not any(room.split == part for room in named)), None):
        what = {"train": "none besides those of", "test": "none of"}[empty]
        raise DataError(
            f"{scans}: of its rooms, {what} the official validation part is there, or {_LISTS[empty]} is empty; get "
            f"rooms of both parts, or put the lists {' and '.join(_LISTS.values())} beside it"
        )
    first = scans / named[0].name
    layout: Layout = "segments" if (first / _GROUPS.format(first.name)).is_file() else "labels"
    if layout == "labels" and classes != CLASSES:
        raise DataError(
            f"{named[0].where}: '{first.name}' has no {_GROUPS.format(first.name)} below scans, which the labels of "
            f"{len(classes.names)} classes are in; get the room again"
        )
    return RoomList(layout, [_find_files(scans, room, _FILES[layout]) for room in named], split, notes)


def _read_lists(root: Path) -> Iterator[_NamedRoom]:
    seen: set[str] = set()
    for split, file in _LISTS.items():
        for number, line in enumerate(split_lines(read_text(root / file)), start=1):
            name, where = line.strip(), f"{root / file}:{number}"
            if name in seen:
                raise DataError(f"{where}: '{name}' is listed twice; correct the lists")
            seen.add(name)
            yield _NamedRoom(split, name, where)


def _find_files(scans: Path, room: _NamedRoom, patterns: tuple[str, ...]) -> ListedRoom:
    files = tuple(scans / room.name / pattern.format(room.name) for pattern in patterns)
    if missing := next((path.name for path in files if not path.is_file()), None):
        raise DataError(f"{room.where}: '{room.name}' has no {missing} below scans; get the room, or leave it out")
    return ListedRoom(room.split, room.name, files)


def _list_converted(root: Path, classes: Classes) -> RoomList:
    names, rooms = ("coord", "color", f"segment{classes.array}", "normal"), []
    for split, folder in _FOLDERS.items():
        parts = list_folders(root / folder) if (root / folder).is_dir() else []
        if not parts:
            raise DataError(f"{root / folder}: holds no room; folders of rooms in train and in val are needed")
        for room in parts:
            files = [path for name in names if (path := room / f"{name}.npy").is_file()]
            if missing := next((name for name in names[:-1] if room / f"{name}.npy" not in files), None):
                raise DataError(f"{room}: has no {missing}.npy; convert the room again, or leave it out")
            rooms.append(ListedRoom(split, room.name, tuple(files)))
    notes = _note_part([room.name for room in rooms if room.split == "test"])
    notes += ["the rooms in test have no labels: left out"] if (root / "test").is_dir() else []
    return RoomList("converted", rooms, "the folder train trains, val tests", notes)


def _note_part(tested: Collection[str]) -> list[str]:
    """Return a note where the tested rooms are not those of the official validation part."""
    official, names = official_validation(), {*tested}
    if names == official:
        return []
    return [
        f"tested are {len(official & names)} of the {len(official)} scans of the official validation part, and "
        f"{len(names - official)} others: figures are not to be compared with published ones"
    ]
