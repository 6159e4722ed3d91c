"""ScanNet v2: rooms scanned with a depth camera, the classes of its benchmarks at every vertex: 20, or 200."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sightline.areas.scenes.sets import labelled_scenes as scenes
from sightline.areas.scenes.sets.scannet_files import (
    CLASSES,
    LABEL_TABLE,
    Classes,
    VertexClasses,
    read_converted,
    read_label_table,
    read_labelled_mesh,
    read_scannet200,
    read_vertex_classes,
)
from sightline.areas.scenes.sets.scannet_rooms import Layout, ListedRoom, list_rooms
from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.errors import DataError
from sightline.contract.types import CloudInputSpec
from sightline.store.files.cloud_files import PointCloud, read_cloud
from sightline.store.files.column_names import COLOURS
from sightline.store.files.input_files import file_size
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard
from sightline.store.prepared.splits import stored_splits
from sightline.store.remarks import CountRemark
from sightline.store.scene_preparation import prepare_scene

_FORM = CloudInputSpec(scene={"scale": 1.0, "colour_max": 255.0, "normals": "faces"})


@registry.data.add("scannet")
class ScanNet(scenes.LabelledScenes):
    """Rooms of ScanNet v2, one sample each, in metres from the room's lowest corner, z up.

    `colours` adds red, green and blue, 0 to 1, to the model's input, `normals` those of the mesh. An epoch visits every
    training room `repeats` times. Vertices of other labels than the twenty classes are neither trained on nor scored.
    Source: Dai et al. 2017.
    """

    spec = SetSpec(
        name="scannet",
        what="the folder scans, or folders train and val of converted rooms",
        marks=("scans", "val"),
        entries=lambda: {"classes": ", ".join(CLASSES.names)},
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        colours: bool = True,
        normals: bool = False,
        repeats: Count = 1,
    ) -> None:
        prepared = self.open_root(root)
        features = self.choose_stored(prepared, colours=colours, normals=normals)
        parts = stored_splits(prepared)
        super().__init__(prepared=prepared, split=split, parts=parts, features=features, repeats=repeats)

    @classmethod
    def read_classes(cls, root: Path) -> Classes:
        """Return the classes of the benchmark."""
        return CLASSES

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to write the rooms, with normals if the first has faces or, converted, normals.

        Labels are those of the groups of segments; where rooms have none, of the second mesh; or of converted rooms.
        Raises DataError for a list, a room's file or a table that is missing.
        """
        classes = cls.read_classes(root)
        listed, table = list_rooms(root, classes), root / LABEL_TABLE
        is_labelled_by_table = listed.layout == "segments"
        reader = _RoomReader(
            classes,
            listed.layout,
            numbers=read_label_table(table, classes.column) if is_labelled_by_table else {},
            has_normals=_has_normals(listed.layout, listed.rooms[0].files),
        )
        columns = scenes.scene_columns(len(classes.names), scenes.COLOURS, *[scenes.NORMALS] * reader.has_normals)
        about: dict[str, Any] = {"up_axis": "z", "unit": "m", "orientation": "z up, from the room's lowest corner"}
        about |= {"class_names": list(classes.names), "split": listed.split}
        about |= {"class_groups": list(classes.groups)} if classes.groups else {}
        common = (*classes.files, *([table] if is_labelled_by_table else []))
        shards = tuple(_make_shard(room, common, reader) for room in listed.rooms)
        summarise = partial(_summarise, notes=listed.notes)
        return PreparationPlan(cls.set_name, listed.layout, root, columns, shards, about, summarise, notes=listed.notes)

    def _input_spec(self) -> CloudInputSpec:
        return _FORM


@registry.data.add("scannet200")
class ScanNet200(ScanNet):
    """Rooms of ScanNet v2 with the 200 classes of ScanNet200, which are in three groups: head, common and tail.

    The classes and their groups are read from the user's copies of two files of ScanNet's code, beside the folder
    `scans`. Arguments are those of `scannet`. Source: Rozenberszki et al. 2022.
    """

    spec = SetSpec(name="scannet200", what=ScanNet.spec.what, marks=ScanNet.spec.marks)

    @classmethod
    def read_classes(cls, root: Path) -> Classes:
        """Read the classes of the benchmark. Raises DataError as `read_scannet200`."""
        return read_scannet200(root)


def _has_normals(layout: Layout, files: Sequence[Path]) -> bool:
    if layout == "converted":
        return files[-1].stem == "normal"
    faces = read_cloud(files[0], used=()).faces
    return faces is not None and len(faces) > 0


@dataclass(frozen=True)
class _RoomReader:
    """Reader of a room's files; `numbers` are those of labels in the table, for rooms in segments."""

    classes: Classes
    layout: Layout
    numbers: Mapping[str, int]
    has_normals: bool

    def __call__(self, room: ListedRoom) -> SampleRow:
        where, stored = str(room.files[0]), None
        if self.layout == "converted":
            if _has_normals(self.layout, room.files) != self.has_normals:
                raise DataError(f"{room.files[0].parent}: only some rooms have a normal.npy; convert all rooms alike")
            cloud, stored, (label, remarks) = read_converted(room.files, self.classes)
        else:
            cloud = read_cloud(room.files[0], used=COLOURS)
            label, remarks = self._read_classes(room, cloud)
        columns = prepare_scene(
            cloud,
            scale=1.0,
            colour_max=255,
            with_colours=True,
            normals="faces" if self.has_normals and stored is None else None,
            where=where,
        )
        columns |= {} if stored is None else {"normals": stored}
        if self.has_normals and (count := int((~columns["normals"].any(axis=1)).sum())):
            what = "are at no face with an area: their normal is 0"
            remarks = (*remarks, CountRemark.make(count, len(label), what, noun="vertices"))
        values = columns | scenes.scene_values(label, len(self.classes.names))
        return SampleRow(room.name, where, values, notes=remarks)

    def _read_classes(self, room: ListedRoom, cloud: PointCloud) -> VertexClasses:
        """Read the classes of a mesh's vertices from the files beside it."""
        mesh, *others = room.files
        if self.layout == "labels":
            return read_labelled_mesh(others[0], cloud, mesh=mesh.name)
        groups, segments = others
        return read_vertex_classes(
            groups, segments, num_vertices=len(cloud.points), numbers=self.numbers, classes=self.classes
        )


def _make_shard(room: ListedRoom, common: tuple[Path, ...], reader: _RoomReader) -> Shard:
    num_points = file_size(room.files[0]) // (12 if reader.layout == "converted" else 40)  # a vertex and its faces
    return Shard(room.split, room.name, 1, (*room.files, *common), partial(map, reader, (room,)), num_points)


def _summarise(prepared: PreparedSet, *, notes: Sequence[str]) -> dict[str, Any]:
    return {**scenes.summarise_scenes(prepared), **({"differences": [*notes]} if notes else {})}
