"""Seeded splits of a set of images with boxes, stratified by class and folder, if its source states none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from sightline.data.store.prepared_set import PreparedSet
from sightline.data.store.splits import Deal, RowRefs, count_held, split_off_last
from sightline.draws import Draws
from sightline.types import SampleKey

__all__ = ["SplitRule", "deal_by", "hold_out_images"]

SplitRule = Literal["seeded", "sorted"]
"""Rule for splits that the source does not state: drawn by `split_seed` (`seeded`), or the last names (`sorted`)."""


def deal_by(rule: SplitRule, prepared: PreparedSet, *, seed: int) -> Deal:
    """Return the function that splits the images of a set into two parts by the rule."""
    return split_off_last if rule == "sorted" else partial(_deal_seeded, prepared, seed)


def _deal_seeded(
    prepared: PreparedSet, seed: int, rows: Sequence[tuple[str, int]], share: float
) -> tuple[RowRefs, RowRefs]:
    names = {split: prepared.names(split) for split in {split for split, _ in rows}}
    folders = [names[split][row].rpartition("/")[0] for split, row in rows]
    images, labels = _list_classes(prepared, rows)
    is_held = hold_out_images(images, labels, folders, count=count_held(len(rows), share), seed=seed)
    remaining, held_out = (
        tuple(row for row, is_row_held in zip(rows, is_held, strict=True) if is_row_held is side)
        for side in (False, True)
    )
    return remaining, held_out


def _list_classes(prepared: PreparedSet, rows: Sequence[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the unique pairs of image and class: indices into `rows` (P,) int64, and labels (P,) int64."""
    images, labels = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for split in prepared.splits:
        index_by_row = np.full(len(prepared.names(split)), -1)
        index_by_row[[row for name, row in rows if name == split]] = [
            n for n, row in enumerate(rows) if row[0] == split
        ]
        image = index_by_row[np.repeat(np.arange(len(index_by_row)), np.diff(prepared.offsets(split)))]
        is_shown = (image >= 0) & ~prepared.array(split, "is_ignored")
        images.append(image[is_shown])
        labels.append(np.asarray(prepared.array(split, "label"))[is_shown])
    image, label = np.concatenate(images), np.concatenate(labels).astype(np.int64)
    num_classes = int(label.max(initial=0)) + 1
    pairs = np.unique(image * num_classes + label)
    return pairs // num_classes, pairs % num_classes


def hold_out_images(
    images: np.ndarray, labels: np.ndarray, folders: Sequence[str], *, count: int, seed: int
) -> list[bool]:
    """Return the hold-out mask of a stratified split: `count` images are True, or more if classes need it.

    Images are drawn at even distances from a list that is ordered by the rarest class of each, then by folder, then
    randomly. A class of two images or more is in both parts, unless another class would be lost by it; a class of a
    single image is trained on, if there are enough others. Source: systematic sampling, Cochran 1977, chapter 8.
    """
    num_images, num_classes = len(folders), int(labels.max(initial=-1)) + 1
    sizes = np.bincount(labels, minlength=num_classes)
    draws = Draws.for_samples([SampleKey(0, 0, seed)])
    [order] = draws.stream("dealt images").permutation(num_images).numpy()
    rank = np.lexsort((np.arange(num_classes), sizes)).argsort()
    rarest = np.full(num_images, num_classes)
    np.minimum.at(rarest, images, rank[labels])
    folder = np.unique(folders, return_inverse=True)[1]
    candidates = order[np.lexsort((folder[order], rarest[order]))]
    is_single = np.isin(np.arange(num_images), images[sizes[labels] == 1])
    if count <= (~is_single).sum():
        candidates = candidates[~is_single[candidates]]
    is_held = np.zeros(num_images, dtype=bool)
    if count:
        start = float(draws.stream("first of the held out").uniform().item())
        is_held[candidates[((np.arange(count) + start) * len(candidates) / count).astype(np.int64)]] = True
        sides = _Sides(is_held, images, labels)
        sides.spread(np.argsort(sizes, kind="stable"), order)
        sides.even_out(count, order)
    return is_held.tolist()


class _Sides:
    """Assignment of images to the remaining part (side 0) or the held-out part (side 1), with class counts of both."""

    def __init__(self, is_held: np.ndarray, images: np.ndarray, labels: np.ndarray) -> None:
        self._is_held, self._labels = is_held, labels
        self._begins = np.searchsorted(images, np.arange(len(is_held) + 1))
        self._shows = np.zeros(len(is_held), dtype=bool)
        self._images = images
        num_classes = int(labels.max(initial=-1)) + 1
        self._counts = np.stack(
            [np.bincount(labels[is_held[images] == side], minlength=num_classes) for side in (0, 1)]
        )

    def spread(self, classes: np.ndarray, order: np.ndarray) -> None:
        """Move one image of every class that has several images but all on one side, if no class is lost by it."""
        for label in classes:
            side_counts = self._counts[:, label]
            if side_counts.min() > 0 or side_counts.max() < 2:
                continue
            self._shows[:] = False
            self._shows[self._images[self._labels == label]] = True
            self._move(order[self._shows[order]], side=int(side_counts.argmin()), num_moves=1)

    def even_out(self, count: int, order: np.ndarray) -> None:
        """Move images until `count` are held out, or until no image can be moved without losing a class."""
        surplus = int(self._is_held.sum()) - count
        self._move(order[self._is_held[order] == (surplus > 0)], side=int(surplus < 0), num_moves=abs(surplus))

    def _move(self, images: np.ndarray, *, side: int, num_moves: int) -> None:
        """Move up to `num_moves` of the images, in order, to `side`; skip the last image of a class on its side."""
        for image in images:
            if not num_moves:
                return
            labels = self._labels[self._begins[image] : self._begins[image + 1]]
            if (self._counts[1 - side, labels] > 1).all():
                self._is_held[image] = bool(side)
                self._counts[side, labels] += 1
                self._counts[1 - side, labels] -= 1
                num_moves -= 1
