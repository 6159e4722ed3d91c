"""The user's own scenes: point clouds with a label at every point.

Listing of the user's own scenes by split: one folder of files, or a folder for each split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.areas.scenes.sets.labelled_scenes import (
    IGNORE_INDEX,
    LabelledScenes,
    SceneSplit,
    scene_columns,
    scene_values,
    summarise_scenes,
)
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, LengthUnit, PositiveFraction, Seed, UpAxis
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import CloudInputSpec
from sightline.store.files.cloud_files import (
    CLOUD_SUFFIXES,
    PointCloud,
    check_columns,
    is_cloud_file,
    list_skipped_files,
    note_mixed_units,
    read_cloud,
)
from sightline.store.files.input_files import file_size, list_folders, natural_sort_key
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet, summarise_folder
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard
from sightline.store.prepared.splits import SPLITS, deal_by_hash
from sightline.store.scene_preparation import COLOUR_NAMES, prepare_scene

CLASSES_FILE = "classes.txt"
_LAYOUTS = "files in one folder, or in its folders train and test (and validation)"


class ListedScene(NamedTuple):
    """File of a scene and its split."""

    path: Path
    split: str

    @property
    def name(self) -> str:
        return self.path.name


def list_scenes(root: Path, *, test_share: float, validation_share: float, seed: int) -> tuple[str, list[ListedScene]]:
    """Find the layout (`folder` or `split_folders`) and list its scenes, sorted by name.

    Files of one folder are split by a hash of seed and name: shares are rounded to the nearest, at least one scene;
    files that are added later change the split of few others.
    Raises DataError for a folder without scenes, with too few, or with folders other than the splits.
    """
    folders = [path.name for path in list_folders(root)]
    files = _list_files(root)
    if not folders:
        splits = deal_by_hash(
            [path.name for path in files],
            test_share=test_share,
            validation_share=validation_share,
            seed=seed,
            where=f"{root}: holds {len(files)} scenes",
            advice=f"lay it out as {_LAYOUTS}",
        )
        return "folder", list(map(ListedScene, files, splits))
    unknown = [name for name in folders if name not in SPLITS]
    if unknown or files:
        contents = f"the folder {unknown[0]}" if unknown else f"{files[0].name} beside the folder {folders[0]}"
        raise DataError(f"{root}: holds {contents}; lay it out as {_LAYOUTS}")
    if not {"train", "test"} <= set(folders):
        raise DataError(f"{root}: has the folders {', '.join(folders)}, train and test are needed")
    scenes = [ListedScene(path, split) for split in SPLITS if split in folders for path in _list_files(root / split)]
    empty = [split for split in folders if not any(scene.split == split for scene in scenes)]
    if empty:
        raise DataError(f"{root / empty[0]}: holds no scene, it holds {summarise_folder(root / empty[0])}; add one")
    return "split_folders", scenes


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """Read the class names from `classes.txt`, one per line; None without the file. Raises DataError for duplicates."""
    path = root / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8, one class name a line") from error
    names = [line.strip() for line in lines]
    if not names:
        raise DataError(f"{path}: is empty; write one class name a line, that of label 0 first, or delete the file")
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            fault = "is empty" if not name else f"names '{name}' a second time"
            raise DataError(f"{path}:{number}: {fault}; write one class name a line, that of label 0 first")
    return tuple(names)


def _list_files(folder: Path) -> list[Path]:
    paths = filter(is_cloud_file, folder.iterdir())
    clouds = (path for path in paths if path.name != CLASSES_FILE and not path.name.startswith("."))
    return sorted(clouds, key=lambda path: natural_sort_key(path.name))


_MAX_CLASSES = 255
_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}


@registry.data.add("scene_folder")
class SceneFolder(LabelledScenes):
    """The user's own scenes with a class at every point, prepared by `sightline data prepare scene_folder`.

    `colours` and `normals` add the stored ones to the model's input, colours from 0 to 1. An epoch visits every
    training scene `repeats` times. Points without a class are neither trained on nor scored.
    Source: the user's files.
    """

    spec = SetSpec(
        name="scene_folder", what=f"scenes: {_LAYOUTS}", entries=lambda: {"files": ", ".join(CLOUD_SUFFIXES)}
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        colours: bool = False,
        normals: bool = False,
        repeats: Count = 1,
    ) -> None:
        prepared = self.open_root(root)
        sizes = {name: prepared.manifest["splits"].get(name, {}).get("num_rows", 0) for name in SPLITS}
        if split not in sizes:
            raise DataError(f"{prepared.root}: has no part '{split}'; it has {', '.join(SPLITS)}")
        for name, is_requested in (("colours", colours), ("normals", normals)):
            if is_requested and name not in prepared.manifest["columns"]:
                raise DataError(
                    f"{prepared.root}: holds no {name}; set data.{name}=false, or prepare it from files that have them"
                )
        features = tuple(name for name, is_added in (("colours", colours), ("normals", normals)) if is_added)
        scenes = SceneSplit(tuple((split, row) for row in range(sizes[split])), sizes)
        super().__init__(prepared=prepared, split=split, scenes=scenes, features=features, repeats=repeats)

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        up_axis: UpAxis,
        unit: LengthUnit,
        columns: tuple[str, ...] | None = None,
        label: str = "label",
        colour_max: Literal[1, 255] = 255,
        unlabelled: int | None = None,
        test_share: PositiveFraction = 0.2,
        validation_share: FractionBelowOne = 0.1,
        seed: Seed = 0,
    ) -> PreparationPlan:
        """Plan to write the scenes of a folder in native form, in metres.

        `columns` names the columns of files without column names; `label` is the column of classes: whole numbers from
        0, which `classes.txt` in the folder may name, or `unlabelled`. Colours (red, green, blue or r, g, b) are from 0
        to `colour_max`. `seed` draws the splits if the folder has none.
        Raises DataError with file and point for a damaged source; ConfigError for options that do not fit. A killed run
        is continued by the same call.
        """
        names = None if columns is None else check_columns(columns)
        if names is not None and label not in names:
            raise ConfigError(f"columns: [{', '.join(names)}] has no '{label}'; name the label's column, or set label=")
        shares = {"test_share": test_share, "validation_share": validation_share, "seed": seed}
        layout, scenes = list_scenes(root, test_share=test_share, validation_share=validation_share, seed=seed)
        class_names = read_class_names(root) or _number_classes(scenes, names, label, unlabelled)
        first = read_cloud(scenes[0].path, columns=names)
        reader = _SceneReader(
            columns=names,
            label=label,
            num_classes=len(class_names),
            unlabelled=unlabelled,
            colour_max=colour_max,
            to_metres=_METRES[unit],
            colour_names=_find_colour_names(first),
            has_normals=first.normals is not None,
        )
        about = {
            "up_axis": up_axis,
            "unit": "m",
            "file_unit": unit,
            "orientation": f"{up_axis} up, as the files have it, from the scene's lowest corner",
            "class_names": list(class_names),
            "source_columns": None if names is None else list(names),
            "split": "as given" if layout == "split_folders" else f"dealt by a hash of the names: {shares}",
        }
        options: dict[str, Any] = {"up_axis": up_axis, "unit": unit, "columns": about["source_columns"], "label": label}
        options |= {"colour_max": colour_max, "unlabelled": unlabelled, "scenes": _hash_scenes(scenes, class_names)}
        return PreparationPlan(
            cls.set_name,
            layout,
            root,
            scene_columns(len(class_names), *_feature_columns(reader)),
            tuple(_make_shard(scene, reader) for scene in scenes),
            about,
            partial(_summary, skipped_note=list_skipped_files(root)),
            options,
        )

    def _input_spec(self) -> CloudInputSpec:
        manifest = self._prepared.manifest
        columns = manifest["source_columns"]
        scene = {"scale": _METRES[manifest["file_unit"]], "colour_max": float(manifest["options"]["colour_max"])}
        return CloudInputSpec(columns=None if columns is None else tuple(columns), scene=scene)


@dataclass(frozen=True)
class _SceneReader:
    """Reader of a scene file with the options of preparation; returns a row."""

    columns: tuple[str, ...] | None
    label: str
    num_classes: int
    unlabelled: int | None
    colour_max: int
    to_metres: float
    colour_names: tuple[str, ...] | None
    has_normals: bool

    def __call__(self, scene: ListedScene) -> SampleRow:
        cloud, where = read_cloud(scene.path, columns=self.columns), str(scene.path)
        label = self._read_labels(cloud, where)
        prepared = prepare_scene(
            cloud,
            scale=self.to_metres,
            colour_max=self.colour_max,
            colour_names=self.colour_names,
            with_normals=self.has_normals,
            where=where,
        )
        return SampleRow(scene.name, where, {**prepared, **scene_values(label, self.num_classes)})

    def _read_labels(self, cloud: PointCloud, where: str) -> np.ndarray:
        """Read the labels (N,) uint8 of a scene. Raises DataError with the first point whose label is invalid."""
        values = _read_label_column(cloud, self.label, where)
        is_ignored = values == self.unlabelled if self.unlabelled is not None else np.zeros(len(values), dtype=bool)
        is_class = (values == np.floor(values)) & (values >= 0) & (values < self.num_classes)
        wrong = np.flatnonzero(~(is_class | is_ignored))
        if len(wrong):
            raise DataError(
                f"{where}: {self.label}[{wrong[0]}] is {values[wrong[0]]:g}, classes are 0 to {self.num_classes - 1}; "
                "correct the file, complete classes.txt, or give the number of points without a class: unlabelled=N"
            )
        return np.where(is_ignored, IGNORE_INDEX, values).astype(np.uint8)


def _make_shard(scene: ListedScene, reader: _SceneReader) -> Shard:
    num_points = file_size(scene.path) // 16
    rows = partial(map, reader, (scene,))
    return Shard(scene.split, f"{scene.split}/{scene.name}", 1, (scene.path,), rows, num_points)


def _read_label_column(cloud: PointCloud, label: str, where: str) -> np.ndarray:
    if label not in cloud.channels:
        available = ", ".join(cloud.channels) or "none besides points and normals"
        raise DataError(f"{where}: has no column '{label}', it has {available}; name the label's column: label=NAME")
    return cloud.channels[label]


def _find_colour_names(cloud: PointCloud) -> tuple[str, ...] | None:
    return next((names for names in COLOUR_NAMES if set(names) <= set(cloud.channels)), None)


def _feature_columns(reader: _SceneReader) -> list[tuple[str, ColumnSpec]]:
    columns = []
    if reader.colour_names is not None:
        columns.append(("colours", ColumnSpec((3,), "uint8", is_ragged=True)))
    if reader.has_normals:
        columns.append(("normals", ColumnSpec((3,), "float32", is_ragged=True)))
    return columns


def _number_classes(
    scenes: Sequence[ListedScene], columns: tuple[str, ...] | None, label: str, unlabelled: int | None
) -> tuple[str, ...]:
    """Name the classes of a folder without classes.txt by number; every file is read for its highest label.

    Raises DataError for a label beyond the possible classes.
    """
    highest = 0
    for scene in scenes:
        values = _read_label_column(read_cloud(scene.path, columns=columns), label, str(scene.path))
        labels = values if unlabelled is None else values[values != unlabelled]
        if len(labels):
            highest = max(highest, int(labels.max()))
        if highest >= _MAX_CLASSES:
            raise DataError(
                f"{scene.path}: {label} runs to {highest}, {_MAX_CLASSES} classes are possible; is that the label's "
                "column? If one number marks points without a class, give unlabelled=N"
            )
    return tuple(f"class_{number}" for number in range(highest + 1))


def _hash_scenes(scenes: Sequence[ListedScene], class_names: Sequence[str]) -> str:
    entries = [[str(scene.path), scene.split] for scene in scenes]
    return hashlib.sha256(json.dumps([entries, list(class_names)]).encode()).hexdigest()


def _summary(prepared: PreparedSet, *, skipped_note: str) -> dict[str, Any]:
    """Manifest entries computed from the written arrays, and notes on skipped files and missing classes."""
    summary = summarise_scenes(prepared)
    names = prepared.manifest["class_names"]
    missing = [
        f"no point of the class '{name}' in the part {split}"
        for split, facts in summary["splits"].items()
        for name, count in zip(names, facts["class_counts"], strict=True)
        if not count
    ]
    reaches = {
        f"{split}/{name}": float(points.max(initial=0.0))
        for split in prepared.splits
        for name, points in zip(prepared.names(split), prepared.rows(split, "points"), strict=True)
    }
    units = note_mixed_units(list(reaches), list(reaches.values()), "scenes")
    return {**summary, "differences": [*([skipped_note] if skipped_note else []), *missing, *units]}
