"""ShapeNetPart: part segmentation of shapes of sixteen categories, from either public layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from sightline.areas.clouds.sets.shapenet_part_files import (
    CATEGORIES_FILE,
    LISTS_FOLDER,
    SPLITS,
    categories,
    hdf5_files,
    hdf5_parts,
    lists_digest,
    make_columns,
    part_names,
    published_counts,
    text_parts,
)
from sightline.contract import registry
from sightline.contract.arguments import PositiveFraction, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import CloudInputSpec, DataInfo, Field
from sightline.store.cloud_preparation import Normals, estimated_normals
from sightline.store.loading.stratified import stratified_subset
from sightline.store.prepared.columns import CLASSES, VECTORS, ColumnForm
from sightline.store.prepared.prepared_data import SetSpec, SplitFigure, Summary, find_layout
from sightline.store.prepared.prepared_rows import SampleColumn, WholeRows
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan
from sightline.store.prepared.splits import stored_splits

_FRAME = "object, y up"
_NORMALISATION = "by prepare: about the mean of the points, the farthest at distance 1; normals of length 1"
_INNER_FOLDERS = ("shapenet_part_seg_hdf5_data", "hdf5_data", "shapenetcore_partanno_segmentation_benchmark_v0_normal")


def _list_card_entries() -> dict[str, Any]:
    facts = published_counts()
    return {
        "splits": facts["split_sizes"],
        "shapes": {name: category_facts["shapes"] for name, category_facts in facts["categories"].items()},
        "parts": {category.name: len(category.parts) for category in categories()},
        "layouts": facts["layouts"],
    }


@registry.data.add("shapenet_part")
class ShapeNetPart(WholeRows):
    """ShapeNetPart: 16,881 shapes of 16 categories, one of 50 parts at every point; 2,874 shapes test.

    Samples are whole shapes: 2,048 points each from the HDF5 release, as many as there are from the text release;
    `sample_points` makes them equal. `label` is the part of each point, `category` that of the shape. `normals` adds
    the stored (`file`) or `estimated` ones. `training: trainval` trains on the validation shapes too, as some published
    figures do. `fraction` trains on that share of every category, seeded by `fraction_seed`.
    Source: Yi et al. 2016, "A Scalable Active Framework for Region Annotation in 3D Shape Collections".
    """

    spec = SetSpec(name="shapenet_part", what="a public release of ShapeNetPart", entries=_list_card_entries)
    forms: ClassVar[Mapping[str, ColumnForm]] = {
        "points": VECTORS,
        "normals": VECTORS,
        "label": CLASSES,
        "category": CLASSES,
    }
    summary: ClassVar[Summary] = {
        "sizes": SplitFigure("num_rows"),
        "points": lambda manifest: manifest["num_elements"],
        "points_per_shape": SplitFigure("points_per_shape"),
        "counts": SplitFigure("category_counts", "category_names"),
        "part_points": SplitFigure("class_counts", "class_names"),
        "has_normals": lambda manifest: "normals" in manifest["columns"],
    }
    printed = ("layout", "up_axis", "orientation", "normalisation", "ranges", "differences", "duplicates")

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        normals: Normals = "none",
        training: Literal["train", "trainval"] = "train",
        fraction: PositiveFraction = 1.0,
        fraction_seed: Seed = 0,
    ) -> None:
        self._prepared = self.open_root(root)
        self._normals = _check_normals(normals, self._prepared)
        rows = {**stored_splits(self._prepared).rows}
        if training == "trainval":  # training samples must not select the checkpoint
            rows["train"] += rows.pop("validation")
        self._sizes = {name: len(members) for name, members in rows.items()}
        if split not in rows:
            available = ", ".join(f"{name} ({size})" for name, size in self._sizes.items())
            raise DataError(
                f"{self._prepared.root}: has no split '{split}' with training: {training}; it has {available}"
            )
        self._split, self._rows = split, rows[split]
        self.strata = self._read_categories()
        if split == "train" and fraction < 1:
            subset = stratified_subset(self.strata, fraction, seed=fraction_seed)
            self._rows = tuple(self._rows[row] for row in subset)
            self.strata = self._read_categories()
        fields = _make_info(normals).fields
        self._columns = {name: SampleColumn(name, field) for name, field in fields.items()}
        if normals == "estimated":
            self._columns["normals"] = SampleColumn("points", fields["normals"], _estimate_normals)

    @cached_property
    def info(self) -> DataInfo:  # type: ignore[override]
        """Facts, fields and sizes; `class_counts` counts the points of each part in the samples that are used."""
        info = _make_info(self._normals)
        counts = np.zeros(len(info.facts["class_names"]), dtype=np.int64)
        for split, row in self._rows:
            counts += np.bincount(self._prepared.row(split, "label", row), minlength=len(counts))
        return DataInfo(
            facts={**info.facts, "class_counts": tuple(counts.tolist())},
            fields=info.fields,
            split_sizes=self._sizes | {self._split: len(self)},
            features=info.features,
            clouds=info.clouds,
        )

    @classmethod
    def expected_info(cls, *, normals: Normals = "none") -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        return _make_info(normals)

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to write the set in native form from either layout.

        Raises DataError for a source that is damaged or unknown, naming file and line or key, and for a target that
        contains something else.
        """
        layouts = published_counts()["layouts"]
        layout, root = find_layout(root, _match_layouts, inner=_INNER_FOLDERS, name="ShapeNetPart", layouts=layouts)
        parts, notes = (hdf5_parts(root), []) if layout == "hdf5" else text_parts(root)
        options = {} if layout == "hdf5" else {"lists": lists_digest(root)}
        about = {
            "up_axis": "y",
            "orientation": "y is up, as stored",
            "normalisation": _NORMALISATION,
            "class_names": list(part_names()),
            "category_names": [category.name for category in categories()],
            "notes": notes,
        }
        columns = make_columns(has_normals=layout == "text")
        return PreparationPlan(cls.set_name, layout, root, columns, tuple(parts), about, _summary, options)

    def _read_categories(self) -> np.ndarray:
        """Read the category of every sample (num_samples,) int64, read-only."""
        category_ids = np.array(
            [self._prepared.row(split, "category", row) for split, row in self._rows], dtype=np.int64
        )
        category_ids.flags.writeable = False
        return category_ids


def _estimate_normals(points: np.ndarray, describe: Callable[[], str]) -> np.ndarray:
    return estimated_normals(np.array(points), where=describe())


def _check_normals(normals: Normals, prepared: PreparedSet) -> Normals:
    """Return `normals` unchanged. Raises DataError for `file` if none are stored."""
    if normals == "file" and "normals" not in prepared.manifest["columns"]:
        raise DataError(
            f"{prepared.root}: holds no normals (layout {prepared.manifest['layout']}); set normals: estimated or "
            "none, or prepare the set from the text release, which has them"
        )
    return normals


def _make_info(normals: Normals) -> DataInfo:
    """Build the DataInfo that does not depend on how the set was prepared, without counts."""
    all_categories = categories()
    features = () if normals == "none" else ("normals",)
    fields = {
        "points": Field("points 3", "float32", "radius of the shape", _FRAME, -1.0, 1.0, "concatenate"),
        "normals": Field("points 3", "float32", "unit vector", _FRAME, -1.0, 1.0, "concatenate"),
        "label": Field("points", "int64", "part", "", 0, all_categories[-1].parts[-1], "concatenate"),
        "category": Field("", "int64", "category", "", 0, len(all_categories) - 1),
    }
    return DataInfo(
        facts={
            "num_classes": len(part_names()),
            "class_names": part_names(),
            "in_channels": 3 + 3 * len(features),
            "up_axis": "y",
            "num_categories": len(all_categories),
            "category_names": tuple(category.name for category in all_categories),
            "parts_of_category": tuple(category.parts for category in all_categories),
        },
        fields={name: fields[name] for name in ("points", *features, "label", "category")},
        features=features,
        clouds=CloudInputSpec(unit_sphere="applied", estimates_normals=normals == "estimated"),
    )


def _match_layouts(folder: Path) -> list[tuple[str, Path]]:
    """List the layouts (name, path) that the contents of a folder match."""
    matches = []
    if any(hdf5_files(folder, split) for split in SPLITS):
        matches.append(("hdf5", folder))
    if (folder / CATEGORIES_FILE).is_file() or (folder / LISTS_FOLDER).is_dir():
        matches.append(("text", folder))
    return matches


def _summary(prepared: PreparedSet) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    all_categories, splits = categories(), {}
    for split in prepared.splits:
        lengths = np.diff(prepared.offsets(split))
        counts = np.bincount(prepared.array(split, "category"), minlength=len(all_categories))
        splits[split] = {
            "num_rows": len(lengths),
            "category_counts": counts.tolist(),
            "class_counts": np.bincount(prepared.array(split, "label"), minlength=len(part_names())).tolist(),
            "points_per_shape": [int(lengths.min()), int(lengths.max())],
        }
    return {
        "splits": splits,
        "differences": [*_differences(splits), *prepared.manifest["notes"]],
    }


def _differences(splits: dict[str, dict[str, Any]]) -> list[str]:
    """List the numbers of shapes that differ from the published ones."""
    facts = published_counts()
    pairs = [(split, splits.get(split, {}).get("num_rows", 0), size) for split, size in facts["split_sizes"].items()]
    for index, (name, category_facts) in enumerate(facts["categories"].items()):
        counts = {split: split_facts["category_counts"][index] for split, split_facts in splits.items()}
        pairs += [
            (name, sum(counts.values()), category_facts["shapes"]),
            (f"test/{name}", counts.get("test", 0), category_facts["test"]),
        ]
    return [
        f"{subject}: {count} shapes, published {published}" for subject, count, published in pairs if count != published
    ]
