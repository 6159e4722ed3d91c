"""The embedded data set: clouds of procedural solids with classes, parts and exact normals, from numbers alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le

from sightline import registry
from sightline.arguments import Index, NonNegativeFloat, PositiveFraction, Seed
from sightline.data.clouds.cloud_normals import EstimatedNormals, Normals
from sightline.data.loading.rendered_views import RenderedViewsConfig, make_rendered_views
from sightline.data.loading.splits import stratified_subset
from sightline.data.store.views import IMAGE, image_field
from sightline.data.synthetic.synthetic_solids import NUM_PROPORTIONS, SOLIDS, build_solids
from sightline.draws import Draws
from sightline.errors import ConfigError
from sightline.geometry.parametric_surfaces import sample_patches
from sightline.transforms.points import to_unit_sphere
from sightline.types import Batch, CloudInputSpec, DataInfo, Field, Sample, SampleKey

__all__ = ["SyntheticShapes"]

Many = Annotated[int, Ge(1), Le(1_000_000)]
"""How many samples, or points of one; beyond this is a slip, refused before it fills the memory."""
Ratio = Annotated[float, Ge(1.0), Le(1e6)]
"""A larger quantity over a smaller one."""

_SPLITS = ("train", "test")
_CHUNK = 32  # clouds made together: enough to share the cost of building, few enough to bound the memory
_MAX_CACHE_BYTES = 2**28


@registry.data.add("synthetic_shapes")
class SyntheticShapes:
    """Clouds of upright solids from twelve classes with 30 parts, a pure function of (data_seed, split, index).

    Points are spread uniformly over the surfaces in random order, then centred on their mean and scaled into the unit
    sphere; normals are those of the surface, exact whatever the noise. `noise` is the standard deviation of normal
    errors of the coordinates, in radii of the shape; `imbalance` is how often the first class occurs for each time
    that the last one does. `fraction` trains on that share of every class; a smaller share is part of a larger one, and
    `data_seed` draws both. `normals` gives the model none, the exact (`file`) or the `estimated` ones. `target: parts`
    makes every point's part its `label` and the cloud's class its `category`. With `views` (how many, or `count` with
    `size_px`, `style` and `background`) a sample has an `image`, one of so many views of its own cloud, drawn anew in
    every epoch; else epoch and seed of a key change nothing.
    Source: made here; sightline/geometry/parametric_surfaces.py.
    """

    def __init__(
        self,
        *,
        split: str,
        train_size: Many = 1920,
        test_size: Many = 480,
        num_points: Many = 1024,
        noise: NonNegativeFloat = 0.0,
        imbalance: Ratio = 1.0,
        data_seed: Seed = 0,
        normals: Normals = "none",
        target: Literal["class", "parts"] = "class",
        views: Index | RenderedViewsConfig = 0,
        fraction: PositiveFraction = 1.0,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"synthetic_shapes: there is no split '{split}'; it has {' and '.join(_SPLITS)}")
        self._split = split
        self._num_points = num_points
        self._noise = noise
        self._data_seed = data_seed
        sizes = {"train": train_size, "test": test_size}
        self._labels = self._draw_labels(sizes[split], imbalance)
        self._rows = np.arange(len(self._labels))
        if split == "train" and fraction < 1:
            self._rows = stratified_subset(self._labels, fraction, seed=data_seed)
        self.strata = _frozen(self._labels[self._rows])
        self._made: _Made | None = None
        self._target = target
        self.info = _describe(self.strata, sizes | {split: len(self)}, num_points, normals)
        if target == "parts":
            self.info = _as_parts(self.info)
        self._estimated: EstimatedNormals | None = None
        if normals == "estimated":
            self._estimated = EstimatedNormals(len(self), num_points, self._told)
        self._pictures = make_rendered_views(views, len(self), up_axis="z")
        if self._pictures is not None:
            fields = {**self.info.fields, IMAGE: image_field(self._pictures.background)}
            self.info = dataclasses.replace(self.info, fields=fields)

    @classmethod
    def card(cls) -> dict[str, str]:
        """What `sightline data info` says of this set."""
        return {
            "layout": "no files: every sample is computed from data_seed, the split and its index",
            "obtain": "nothing to obtain; it is part of sightline",
            "terms": "free to use in any way, under the licence of sightline",
        }

    @property
    def fingerprint(self) -> str:
        """What the samples are made by, besides the arguments; another number when the same arguments make others."""
        return "synthetic_shapes 1"

    def __len__(self) -> int:
        return len(self.strata)

    def __getitem__(self, key: SampleKey) -> Sample:
        return {name: field[0] for name, field in self.get_batch([key]).items() if name != "sample_index"}

    def get_batch(self, keys: Sequence[SampleKey]) -> Batch:
        """The samples of these keys, stacked, in this order: the same bits as one by one."""
        index = np.array([key.index for key in keys], dtype=np.int64)
        outside = index[(index < 0) | (index >= len(self))]
        if len(outside):
            raise IndexError(f"synthetic_shapes: sample {outside[0]} of '{self._split}', which has {len(self)}")
        points, normals, part = self._clouds(self._rows[index])
        if self._estimated is not None:
            normals = self._estimated.estimate(index, points)
        of_cloud, of_point = torch.from_numpy(self.strata[index]), torch.from_numpy(part.astype(np.int64))
        is_class = self._target == "class"
        labels = {"label": of_cloud, "part": of_point} if is_class else {"label": of_point, "category": of_cloud}
        pictures = {} if self._pictures is None else {IMAGE: torch.from_numpy(self._pictures.render(keys, points))}
        return {
            "points": torch.from_numpy(points),
            "normals": torch.from_numpy(normals),
            **labels,
            **pictures,
            "sample_index": torch.from_numpy(index),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Without the clouds made so far: a worker process makes its own, with the same bits."""
        return self.__dict__ | {"_made": None}

    def name_of(self, index: int) -> str:
        """The name of a shape, by which its views are found: the same in a part of the set as in the whole."""
        return f"{self._split}_{self._rows[index]:05d}"

    def _told(self, index: int) -> str:
        return f"synthetic_shapes: sample {index} of '{self._split}'"

    def _draws(self, index: np.ndarray) -> Draws:
        """The streams of these samples; the split stands in the epoch's place, so train and test share none."""
        split = _SPLITS.index(self._split)
        return Draws.for_samples([SampleKey(index=int(i), epoch=split, seed=self._data_seed) for i in index])

    def _draw_labels(self, size: int, imbalance: float) -> np.ndarray:
        classes = np.repeat(np.arange(len(SOLIDS)), _apportion(size, imbalance))
        return _frozen(classes[self._draws(np.zeros(1)).stream("labels").permutation(size)[0].numpy()])

    def _clouds(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of shapes of the whole split, fresh points, normals (B, N, 3) and parts (B, N).

        They are made now, or remembered where the whole split is small.
        """
        size = len(self._labels)
        if _Made.num_bytes(size, self._num_points) > _MAX_CACHE_BYTES:
            return self._make(index)
        if self._made is None:
            self._made = _Made(size, self._num_points)
        missing = np.unique(index[~self._made.is_there[index]])
        if len(missing):
            self._made.put(missing, self._make(missing))
        return self._made.get(index)

    def _make(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chunks = [self._make_chunk(index[start : start + _CHUNK]) for start in range(0, len(index), _CHUNK)]
        points, normals, part = zip(*chunks, strict=True)
        return np.concatenate(points), np.concatenate(normals), np.concatenate(part)

    def _make_chunk(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        draws = self._draws(index)
        proportions = draws.stream("proportions").uniform(NUM_PROPORTIONS).numpy()
        rows, parts = build_solids(self._labels[index], proportions)
        surface = sample_patches(rows, draws.stream("surface").bits(self._num_points, 2))
        points = to_unit_sphere(torch.from_numpy(surface.points))
        if self._noise > 0:
            points = to_unit_sphere(points + self._noise * draws.stream("noise").normal(self._num_points, 3))
        part = np.take_along_axis(parts, surface.patch, axis=1)
        return points.float().numpy(), surface.normals.astype(np.float32), part.astype(np.uint8)


class _Made:
    """Clouds made so far, by index; what goes in and out is copied."""

    def __init__(self, size: int, num_points: int) -> None:
        self.is_there = np.zeros(size, dtype=bool)
        self._fields: tuple[np.ndarray, np.ndarray, np.ndarray] = (
            np.empty((size, num_points, 3), dtype=np.float32),
            np.empty((size, num_points, 3), dtype=np.float32),
            np.empty((size, num_points), dtype=np.uint8),
        )

    @staticmethod
    def num_bytes(size: int, num_points: int) -> int:
        return size * num_points * 25

    def put(self, index: np.ndarray, clouds: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        for stored, made in zip(self._fields, clouds, strict=True):
            stored[index] = made
        self.is_there[index] = True  # last, so that another thread never reads a cloud half written

    def get(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points, normals, part = (stored[index] for stored in self._fields)
        return points, normals, part


def _frozen(labels: np.ndarray) -> np.ndarray:
    labels.flags.writeable = False
    return labels


def _apportion(size: int, imbalance: float) -> np.ndarray:
    """Samples per class: a geometric progression whose ends have the ratio `imbalance`, rounded to sum to `size`.

    Source: the method of largest remainders (Hamilton); ties go to the lower class.
    """
    weights = imbalance ** -np.linspace(0, 1, len(SOLIDS))
    exact = size * weights / weights.sum()
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: size - counts.sum()]] += 1
    return counts


def _describe(labels: np.ndarray, sizes: dict[str, int], num_points: int, normals: Normals) -> DataInfo:
    part_names = tuple(f"{solid.name}_{part}" for solid in SOLIDS for part in solid.parts)
    ends = np.cumsum([len(solid.parts) for solid in SOLIDS]).tolist()
    starts = [0, *ends[:-1]]
    counts = np.bincount(labels, minlength=len(SOLIDS))
    facts = {
        "num_classes": len(SOLIDS),
        "class_names": tuple(solid.name for solid in SOLIDS),
        "class_counts": tuple(counts.tolist()),
        "in_channels": 3 if normals == "none" else 6,
        "up_axis": "z",
        "num_parts": len(part_names),
        "part_names": part_names,
        "num_categories": len(SOLIDS),
        "parts_of_category": tuple(tuple(range(start, end)) for start, end in zip(starts, ends, strict=True)),
    }
    frame = "object, z up, mean of the points at the origin"
    fields = {
        "points": Field(f"{num_points} 3", "float32", "radius of the shape", frame, -1.0, 1.0),
        "normals": Field(f"{num_points} 3", "float32", "unit vector", frame, -1.0, 1.0),
        "label": Field("", "int64", "class", "", 0, len(SOLIDS) - 1),
        "part": Field(f"{num_points}", "int64", "part", "", 0, len(part_names) - 1),
    }
    form = CloudInputSpec(num_points, num_points, "applied", estimates_normals=normals == "estimated")
    features = () if normals == "none" else ("normals",)
    return DataInfo(facts=facts, fields=fields, split_sizes=sizes, features=features, clouds=form)


def _as_parts(info: DataInfo) -> DataInfo:
    """The same set where the classes are the parts, one of them at every point, and a cloud has a category."""
    facts = dict(info.facts)
    moved = {
        "num_classes": facts.pop("num_parts"),
        "class_names": facts.pop("part_names"),
        "category_names": facts.pop("class_names"),
    }
    del facts["class_counts"]  # of points, and known only once every cloud was made
    fields = dict(info.fields)
    fields["category"] = fields.pop("label")
    fields["label"] = fields.pop("part")
    return dataclasses.replace(info, facts=facts | moved, fields=fields)
