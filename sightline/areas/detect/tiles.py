"""Tiles of large photos: their places, the boxes that count of each, and one suppression over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sightline.areas.detect.output import (
    DetectionFilter,
    UnsuppressedDetections,
    clip_boxes,
    concatenate_detections,
)
from sightline.contract.types import Sample
from sightline.ops.waits import fetch
from sightline.store.box_fields import BOX_FIELDS

_MARGIN_SHARE = 1 / 64
"""Share of a tile's side by which a box may miss the border at which its object is cut."""
_RAGGED = frozenset(name for name, field in BOX_FIELDS.items() if field.collate == "concatenate")


def tile_starts(length: int, *, size_px: int, overlap: float) -> list[int]:
    """Return the first pixels of the fewest tiles of `size_px` that cover `length` pixels, evenly spaced.

    Neighbours share at least `overlap` of a tile; one tile that begins at 0 covers what is no longer than a tile.
    """
    if length <= size_px:
        return [0]
    step = max(1, size_px - math.ceil(overlap * size_px))
    count = 1 + math.ceil((length - size_px) / step)
    return [round(index * (length - size_px) / (count - 1)) for index in range(count)]


def tile_levels(height: int, width: int, *, size_px: int, overlap: float) -> list[Tensor]:
    """Return the tiles of an image, level by level: left, top, right, bottom (T, 4) int64 in its pixels, row by row.

    Tiles of the first level have `size_px`, and of each next one twice the size, up to half of the longer side of the
    image; none for an image that is no larger than a tile.
    """
    levels: list[Tensor] = []
    border = torch.tensor([width, height, width, height])
    while size_px < max(height, width) and (not levels or 2 * size_px <= max(height, width)):
        rows, columns = (tile_starts(length, size_px=size_px, overlap=overlap) for length in (height, width))
        corners = [(left, top, left + size_px, top + size_px) for top in rows for left in columns]
        levels.append(torch.tensor(corners).minimum(border))
        size_px *= 2
    return levels


def find_whole(boxes: Tensor, windows: Tensor, image_px: tuple[int, int], *, times_margin: int = 1) -> Tensor:
    """Return which tiles of a level hold which boxes whole: boxes (N, 4) and windows (T, 4) -> bool (N, T).

    A tile does not hold a box that reaches to within a margin of one of its sides, 1/64 of the tile, unless that side
    is the border of the image of `image_px` (height, width): there no other tile sees more. Boxes with NaN are held.
    """
    margin_px = times_margin * _MARGIN_SHARE * int((windows[0, 2:] - windows[0, :2]).max())
    limits = windows.double()
    low = torch.where(limits[:, :2] > 0, limits[:, :2] + margin_px, -torch.inf)
    size = limits.new_tensor(image_px).flip(0)
    high = torch.where(limits[:, 2:] < size, limits[:, 2:] - margin_px, torch.inf)
    is_cut = (boxes[:, None, :2] < low) | (boxes[:, None, 2:] > high)
    return ~is_cut.any(dim=2)


class PhotoTiles:
    """Tiling of photos: levels of tiles of `size_px` pixels, and twice, four, ... times as many, then the whole photo.

    Tiles of a level share at least `overlap` of their sides; the whole photo has had its own pass. Each level shows
    larger objects, smaller; an object belongs to the first level of which a tile holds it whole. So of a tile those
    boxes count that do not touch a side at which it was cut, and that no tile of an earlier level holds whole. What
    counts is suppressed once, in pixels of the file, and as many are kept as of one image, for each tile of the first
    level. Detections below `min_score` are dropped before, which changes none of the others: they are suppressed by
    higher scores alone.
    `decode` returns the detections of each image of a pass before suppression, in pixels of its file, on the host.
    Source: made here; Akyon et al. 2022, Slicing Aided Hyper Inference, for tiles beside the whole photo.
    """

    def __init__(
        self,
        decode: Callable[[Mapping[str, Any]], Sequence[UnsuppressedDetections]],
        selection: DetectionFilter,
        *,
        clip: bool,
        size_px: int,
        overlap: float,
        min_score: float = 0.0,
    ) -> None:
        self._min_score = min_score
        self._decode, self._select, self._clip = decode, selection, clip
        self._layout: Any = {"size_px": size_px, "overlap": overlap}

    def divide(self, sample: Sample) -> Sequence[Sample]:
        """Return the tiles of a photo, parts of its pixels without labels; none for one that fits into a tile."""
        levels = tile_levels(*sample["image"].shape[:2], **self._layout)
        return list(_cut(sample, torch.cat(levels))) if levels else []

    def collect(self, predictions: Mapping[str, Any]) -> Sequence[UnsuppressedDetections]:
        """Return the detections of each image of a pass before suppression."""
        return [
            of_image.select(~(of_image.detections[:, 4] < self._min_score)) for of_image in self._decode(predictions)
        ]

    def merge(self, first: Mapping[str, Any], passes: Sequence[Sequence[UnsuppressedDetections]]) -> Mapping[str, Any]:
        """Return the predictions of whole photos with the detections of all `passes` over each: itself, then tiles."""
        (rows, offsets, sizes_px) = fetch([first["detections"], first["detection_offsets"], first["file_px"]])
        merged = [
            self._merge_photo(of_photo, file_px) if len(of_photo) > 1 else rows[begin:end]
            for (begin, end), of_photo, file_px in zip(pairwise(offsets.tolist()), passes, sizes_px, strict=True)
        ]
        return {**first, **concatenate_detections(merged, first["codes"].device)}

    def _merge_photo(self, passes: Sequence[UnsuppressedDetections], file_px: Tensor) -> Tensor:
        """Suppress the detections of one photo that count, jointly: (D, 6), by falling score."""
        height, width = file_px.tolist()
        levels = tile_levels(height, width, **self._layout)
        whole, *tiles = passes
        chosen, remaining = [], iter(tiles)
        for number, windows in enumerate(levels):
            for window in windows:
                chosen.append(_select_level(next(remaining), window[None], levels[:number], (height, width)))
        chosen.append(_select_level(whole, torch.tensor([[0, 0, width, height]]), levels, (height, width)))
        select = replace(self._select, max_detections=self._select.max_detections * len(levels[0]))
        survivors = select.suppress(UnsuppressedDetections.concatenate(chosen))
        return clip_boxes(survivors, file_px) if self._clip else survivors


def _select_level(
    found: UnsuppressedDetections, window: Tensor, earlier: Sequence[Tensor], image_px: tuple[int, int]
) -> UnsuppressedDetections:
    """Select the detections of a tile that count: it holds them whole, and no tile of an earlier level clearly does."""
    boxes = found.detections[:, :4]
    counts = find_whole(boxes, window, image_px)[:, 0]
    is_number = found.detections.isfinite().all(dim=1)
    for windows in earlier:
        counts &= ~(find_whole(boxes, windows, image_px, times_margin=2).any(dim=1) & is_number)
    return found.select(counts)


def _cut(sample: Sample, windows: Tensor) -> Iterator[Sample]:
    empty = {name: sample[name][:0] for name in _RAGGED & sample.keys()}
    for left, top, right, bottom in windows.tolist():
        to_tile = torch.as_tensor(sample["to_canvas"]).clone()
        to_tile[:, 2] -= to_tile.new_tensor([left, top])
        yield {**sample, **empty, "image": sample["image"][top:bottom, left:right], "to_canvas": to_tile}
