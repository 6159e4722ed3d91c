"""Files of a point prediction: labels, coloured cloud and probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sightline.data.files.atomic_write import open_atomic
from sightline.data.files.ply_writing import write_ply
from sightline.data.files.scan_files import write_label_ids
from sightline.pictures import label_colors
from sightline.predict.output_names import report_write_errors
from sightline.predict.segment_prediction import SegmentPrediction

__all__ = ["ENDINGS", "write_point_files"]

ENDINGS = {"labels": ".labels.npy", "ply": ".ply", "probabilities": ".probabilities.npy", "label": ".label"}
"""Ending of each kind of file; `label` contains ids, in the format of SemanticKITTI."""
_ROWS_AT_ONCE = 2**16


def write_point_files(
    prediction: SegmentPrediction,
    paths: Mapping[str, Path],
    *,
    probabilities: np.dtype | None = None,
    ids: np.ndarray | None = None,
) -> None:
    """Write the files of these kinds (`ENDINGS`); `probabilities` is the stored dtype, `ids` (N,) replace the labels.

    Every file is complete or absent. Raises RunError for a write error, DataError for a name too long for the disk.
    """
    for path in paths.values():
        with report_write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
    if "labels" in paths:
        with report_write_errors(paths["labels"]), open_atomic(paths["labels"]) as file:
            np.lib.format.write_array(file, prediction.labels, allow_pickle=False)
    if "ply" in paths:
        with report_write_errors(paths["ply"]):
            write_ply(
                paths["ply"],
                points=_to_float32(prediction.points),
                colors=label_colors(prediction.labels),
                label=prediction.labels,
            )
    if "label" in paths:
        assert ids is not None, "label files hold ids"
        with report_write_errors(paths["label"]):
            write_label_ids(paths["label"], ids)
    if "probabilities" in paths:
        assert probabilities is not None, "probabilities are stored in a type"
        with report_write_errors(paths["probabilities"]), open_atomic(paths["probabilities"]) as file:
            _write_probabilities(file, prediction, probabilities)


def _write_probabilities(file: BinaryIO, prediction: SegmentPrediction, dtype: np.dtype) -> None:
    """Write an array (N, C), a bounded number of rows at a time."""
    assert prediction.table is not None, "probabilities were not asked for"
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (prediction.num_points, prediction.table.shape[1]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, prediction.num_points, _ROWS_AT_ONCE):
        file.write(prediction.table[prediction.table_rows[start : start + _ROWS_AT_ONCE]].astype(dtype).tobytes())


def _to_float32(points: np.ndarray) -> np.ndarray:
    """Convert the points to float32, which viewers read best, if that keeps every bit."""
    with np.errstate(over="ignore"):
        narrow = points.astype(np.float32)
    return narrow if np.array_equal(narrow, points) else points
