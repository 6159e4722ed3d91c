"""CPU kernels of the plain AP: greedy matching in every frame, and the AP of frames that are drawn anew."""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def"
import numpy as np

from sightline.ops.numba_kernels import numba_kernel
from sightline.parts.metrics.match_kernels import choose_label


@numba_kernel
def match_greedily(
    first, last, ranked, ranked_starts, detection_starts, truth_starts, pair_starts, fit, level, truth_state, partner
):
    """Write the label that each detection of the frames `first` to `last` takes into `partner` (D,).

    `ranked` lists the detections that take part, frame by frame from `ranked_starts`, by falling score. Each takes the
    free label of state 0 that fits it the most, the first of equals, by `level` or more; else one of state 1, which any
    number may take. Labels of other states are not there.
    """
    for frame in range(first, last):
        begin, end = truth_starts[frame], truth_starts[frame + 1]
        states = truth_state[begin:end][::-1]  # `choose_label` takes the last of equals
        is_ignored, is_crowd = states == 1, np.zeros(end - begin, dtype=np.bool_)
        is_taken = np.zeros(end - begin, dtype=np.bool_)
        for place in range(ranked_starts[frame], ranked_starts[frame + 1]):
            row = ranked[place]
            pair = pair_starts[frame] + (row - detection_starts[frame]) * (end - begin)
            fits = np.where(states >= 0, fit[pair : pair + end - begin][::-1], -np.inf)
            chosen = choose_label(fits, level, is_ignored, is_taken, is_crowd, True)
            if chosen >= 0:
                partner[row] = end - 1 - chosen
                is_taken[chosen] = True


@numba_kernel
def average_resampled(first, last, times, frame, is_true, labels, averages):
    """Write the AP of each row of `times` (R, F), how often frames are drawn, into `averages` (R,); NaN for no label.

    `frame` (D,) and `is_true` (D,) are of detections by falling score, `labels` (F,) the number of labels.
    """
    for draw in range(first, last):
        total = 0
        for number in range(times.shape[1]):
            total += times[draw, number] * labels[number]
        if total == 0:
            continue
        found, seen = 0, 0
        for row in range(len(frame)):
            seen += times[draw, frame[row]]
            if is_true[row]:
                found += times[draw, frame[row]]
        best, area = 0.0, 0.0
        for row in range(len(frame) - 1, -1, -1):
            count = times[draw, frame[row]]
            if count == 0:
                continue
            if found / seen > best:
                best = found / seen
            if is_true[row]:
                area += best * count
                found -= count
            seen -= count
        averages[draw] = area / total
