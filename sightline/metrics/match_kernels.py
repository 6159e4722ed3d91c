"""COCO's matching of detections to labels, compiled; its plain form is `average_precision.match`."""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def"
import numpy as np

from sightline.compiled import compiled

__all__ = ["match_boxes"]


@compiled
def match_boxes(
    first,
    last,
    boxes,
    box_starts,
    labels,
    label_starts,
    label_ignored,
    label_crowd,
    levels,
    most,
    epsilon,
    reuses,
    found,
    ignored,
):
    """Match the detections of groups `first` to `last`, one group for each image and class.

    `boxes` (D, 4) and `labels` (G, 4) lie group after group from `*_starts`, detections of a group by falling score;
    `label_ignored` (A, G) says for each area range which labels do not count, `label_crowd` (G) which of them any
    number of detections may find, by the share of the detection that they cover; with `reuses` any number may find any
    label that does not count. `epsilon` is added to the area that an overlap is divided by. At most `most`
    of a group are looked at. Written: `found` and `ignored` (A, L, D), whether a detection found a label, and one that
    does not count.
    """
    for group in range(first, last):
        num_boxes = min(box_starts[group + 1] - box_starts[group], most)
        num_labels = label_starts[group + 1] - label_starts[group]
        if num_boxes == 0 or num_labels == 0:
            continue
        alike = np.empty((num_boxes, num_labels))
        for row in range(num_boxes):
            box = boxes[box_starts[group] + row]
            area = (box[2] - box[0]) * (box[3] - box[1])
            for column in range(num_labels):
                place = label_starts[group] + column
                label = labels[place]
                width = min(box[2], label[2]) - max(box[0], label[0])
                height = min(box[3], label[3]) - max(box[1], label[1])
                shared = max(width, 0.0) * max(height, 0.0)
                whole = area
                if not label_crowd[place]:
                    whole = area + (label[2] - label[0]) * (label[3] - label[1]) - shared
                whole += epsilon
                alike[row, column] = shared / whole if whole > 0 else 0.0
        taken = np.empty(num_labels, dtype=np.bool_)
        for kind in range(len(label_ignored)):
            for level in range(len(levels)):
                taken[:] = False
                for row in range(num_boxes):
                    best, chosen = min(levels[level], 1 - 1e-10), -1
                    for is_second in range(2):  # labels that do not count are taken only where no other is left
                        for column in range(num_labels):
                            place = label_starts[group] + column
                            if label_ignored[kind, place] != (is_second == 1):
                                continue
                            if taken[column] and not (label_crowd[place] or (reuses and is_second == 1)):
                                continue
                            if alike[row, column] >= best:
                                best, chosen = alike[row, column], column
                        if chosen >= 0:
                            break
                    if chosen >= 0:
                        taken[chosen] = True
                        found[kind, level, box_starts[group] + row] = True
                        ignored[kind, level, box_starts[group] + row] = label_ignored[
                            kind, label_starts[group] + chosen
                        ]
