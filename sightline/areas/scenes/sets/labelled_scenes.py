"""Base of the prepared data sets of scenes with a class at every point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from sightline.contract.arguments import Count
from sightline.contract.errors import ConfigError
from sightline.contract.types import CloudInputSpec, DataInfo, Field, Sample, SampleKey
from sightline.store.prepared.columns import CLASSES, VECTORS, ColumnForm, ColumnSpec
from sightline.store.prepared.prepared_data import PreparedData
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.scene_preparation import normalised_position

IGNORE_INDEX = 255
"""Stored label of points without a class."""


class SceneSplit(NamedTuple):
    """Scenes of a split, as (stored split, row), and the number of scenes of every split."""

    rows: tuple[tuple[str, int], ...]
    sizes: Mapping[str, int]


COLOURS = ("colours", ColumnSpec((3,), "uint8", is_ragged=True))
"""Column of colours, 0 to 255, for `scene_columns`."""


def stored_scenes(prepared: PreparedSet, split: str) -> SceneSplit:
    """Return the scenes of a split of the prepared folder, none of one that it does not have."""
    sizes = {name: facts["num_rows"] for name, facts in prepared.manifest["splits"].items()}
    return SceneSplit(tuple((split, row) for row in range(sizes.get(split, 0))), sizes)


class LabelledScenes(PreparedData):
    """Base of sets of scenes; prepared files are memory-mapped, a sample is a copy of a whole scene.

    Transforms crop and subsample. With `repeats` an epoch of the training split visits every scene `repeats` times,
    with different random numbers: sample i is scene i modulo their number. Other splits have every scene once.
    """

    forms: ClassVar[Mapping[str, ColumnForm]] = {"points": VECTORS, "normals": VECTORS, "label": CLASSES}
    printed = ("layout", "up_axis", "orientation", "unit", "split", "ranges", "differences")

    def __init__(
        self,
        *,
        prepared: PreparedSet,
        split: str,
        scenes: SceneSplit,
        features: tuple[str, ...] = (),
        repeats: Count = 1,
    ) -> None:
        if not scenes.rows:
            available = ", ".join(f"{name} ({size})" for name, size in scenes.sizes.items())
            advice = "; set evaluate.select: test" if split == "validation" else ""
            raise ConfigError(f"{prepared.root}: has no scene in the part '{split}'; it has {available}{advice}")
        self._prepared = prepared
        self._split = split
        self._scenes = scenes
        self._features = features
        self.repeats = repeats if split == "train" else 1
        self.info = self._describe()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return tuple(self._prepared.manifest["class_names"])

    def __len__(self) -> int:
        return len(self._scenes.rows) * self.repeats

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read one whole scene as new tensors. Raises IndexError for an index out of range."""
        if not 0 <= key.index < len(self):
            raise IndexError(f"{self.set_name} has the samples 0 to {len(self) - 1}, asked for {key.index}")
        stored, row = self._scenes.rows[key.index % len(self._scenes.rows)]
        label = self._prepared.row(stored, "label", row).astype(np.int64)
        points = np.array(self._prepared.row(stored, "points", row))
        values = {"points": points, **{name: self._read_feature(name, stored, row) for name in self._features}}
        return {name: torch.from_numpy(array) for name, array in {**values, "label": label}.items()}

    def sample_name(self, index: int) -> str:
        """Name of a sample in reports."""
        stored, row = self._scenes.rows[index % len(self._scenes.rows)]
        return self._prepared.names(stored)[row]

    @classmethod
    def summarise(cls, prepared: PreparedSet) -> dict[str, Any]:
        """Return the scenes per split, and the points per split and class."""
        manifest = prepared.manifest
        return {
            "scenes": {split: facts["num_rows"] for split, facts in manifest["splits"].items()},
            "points": dict(manifest["num_elements"]),
            "points_without_class": manifest["num_ignored"],
            "points_per_class": {
                split: dict(zip(manifest["class_names"], facts["class_counts"], strict=True))
                for split, facts in manifest["splits"].items()
            },
            "columns": ", ".join(manifest["columns"]),
        }

    def _list_stored_rows(self) -> list[tuple[str, int]]:
        return [*self._scenes.rows] * self.repeats

    def _read_feature(self, name: str, stored: str, row: int) -> np.ndarray:
        """Read the values (N, 3) float32 of a feature of a scene."""
        if name == "colours":
            return self._prepared.row(stored, "colours", row) / np.float32(255)
        if name == "place":
            return normalised_position(self._prepared.row(stored, "points", row))
        return np.array(self._prepared.row(stored, name, row))

    def _describe(self) -> DataInfo:
        manifest = self._prepared.manifest
        fields = {name: self._make_field(name) for name in ("points", *self._features)}
        up_axis, num_ignored, clouds = manifest["up_axis"], manifest["num_ignored"], self._input_spec()
        counts = tuple(count_points_per_class(self._prepared, self._scenes.rows).tolist())
        info = scene_info(self.class_names, fields, up_axis, num_ignored, clouds, {"class_counts": counts})
        return replace(info, split_sizes={**self._scenes.sizes, self._split: len(self)})

    def _input_spec(self) -> CloudInputSpec:
        """Return the CloudInputSpec with which `predict` must read a file for this set."""
        return CloudInputSpec()

    def _make_field(self, name: str) -> Field:
        frame = f"scene, {self._prepared.manifest['orientation']}"
        if name in ("colours", "place"):
            unit = "red, green, blue" if name == "colours" else "share of the scene's extent"
            return Field("points 3", "float32", unit, "", 0.0, 1.0, "concatenate")
        if name == "normals":
            return Field("points 3", "float32", "unit vector", frame, -1.0, 1.0, "concatenate")
        # Twice the stored maximum: another scene may reach a little further, one in another unit far beyond.
        reach = 2 * max(map(abs, self._prepared.manifest["ranges"]["points"]))
        return Field("points 3", "float32", self._prepared.manifest["unit"], frame, -reach, reach, "concatenate")


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
    high = IGNORE_INDEX if num_ignored else len(class_names) - 1
    label = Field("points", "int64", "class", "", 0, high, "concatenate")
    features = tuple(name for name in fields if name != "points")
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
