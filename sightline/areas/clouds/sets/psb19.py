"""Princeton Segmentation Benchmark as a classification set: 380 shapes of 19 categories, with normals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.clouds.sets.labelled_clouds import LabelledClouds, count_labels
from sightline.contract import registry
from sightline.store.files.array_files import check_array, npz_array
from sightline.store.files.input_files import download_again
from sightline.store.loading.stratified import stratified_split
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import ColumnSpec, PreparationPlan, SampleRow, Shard

_KEYS = {"xyz": "f", "normal": "f", "category": "iu", "model_id": "iu", "categories": "U"}
_TEST_SHARE = 0.3
_SPLIT_SEED = 0
_SPLIT = "of every category 14 of 20 shapes train and 6 test, by a permutation of seed 0 (hold_out, share 0.3)"


@registry.data.add("psb19")
class Psb19(LabelledClouds):
    """The 19 categories of the Princeton Segmentation Benchmark, 20 shapes each: 266 to train on and 114 to test.

    The split is this project's own, seeded and stratified. `num_points` takes the first of 2,048 points of each cloud;
    `normals` adds the stored (`file`) or `estimated` ones; `fraction` trains on that share of every category, seeded
    by `fraction_seed`. Shapes lie mostly y up. Source: Chen et al. 2009, "A Benchmark for 3D Mesh Segmentation".
    """

    spec = SetSpec(name="psb19", what="the archive psb19_2048.npz", kind="file")

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to write the set in native form from one NPZ archive.

        Raises DataError for an archive that is damaged or contains something else, naming the entry.
        """
        arrays = _read_archive(root)
        category_ids = np.unique(arrays["category"])
        labels = np.searchsorted(category_ids, arrays["category"])
        train, test = stratified_split(len(labels), labels, share=_TEST_SHARE, seed=_SPLIT_SEED)
        num_points = arrays["xyz"].shape[1]
        vectors = {name: ColumnSpec((num_points, 3), "float32") for name in ("points", "normals")}
        about = {
            "up_axis": "y",
            "orientation": "y up in most categories, as the files have it",
            "normalisation": "stored in the unit sphere",
            "class_names": [str(name) for name in arrays["categories"][category_ids]],
            "split": _SPLIT,
        }
        parts = (_make_shard("train", root, train, labels), _make_shard("test", root, test, labels))
        columns = {**vectors, "label": ColumnSpec((), "int64")}
        return PreparationPlan(cls.set_name, "npz", root, columns, parts, about, _summary)


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """Read the required entries of the archive. Raises DataError naming one of the wrong kind or size."""
    arrays = {key: npz_array(path, key, needed=", ".join(_KEYS)) for key in _KEYS}
    size = len(arrays["category"]) if arrays["category"].ndim else 0
    clouds = arrays["xyz"].shape
    shapes = {"xyz": (size, *clouds[1:2], 3), "normal": clouds, "category": (size,), "model_id": (size,)}
    shapes["categories"] = arrays["categories"].shape[:1]
    for key, kinds in _KEYS.items():
        needed = f"{shapes[key]} is needed; download the file again"
        check_array(arrays[key], where=f"{path}: {key}", kinds=kinds, shapes=[shapes[key]], needed=needed)
    if arrays["category"].min() < 0 or arrays["category"].max() >= len(arrays["categories"]):
        raise download_again(
            f"{path}: category runs to {arrays['category'].max()}, categories names {len(arrays['categories'])}"
        )
    return arrays


def _make_shard(split: str, path: Path, rows: np.ndarray, labels: np.ndarray) -> Shard:
    """Make the shard of one split: the samples `rows` of the archive."""

    def read() -> Iterator[SampleRow]:
        arrays = _read_archive(path)

        def read_row(row: int) -> SampleRow:
            name = f"{arrays['categories'][arrays['category'][row]]}_{arrays['model_id'][row]:03d}"
            values = {"points": arrays["xyz"][row], "normals": arrays["normal"][row], "label": labels[row]}
            return SampleRow(name, f"{path}: xyz[{row}]", values)

        return map(read_row, rows.tolist())

    return Shard(split, f"{path.name}: {split}", len(rows), (path,), read)


def _summary(prepared: PreparedSet) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    splits = count_labels(prepared, len(prepared.manifest["class_names"]))
    return {"splits": splits, "differences": []}
