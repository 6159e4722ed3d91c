"""The files of a prediction of points: labels, the coloured cloud and probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from sightline.data.files.ply_writing import write_ply
from sightline.data.files.whole_files import whole_file
from sightline.pictures import colors_of
from sightline.predict.output_names import writing
from sightline.predict.segment_prediction import SegmentPrediction

__all__ = ["ENDINGS", "write_point_files"]

ENDINGS = {"labels": ".labels.npy", "ply": ".ply", "probabilities": ".probabilities.npy"}
_ROWS_AT_ONCE = 2**16


def write_point_files(prediction: SegmentPrediction, name: Path, *, probabilities: np.dtype | None) -> dict[str, Path]:
    """Write labels, the coloured cloud and, with a type for them, the probabilities; where each of them is.

    Every file is whole or absent. Raises RunError where the disk refuses one, DataError for a name too long for it.
    """
    paths = {what: name.with_name(name.name + ending) for what, ending in ENDINGS.items()}
    if probabilities is None:
        del paths["probabilities"]
    with writing(name.parent):
        name.parent.mkdir(parents=True, exist_ok=True)
    with writing(paths["labels"]), whole_file(paths["labels"]) as file:
        np.lib.format.write_array(file, prediction.labels, allow_pickle=False)
    with writing(paths["ply"]):
        write_ply(
            paths["ply"],
            points=_narrowed(prediction.points),
            colors=colors_of(prediction.labels),
            label=prediction.labels,
        )
    if probabilities is not None:
        with writing(paths["probabilities"]), whole_file(paths["probabilities"]) as file:
            _write_probabilities(file, prediction, probabilities)
    return paths


def _write_probabilities(file: BinaryIO, prediction: SegmentPrediction, dtype: np.dtype) -> None:
    """An array (N, C), a bounded number of rows at a time."""
    assert prediction.table is not None, "probabilities were not asked for"
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (prediction.num_points, prediction.table.shape[1]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, prediction.num_points, _ROWS_AT_ONCE):
        file.write(prediction.table[prediction.answered[start : start + _ROWS_AT_ONCE]].astype(dtype).tobytes())


def _narrowed(points: np.ndarray) -> np.ndarray:
    """The points as float32, as viewers like them best, where that keeps every bit."""
    with np.errstate(over="ignore"):
        narrow = points.astype(np.float32)
    return narrow if np.array_equal(narrow, points) else points
