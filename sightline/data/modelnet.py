"""ModelNet40 and ModelNet10: clouds of CAD shapes with one class each, from any of the public layouts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from sightline import registry
from sightline.arguments import Count
from sightline.data.modelnet_classes import SPLITS, Classes, published
from sightline.data.modelnet_layouts import read_contents, recognise
from sightline.data.native import Prepared, open_prepared, prepare_command, verify
from sightline.data.preparation import Plan, Progress, duplicates_of, prepare_native
from sightline.errors import DataError
from sightline.types import Batch, DataInfo, Field, Sample, SampleKey

__all__ = ["ModelNet10", "ModelNet40"]

_RADIUS_SLACK = 2**-11
"""How far beyond 1 a radius may reach: half precision puts a coordinate, so a norm, off by 2^-11 of itself at most."""


class _ModelNet:
    """What both sets are; clouds are mapped from the prepared files, samples are copies of them."""

    set_name: ClassVar[str]
    readable_sets: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        num_points: Count | None = None,
        normals: Literal["none", "file"] = "none",
    ) -> None:
        self._prepared = open_prepared(_root(root, self.set_name), set_names=self.readable_sets)
        self._split = split
        self._rows, self._labels = _choose(self._prepared, split, self.class_names)
        self._columns = self._checked_columns(with_normals=normals == "file")
        self.num_points = self._checked_num_points(num_points)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return Classes.of(self.set_name).names

    @cached_property
    def info(self) -> DataInfo:
        """Facts, fields and sizes; the counts per class are those of this split."""
        up_axis = self._prepared.manifest["up_axis"]
        counts = np.bincount(self._labels, minlength=len(self.class_names))
        frame = f"object, {self._prepared.manifest['orientation']}"
        fields = {
            "points": Field("points 3", "float32", "radius of the shape", frame, -1.0, 1.0),
            "normals": Field("points 3", "float32", "unit vector", frame, -1.0, 1.0),
            "label": Field("", "int64", "class", "", 0, len(self.class_names) - 1),
        }
        return DataInfo(
            facts={
                "num_classes": len(self.class_names),
                "class_names": self.class_names,
                "class_counts": tuple(counts.tolist()),
                "in_channels": 3 * len(self._columns),
                "up_axis": up_axis,
            },
            fields={name: fields[name] for name in (*self._columns, "label")},
            split_sizes=_sizes(self._prepared.manifest, self.class_names),
            features=self._columns[1:],
        )

    @property
    def strata(self) -> np.ndarray:
        """The label of every sample, int64, read-only."""
        return self._labels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: SampleKey) -> Sample:
        batch = self.get_batch([key])
        return {name: batch[name][0] for name in (*self._columns, "label")}

    def get_batch(self, keys: Sequence[SampleKey]) -> Batch:
        """Samples by index, stacked: the first `num_points` stored points of each, fresh tensors.

        Raises IndexError for an index that there is no sample for.
        """
        index_B = np.array([key.index for key in keys], dtype=np.int64)
        if ((index_B < 0) | (index_B >= len(self))).any():
            raise IndexError(f"{self.set_name} has the samples 0 to {len(self) - 1}, asked for {index_B.tolist()}")
        clouds = {name: self._prepared.array(self._split, name) for name in self._columns}
        return {
            **{name: torch.from_numpy(cloud[self._rows[index_B], : self.num_points]) for name, cloud in clouds.items()},
            "label": torch.from_numpy(self._labels[index_B]),
            "sample_index": torch.from_numpy(index_B),
        }

    def name_of(self, index: int) -> str:
        """The name of a shape, as the release has it (`night_stand_0001`)."""
        return self._names[self._rows[index]]

    @classmethod
    def prepare(cls, *, source: Path, target: Path, name: str, progress: Progress) -> dict[str, Any]:
        """Write the set in native form from any public layout; returns the manifest with `root` and `outcome`.

        Raises DataError for a source that is damaged or unknown, naming file and position, and for a target that holds
        something else. A killed run is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        layout, root = recognise(source)
        classes = Classes.of(name)
        contents = read_contents(layout, root, classes)
        facts = published()["layouts"][layout]
        about = {
            "up_axis": facts["up_axis"],
            "orientation": facts["orientation"],
            "normalisation": facts["normalisation"],
            "class_names": list(classes.names),
        }
        plan = Plan(
            name, layout, root, contents.columns, contents.parts, about, lambda found: _summary(found, layout, classes)
        )
        return prepare_native(plan, target, progress=progress)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """What the set is, the layouts that are read, where they are to be had, and the terms of use."""
        facts = published()
        return {
            "set": cls.set_name,
            "splits": _published_counts(Classes.of(cls.set_name)),
            "layouts": facts["layouts"],
            "home": facts["home"],
            "terms": facts["terms"],
            "cite": facts["cite"],
            "prepare": prepare_command(cls.set_name, "DIR"),
        }

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """What a prepared folder holds, from its manifest: counts, points per shape, ranges, where it came from."""
        manifest = open_prepared(root, set_names=("modelnet40", "modelnet10")).manifest
        return {
            "set": manifest["set"],
            "root": str(root.resolve()),
            "source": manifest["source"]["path"],
            "counts": {
                split: dict(zip(manifest["class_names"], facts["class_counts"], strict=True))
                for split, facts in manifest["splits"].items()
            },
            "sizes": {split: facts["num_rows"] for split, facts in manifest["splits"].items()},
            "points_per_shape": manifest["columns"]["points"]["shape"][0],
            "has_normals": "normals" in manifest["columns"],
            **{
                key: manifest[key]
                for key in ("layout", "up_axis", "orientation", "normalisation", "ranges", "differences", "duplicates")
            },
        }

    @classmethod
    def verify(cls, root: Path) -> int:
        """Read every prepared file and compare its hash; how many there are. Raises DataError naming a wrong one."""
        return verify(root)

    @cached_property
    def _names(self) -> list[str]:
        return self._prepared.names(self._split)

    def _checked_columns(self, *, with_normals: bool) -> tuple[str, ...]:
        if with_normals and "normals" not in self._prepared.manifest["columns"]:
            raise DataError(
                f"{self._prepared.root}: holds no normals (layout {self._prepared.manifest['layout']}); "
                "set normals: none, or prepare the set from the text release or the meshes"
            )
        return ("points", "normals") if with_normals else ("points",)

    def _checked_num_points(self, wanted: int | None) -> int:
        stored = self._prepared.manifest["columns"]["points"]["shape"][0]
        if wanted is not None and wanted > stored:
            raise DataError(
                f"{self._prepared.root}: num_points is {wanted}, {stored} points a shape are stored; ask for fewer"
            )
        return wanted or stored


@registry.data.add("modelnet40")
class ModelNet40(_ModelNet):
    """ModelNet40: 12,311 CAD shapes of 40 classes as clouds, 9,843 to train on and 2,468 to test.

    `num_points` takes the first stored points of each cloud; `normals: file` adds the stored normals.
    Source: Wu et al. 2015, "3D ShapeNets: A Deep Representation for Volumetric Shapes".
    """

    set_name = "modelnet40"
    readable_sets = ("modelnet40",)


@registry.data.add("modelnet10")
class ModelNet10(_ModelNet):
    """ModelNet10: the 4,899 shapes of ten classes of ModelNet40, 3,991 to train on and 908 to test.

    Opens a folder prepared as modelnet10 or as modelnet40. `num_points` takes the first stored points of each cloud;
    `normals: file` adds the stored normals.
    Source: Wu et al. 2015, "3D ShapeNets: A Deep Representation for Volumetric Shapes".
    """

    set_name = "modelnet10"
    readable_sets = ("modelnet10", "modelnet40")


def _root(root: str | None, set_name: str) -> Path:
    if root is not None:
        return Path(root).expanduser()
    return Path(os.environ.get("SIGHTLINE_DATA", "data")).expanduser() / set_name


def _choose(prepared: Prepared, split: str, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a split belong to these classes, and their labels among them; both int64 and read-only.

    Raises DataError if there is no such split.
    """
    if split not in prepared.splits:
        sizes = _sizes(prepared.manifest, class_names)
        held = ", ".join(f"{name} ({size})" for name, size in sizes.items())
        raise DataError(f"{prepared.root}: has no split '{split}'; it holds {held}")
    stored_names = prepared.manifest["class_names"]
    new_label = np.array([class_names.index(name) if name in class_names else -1 for name in stored_names])
    labels = new_label[prepared.array(split, "label")]
    rows = np.flatnonzero(labels >= 0)
    chosen = labels[rows]
    for array in (rows, chosen):
        array.flags.writeable = False
    return rows, chosen


def _sizes(manifest: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, int]:
    return {
        split: sum(
            count
            for name, count in zip(manifest["class_names"], facts["class_counts"], strict=True)
            if name in class_names
        )
        for split, facts in manifest["splits"].items()
    }


def _published_counts(classes: Classes) -> dict[str, dict[str, int]]:
    counts = published()["counts_train_test"]
    return {split: {name: counts[name][place] for name in classes.names} for place, split in enumerate(SPLITS)}


def _summary(prepared: Prepared, layout: str, classes: Classes) -> dict[str, Any]:
    """What the manifest says beyond the plan: counts, how they differ from the published ones, duplicates."""
    counts = {
        split: np.bincount(prepared.array(split, "label"), minlength=len(classes.names)).tolist()
        for split in prepared.splits
    }
    expected = _published_counts(classes)
    differences = []
    for split in SPLITS:
        found = counts.get(split, [0] * len(classes.names))
        pairs = [
            (f"{split}/{name}", count, expected[split][name]) for name, count in zip(classes.names, found, strict=True)
        ]
        pairs.insert(0, (split, sum(found), sum(expected[split].values())))
        differences += [
            f"{what}: {count} shapes, published {wanted}" for what, count, wanted in pairs if count != wanted
        ]
    note = published()["published_note"].get(layout)
    radius = max(_radius(prepared.array(split, "points")) for split in prepared.splits)
    if radius > 1 + _RADIUS_SLACK:
        differences.append(f"points reach out to {radius:.4g} from the origin, the layout promises 1")
    return {
        "splits": {split: {"num_rows": sum(count), "class_counts": count} for split, count in counts.items()},
        "published": expected,
        "differences": differences + ([f"note: {note}"] if note and differences else []),
        "duplicates": duplicates_of(prepared, "points"),
        "radius": radius,
    }


def _radius(clouds: np.ndarray) -> float:
    """The largest distance from the origin, a shape at a time, so that a mapped file is not held in memory."""
    return max(float(np.linalg.norm(cloud, axis=1).max()) for cloud in clouds)
