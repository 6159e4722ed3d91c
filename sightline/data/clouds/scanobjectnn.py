"""ScanObjectNN: objects cut out of scans of rooms, with or without what stands near them, in all variants."""

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
        place = prepared_root(root, f"scanobjectnn_{variant}")
        _assert_variant(place, variant)
        self.background = background
        estimated: Normals = normals
        super().__init__(
            split=split,
            root=str(place),
            num_points=num_points,
            normals=estimated,
            fraction=fraction,
            fraction_seed=fraction_seed,
        )

    @cached_property
    def info(self) -> DataInfo:
        """As of every set of labelled clouds; with `background: tell` also `part`."""
        info = super().info
        if self.background != "tell":
            return info
        part = Field("points", "int64", "1 object, 0 background", "", 0, 1)
        return dataclasses.replace(info, fields={**info.fields, "part": part})

    @classmethod
    def expected_info(
        cls, *, num_points: int | None = None, normals: Literal["none", "estimated"] = "none"
    ) -> DataInfo:
        """What `info` states of a set in the unit sphere, counts and sizes left out, before it is there."""
        form = CloudInputSpec(num_points, _NUM_POINTS, "applied", estimates_normals=normals == "estimated")
        classes = published_counts()["classes"]
        return promised_info(classes, up_axis="y", orientation=_FRAME, clouds=form, has_normals=normals == "estimated")

    def get_batch(self, keys: Sequence[SampleKey]) -> Batch:
        """As of every set of labelled clouds, and `part` (B, N) where it is asked for."""
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
            [self._alone(cloud[kept], at) for cloud, kept, at in zip(clouds, is_object, index, strict=True)]
        )

    def _alone(self, points: np.ndarray, index: int) -> np.ndarray:
        """`num_points` points of an object, from the first one again where it has fewer."""
        if not len(points):
            raise DataError(f"{self._told(index)}: has no point of the object; set background: keep")
        chosen = points[np.arange(self.num_points) % len(points)]
        is_normalised = self._prepared.manifest["normalisation"] == _NORMALISED
        return normalize_to_unit_sphere(chosen, where=self._told(index)) if is_normalised else chosen

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
        """Write one variant in native form; returns the manifest with `root` and `outcome`.

        `division` is the split into training and test; `unit_sphere: false` leaves coordinates in metres. Raises
        DataError for files that are missing or damaged, naming file, key and index, and for a target that holds
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
        """What a prepared folder holds: variant, counts, share of background, normalisation, where it came from."""
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
        """What the set is, its variants, how it is laid out, where it is to be had, and the terms of use."""
        facts = published_counts()
        return {
            "set": cls.set_name,
            "classes": facts["classes"],
            "variants": {name: each["what"] for name, each in facts["variants"].items()},
            "published": {name: each["published"] for name, each in facts["variants"].items() if each["published"]},
            **{key: facts[key] for key in ("layouts", "home", "terms", "cite")},
            "prepare": prepare_command(cls.set_name, "DIR", "variant=NAME"),
        }


def _assert_variant(place: Path, variant: str) -> None:
    """Raises DataError where the folder was prepared as another variant than the config names."""
    options = f"variant={variant}"
    held = open_prepared(place, set_names=("scanobjectnn",), options=options).manifest["options"]["variant"]
    if held != variant:
        raise DataError(
            f"{place}: was prepared as the variant '{held}', the config gives '{variant}'; set variant: {held}, or "
            f"prepare that one: {prepare_command('scanobjectnn', 'DIR', options)}"
        )


def _summary(prepared: PreparedSet, variant: str, division: str) -> dict[str, Any]:
    """What the manifest says beyond the plan: counts, how they differ from the published ones, duplicates."""
    facts, splits = published_counts()["variants"][variant], {}
    names, differences = published_counts()["classes"], []
    for split in SPLITS:
        counts = np.bincount(prepared.array(split, "label"), minlength=len(names)).tolist()
        share = 1 - float(prepared.array(split, "is_object").mean())
        splits[split] = {"num_rows": sum(counts), "class_counts": counts, "background_share": share}
        wanted = facts["published"].get(split)
        if division == "main_split" and wanted is not None and sum(counts) != wanted:
            differences.append(f"{split}: {sum(counts)} objects, published {wanted}")
        differences += [f"{split}/{name}: no object" for name, count in zip(names, counts, strict=True) if not count]
        if facts["has_background"] == (share == 0):
            differences.append(
                f"{split}: {share:.1%} of the points are background by the mask, '{variant}' is the variant "
                f"{'with' if facts['has_background'] else 'without'} it: is it the right folder?"
            )
    return {"splits": splits, "differences": differences, "duplicates": find_duplicates(prepared, "points")}
