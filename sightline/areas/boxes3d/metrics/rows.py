"""Rows of detections and labels that metrics of 3D boxes collect, and their grouping by frame."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.metric import Metric, State, append_rows

__all__ = ["Box3dRows", "DetectionColumn", "FrameGroups", "ImageColumn", "TruthColumn", "assert_scored", "group_frames"]


class DetectionColumn:
    """Columns (9) of `detections3d`: the box x y z dx dy dz yaw, score, and class, -1 for one that is not scored."""

    BOX, SCORE, CLASS = slice(0, 7), 7, 8


class TruthColumn:
    """Columns (9) of `truth3d`: the box, class (-1 for a region of no class), and 1 if the label is ignored."""

    BOX, CLASS, IS_IGNORED = slice(0, 7), 7, 8


class ImageColumn:
    """Columns of `detections3d_image` (5), and of `kitti_truth` after those of `truth3d` (7), NaN where not stated.

    Left, top, right, bottom in pixels, and the angle of observation; of labels truncation and occlusion, too.
    """

    CORNERS, TOP, BOTTOM, ALPHA, TRUNCATED, OCCLUDED = slice(0, 4), 1, 3, 4, 5, 6


class FrameGroups(NamedTuple):
    """Detections (D, K) and truths (T, L) of F frames, in the order of frames and, within one, that of their files.

    Those of frame f begin at `detection_starts[f]` and `truth_starts[f]`, its pairs at `pair_starts[f]`: pairs (P,) are
    all detections of a frame with all its truths, the truths of a detection side by side. `frames` (F,) are indices of
    samples, `detection_frame` (D,) and `truth_frame` (T,) rows of it.
    """

    detections: np.ndarray
    truths: np.ndarray
    frames: np.ndarray
    detection_starts: np.ndarray
    truth_starts: np.ndarray
    pair_starts: np.ndarray
    detection_frame: np.ndarray
    truth_frame: np.ndarray

    @property
    def starts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three beginnings of frames, as kernels take them."""
        return self.detection_starts, self.truth_starts, self.pair_starts

    def list_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the detection (P,) and the truth (P,) of each pair."""
        num_truths = np.diff(self.truth_starts)[self.detection_frame]
        detection = np.repeat(np.arange(len(self.detections)), num_truths)
        first_pair = np.repeat(np.cumsum(num_truths) - num_truths, num_truths)
        truth = np.arange(len(detection)) - first_pair + self.truth_starts[:-1][self.detection_frame[detection]]
        return detection, truth


def group_frames(detections: Tensor, truths: Tensor) -> FrameGroups:
    """Group the rows of metric states, in the order of samples: detections (D, 1 + K), truths (T, 1 + L)."""
    arrays = [rows.cpu().numpy() for rows in (detections, truths)]
    frames = np.unique(np.concatenate([rows[:, 0] for rows in arrays]))
    detection_frame, truth_frame = (np.searchsorted(frames, rows[:, 0]) for rows in arrays)
    counts = [np.bincount(of_row, minlength=len(frames)) for of_row in (detection_frame, truth_frame)]
    first, second, pairs = (
        np.append(0, np.cumsum(count)).astype(np.int64) for count in (*counts, counts[0] * counts[1])
    )
    found, labelled = (np.ascontiguousarray(rows[:, 1:]) for rows in arrays)
    return FrameGroups(found, labelled, frames.astype(np.int64), first, second, pairs, detection_frame, truth_frame)


class Box3dRows(Metric):
    """Base of metrics of detections and labels in the frame of the scanner, without what images state of them."""

    rows = ("detections", "truths")

    def new_state(self) -> State:
        """Return empty detections and truths."""
        return {name: torch.zeros(0, 10, dtype=torch.float64) for name in self.rows}

    def update(
        self,
        state: State,
        *,
        detections3d: Tensor,
        detections3d_offsets: Tensor,
        truth3d: Tensor,
        truth3d_offsets: Tensor,
        sample_index: Tensor,
    ) -> None:
        """Add the frames of a batch: detections3d (D, 9), truth3d (T, 9), offsets (B+1,), sample_index (B,).

        Raises ValueError for scores that are NaN.
        """
        assert_scored(detections3d)
        append_rows(state, "detections", sample_index.repeat_interleave(detections3d_offsets.diff()), detections3d)
        append_rows(state, "truths", sample_index.repeat_interleave(truth3d_offsets.diff()), truth3d)


def assert_scored(detections3d: Tensor) -> None:
    """Raise ValueError if scores of detections (D, 9) are NaN."""
    is_nan = detections3d[:, DetectionColumn.SCORE].isnan()
    if bool(is_nan.any()):
        raise ValueError(
            f"detections3d: the scores of {int(is_nan.sum())} of {len(detections3d)} are NaN; find where with "
            "`sightline check`"
        )
