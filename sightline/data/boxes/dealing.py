"""Parts of a set of images with boxes that its source does not state: seeded, and alike in classes and folders."""

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
"""How images come into the parts that the source does not state: drawn by `split_seed`, or the last by name."""


def deal_by(rule: SplitRule, prepared: PreparedSet, *, seed: int) -> Deal:
    """The function that deals the images of a set into two parts."""
    return split_off_last if rule == "sorted" else partial(_deal_seeded, prepared, seed)


def _deal_seeded(
    prepared: PreparedSet, seed: int, rows: Sequence[tuple[str, int]], share: float
) -> tuple[RowRefs, RowRefs]:
    names = {split: prepared.names(split) for split in {split for split, _ in rows}}
    folders = [names[split][row].rpartition("/")[0] for split, row in rows]
    images, labels = _list_classes(prepared, rows)
    is_held = hold_out_images(images, labels, folders, count=count_held(len(rows), share), seed=seed)
    kept, held = (tuple(row for row, held in zip(rows, is_held, strict=True) if held is each) for each in (False, True))
    return kept, held


def _list_classes(prepared: PreparedSet, rows: Sequence[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Each image, by its place among the rows, with each class that it shows: (P,) and (P,) int64, no pair twice."""
    images, labels = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for split in prepared.splits:
        place_of = np.full(len(prepared.names(split)), -1)
        place_of[[row for each, row in rows if each == split]] = [n for n, row in enumerate(rows) if row[0] == split]
        image = place_of[np.repeat(np.arange(len(place_of)), np.diff(prepared.offsets(split)))]
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
    """Whether each image is held out: `count` of them, or more where classes need it.

    Images are drawn at even distances from a list that is ordered by the rarest class of each, then by folder, then by
    chance. A class of two images or more is on either side, where no other class is lost by it; one of a single image
    is trained on, where enough others are. Source: systematic sampling, Cochran 1977, chapter 8.
    """
    num_images, num_classes = len(folders), int(labels.max(initial=-1)) + 1
    sizes = np.bincount(labels, minlength=num_classes)
    draws = Draws.for_samples([SampleKey(0, 0, seed)])
    [order] = draws.stream("dealt images").permutation(num_images).numpy()
    rank = np.lexsort((np.arange(num_classes), sizes)).argsort()
    rarest = np.full(num_images, num_classes)
    np.minimum.at(rarest, images, rank[labels])
    folder = np.unique(folders, return_inverse=True)[1]
    listed = order[np.lexsort((folder[order], rarest[order]))]
    is_single = np.isin(np.arange(num_images), images[sizes[labels] == 1])
    if count <= (~is_single).sum():
        listed = listed[~is_single[listed]]
    is_held = np.zeros(num_images, dtype=bool)
    if count:
        start = float(draws.stream("first of the held out").uniform().item())
        is_held[listed[((np.arange(count) + start) * len(listed) / count).astype(np.int64)]] = True
        sides = _Sides(is_held, images, labels)
        sides.spread(np.argsort(sizes, kind="stable"), order)
        sides.even_out(count, order)
    return is_held.tolist()


class _Sides:
    """The images that remain (side 0) and those held out (side 1), and how many of each show each class."""

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
        """Move an image of each class of several that is on one side alone, where it may be moved."""
        for label in classes:
            there = self._counts[:, label]
            if there.min() > 0 or there.max() < 2:
                continue
            self._shows[:] = False
            self._shows[self._images[self._labels == label]] = True
            self._move(order[self._shows[order]], side=int(there.argmin()), most=1)

    def even_out(self, count: int, order: np.ndarray) -> None:
        """Move images that may be moved until so many are held out, or no more may."""
        surplus = int(self._is_held.sum()) - count
        self._move(order[self._is_held[order] == (surplus > 0)], side=int(surplus < 0), most=abs(surplus))

    def _move(self, images: np.ndarray, *, side: int, most: int) -> None:
        """Move so many of the images, in their order, to a side; none that alone shows a class on its own side."""
        for image in images:
            if not most:
                return
            shown = self._labels[self._begins[image] : self._begins[image + 1]]
            if (self._counts[1 - side, shown] > 1).all():
                self._is_held[image] = bool(side)
                self._counts[side, shown] += 1
                self._counts[1 - side, shown] -= 1
                most -= 1
