"""ShapeNetRender: clouds of ShapeNet with 24 rendered images per object, for cross-modal learning.

Clouds and renders of ShapeNet in two folder trees: pairing by name, missing halves and broken files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from sightline.areas.clouds.sets.labelled_clouds import LabelledClouds, promised_info
from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFraction, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import CloudInputSpec, DataInfo, UnitSphere
from sightline.ops.views.rendering import Background
from sightline.store.files.image_files import png_fault, read_view
from sightline.store.files.input_files import download_again, open_regular
from sightline.store.files.ply import read_ply
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet, summarise_folder
from sightline.store.prepared.prepared_writer import (
    ColumnSpec,
    PreparationPlan,
    Progress,
    SampleRow,
    Shard,
    normalize_to_unit_sphere,
)
from sightline.store.prepared.views import IMAGE, StoredViews, Views, image_field

CLOUDS, IMAGES = "ShapeNet", "ShapeNetRendering"
"""The two folders of the release: clouds and images."""
_MAX_NAMED = 10
_OBJECTS_PER_SHARD = 256
"""Objects per shard."""


def published_counts() -> dict[str, Any]:
    """Read the published facts: synsets with names and numbers of pairs, views, terms of use."""
    return json.loads(Path(__file__).with_name("shapenet_render.json").read_text(encoding="utf-8"))


class _Object(NamedTuple):
    """Cloud of an object with the folder of its images."""

    label: int
    synset: str
    identifier: str
    cloud: Path
    images: Path

    @property
    def name(self) -> str:
        return f"{self.synset}/{self.identifier}"

    def views(self, num_views: int) -> list[Path]:
        return [self.images / f"{view:02d}.png" for view in range(num_views)]


@dataclass
class Pairing:
    """Objects with cloud and images, sorted by synset and name; counts per synset, and everything that is left out.

    Every list of objects that are left out contains `synset/id`.
    """

    objects: list[_Object] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    clouds_alone: list[str] = field(default_factory=list)
    images_alone: list[str] = field(default_factory=list)
    too_few_views: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """Describe each kind of left-out object on one line: the number, and the first ten names."""
        kinds = (
            ("clouds have no images", self.clouds_alone),
            ("image folders have no cloud", self.images_alone),
            ("image folders lack views", self.too_few_views),
            ("objects have broken files", self.broken),
            ("folders are none of the 13 synsets", self.unknown),
        )
        return [f"{len(names)} {description}, left out: {_first(names)}" for description, names in kinds if names]


def find_pairs(root: Path, *, broken: Literal["refuse", "leave_out"], progress: Progress) -> Pairing:
    """Match clouds and images by synset and name.

    The beginning and the end of every file of a pair are checked, so that all truncated files are reported at once.
    Raises DataError if one of the two folders is missing or nothing matches, naming folders and contents; and, with
    `broken: refuse`, for broken files, naming the first ten and counting all.
    """
    _check_halves(root)
    pairing, faults = Pairing(), []
    facts = published_counts()
    for label, synset in enumerate(facts["synsets"]):
        objects = _pair_synset(root, synset, label, facts["num_views"], pairing)
        intact = []
        for item in objects:
            item_faults = [fault for path in (item.cloud, *item.views(facts["num_views"])) if (fault := _fault(path))]
            faults += item_faults
            if item_faults:
                pairing.broken.append(item.name)
            else:
                intact.append(item)
        pairing.counts[synset]["pairs"] = len(intact)
        pairing.objects += intact
        progress(label + 1, len(facts["synsets"]), f"synsets looked at, {len(pairing.objects)} pairs")
    pairing.unknown = sorted((_list_folders(root / CLOUDS) | _list_folders(root / IMAGES)) - set(facts["synsets"]))
    if faults and broken == "refuse":
        raise DataError(
            f"{root}: {len(faults)} files of {len(pairing.broken)} objects are broken: "
            f"{'; '.join(faults[:_MAX_NAMED])}{', ...' if len(faults) > _MAX_NAMED else ''}; download them again, or "
            "leave these objects out with broken=leave_out"
        )
    _assert_pairs(root, pairing)
    return pairing


def pair_parts(pairing: Pairing, reader: PairReader) -> list[Shard]:
    """List the shards of the pairs: up to 256 objects of one synset each."""
    parts = []
    for synset in pairing.counts:
        members = [item for item in pairing.objects if item.synset == synset]
        for start in range(0, len(members), _OBJECTS_PER_SHARD):
            shard_objects = tuple(members[start : start + _OBJECTS_PER_SHARD])
            files = tuple(path for item in shard_objects for path in (item.cloud, *item.views(reader.num_views)))
            title, num_images = f"{synset} from {start}", len(shard_objects) * reader.num_views
            parts.append(
                Shard("train", title, len(shard_objects), files, partial(map, reader.row, shard_objects), num_images)
            )
    return parts


@dataclass(frozen=True)
class PairReader:
    """Reader of a row: as many points as the first cloud has, and views of one size on one background."""

    num_points: int
    num_views: int
    size_px: int
    background: Background

    @classmethod
    def from_first_cloud(cls, pairing: Pairing, *, size_px: int, background: Background) -> PairReader:
        """Make the reader for the number of points of the first cloud. Raises DataError if it is unreadable."""
        first = _read_cloud(pairing.objects[0].cloud)
        return cls(len(first), published_counts()["num_views"], size_px, background)

    @property
    def columns(self) -> dict[str, ColumnSpec]:
        return {
            "points": ColumnSpec((self.num_points, 3), "float32"),
            IMAGE: ColumnSpec((self.size_px, self.size_px, 3), "uint8", is_ragged=True),
            "label": ColumnSpec((), "int64"),
        }

    def row(self, item: _Object) -> SampleRow:
        """Read the cloud, scaled to the unit sphere, and all views. Raises DataError naming an unreadable file."""
        points = _read_cloud(item.cloud)
        if len(points) != self.num_points:
            raise download_again(
                f"{item.cloud}: has {len(points)} points, the first cloud of the set has {self.num_points}"
            )
        views = [
            read_view(path, size_px=self.size_px, background=self.background) for path in item.views(self.num_views)
        ]
        values = {
            "points": normalize_to_unit_sphere(points, where=str(item.cloud)),
            IMAGE: np.stack(views),
            "label": item.label,
        }
        return SampleRow(item.name, str(item.cloud), values)


def _check_halves(root: Path) -> None:
    """Raise DataError if one of both halves is missing or has no matching files."""
    counts = {
        CLOUDS: sum(len(_list_clouds(root / CLOUDS / name)) for name in _list_folders(root / CLOUDS)),
        IMAGES: sum(len(_list_folders(root / IMAGES / name)) for name in _list_folders(root / IMAGES)),
    }
    shapes = {CLOUDS: "<synset>/<id>.ply", IMAGES: "<synset>/<id>/rendering/00.png"}
    nouns = {CLOUDS: "clouds", IMAGES: "image folders"}
    for half, other in ((CLOUDS, IMAGES), (IMAGES, CLOUDS)):
        if counts[half]:
            continue
        folder = root / half
        contents = f"holds {summarise_folder(folder)}, no {shapes[half]}" if folder.is_dir() else "is missing"
        raise DataError(
            f"{folder}: {contents}, and {root / other} has {counts[other]} {nouns[other]}; a pair needs both: put the "
            f"{nouns[half]} there (a link will do)"
        )


def _pair_synset(root: Path, synset: str, label: int, num_views: int, pairing: Pairing) -> list[_Object]:
    """List the objects of a synset with a cloud and all views; the others are noted in the pairing."""
    clouds, folders = _list_clouds(root / CLOUDS / synset), _list_folders(root / IMAGES / synset)
    expected = {f"{view:02d}.png" for view in range(num_views)}
    complete = []
    for identifier in sorted(clouds & folders):
        images = root / IMAGES / synset / identifier / "rendering"
        existing = expected & set(os.listdir(images)) if images.is_dir() else set()
        if existing == expected:
            cloud = root / CLOUDS / synset / f"{identifier}.ply"
            complete.append(_Object(label, synset, identifier, cloud, images))
        else:
            pairing.too_few_views.append(f"{synset}/{identifier} ({len(existing)} of {num_views})")
    pairing.clouds_alone += [f"{synset}/{identifier}" for identifier in sorted(clouds - folders)]
    pairing.images_alone += [f"{synset}/{identifier}" for identifier in sorted(folders - clouds)]
    pairing.counts[synset] = {"clouds": len(clouds), "image_folders": len(folders)}
    return complete


def _assert_pairs(root: Path, pairing: Pairing) -> None:
    if pairing.objects:
        return
    reasons = "; ".join(pairing.describe()) or "none of the 13 synsets is there"
    raise DataError(f"{root}: not one cloud has its images: {reasons}; both halves must have the same synsets and ids")


def _list_folders(folder: Path) -> set[str]:
    """Return the names of the folders in a folder; empty if it does not exist."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir()}


def _list_clouds(folder: Path) -> set[str]:
    """Return the names, without suffix, of the clouds in a folder; empty if it does not exist."""
    if not folder.is_dir():
        return set()
    return {name.removesuffix(".ply") for name in os.listdir(folder) if name.endswith(".ply")}


def _fault(path: Path) -> str:
    """Describe the fault that the beginning and the end of a file show; empty if there is none."""
    if path.suffix == ".png":
        return png_fault(path)
    with open_regular(path) as file:
        start = file.read(3)
    return "" if start == b"ply" else f"{path} ({'is empty' if not start else 'is not a PLY file'})"


def _read_cloud(path: Path) -> np.ndarray:
    """Read the vertices (N, 3) of a cloud. Raises DataError with file and line or byte."""
    vertex = read_ply(path).vertex
    missing = [axis for axis in "xyz" if axis not in vertex]
    if missing:
        raise download_again(f"{path}: its vertices have no {missing[0]}, they have {', '.join(vertex)}")
    points = np.stack([vertex[axis] for axis in "xyz"], axis=1, dtype=np.float64)
    if not np.isfinite(points).all():
        row, axis = np.argwhere(~np.isfinite(points))[0]
        raise download_again(f"{path}: vertex {row}: {'xyz'[axis]} is {points[row, axis]}")
    return points


def _first(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


_NUM_POINTS = 2048
_FRAME = "y is up, as stored"
_NORMALISATION = "by prepare: about the mean of the points, the farthest at distance 1"


def _list_card_entries() -> dict[str, Any]:
    facts = published_counts()
    pairs = {synset_facts["name"]: synset_facts["pairs"] for synset_facts in facts["synsets"].values()}
    return {"pairs": pairs, "views": facts["num_views"], "layouts": facts["layouts"]}


@registry.data.add("shapenet_render")
class ShapeNetRender(LabelledClouds):
    """ShapeNetRender: 43,783 clouds of 13 kinds of objects, each with 24 pictures, all of them to train on.

    A sample is a cloud and one of its pictures (`image`), drawn by seed, epoch and index; `label` is the kind, for
    stratified splits and for looking at what was learnt. `background` is what the pictures were laid on by `prepare`.
    `num_points` takes the first stored points, `fraction` that share of every kind, seeded by `fraction_seed`.
    Source: Chang et al. 2015, "ShapeNet"; Choy et al. 2016, "3D-R2N2" (pictures); Afham et al. 2022, "CrossPoint".
    """

    spec = SetSpec(name="shapenet_render", what=f"{CLOUDS} and {IMAGES}", entries=_list_card_entries)

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
        names = [self.sample_name(index) for index in range(len(self))]
        self._pictures = StoredViews(Views(self._prepared), names, set_name=self.set_name, background=background)

    def _unit_sphere(self, manifest: Mapping[str, Any]) -> UnitSphere:
        return "applied"

    @classmethod
    def expected_info(cls, *, num_points: int | None = None, background: Background = "black") -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        names = [synset_facts["name"] for synset_facts in published_counts()["synsets"].values()]
        form = CloudInputSpec(num_points, _NUM_POINTS, "applied")
        return promised_info(names, up_axis="y", orientation=_FRAME, clouds=form, image=image_field(background))

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        progress: Progress,
        size_px: Annotated[int, Ge(8), Le(512)] = 96,
        background: Background = "black",
        broken: Literal["refuse", "leave_out"] = "refuse",
    ) -> PreparationPlan:
        """Plan to write all pairs in native form.

        Pictures are stored as bytes, `size_px` wide and high on a `background`: 43,783 objects need 29 GB at 96 pixels,
        59 GB at the 137 of the release. Raises DataError if one of the two folders is missing or nothing matches, for a
        broken file (`broken: leave_out` leaves out objects with truncated files), and for a target that contains
        something else.
        """
        pairing = find_pairs(root, broken=broken, progress=progress)
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
        return PreparationPlan(
            cls.set_name,
            "pairs",
            root,
            reader.columns,
            tuple(pair_parts(pairing, reader)),
            about,
            lambda prepared: _summary(prepared, pairing),
            options,
        )

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """Summary of a prepared folder for `data info`."""
        views = Views(cls.open_folder(root))
        manifest = views.manifest
        facts = {
            "pairs": {name: dict(counts) for name, counts in manifest["pairs"].items()},
            "left_out": manifest["left_out"],
            "pictures": f"{views.num_views} an object, {views.size_px} x {views.size_px} on {views.fixed_background}",
        }
        return {**super().describe(root), **facts}


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
    }
