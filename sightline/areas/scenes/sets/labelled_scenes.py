"""Base of the prepared data sets of scenes with a class at every point.

Preparation of scenes: coordinates from the lowest corner, colours as bytes, unit normals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from sightline.aliases import keep_old_members
from sightline.compute.numba_kernels import can_use_numba, numba_kernel, run_parallel
from sightline.contract.arguments import Count
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import CloudInputSpec, DataInfo, Field, Sample, SampleKey
from sightline.store.files.cloud_files import PointCloud, check_strays
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_set import PreparedSet, open_prepared, verify

COLOUR_NAMES = (("red", "green", "blue"), ("r", "g", "b"))
"""Names of the colour channels in files."""

_POINTS_PER_ROW = 256
"""Number of points that `_find_lowest_corner` reduces side by side."""


def prepare_scene(
    cloud: PointCloud,
    *,
    scale: float,
    colour_max: float,
    colour_names: Sequence[str] | None,
    with_normals: bool,
    where: str,
) -> dict[str, np.ndarray]:
    """Make the columns `points` (N, 3) float32 and, if requested, `colours` (N, 3) uint8, `normals` (N, 3) float32.

    Points are relative to the lowest corner, so that float32 stays exact far from the origin, and multiplied by
    `scale`. Colours are the channels `colour_names` from 0 to `colour_max`; normals are normalised to length 1. Raises
    DataError, led by `where`, for a scene without the requested channels, or with colours on another scale.
    """
    check_strays(cloud.points, where=where)
    prepared = {"points": from_lowest_corner(cloud.points, scale=scale)[0]}
    if colour_names is not None:
        prepared["colours"] = _read_colours(cloud, colour_names, colour_max, where)
    if with_normals:
        prepared["normals"] = _normalise_normals(cloud, where)
    return prepared


def from_lowest_corner(points: np.ndarray, *, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Move points (N, 3) to their lowest corner and multiply by `scale`: (N, 3) float32 and the corner (3,) float64.

    Differences are computed in float64. Values beyond float32 become infinite.
    """
    points = points.astype(np.float64, copy=False)
    corner = _find_lowest_corner(points)
    relative = np.empty(points.shape, dtype=np.float32)
    if can_use_numba(torch.empty(0)):
        run_parallel(_move, len(points), points, corner, scale, relative)
    else:
        with np.errstate(over="ignore"):
            relative[:] = (points - corner) * scale
    return relative, corner


def _find_lowest_corner(points: np.ndarray) -> np.ndarray:
    """Compute `points.min(axis=0)` (3,) over long rows of many points: rows of three numbers take ten times as long."""
    num_in_rows = len(points) // _POINTS_PER_ROW * _POINTS_PER_ROW
    rows = points[:num_in_rows].reshape(-1, 3 * _POINTS_PER_ROW)
    lowest = [rows.min(axis=0).reshape(-1, 3)] if len(rows) else []
    corner: np.ndarray = np.concatenate([*lowest, points[num_in_rows:]]).min(axis=0)
    return corner


@numba_kernel
def _move(first: int, last: int, points: np.ndarray, corner: np.ndarray, scale: float, moved: np.ndarray) -> None:
    for row in range(first, last):
        for axis in range(3):
            moved[row, axis] = np.float32((points[row, axis] - corner[axis]) * scale)


def normalised_position(points: np.ndarray) -> np.ndarray:
    """Scale points (N, 3) to the extent of their cloud, 0 to 1 along every axis; the dtype is kept.

    Source: Qi et al. 2017 (PointNet), section 5.2 (the location as to the room).
    """
    low, high = points.min(axis=0), points.max(axis=0)
    position: np.ndarray = (points - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    return position


def _read_colours(cloud: PointCloud, names: Sequence[str], colour_max: float, where: str) -> np.ndarray:
    missing = [name for name in names if name not in cloud.channels]
    if missing:
        raise DataError(f"{where}: has no {', '.join(missing)}, which the first file has; name what all files have")
    colours = np.stack([cloud.channels[name] for name in names], axis=1)
    low, high = float(colours.min()), float(colours.max())
    if low < 0 or high > colour_max:
        raise DataError(f"{where}: colours run from {low:g} to {high:g}, colour_max is {colour_max:g}; set it")
    if colour_max == 255 and 0 < high <= 1:
        raise DataError(f"{where}: colours run to {high:g}, which is black on a scale to 255; set colour_max=1")
    return np.rint(colours * (255 / colour_max)).astype(np.uint8)


def _normalise_normals(cloud: PointCloud, where: str) -> np.ndarray:
    if cloud.normals is None:
        raise DataError(f"{where}: has no normals, which the first file has; name what all files have with columns")
    length = np.linalg.norm(cloud.normals, axis=1)
    if not length.all():
        raise DataError(f"{where}: the normal of point {int(np.flatnonzero(length == 0)[0])} is zero; correct the file")
    return (cloud.normals / length[:, None]).astype(np.float32)


IGNORE_INDEX = 255
"""Stored label of points without a class."""


class SceneSplit(NamedTuple):
    """Scenes of a split, as (stored split, row), and the number of scenes of every split."""

    rows: tuple[tuple[str, int], ...]
    sizes: Mapping[str, int]


@keep_old_members(name_of="sample_name")
class LabelledScenes:
    """Base of sets of scenes; prepared files are memory-mapped, a sample is a copy of a whole scene.

    Transforms crop and subsample. With `repeats` an epoch of the training split visits every scene `repeats` times,
    with different random numbers: sample i is scene i modulo their number. Other splits have every scene once.
    """

    set_name: ClassVar[str]
    readable_sets: ClassVar[tuple[str, ...]]

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
        self._repeats = repeats if split == "train" else 1
        self.info = self._describe()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return tuple(self._prepared.manifest["class_names"])

    def __len__(self) -> int:
        return len(self._scenes.rows) * self._repeats

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
    def describe(cls, root: Path) -> dict[str, Any]:
        """Summary of a prepared folder for `data info`."""
        return describe_scenes(open_prepared(root, set_names=cls.readable_sets), root)

    @classmethod
    def verify(cls, root: Path) -> int:
        """Compare the hash of every file and return their number. Raises DataError with the first that differs."""
        return verify(root)

    def _read_feature(self, name: str, stored: str, row: int) -> np.ndarray:
        """Read the values (N, 3) float32 of a feature of a scene."""
        if name == "colours":
            return self._prepared.row(stored, "colours", row) / np.float32(255)
        if name == "place":
            return normalised_position(self._prepared.row(stored, "points", row))
        return np.array(self._prepared.row(stored, name, row))

    def _describe(self) -> DataInfo:
        manifest, num_classes = self._prepared.manifest, len(self.class_names)
        counts = count_points_per_class(self._prepared, self._scenes.rows)
        facts = {
            "num_classes": num_classes,
            "class_names": self.class_names,
            "class_counts": tuple(counts.tolist()),
            "in_channels": 3 + 3 * len(self._features),
            "up_axis": manifest["up_axis"],
        }
        if manifest["num_ignored"]:
            facts["ignore_index"] = IGNORE_INDEX
        high = IGNORE_INDEX if manifest["num_ignored"] else num_classes - 1
        label = Field("points", "int64", "class", "", 0, high, "concatenate")
        fields = {name: self._make_field(name) for name in ("points", *self._features)}
        return DataInfo(
            facts=facts,
            fields={**fields, "label": label},
            split_sizes={**self._scenes.sizes, self._split: len(self)},
            features=self._features,
            clouds=self._input_spec(),
        )

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


def describe_scenes(prepared: PreparedSet, root: Path) -> dict[str, Any]:
    """Summary of a prepared set of scenes for `data info`."""
    manifest = prepared.manifest
    printed = ("layout", "up_axis", "orientation", "unit", "split", "ranges", "differences")
    return {
        "set": manifest["set"],
        "root": str(root.resolve()),
        "source": manifest["source"]["path"],
        "scenes": {split: facts["num_rows"] for split, facts in manifest["splits"].items()},
        "points": dict(manifest["num_elements"]),
        "points_without_class": manifest["num_ignored"],
        "points_per_class": {
            split: dict(zip(manifest["class_names"], facts["class_counts"], strict=True))
            for split, facts in manifest["splits"].items()
        },
        "columns": ", ".join(manifest["columns"]),
        **{key: manifest[key] for key in printed if key in manifest},
    }
