"""Tiles of large photos: their places, which boxes count of each, one suppression of all, and every object once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.detect.output import (
    DetectionFilter,
    GreedyNMS,
    UnsuppressedDetections,
    clip_boxes,
    concatenate_detections,
    to_file_pixels,
)
from sightline.areas.detect.tiles import PhotoTiles, tile_levels, tile_starts
from sightline.contract.types import Sample, SampleKey
from sightline.engine.tiles import predict_by_tiles
from sightline.store.box_fields import BOX_FIELDS

SIZE, OVERLAP = 64, 0.25
KEY = SampleKey(0, 0, 0)


# --- places of tiles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_px", [1, 7, 64])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.99])
def test_tiles_cover_a_side_and_share_the_overlap_and_are_the_fewest_that_do(size_px: int, overlap: float) -> None:
    for length in (1, size_px, size_px + 1, 2 * size_px, 3 * size_px + 5):
        starts = tile_starts(length, size_px=size_px, overlap=overlap)
        covered = {pixel for start in starts for pixel in range(start, start + size_px)}
        assert starts[0] == 0
        assert covered >= {*range(length)}
        if length <= size_px:
            assert len(starts) == 1
            continue
        assert starts[-1] + size_px == length
        steps = np.diff(starts)
        assert steps.max() - steps.min() <= 1
        longest = max(1, size_px - int(np.ceil(overlap * size_px)))  # a step that shares the overlap
        assert steps.max() <= longest
        assert (len(starts) - 2) * longest < length - size_px  # one tile fewer would not


def test_tiles_of_a_photo_are_its_rows_of_windows_by_hand() -> None:
    first, second = tile_levels(50, 240, size_px=60, overlap=0.0)
    assert first.tolist() == [[0, 0, 60, 50], [60, 0, 120, 50], [120, 0, 180, 50], [180, 0, 240, 50]]
    assert second.tolist() == [[0, 0, 120, 50], [120, 0, 240, 50]]
    assert len(tile_levels(50, 239, size_px=60, overlap=0.0)) == 1
    assert tile_levels(50, 60, size_px=60, overlap=0.0) == []


# --- a network that sees every pixel ----------------------------------------------------------------------------------


def draw_photo(boxes: Sequence[Sequence[int]], *, height: int, width: int) -> Sample:
    """A black photo of rectangles, the red of each its number from 1."""
    image = torch.zeros(height, width, 3, dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        image[top:bottom, left:right, 0] = number
    labels = {"boxes": torch.tensor(boxes, dtype=torch.float32), "label": torch.zeros(len(boxes), dtype=torch.int64)}
    ignored = {"is_ignored": torch.zeros(len(boxes), dtype=torch.bool)}
    to_canvas = torch.eye(3, dtype=torch.float64)[:2]
    return {"image": image, "to_canvas": to_canvas, "file_px": torch.tensor([height, width]), **labels, **ignored}


def predict(keys: Sequence[SampleKey], samples: Sequence[Sample], *, log: list[int] | None = None) -> dict[str, Any]:
    """Boxes of the visible part of each rectangle of samples; class 0, scores by the visible area."""
    assert len(keys) == len(samples)
    if log is not None:
        log.append(len(samples))
    found = []
    for sample in samples:
        red = sample["image"][:, :, 0]
        rows = []
        for number in filter(None, red.unique().tolist()):
            places = (red == number).nonzero()
            (top, left), (bottom, right) = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
            rows.append([left, top, right, bottom, 0.5 + len(places) / 1e6, 0])
        found.append(torch.tensor(rows, dtype=torch.float64).reshape(-1, 6))
    in_file = [clip_boxes(to_file_pixels(rows, s["to_canvas"], s["file_px"], clip=False), s["file_px"])
               for rows, s in zip(found, samples, strict=True)]  # fmt: skip
    return {
        "found": in_file,
        "file_px": torch.stack([sample["file_px"] for sample in samples]),
        "codes": torch.zeros(len(samples), 1, 4),
        **concatenate_detections(in_file, torch.device("cpu")),
    }


def make_tiling(*, most: int = 100, size_px: int = SIZE, overlap: float = OVERLAP) -> PhotoTiles:
    select = DetectionFilter(GreedyNMS(iou_threshold=0.5), min_score=0.0, max_per_level=1000, max_detections=most)

    def decode(predictions: Mapping[str, Any]) -> list[UnsuppressedDetections]:
        return [UnsuppressedDetections(rows, torch.arange(len(rows))) for rows in predictions["found"]]

    return PhotoTiles(decode, select, clip=True, size_px=size_px, overlap=overlap)


def detect(photos: Sequence[Sample], *, batch_size: int = 4, **settings: Any) -> list[list[list[float]]]:
    """Left, top, right, bottom of what is found in each photo, sorted."""
    keys = [KEY] * len(photos)
    first = predict(keys, photos)
    tiling = make_tiling(**settings)
    merged = predict_by_tiles(tiling, zip(keys, photos, strict=True), first, predict, batch_size=batch_size)
    bounds = merged["detection_offsets"].tolist()
    rows = [merged["detections"][begin:end, :4] for begin, end in pairwise(bounds)]
    return [sorted(of_photo.tolist()) for of_photo in rows]


PLACES = {
    "inside of one tile": (8, 8, 20, 20),
    "over the border of two": (44, 8, 56, 20),
    "over the corner of four": (42, 42, 58, 58),
    "as large as the overlap": (44, 10, 60, 26),
    "larger than the overlap": (30, 10, 70, 30),
    "larger than a tile": (5, 5, 115, 90),
    "as wide as the photo": (0, 30, 160, 40),
    "at the border of the photo": (140, 80, 160, 120),
    "touching a cut from inside": (40, 8, 64, 20),
    "touching a cut from outside": (64, 8, 80, 20),
}


@pytest.mark.parametrize("box", PLACES.values(), ids=PLACES)
def test_an_object_is_found_once_wherever_it_lies(box: tuple[int, ...]) -> None:
    assert detect([draw_photo([box], height=120, width=160)]) == [[[*map(float, box)]]]


def test_objects_of_any_size_at_any_place_are_found_once() -> None:
    generator = np.random.default_rng(3)
    for _ in range(60):
        height, width = generator.integers(30, 200, 2)
        left, top = generator.integers(0, (width - 1, height - 1))
        right, bottom = generator.integers((left + 1, top + 1), (width + 1, height + 1))
        box = [int(side) for side in (left, top, right, bottom)]
        assert detect([draw_photo([box], height=int(height), width=int(width))]) == [[[*map(float, box)]]], box


def test_many_objects_are_each_found_once_though_one_image_may_have_fewer() -> None:
    boxes = [(x, y, x + 6, y + 6) for y in range(0, 150, 12) for x in range(0, 200, 12)]
    found = detect([draw_photo(boxes, height=160, width=208)], most=40)
    assert found == [sorted([[*map(float, box)] for box in boxes])]


# --- the merging, beside a plain form of it ---------------------------------------------------------------------------


def overlap_of(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def merge_plainly(passes: list[list[list[float]]], levels: list[list[list[int]]], size: tuple[int, int]) -> Any:
    """`passes` are the rows of the tiles, level by level, and at the end of the whole photo."""
    height, width = size

    def is_whole(box: Sequence[float], window: Sequence[int], margin: float) -> bool:
        left, top, right, bottom = window
        return (
            (left == 0 or box[0] >= left + margin)
            and (top == 0 or box[1] >= top + margin)
            and (right == width or box[2] <= right - margin)
            and (bottom == height or box[3] <= bottom - margin)
        )

    rows, position = [], 0
    for number, windows in enumerate([*levels, [[0, 0, width, height]]]):
        for window in windows:
            for row in passes[position]:
                is_earlier = any(
                    is_whole(row, other, 2 * SIZE * 2**finer / 64) for finer in range(number) for other in levels[finer]
                )
                if is_whole(row, window, SIZE * 2**number / 64) and not is_earlier:
                    rows.append(row)
            position += 1
    kept: list[list[float]] = []
    for row in sorted(rows, key=lambda row: -row[4]):
        if all(other[5] != row[5] or overlap_of(other, row) <= 0.5 for other in kept):
            kept.append(row)
    border = [[max(0.0, min(side, limit)) for side, limit in zip(row[:4], (width, height) * 2, strict=True)] + row[4:]
              for row in kept]  # fmt: skip
    return border[: 100 * len(levels[0])]


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_merged_as_a_plain_loop_merges_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = (int(side) for side in generator.integers(70, 300, 2))
    levels = [windows.tolist() for windows in tile_levels(height, width, size_px=SIZE, overlap=OVERLAP)]

    def draw(window: Sequence[int], count: int) -> Tensor:
        low, high = np.array(window[:2]) - 4, np.array(window[2:]) + 4
        corners = generator.uniform(low, high, (count, 2, 2))
        corners = np.round(corners / 4) * 4  # some sides lie on the borders
        boxes = np.concatenate([corners.min(1), corners.max(1) + 1], axis=1)
        scores = generator.permutation(10_000)[:count] / 10_000 + generator.random() / 1e7
        return torch.tensor(np.column_stack([boxes, scores, generator.integers(0, 2, count)]))

    whole, *tiles = (draw(window, 40) for window in [[0, 0, width, height], *chain.from_iterable(levels)])
    passes = [UnsuppressedDetections(rows, torch.arange(len(rows))) for rows in (whole, *tiles)]
    first = predict([KEY], [draw_photo([], height=height, width=width)])
    merged = make_tiling().merge(first, [passes])["detections"]
    expected = merge_plainly([*(rows.tolist() for rows in tiles), whole.tolist()], levels, (height, width))
    assert merged.tolist() == expected


def test_a_prediction_that_is_not_finite_is_kept_so_that_it_is_reported() -> None:
    photo = draw_photo([(8, 8, 20, 20)], height=120, width=160)

    def diverge(keys: Sequence[SampleKey], samples: Sequence[Sample]) -> dict[str, Any]:
        predictions = predict(keys, samples)
        for rows in predictions["found"]:
            rows[:, 4] = torch.nan
        return predictions

    merged = predict_by_tiles(make_tiling(), [(KEY, photo)], predict([KEY], [photo]), diverge, batch_size=3)
    assert merged["detections"][:, 4].isnan().all()
    assert len(merged["detections"])


# --- batches of tiles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_tiles_are_predicted_a_few_at_a_time_with_the_same_result(batch_size: int) -> None:
    generator = np.random.default_rng(1)
    corners = generator.integers(0, (180, 130), (30, 2))
    boxes = [(int(x), int(y), int(x) + 18, int(y) + 14) for x, y in corners]
    photo, log = draw_photo(boxes, height=150, width=200), []
    arguments: Any = (make_tiling(), [(KEY, photo)], predict([KEY], [photo]))
    merged = predict_by_tiles(*arguments, partial(predict, log=log), batch_size=batch_size)
    assert max(log) == min(batch_size, sum(log))
    assert sum(log) == sum(map(len, tile_levels(150, 200, size_px=SIZE, overlap=OVERLAP)))
    expected = predict_by_tiles(*arguments, predict, batch_size=7)
    assert torch.equal(merged["detections"], expected["detections"])
    assert len(merged["detections"]) > 5


def test_a_photo_that_fits_into_a_tile_keeps_its_own_prediction() -> None:
    small = draw_photo([(3, 3, 9, 9), (3, 3, 10, 9)], height=SIZE, width=SIZE)
    large = draw_photo([(44, 8, 56, 20)], height=120, width=160)
    first = predict([KEY], [small])
    assert predict_by_tiles(make_tiling(), [(KEY, small)], first, predict, batch_size=2) is first
    assert detect([small, large, small]) == [sorted(first["detections"][:, :4].tolist()), [[44, 8, 56, 20]],
                                             sorted(first["detections"][:, :4].tolist())]  # fmt: skip


def test_tiles_share_the_pixels_of_the_photo_and_have_no_labels() -> None:
    photo = draw_photo([(44, 8, 56, 20)], height=120, width=160)
    photo["truth"], photo["truth_visible"] = torch.ones(1, 7), torch.ones(1)
    tiles = make_tiling().divide(photo)
    storage = photo["image"].untyped_storage().data_ptr()
    assert all(tile["image"].untyped_storage().data_ptr() == storage for tile in tiles)
    ragged = [name for name, field in BOX_FIELDS.items() if field.collate == "concatenate"]
    assert all(len(tile[name]) == 0 for tile in tiles for name in ragged)
    assert all(tile.keys() == photo.keys() for tile in tiles)
