"""ScanObjectNN: objects cut out of scans of rooms, with or without background points, in all variants.

HDF5 files of ScanObjectNN: their names by variant, and their rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from sightline.areas.clouds.sets.labelled_clouds import LabelledClouds, check_labelled_clouds, promised_info
from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFraction, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import Batch, CloudInputSpec, DataInfo, Field, SampleKey, UnitSphere
from sightline.store.cloud_preparation import Normals, check_finite, check_labels
from sightline.store.files.array_files import check_array
from sightline.store.files.hdf5_files import open_hdf5
from sightline.store.files.text_tables import read_text
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet, prepare_command, prepared_root, summarise_folder
from sightline.store.prepared.prepared_writer import (
    ColumnSpec,
    PreparationPlan,
    SampleRow,
    Shard,
    assert_extent,
    normalize_to_unit_sphere,
)

SPLITS = {"train": "training", "test": "test"}
"""Our name of each split, with the word in the release's file names."""
VariantName: TypeAlias = Literal[
    "obj_bg",
    "obj_only",
    "pb_t25",
    "pb_t25_nobg",
    "pb_t25_r",
    "pb_t25_r_nobg",
    "pb_t50_r",
    "pb_t50_r_nobg",
    "pb_t50_rs",
    "pb_t50_rs_nobg",
]
"""Names of the variants as in the paper; `_nobg` is the same variant without background."""
Division: TypeAlias = Literal["main_split", "split1", "split2", "split3", "split4"]
"""Division into training and test: the official one of published figures, or one of four others."""
_INNER_FOLDER = "h5_files"
_NAMES_FILES = ("shape_names_ext.txt", "shape_names.txt")
_BACKGROUND = -1
"""Value in `mask` of a background point."""


def published_counts() -> dict[str, Any]:
    """Read the published facts: classes in the order of their labels, variants, counts, terms of use."""
    return json.loads(Path(__file__).with_name("scanobjectnn.json").read_text(encoding="utf-8"))


def make_columns(num_points: int) -> dict[str, ColumnSpec]:
    """Return the columns of a row: points, object mask (1 object, 0 background) and label."""
    return {
        "points": ColumnSpec((num_points, 3), "float32"),
        "is_object": ColumnSpec((num_points,), "uint8"),
        "label": ColumnSpec((), "int64"),
    }


def find_variant_files(root: Path, variant: VariantName, division: Division) -> dict[str, Path]:
    """Find the file of each split of a variant; `root` is `h5_files` or its parent folder.

    Raises DataError naming the missing file and the contents of the folder.
    """
    facts = published_counts()["variants"][variant]
    folder_name = division if facts["has_background"] else f"{division}_nobg"
    if not (root / folder_name).is_dir() and (root / _INNER_FOLDER).is_dir():
        root = root / _INNER_FOLDER
    folder = root / folder_name
    if not folder.is_dir():
        raise DataError(
            f"{folder}: is missing, '{variant}' is read from it; {root} holds {summarise_folder(root)}: "
            "give h5_files of the "
            "release, or another variant"
        )
    files = {split: folder / f"{file_word}_{facts['stem']}.h5" for split, file_word in SPLITS.items()}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: is missing, it is of '{variant}'; {folder} holds {summarise_folder(folder)}: "
            "unpack the release "
            "again, or give another variant"
        )
    _check_class_order(folder)
    return files


def variant_parts(files: dict[str, Path], *, to_sphere: bool) -> tuple[list[Shard], int]:
    """Make one shard per split; return them with the points per object. Raises DataError with file and key."""
    num_classes = len(published_counts()["classes"])
    (num_train, num_points), (num_test, test_points) = (_scan(files[split], num_classes) for split in SPLITS)
    if num_points != test_points:
        raise DataError(
            f"{files['test']}: 'data' has {test_points} points an object, {files['train'].name} has "
            f"{num_points}; do not mix releases in one folder"
        )
    parts = [
        Shard(split, path.name, num_objects, (path,), partial(_iterate_rows, path, to_sphere))
        for (split, path), num_objects in zip(files.items(), (num_train, num_test), strict=True)
    ]
    return parts, num_points


def _check_class_order(folder: Path) -> None:
    """Raise DataError if a list of class names in the folder, or up to two above it, has another order than ours."""
    classes = published_counts()["classes"]
    for path in (parent / name for parent in (folder, *folder.parents[:2]) for name in _NAMES_FILES):
        if not path.is_file():
            continue
        listed_names = read_text(path).split()
        if listed_names == classes:
            return
        line = next(
            (i for i, (a, b) in enumerate(zip(listed_names, classes, strict=False)) if a != b),
            min(len(listed_names), len(classes)),
        )
        actual = f"'{listed_names[line]}'" if line < len(listed_names) else "nothing"
        expected = f"'{classes[line]}'" if line < len(classes) else "nothing"
        raise DataError(
            f"{path}:{line + 1}: has {actual} where the release has {expected} (label {line}): labels in another order "
            "would be read as other classes; get the release, or mend the list"
        )


def _scan(path: Path, num_classes: int) -> tuple[int, int]:
    """Read the numbers of objects and points of a file. Raises DataError for a wrong key, or a label out of range."""
    with open_hdf5(path, what="a file of ScanObjectNN") as file:
        data, label, mask = (file.array(key) for key in ("data", "label", "mask"))
        check_labelled_clouds(data, label, where=str(path), noun="objects", label_shape="({},)")
        needed = f"signed numbers {data.shape[:2]} are needed, {_BACKGROUND} for the background"
        check_array(mask, where=f"{path}: 'mask'", kinds="if", shapes=[data.shape[:2]], needed=needed)
        check_labels(label[...].reshape(-1), num_classes, where=f"{path}: label")
        return len(data), data.shape[1]


def _iterate_rows(path: Path, to_sphere: bool) -> Iterator[SampleRow]:
    with open_hdf5(path) as file:
        clouds, labels, masks = (file.array(key)[...] for key in ("data", "label", "mask"))
    labels = labels.reshape(-1)

    def row(index: int) -> SampleRow:
        where, cloud = f"{path}: object {index}", clouds[index]
        check_finite(cloud, where=f"{where}: data")
        assert_extent(cloud, where=where)
        points = normalize_to_unit_sphere(cloud, where=where) if to_sphere else cloud
        values = {"points": points, "is_object": masks[index] != _BACKGROUND, "label": labels[index]}
        return SampleRow(f"{path.stem}/{index:05d}", where, values)

    return map(row, range(len(clouds)))


_NUM_POINTS = 2048
_FRAME = "y is up, as stored"
_NORMALISED = "by prepare: about the mean of the points, background among them, the farthest at distance 1"
_AS_STORED = "none: metres, as stored"


def _list_card_entries() -> dict[str, Any]:
    facts = published_counts()
    variants = facts["variants"].items()
    return {
        "classes": facts["classes"],
        "variants": {name: variant["what"] for name, variant in variants},
        "published": {name: variant["published"] for name, variant in variants if variant["published"]},
        "layouts": facts["layouts"],
    }


@registry.data.add("scanobjectnn")
class ScanObjectNN(LabelledClouds):
    """ScanObjectNN: real scans of objects of 15 classes, in a variant of the benchmark.

    `variant` is what the folder must have been prepared as. `background` keeps the points of the background, drops them
    (the object's points then come again from the first one until there are `num_points`, about their own mean), or
    marks them in a field `part`: 1 for the object, 0 for the background. `num_points` takes the first stored points,
    `normals` adds `estimated` ones, `fraction` trains on that share of every class, seeded by `fraction_seed`.
    Source: Uy et al. 2019, "Revisiting Point Cloud Classification".
    """

    spec = SetSpec(name="scanobjectnn", what="the release of ScanObjectNN (h5_files)", entries=_list_card_entries)

    def __init__(
        self,
        *,
        split: str,
        variant: VariantName = "pb_t50_rs",
        root: str | None = None,
        background: Literal["keep", "drop", "tell"] = "keep",
        num_points: Count | None = None,
        normals: Literal["none", "estimated"] = "none",
        fraction: PositiveFraction = 1.0,
        fraction_seed: Seed = 0,
    ) -> None:
        prepared_path = prepared_root(root, f"scanobjectnn_{variant}")
        self._assert_variant(prepared_path, variant)
        self.background = background
        normals_source: Normals = normals
        super().__init__(
            split=split,
            root=str(prepared_path),
            num_points=num_points,
            normals=normals_source,
            fraction=fraction,
            fraction_seed=fraction_seed,
        )

    @cached_property
    def info(self) -> DataInfo:  # type: ignore[override]
        """Facts and fields; `background: tell` adds the field `part`."""
        info = super().info
        if self.background != "tell":
            return info
        part = Field("points", "int64", "1 object, 0 background", "", 0, 1)
        return dataclasses.replace(info, fields={**info.fields, "part": part})

    @classmethod
    def expected_info(
        cls, *, num_points: int | None = None, normals: Literal["none", "estimated"] = "none"
    ) -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        form = CloudInputSpec(num_points, _NUM_POINTS, "applied", estimates_normals=normals == "estimated")
        classes = published_counts()["classes"]
        return promised_info(classes, up_axis="y", orientation=_FRAME, clouds=form, has_normals=normals == "estimated")

    def get_batch(self, keys: Sequence[SampleKey]) -> Batch:
        """Read and stack samples by index; `background: tell` adds `part` (B, N)."""
        batch = super().get_batch(keys)
        if self.background == "tell":
            batch["part"] = torch.from_numpy(self._read("is_object", batch["sample_index"].numpy()).astype(np.int64))
        return batch

    def _read(self, name: str, index: np.ndarray) -> np.ndarray:
        if self.background != "drop" or name != "points":
            return super()._read(name, index)
        rows = self._row_indices[index]
        clouds = self._prepared.array(self._split, "points")[rows]
        is_object = self._prepared.array(self._split, "is_object")[rows] > 0
        return np.stack(
            [
                self._select_object_points(cloud[mask], i)
                for cloud, mask, i in zip(clouds, is_object, index, strict=True)
            ]
        )

    def _select_object_points(self, points: np.ndarray, index: int) -> np.ndarray:
        """Select `num_points` points (num_points, 3) of an object, cyclically if it has fewer."""
        if not len(points):
            raise DataError(f"{self._describe_sample(index)}: has no point of the object; set background: keep")
        object_points = points[np.arange(self.num_points) % len(points)]
        is_normalised = self._prepared.manifest["normalisation"] == _NORMALISED
        return (
            normalize_to_unit_sphere(object_points, where=self._describe_sample(index))
            if is_normalised
            else object_points
        )

    def _unit_sphere(self, manifest: Mapping[str, Any]) -> UnitSphere:
        return "applied" if manifest["normalisation"] == _NORMALISED else "none"

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        variant: VariantName,
        division: Division = "main_split",
        unit_sphere: bool = True,
    ) -> PreparationPlan:
        """Plan to write one variant in native form.

        `division` is the split into training and test; `unit_sphere: false` keeps coordinates in metres. Raises
        DataError for files that are missing or damaged, naming file, key and index, and for a target that contains
        something else.
        """
        files = find_variant_files(root, variant, division)
        parts, num_points = variant_parts(files, to_sphere=unit_sphere)
        options = {"variant": variant, "division": division, "unit_sphere": unit_sphere}
        about = {
            "up_axis": "y",
            "orientation": _FRAME,
            "normalisation": _NORMALISED if unit_sphere else _AS_STORED,
            **({} if unit_sphere else {"unit": "metre"}),
            "class_names": published_counts()["classes"],
        }
        return PreparationPlan(
            cls.set_name,
            "hdf5",
            files["train"].parent,
            make_columns(num_points),
            tuple(parts),
            about,
            lambda prepared: _summary(prepared, variant, division),
            options,
        )

    @classmethod
    def _assert_variant(cls, root: Path, variant: str) -> None:
        """Raise DataError if the folder was prepared as another variant than the config names."""
        options = f"variant={variant}"
        stored = cls.open_folder(root, options=options).manifest["options"]["variant"]
        if stored != variant:
            raise DataError(
                f"{root}: was prepared as the variant '{stored}', the config gives '{variant}'; set variant: {stored}, "
                f"or prepare that one: {prepare_command(cls.set_name, 'DIR', options)}"
            )

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """Summary of a prepared folder for `data info`."""
        manifest = cls.open_folder(root).manifest
        variant = manifest["options"]["variant"]
        return {
            "variant": f"{variant} ({published_counts()['variants'][variant]['what']})",
            "division": manifest["options"]["division"],
            "background_share": {
                split: float(facts["background_share"]) for split, facts in manifest["splits"].items()
            },
            **super().describe(root),
        }


def _summary(prepared: PreparedSet, variant: str, division: str) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    facts, splits = published_counts()["variants"][variant], {}
    names, differences = published_counts()["classes"], []
    for split in SPLITS:
        counts = np.bincount(prepared.array(split, "label"), minlength=len(names)).tolist()
        background_share = 1 - float(prepared.array(split, "is_object").mean())
        splits[split] = {"num_rows": sum(counts), "class_counts": counts, "background_share": background_share}
        published = facts["published"].get(split)
        if division == "main_split" and published is not None and sum(counts) != published:
            differences.append(f"{split}: {sum(counts)} objects, published {published}")
        differences += [f"{split}/{name}: no object" for name, count in zip(names, counts, strict=True) if not count]
        if facts["has_background"] == (background_share == 0):
            differences.append(
                f"{split}: {background_share:.1%} of the points are background by the mask, '{variant}' is the variant "
                f"{'with' if facts['has_background'] else 'without'} it: is it the right folder?"
            )
    return {"splits": splits, "differences": differences}
