"""Benchmarks of reading, augmenting, voxelising and compressing, each against the usual form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.case import BenchmarkCase, Implementation, Run, equal, implementation
from benchmarks.rendering import make_frames
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.compression.bit_packing import pack_bits
from sightline.compression.codebooks import cluster_weight
from sightline.contract import dataset
from sightline.contract.types import SampleKey
from sightline.ops.voxels.cubes import CubePlacement, occupancy
from sightline.parts.transforms.point_selection import ShufflePoints
from sightline.parts.transforms.points import Scale, Translate
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform

BATCH = 32
SCALE, SHIFT = (2 / 3, 3 / 2), 0.2
"""Augmentation of PointNet's and DGCNN's code for ModelNet40; the defaults of `Scale` and `Translate`."""
_NUM_ITERATIONS = 50
"""Number of iterations of HAQ's final model; not enough to converge on a million weights."""


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="data",
            label="batches_{clouds}x{points}",
            size={"clouds": 2048, "points": 1024},
            quick={"clouds": 64, "points": 128},
            make=_make_clouds,
            baseline=Implementation("per_item_loader", _open_loader, _check_augmentation),
            variants=(Implementation("sightline", _open_reader, _check_augmentation),),
        ),
        BenchmarkCase(
            suite="data",
            label="voxelize_{frames}x{size}",
            size={"frames": 1, "size": 88},
            quick={"frames": 1, "size": 24},
            make=make_frames,
            baseline=implementation("add_at", _count_points, equal),
            variants=(implementation("sightline", _voxelise, equal),),
        ),
    ]


# --- batches ---------------------------------------------------------------------------------------------------------


class PerItem(Dataset[tuple[np.ndarray, int]]):
    """Usual dataset: one cloud at a time, augmented in NumPy, its points permuted.

    `np.random.shuffle`, which swaps rows one by one, would make it several times slower.
    """

    def __init__(self, clouds: np.ndarray, labels: np.ndarray) -> None:
        self.clouds, self.labels = clouds, labels

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        scale = np.random.uniform(*SCALE, size=3)
        shift = np.random.uniform(-SHIFT, SHIFT, size=3)
        cloud = (self.clouds[index] * scale + shift).astype(np.float32)
        return cloud[np.random.permutation(len(cloud))], int(self.labels[index])


class _PointDataset(dataset.Dataset):
    """In-memory data set with the fields of `PerItem`, points and labels, that returns whole batches."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        fields = {name: inputs["shapes"].info.fields[name] for name in ("points", "label")}
        self.info = dataclasses.replace(inputs["shapes"].info, fields=fields, features=())
        self._points, self._label = inputs["points"].numpy(), inputs["label"].numpy()

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return {"points": self._points[key.index], "label": self._label[key.index]}

    def get_batch(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        index = np.array([key.index for key in keys])
        return {"points": self._points[index], "label": self._label[index], "sample_index": index}


def _make_clouds(*, clouds: int, points: int) -> dict[str, Any]:
    """Make a data set in memory, and the order in which it is read."""
    shapes = SyntheticShapes(split="train", train_size=clouds, num_points=points)
    everything = shapes.get_batch([SampleKey(index, 0, 0) for index in range(clouds)])
    order = torch.randperm(clouds, generator=torch.Generator().manual_seed(0)).tolist()
    return {"shapes": shapes, "points": everything["points"], "label": everything["label"], "order": order}


@contextmanager
def _open_loader(inputs: dict[str, Any]) -> Iterator[Run]:
    items = PerItem(inputs["points"].numpy(), inputs["label"].numpy())
    loader = DataLoader(items, batch_size=BATCH, sampler=inputs["order"])

    def run() -> dict[str, Tensor]:
        for batch in loader:
            points, label = batch
        return {"points": points, "label": label}

    yield run


@contextmanager
def _open_reader(inputs: dict[str, Any]) -> Iterator[Run]:
    parts: dict[str, Any] = {"scale": Scale(), "translate": Translate(), "shuffle_points": ShufflePoints()}
    transforms = [NamedTransform(name, transform) for name, transform in parts.items()]
    reader = BatchReader(_PointDataset(inputs), transforms)
    order = inputs["order"]

    def run() -> dict[str, Tensor]:
        for start in range(0, len(order), BATCH):
            batch = reader([SampleKey(index, 0, 0) for index in order[start : start + BATCH]])
        return {"points": batch["points"], "label": batch["label"]}

    yield run


def _check_augmentation(inputs: dict[str, Any], expected: dict[str, Tensor], actual: dict[str, Tensor]) -> str | None:
    """Check the last batch: the same clouds, scaled and shifted along the axes by random numbers, points shuffled.

    The random numbers differ, so they are recovered: along an axis, sorted coordinates are a linear function of the
    sorted originals. Tolerances: 1e-5 around the line, and 1e-4 around the recipe's ranges.
    """
    last = inputs["order"][(len(inputs["order"]) - 1) // BATCH * BATCH :]
    originals = inputs["points"][last].double().sort(dim=1).values
    for name, answer in (("the baseline", expected), ("it", actual)):
        if not torch.equal(answer["label"], inputs["label"][last]):
            return f"{name} gives other labels"
        if answer["points"].shape != originals.shape:
            return f"{name} gives the shape {tuple(answer['points'].shape)}, not {tuple(originals.shape)}"
        points = answer["points"].double().sort(dim=1).values
        low, high = originals[:, :1], originals[:, -1:]
        scale = (points[:, -1:] - points[:, :1]) / (high - low)
        shift = points[:, :1] - scale * low
        if float((originals * scale + shift - points).abs().max()) > 1e-5:
            return f"{name} does more to a cloud than to scale and shift it"
        if scale.min() < SCALE[0] - 1e-4 or scale.max() > SCALE[1] + 1e-4 or shift.abs().max() > SHIFT + 1e-4:
            return f"{name} scales or shifts by numbers outside the recipe"
    return None


# --- volumes ---------------------------------------------------------------------------------------------------------


def _count_points(inputs: dict[str, Any]) -> Tensor:
    """Voxelise in NumPy as users do: every pixel to a point, every point to a voxel, counted and clipped to 1."""
    placement: CubePlacement = inputs["placement"]
    size = placement.size
    volumes = np.zeros((len(placement), 1, size, size, size), dtype=np.float32)
    depths, cameras = inputs["depth"].numpy(), inputs["camera"].numpy()
    for sample, (depth, (fx, fy, u0, v0)) in enumerate(zip(depths, cameras, strict=True)):
        rows, columns = np.indices(depth.shape)
        z = depth.astype(np.float64)
        points = np.stack([(columns - u0) * z / fx, (rows - v0) * z / fy, z], axis=-1)[z > 0]
        voxels = np.floor(_to_voxel_coordinates(points, placement, sample))
        inside = voxels[((voxels >= 0) & (voxels < size)).all(axis=1)].astype(np.int64)
        np.add.at(volumes[sample, 0], tuple(inside.T), 1)
        np.minimum(volumes[sample], 1, out=volumes[sample])
    return torch.from_numpy(volumes)


def _to_voxel_coordinates(points: np.ndarray, placement: CubePlacement, sample: int) -> np.ndarray:
    """Compute voxel coordinates (P, 3) of points (P, 3) of one sample, formula by formula."""
    centre, border = placement.grid_size / 2, (placement.grid_size - placement.size) / 2
    unit = (points - placement.reference_mm[sample].numpy()) / (placement.cube_mm / 2)
    grid = (unit + 1) * (placement.size / 2) + border
    grid = (grid - centre) * float(placement.scale[sample]) + centre
    x, y = grid[:, 0] - centre, grid[:, 1] - centre
    cosine, sine = float(placement.angle_rad[sample].cos()), float(placement.angle_rad[sample].sin())
    grid[:, 0], grid[:, 1] = x * cosine - y * sine + centre, x * sine + y * cosine + centre
    return grid - placement.shift[sample].numpy()


def _voxelise(inputs: dict[str, Any]) -> Tensor:
    return occupancy(inputs["depth"], inputs["camera"], inputs["placement"])


# --- compression -----------------------------------------------------------------------------------------------------


def compression_cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="compress",
            label="kmeans_{weights}_to_{centres}",
            size={"weights": 1_000_000, "centres": 16},
            quick={"weights": 3000},
            make=_make_weights,
            baseline=implementation("textbook", _cluster_lloyd, _is_no_worse),
            variants=(implementation("sightline", _cluster, _is_no_worse),),
        ),
        *(
            BenchmarkCase(
                suite="compress",
                label="pack_{weights}x{bits}",
                size={"weights": 1_000_000, "bits": bits},
                quick={"weights": 3001},
                make=_make_codes,
                baseline=implementation("packbits", _pack_reference, _are_same_bytes),
                variants=(implementation("sightline", _pack, _are_same_bytes),),
            )
            for bits in (3, 4)
        ),
    ]


def _make_weights(*, weights: int, centres: int) -> dict[str, Any]:
    return {"weights": torch.randn(weights, generator=torch.Generator().manual_seed(0)), "centres": centres}


def _cluster_lloyd(inputs: dict[str, Any]) -> Tensor:
    """Cluster weights (N,) by Lloyd's iterations from quantiles: all distances, the nearest, the means."""
    weights, number = inputs["weights"], inputs["centres"]
    quantile_index = (torch.arange(number) + 0.5) * len(weights) / number
    centres = weights.sort().values[quantile_index.long()]
    for _ in range(_NUM_ITERATIONS):
        labels = (weights[:, None] - centres).square().argmin(dim=1)
        counts = torch.bincount(labels, minlength=number)
        sums = torch.zeros(number).index_add_(0, labels, weights)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return labels


def _cluster(inputs: dict[str, Any]) -> Tensor:
    bits = (inputs["centres"] - 1).bit_length()
    return cluster_weight(inputs["weights"], bits=bits, name="weights").labels


def _is_no_worse(inputs: dict[str, Any], expected: Tensor, actual: Tensor) -> str | None:
    expected_inertia, inertia = (_inertia(inputs["weights"].double(), labels.long()) for labels in (expected, actual))
    return (
        None if inertia <= expected_inertia * (1 + 1e-9) else f"inertia {inertia:.9g}, {expected_inertia:.9g} is needed"
    )


def _inertia(weights: Tensor, labels: Tensor) -> float:
    counts = torch.bincount(labels).clamp(min=1)
    means = torch.zeros(len(counts), dtype=weights.dtype).index_add_(0, labels, weights) / counts
    return float((weights - means[labels]).square().sum())


def _make_codes(*, weights: int, bits: int) -> dict[str, Any]:
    codes = np.random.default_rng(0).integers(0, 2**bits, weights)
    return {"codes": torch.from_numpy(codes.astype(np.uint8)), "bits": bits}


def _pack(inputs: dict[str, Any]) -> bytes:
    return pack_bits(inputs["codes"].numpy(), inputs["bits"])


def _pack_reference(inputs: dict[str, Any]) -> bytes:
    """Pack codes by definition: a row of bits per code, eight bits per byte."""
    rows = inputs["codes"].numpy()[:, None] >> np.arange(inputs["bits"], dtype=np.uint8)
    return np.packbits(rows & 1, bitorder="little").tobytes()


def _are_same_bytes(inputs: dict[str, Any], expected: bytes, actual: bytes) -> str | None:
    return None if actual == expected else f"{len(actual)} other bytes than {len(expected)}"
