"""ScanObjectNN: objects cut out of scans of rooms, with or without background points, in all variants."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sightline import registry
from sightline.arguments import Count, PositiveFraction, Seed
from sightline.data.clouds.cloud_normals import Normals
from sightline.data.clouds.labelled_clouds import LabelledClouds, promised_info
from sightline.data.clouds.scanobjectnn_files import (
    SPLITS,
    Division,
    VariantName,
    find_variant_files,
    make_columns,
    published_counts,
    variant_parts,
)
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import PreparedSet, open_prepared, prepare_command
from sightline.data.store.prepared_writer import (
    PreparationPlan,
    Progress,
    find_duplicates,
    normalize_to_unit_sphere,
    write_prepared_set,
)
from sightline.errors import DataError
from sightline.types import Batch, CloudInputSpec, DataInfo, Field, SampleKey

__all__ = ["ScanObjectNN"]

_NUM_POINTS = 2048
_FRAME = "y is up, as stored"
_NORMALISED = "by prepare: about the mean of the points, background among them, the farthest at distance 1"
_AS_STORED = "none: metres, as stored"


@registry.data.add("scanobjectnn")
class ScanObjectNN(LabelledClouds):
    """ScanObjectNN: real scans of objects of 15 classes, in a variant of the benchmark.

    `variant` is what the folder must have been prepared as. `background` keeps the points of the background, drops them
    (the object's points then come again from the first one until there are `num_points`, about their own mean), or
    tells of them by a field `part`: 1 for the object, 0 for the background. `num_points` takes the first stored points,
    `normals` adds `estimated` ones, `fraction` trains on that share of every class, seeded by `fraction_seed`.
    Source: Uy et al. 2019, "Revisiting Point Cloud Classification".
    """

    set_name = "scanobjectnn"
    readable_sets = ("scanobjectnn",)

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
        _assert_variant(prepared_path, variant)
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
    def info(self) -> DataInfo:
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
        """Expected DataInfo before preparation, without counts."""
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
        rows = self._rows[index]
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

    def _unit_sphere(self, manifest: Mapping[str, Any]) -> Literal["applied", "promised", "none"]:
        return "applied" if manifest["normalisation"] == _NORMALISED else "none"

    @classmethod
    def prepare(
        cls,
        *,
        source: Path,
        target: Path,
        name: str,
        progress: Progress,
        variant: VariantName,
        division: Division = "main_split",
        unit_sphere: bool = True,
    ) -> dict[str, Any]:
        """Write one variant in native form; return the manifest with `root` and `outcome`.

        `division` is the split into training and test; `unit_sphere: false` keeps coordinates in metres. Raises
        DataError for files that are missing or damaged, naming file, key and index, and for a target that contains
        something else. A killed run is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        files = find_variant_files(source, variant, division)
        parts, num_points = variant_parts(files, to_sphere=unit_sphere)
        options = {"variant": variant, "division": division, "unit_sphere": unit_sphere}
        about = {
            "up_axis": "y",
            "orientation": _FRAME,
            "normalisation": _NORMALISED if unit_sphere else _AS_STORED,
            **({} if unit_sphere else {"unit": "metre"}),
            "class_names": published_counts()["classes"],
        }
        plan = PreparationPlan(
            name,
            "hdf5",
            files["train"].parent,
            make_columns(num_points),
            tuple(parts),
            about,
            lambda prepared: _summary(prepared, variant, division),
            options,
        )
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """Summary of a prepared folder for `data info`."""
        manifest = open_prepared(root, set_names=cls.readable_sets).manifest
        variant = manifest["options"]["variant"]
        return {
            "variant": f"{variant} ({published_counts()['variants'][variant]['what']})",
            "division": manifest["options"]["division"],
            "background_share": {
                split: float(facts["background_share"]) for split, facts in manifest["splits"].items()
            },
            **super().describe(root),
        }

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        facts = published_counts()
        return {
            "set": cls.set_name,
            "classes": facts["classes"],
            "variants": {name: variant_facts["what"] for name, variant_facts in facts["variants"].items()},
            "published": {
                name: variant_facts["published"]
                for name, variant_facts in facts["variants"].items()
                if variant_facts["published"]
            },
            **{key: facts[key] for key in ("layouts", "home", "terms", "cite")},
            "prepare": prepare_command(cls.set_name, "DIR", "variant=NAME"),
        }


def _assert_variant(root: Path, variant: str) -> None:
    """Raise DataError if the folder was prepared as another variant than the config names."""
    options = f"variant={variant}"
    stored = open_prepared(root, set_names=("scanobjectnn",), options=options).manifest["options"]["variant"]
    if stored != variant:
        raise DataError(
            f"{root}: was prepared as the variant '{stored}', the config gives '{variant}'; set variant: {stored}, or "
            f"prepare that one: {prepare_command('scanobjectnn', 'DIR', options)}"
        )


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
    return {"splits": splits, "differences": differences, "duplicates": find_duplicates(prepared, "points")}
