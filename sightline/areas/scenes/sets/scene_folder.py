"""The user's own scenes: point clouds with a label at every point, in one folder or a folder for each split."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from sightline.areas.scenes.sets import labelled_scenes
from sightline.areas.scenes.sets.labelled_scenes import (
    IGNORE_INDEX,
    LabelledScenes,
    scene_columns,
    scene_values,
    summarise_scenes,
)
from sightline.areas.scenes.sets.scene_density import measure_density, read_density
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, LengthUnit, PositiveFraction, Seed, UpAxis
from sightline.contract.errors import ConfigError, DataError, join_some
from sightline.contract.types import CloudInputSpec
from sightline.parts.voxels.grids import GridSummary
from sightline.store.cloud_preparation import Zeros, drop_zeros, find_kept
from sightline.store.files.cloud_files import (
    CLOUD_SUFFIXES,
    PointCloud,
    Withheld,
    check_columns,
    check_unlisted,
    is_cloud_file,
    list_skipped_files,
    read_cloud,
)
from sightline.store.files.cloud_values import note_mixed_units
from sightline.store.files.column_names import COLOURS, NORMALS, POINTS
from sightline.store.files.input_files import file_size, list_folders, natural_sort_key
from sightline.store.files.scan_files import MAX_ID, read_label_ids
from sightline.store.files.text_tables import read_table
from sightline.store.prepared.config_bases import ConfigBase
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet, summarise_folder
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard, digest_json
from sightline.store.prepared.splits import SPLITS, deal_by_hash, stored_splits
from sightline.store.remarks import in_metres
from sightline.store.scene_preparation import note_colour_max, prepare_scene

CLASSES_FILE = "classes.txt"
_LAYOUTS = "files in one folder, or in its folders train and test (and validation)"


class ListedScene(NamedTuple):
    """File of a scene and its split."""

    path: Path
    split: str

    @property
    def name(self) -> str:
        """The name of the scene in reports."""
        return self.path.name

    @property
    def label_path(self) -> Path | None:
        """Path of the file of labels beside the scene, None without one. Raises DataError for two."""
        paths = [path for suffix in _LABEL_READERS if (path := self.path.with_suffix(suffix)).is_file()]
        if len(paths) > 1:
            raise DataError(f"{paths[0]}: is beside {paths[1].name}, both with labels of {self.name}; keep one of them")
        return paths[0] if paths else None

    @property
    def files(self) -> tuple[Path, ...]:
        """Path of the scene, and that of its labels if they have a file of their own."""
        return (self.path,) if self.label_path is None else (self.path, self.label_path)


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
            advice="put one into a folder train and one into a folder test, or give validation_share=0 test_share=0.5",
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


def _read_text_labels(path: Path, *, num_points: int, points_path: Path) -> np.ndarray:
    """Read the labels (N,) float64 of a file with one number a line (Semantic3D)."""
    labels = read_table(path, num_columns=1)[:, 0]
    if len(labels) != num_points:
        raise DataError(f"{path}: has {len(labels)} lines for the {num_points} points of {points_path}; get it again")
    return labels


_LABEL_READERS = {".labels": _read_text_labels, ".label": read_label_ids}
"""Readers of the files of labels beside a scene, by suffix: those of Semantic3D and of SemanticKITTI."""
_SUFFIXES = (*CLOUD_SUFFIXES, *_LABEL_READERS)
_PLAUSIBLE_M = (0.2, 2000.0)
"""Smallest and largest extent of most scenes: a table top, and a tile of an aerial scan."""
_MAX_CLASSES = 255
_MAX_NAMED = 8
_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "ft": 0.3048, "us_ft": 1200 / 3937}
"""Length of each unit in metres; feet are international, or those of surveys in the United States."""


@registry.data.add("scene_folder")
class SceneFolder(LabelledScenes):
    """The user's own scenes with a class at every point, prepared by `sightline data prepare scene_folder`.

    `colours` and `normals` add the stored ones to the model's input, colours from 0 to 1. An epoch visits every
    training scene `repeats` times. Points without a class are neither trained on nor scored.
    Source: the user's files.
    """

    config_bases = (
        ConfigBase("segment/own_rooms", "a Point Transformer"),
        ConfigBase("segment/own_rooms_voxels", "SpUNet on sparse voxels, for dense or large scenes"),
    )
    spec = SetSpec(
        is_own=True,
        name="scene_folder",
        what=f"scenes: {_LAYOUTS}",
        label_suffixes=tuple(_LABEL_READERS),
        entries=lambda: {"files": ", ".join(CLOUD_SUFFIXES)},
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
        features = self.choose_stored(prepared, colours=colours, normals=normals)
        parts = stored_splits(prepared)
        super().__init__(prepared=prepared, split=split, parts=parts, features=features, repeats=repeats)

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        up_axis: UpAxis,
        unit: LengthUnit,
        columns: tuple[str, ...] | None = None,
        label: str = "label",
        names: tuple[str, ...] | None = None,
        colour_max: Literal[1, 255, 65535] | None = None,
        unlabelled: int | None = None,
        zeros: Zeros = "keep",
        withheld: Withheld = "drop",
        test_share: PositiveFraction = 0.2,
        validation_share: FractionBelowOne = 0.1,
        seed: Seed = 0,
    ) -> PreparationPlan:
        """Plan to write the scenes of a folder in native form, in metres.

        `columns` names the columns of files without column names; `label` is the column of labels, whole numbers from
        0, where there is no file of labels beside a scene. They are the classes that `names`, or else `classes.txt` in
        the folder, names from label 0 on; without either every label that occurs is a class. `unlabelled` is the label
        of points without a class. Colours are from 0 to `colour_max`, by default to 255, or to 65535 in a file with
        colours of 16 bits. Points that a file flags as `withheld` are dropped unless they are to be kept. `seed` draws
        the splits if the folder has none.
        Raises DataError with file and point for a damaged source; ConfigError for options that do not fit.
        """
        column_names, label = None if columns is None else check_columns(columns), label.lower()
        layout, scenes = list_scenes(root, test_share=test_share, validation_share=validation_share, seed=seed)
        if column_names is not None and label not in column_names and not all(scene.label_path for scene in scenes):
            raise ConfigError(
                f"columns: [{', '.join(column_names)}] has no '{label}'; name the label's column, or set label="
            )
        files = {file for scene in scenes for file in scene.files}
        check_unlisted(root, files, suffixes=_SUFFIXES, ignored_names=(CLASSES_FILE,), layout=_LAYOUTS)
        shares = {"test_share": test_share, "validation_share": validation_share, "seed": seed}
        classes = _name_classes(root, names) or _find_classes(root, scenes, column_names, label, unlabelled, withheld)
        first = read_cloud(scenes[0].path, columns=column_names, used=(*COLOURS, *NORMALS), withheld="keep")
        reader = _SceneReader(
            columns=column_names,
            label=label,
            classes=classes,
            unlabelled=unlabelled,
            drops_zeros=zeros == "drop",
            withheld=withheld,
            colour_max=colour_max,
            to_metres=_find_length(unit),
            has_colours=set(COLOURS) <= set(first.channels),
            has_normals=first.normals is not None,
        )
        features = [*[labelled_scenes.COLOURS] * reader.has_colours, *[labelled_scenes.NORMALS] * reader.has_normals]
        about = {
            "up_axis": up_axis,
            "unit": "m",
            "file_unit": unit,
            "orientation": f"{up_axis} up, as the files have it, from the scene's lowest corner",
            "class_names": list(classes.names),
            "class_labels": list(classes.labels),
            "source_columns": None if column_names is None else list(column_names),
            **_describe_density(scenes, reader),
            "split": "as given" if layout == "split_folders" else f"dealt by a hash of the names: {shares}",
        }
        options: dict[str, Any] = {"up_axis": up_axis, "unit": unit, "columns": about["source_columns"], "label": label}
        options |= {"zeros": zeros} if zeros != "keep" else {}
        options |= {"withheld": withheld} if withheld != "drop" else {}
        options |= {"colour_max": colour_max, "unlabelled": unlabelled, "scenes": _hash_scenes(scenes, classes)}
        return PreparationPlan(
            cls.set_name,
            layout,
            root,
            scene_columns(len(classes.names), *features),
            tuple(_make_shard(scene, reader) for scene in scenes),
            about,
            partial(_summary, skipped_note=list_skipped_files(root, suffixes=_SUFFIXES)),
            options,
        )

    @classmethod
    def propose(cls, prepared: PreparedSet, base: Mapping[str, Any]) -> list[str]:
        """Return the grid and the crop of dense scenes; of a network on sparse voxels, their side and its crop."""
        if "grid_m" not in base["model"]:
            return read_density(prepared.manifest["density_figures"]).config_words()
        voxels = prepared.manifest["voxels"]
        crops = [index for index, each in enumerate(base["transforms"]["train"]) if each["name"] == "crop_points"]
        num_points = int(float(f"{CROP_VOXELS * voxels['points_per_voxel']:.2g}"))
        return [f"model.grid_m={voxels['grid_m']}", *(f"transforms.train.{i}.max_points={num_points}" for i in crops)]

    def _list_doubts(self) -> Sequence[str]:
        """Return a doubt on colours that are the same at every point of all scenes."""
        low, high = self._prepared.manifest["ranges"].get("colours", (0, 1))
        constant = f"data.colours=true: all colours of all scenes are {low:g}, three constant inputs; set it to false"
        return [constant] if "colours" in self._columns and low == high else []

    def _input_spec(self) -> CloudInputSpec:
        manifest = self._prepared.manifest
        columns = manifest["source_columns"]
        scene = {"scale": _find_length(manifest["file_unit"]), "colour_max": manifest["options"]["colour_max"]}
        withheld = manifest["options"].get("withheld", "drop")
        return CloudInputSpec(columns=None if columns is None else tuple(columns), scene=scene, withheld=withheld)


def _describe_density(scenes: Sequence[ListedScene], reader: _SceneReader) -> dict[str, Any]:
    """Measure the density of a few scenes, in words and numbers, and what voxels that suit it make of them.

    Files that cannot be read are told of later.
    """
    rows = []
    for index in np.unique(np.linspace(0, len(scenes) - 1, min(_MAX_MEASURED, len(scenes))).astype(np.int64)):
        with contextlib.suppress(DataError):
            rows.append(reader(scenes[index]).values)
    if not rows:
        return {}
    density = measure_density([row["points"].astype(np.float64) for row in rows])
    grid = GridSummary(density.voxel_m, len(reader.classes.names), IGNORE_INDEX)
    for row in rows:
        grid.add(torch.from_numpy(row["points"]), label=torch.from_numpy(row["label"]).long())
    return {"density": density.describe(), "density_figures": density._asdict(), "voxels": grid.figures()}


_MAX_MEASURED = 3
"""Number of scenes, evenly spaced over all, whose density is measured."""
CROP_VOXELS = 20_000
"""Voxels of a training sample of `segment/own_rooms_voxels`, about."""


class _Classes(NamedTuple):
    """Names of the classes, and the label of each in the files, ascending."""

    names: tuple[str, ...]
    labels: tuple[int, ...]
    where: str


def _name_classes(root: Path, names: tuple[str, ...] | None) -> _Classes | None:
    """Return the classes that are named, by `names` or in classes.txt; None without either.

    Raises ConfigError for a name that is empty or stands twice, and for names beside others in classes.txt.
    """
    in_file = read_class_names(root)
    if names is None:
        return (
            None if in_file is None else _Classes(in_file, tuple(range(len(in_file))), f"the lines of {CLASSES_FILE}")
        )
    if not names or not all(name.strip() for name in names) or len({*names}) < len(names):
        raise ConfigError(
            f"names: [{', '.join(names)}] has an empty name, or one twice; name each label once, from 0 on"
        )
    if in_file not in (None, names):
        raise ConfigError(
            f"names: [{', '.join(names)}] are others than in {root / CLASSES_FILE}; leave names out, or correct it"
        )
    return _Classes(names, tuple(range(len(names))), "names")


def _find_classes(
    root: Path,
    scenes: Sequence[ListedScene],
    columns: tuple[str, ...] | None,
    label: str,
    unlabelled: int | None,
    withheld: Withheld,
) -> _Classes:
    """Find the classes of a folder without names: one for each label that occurs.

    Raises DataError for no label, and for more labels than classes are possible.
    """
    numbers: set[int] = set()
    for scene in scenes:
        values = _read_labels(scene, _read_marked(scene, columns, (label,), withheld), label)[1]
        is_label = _is_label(values) & (values != unlabelled)
        numbers.update(np.flatnonzero(np.bincount(values[is_label].astype(np.int64))).tolist())
        if len(numbers) > _MAX_CLASSES:
            raise DataError(
                f"{scene.path}: up to this file {label} has {len(numbers)} different numbers, {_MAX_CLASSES} classes "
                "are possible; is that the label's column?"
            )
    if not numbers:
        besides = "" if unlabelled is None else f" besides unlabelled={unlabelled}"
        advice = "correct the labels, or name another column: label=NAME"
        raise DataError(
            f"{root}: no point has a class: no label is a whole number from 0 to {MAX_ID}{besides}; {advice}"
        )
    labels = tuple(sorted(numbers))
    return _Classes(tuple(f"class_{number}" for number in labels), labels, "the labels of all files")


@dataclass(frozen=True)
class _SceneReader:
    """Reader of a scene file with the options of preparation; returns a row."""

    columns: tuple[str, ...] | None
    label: str
    classes: _Classes
    unlabelled: int | None
    drops_zeros: bool
    withheld: Withheld
    colour_max: int | None
    to_metres: float
    has_colours: bool
    has_normals: bool

    def __call__(self, scene: ListedScene) -> SampleRow:
        used = (self.label, *(COLOURS if self.has_colours else ()), *(NORMALS if self.has_normals else ()))
        cloud, where = _read_marked(scene, self.columns, used, self.withheld), str(scene.path)
        self._check_features(cloud, scene)
        cloud, labels = _read_labels(scene, cloud, self.label)
        label = self._classify(labels, where)
        if self.drops_zeros:
            label, cloud = label[find_kept(cloud)], drop_zeros(cloud, where=where)
        prepared = prepare_scene(
            cloud,
            scale=self.to_metres,
            colour_max=self.colour_max,
            with_colours=self.has_colours,
            normals="stored" if self.has_normals else None,
            where=where,
        )
        notes = (
            *in_metres(cloud.notes, self.to_metres),
            *(note_colour_max(cloud) if self.has_colours and self.colour_max is None else ()),
        )
        return SampleRow(scene.name, where, {**prepared, **scene_values(label, len(self.classes.names))}, notes=notes)

    def _check_features(self, cloud: PointCloud, scene: ListedScene) -> None:
        """Raise DataError for colours or normals that would be left out because the first file has none."""
        common = ", ".join((*POINTS, *(() if scene.label_path else (self.label,))))
        stored = {"colours": (COLOURS, self.has_colours), "normals": (NORMALS, self.has_normals)}
        for name, (columns, is_stored) in stored.items():
            if self.columns is None and not is_stored and set(columns) <= set(cloud.column_names):
                raise DataError(
                    f"{scene.path}: has {name}, which the first file has not; name what all files have with columns, "
                    f"as in 'columns=[{common}]'"
                )

    def _classify(self, values: np.ndarray, where: str) -> np.ndarray:
        """Convert labels (N,) to classes uint8. Raises DataError with the first point whose label is invalid."""
        is_ignored = np.zeros(len(values), dtype=bool) if self.unlabelled is None else values == self.unlabelled
        labels = self.classes.labels
        classes = np.searchsorted(labels, values).clip(max=len(labels) - 1)
        wrong = np.flatnonzero((np.array(labels)[classes] != values) & ~is_ignored)
        if len(wrong):
            is_range = labels == (*range(len(labels)),)
            listed = f"0 to {len(labels) - 1}" if is_range else join_some([*map(str, labels)], most=_MAX_NAMED)
            raise DataError(
                f"{where}: {self.label}[{wrong[0]}] is {values[wrong[0]]:.9g}, classes are {listed} by "
                f"{self.classes.where}; correct the file, complete the names, or give the number of points without a "
                "class: unlabelled=N"
            )
        return np.where(is_ignored, IGNORE_INDEX, classes).astype(np.uint8)


def _make_shard(scene: ListedScene, reader: _SceneReader) -> Shard:
    num_points = file_size(scene.path) // 16
    return Shard(scene.split, f"{scene.split}/{scene.name}", 1, scene.files, partial(map, reader, (scene,)), num_points)


def _read_marked(
    scene: ListedScene, columns: tuple[str, ...] | None, used: Sequence[str], withheld: Withheld
) -> PointCloud:
    """Read a scene whose withheld points, if they are to be dropped, are marked: a file of labels has theirs, too."""
    mark: Literal["mark", "keep"] = "keep" if withheld == "keep" else "mark"
    return read_cloud(scene.path, columns=columns, used=used, withheld=mark)


def _read_labels(scene: ListedScene, cloud: PointCloud, label: str) -> tuple[PointCloud, np.ndarray]:
    """Read the labels (N,) of a scene, and return both without the points that are marked as withheld."""
    labels, is_withheld = _read_all_labels(scene, cloud, label), cloud.is_withheld
    return cloud.without_withheld(), labels if is_withheld is None else labels[~is_withheld]


def _read_all_labels(scene: ListedScene, cloud: PointCloud, label: str) -> np.ndarray:
    """Read the labels (N,) of a scene: its column `label`, or the file of labels beside it, but not both."""
    path = scene.label_path
    if path is not None and label in cloud.channels:
        raise DataError(f"{path}: is beside a scene with a column '{label}'; move it away, or name columns without it")
    if label in cloud.channels:
        return cloud.channels[label]
    if path is not None:
        return _LABEL_READERS[path.suffix](path, num_points=len(cloud.points), points_path=scene.path)
    available = ", ".join(name for name in cloud.column_names if name not in POINTS) or "none besides x, y, z"
    raise DataError(f"{scene.path}: has no column '{label}', it has {available}; name the label's column: label=NAME")


def _is_label(values: np.ndarray) -> np.ndarray:
    is_label: np.ndarray = (values == np.floor(values)) & (values >= 0) & (values <= MAX_ID)
    return is_label


def _hash_scenes(scenes: Sequence[ListedScene], classes: _Classes) -> str:
    entries = [[str(scene.path), scene.split] for scene in scenes]
    return digest_json([entries, classes.names, classes.labels])


def _summary(prepared: PreparedSet, *, skipped_note: str) -> dict[str, Any]:
    """Manifest entries computed from the written arrays, and notes on skipped files and missing classes."""
    summary = summarise_scenes(prepared)
    names = prepared.manifest["class_names"]
    empty = {
        name: [split for split, facts in summary["splits"].items() if not facts["class_counts"][index]]
        for index, name in enumerate(names)
    }
    listed = [f"{name} ({', '.join(splits)})" for name, splits in empty.items() if splits]
    missing = [f"classes without a point in a part: {join_some(listed, most=_MAX_NAMED)}"] if listed else []
    reaches = {
        f"{split}/{name}": float(points.max(initial=0.0))
        for split in prepared.splits
        for name, points in zip(prepared.names(split), prepared.rows(split, "points"), strict=True)
    }
    units = note_mixed_units(list(reaches), list(reaches.values()), "scenes")
    units += _note_unit(np.median([*reaches.values()]), prepared.manifest["file_unit"])
    gaps = _note_gaps(names, prepared.manifest["class_labels"])
    differences = [*([skipped_note] if skipped_note else []), *missing, *gaps, *units]
    return {**summary, "doubts": [*missing, *units], "differences": differences}


def _note_gaps(names: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Note that classes are not numbered as the labels of the files are, of which some never occur."""
    moved = [(name, place) for place, (name, label) in enumerate(zip(names, labels, strict=True)) if place != label]
    if not moved:
        return []
    return [
        f"labels of the files are {join_some([str(label) for label in labels], most=_MAX_NAMED)}; predictions number "
        f"these classes from 0 to {len(names) - 1}, so that {moved[0][0]} is {moved[0][1]}; to keep the numbers of the "
        "files, name all of them: names=[...]"
    ]


def _find_length(unit: LengthUnit) -> float:
    """Return the length of a unit in metres."""
    return _METRES[unit] if isinstance(unit, str) else float(unit)


def _note_unit(extent_m: float, unit: LengthUnit) -> list[str]:
    """Return a note if half of the scenes are too small or too large for scenes, with the units that would fit."""
    low, high = _PLAUSIBLE_M
    if low <= extent_m <= high:
        return []
    extents = {name: extent_m / _find_length(unit) * metres for name, metres in _METRES.items()}
    fitting = [f"unit={name} would make that {size:.3g} m" for name, size in extents.items() if low <= size <= high]
    return [
        f"half of the scenes extend over {extent_m:.3g} m {'or less' if extent_m < low else 'or more'}, read as "
        f"unit={unit}; {', '.join(fitting) or 'is that the unit of the files?'}"
    ]
