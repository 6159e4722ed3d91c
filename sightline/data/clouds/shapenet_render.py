"""ShapeNetRender: clouds of ShapeNet with 24 rendered images per object, for cross-modal learning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from sightline import registry
from sightline.arguments import Count, PositiveFraction, Seed
from sightline.data.clouds.labelled_clouds import LabelledClouds, promised_info
from sightline.data.clouds.shapenet_render_files import Pairing, PairReader, find_pairs, pair_parts, published_counts
from sightline.data.store.prepared_set import PreparedSet, open_prepared, prepare_command
from sightline.data.store.prepared_writer import PreparationPlan, Progress, find_duplicates, write_prepared_set
from sightline.data.store.views import StoredViews, Views, image_field
from sightline.geometry.rendering import Background
from sightline.types import CloudInputSpec, DataInfo

__all__ = ["ShapeNetRender"]

_NUM_POINTS = 2048
_FRAME = "y is up, as stored"
_NORMALISATION = "by prepare: about the mean of the points, the farthest at distance 1"


@registry.data.add("shapenet_render")
class ShapeNetRender(LabelledClouds):
    """ShapeNetRender: 43,783 clouds of 13 kinds of objects, each with 24 pictures, all of them to train on.

    A sample is a cloud and one of its pictures (`image`), drawn by seed, epoch and index; `label` is the kind, for
    stratified splits and for looking at what was learnt. `background` is what the pictures were laid on by `prepare`.
    `num_points` takes the first stored points, `fraction` that share of every kind, seeded by `fraction_seed`.
    Source: Chang et al. 2015, "ShapeNet"; Choy et al. 2016, "3D-R2N2" (pictures); Afham et al. 2022, "CrossPoint".
    """

    set_name = "shapenet_render"
    readable_sets = ("shapenet_render",)

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        background: Background = "black",
        num_points: Count | None = None,
        fraction: PositiveFraction = 1.0,
        fraction_seed: Seed = 0,
    ) -> None:
        super().__init__(split=split, root=root, num_points=num_points, fraction=fraction, fraction_seed=fraction_seed)
        names = [self.name_of(index) for index in range(len(self))]
        self._pictures = StoredViews(Views(self._prepared), names, set_name=self.set_name, background=background)

    def _unit_sphere(self, manifest: Mapping[str, Any]) -> Literal["applied", "promised", "none"]:
        return "applied"

    @classmethod
    def expected_info(cls, *, num_points: int | None = None, background: Background = "black") -> DataInfo:
        """Expected DataInfo before preparation, without counts."""
        names = [synset_facts["name"] for synset_facts in published_counts()["synsets"].values()]
        form = CloudInputSpec(num_points, _NUM_POINTS, "applied")
        return promised_info(names, up_axis="y", orientation=_FRAME, clouds=form, image=image_field(background))

    @classmethod
    def prepare(
        cls,
        *,
        source: Path,
        target: Path,
        name: str,
        progress: Progress,
        size_px: Annotated[int, Ge(8), Le(512)] = 96,
        background: Background = "black",
        broken: Literal["refuse", "leave_out"] = "refuse",
    ) -> dict[str, Any]:
        """Write all pairs in native form; return the manifest with `root` and `outcome`.

        Pictures are stored as bytes, `size_px` wide and high on a `background`: 43,783 objects need 29 GB at 96 pixels,
        59 GB at the 137 of the release. Raises DataError if one of the two folders is missing or nothing matches, for a
        broken file (`broken: leave_out` leaves out objects with truncated files), and for a target that contains
        something else. A killed run is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root, pairing = find_pairs(source, broken=broken, progress=progress)
        reader = PairReader.from_first_cloud(pairing, size_px=size_px, background=background)
        synsets = published_counts()["synsets"]
        about = {
            "up_axis": "y",
            "orientation": _FRAME,
            "normalisation": _NORMALISATION,
            "class_names": [synset_facts["name"] for synset_facts in synsets.values()],
            "background": background,
            "pairs": {f"{synset} {synsets[synset]['name']}": counts for synset, counts in pairing.counts.items()},
            "left_out": pairing.describe(),
        }
        options = {"size_px": size_px, "background": background, "broken": broken}
        plan = PreparationPlan(
            name,
            "pairs",
            root,
            reader.columns,
            tuple(pair_parts(pairing, reader)),
            about,
            lambda prepared: _summary(prepared, pairing),
            options,
        )
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """Summary of a prepared folder for `data info`."""
        views = Views(open_prepared(root, set_names=cls.readable_sets))
        manifest = views.manifest
        facts = {
            "pairs": {name: dict(counts) for name, counts in manifest["pairs"].items()},
            "left_out": manifest["left_out"],
            "pictures": f"{views.num_views} an object, {views.size_px} x {views.size_px} on {views.fixed_background}",
        }
        return {**super().describe(root), **facts}

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        facts = published_counts()
        return {
            "set": cls.set_name,
            "pairs": {synset_facts["name"]: synset_facts["pairs"] for synset_facts in facts["synsets"].values()},
            "views": facts["num_views"],
            **{key: facts[key] for key in ("layouts", "home", "terms", "cite")},
            "prepare": prepare_command(cls.set_name, "DIR", "[size_px=96] [background=black]"),
        }


def _summary(prepared: PreparedSet, pairing: Pairing) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    synsets = published_counts()["synsets"]
    counts = np.bincount(prepared.array("train", "label"), minlength=len(synsets)).tolist()
    differences = [
        f"{facts['name']} ({synset}): {count} pairs, published {facts['pairs']}"
        for (synset, facts), count in zip(synsets.items(), counts, strict=True)
        if count != facts["pairs"]
    ]
    published_total = sum(facts["pairs"] for facts in synsets.values())
    if sum(counts) != published_total:
        differences.insert(0, f"{sum(counts)} pairs, published {published_total}")
    return {
        "splits": {"train": {"num_rows": sum(counts), "class_counts": counts}},
        "differences": [*pairing.describe(), *differences],
        "duplicates": find_duplicates(prepared, "points"),
    }
