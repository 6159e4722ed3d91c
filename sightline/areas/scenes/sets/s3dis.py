"""S3DIS: 272 rooms of six areas in three buildings, thirteen classes; and one of its rooms, halved along y."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from sightline.areas.scenes.sets.labelled_scenes import (
    COLOURS,
    LabelledScenes,
    scene_columns,
    scene_info,
    scene_values,
    summarise_scenes,
)
from sightline.areas.scenes.sets.s3dis_files import (
    CLASS_NAMES,
    Room,
    list_rooms,
    missing_notes,
    read_room,
    unknown_notes,
)
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, Seed
from sightline.contract.types import CloudInputSpec, DataInfo, Field
from sightline.store.files.array_files import check_array, npz_array
from sightline.store.files.input_files import file_size, get_again
from sightline.store.loading.stratified import stratified_split
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard
from sightline.store.prepared.splits import RowRefs, SplitRows, split_by_folds
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

    baselines: Mapping[str, Mapping[str, float]] = {
        "miou": {"the majority class everywhere": 0.020, "a random forest on height, normal and eigenvalues": 0.417}
    }
    """Metrics of simple baselines on the same half, shown next to the results of a run."""
    spec = SetSpec(name="s3dis_one_room", what="the archive s3dis_one_room.npz", kind="file")

    def __init__(self, *, split: str, root: str | None = None, repeats: Count = 1) -> None:
        prepared = self.open_root(root)
        parts = SplitRows({"train": (("train", 0),), "validation": (), "test": (("test", 0),)})
        super().__init__(prepared=prepared, split=split, parts=parts, repeats=repeats)

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


AreaNumber = Annotated[int, Ge(1), Le(6)]
"""Number of one of the six areas."""
_BYTES_PER_POINT = 30
"""Approximate length of a line of text, only for the check of free space."""
_FORM = CloudInputSpec(columns=("x", "y", "z", "red", "green", "blue"), scene={"scale": 1.0, "colour_max": 255.0})
"""Format of files for `predict`: as raw text, in metres with any origin, colours to 255."""


@registry.data.add("s3dis")
class S3dis(LabelledScenes):
    """Rooms of S3DIS, one sample each, in metres from the room's lowest corner: all areas but `test_area` to train on.

    `colours` adds red, green and blue, 0 to 1, to the model's input; `normalised_position` adds the position relative
    to the room's extent, 0 to 1; both together give the nine channels of the dense models. An epoch visits every
    training room `repeats` times; `validation_share` of the training rooms, by `split_seed`, choose the checkpoint.
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
        normalised_position: bool = False,
        repeats: Count = 1,
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        prepared = self.open_root(root)
        parts = split_by_folds(
            prepared,
            (f"Area_{test_area}",),
            deal=partial(_deal_rooms, share=validation_share, seed=split_seed),
            advice="set data.test_area to one of these",
        )
        features = _feature_names(colours=colours, normalised_position=normalised_position)
        super().__init__(prepared=prepared, split=split, parts=parts, features=features, repeats=repeats)

    @classmethod
    def expected_info(cls, *, colours: bool = True, normalised_position: bool = False) -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        features = _feature_names(colours=colours, normalised_position=normalised_position)
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
        applicable.
        """
        layout, rooms = list_rooms(root, order)
        columns = scene_columns(len(CLASS_NAMES), COLOURS)
        columns |= {"origin_m": ColumnSpec((3,), "float64")}
        about = {
            "up_axis": "z",
            "unit": "m",
            "orientation": "z up, the room's lowest corner at the origin (origin_m in the files' own frame)",
            "class_names": list(CLASS_NAMES),
            "source_order": order,
            "split": "a part for each area; data.test_area is the one for testing",
        }
        summarise = partial(_summary, notes=[*unknown_notes(rooms), *missing_notes([room.area for room in rooms])])
        parts = tuple(_make_shard(room, order) for room in rooms)
        return PreparationPlan(cls.set_name, layout, root, columns, parts, about, summarise, {"order": order})

    def _input_spec(self) -> CloudInputSpec:
        return _FORM


def _feature_names(*, colours: bool, normalised_position: bool) -> tuple[str, ...]:
    """Return the names of the features in addition to the coordinates."""
    return (*(["colours"] if colours else []), *(["normalised_position"] if normalised_position else []))


def _read_row(order: str | None, room: Room) -> SampleRow:
    room_points = read_room(room, order)
    points, origin = from_lowest_corner(room_points.points)
    values = {
        "points": points,
        "colours": room_points.colours,
        **scene_values(room_points.label, len(CLASS_NAMES)),
        "origin_m": origin,
    }
    return SampleRow(room.name, str(room.paths[0]), values, notes=room_points.repairs)


def _make_shard(room: Room, order: str | None) -> Shard:
    num_points = sum(map(file_size, room.paths)) // _BYTES_PER_POINT
    return Shard(room.area, room.name, 1, room.paths, partial(map, partial(_read_row, order), (room,)), num_points)


def _summary(prepared: PreparedSet, *, notes: Sequence[str]) -> dict[str, Any]:
    return {**summarise_scenes(prepared), "differences": list(notes)}


def _deal_rooms(rooms: RowRefs, *, share: float, seed: int) -> tuple[RowRefs, RowRefs]:
    """Hold out a share of the rooms, drawn by the seed."""
    trained, held_out = stratified_split(len(rooms), None, share=share, seed=seed) if share else (range(len(rooms)), ())
    return tuple(rooms[index] for index in trained), tuple(rooms[index] for index in held_out)
