"""CPU kernels of the plain AP: greedy matching in every frame, and the AP of frames that are drawn anew."""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def"
import numpy as np

from sightline.ops.numba_kernels import numba_kernel


@numba_kernel
def match_greedily(
    first,
    last,
    ranked,
    ranked_starts,
    detection_starts,
    truth_starts,
    pair_starts,
    fit,
    level,
    is_strict,
    truth_state,
    partner,
):
    """Write the label that each detection of the frames `first` to `last` takes into `partner` (D,).

    `ranked` lists the detections that take part, frame by frame from `ranked_starts`, by falling score. Each takes the
    free label of state 0 that fits it the most, the first of equals, by `level` or more, with `is_strict` by more; else
    one of state 1, which any number may take.
    """
    for frame in range(first, last):
        begin, end = truth_starts[frame], truth_starts[frame + 1]
        is_taken = np.zeros(end - begin, dtype=np.bool_)
        for place in range(ranked_starts[frame], ranked_starts[frame + 1]):
            row = ranked[place]
            pair = pair_starts[frame] + (row - detection_starts[frame]) * (end - begin)
            for state in range(2):
                best, chosen = level, -1
                for column in range(end - begin):
                    value = fit[pair + column]
                    if truth_state[begin + column] != state or is_taken[column]:
                        continue
                    if value > best or (value == best and chosen < 0 and not is_strict):
                        best, chosen = value, column
                if chosen >= 0:
                    partner[row] = begin + chosen
                    is_taken[chosen] = state == 0
                    break


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
