"""S3DIS: 272 rooms of six areas in three buildings, thirteen classes, from raw text or converted files.

One room of S3DIS from a single archive, halved along y: one half to train on, the other to test.

Reader of converted S3DIS rooms with integer labels: NPY tables, or pairs of BIN files.

`Area_<a>_<room>.npy`: numbers (points, 7), x y z red green blue label. `points/Area_<a>_<room>.bin`: float32, six per
point; `semantic_mask/Area_<a>_<room>.bin`: int64, one per point. The files do not state the meaning of the labels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from sightline.areas.scenes.sets.labelled_scenes import (
    LabelledScenes,
    SceneSplit,
    scene_columns,
    scene_info,
    scene_values,
    summarise_scenes,
)
from sightline.areas.scenes.sets.s3dis_files import (
    AREAS,
    CLASS_NAMES,
    ORDERS,
    Room,
    RoomPoints,
    list_rooms,
    missing_notes,
    read_room,
    unknown_notes,
)
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import CloudInputSpec, DataInfo, Field, Folds
from sightline.store.files.array_files import check_array, npz_array, read_npy
from sightline.store.files.input_files import file_size, get_again, natural_sort_key, read_file
from sightline.store.loading.batch_reader import stratified_split
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard
from sightline.store.prepared.splits import SPLITS
from sightline.store.scene_preparation import from_lowest_corner

_KEYS = {"xyz": "f", "label": "iu", "classes": "U"}
_SPLIT = "points below the median y train, all others, those at it included, test; rows that come twice stay"


@registry.data.add("s3dis_one_room")
class S3disOneRoom(LabelledScenes):
    """Two halves of a real room as two scenes, coordinates alone, in metres: 1 trains, 1 tests.

    Both contain the same 11 of the 13 classes. No validation data is held out: most classes have one instance in a
    half, so a held-out part would lack classes. Hence `evaluate.select: test`, and the metric of the last checkpoint,
    which is not selected. An epoch draws `repeats` samples of the one half.
    Source: Armeni et al. 2016, one room resampled to 8,192 points an instance (WinerDeCoder).
    """

    baselines: ClassVar[dict[str, dict[str, float]]] = {
        "miou": {"the majority class everywhere": 0.020, "a random forest on height, normal and eigenvalues": 0.417}
    }
    """Metrics of simple baselines on the same half, shown next to the results of a run."""
    spec = SetSpec(name="s3dis_one_room", what="the archive s3dis_one_room.npz", kind="file")

    def __init__(self, *, split: str, root: str | None = None, repeats: Count = 1) -> None:
        prepared = self.open_root(root)
        sizes = {"train": 1, "validation": 0, "test": 1}
        if split not in sizes:
            raise DataError(f"{prepared.root}: has no part '{split}'; it has train and test")
        scenes = SceneSplit(((split, 0),) if sizes[split] else (), sizes)
        super().__init__(prepared=prepared, split=split, scenes=scenes, repeats=repeats)

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to write both halves in native form from one NPZ archive.

        Raises DataError with the entry for an archive that is damaged or has other contents.
        """
        class_names = [str(class_name) for class_name in _read_archive(root)["classes"]]
        about = {
            "up_axis": "z",
            "unit": "m",
            "orientation": "z up, the room's lowest corner at the origin",
            "class_names": class_names,
            "split": _SPLIT,
        }
        read = partial(_read_half, root)
        parts = tuple(Shard(split, split, 1, (root,), partial(map, read, (split,))) for split in ("train", "test"))
        columns = scene_columns(len(class_names))
        return PreparationPlan(cls.set_name, "npz", root, columns, parts, about, summarise_scenes)


def _read_half(path: Path, split: str) -> SampleRow:
    arrays = _read_archive(path)
    is_low = arrays["xyz"][:, 1] < np.median(arrays["xyz"][:, 1])
    selected = is_low if split == "train" else ~is_low
    values = scene_values(arrays["label"][selected], len(arrays["classes"]))
    return SampleRow(f"half/{split}", f"{path}: xyz", {"points": arrays["xyz"][selected], **values})


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """Read the entries of the archive.

    Raises DataError for a missing entry, a wrong dtype or shape, a label without a class, and coordinates that are not
    finite.
    """
    arrays = {key: npz_array(path, key, needed=", ".join(_KEYS)) for key in _KEYS}
    size = len(arrays["label"]) if arrays["label"].ndim else 0
    shapes = {"xyz": (size, 3), "label": (size,), "classes": arrays["classes"].shape[:1]}
    for key, kind in _KEYS.items():
        needed = f"{shapes[key]} is needed; get the file again"
        check_array(arrays[key], where=f"{path}: {key}", kinds=kind, shapes=[shapes[key]], needed=needed)
    outside = np.flatnonzero((arrays["label"] < 0) | (arrays["label"] >= len(arrays["classes"])))
    if len(outside):
        raise get_again(
            f"{path}: label[{outside[0]}] is {arrays['label'][outside[0]]}, classes names {len(arrays['classes'])}"
        )
    if not np.isfinite(arrays["xyz"]).all():
        row = int(np.flatnonzero(~np.isfinite(arrays["xyz"]).all(axis=1))[0])
        raise get_again(f"{path}: xyz[{row}] is {arrays['xyz'][row].tolist()}")
    return arrays


_NAME_PATTERN = re.compile(r"(?P<area>Area_\d+)_(?P<room>.+)")
_NUM_COLUMNS = 7


class IntegerRoom(NamedTuple):
    """Room of converted S3DIS: area, name, and files (one NPY, or the BIN files of points and labels)."""

    area: str
    room: str
    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        return f"{self.area}/{self.room}"


def list_integer_rooms(root: Path) -> tuple[str, list[IntegerRoom]]:
    """Find the layout (`npy` or `bin`) and list its rooms by name; [] if the folder contains neither.

    Raises DataError for a name without an area, and for points without labels.
    """
    layout, paths = "npy", sorted(root.glob("*.npy"), key=lambda path: natural_sort_key(path.name))
    if not paths:
        layout, paths = "bin", sorted((root / "points").glob("*.bin"), key=lambda path: natural_sort_key(path.name))
    rooms = []
    for path in paths:
        match = _NAME_PATTERN.fullmatch(path.stem)
        if match is None or match["area"] not in AREAS:
            raise DataError(f"{path}: is not named Area_<1 to 6>_<room>, so its area is not known; rename it")
        files = (path,) if layout == "npy" else (path, root / "semantic_mask" / path.name)
        if not files[-1].is_file():
            raise DataError(f"{files[-1]}: there is no such file, {path.name} has no labels without it; get it again")
        rooms.append(IntegerRoom(match["area"], match["room"], files))
    return layout, rooms


def read_integer_room(room: IntegerRoom, *, order: str) -> RoomPoints:
    """Read all points of a room, labels in this project's order. Raises DataError with the file and the row."""
    path = room.paths[-1]
    points, colours, file_labels = _read_npy_room(path) if len(room.paths) == 1 else _read_bin_room(*room.paths)
    is_label = (file_labels == np.floor(file_labels)) & (file_labels >= 0) & (file_labels < len(CLASS_NAMES))
    is_colour = ((colours >= 0) & (colours <= 255)).all(axis=1)
    for name, is_valid in (("label", is_label), ("colour", is_colour)):
        if not is_valid.all():
            row = int(np.flatnonzero(~is_valid)[0])
            value = file_labels[row] if name == "label" else colours[row].tolist()
            limit = f"0 to {len(CLASS_NAMES) - 1}" if name == "label" else "0 to 255"
            raise get_again(f"{path}: the {name} of point {row} is {value}, {limit} is possible")
    labels_by_order = np.array([CLASS_NAMES.index(class_name) for class_name in ORDERS[order]], dtype=np.uint8)
    return RoomPoints(points, np.rint(colours).astype(np.uint8), labels_by_order[file_labels.astype(np.int64)], ())


def _read_npy_room(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = read_npy(path)
    if table.ndim != 2 or table.shape[1] != _NUM_COLUMNS or table.dtype.kind not in "fiu" or not len(table):
        raise DataError(
            f"{path}: holds {table.dtype} {table.shape}, numbers (points, {_NUM_COLUMNS}) are needed: x y z red green "
            "blue label"
        )
    return table[:, :3].astype(np.float64), table[:, 3:6], table[:, 6]


def _read_bin_room(path: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    content, labels = read_file(path), read_file(label_path)
    if not content or len(content) % 24 or len(labels) * 3 != len(content):
        raise DataError(
            f"{label_path}: {len(content)} bytes of points, six float32 each, and {len(labels)} of labels, an int64 "
            "each, do not belong together; one is cut short: get both again"
        )
    table = np.frombuffer(content, dtype="<f4").reshape(-1, 6)
    return table[:, :3].astype(np.float64), table[:, 3:], np.frombuffer(labels, dtype="<i8")


AreaNumber = Annotated[int, Ge(1), Le(6)]
"""Number of one of the six areas."""
_BYTES_PER_POINT = 30
"""Approximate length of a line of text, only for the check of free space."""
_FORM = CloudInputSpec(columns=("x", "y", "z", "red", "green", "blue"), scene={"scale": 1.0, "colour_max": 255.0})
"""Format of files for `predict`: as raw text, in metres with any origin, colours to 255."""


@registry.data.add("s3dis")
class S3dis(LabelledScenes):
    """Rooms of S3DIS, one sample each, in metres from the room's lowest corner: all areas but `test_area` to train on.

    `colours` adds red, green and blue, 0 to 1, to the model's input; `place` adds the position relative to the room's
    extent, 0 to 1; both together give the nine channels of the dense models. An epoch visits every training room
    `repeats` times; `validation_share` of the training rooms, by `split_seed`, choose the checkpoint.
    Source: Armeni et al. 2016; the splits of Tchapmi et al. 2017 (area 5) and Qi et al. 2017 (six folds).
    """

    spec = SetSpec(
        name="s3dis", what="Area_1 to Area_6, or converted rooms", entries=lambda: {"classes": ", ".join(CLASS_NAMES)}
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        test_area: AreaNumber = 5,
        colours: bool = True,
        place: bool = False,
        repeats: Count = 1,
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        prepared = self.open_root(root)
        scenes = _choose_rooms(prepared, split, f"Area_{test_area}", share=validation_share, seed=split_seed)
        features = _feature_names(colours=colours, place=place)
        super().__init__(prepared=prepared, split=split, scenes=scenes, features=features, repeats=repeats)
        areas = tuple(area for area in AREAS if area in prepared.splits)
        self.info = dataclasses.replace(self.info, folds=Folds(areas, (f"Area_{test_area}",)))

    @classmethod
    def expected_info(cls, *, colours: bool = True, place: bool = False) -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        features = _feature_names(colours=colours, place=place)
        coordinates = Field("points 3", "float32", "m", "scene, z up", collate="concatenate")
        shares = Field("points 3", "float32", "", "", 0.0, 1.0, "concatenate")
        fields = {"points": coordinates, **dict.fromkeys(features, shares)}
        return scene_info(CLASS_NAMES, fields, "z", 0, _FORM)

    @classmethod
    def plan(cls, root: Path, *, order: Literal["A", "B"] | None = None) -> PreparationPlan:
        """Plan to write the rooms in native form.

        Lines of raw text with stray bytes are repaired and listed; files of an unknown class count as clutter, with a
        note. `order` is the class order of files with integer labels: A of PointNet, B of the Point Transformer code.
        Raises DataError with file and line for a line that cannot be repaired, and for an order that is missing or not
        applicable. A killed run is continued by the same call.
        """
        layout, rooms = _list_any_rooms(root, order)
        columns = scene_columns(len(CLASS_NAMES), ("colours", ColumnSpec((3,), "uint8", is_ragged=True)))
        columns |= {"origin_m": ColumnSpec((3,), "float64"), "num_repairs": ColumnSpec((), "int64")}
        about = {
            "up_axis": "z",
            "unit": "m",
            "orientation": "z up, the room's lowest corner at the origin (origin_m in the files' own frame)",
            "class_names": list(CLASS_NAMES),
            "source_order": order,
            "split": "a part for each area; data.test_area is the one for testing",
        }
        summarise = partial(_summary, rooms=rooms, root=root)
        parts = tuple(_make_shard(room, order) for room in rooms)
        return PreparationPlan(cls.set_name, layout, root, columns, parts, about, summarise, {"order": order})

    def _input_spec(self) -> CloudInputSpec:
        return _FORM


def _list_any_rooms(root: Path, order: str | None) -> tuple[str, list[Room] | list[IntegerRoom]]:
    """Find the layout and its rooms. Raises DataError if integer labels lack an `order`, or text has one."""
    layout, integer_rooms = list_integer_rooms(root)
    if not integer_rooms:
        if order is not None:
            raise DataError(f"{root}: raw text names its classes; leave order={order} out")
        return "raw_text", list_rooms(root)
    if order is None:
        choices = "; ".join(f"order={key}: {', '.join(names[7:11])} are 7 to 10" for key, names in ORDERS.items())
        raise DataError(
            f"{integer_rooms[0].paths[-1]}: labels are bare integers, and two orders are in use; give one ({choices})"
        )
    return layout, integer_rooms


def _feature_names(*, colours: bool, place: bool) -> tuple[str, ...]:
    """Return the names of the features in addition to the coordinates."""
    return (*(["colours"] if colours else []), *(["place"] if place else []))


def _read_row(order: str | None, room: Room | IntegerRoom) -> SampleRow:
    room_points = read_room(room) if isinstance(room, Room) else read_integer_room(room, order=order or "")
    points, origin = from_lowest_corner(room_points.points)
    values = {
        "points": points,
        "colours": room_points.colours,
        **scene_values(room_points.label, len(CLASS_NAMES)),
        "origin_m": origin,
        "num_repairs": len(room_points.repairs),
    }
    return SampleRow(room.name, str(room.paths[0]), values)


def _make_shard(room: Room | IntegerRoom, order: str | None) -> Shard:
    num_points = sum(map(file_size, room.paths)) // _BYTES_PER_POINT
    return Shard(room.area, room.name, 1, room.paths, partial(map, partial(_read_row, order), (room,)), num_points)


def _summary(prepared: PreparedSet, *, rooms: Sequence[Room | IntegerRoom], root: Path) -> dict[str, Any]:
    """Manifest entries computed from the written arrays, and the repairs.

    A room with repairs is read again, because a previous run may have written it.
    """
    repaired_rooms = {
        name
        for area in prepared.splits
        for name, count in zip(prepared.names(area), prepared.array(area, "num_repairs"), strict=True)
        if count
    }
    text_rooms = [room for room in rooms if isinstance(room, Room)]
    repairs = [
        repair.describe(root)
        for room in text_rooms
        if room.name in repaired_rooms
        for repair in read_room(room).repairs
    ]
    lines = [f"lines with stray bytes that were mended: {len(repairs)}"] if repairs else []
    return {
        **summarise_scenes(prepared),
        "repairs": repairs,
        "differences": [*lines, *repairs, *unknown_notes(text_rooms), *missing_notes([room.area for room in rooms])],
    }


def _choose_rooms(prepared: PreparedSet, split: str, test_area: str, *, share: float, seed: int) -> SceneSplit:
    """Choose the rooms of a split. Raises DataError for an unknown split or area."""
    if split not in SPLITS:
        raise DataError(f"{prepared.root}: has no part '{split}'; it has train, validation and test")
    if test_area not in prepared.splits:
        available = ", ".join(prepared.splits)
        raise DataError(
            f"{prepared.root}: holds no {test_area}, it holds {available}; set data.test_area to one of these"
        )
    areas = [area for area in AREAS if area in prepared.splits and area != test_area]
    rooms = [(area, row) for area in areas for row in range(prepared.manifest["splits"][area]["num_rows"])]
    train_rows, held_out = (
        stratified_split(len(rooms), None, share=share, seed=seed) if share else (range(len(rooms)), ())
    )
    parts = {
        "train": tuple(rooms[index] for index in train_rows),
        "validation": tuple(rooms[index] for index in held_out),
        "test": tuple((test_area, row) for row in range(prepared.manifest["splits"][test_area]["num_rows"])),
    }
    return SceneSplit(parts[split], {name: len(members) for name, members in parts.items()})
