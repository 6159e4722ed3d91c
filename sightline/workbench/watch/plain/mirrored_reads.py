"""Reads of a data set with the random numbers of one draw or another, of which one mirrors what the other reads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sightline.doctor.batches import BatchForm
from sightline.doctor.objects import find_read_generators, get_state, set_state
from sightline.ops.numba_kernels import compute_seconds
from sightline.workbench.watch.plain.samples import Item, list_leaves, read, to_bytes

Compared = TypeVar("Compared")

_NUM_DRAWS = 8
_MAX_CPU_S, _MIN_READ_PAIRS = 0.4, 4
_MIN_LIKENESS, _MAX_LIKENESS = 0.98, 0.9
_MAX_POINT_ERROR = 0.02
"""Largest distance of a mirrored point from its place, in standard deviations of the cloud."""
_MAX_POINT_COLUMNS, _MIN_POINTS = 8, 16
MIN_PIXELS = 4


class Draw(NamedTuple):
    """Random numbers of a read: a seed of the global generators, and the states of the data set's own."""

    seed: int
    states: tuple[Any, ...]


class Carrier(NamedTuple):
    """Leaf of the inputs that a read mirrors: an image along axis -1 or -2, or one coordinate of a cloud."""

    leaf: int
    axis: int

    @property
    def is_image(self) -> bool:
        """True for an image."""
        return self.axis < 0

    def get(self, item: Item) -> Tensor:
        """Return the image (C, H, W) or the cloud (N, D) of a sample."""
        leaf = torch.as_tensor(list_leaves(item.inputs)[self.leaf])
        found = _to_image(leaf) if self.is_image else _to_cloud(leaf)
        assert found is not None
        return found

    def __str__(self) -> str:
        if self.is_image:
            return "images are mirrored left to right" if self.axis == -1 else "images are turned upside down"
        return f"clouds are mirrored along {'xyz'[self.axis]}"


class MirroredPair(NamedTuple):
    """Two reads of a sample, of which one is the mirror image of the other."""

    first: Item
    second: Item


class ItemReader:
    """Reads of a data set by an index and a draw: both decide what is returned."""

    def __init__(self, loader: DataLoader[Any], form: BatchForm) -> None:
        self._loader, self._form = loader, form
        self.generators = find_read_generators(loader)

    def read(self, index: int, draw: Draw) -> Item:
        """Read a sample with the random numbers of a draw."""
        for generator, state in zip(self.generators, draw.states, strict=True):
            set_state(generator, state)
        return Item(*self._form.split(read(self._loader, index, draw.seed)))

    def list_draws(self, index: int) -> Iterator[tuple[Draw, Item]]:
        """Read a sample again and again; each time the data set's own generators have gone on."""
        for seed in range(_NUM_DRAWS):
            draw = Draw(seed, tuple(map(get_state, self.generators)))
            yield draw, self.read(index, draw)


def read_flips(
    reader: ItemReader, indices: Sequence[int], compare: Callable[[Carrier, MirroredPair], Compared]
) -> dict[Carrier, list[Compared]]:
    """Read samples with two draws of which one mirrors what the other reads, for each way of mirroring that occurs.

    Of each pair is kept what `compare` returns: images and maps of hundreds of samples would fill the memory.
    """
    started, pairs = compute_seconds(), dict[Carrier, tuple[Draw, Draw]]()
    for index in (indices[0], indices[len(indices) // 2]):
        if pairs or compute_seconds() - started > _MAX_CPU_S:
            break
        reads = list(reader.list_draws(index))
        if to_bytes(reader.read(index, reads[0][0])) != to_bytes(reads[0][1]):
            return {}
        for (first, item), (second, other) in itertools.combinations(reads, 2):
            if (carrier := _find_carrier(MirroredPair(item, other))) is not None:
                pairs.setdefault(carrier, (first, second))
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0)).tolist()
    flips: dict[Carrier, list[Compared]] = {carrier: [] for carrier in pairs}
    for carrier, draws in pairs.items():
        spent_s = 0.0
        for number, place in enumerate(order):
            if number >= _MIN_READ_PAIRS and spent_s > _MAX_CPU_S / len(pairs):
                break
            started = compute_seconds()
            flip = MirroredPair(*(reader.read(indices[place], draw) for draw in draws))
            is_flip = _find_carrier(flip) == carrier
            spent_s += compute_seconds() - started
            if is_flip:
                flips[carrier].append(compare(carrier, flip))
    return flips


def _find_carrier(flip: MirroredPair) -> Carrier | None:
    """Find the leaf of the inputs that is mirrored between two reads."""
    leaves = [[torch.as_tensor(leaf) for leaf in list_leaves(item.inputs)] for item in flip]
    for place, (first, second) in enumerate(zip(*leaves, strict=True)):
        if first.shape != second.shape or first.ndim < 2 or torch.equal(first, second):
            continue
        is_cloud = _to_cloud(first) is not None
        axis = (_find_mirrored_axis if is_cloud else _find_flipped_axis)(first, second)
        if axis is not None:
            others = [torch.equal(a, b) for other, (a, b) in enumerate(zip(*leaves, strict=True)) if other != place]
            return Carrier(place, axis) if all(others) else None  # a model may be told that it sees a mirror image
    return None


def _to_cloud(leaf: Tensor) -> Tensor | None:
    """Return a leaf as a cloud (N, D), None for others; (D, N) is transposed."""
    if leaf.ndim != 2 or not leaf.is_floating_point() or not 2 <= min(leaf.shape) <= _MAX_POINT_COLUMNS:
        return None
    rows = leaf if leaf.shape[0] >= leaf.shape[1] else leaf.T
    return rows if len(rows) >= _MIN_POINTS else None


def _to_image(leaf: Tensor) -> Tensor | None:
    """Return a leaf as an image (C, H, W), None for others; (H, W, C) is moved, leading axes are channels."""
    is_last = leaf.ndim == 3 and leaf.shape[-1] in (1, 3, 4) and leaf.shape[0] > 4
    moved = leaf.movedim(-1, 0) if is_last else leaf
    if moved.ndim < 2 or min(moved.shape[-2:]) < MIN_PIXELS:
        return None
    return moved.reshape(-1, *moved.shape[-2:]).float()


def _find_mirrored_axis(one: Tensor, other: Tensor) -> int | None:
    """Return the coordinate that is c - x in the other cloud, if the other coordinates are equal."""
    first, second = (cloud[:, :3] for leaf in (one, other) if (cloud := _to_cloud(leaf)) is not None)
    limit = _MAX_POINT_ERROR * first.std(dim=0).clamp(min=1e-6)
    is_equal = (first - second).abs().amax(dim=0) <= limit
    total = first + second
    is_mirrored = ((total - total.mean(dim=0)).abs().amax(dim=0) <= limit) & ~is_equal
    return int(is_mirrored.nonzero()) if int(is_mirrored.sum()) == 1 == int((~is_equal).sum()) else None


def _find_flipped_axis(one: Tensor, other: Tensor) -> int | None:
    first, second = map(_to_image, (one, other))
    if first is None or second is None:
        return None
    exact = next((axis for axis in (-1, -2) if torch.equal(first, second.flip(axis))), None)
    if exact is not None or _likeness(first, second) >= _MAX_LIKENESS:
        return exact
    return next((axis for axis in (-1, -2) if _likeness(first, second.flip(axis)) > _MIN_LIKENESS), None)


def _likeness(first: Tensor, second: Tensor) -> float:
    pair = torch.stack([first.flatten(), second.flatten()])
    return float(torch.corrcoef(pair)[0, 1])
