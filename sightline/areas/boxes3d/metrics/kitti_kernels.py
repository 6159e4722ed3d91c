"""CPU kernels of KITTI's two passes over all frames. Without numba they run uncompiled."""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def"
import numpy as np

from sightline.ops.numba_kernels import numba_kernel

COUNTS, IGNORED, UNSEEN = 0, 1, -1
"""States of labels and detections for one class and difficulty."""


@numba_kernel
def find_true_scores(
    first,
    last,
    detection_starts,
    truth_starts,
    pair_starts,
    overlaps,
    level,
    truth_state,
    detection_state,
    scores,
    found,
):
    """Write the score of the detection that each label that counts is first found by into `found` (T,); NaN for none.

    Labels take their turn in order: each takes the free detection of the highest score, the first of equals, that
    overlaps it by more than `level`. The score is one of a find only where both count.
    """
    for frame in range(first, last):
        start, stop = detection_starts[frame], detection_starts[frame + 1]
        begin, end = truth_starts[frame], truth_starts[frame + 1]
        is_taken = np.zeros(stop - start, dtype=np.bool_)
        for truth in range(begin, end):
            if truth_state[truth] == -1:
                continue
            chosen, best = -1, -np.inf
            for row in range(stop - start):
                if detection_state[start + row] == -1 or is_taken[row]:
                    continue
                overlap = overlaps[pair_starts[frame] + row * (end - begin) + truth - begin]
                if overlap > level and scores[start + row] > best:
                    chosen, best = row, scores[start + row]
            if chosen >= 0:
                is_taken[chosen] = True
                if truth_state[truth] == 0 and detection_state[start + chosen] == 0:
                    found[truth] = best


@numba_kernel
def count_finds(
    first,
    last,
    detection_starts,
    truth_starts,
    pair_starts,
    overlaps,
    level,
    truth_state,
    detection_state,
    scores,
    hidden,
    truth_alpha,
    detection_alpha,
    thresholds,
    counts,
    likeness,
):
    """Count found labels and false detections of each frame and score threshold (F, K), and sum likeness of angles.

    Detections below the threshold are out. Labels take their turn in order: each takes the free detection that overlaps
    it the most, by more than `level`, of those that count; of the others only where none of these does. What neither
    counts nor is of another class is a false detection if it is free, unless a region of no class hides more than
    `level` of it, `hidden` (D,). Written: `counts` (F, K, 2), `likeness` (F, K), (1 + cos of the difference) / 2.
    """
    for frame in range(first, last):
        start, stop = detection_starts[frame], detection_starts[frame + 1]
        begin, end = truth_starts[frame], truth_starts[frame + 1]
        is_taken = np.zeros(stop - start, dtype=np.bool_)
        for step in range(len(thresholds)):
            for row in range(stop - start):
                is_taken[row] = scores[start + row] < thresholds[step]
            num_found, alike = 0, 0.0
            for truth in range(begin, end):
                if truth_state[truth] == -1:
                    continue
                chosen, best, is_spare = -1, level, False
                for row in range(stop - start):
                    if is_taken[row] or detection_state[start + row] == -1:
                        continue
                    overlap = overlaps[pair_starts[frame] + row * (end - begin) + truth - begin]
                    if not overlap > level:
                        continue
                    if detection_state[start + row] == 0:
                        if overlap > best:
                            chosen, best, is_spare = row, overlap, False
                    elif chosen < 0:
                        chosen, is_spare = row, True
                if chosen < 0:
                    continue
                is_taken[chosen] = True
                if truth_state[truth] == 0 and not is_spare:
                    num_found += 1
                    alike += (1.0 + np.cos(truth_alpha[truth] - detection_alpha[start + chosen])) / 2.0
            num_false = 0
            for row in range(stop - start):
                if not is_taken[row] and detection_state[start + row] == 0 and not hidden[start + row] > level:
                    num_false += 1
            counts[frame, step, 0] = num_found
            counts[frame, step, 1] = num_false
            likeness[frame, step] = alike
