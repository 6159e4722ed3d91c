"""Synthetic shapes: clouds of procedural solids with classes, parts and exact normals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le

from sightline.areas.clouds.sets.patches import sample_patches
from sightline.areas.clouds.sets.synthetic_solids import NUM_PROPORTIONS, SOLIDS, build_solids
from sightline.contract import registry
from sightline.contract.arguments import Index, NonNegativeFloat, PositiveFraction, Seed
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import Batch, CloudInputSpec, DataInfo, Field, Sample, SampleKey
from sightline.parts.transforms.points import to_unit_sphere
from sightline.store.cloud_preparation import EstimatedNormals, Normals
from sightline.store.computed_samples import ComputedSet, Many
from sightline.store.loading.rendered_views import RenderedViewsConfig, make_rendered_views
from sightline.store.loading.stratified import stratified_subset
from sightline.store.prepared.views import IMAGE, image_field

Ratio = Annotated[float, Ge(1.0), Le(1e6)]
"""Ratio of a larger to a smaller quantity."""

_SPLITS = ("train", "test")
_CHUNK = 32  # clouds built together: enough to share the cost, few enough to bound the memory
_MAX_CACHE_BYTES = 2**28


@registry.data.add("synthetic_shapes")
class SyntheticShapes(ComputedSet):
    """Clouds of upright solids from twelve classes with 30 parts, a pure function of (data_seed, split, index).

    Points are distributed uniformly over the surfaces in random order, then centred on their mean and scaled into the
    unit sphere; normals are exact regardless of the noise. `noise` is the standard deviation of the noise of the
    coordinates, in radii of the shape; `imbalance` is the ratio of the sizes of the first and the last class.
    `fraction` trains on that share of every class; a smaller share is a subset of a larger one, and `data_seed` draws
    both. `normals` adds no normals, the exact (`file`) or the `estimated` ones to the input. With `target: parts` each
    point's part is its `label` and the cloud's class its `category`. With `views` (a number, or `count` with `size_px`,
    `style` and `background`) a sample has an `image`, one of `views` views of its own cloud, drawn anew in every epoch;
    else epoch and seed of a key change nothing.
    Source: made here; sightline/ops/points/meshes.py.
    """

    computed = "sample is computed"
    fingerprint = "synthetic_shapes 1"  # changes when the same arguments give other samples

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
        self.strata = _make_read_only(self._labels[self._rows])
        self._cache: _CloudCache | None = None
        self._target = target
        self.info = _describe(self.strata, sizes | {split: len(self)}, num_points, normals)
        if target == "parts":
            self.info = _to_part_info(self.info)
        self._estimated: EstimatedNormals | None = None
        if normals == "estimated":
            self._estimated = EstimatedNormals(self._describe_sample)
        self._pictures = make_rendered_views(views, len(self), up_axis="z")
        if self._pictures is not None:
            fields = {**self.info.fields, IMAGE: image_field(self._pictures.background)}
            self.info = dataclasses.replace(self.info, fields=fields)

    def __len__(self) -> int:
        return len(self.strata)

    def __getitem__(self, key: SampleKey) -> Sample:
        return {name: field[0] for name, field in self.get_batch([key]).items() if name != "sample_index"}

    def get_batch(self, keys: Sequence[SampleKey]) -> Batch:
        """Return the samples of these keys, stacked in order; the same bits as sample by sample."""
        index = np.array([key.index for key in keys], dtype=np.int64)
        outside = index[(index < 0) | (index >= len(self))]
        if len(outside):
            raise IndexError(f"synthetic_shapes: sample {outside[0]} of '{self._split}', which has {len(self)}")
        points, normals, part = self._get_clouds(self._rows[index])
        if self._estimated is not None:
            normals = self._estimated.estimate(index, points)
        cloud_label, point_label = torch.from_numpy(self.strata[index]), torch.from_numpy(part.astype(np.int64))
        is_class = self._target == "class"
        labels = (
            {"label": cloud_label, "part": point_label} if is_class else {"label": point_label, "category": cloud_label}
        )
        pictures = {} if self._pictures is None else {IMAGE: torch.from_numpy(self._pictures.render(keys, points))}
        return {
            "points": torch.from_numpy(points),
            "normals": torch.from_numpy(normals),
            **labels,
            **pictures,
            "sample_index": torch.from_numpy(index),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without cached clouds: a worker process makes its own, with the same bits."""
        return self.__dict__ | {"_cache": None}

    def sample_name(self, index: int) -> str:
        """Name of a sample in reports; also the key of its views, the same in a subset as in the whole set."""
        return f"{self._split}_{self._rows[index]:05d}"

    def _describe_sample(self, index: int) -> str:
        return f"synthetic_shapes: sample {index} of '{self._split}'"

    def _draws(self, index: np.ndarray) -> Draws:
        """Random streams per sample, seeded by (data_seed, split, index), so that splits never share numbers."""
        split = _SPLITS.index(self._split)
        return Draws.for_samples([SampleKey(index=int(i), epoch=split, seed=self._data_seed) for i in index])

    def _draw_labels(self, size: int, imbalance: float) -> np.ndarray:
        classes = np.repeat(np.arange(len(SOLIDS)), _apportion(size, imbalance))
        return _make_read_only(classes[self._draws(np.zeros(1)).stream("labels").permutation(size)[0].numpy()])

    def _get_clouds(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return points (B, N, 3), normals (B, N, 3) and parts (B, N) of shapes, by index in the whole split.

        They are cached if the whole split is small. The arrays are copies.
        """
        size = len(self._labels)
        if _CloudCache.num_bytes(size, self._num_points) > _MAX_CACHE_BYTES:
            return self._make(index)
        if self._cache is None:
            self._cache = _CloudCache(size, self._num_points)
        missing = np.unique(index[~self._cache.is_cached[index]])
        if len(missing):
            self._cache.put(missing, self._make(missing))
        return self._cache.get(index)

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


class _CloudCache:
    """Cache of clouds by index; arrays are copied in and out."""

    def __init__(self, size: int, num_points: int) -> None:
        self.is_cached = np.zeros(size, dtype=bool)
        self._fields: tuple[np.ndarray, np.ndarray, np.ndarray] = (
            np.empty((size, num_points, 3), dtype=np.float32),
            np.empty((size, num_points, 3), dtype=np.float32),
            np.empty((size, num_points), dtype=np.uint8),
        )

    @staticmethod
    def num_bytes(size: int, num_points: int) -> int:
        return size * num_points * 25

    def put(self, index: np.ndarray, clouds: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        for stored, array in zip(self._fields, clouds, strict=True):
            stored[index] = array
        self.is_cached[index] = True  # last, so that no other thread reads a cloud half written

    def get(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points, normals, part = (stored[index] for stored in self._fields)
        return points, normals, part


def _make_read_only(labels: np.ndarray) -> np.ndarray:
    labels.flags.writeable = False
    return labels


def _apportion(size: int, imbalance: float) -> np.ndarray:
    """Compute samples per class (C,): a geometric progression with end ratio `imbalance`, rounded to sum to `size`.

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


def _to_part_info(info: DataInfo) -> DataInfo:
    """Convert the DataInfo to part segmentation: parts become the classes, the cloud's class its category."""
    facts = dict(info.facts)
    renamed = {
        "num_classes": facts.pop("num_parts"),
        "class_names": facts.pop("part_names"),
        "category_names": facts.pop("class_names"),
    }
    del facts["class_counts"]  # counts of points are known only after every cloud is built
    fields = dict(info.fields)
    fields["category"] = fields.pop("label")
    fields["label"] = fields.pop("part")
    return dataclasses.replace(info, facts=facts | renamed, fields=fields)
