"""Signs in a file of results that it is not what its protocol asks for, though every row of it can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from sightline.data.boxes.detections import Detections
from sightline.metrics.box_groups import iou_or_ioa

__all__ = ["results_faults"]

_HIGHEST = 0.05
_MOST_TWICE, _MOST_EMPTY = 1e-3, 0.02
_FEWEST = 20
_BETTER = 1.5
"""By which factor another reading has to find more labels before it is the likelier one."""


_LEAST_SHARE = 0.05
"""Of the labels that another reading has to find; boxes anywhere find some by chance."""
_LARGEST_SHARE = 2.0
"""Corners up to this are shares of an image: of one and a half beyond its border, of no pixels."""
_PLAIN = "left, top, width, height"
_WANTED = "left, top, width, height in pixels of the files"
_ORDERS: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    _PLAIN: lambda a, b, c, d: np.column_stack([a, b, a + c, b + d]),
    "left, top, right, bottom": lambda a, b, c, d: np.column_stack([a, b, c, d]),
    "middle x, middle y, width, height": lambda a, b, c, d: np.column_stack(
        [a - c / 2, b - d / 2, a + c / 2, b + d / 2]
    ),
    "top, left, height, width": lambda a, b, c, d: np.column_stack([b, a, b + d, a + c]),
    "top, left, bottom, right": lambda a, b, c, d: np.column_stack([b, a, d, c]),
}
"""The corners (D, 4) that the four numbers of rows may mean."""


def results_faults(
    found: Sequence[Detections], truths: Sequence[np.ndarray], class_names: Sequence[str], *, most: int
) -> Iterator[str]:
    """Sentences on what looks wrong in detections, image by image beside `truths` (G, 7), and what to do.

    `most` detections of an image and class are looked at by the metrics of the config.
    """
    scores = np.concatenate([each.scores for each in found]) if found else np.zeros(0)
    if not len(scores):
        yield "no detection is of these images; check that the file is of this part, and that it was written to its end"
        return
    if scores.min() > _HIGHEST:
        yield (
            f"the lowest score is {scores.min():.3g}: detections below it were dropped, and curves end early; write "
            f"all from {_HIGHEST:g} on, for crowds from 0.01 on"
        )
    pairs = list(zip(found, truths, strict=True))
    empty = [each.image.name for each, truth in pairs if (truth[:, 6] == 0).any() and not len(each.scores)]
    if len(empty) > _MOST_EMPTY * len(found):
        yield (
            f"{len(empty)} of {len(found)} images have labels and no detections, such as '{empty[0]}'; their labels "
            "count as missed: write the results of all images"
        )
    rows = [np.column_stack([each.boxes, each.scores, each.label]) for each in found]
    twice = sum(len(each) - len(np.unique(each, axis=0)) for each in rows)
    if twice > _MOST_TWICE * len(scores):
        yield f"{twice} of {len(scores)} rows are there twice, and count as wrong: merge the parts of the file once"
    counts = [max(np.bincount(each.label, minlength=1)) for each in found]
    if max(counts) > most:
        yield (
            f"{sum(count > most for count in counts)} images have more than {most} detections of a class, "
            f"{max(counts)} at most; the others are not looked at: set `most` of the metrics"
        )
    wanted = max((np.bincount(t[t[:, 6] == 0, 4].astype(int), minlength=1).max() for t in truths), default=0)
    if wanted > most:
        yield f"an image has {wanted} labels of a class, and {most} detections are looked at: set `most` of the metrics"
    yield from _of_boxes(found, truths)
    if len(class_names) > 1:
        yield from _of_classes(found, truths, class_names)


def _of_boxes(found: Sequence[Detections], truths: Sequence[np.ndarray]) -> Iterator[str]:
    """Whether more labels are found once the four numbers are read otherwise, or led back from a canvas."""
    num_labels = sum(int((truth[:, 6] == 0).sum()) for truth in truths)
    plain = _num_found([each.boxes for each in found], found, truths)
    wanted = max(_BETTER * plain, _LEAST_SHARE * num_labels)
    is_share = max((np.abs(each.boxes).max(initial=0) for each in found), default=0) <= _LARGEST_SHARE
    for readings, fewest in (
        (_orders(found, is_share=is_share), _fewest(plain)),
        ({} if is_share else _canvases(found), _FEWEST),
    ):
        counts = {reading: _num_found(boxes, found, truths) for reading, (boxes, _) in readings.items()}
        best = max(counts, key=counts.__getitem__, default="")
        if counts.get(best, 0) >= max(wanted, fewest):
            yield (
                f"boxes look like {best}: so read they find {counts[best]} labels, as they are {plain}; write "
                f"{readings[best][1]}"
            )
            return


def _fewest(plain: int) -> int:
    """So many labels that chance does not find them where it finds `plain`: three deviations more, 20 at most."""
    return next((count for count in range(plain + 1, _FEWEST) if (count - plain) ** 2 >= 9 * (count + plain)), _FEWEST)


def _orders(found: Sequence[Detections], *, is_share: bool) -> dict[str, tuple[list[np.ndarray], str]]:
    """The boxes by other meanings of the numbers of a row; as shares of the image where `is_share`."""
    rows = [np.concatenate([each.boxes[:, :2], each.boxes[:, 2:] - each.boxes[:, :2]], axis=1) for each in found]
    readings = {}
    for name, corners in _ORDERS.items():
        if is_share:
            sizes = [np.array([each.image.width, each.image.height] * 2) for each in found]
            boxes = [corners(*row.T) * size for row, size in zip(rows, sizes, strict=True)]
            readings[f"{name} as shares of the image"] = boxes, _WANTED
        elif name != _PLAIN:
            readings[name] = [corners(*row.T) for row in rows], _WANTED
    return readings


def _canvases(found: Sequence[Detections]) -> dict[str, tuple[list[np.ndarray], str]]:
    """The boxes led back from a canvas that they seem to lie on."""
    canvas = np.quantile(np.concatenate([each.boxes[:, 2:] for each in found]), 0.999, axis=0)
    sizes = np.array([(each.image.width, each.image.height) for each in found])
    stretched = sizes / canvas
    ways = {"stretched to": stretched, "padded to": stretched.max(axis=1, keepdims=True).repeat(2, axis=1)}
    return {
        f"those of images {way} about {canvas[0]:.0f} x {canvas[1]:.0f} pixels": (
            [each.boxes * np.tile(factor, 2) for each, factor in zip(found, factors, strict=True)],
            "them in pixels of the files",
        )
        for way, factors in ways.items()
    }


def _num_found(boxes: Sequence[np.ndarray], found: Sequence[Detections], truths: Sequence[np.ndarray]) -> int:
    """Labels that one of the image's highest-scoring boxes, as many as labels, overlaps by half, of whatever class."""
    count = 0
    for own, each, truth in zip(boxes, found, truths, strict=True):
        real = truth[truth[:, 6] == 0]
        highest = own[np.argsort(-each.scores, kind="stable")[: len(real)]]
        count += int((iou_or_ioa(highest, real[:, :4], False).max(axis=0, initial=0) >= 0.5).sum())
    return count


def _of_classes(found: Sequence[Detections], truths: Sequence[np.ndarray], class_names: Sequence[str]) -> Iterator[str]:
    """Whether the classes of well-placed boxes fit those of labels once they are shifted by one."""
    shifts: list[np.ndarray] = []
    for each, truth in zip(found, truths, strict=True):
        real = truth[truth[:, 6] == 0]
        if len(real) and len(each.boxes):
            alike = iou_or_ioa(each.boxes, real[:, :4], False)
            shifts.append((each.label - real[alike.argmax(axis=1), 4])[alike.max(axis=1) >= 0.5])
    shift = np.concatenate(shifts) if shifts else np.zeros(0)
    right = int((shift == 0).sum())
    for by in (1, -1):
        count = int((shift == by).sum())
        if count >= max(_FEWEST, _BETTER * right):
            other = class_names[max(0, -by)], class_names[max(0, by)]
            yield (
                f"category ids look shifted by {by}: of {len(shift)} well-placed boxes {right} have the class of their "
                f"label, and {count} the {'next' if by > 0 else 'previous'} one ('{other[1]}' for '{other[0]}')"
            )
