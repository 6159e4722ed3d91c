"""ScanNet v2: rooms scanned with a depth camera, the twenty classes of its benchmark at every vertex."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.scenes.sets import labelled_scenes as scenes
from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.errors import DataError
from sightline.contract.types import CloudInputSpec
from sightline.store.files.cloud_files import read_cloud
from sightline.store.files.column_names import COLOURS
from sightline.store.files.input_files import file_size, get_again
from sightline.store.files.text_tables import read_text, split_lines
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard
from sightline.store.prepared.splits import stored_splits
from sightline.store.scene_preparation import prepare_scene

CLASSES = {
    1: "wall", 2: "floor", 3: "cabinet", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window",
    10: "bookshelf", 11: "picture", 12: "counter", 14: "desk", 16: "curtain", 24: "refrigerator", 28: "shower curtain",
    33: "toilet", 34: "sink", 36: "bathtub", 39: "other furniture",
}  # fmt: skip
"""Classes of the benchmark by their labels in the files, those of NYU40; the others of 0 to 40 are without a class."""
_MIN_KNOWN = 0.5
"""Least share of vertices with labels from 0 to 40: three published rooms have others at up to 149 vertices."""
_LISTS = {"train": "scannetv2_train.txt", "test": "scannetv2_val.txt"}
_SUFFIX, _LABEL_SUFFIX = "_vh_clean_2.ply", "_vh_clean_2.labels.ply"
_CARD = {
    "classes": ", ".join(CLASSES.values()),
    "split": "scannetv2_train.txt trains, scannetv2_val.txt tests; the benchmark's own test scenes have no labels",
    "layouts": {"scans": f"scans/<scene>/<scene>{_SUFFIX} and {_LABEL_SUFFIX}; both lists of scenes beside scans"},
    "home": "http://www.scan-net.org",
    "terms": "for research, after agreeing to the authors' terms; nothing is downloaded for you",
    "cite": "Dai et al. 2017, ScanNet: Richly-annotated 3D Reconstructions of Indoor Scenes",
}


@registry.data.add("scannet")
class ScanNet(scenes.LabelledScenes):
    """Rooms of ScanNet v2, one sample each, in metres from the room's lowest corner, z up.

    `colours` adds red, green and blue, 0 to 1, to the model's input. An epoch visits every training room `repeats`
    times. Vertices of other labels than the twenty classes are neither trained on nor scored.
    Source: Dai et al. 2017.
    """

    spec = SetSpec(name="scannet", what="the folder scans and both lists of scenes", entries=lambda: _CARD)

    def __init__(self, *, split: str, root: str | None = None, colours: bool = True, repeats: Count = 1) -> None:
        prepared, features = self.open_root(root), ("colours",) if colours else ()
        parts = stored_splits(prepared)
        super().__init__(prepared=prepared, split=split, parts=parts, features=features, repeats=repeats)

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to write the rooms of both lists. Raises DataError for a list or a room's file that is missing."""
        about: dict[str, Any] = {"up_axis": "z", "unit": "m", "orientation": "z up, from the room's lowest corner"}
        about |= {"class_names": list(CLASSES.values()), "split": _CARD["split"]}
        columns = scenes.scene_columns(len(CLASSES), scenes.COLOURS)
        rooms = [(split, root / "scans" / name) for split in _LISTS for name in _list_rooms(root, split)]
        shards = tuple(_make_shard(split, folder) for split, folder in rooms)
        return PreparationPlan(cls.set_name, "scans", root, columns, shards, about, scenes.summarise_scenes)

    def _input_spec(self) -> CloudInputSpec:
        return CloudInputSpec(scene={"scale": 1.0, "colour_max": 255.0})


def _list_rooms(root: Path, split: str) -> list[str]:
    names = [line.strip() for line in split_lines(read_text(root / _LISTS[split]))]
    for number, name in enumerate(names, start=1):
        if not (root / "scans" / name / f"{name}{_LABEL_SUFFIX}").is_file() or name in names[: number - 1]:
            fault = "is listed twice" if name in names[: number - 1] else "has no labels below scans"
            raise DataError(f"{root / _LISTS[split]}:{number}: '{name}' {fault}; get the room, or correct the list")
    return names


def _make_shard(split: str, folder: Path) -> Shard:
    files = (folder / f"{folder.name}{_SUFFIX}", folder / f"{folder.name}{_LABEL_SUFFIX}")
    num_points = file_size(files[0]) // 40  # a vertex and its faces
    return Shard(split, folder.name, 1, files, partial(map, _read_room, (files,)), num_points)


def _read_room(files: tuple[Path, Path]) -> SampleRow:
    cloud, labelled = read_cloud(files[0], used=COLOURS), read_cloud(files[1], used=("label",))
    label, where = labelled.channels.get("label"), str(files[0])
    is_known = np.zeros(1, dtype=bool) if label is None else np.isin(label, range(41))
    if label is None or not np.array_equal(labelled.points, cloud.points) or is_known.mean() < _MIN_KNOWN:
        raise get_again(f"{files[1]}: does not label the vertices of {files[0].name} with 0 to 40")
    classes = np.full(len(label), scenes.IGNORE_INDEX, np.uint8)
    for index, number in enumerate(CLASSES):
        classes[label == number] = index
    columns = prepare_scene(cloud, scale=1.0, colour_max=255, with_colours=True, with_normals=False, where=where)
    notes = (
        () if is_known.all() else (f"labels outside of 0 to 40 at {int((~is_known).sum())} vertices: without a class",)
    )
    return SampleRow(files[0].parent.name, where, columns | scenes.scene_values(classes, len(CLASSES)), notes=notes)
