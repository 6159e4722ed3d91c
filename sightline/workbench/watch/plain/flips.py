"""Reads of a data set that mirror its images or clouds: masks, boxes and numbers of the target follow them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sightline.doctor.batches import BatchForm
from sightline.doctor.objects import preserve_generators
from sightline.workbench.check.checks.data.augmentation_mismatch import augmentation_mismatch
from sightline.workbench.watch.loop import Found
from sightline.workbench.watch.plain.mirrored_reads import MIN_PIXELS, Carrier, ItemReader, MirroredPair, read_flips
from sightline.workbench.watch.plain.mirrors import (
    InputReducer,
    MirroredSamples,
    ReducedCloud,
    ReducedImage,
    find_correction,
)
from sightline.workbench.watch.plain.samples import SEEDS, list_indices, list_leaves, read

_NUM_PAIRS, _NUM_FITTED_PAIRS, _MIN_FITTED_PAIRS = 24, 300, 80
_MAX_NUMBERS = 64
_MAX_PEAK = 0.2
"""Largest share of a heat map that is above half of its highest number."""
_MAX_ROUNDING = 1e-4
_MIN_BOXES, _MAX_BOX_COLUMNS = 12, 6


def judge_flips(loader: DataLoader[Any], form: BatchForm) -> Iterator[Found]:
    """Targets move with their inputs where reads mirror them: masks, boxes, and numbers that the inputs determine.

    Nothing is said of data sets in which reads with the same random numbers differ, or do not all decide alike.
    """
    reader = ItemReader(loader, form)
    with preserve_generators(reader.generators):
        leaves = [torch.as_tensor(leaf) for leaf in list_leaves(form.split(read(loader, 0, SEEDS[0]))[1])]
        has_numbers = any(
            leaf.is_floating_point() and (leaf.numel() <= _MAX_NUMBERS or _find_peaks(leaf) is not None)
            for leaf in leaves
        )
        if not has_numbers and not any(leaf.ndim for leaf in leaves):
            return
        indices = list_indices(loader, _NUM_FITTED_PAIRS if has_numbers else _NUM_PAIRS)
        flips = read_flips(reader, indices, PairComparer(has_numbers=has_numbers).compare)
    for carrier, pairs in flips.items():
        yield from _judge_masks(carrier, pairs)
        yield from _judge_boxes(carrier, pairs) or _judge_numbers(carrier, pairs)


# --- pairs ------------------------------------------------------------------------------------------------------------


class LeafPair(NamedTuple):
    """Leaf of the target in both reads of a pair; of one with many numbers, that are no boxes, the shape alone.

    `peaks` are those of heat maps in both reads, None for other leaves. For one of the size of the image: `is_view` is
    True if it is the image itself, `is_left` if it stays when the image is mirrored, `is_moved` if it is mirrored, too.
    """

    first: Tensor
    second: Tensor
    peaks: tuple[Tensor, Tensor] | None
    has_size: bool
    is_view: bool = False
    is_left: bool = False
    is_moved: bool = False


class ComparedPair(NamedTuple):
    """Mirrored pair as it is judged: both inputs, reduced, and the leaves of the target by name.

    `leaves` is None if the reads have other numbers of them.
    """

    inputs: tuple[ReducedImage | ReducedCloud, ...]
    names: list[str]
    leaves: list[LeafPair] | None


class PairComparer:
    """Comparer of the reads of a pair, for `read_flips`; inputs are reduced if numbers of the target are fitted."""

    def __init__(self, *, has_numbers: bool) -> None:
        self._has_numbers = has_numbers
        self._reducers: dict[Carrier, InputReducer] = {}

    def compare(self, carrier: Carrier, flip: MirroredPair) -> ComparedPair:
        """Compare two reads of which one mirrors the other."""
        inputs = [carrier.get(item) for item in flip]
        targets = [[torch.as_tensor(leaf) for leaf in list_leaves(item.target)] for item in flip]
        is_alike = len(targets[0]) == len(targets[1])
        reducer = self._reducers.setdefault(carrier, InputReducer())
        return ComparedPair(
            tuple(map(reducer.reduce, inputs)) if self._has_numbers else (),
            _name_leaves(flip.first.target),
            [self._compare_leaf(carrier, inputs, pair) for pair in zip(*targets, strict=True)] if is_alike else None,
        )

    def _compare_leaf(self, carrier: Carrier, inputs: Sequence[Tensor], pair: tuple[Tensor, Tensor]) -> LeafPair:
        peaks = _find_both_peaks(*pair) if self._has_numbers else None
        first, second = map(_keep_few, pair)
        if not carrier.is_image or pair[0].shape[-2:] != inputs[0].shape[-2:]:
            return LeafPair(first, second, peaks, has_size=False)
        is_view = all(_is_view(image, leaf) for image, leaf in zip(inputs, pair, strict=True))
        is_moved = pair[1].ndim > 1 and torch.equal(pair[0], pair[1].flip(carrier.axis))
        return LeafPair(first, second, peaks, True, is_view, torch.equal(*pair), is_moved)


def _name_leaves(target: Any) -> list[str]:
    """Name the leaves of a target: a mapping of one for each key by its keys."""
    count = len(list_leaves(target))
    if isinstance(target, Mapping) and len(target) == count:
        return [str(key) for key in target]
    return ["target"] if count == 1 else [f"target {place}" for place in range(count)]


def _keep_few(leaf: Tensor) -> Tensor:
    """Return numbers that are few, or boxes, and the shape alone of others, as a tensor without memory."""
    is_few = leaf.numel() <= _MAX_NUMBERS or (leaf.ndim < 3 and leaf.shape[-1] <= _MAX_BOX_COLUMNS)
    return leaf.clone() if is_few else leaf.to("meta")


# --- targets ----------------------------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """Leaf of the target in both reads of all flips, if it has one shape in both reads of each."""

    name: str
    first: list[Tensor]
    second: list[Tensor]
    pairs: list[LeafPair]


def _list_leaves_of_targets(flips: Sequence[ComparedPair]) -> Iterator[Leaf]:
    names = flips[0].names if flips else []
    targets = [flip.leaves for flip in flips if flip.leaves is not None and len(flip.leaves) == len(names)]
    if len(targets) < len(flips):
        return
    for place, name in enumerate(names):
        pairs = [leaves[place] for leaves in targets]
        if all(pair.first.shape == pair.second.shape for pair in pairs):
            yield Leaf(name, [pair.first for pair in pairs], [pair.second for pair in pairs], pairs)


def _judge_masks(carrier: Carrier, flips: Sequence[ComparedPair]) -> Iterator[Found]:
    """Masks of the image's size are mirrored with it."""
    for leaf in _list_leaves_of_targets(flips) if carrier.is_image else ():
        if not leaf.pairs[0].has_size or all(pair.is_view for pair in leaf.pairs):
            continue
        num_left = sum(pair.is_left and not pair.is_moved for pair in leaf.pairs)
        if num_left >= 2 and not any(pair.is_moved and not pair.is_left for pair in leaf.pairs):
            yield augmentation_mismatch.with_fault(
                "images are mirrored, their masks are not",
                causes=("data.augment_target_mismatch", "data.pairing"),
                measured=f"in {num_left} pairs of reads of a sample the image is mirrored and the mask the same",
                expected="the mask mirrored with its image",
                action="flip both, by one random number",
            )
            return


def _is_view(image: Tensor, target: Tensor) -> bool:
    """Return True for a target that is the image itself or its mirror image: a second view of it, and no mask."""
    if image.shape != target.shape:
        return False
    return any(torch.equal(image, each) for each in (target, target.flip(-1), target.flip(-2)))


def _judge_boxes(carrier: Carrier, flips: Sequence[ComparedPair]) -> list[Found]:
    """Boxes (left, top, right, bottom) have their left before their right, and top before bottom, in a mirror too."""
    for leaf in _list_leaves_of_targets(flips) if carrier.is_image else ():
        is_box = all(a.ndim in (1, 2) and 4 <= a.shape[-1] <= _MAX_BOX_COLUMNS for a in leaf.first)
        num_boxes = _count_inside_out(leaf, carrier.axis) if is_box else 0
        if num_boxes < _MIN_BOXES:
            continue
        low, name, (start, end) = (0, "x", ("left", "right")) if carrier.axis == -1 else (1, "y", ("top", "bottom"))
        return [
            augmentation_mismatch.with_fault(
                f"mirrored boxes are inside out: their {start} lies beyond their {end}",
                severity="error",
                causes=("data.augment_target_mismatch", "data.target_encoding", "assign.box_format"),
                measured=f"{carrier}, and of two reads one has {leaf.name}[{low}] < {leaf.name}[{low + 2}], and the "
                f"other the reverse, with the same gap, in {num_boxes} of {num_boxes} boxes",
                expected=f"{leaf.name}[{low}] < {leaf.name}[{low + 2}] in both reads",
                action=f"exchange both ends where you mirror them: {name}0, {name}1 = size - {name}1, size - {name}0",
            )
        ]
    return []


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


def _judge_numbers(carrier: Carrier, flips: Sequence[ComparedPair]) -> list[Found]:
    """Numbers of the target follow inputs that are mirrored, as those of plain reads do."""
    leaves = [leaf for each in _list_leaves_of_targets(flips) if _holds_numbers(leaf := _to_numbers(each))]
    if len(flips) < _MIN_FITTED_PAIRS or not leaves:
        return []
    targets = [
        torch.cat([torch.stack(reads).double().reshape(len(flips), -1) for reads in side], dim=1)
        for side in ([leaf.first for leaf in leaves], [leaf.second for leaf in leaves])
    ]
    plain_inputs, mirrored_inputs = zip(*(flip.inputs for flip in flips), strict=True)
    samples = MirroredSamples(plain_inputs, mirrored_inputs, *targets)
    correction = find_correction(samples) if targets[0].shape[1] <= _MAX_NUMBERS else None
    if correction is None:
        return []
    rows, numbers = ([name for leaf in leaves for name in _name_numbers(leaf, whole=whole)] for whole in (True, False))
    pairs = dict.fromkeys(f"{rows[first]} with {rows[second]}" for first, second in correction.exchanged)
    words = [f"exchange {', '.join(pairs)}"] if pairs else []
    words += [f"mirror {', '.join(numbers[place] for place in correction.mirrored)}"] if correction.mirrored else []
    what = "a target does not follow" if correction.mirrored else "its two sides are not exchanged in the target"
    return [
        augmentation_mismatch.with_fault(
            f"{carrier}, and {what}: {' and '.join(words)}",
            severity="warning",
            causes=("data.augment_target_mismatch", "data.target_encoding", "data.pairing"),
            measured=f"a linear fit to plain reads has an R2 of {correction.plain:.2f} in other plain reads and of "
            f"{correction.given:.2f} in mirrored ones, {correction.corrected:.2f} with the correction ({len(flips)} "
            "samples; the mirrored inputs look like plain ones)",
            expected="targets that follow from mirrored inputs as they do from plain ones",
            action=f"where the inputs are mirrored, {' and '.join(words)}, or do not mirror them",
        )
    ]


def _to_numbers(leaf: Leaf) -> Leaf:
    """Return the places (J, 2) of the peaks of heat maps (J, h, w), if all are such; other leaves as they are."""
    peaks = [pair.peaks for pair in leaf.pairs if pair.peaks is not None]
    first, second = ([places[side] for places in peaks] for side in (0, 1))
    return leaf._replace(first=first, second=second) if len(peaks) == len(leaf.pairs) else leaf


def _find_both_peaks(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor] | None:
    places = _find_peaks(first)
    others = None if places is None else _find_peaks(second)
    return None if places is None or others is None else (places, others)


def _find_peaks(maps: Tensor) -> Tensor | None:
    """Find the places (J, 2), x and y, of one peak in each of some maps (J, h, w); None for other tensors."""
    if maps.ndim != 3 or not maps.is_floating_point() or len(maps) < 2 or min(maps.shape[1:]) < MIN_PIXELS:
        return None
    highest = maps.amax(dim=(1, 2), keepdim=True)
    weights = torch.where(maps > highest / 2, maps, 0.0)
    is_peak = (weights > 0).double().mean(dim=(1, 2)) < _MAX_PEAK
    if float(maps.min()) < 0 or not bool((highest > 0).all()) or not bool(is_peak.all()):
        return None
    weights = weights / weights.sum(dim=(1, 2), keepdim=True)
    rows, columns = (torch.arange(size, dtype=maps.dtype) for size in maps.shape[1:])
    return torch.stack([(weights.sum(dim=1) * columns).sum(dim=1), (weights.sum(dim=2) * rows).sum(dim=1)], dim=1)


def _holds_numbers(leaf: Leaf) -> bool:
    shape = leaf.first[0].shape
    is_one = all(each.shape == shape and each.is_floating_point() for each in (*leaf.first, *leaf.second))
    return is_one and 0 < shape.numel() <= _MAX_NUMBERS


def _name_numbers(leaf: Leaf, *, whole: bool) -> Iterator[str]:
    """Name each number of a leaf by its indices; the `whole` of a row (K, 2) by the first index."""
    shape = leaf.first[0].shape
    for indices in itertools.product(*map(range, shape)):
        shown = indices[:1] if whole else indices
        yield f"{leaf.name}[{', '.join(map(str, shown))}]" if shown else leaf.name
