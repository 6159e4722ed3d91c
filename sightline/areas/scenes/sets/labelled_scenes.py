"""Base of the prepared data sets of scenes with a class at every point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from sightline.contract.arguments import Count
from sightline.contract.errors import DataError
from sightline.contract.types import CloudInputSpec, DataInfo, Field, Folds
from sightline.store.prepared.columns import CLASSES, VECTORS, ColumnForm, ColumnSpec
from sightline.store.prepared.prepared_data import SplitFigure, Summary
from sightline.store.prepared.prepared_rows import SampleColumn, WholeRows
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.splits import SPLITS, SplitRows, check_part
from sightline.store.scene_preparation import normalised_position

IGNORE_INDEX = 255
"""Stored label of points without a class."""


COLOURS = ("colours", ColumnSpec((3,), "uint8", is_ragged=True))
"""Column of colours, 0 to 255, for `scene_columns`."""
NORMALS = ("normals", ColumnSpec((3,), "float32", is_ragged=True))
"""Column of unit normals for `scene_columns`."""


class LabelledScenes(WholeRows):
    """Base of sets of scenes; prepared files are memory-mapped, a sample is a copy of a whole scene.

    Transforms crop and subsample. With `repeats` an epoch of the training split visits every scene `repeats` times;
    other splits have every scene once. `features` are added to the model's input: stored columns, or
    `normalised_position`. A manifest may state `class_groups`, the group of each class.
    """

    forms: ClassVar[Mapping[str, ColumnForm]] = {"points": VECTORS, "normals": VECTORS, "label": CLASSES}
    summary: ClassVar[Summary] = {
        "scenes": SplitFigure("num_rows"),
        "points": lambda manifest: dict(manifest["num_elements"]),
        "points_without_class": lambda manifest: manifest["num_ignored"],
        "points_per_class": SplitFigure("class_counts", "class_names"),
        "columns": lambda manifest: ", ".join(manifest["columns"]),
    }
    printed = ("layout", "up_axis", "orientation", "unit", "density", "voxels", "split", "ranges", "differences")

    def __init__(
        self,
        *,
        prepared: PreparedSet,
        split: str,
        parts: SplitRows,
        features: tuple[str, ...] = (),
        repeats: Count = 1,
    ) -> None:
        if split not in SPLITS:
            raise DataError(f"{prepared.root}: has no part '{split}'; it has {', '.join(parts.rows)}")
        check_part(parts, split, root=prepared.root, what="scene")
        self._prepared = prepared
        self._rows = parts.rows[split]
        self.repeats = repeats if split == "train" else 1
        self._columns = {
            **{name: self._make_column(name) for name in ("points", *features)},
            "label": SampleColumn("label", label_field(len(self.class_names), prepared.manifest["num_ignored"])),
        }
        sizes = {name: len(rows) for name, rows in parts.rows.items()}
        self.info = self._describe({**sizes, split: len(self)}, parts.folds)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return tuple(self._prepared.manifest["class_names"])

    def _describe(self, sizes: Mapping[str, int], folds: Folds | None) -> DataInfo:
        manifest = self._prepared.manifest
        fields = {name: column.field for name, column in self._columns.items() if name != "label"}
        counts: dict[str, Any] = {"class_counts": tuple(count_points_per_class(self._prepared, self._rows).tolist())}
        counts |= {"class_groups": tuple(manifest["class_groups"])} if "class_groups" in manifest else {}
        clouds = self._input_spec()
        info = scene_info(self.class_names, fields, manifest["up_axis"], manifest["num_ignored"], clouds, counts)
        return replace(info, split_sizes=sizes, folds=folds)

    @staticmethod
    def choose_stored(prepared: PreparedSet, **requested: bool) -> tuple[str, ...]:
        """Return the names of the columns that are requested. Raises DataError for one that the folder lacks."""
        for name in requested:
            if requested[name] and name not in prepared.manifest["columns"]:
                raise DataError(
                    f"{prepared.root}: holds no {name}; set data.{name}=false, or prepare it from files that have them"
                )
        return tuple(name for name in requested if requested[name])

    def _input_spec(self) -> CloudInputSpec:
        """Return the CloudInputSpec with which `predict` must read a file for this set."""
        return CloudInputSpec()

    def _make_column(self, name: str) -> SampleColumn:
        """Return the field of points or of a feature (N, 3) float32, and how it is read."""
        frame = f"scene, {self._prepared.manifest['orientation']}"
        if name == "colours":
            field = Field("points 3", "float32", "red, green, blue", "", 0.0, 1.0, "concatenate")
            return SampleColumn(name, field, _scale_colours)
        if name == "normalised_position":
            field = Field("points 3", "float32", "share of the scene's extent", "", 0.0, 1.0, "concatenate")
            return SampleColumn("points", field, _scale_position)
        if name == "normals":
            return SampleColumn(name, Field("points 3", "float32", "unit vector", frame, -1.0, 1.0, "concatenate"))
        # Twice the stored maximum: another scene may reach a little further, one in another unit far beyond.
        reach = 2 * max(map(abs, self._prepared.manifest["ranges"]["points"]))
        unit = self._prepared.manifest["unit"]
        return SampleColumn(name, Field("points 3", "float32", unit, frame, -reach, reach, "concatenate"))


def _scale_colours(colours: np.ndarray, describe: Callable[[], str]) -> np.ndarray:
    return colours / np.float32(255)


def _scale_position(points: np.ndarray, describe: Callable[[], str]) -> np.ndarray:
    return normalised_position(points)


def label_field(num_classes: int, num_ignored: int) -> Field:
    """Return the field of the classes of points, some of which may have none."""
    high = IGNORE_INDEX if num_ignored else num_classes - 1
    return Field("points", "int64", "class", "", 0, high, "concatenate")


def scene_info(
    class_names: tuple[str, ...],
    fields: Mapping[str, Field],
    up_axis: str,
    num_ignored: int,
    clouds: CloudInputSpec,
    counts: Mapping[str, Any] | None = None,
) -> DataInfo:
    """Return the DataInfo of scenes with these classes, fields but `label`, and counts if they are known."""
    facts = {"num_classes": len(class_names), "class_names": class_names, **(counts or {})}
    facts |= {"in_channels": 3 * len(fields), "up_axis": up_axis}
    facts |= {"ignore_index": IGNORE_INDEX} if num_ignored else {}
    features = tuple(name for name in fields if name != "points")
    label = label_field(len(class_names), num_ignored)
    return DataInfo(facts, {**fields, "label": label}, features=features, clouds=clouds)


def scene_columns(num_classes: int, *features: tuple[str, ColumnSpec]) -> dict[str, ColumnSpec]:
    """Return the columns of a set of scenes: points, labels, `features`, and the points per class of each scene."""
    return {
        "points": ColumnSpec((3,), "float32", is_ragged=True),
        **dict(features),
        "label": ColumnSpec((), "uint8", is_ragged=True),
        "class_counts": ColumnSpec((num_classes,), "int64"),
    }


def scene_values(label: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Make the label columns of a row from labels (N,) uint8, 255 for points without a class."""
    counts = np.bincount(label, minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    assert not counts[num_classes:].any(), (
        f"labels up to {int(label[label != IGNORE_INDEX].max())} of {num_classes} classes"
    )
    return {"label": label, "class_counts": counts[:num_classes]}


def count_points_per_class(prepared: PreparedSet, rows: Sequence[tuple[str, int]]) -> np.ndarray:
    """Count the points of each class (C,) in these scenes, without unlabelled points."""
    return np.stack([prepared.array(split, "class_counts")[row] for split, row in rows]).sum(axis=0)


def summarise_scenes(prepared: PreparedSet) -> dict[str, Any]:
    """Manifest entries of every set of scenes: points per class and split, and unlabelled points."""
    counts = {split: prepared.array(split, "class_counts").sum(axis=0) for split in prepared.splits}
    num_points = dict(prepared.manifest["num_elements"])
    return {
        "splits": {
            split: {"num_rows": prepared.manifest["splits"][split]["num_rows"], "class_counts": class_counts.tolist()}
            for split, class_counts in counts.items()
        },
        "num_ignored": int(sum(num_points[split] - int(counts[split].sum()) for split in prepared.splits)),
    }
