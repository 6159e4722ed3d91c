"""Clouds and renders of ShapeNet in two trees: who is paired with whom, and what is missing or broken."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.data.files.input_files import open_regular
from sightline.data.files.ply import read_ply
from sightline.data.files.png_views import png_fault, read_view
from sightline.data.store.prepared_set import MANIFEST, summarise_folder
from sightline.data.store.prepared_writer import ColumnSpec, Progress, SampleRow, Shard, normalize_to_unit_sphere
from sightline.data.store.views import IMAGE
from sightline.errors import DataError
from sightline.geometry.rendering import Background

__all__ = ["CLOUDS", "IMAGES", "PairReader", "Pairing", "find_pairs", "pair_parts", "published_counts"]

CLOUDS, IMAGES = "ShapeNet", "ShapeNetRendering"
"""The two folders of the release."""
_TOLD = 10
_OBJECTS_OF_A_PART = 256
"""So many are read again at most where a preparation was killed."""


def published_counts() -> dict[str, Any]:
    """What the publications state: synsets with their names and pairs, views, terms of use."""
    return json.loads(Path(__file__).with_name("shapenet_render.json").read_text(encoding="utf-8"))


class _Object(NamedTuple):
    """A cloud and the folder of its images."""

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
    """The objects that have both halves, in order of synset and name; counts of each synset, and all that is left out.

    Each list of what is left out holds `synset/id`.
    """

    objects: list[_Object] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    clouds_alone: list[str] = field(default_factory=list)
    images_alone: list[str] = field(default_factory=list)
    too_few_views: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """One line for each kind of what is left out: how many, and the first ten names."""
        kinds = (
            ("clouds have no images", self.clouds_alone),
            ("image folders have no cloud", self.images_alone),
            ("image folders lack views", self.too_few_views),
            ("objects have broken files", self.broken),
            ("folders are none of the 13 synsets", self.unknown),
        )
        return [f"{len(names)} {what}, left out: {_first(names)}" for what, names in kinds if names]


def find_pairs(source: Path, *, broken: Literal["refuse", "leave_out"], progress: Progress) -> tuple[Path, Pairing]:
    """The resolved folder, and which clouds and images belong together by synset and name.

    The beginning and the end of every file of a pair are looked at, so that all that are cut short are known at once.
    Raises DataError where a half is missing or nothing matches, naming folders and what they hold; and, with
    `broken: refuse`, for broken files, naming the first ten and counting all.
    """
    root = _root_of(source)
    found, faults = Pairing(), []
    facts = published_counts()
    for label, synset in enumerate(facts["synsets"]):
        objects = _pair_synset(root, synset, label, facts["num_views"], found)
        kept = []
        for each in objects:
            wrong = [fault for path in (each.cloud, *each.views(facts["num_views"])) if (fault := _fault(path))]
            faults += wrong
            if wrong:
                found.broken.append(each.name)
            else:
                kept.append(each)
        found.counts[synset]["pairs"] = len(kept)
        found.objects += kept
        progress(label + 1, len(facts["synsets"]), f"synsets looked at, {len(found.objects)} pairs")
    found.unknown = sorted((_folders(root / CLOUDS) | _folders(root / IMAGES)) - set(facts["synsets"]))
    if faults and broken == "refuse":
        raise DataError(
            f"{root}: {len(faults)} files of {len(found.broken)} objects are broken: {'; '.join(faults[:_TOLD])}"
            f"{', ...' if len(faults) > _TOLD else ''}; get them again, or leave these objects out with "
            "broken=leave_out"
        )
    _assert_pairs(root, found)
    return root, found


def pair_parts(pairing: Pairing, reader: PairReader) -> list[Shard]:
    """The pairs in parts of up to 256 of one synset."""
    parts = []
    for synset in pairing.counts:
        members = [each for each in pairing.objects if each.synset == synset]
        for start in range(0, len(members), _OBJECTS_OF_A_PART):
            held = tuple(members[start : start + _OBJECTS_OF_A_PART])
            files = tuple(path for each in held for path in (each.cloud, *each.views(reader.num_views)))
            title, num_images = f"{synset} from {start}", len(held) * reader.num_views
            parts.append(Shard("train", title, len(held), files, _Rows(held, reader), num_images))
    return parts


@dataclass(frozen=True)
class PairReader:
    """How an object becomes a row: as many points as the first cloud has, views in this size on this background."""

    num_points: int
    num_views: int
    size_px: int
    background: Background

    @classmethod
    def from_first_cloud(cls, pairing: Pairing, *, size_px: int, background: Background) -> PairReader:
        """As the first cloud of the pairs asks for. Raises DataError if it cannot be read."""
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
        """The cloud in the unit sphere, and all views. Raises DataError naming the file that cannot be read."""
        points = _read_cloud(item.cloud)
        if len(points) != self.num_points:
            raise DataError(
                f"{item.cloud}: has {len(points)} points, the first cloud of the set has {self.num_points}; get the "
                "file again"
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


@dataclass(frozen=True)
class _Rows:
    objects: tuple[_Object, ...]
    reader: PairReader

    def __call__(self) -> Iterator[SampleRow]:
        return map(self.reader.row, self.objects)


def _root_of(source: Path) -> Path:
    """The folder that holds both halves. Raises DataError where one is not there, or holds nothing of its kind."""
    root = source.expanduser().resolve()
    if not root.is_dir():
        raise DataError(
            f"{source}: there is no such folder (looked at {root}); give the one with {CLOUDS} and {IMAGES}"
        )
    if (root / MANIFEST).is_file():
        raise DataError(f"{root}: is prepared already; give the folder with {CLOUDS} and {IMAGES}")
    counts = {
        CLOUDS: sum(len(_clouds_of(root / CLOUDS / name)) for name in _folders(root / CLOUDS)),
        IMAGES: sum(len(_folders(root / IMAGES / name)) for name in _folders(root / IMAGES)),
    }
    shapes = {CLOUDS: "<synset>/<id>.ply", IMAGES: "<synset>/<id>/rendering/00.png"}
    words = {CLOUDS: "clouds", IMAGES: "image folders"}
    for half, other in ((CLOUDS, IMAGES), (IMAGES, CLOUDS)):
        if counts[half]:
            continue
        folder = root / half
        found = f"holds {summarise_folder(folder)}, no {shapes[half]}" if folder.is_dir() else "is missing"
        raise DataError(
            f"{folder}: {found}, and {root / other} has {counts[other]} {words[other]}; a pair needs both: put the "
            f"{words[half]} there (a link will do)"
        )
    return root


def _pair_synset(root: Path, synset: str, label: int, num_views: int, found: Pairing) -> list[_Object]:
    """The objects of a synset that are whole by their names; what is left out is noted."""
    clouds, folders = _clouds_of(root / CLOUDS / synset), _folders(root / IMAGES / synset)
    wanted = {f"{view:02d}.png" for view in range(num_views)}
    whole = []
    for identifier in sorted(clouds & folders):
        images = root / IMAGES / synset / identifier / "rendering"
        held = wanted & set(os.listdir(images)) if images.is_dir() else set()
        if held == wanted:
            cloud = root / CLOUDS / synset / f"{identifier}.ply"
            whole.append(_Object(label, synset, identifier, cloud, images))
        else:
            found.too_few_views.append(f"{synset}/{identifier} ({len(held)} of {num_views})")
    found.clouds_alone += [f"{synset}/{identifier}" for identifier in sorted(clouds - folders)]
    found.images_alone += [f"{synset}/{identifier}" for identifier in sorted(folders - clouds)]
    found.counts[synset] = {"clouds": len(clouds), "image_folders": len(folders)}
    return whole


def _assert_pairs(root: Path, found: Pairing) -> None:
    if found.objects:
        return
    reasons = "; ".join(found.describe()) or "none of the 13 synsets is there"
    raise DataError(f"{root}: not one cloud has its images: {reasons}; both halves must have the same synsets and ids")


def _folders(folder: Path) -> set[str]:
    """Names of the folders in a folder; none where it is missing."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir()}


def _clouds_of(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {name.removesuffix(".ply") for name in os.listdir(folder) if name.endswith(".ply")}


def _fault(path: Path) -> str:
    """What the beginning and the end of a file show to be wrong with it; empty where nothing is."""
    if path.suffix == ".png":
        return png_fault(path)
    with open_regular(path) as file:
        start = file.read(3)
    return "" if start == b"ply" else f"{path} ({'is empty' if not start else 'is not a PLY file'})"


def _read_cloud(path: Path) -> np.ndarray:
    """The vertices (N, 3). Raises DataError with file and line or byte."""
    vertex = read_ply(path).vertex
    missing = [axis for axis in "xyz" if axis not in vertex]
    if missing:
        raise DataError(f"{path}: its vertices have no {missing[0]}, they have {', '.join(vertex)}; get the file again")
    points = np.stack([vertex[axis] for axis in "xyz"], axis=1)
    if not np.isfinite(points).all():
        row, axis = np.argwhere(~np.isfinite(points))[0]
        raise DataError(f"{path}: vertex {row}: {'xyz'[axis]} is {points[row, axis]}; get the file again")
    return points


def _first(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
