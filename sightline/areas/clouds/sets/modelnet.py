"""ModelNet40 and ModelNet10: clouds of CAD shapes with one class each, from any of the public layouts.

Public layouts of ModelNet: detection of the layout, and the shards of its shapes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.clouds.sets.labelled_clouds import LabelledClouds, Normals, count_labels, promised_info
from sightline.areas.clouds.sets.modelnet_files import (
    SPLITS,
    ClassSubset,
    SourceContents,
    has_npz_keys,
    hdf5_contents,
    npz_contents,
    off_contents,
    published_counts,
    text_contents,
)
from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.contract.types import CloudInputSpec, DataInfo, UnitSphere
from sightline.store.prepared.prepared_data import SetSpec, find_layout
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan
from sightline.store.prepared.views import promised_image

_INNER_FOLDERS = ("modelnet40_ply_hdf5_2048", "modelnet40_normal_resampled", "ModelNet40", "ModelNet10")


def detect_layout(root: Path) -> tuple[str, Path]:
    """Detect the layout (hdf5, text, off or npz) of a file or folder; return it with its path.

    Symbolic links are followed. Raises DataError naming what was found and what was looked for.
    """
    if root.is_file():
        if zipfile.is_zipfile(root) or root.suffix == ".npz":
            return "npz", root
        raise DataError(f"{root}: is not a layout by itself; give the folder that holds it, or an .npz archive")
    layouts = published_counts()["layouts"]
    return find_layout(root, _match_layouts, inner=_INNER_FOLDERS, name="ModelNet", layouts=layouts)


def read_contents(layout: str, root: Path, classes: ClassSubset) -> SourceContents:
    """Read the columns and shards of a recognised layout; check lists, headers and labels, but read no clouds.

    Raises DataError naming the file and the position in it.
    """
    readers = {"hdf5": hdf5_contents, "text": text_contents, "off": off_contents, "npz": npz_contents}
    contents = readers[layout](root, classes)
    if not any(part.num_rows for part in contents.parts):
        raise DataError(f"{root}: holds no shape of the classes {', '.join(classes.names)}; is it the right folder?")
    return contents


def _match_layouts(folder: Path) -> list[tuple[str, Path]]:
    """List the layouts (name, path) that the contents of a folder match."""
    matches = [("npz", path) for path in sorted(folder.glob("*.npz")) if has_npz_keys(path)]
    if any(folder.glob("ply_data_*.h5")):
        matches.append(("hdf5", folder))
    if any(folder.glob("modelnet[14]0_t*.txt")) or any(folder.glob("*/*_[0-9][0-9][0-9][0-9].txt")):
        matches.append(("text", folder))
    if any(folder.glob("*/train/*.off")) or any(folder.glob("*/test/*.off")):
        matches.append(("off", folder))
    return matches


_RADIUS_SLACK = 2**-11
"""Tolerance of the radius 1: float16 changes a coordinate, and so a norm, by at most 2^-11 of itself."""

_NORMALISED_BY_PREPARE = ("text", "off")
"""Layouts whose clouds `prepare` centres and scales to radius 1; the others are stored so."""


def _published_counts(classes: ClassSubset) -> dict[str, dict[str, int]]:
    """Return the published number of shapes by split and class."""
    counts = published_counts()["counts_train_test"]
    return {
        split: {name: counts[name][split_index] for name in classes.names} for split_index, split in enumerate(SPLITS)
    }


def _make_spec(name: str) -> SetSpec:
    def list_entries() -> dict[str, Any]:
        splits = _published_counts(ClassSubset.from_set_name(name))
        return {"splits": splits, "layouts": published_counts()["layouts"]}

    return SetSpec(name=name, what="a public release of ModelNet", kind="file or folder", entries=list_entries)


class _ModelNet(LabelledClouds):
    """Base class of ModelNet10 and ModelNet40."""

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return ClassSubset.from_set_name(self.set_name).names

    def _unit_sphere(self, manifest: Mapping[str, Any]) -> UnitSphere:
        return "applied" if manifest["layout"] in _NORMALISED_BY_PREPARE else "promised"

    @classmethod
    def expected_info(
        cls, *, num_points: int | None = None, normals: Normals = "none", views: str | None = None
    ) -> DataInfo:
        """Return the DataInfo expected before preparation, without counts.

        That of a set prepared from the HDF5 release. The arguments are those of the set.
        """
        layout = published_counts()["layouts"]["hdf5"]
        return promised_info(
            ClassSubset.from_set_name(cls.set_name).names,
            up_axis=layout["up_axis"],
            orientation=layout["orientation"],
            clouds=CloudInputSpec(num_points, layout["points"], "promised", estimates_normals=normals == "estimated"),
            has_normals=normals != "none",
            image=None if views is None else promised_image(views),
        )

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to write the set in native form from any public layout.

        Raises DataError for a source that is damaged or unknown, naming file and position, and for a target that
        contains something else.
        """
        layout, root = detect_layout(root)
        classes = ClassSubset.from_set_name(cls.set_name)
        contents = read_contents(layout, root, classes)
        facts = published_counts()["layouts"][layout]
        about = {
            "up_axis": facts["up_axis"],
            "orientation": facts["orientation"],
            "normalisation": facts["normalisation"],
            "class_names": list(classes.names),
        }
        return PreparationPlan(
            cls.set_name,
            layout,
            root,
            contents.columns,
            contents.parts,
            about,
            lambda prepared: _summary(prepared, layout, classes),
        )


@registry.data.add("modelnet40")
class ModelNet40(_ModelNet):
    """ModelNet40: 12,311 CAD shapes of 40 classes as clouds, 9,843 to train on and 2,468 to test.

    `num_points` takes the first stored points of each cloud. `normals` adds the stored (`file`) or `estimated` ones.
    `fraction` trains on that share of every class, seeded by `fraction_seed`. `views` adds an `image`, a view of the
    shape out of that folder, on `background`.
    Source: Wu et al. 2015, "3D ShapeNets: A Deep Representation for Volumetric Shapes".
    """

    spec = _make_spec("modelnet40")


@registry.data.add("modelnet10")
class ModelNet10(_ModelNet):
    """ModelNet10: the 4,899 shapes of ten classes of ModelNet40, 3,991 to train on and 908 to test.

    Opens a folder prepared as modelnet10 or as modelnet40. `num_points` takes the first stored points of each cloud.
    `normals` adds the stored (`file`) or `estimated` ones. `fraction` trains on that share of every class, seeded by
    `fraction_seed`. `views` adds an `image`, a view of the shape out of that folder, on `background`.
    Source: Wu et al. 2015, "3D ShapeNets: A Deep Representation for Volumetric Shapes".
    """

    spec = _make_spec("modelnet10")
    readable_sets = ("modelnet40",)


def _summary(prepared: PreparedSet, layout: str, classes: ClassSubset) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    splits = count_labels(prepared, len(classes.names))
    expected = _published_counts(classes)
    differences = []
    for split in SPLITS:
        split_counts = splits[split]["class_counts"] if split in splits else [0] * len(classes.names)
        pairs = [
            (f"{split}/{name}", count, expected[split][name])
            for name, count in zip(classes.names, split_counts, strict=True)
        ]
        pairs.insert(0, (split, sum(split_counts), sum(expected[split].values())))
        differences += [
            f"{subject}: {count} shapes, published {published}"
            for subject, count, published in pairs
            if count != published
        ]
    note = published_counts()["published_note"].get(layout)
    radius = max(_radius(prepared.array(split, "points")) for split in prepared.splits)
    if radius > 1 + _RADIUS_SLACK:
        differences.append(f"points reach out to {radius:.4g} from the origin, the layout promises 1")
    return {
        "splits": splits,
        "published": expected,
        "differences": differences + ([f"note: {note}"] if note and differences else []),
        "radius": radius,
    }


def _radius(clouds: np.ndarray) -> float:
    """Compute the largest distance from the origin, one shape at a time, so that a mapped file stays on disk."""
    return max(float(np.linalg.norm(cloud.astype(np.float64), axis=1).max()) for cloud in clouds)
