"""Reads of a data set with the random numbers of one draw or another, of which one mirrors what the other reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.data.mirrors import Correction, InputReducer, MirroredSamples, Reduced, find_correction
from sightline.doctor.evidence.data.source import Source, list_leaves, to_bytes
from sightline.doctor.forms.form import Batch
from sightline.doctor.objects import get_state, preserve_generators, set_state

_NUM_DRAWS, _NUM_PAIRS, _NUM_FITTED_PAIRS = 8, 24, 300
_MIN_READ_PAIRS = 4
_MIN_LIKENESS, _MAX_LIKENESS = 0.98, 0.9
_MAX_POINT_ERROR = 0.02
"""Largest distance of a mirrored point from its place, in standard deviations of the cloud."""
_MAX_POINT_COLUMNS, _MIN_POINTS, _MIN_PIXELS = 8, 16, 4
_MAX_NUMBERS, _MAX_BOX_COLUMNS = 64, 6
_MAX_PEAK = 0.2
"""Largest share of a heat map that is above half of its highest number."""
_MIN_FITTED_PAIRS, _MIN_BOXES, _MAX_ROUNDING, _MIXED = 80, 12, 1e-4, 0.1


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

    def __str__(self) -> str:
        if self.is_image:
            return "images are mirrored left to right" if self.axis == -1 else "images are turned upside down"
        return f"clouds are mirrored along {'xyz'[self.axis]}"


class MirroredPair(NamedTuple):
    """Two reads of a sample, of which one mirrors the other: inputs, reduced, and leaves of the target by name.

    Heat maps of one peak each are the places of their peaks. Leaves that are neither few numbers nor boxes are left
    out, as are all if the reads have other numbers of them. `maps` tells of each leaf whether it is a map of the image
    that is "left" as it was, or "moved", too.
    """

    inputs: tuple[Reduced, Reduced]
    targets: tuple[dict[str, Tensor], dict[str, Tensor]]
    maps: list[str]


class Leaf(NamedTuple):
    """Leaf of the target in both reads of all pairs, of one shape in both reads of each."""

    name: str
    first: list[Tensor]
    second: list[Tensor]


class Flips(NamedTuple):
    """Pairs of reads that differ by one way of mirroring."""

    carrier: Carrier
    pairs: list[MirroredPair]

    def list_leaves(self) -> list[Leaf]:
        """List the leaves that the targets of all pairs have."""
        sides = [[pair.targets[side] for pair in self.pairs] for side in (0, 1)]
        names = [name for name in (sides[0] or [{}])[0] if all(name in target for target in (*sides[0], *sides[1]))]
        leaves = [Leaf(name, *([target[name] for target in side] for side in sides)) for name in names]
        return [leaf for leaf in leaves if all(a.shape == b.shape for a, b in zip(*leaf[1:], strict=True))]


@measure()
def flips(source: Source) -> list[Flips]:
    """Read samples with two draws of which one mirrors what the other reads, for each way of mirroring that occurs."""
    generators = source.generators()
    with preserve_generators(generators):
        leaves = list_leaves(source.read(0, 0).target)
        has_numbers = any(
            leaf.is_floating_point() and (leaf.numel() <= _MAX_NUMBERS or _find_peaks(leaf) is not None)
            for leaf in leaves
        )
        if not has_numbers and not any(leaf.ndim for leaf in leaves):
            raise NotApplicableError("targets that are classes")
        indices = source.spread(_NUM_FITTED_PAIRS if has_numbers else _NUM_PAIRS)
        found = _find_draws(source, generators, indices)
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0)).tolist()
        order = [indices[place] for place in order]
        return [
            Flips(carrier, list(_read_pairs(source, generators, order, carrier, draws)))
            for carrier, draws in found.items()
        ]


def _find_draws(source: Source, generators: Sequence[Any], indices: Sequence[int]) -> dict[Carrier, tuple[Draw, Draw]]:
    """Find pairs of draws of which one mirrors what the other reads, in the first sample or in one halfway."""
    found: dict[Carrier, tuple[Draw, Draw]] = {}
    for index in source.take((indices[0], indices[len(indices) // 2]), least=1):
        if found:
            break
        reads = []
        for seed in range(_NUM_DRAWS):  # the data set's own generators go on from read to read
            draw = Draw(seed, tuple(map(get_state, generators)))
            reads.append((draw, _read(source, generators, index, draw)))
        if to_bytes(_read(source, generators, index, reads[0][0])) != to_bytes(reads[0][1]):
            raise LeftOutError("reads that differ with the same random numbers")
        for (first, item), (second, other) in itertools.combinations(reads, 2):
            if (carrier := _find_carrier(item, other)) is not None:
                found.setdefault(carrier, (first, second))
    return found


def _read(source: Source, generators: Sequence[Any], index: int, draw: Draw) -> Batch:
    for generator, state in zip(generators, draw.states, strict=True):
        set_state(generator, state)
    return source.read(index, draw.seed)


def _read_pairs(
    source: Source,
    generators: Sequence[Any],
    order: Sequence[int],
    carrier: Carrier,
    draws: tuple[Draw, Draw],
) -> Iterator[MirroredPair]:
    """Read pairs; images and maps of hundreds of samples would fill the memory, so little is kept of each."""
    reducer = InputReducer()
    for index in source.take(order, least=_MIN_READ_PAIRS):
        first, second = (_read(source, generators, index, draw) for draw in draws)
        if _find_carrier(first, second) == carrier:
            inputs = [list_leaves(item.inputs)[carrier.leaf] for item in (first, second)]
            move = _to_image if carrier.is_image else _to_cloud
            one, other = (kept for leaf in inputs if (kept := move(leaf)) is not None)
            is_judged = torch.equal(inputs[0], inputs[1].flip(carrier.axis))  # `turned_maps` asks of equal bits
            is_map = carrier.is_image and not is_judged
            maps = _compare_maps((one, other), first.target, second.target, carrier.axis) if is_map else []
            targets = _keep_targets(first.target, second.target)
            yield MirroredPair((reducer.reduce(one), reducer.reduce(other)), targets, maps)


def _compare_maps(images: tuple[Tensor, Tensor], first: Any, second: Any, axis: int) -> list[str]:
    """Tell of each leaf of the image's size if it is left or moved; neither, if it is a view of the image itself."""
    found, leaves = [], (list_leaves(first), list_leaves(second))
    for one, other in zip(*leaves, strict=True) if len(leaves[0]) == len(leaves[1]) else ():
        is_map = one.ndim > 1 and one.shape[-2:] == images[0].shape[-2:] and one.shape == other.shape
        if not is_map or all(_is_view(*pair) for pair in zip(images, (one, other), strict=True)):
            found.append("")
        else:
            is_left, is_moved = torch.equal(one, other), torch.equal(one, other.flip(axis))
            found.append("" if is_left == is_moved else "left" if is_left else "moved")
    return found


def _is_view(image: Tensor, target: Tensor) -> bool:
    """Return True for a target that is the image itself or its mirror image: a second view of it, and no mask."""
    if image.shape != target.shape:
        return False
    return any(torch.equal(image, each) for each in (target, target.flip(-1), target.flip(-2)))


def _keep_targets(first: Any, second: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    kept: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    leaves = list_leaves(first), list_leaves(second)
    if len(leaves[0]) != len(leaves[1]):
        return kept
    for name, *pair in zip(_name_leaves(first, len(leaves[0])), *leaves, strict=True):
        peaks = [places for leaf in pair if (places := _find_peaks(leaf)) is not None]
        for side, leaf in zip(kept, peaks if len(peaks) == 2 else pair, strict=True):
            if leaf.numel() <= _MAX_NUMBERS or (leaf.ndim < 3 and leaf.shape[-1] <= _MAX_BOX_COLUMNS):
                side[name] = leaf.clone()
    return kept


def _name_leaves(target: Any, count: int) -> list[str]:
    """Name the leaves of a target: a mapping of one for each key by its keys."""
    if isinstance(target, Mapping) and len(target) == count:
        return [str(key) for key in target]
    return ["target"] if count == 1 else [f"target {place}" for place in range(count)]


def _find_peaks(maps: Tensor) -> Tensor | None:
    """Find the places (J, 2), x and y, of one peak in each of some maps (J, h, w); None for other tensors.

    A map of zeros alone, as that of a joint that is not seen, has no place: NaN.
    """
    if maps.ndim != 3 or not maps.is_floating_point() or len(maps) < 2 or min(maps.shape[1:]) < _MIN_PIXELS:
        return None
    highest = maps.amax(dim=(1, 2), keepdim=True)
    weights = torch.where(maps > highest / 2, maps, 0.0)
    is_peak = (weights > 0).double().mean(dim=(1, 2)) < _MAX_PEAK
    is_empty = (highest == 0).flatten()
    if float(maps.min()) < 0 or bool(is_empty.all()) or not bool((is_peak | is_empty).all()):
        return None
    weights = weights / weights.sum(dim=(1, 2), keepdim=True)
    rows, columns = (torch.arange(size, dtype=maps.dtype) for size in maps.shape[1:])
    return torch.stack([(weights.sum(dim=1) * columns).sum(dim=1), (weights.sum(dim=2) * rows).sum(dim=1)], dim=1)


def _find_carrier(first: Batch, second: Batch) -> Carrier | None:
    """Find the leaf of the inputs that is mirrored between two reads."""
    leaves = [list_leaves(item.inputs) for item in (first, second)]
    for place, (one, other) in enumerate(zip(*leaves, strict=True)):
        if one.shape != other.shape or one.ndim < 2 or torch.equal(one, other):
            continue
        axis = (_find_flipped_axis if _to_cloud(one) is None else _find_mirrored_axis)(one, other)
        if axis is not None:
            others = [torch.equal(*pair) for number, pair in enumerate(zip(*leaves, strict=True)) if number != place]
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
    if moved.ndim < 2 or min(moved.shape[-2:]) < _MIN_PIXELS:
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


@measure()
def left_maps(flips: list[Flips]) -> dict[Carrier, int]:
    """Count the pairs whose map is left as it was where its image is mirrored; 0 if one is moved."""
    counts: dict[Carrier, int] = {}
    for carrier, pairs in flips:
        for column in zip(*(pair.maps for pair in pairs), strict=False):
            counts[carrier] = max(counts.get(carrier, 0), 0 if "moved" in column else column.count("left"))
    return counts


# --- targets ----------------------------------------------------------------------------------------------------------


class InsideOut(NamedTuple):
    """Boxes of a leaf of the target that are inside out in one of two reads, and in nothing else wrong."""

    carrier: Carrier
    leaf: str
    num_boxes: int


@measure()
def boxes_inside_out(flips: list[Flips]) -> list[InsideOut]:
    """Find boxes (left, top, right, bottom) inside out where images are mirrored, one leaf a way."""
    found: dict[Carrier, InsideOut] = {}
    for each in flips:
        for leaf in each.list_leaves() if each.carrier.is_image else ():
            is_box = all(a.ndim in (1, 2) and 4 <= a.shape[-1] <= _MAX_BOX_COLUMNS for a in leaf.first)
            num_boxes = _count_inside_out(leaf, each.carrier.axis) if is_box else 0
            if num_boxes >= _MIN_BOXES:
                found.setdefault(each.carrier, InsideOut(each.carrier, leaf.name, num_boxes))
    return list(found.values())


def _count_inside_out(leaf: Leaf, axis: int) -> int:
    """Count the boxes if, in one of the reads, all are inside out along an axis, and nothing else has changed."""
    along, across = ([0, 2], [1, 3]) if axis == -1 else ([1, 3], [0, 2])
    rows = [torch.cat([each.reshape(-1, each.shape[-1])[:, :4].double() for each in reads]) for reads in leaf[1:3]]
    is_box = (rows[0] != rows[0].roll(2, dims=1)).any(dim=1)  # rows that fill up have no size
    first, second = (each[is_box] for each in rows)
    if not len(first):
        return 0
    gaps, sums = [boxes[:, along].diff(dim=1) for boxes in (first, second)], (first + second)[:, along]
    is_reversed = any(bool((a > 0).all() and (b < 0).all()) for a, b in (gaps, gaps[::-1]))
    is_upright = torch.equal(first[:, across], second[:, across]) and bool((first[:, across].diff(dim=1) > 0).all())
    is_mirrored = float((sums - sums.mean()).abs().max()) <= _MAX_ROUNDING * float(first.abs().max())
    return len(first) if is_reversed and is_upright and is_mirrored else 0


@measure()
def sizes_as_corners(flips: list[Flips]) -> list[InsideOut]:
    """Find boxes whose first and third numbers are mirrored, and exchanged, although neither is always the larger."""
    found: dict[Carrier, InsideOut] = {}
    for each in flips:
        for leaf in each.list_leaves() if each.carrier.is_image else ():
            if not all(a.ndim in (1, 2) and 4 <= a.shape[-1] <= _MAX_BOX_COLUMNS for a in leaf.first):
                continue
            start, end = (0, 2) if each.carrier.axis == -1 else (1, 3)
            first, second = (torch.cat([a.reshape(-1, a.shape[-1])[:, :4].double() for a in side]) for side in leaf[1:])
            sums = torch.cat([first[:, start] + second[:, end], first[:, end] + second[:, start]])
            is_exchanged = float((sums - sums.mean()).abs().max()) <= _MAX_ROUNDING * float(first.abs().max())
            shares = [float((boxes[:, end] > boxes[:, start]).double().mean()) for boxes in (first, second)]
            if len(first) >= _MIN_BOXES and is_exchanged and all(_MIXED < share < 1 - _MIXED for share in shares):
                found.setdefault(each.carrier, InsideOut(each.carrier, leaf.name, len(first)))
    return list(found.values())


class Unfollowed(NamedTuple):
    """Numbers of the target that contradict mirrored inputs, in words; `mirrored` are to be c - y."""

    carrier: Carrier
    exchanged: list[str]
    mirrored: list[str]
    correction: Correction
    num_pairs: int


@measure()
def unfollowed_numbers(flips: list[Flips], boxes_inside_out: list[InsideOut]) -> list[Unfollowed]:
    """Find numbers of the target that do not follow mirrored inputs as those of plain reads do."""
    found, known = [], {each.carrier for each in boxes_inside_out}
    for carrier, pairs in flips:
        leaves = [leaf for leaf in Flips(carrier, pairs).list_leaves() if _holds_numbers(leaf)]
        num_numbers = sum(leaf.first[0].numel() for leaf in leaves)
        if carrier in known or len(pairs) < _MIN_FITTED_PAIRS or not 0 < num_numbers <= _MAX_NUMBERS:
            continue
        targets = [
            torch.cat([torch.stack(reads).double().reshape(len(pairs), -1) for reads in side], dim=1)
            for side in ([leaf.first for leaf in leaves], [leaf.second for leaf in leaves])
        ]
        plain, mirrored = zip(*(pair.inputs for pair in pairs), strict=True)
        correction = find_correction(MirroredSamples(plain, mirrored, *map(_fill, targets)))
        if correction is not None:
            rows, numbers = ([n for leaf in leaves for n in _name_numbers(leaf, whole=w)] for w in (True, False))
            exchanged = dict.fromkeys(f"{rows[first]} with {rows[second]}" for first, second in correction.exchanged)
            names = [numbers[place] for place in correction.mirrored]
            found.append(Unfollowed(carrier, list(exchanged), names, correction, len(pairs)))
    return found


def _fill(numbers: Tensor) -> Tensor:
    """Put the mean of the other samples in the place of what a sample does not have (NaN)."""
    return torch.where(numbers.isnan(), numbers.nanmean(dim=0).nan_to_num(), numbers)


def _holds_numbers(leaf: Leaf) -> bool:
    shape = leaf.first[0].shape
    is_one = all(each.shape == shape and each.is_floating_point() for each in (*leaf.first, *leaf.second))
    return is_one and 0 < shape.numel() <= _MAX_NUMBERS


def _name_numbers(leaf: Leaf, *, whole: bool) -> Iterator[str]:
    """Name each number of a leaf by its indices; the `whole` of a row (K, 2) by the first index."""
    for indices in itertools.product(*map(range, leaf.first[0].shape)):
        shown = indices[:1] if whole else indices
        yield f"{leaf.name}[{', '.join(map(str, shown))}]" if shown else leaf.name
