"""S3DIS: 272 rooms of six areas in three buildings, thirteen classes, from raw text or converted files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from sightline import registry
from sightline.arguments import Count, FractionBelowOne, Seed
from sightline.data.files.input_files import file_size
from sightline.data.loading.splits import stratified_split
from sightline.data.scenes.indoor_classes import CLASS_NAMES, ORDERS
from sightline.data.scenes.labelled_scenes import (
    LabelledScenes,
    SceneSplit,
    scene_columns,
    scene_values,
    summarise_scenes,
)
from sightline.data.scenes.s3dis_files import (
    AREAS,
    Room,
    RoomPoints,
    list_rooms,
    missing_notes,
    read_room,
    unknown_notes,
)
from sightline.data.scenes.s3dis_integers import IntegerRoom, list_integer_rooms, read_integer_room
from sightline.data.scenes.scene_preparation import from_lowest_corner
from sightline.data.store.columns import ColumnSpec
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import PreparedSet, open_prepared, prepare_command
from sightline.data.store.prepared_writer import PreparationPlan, Progress, SampleRow, Shard, write_prepared_set
from sightline.errors import DataError
from sightline.types import CloudInputSpec, DataInfo, Field, Folds

__all__ = ["S3dis"]

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

    set_name = "s3dis"
    readable_sets = ("s3dis",)

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
        prepared = open_prepared(prepared_root(root, self.set_name), set_names=self.readable_sets)
        scenes = _choose_rooms(prepared, split, f"Area_{test_area}", share=validation_share, seed=split_seed)
        features = _feature_names(colours=colours, place=place)
        super().__init__(prepared=prepared, split=split, scenes=scenes, features=features, repeats=repeats)
        areas = tuple(area for area in AREAS if area in prepared.splits)
        self.info = dataclasses.replace(self.info, folds=Folds(areas, (f"Area_{test_area}",)))

    @classmethod
    def expected_info(cls, *, colours: bool = True, place: bool = False) -> DataInfo:
        """Expected DataInfo before preparation, without counts."""
        features = _feature_names(colours=colours, place=place)
        coordinates = Field("points 3", "float32", "m", "scene, z up", collate="concatenate")
        shares = Field("points 3", "float32", "", "", 0.0, 1.0, "concatenate")
        label = Field("points", "int64", "class", "", 0, len(CLASS_NAMES) - 1, "concatenate")
        return DataInfo(
            facts={
                "num_classes": len(CLASS_NAMES),
                "class_names": CLASS_NAMES,
                "in_channels": 3 + 3 * len(features),
                "up_axis": "z",
            },
            fields={"points": coordinates, **dict.fromkeys(features, shares), "label": label},
            features=features,
            clouds=_FORM,
        )

    @classmethod
    def prepare(
        cls, *, source: Path, target: Path, name: str, progress: Progress, order: Literal["A", "B"] | None = None
    ) -> dict[str, Any]:
        """Write the rooms in native form; returns the manifest with `root` and `outcome`.

        Lines of raw text with stray bytes are repaired and listed; files of an unknown class count as clutter, with a
        note. `order` is the class order of files with integer labels: A of PointNet, B of the Point Transformer code.
        Raises DataError with file and line for a line that cannot be repaired, and for an order that is missing or not
        applicable. A killed run is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root = source.expanduser().resolve()
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
        plan = PreparationPlan(name, layout, root, columns, parts, about, summarise, {"order": order})
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        return {
            "set": cls.set_name,
            "classes": ", ".join(CLASS_NAMES),
            "layouts": {
                "raw_text": "Stanford3dDataset_v1.2_Aligned_Version: Area_<1 to 6>/<room>/Annotations/<class>_<n>.txt",
                "npy": "Area_<a>_<room>.npy, (points, 7): x y z red green blue label; needs order=A or order=B",
                "bin": "points/Area_<a>_<room>.bin and semantic_mask/Area_<a>_<room>.bin; needs order=A or order=B",
            },
            "home": "http://buildingparser.stanford.edu/dataset.html",
            "terms": "for research, after agreeing to the authors' form; nothing is downloaded for you",
            "cite": "Armeni et al. 2016, 3D Semantic Parsing of Large-Scale Indoor Spaces",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }

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
            f"{integer_rooms[0].files[-1]}: labels are bare integers, and two orders are in use; give one ({choices})"
        )
    return layout, integer_rooms


def _feature_names(*, colours: bool, place: bool) -> tuple[str, ...]:
    """Return the names of the features in addition to the coordinates."""
    return (*(["colours"] if colours else []), *(["place"] if place else []))


@dataclass(frozen=True)
class _RoomReader:
    """Picklable reader of the one row of a room's shard."""

    room: Room | IntegerRoom
    order: str | None

    def __call__(self) -> Iterator[SampleRow]:
        room_points = _read_any_room(self.room, self.order)
        points, origin = from_lowest_corner(room_points.points)
        values = {
            "points": points,
            "colours": room_points.colours,
            **scene_values(room_points.label, len(CLASS_NAMES)),
            "origin_m": origin,
            "num_repairs": len(room_points.repairs),
        }
        yield SampleRow(self.room.name, str(_list_files(self.room)[0]), values)


def _read_any_room(room: Room | IntegerRoom, order: str | None) -> RoomPoints:
    if isinstance(room, Room):
        return read_room(room)
    assert order is not None
    return read_integer_room(room, order=order)


def _list_files(room: Room | IntegerRoom) -> tuple[Path, ...]:
    return tuple(path for path, _ in room.files) if isinstance(room, Room) else room.files


def _make_shard(room: Room | IntegerRoom, order: str | None) -> Shard:
    files = _list_files(room)
    num_points = sum(file_size(file) for file in files) // _BYTES_PER_POINT
    return Shard(room.area, room.name, 1, files, _RoomReader(room, order), num_points)


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
    if split not in ("train", "validation", "test"):
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
