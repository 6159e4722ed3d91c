"""CPU kernels of detection matching: greedy by score, and by the largest sum of overlaps.

`match_boxes` has the rules of `box_groups.match_predictions`. Without numba both run uncompiled.
"""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def"
import numpy as np

from sightline.ops.numba_kernels import numba_kernel


@numba_kernel
def box_overlap(box, label, is_crowd, epsilon):
    """Compute the IoU of two boxes (4,); with a crowd the share of the box that it covers."""
    width = min(box[2], label[2]) - max(box[0], label[0])
    height = min(box[3], label[3]) - max(box[1], label[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (box[2] - box[0]) * (box[3] - box[1])
    if not is_crowd:
        union = union + (label[2] - label[0]) * (label[3] - label[1]) - shared
    union += epsilon
    return shared / union if union > 0 else 0.0


@numba_kernel
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
    allows_reuse,
    matched,
    ignored,
    taken,
):
    """Match the detections of groups `first` to `last`, one group for each image and class.

    `boxes` (D, 4) and `labels` (G, 4) are ordered by group from `*_starts`, detections of a group by falling score;
    `label_ignored` (A, G) marks for each area range the labels that do not count, `label_crowd` (G,) those that any
    number of detections may match, by the share of the detection that they cover; with `allows_reuse` any number may
    match any label that does not count. `epsilon` is added to the area that an overlap is divided by. At most `most`
    of a group take part. Written: `matched` and `ignored` (A, L, D), if a detection matched a label, and one that
    does not count; `taken` (A, L, G), the matched labels.
    """
    for group in range(first, last):
        num_boxes = min(box_starts[group + 1] - box_starts[group], most)
        num_labels = label_starts[group + 1] - label_starts[group]
        if num_boxes == 0 or num_labels == 0:
            continue
        overlaps = np.empty((num_boxes, num_labels))
        for row in range(num_boxes):
            box = boxes[box_starts[group] + row]
            for column in range(num_labels):
                label = label_starts[group] + column
                overlaps[row, column] = box_overlap(box, labels[label], label_crowd[label], epsilon)
        match_group(
            overlaps,
            box_starts[group],
            slice(label_starts[group], label_starts[group + 1]),
            label_ignored,
            label_crowd,
            levels,
            allows_reuse,
            matched,
            ignored,
            taken,
        )


@numba_kernel
def match_overlaps(
    first,
    last,
    overlaps,
    overlap_starts,
    box_starts,
    label_starts,
    label_ignored,
    label_crowd,
    levels,
    most,
    allows_reuse,
    matched,
    ignored,
    taken,
):
    """Match as `match_boxes`, by known `overlaps` (E,), of which those of group g begin at `overlap_starts[g]`.

    They are in rows of a detection each, in columns of a label each.
    """
    for group in range(first, last):
        num_boxes = box_starts[group + 1] - box_starts[group]
        num_labels = label_starts[group + 1] - label_starts[group]
        if num_boxes == 0 or num_labels == 0:
            continue
        of_group = overlaps[overlap_starts[group] : overlap_starts[group + 1]].reshape(num_boxes, num_labels)
        match_group(
            of_group[: min(num_boxes, most)],
            box_starts[group],
            slice(label_starts[group], label_starts[group + 1]),
            label_ignored,
            label_crowd,
            levels,
            allows_reuse,
            matched,
            ignored,
            taken,
        )


@numba_kernel
def match_group(overlaps, start, columns, label_ignored, label_crowd, levels, allows_reuse, matched, ignored, taken):
    """Match the detections of one group, the first at `start`, with its labels, at `columns`, by `overlaps` (d, g)."""
    for kind in range(len(label_ignored)):
        for level in range(len(levels)):
            threshold = min(levels[level], 1 - 1e-10)
            is_ignored, is_taken = label_ignored[kind, columns], taken[kind, level, columns]
            for row in range(len(overlaps)):
                chosen = choose_label(
                    overlaps[row], threshold, is_ignored, is_taken, label_crowd[columns], allows_reuse
                )
                if chosen >= 0:
                    is_taken[chosen] = True
                    matched[kind, level, start + row] = True
                    ignored[kind, level, start + row] = is_ignored[chosen]


@numba_kernel
def choose_label(overlaps, threshold, is_ignored, is_taken, is_crowd, allows_reuse):
    """Return the column of the last label (G,) that a box overlaps most, at `threshold` at least, or -1.

    Labels that do not count are chosen only if no other is left. A taken label is free again if it is a crowd, or with
    `allows_reuse` if it does not count.
    """
    for is_second in (False, True):
        best, chosen = threshold, -1
        for column in range(len(overlaps)):
            is_free = not is_taken[column] or is_crowd[column] or (allows_reuse and is_second)
            if is_ignored[column] == is_second and is_free and overlaps[column] >= best:
                best, chosen = overlaps[column], column
        if chosen >= 0:
            return chosen
    return -1


@numba_kernel
def count_pairs(
    first, last, boxes, box_starts, labels, label_starts, label_ignored, thresholds, level, epsilon, counts
):
    """Count pairs, detections and labels (N, T, 3) of the groups `first` to `last`.

    `boxes` (D, 5) have scores, which fall within a group. For each of the rising `thresholds` the detections above it
    are paired with labels at overlaps above `level`, for the largest sum. An unpaired one does not count if an ignored
    label covers more than `level` of it.
    """
    for group in range(first, last):
        start, begin = box_starts[group], label_starts[group]
        num_boxes, num_labels = box_starts[group + 1] - start, label_starts[group + 1] - begin
        gain = np.zeros((num_boxes, num_labels))
        is_hidden, is_inside = np.zeros(num_boxes, dtype=np.bool_), np.zeros(num_labels, dtype=np.bool_)
        num_real = 0
        for column in range(num_labels):
            if label_ignored[begin + column]:
                for row in range(num_boxes):
                    if box_overlap(boxes[start + row], labels[begin + column], True, epsilon) > level:
                        is_hidden[row] = True
                for other in range(num_labels):
                    if box_overlap(labels[begin + other], labels[begin + column], True, epsilon) > level:
                        is_inside[other] = True
                continue
            num_real += 1
            for row in range(num_boxes):
                overlap = box_overlap(boxes[start + row], labels[begin + column], False, epsilon)
                gain[row, column] = overlap if overlap > level else 0.0
        partner = np.full(num_labels, -1)
        row_price, column_price = np.zeros(num_boxes), np.zeros(num_labels)
        row = 0
        for threshold_index in range(len(thresholds) - 1, -1, -1):
            while row < num_boxes and boxes[start + row, 4] > thresholds[threshold_index]:
                augment_matching(row, gain, partner, row_price, column_price)
                row += 1
            num_pairs, num_found, num_wanted = 0, 0, num_real
            for other in range(row):
                num_found += not is_hidden[other]
            for column in range(num_labels):
                if partner[column] >= 0:
                    num_pairs += 1
                    num_found += is_hidden[partner[column]]
                elif is_inside[column] and not label_ignored[begin + column]:
                    num_wanted -= 1
            counts[group, threshold_index] = num_pairs, num_found, num_wanted


@numba_kernel
def augment_matching(start, gain, partner, row_price, column_price):
    """Add a row to a matching of the largest sum of `gain` (D, G) among the rows before it; `partner` (G,) is updated.

    Rows may stay alone, and pairs without a gain are not made. One step of the Hungarian method by shortest paths:
    prices never exceed what a pair costs, which is less than nothing by its gain. Source: Jonker and Volgenant 1987.
    """
    num_columns = len(partner)
    slack = np.full(num_columns, np.inf)
    previous_column = np.full(num_columns, -1)
    is_reached = np.zeros(num_columns, dtype=np.bool_)
    row, column = start, -1
    loose, cheapest = start, np.inf  # the row of the path that would give up its column, and what that costs
    while True:
        if -row_price[row] < cheapest:
            loose, cheapest = row, -row_price[row]
        nearest, step = -1, cheapest
        for other in range(num_columns):
            if is_reached[other]:
                continue
            if gain[row, other] > 0:
                cost = -gain[row, other] - row_price[row] - column_price[other]
                if cost < slack[other]:
                    slack[other], previous_column[other] = cost, column
            if slack[other] < step:
                nearest, step = other, slack[other]
        row_price[start] += step
        for other in range(num_columns):
            if is_reached[other]:
                row_price[partner[other]] += step
                column_price[other] -= step
            else:
                slack[other] -= step
        cheapest -= step
        if nearest < 0:
            break
        column = nearest
        is_reached[column] = True
        if partner[column] < 0:
            loose = -1
            break
        row = partner[column]
    if loose == start:
        return
    if loose >= 0:  # its column goes to the row before it on the path
        column = 0
        while partner[column] != loose:
            column += 1
    while column >= 0:
        previous = previous_column[column]
        partner[column] = partner[previous] if previous >= 0 else start
        column = previous
