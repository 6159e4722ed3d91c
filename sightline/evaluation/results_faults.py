"""Signs in a file of results that it is not what its protocol asks for, though every row of it can be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sightline.data.boxes.detections import Detections
from sightline.metrics.box_groups import overlap

__all__ = ["results_faults"]

_HIGHEST = 0.05
_MOST_TWICE, _MOST_EMPTY = 1e-3, 0.02
_FEWEST = 20
_BETTER = 1.5
"""By which factor another reading has to find more labels before it is the likelier one."""


def results_faults(
    found: Sequence[Detections], truths: Sequence[np.ndarray], class_names: Sequence[str], *, most: int
) -> Iterator[str]:
    """Sentences on what looks wrong in detections, image by image beside `truths` (G, 7), and what to do.

    `most` detections of an image and class are looked at by the metrics of the config.
    """
    scores = np.concatenate([each.scores for each in found]) if found else np.zeros(0)
    if not len(scores):
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
    yield from _of_pixels(found, truths)
    if len(class_names) > 1:
        yield from _of_classes(found, truths, class_names)


def _of_pixels(found: Sequence[Detections], truths: Sequence[np.ndarray]) -> Iterator[str]:
    """Whether more labels are found once boxes are led back from a canvas that they seem to lie on."""
    ends = np.concatenate([each.boxes[:, 2:] for each in found])
    canvas = np.quantile(ends, 0.999, axis=0)
    sizes = np.array([(each.image.width, each.image.height) for each in found])
    stretched = sizes / canvas
    readings = {"stretched to": stretched, "padded to": stretched.max(axis=1, keepdims=True).repeat(2, axis=1)}
    plain = _num_found(found, truths, np.ones_like(stretched))
    for how, factors in readings.items():
        count = _num_found(found, truths, factors)
        if count >= max(_FEWEST, _BETTER * plain):
            yield (
                f"boxes look like those of images {how} about {canvas[0]:.0f} x {canvas[1]:.0f} pixels: so read they "
                f"find {count} labels, as they are {plain}; write them in pixels of the files"
            )
            return


def _num_found(found: Sequence[Detections], truths: Sequence[np.ndarray], factors: np.ndarray) -> int:
    """Labels that one of the image's surest boxes, as many as there are labels, overlaps by half, of whatever class."""
    count = 0
    for each, truth, factor in zip(found, truths, factors, strict=True):
        real = truth[truth[:, 6] == 0]
        surest = each.boxes[np.argsort(-each.scores, kind="stable")[: len(real)]] * np.tile(factor, 2)
        count += int((overlap(surest, real[:, :4], False).max(axis=0, initial=0) >= 0.5).sum())
    return count


def _of_classes(found: Sequence[Detections], truths: Sequence[np.ndarray], class_names: Sequence[str]) -> Iterator[str]:
    """Whether the classes of well-placed boxes fit those of labels once they are shifted by one."""
    shifts: list[np.ndarray] = []
    for each, truth in zip(found, truths, strict=True):
        real = truth[truth[:, 6] == 0]
        if len(real) and len(each.boxes):
            alike = overlap(each.boxes, real[:, :4], False)
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
