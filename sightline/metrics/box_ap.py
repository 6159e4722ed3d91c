"""The average precision of boxes in the pixels of their files: COCO's twelve numbers, from all images at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline import registry
from sightline.arguments import Count
from sightline.compiled import in_threads, suits
from sightline.geometry.boxes.overlaps import ioa, iou
from sightline.metrics.average_precision import LEVELS, Matches, match, precision_and_recall
from sightline.metrics.base import State, append_rows
from sightline.metrics.match_kernels import match_boxes

__all__ = ["BoxAp"]

_AREAS = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}
"""Areas of labels as their files state them, in square pixels; both ends are inside."""
_FEWER = (1, 10)
_ROWS = {"ap50": 0, "ap75": 5}
"""The rows of `LEVELS` at 0.50 and 0.75."""


@registry.metrics.add("box_ap")
class BoxAp:
    """COCO's precision and recall of boxes, means over IoU of 0.50 to 0.95: `ap` with `ap50` and `ap75`, and `ar`.

    Reads `detections` (D, 6), left, top, right, bottom, score and class, of the images that `detection_offsets` begin,
    and `truth` (G, 7) with class, area and whether a label is ignored; all in pixels of the files. `_small`, `_medium`
    and `_large` are of labels under 32^2, up to 96^2 and above; `ar1`, `ar10` look at the surest one and ten of an
    image and class, all others at `most`. Ignored labels are crowds: they count for nothing and any number of
    detections of their class may lie in one, of every class where theirs is -1. NaN where no label is.
    Source: Lin et al. 2014, COCO, and its published evaluation.
    """

    rows = ("detections", "labels")
    higher_is_better = True

    def __init__(self, *, class_names: tuple[str, ...], most: Count = 100) -> None:
        self.class_names = tuple(class_names)
        self.most = most

    def new_state(self) -> State:
        """Detections and labels, none yet."""
        sizes = {"detections": 7, "labels": 8}
        return {name: torch.zeros(0, columns, dtype=torch.float64) for name, columns in sizes.items()}

    def update(
        self,
        state: State,
        *,
        detections: Tensor,
        detection_offsets: Tensor,
        truth: Tensor,
        truth_offsets: Tensor,
        sample_index: Tensor,
    ) -> None:
        """Add the images of a batch."""
        for name, rows, offsets in (("detections", detections, detection_offsets), ("labels", truth, truth_offsets)):
            append_rows(state, name, sample_index.repeat_interleave(offsets.diff()), rows)

    def compute(self, state: State) -> dict[str, float]:
        """The numbers, means over classes that have labels."""
        groups = _group(state, self.most, len(self.class_names))
        result, recalls = {}, {}
        for area in _AREAS:
            curves = [groups.curve(number, area, self.most) for number in range(len(self.class_names))]
            result[f"ap{area}"] = _mean([precision for precision, _ in curves])
            recalls[f"ar{area}"] = _mean([recall for _, recall in curves])
            if not area:
                for name, row in _ROWS.items():
                    result[name] = _mean([precision[row] for precision, _ in curves])
        for fewer in _FEWER:
            curves = [groups.curve(number, "", fewer) for number in range(len(self.class_names))]
            recalls[f"ar{fewer}"] = _mean([recall for _, recall in curves])
        return result | recalls

    def tables(self, state: State) -> dict[str, Any]:
        """`scored_boxes`: by which protocol, how many labels count, and how many are ignored."""
        num_ignored = int((state["labels"][:, 7] > 0).sum())
        return {
            "scored_boxes": {
                "protocol": f"COCO, IoU 0.50 to 0.95, at most {self.most} an image and class",
                "num_boxes": len(state["labels"]) - num_ignored,
                "num_ignored": num_ignored,
            }
        }

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """`ap`, `ap50`, and how many labels count, of every class."""
        groups = _group(state, self.most, len(self.class_names))
        result: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(self.class_names):
            precision, _ = groups.curve(number, "", self.most)
            count = int((groups.label_class[~groups.label_ignored[0]] == number).sum())
            result[name] = {"ap": _mean([precision]), "ap50": _mean([precision[0]]), "count": count}
        return result


class _Groups(NamedTuple):
    """Detections and labels sorted by class and image, detections then by falling score; what was matched with what."""

    scores: np.ndarray
    box_class: np.ndarray
    rank: np.ndarray
    label_class: np.ndarray
    label_ignored: np.ndarray
    found: np.ndarray
    ignored: np.ndarray

    def curve(self, number: int, area: str, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Precision (L, 101) and recall (L) of a class, of the `most` surest detections of every image."""
        kind = list(_AREAS).index(area)
        own, its = (slice(*np.searchsorted(each, [number, number + 1])) for each in (self.box_class, self.label_class))
        chosen = self.rank[own] < most
        found, ignored = (each[kind][:, own][:, chosen] for each in (self.found, self.ignored))
        num_labels = int((~self.label_ignored[kind][its]).sum())
        return precision_and_recall([Matches(self.scores[own][chosen], found, ignored, num_labels)])


def _group(state: State, most: int, num_classes: int) -> _Groups:
    """Every detection matched within its image and class; labels of no class are in all classes."""
    boxes, labels = (state[name].cpu().numpy() for name in ("detections", "labels"))
    has_class = labels[:, 5] >= 0
    copies = np.repeat(labels[~has_class], num_classes, axis=0)
    copies[:, 5] = np.tile(np.arange(num_classes), int((~has_class).sum()))
    labels = np.concatenate([labels[has_class], copies])
    boxes = boxes[np.lexsort((-boxes[:, 5], boxes[:, 0], boxes[:, 6]))]
    labels = labels[np.lexsort((labels[:, 0], labels[:, 5]))]
    pairs = [(boxes[:, 6], boxes[:, 0]), (labels[:, 5], labels[:, 0])]
    num_images = 1 + max(images.max(initial=0) for _, images in pairs)
    keys = [(classes * num_images + images).astype(np.int64) for classes, images in pairs]
    groups = np.unique(np.concatenate(keys))
    starts = [np.append(np.searchsorted(each, groups), len(each)) for each in keys]
    rank = np.arange(len(boxes)) - np.repeat(starts[0][:-1], np.diff(starts[0]))
    area, is_crowd = labels[:, 6], labels[:, 7] > 0
    label_ignored = np.stack([is_crowd | (area < low) | (area > high) for low, high in _AREAS.values()])
    found = np.zeros((len(_AREAS), len(LEVELS), len(boxes)), dtype=bool)
    ignored = np.zeros_like(found)
    arguments = (boxes[:, 1:5], starts[0], labels[:, 1:5], starts[1], label_ignored, is_crowd, LEVELS, most)
    if suits(state["detections"].cpu()):
        in_threads(match_boxes, len(groups), *map(np.ascontiguousarray, arguments[:-1]), most, found, ignored)
    else:
        _match_plainly(*arguments, boxes[:, 5], found, ignored)
    sizes = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
    is_other = np.stack([(sizes < low) | (sizes > high) for low, high in _AREAS.values()])
    ignored |= ~found & is_other[:, None]
    return _Groups(boxes[:, 5], boxes[:, 6], rank, labels[:, 5], label_ignored, found, ignored)


def _match_plainly(
    boxes: np.ndarray,
    box_starts: np.ndarray,
    labels: np.ndarray,
    label_starts: np.ndarray,
    label_ignored: np.ndarray,
    is_crowd: np.ndarray,
    levels: np.ndarray,
    most: int,
    scores: np.ndarray,
    found: np.ndarray,
    ignored: np.ndarray,
) -> None:
    """What `match_boxes` writes, group by group through `match`."""
    for group in range(len(box_starts) - 1):
        own, its = slice(*box_starts[group : group + 2]), slice(*label_starts[group : group + 2])
        own = slice(own.start, min(own.stop, own.start + most))
        pair = torch.from_numpy(boxes[own])[:, None], torch.from_numpy(labels[its])
        alike = torch.where(torch.from_numpy(is_crowd[its]), ioa(*pair), iou(*pair)).numpy()
        for kind in range(len(label_ignored)):
            matches = match(
                alike,
                scores[own],
                is_ignored=label_ignored[kind, its],
                is_crowd=is_crowd[its],
                is_other=np.zeros(len(alike), dtype=bool),
                most=most,
                levels=levels,
            )
            found[kind][:, own], ignored[kind][:, own] = matches.is_found, matches.is_ignored


def _mean(values: list[np.ndarray]) -> float:
    """Over what is there; NaN where nothing is."""
    flat = np.concatenate([np.ravel(each) for each in values]) if values else np.zeros(0)
    there = flat[flat > -1]
    return float(there.mean()) if there.size else float("nan")
