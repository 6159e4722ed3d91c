"""S3DIS: 272 rooms of six areas of three buildings, thirteen classes, from raw text or from what others made of it."""

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
"""One of the six areas."""
_BYTES_PER_POINT = 30
"""A line of text has about so many; for the check of free space alone."""
_FORM = CloudInputSpec(columns=("x", "y", "z", "red", "green", "blue"), scene={"scale": 1.0, "colour_max": 255.0})
"""Files are rooms as raw text has them: in metres anywhere, colours to 255."""


@registry.data.add("s3dis")
class S3dis(LabelledScenes):
    """Rooms of S3DIS, one sample each, in metres from the room's lowest corner: all areas but `test_area` to train on.

    `colours` adds red, green and blue, 0 to 1, to the model's input; `place` the share of the room's extent at which a
    point lies, of which the nine channels of the dense models are made. `repeats` rooms are trained on in an epoch for
    every room; `validation_share` of the training rooms, by `split_seed`, choose the checkpoint.
    Source: Armeni et al. 2016; the parts of Tchapmi et al. 2017 (area 5) and Qi et al. 2017 (six folds).
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
        scenes = _scenes(prepared, split, f"Area_{test_area}", share=validation_share, seed=split_seed)
        features = _features(colours=colours, place=place)
        super().__init__(prepared=prepared, split=split, scenes=scenes, features=features, repeats=repeats)
        areas = tuple(area for area in AREAS if area in prepared.splits)
        self.info = dataclasses.replace(self.info, folds=Folds(areas, (f"Area_{test_area}",)))

    @classmethod
    def expected_info(cls, *, colours: bool = True, place: bool = False) -> DataInfo:
        """What `info` states, counts, sizes and reach left out, before the set is there. Takes arguments of the set."""
        features = _features(colours=colours, place=place)
        places = Field("points 3", "float32", "m", "scene, z up", collate="concatenate")
        shares = Field("points 3", "float32", "", "", 0.0, 1.0, "concatenate")
        label = Field("points", "int64", "class", "", 0, len(CLASS_NAMES) - 1, "concatenate")
        return DataInfo(
            facts={
                "num_classes": len(CLASS_NAMES),
                "class_names": CLASS_NAMES,
                "in_channels": 3 + 3 * len(features),
                "up_axis": "z",
            },
            fields={"points": places, **dict.fromkeys(features, shares), "label": label},
            features=features,
            clouds=_FORM,
        )

    @classmethod
    def prepare(
        cls, *, source: Path, target: Path, name: str, progress: Progress, order: Literal["A", "B"] | None = None
    ) -> dict[str, Any]:
        """Write the rooms in native form; returns the manifest with `root` and `outcome`.

        Lines of raw text with stray bytes are mended and listed; files of an unknown class count as clutter, and are
        counted. `order` says what the labels of files with bare integers mean: A as PointNet numbers the classes, B as
        the Point Transformer's own code does. Raises DataError with file and line for what cannot be mended, and for
        an order that is lacking or not wanted. A killed run is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root = source.expanduser().resolve()
        layout, rooms = _list(root, order)
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
        parts = tuple(_part(room, order) for room in rooms)
        plan = PreparationPlan(name, layout, root, columns, parts, about, summarise, {"order": order})
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """What the set is, what is read, and where to obtain it."""
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

    def _form(self) -> CloudInputSpec:
        return _FORM


def _list(root: Path, order: str | None) -> tuple[str, list[Room] | list[IntegerRoom]]:
    """The layout and its rooms. Raises DataError where labels are bare integers of unknown meaning."""
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


def _features(*, colours: bool, place: bool) -> tuple[str, ...]:
    """What a model is given of a point beside its coordinates."""
    return (*(["colours"] if colours else []), *(["place"] if place else []))


@dataclass(frozen=True)
class _RowOf:
    """The one row of a room's part."""

    room: Room | IntegerRoom
    order: str | None

    def __call__(self) -> Iterator[SampleRow]:
        found = _read(self.room, self.order)
        points, origin = from_lowest_corner(found.points)
        values = {
            "points": points,
            "colours": found.colours,
            **scene_values(found.label, len(CLASS_NAMES)),
            "origin_m": origin,
            "num_repairs": len(found.repairs),
        }
        yield SampleRow(self.room.name, str(_files_of(self.room)[0]), values)


def _read(room: Room | IntegerRoom, order: str | None) -> RoomPoints:
    if isinstance(room, Room):
        return read_room(room)
    assert order is not None
    return read_integer_room(room, order=order)


def _files_of(room: Room | IntegerRoom) -> tuple[Path, ...]:
    return tuple(path for path, _ in room.files) if isinstance(room, Room) else room.files


def _part(room: Room | IntegerRoom, order: str | None) -> Shard:
    files = _files_of(room)
    about = sum(file_size(file) for file in files) // _BYTES_PER_POINT
    return Shard(room.area, room.name, 1, files, _RowOf(room, order), about)


def _summary(prepared: PreparedSet, *, rooms: Sequence[Room | IntegerRoom], root: Path) -> dict[str, Any]:
    """Counts, and what was mended. A room with repairs is read once more: it may have been kept from a run before."""
    mended = {
        name
        for area in prepared.splits
        for name, count in zip(prepared.names(area), prepared.array(area, "num_repairs"), strict=True)
        if count
    }
    raw = [room for room in rooms if isinstance(room, Room)]
    repairs = [repair.describe(root) for room in raw if room.name in mended for repair in read_room(room).repairs]
    lines = [f"lines with stray bytes that were mended: {len(repairs)}"] if repairs else []
    return {
        **summarise_scenes(prepared),
        "repairs": repairs,
        "differences": [*lines, *repairs, *unknown_notes(raw), *missing_notes([room.area for room in rooms])],
    }


def _scenes(prepared: PreparedSet, split: str, test_area: str, *, share: float, seed: int) -> SceneSplit:
    """The rooms of a part. Raises DataError for a part or an area that there is not."""
    if split not in ("train", "validation", "test"):
        raise DataError(f"{prepared.root}: has no part '{split}'; it has train, validation and test")
    if test_area not in prepared.splits:
        held = ", ".join(prepared.splits)
        raise DataError(f"{prepared.root}: holds no {test_area}, it holds {held}; set data.test_area to one of these")
    areas = [area for area in AREAS if area in prepared.splits and area != test_area]
    rooms = [(area, row) for area in areas for row in range(prepared.manifest["splits"][area]["num_rows"])]
    kept, held_out = stratified_split(len(rooms), None, share=share, seed=seed) if share else (range(len(rooms)), ())
    parts = {
        "train": tuple(rooms[place] for place in kept),
        "validation": tuple(rooms[place] for place in held_out),
        "test": tuple((test_area, row) for row in range(prepared.manifest["splits"][test_area]["num_rows"])),
    }
    return SceneSplit(parts[split], {name: len(members) for name, members in parts.items()})
