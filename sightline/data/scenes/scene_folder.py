"""The user's own scenes: point clouds with a label at every point."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline import registry
from sightline.arguments import Count, FractionBelowOne, PositiveFraction, Seed
from sightline.data.files.cloud_files import CLOUD_SUFFIXES, PointCloud, check_columns, list_skipped_files, read_cloud
from sightline.data.files.input_files import file_size
from sightline.data.scenes.labelled_scenes import (
    IGNORE_INDEX,
    LabelledScenes,
    SceneSplit,
    scene_columns,
    scene_values,
    summarise_scenes,
)
from sightline.data.scenes.scene_listing import ListedScene, list_scenes, read_class_names
from sightline.data.scenes.scene_preparation import COLOUR_NAMES, prepare_scene
from sightline.data.store.columns import ColumnSpec
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import PreparedSet, open_prepared
from sightline.data.store.prepared_writer import PreparationPlan, Progress, SampleRow, Shard, write_prepared_set
from sightline.errors import ConfigError, DataError
from sightline.types import CloudInputSpec

__all__ = ["SceneFolder"]

_MAX_CLASSES = 255
_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}


@registry.data.add("scene_folder")
class SceneFolder(LabelledScenes):
    """The user's own scenes with a class at every point, prepared by `sightline data prepare scene_folder`.

    `colours` and `normals` add the stored ones to the model's input, colours from 0 to 1. An epoch visits every
    training scene `repeats` times. Points without a class are neither trained on nor scored.
    Source: the user's files.
    """

    set_name = "scene_folder"
    readable_sets = ("scene_folder",)

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        colours: bool = False,
        normals: bool = False,
        repeats: Count = 1,
    ) -> None:
        prepared = open_prepared(prepared_root(root, self.set_name), set_names=self.readable_sets)
        sizes = {name: prepared.manifest["splits"].get(name, {}).get("num_rows", 0) for name in _SPLITS}
        if split not in sizes:
            raise DataError(f"{prepared.root}: has no part '{split}'; it has {', '.join(_SPLITS)}")
        for name, is_requested in (("colours", colours), ("normals", normals)):
            if is_requested and name not in prepared.manifest["columns"]:
                raise DataError(
                    f"{prepared.root}: holds no {name}; set data.{name}=false, or prepare it from files that have them"
                )
        features = tuple(name for name, is_added in (("colours", colours), ("normals", normals)) if is_added)
        scenes = SceneSplit(tuple((split, row) for row in range(sizes[split])), sizes)
        super().__init__(prepared=prepared, split=split, scenes=scenes, features=features, repeats=repeats)

    @classmethod
    def prepare(
        cls,
        *,
        source: Path,
        target: Path,
        name: str,
        progress: Progress,
        up_axis: Literal["x", "y", "z"],
        unit: Literal["m", "cm", "mm"],
        columns: tuple[str, ...] | None = None,
        label: str = "label",
        colour_max: Literal[1, 255] = 255,
        unlabelled: int | None = None,
        test_share: PositiveFraction = 0.2,
        validation_share: FractionBelowOne = 0.1,
        seed: Seed = 0,
    ) -> dict[str, Any]:
        """Write the scenes of a folder in native form, in metres; returns the manifest with `root` and `outcome`.

        `columns` names the columns of files without column names; `label` is the column of classes: whole numbers from
        0, which `classes.txt` in the folder may name, or `unlabelled`. Colours (red, green, blue or r, g, b) are from 0
        to `colour_max`. `seed` draws the splits if the folder has none.
        Raises DataError with file and point for a damaged source; ConfigError for options that do not fit. A killed run
        is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root = source.expanduser().resolve()
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
        plan = PreparationPlan(
            name,
            layout,
            root,
            scene_columns(len(class_names), *_feature_columns(reader)),
            tuple(_make_shard(scene, reader) for scene in scenes),
            about,
            partial(_summary, skipped_note=list_skipped_files(root)),
            options,
        )
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        return {
            "set": cls.set_name,
            "layouts": {
                "folder": "files in one folder: parts are dealt by a seeded hash of the names",
                "split_folders": "train/FILE and test/FILE, validation/FILE too if you like",
            },
            "files": ", ".join(CLOUD_SUFFIXES),
            "labels": "a column 'label' of whole numbers from 0; names, one a line, in classes.txt",
            "obtain": "your own files; see docs/data.md",
            "prepare": f"sightline data prepare {cls.set_name} --from PATH --to DIR up_axis=z unit=m",
        }

    def _input_spec(self) -> CloudInputSpec:
        manifest = self._prepared.manifest
        columns = manifest["source_columns"]
        scene = {"scale": _METRES[manifest["file_unit"]], "colour_max": float(manifest["options"]["colour_max"])}
        return CloudInputSpec(columns=None if columns is None else tuple(columns), scene=scene)


_SPLITS = ("train", "validation", "test")


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


@dataclass(frozen=True)
class _RowReader:
    """Picklable reader of the one row of a scene's shard."""

    scene: ListedScene
    reader: _SceneReader

    def __call__(self) -> Iterator[SampleRow]:
        yield self.reader(self.scene)


def _make_shard(scene: ListedScene, reader: _SceneReader) -> Shard:
    num_points = file_size(scene.path) // 16
    return Shard(scene.split, f"{scene.split}/{scene.name}", 1, (scene.path,), _RowReader(scene, reader), num_points)


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
    return {**summary, "differences": [*([skipped_note] if skipped_note else []), *missing]}
