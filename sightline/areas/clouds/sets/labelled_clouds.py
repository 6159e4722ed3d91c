"""Base class of prepared sets of point clouds with one label each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from sightline.contract.arguments import Count, PositiveFraction, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import Batch, CloudInputSpec, DataInfo, Field, Sample, SampleKey, UnitSphere
from sightline.ops.views.rendering import Background
from sightline.store.cloud_preparation import EstimatedNormals, Normals
from sightline.store.files.array_files import check_array
from sightline.store.loading.stratified import stratified_subset
from sightline.store.prepared.columns import CLASSES, VECTORS, ColumnForm
from sightline.store.prepared.prepared_data import SplitFigure, Summary, describe_foreign_label
from sightline.store.prepared.prepared_rows import PreparedRows
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.views import IMAGE, StoredViews, open_views


class LabelledClouds(PreparedRows):
    """Prepared clouds with one label each; samples are copies of the first `num_points` stored points.

    `fraction` is the share of the training split that is used, at least one shape of every class; a smaller share is a
    subset of a larger one with the same `fraction_seed`. Other splits are always complete. `views` is a folder of
    rendered views of these shapes (`sightline data render`): a sample then has an `image`, one view of the shape of
    that name, drawn by seed, epoch and index, on `background` (default: that of the folder, else black).
    """

    forms: ClassVar[Mapping[str, ColumnForm]] = {"points": VECTORS, "normals": VECTORS, "label": CLASSES}
    summary: ClassVar[Summary] = {
        "counts": SplitFigure("class_counts", "class_names"),
        "sizes": SplitFigure("num_rows"),
        "points_per_shape": lambda manifest: manifest["columns"]["points"]["shape"][0],
        "has_normals": lambda manifest: "normals" in manifest["columns"],
    }
    printed = (
        *("layout", "up_axis", "orientation", "unit", "normalisation", "channels", "preparation", "ranges"),
        *("differences", "duplicates"),
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        num_points: Count | None = None,
        normals: Normals = "none",
        fraction: PositiveFraction = 1.0,
        fraction_seed: Seed = 0,
        views: str | None = None,
        background: Background | None = None,
    ) -> None:
        self._prepared = self.open_root(root)
        self._split = split
        store = open_views(views, background=background)
        self._row_indices, self._labels = _select_rows(self._prepared, split, self.class_names)
        if split == "train" and fraction < 1:
            subset = stratified_subset(self._labels, fraction, seed=fraction_seed)
            self._row_indices, self._labels = map(_make_read_only, (self._row_indices[subset], self._labels[subset]))
        self._rows = [(split, row) for row in self._row_indices.tolist()]
        self.num_points = self._check_num_points(num_points)
        self._features = self._select_features(normals)
        self._estimated: EstimatedNormals | None = None
        if normals == "estimated":
            self._estimated = EstimatedNormals(self._describe_sample)
        self._pictures: StoredViews | None = None
        if store is not None:
            names = [self.sample_name(index) for index in range(len(self))]
            self._pictures = StoredViews(store, names, set_name=f"{self.set_name} {split}", background=background)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return tuple(self._prepared.manifest["class_names"])

    @cached_property
    def info(self) -> DataInfo:  # type: ignore[override]
        """Facts, fields and sizes; the class counts are those of the samples used from this split."""
        fields = {name: self._field(name) for name in ("points", *self._features)}
        pictures = {} if self._pictures is None else {IMAGE: self._pictures.field}
        counts = np.bincount(self._labels, minlength=len(self.class_names))
        sizes = count_shapes_per_split(self._prepared.manifest, self.class_names)
        return DataInfo(
            facts={
                "num_classes": len(self.class_names),
                "class_names": self.class_names,
                "class_counts": tuple(counts.tolist()),
                "in_channels": 3 + sum(self._width(name) for name in self._features),
                "up_axis": self._prepared.manifest["up_axis"],
            },
            fields={**fields, "label": Field("", "int64", "class", "", 0, len(self.class_names) - 1), **pictures},
            split_sizes=sizes | {self._split: len(self)},
            features=self._features,
            clouds=self._make_input_spec(),
        )

    @property
    def pictures(self) -> StoredViews | None:
        """Store of the views from which the `image` of a sample is drawn; None without views."""
        return self._pictures

    @property
    def strata(self) -> np.ndarray:
        """Label of every sample, int64, read-only."""
        return self._labels

    def __getitem__(self, key: SampleKey) -> Sample:
        batch = self.get_batch([key])
        return {name: batch[name][0] for name in self.info.fields}

    def get_batch(self, keys: Sequence[SampleKey]) -> Batch:
        """Read and stack samples by index, as new tensors. Raises IndexError for an index out of range."""
        index_B = np.array([key.index for key in keys], dtype=np.int64)
        if ((index_B < 0) | (index_B >= len(self))).any():
            raise IndexError(f"{self.set_name} has the samples 0 to {len(self) - 1}, asked for {index_B.tolist()}")
        values = {name: self._read(name, index_B) for name in ("points", *self._stored_features)}
        if self._estimated is not None:
            values["normals"] = self._estimated.estimate(index_B, values["points"])
        pictures = {} if self._pictures is None else {IMAGE: torch.from_numpy(self._pictures.sample(keys))}
        return {
            **{name: torch.from_numpy(values[name]) for name in ("points", *self._features)},
            **pictures,
            "label": torch.from_numpy(self._labels[index_B]),
            "sample_index": torch.from_numpy(index_B),
        }

    @property
    def _stored_features(self) -> tuple[str, ...]:
        """Features that are read from files, not estimated."""
        return tuple(name for name in self._features if name != "normals" or self._estimated is None)

    def _read(self, name: str, index: np.ndarray) -> np.ndarray:
        return self._prepared.array(self._split, name)[self._row_indices[index], : self.num_points]

    def _width(self, name: str) -> int:
        """Return the number of values per point of a feature."""
        return 3

    def _field(self, name: str) -> Field:
        """Build the Field of a feature from the manifest; points without a unit are in radii of the shape."""
        manifest = self._prepared.manifest
        frame = f"object, {manifest['orientation']}"
        if name == "normals":
            return Field("points 3", "float32", "unit vector", frame, -1.0, 1.0)
        if name == "points" and manifest.get("unit") is None:
            return Field("points 3", "float32", "radius of the shape", frame, -1.0, 1.0)
        # Twice the prepared range: another cloud may be a little larger, one in another unit is far larger.
        reach = 2 * max(map(abs, manifest["ranges"][name]))
        unit = manifest["unit"] if name == "points" else ""
        return Field(f"points {self._width(name)}", "float32", unit, frame, -reach, reach)

    def _make_input_spec(self) -> CloudInputSpec:
        """Return the CloudInputSpec with which `predict` must read a file for this set."""
        manifest = self._prepared.manifest
        return CloudInputSpec(
            num_points=self.num_points,
            stored_points=manifest["columns"]["points"]["shape"][0],
            unit_sphere=self._unit_sphere(manifest),
            preparation=self._preparation(manifest),
            columns=tuple(manifest["source_columns"]) if manifest.get("source_columns") else None,
            estimates_normals=self._estimated is not None,
        )

    def _unit_sphere(self, manifest: Mapping[str, Any]) -> UnitSphere:
        """Return how the clouds get radius 1: `applied` by prepare, `promised` by the files, or `none`."""
        return "promised"

    def _preparation(self, manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the arguments of `prepare_cloud`, or None if the set was not prepared by it."""
        return None

    def _select_features(self, normals: Normals) -> tuple[str, ...]:
        if normals == "file" and "normals" not in self._prepared.manifest["columns"]:
            raise DataError(
                f"{self._prepared.root}: holds no normals (layout {self._prepared.manifest['layout']}); set normals: "
                "estimated or none, or prepare the set from files that have normals, or from meshes"
            )
        if normals == "file" and not any(self._prepared.manifest["ranges"]["normals"]):
            raise DataError(f"{self._prepared.root}: its normals are all 0; set data.normals=estimated, or none")
        return () if normals == "none" else ("normals",)

    def _check_num_points(self, num_points: int | None) -> int:
        stored = self._prepared.manifest["columns"]["points"]["shape"][0]
        if num_points is not None and num_points > stored:
            raise DataError(
                f"{self._prepared.root}: num_points is {num_points}, {stored} points a shape are stored; ask for fewer"
            )
        return num_points or stored


def promised_info(
    class_names: Sequence[str],
    *,
    up_axis: str,
    orientation: str,
    clouds: CloudInputSpec,
    has_normals: bool = False,
    image: Field | None = None,
) -> DataInfo:
    """Build the expected DataInfo of a set that is not prepared yet (no counts, no sizes)."""
    features = ("normals",) if has_normals else ()
    frame = f"object, {orientation}"
    fields = {
        "points": Field("points 3", "float32", "radius of the shape", frame, -1.0, 1.0),
        **({"normals": Field("points 3", "float32", "unit vector", frame, -1.0, 1.0)} if has_normals else {}),
        "label": Field("", "int64", "class", "", 0, len(class_names) - 1),
        **({} if image is None else {IMAGE: image}),
    }
    return DataInfo(
        facts={
            "num_classes": len(class_names),
            "class_names": tuple(class_names),
            "in_channels": 3 + 3 * len(features),
            "up_axis": up_axis,
        },
        fields=fields,
        features=features,
        clouds=clouds,
    )


def check_labelled_clouds(
    data: Any, label: Any, *, where: str, noun: str = "shapes", label_shape: str = "({}, 1)"
) -> None:
    """Raise DataError, led by the file `where`, unless an HDF5 file has floats (N, P, 3) and a label of each."""
    needed = f"floats ({noun}, points, 3) are needed"
    check_array(data, where=f"{where}: 'data'", kinds="f", shapes=[(None, None, 3)], needed=needed)
    needed = f"integers {label_shape.format(len(data))} are needed"
    check_array(label, where=f"{where}: 'label'", kinds="iu", shapes=[(len(data),), (len(data), 1)], needed=needed)


def count_labels(prepared: PreparedSet, num_classes: int) -> dict[str, dict[str, Any]]:
    """Count the rows of each split, and of each class in it, for the manifest."""
    labels = {split: prepared.array(split, "label") for split in prepared.splits}
    return {
        split: {"num_rows": len(label), "class_counts": np.bincount(label, minlength=num_classes).tolist()}
        for split, label in labels.items()
    }


def count_shapes_per_split(manifest: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, int]:
    """Count the shapes of these classes in each split of a prepared set.

    Raises DataError for a manifest that counts other classes than it names.
    """
    names, sizes = manifest["class_names"], {}
    for split, facts in manifest["splits"].items():
        counts = facts["class_counts"]
        if len(counts) != len(names):
            raise DataError(
                f"manifest.json: splits.{split}.class_counts has {len(counts)} counts, class_names {len(names)} names; "
                "prepare the set again"
            )
        sizes[split] = sum(count for name, count in zip(names, counts, strict=True) if name in class_names)
    return sizes


def _select_rows(prepared: PreparedSet, split: str, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Select the rows of a split in these classes, and their labels among them; both int64 and read-only.

    Raises DataError if there is no such split.
    """
    if split not in prepared.splits:
        sizes = count_shapes_per_split(prepared.manifest, class_names)
        available = ", ".join(f"{name} ({size})" for name, size in sizes.items())
        raise DataError(f"{prepared.root}: has no split '{split}'; it holds {available}")
    stored_names = prepared.manifest["class_names"]
    new_label = np.array([class_names.index(name) if name in class_names else -1 for name in stored_names])
    if fault := describe_foreign_label(prepared, split):
        raise DataError(fault)
    labels = new_label[prepared.array(split, "label")]
    rows = np.flatnonzero(labels >= 0)
    return _make_read_only(rows), _make_read_only(labels[rows])


def _make_read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
