"""The files that answers for points are written to: what they are called, and what stands in them."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sightline.data.files.ply_writing import write_ply
from sightline.data.files.whole_files import whole_file
from sightline.errors import DataError, UserError
from sightline.pictures import colors_of
from sightline.predict.point_answers import SegmentPrediction
from sightline.runs.durable import disk_failure

__all__ = ["ENDINGS", "output_names", "write_answer", "writing"]

ENDINGS = {"labels": ".labels.npy", "ply": ".ply", "probabilities": ".probabilities.npy"}
_ROWS_AT_ONCE = 2**16


def output_names(
    files: Sequence[Path], out: Path, *, endings: Collection[str] = tuple(ENDINGS.values())
) -> dict[Path, Path]:
    """Where the answers for each file go, without an ending: into `out`, under its stem.

    What is written has one of the `endings`. Files of one folder that share a stem keep their endings; where names
    still meet, each has as many of its folders before it as it takes to part them. Raises UserError where `out` is a
    file, and where an answer would take the place of a file that is to be read.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    names = {file: out / name for file, name in _parted(files).items()}
    inputs = set(map(os.path.realpath, files))
    for name in names.values():
        for ending in endings:
            target = name.with_name(name.name + ending)
            if os.path.realpath(target) in inputs:
                raise UserError(f"--out {out}: {target} is a file to predict and would be overwritten; give another")
    return names


def write_answer(answer: SegmentPrediction, name: Path, *, probabilities: np.dtype | None) -> dict[str, Path]:
    """Write labels, the coloured cloud and, with a type for them, the probabilities; where each of them is.

    Every file is whole or absent. Raises RunError where the disk refuses one, DataError for a name too long for it.
    """
    paths = {what: name.with_name(name.name + ending) for what, ending in ENDINGS.items()}
    if probabilities is None:
        del paths["probabilities"]
    with writing(name.parent):
        name.parent.mkdir(parents=True, exist_ok=True)
    with writing(paths["labels"]), whole_file(paths["labels"]) as file:
        np.lib.format.write_array(file, answer.labels, allow_pickle=False)
    with writing(paths["ply"]):
        write_ply(paths["ply"], points=_narrowed(answer.points), colors=colors_of(answer.labels), label=answer.labels)
    if probabilities is not None:
        with writing(paths["probabilities"]), whole_file(paths["probabilities"]) as file:
            _write_probabilities(file, answer, probabilities)
    return paths


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises RunError for what the disk refuses to write, DataError for a name that is too long for it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(
                f"{path}: this name is too long for the disk; shorten that of the file to predict"
            ) from error
        raise disk_failure(error, path) from error


def _write_probabilities(file: BinaryIO, answer: SegmentPrediction, dtype: np.dtype) -> None:
    """An array (N, C), a bounded number of rows at a time."""
    assert answer.table is not None, "probabilities were not asked for"
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (answer.num_points, answer.table.shape[1]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, answer.num_points, _ROWS_AT_ONCE):
        file.write(answer.table[answer.answered[start : start + _ROWS_AT_ONCE]].astype(dtype).tobytes())


def _narrowed(points: np.ndarray) -> np.ndarray:
    """The points as float32, as viewers like them best, where that keeps every bit."""
    with np.errstate(over="ignore"):
        narrow = points.astype(np.float32)
    return narrow if np.array_equal(narrow, points) else points


def _parted(files: Sequence[Path]) -> Mapping[Path, str]:
    """A name for each file that no other has; two spellings of one path have one name."""
    paths = {file: Path(os.path.normpath(file.absolute())) for file in files}
    of_stem: dict[Path, set[Path]] = defaultdict(set)
    for path in paths.values():
        of_stem[path.parent / path.stem].add(path)
    last = {path: path.name if len(of_stem[path.parent / path.stem]) > 1 else path.stem for path in paths.values()}
    num_folders = dict.fromkeys(paths.values(), 0)
    while True:
        names = {path: "/".join([*_folders(path, count), last[path]]) for path, count in num_folders.items()}
        meeting: dict[str, list[Path]] = defaultdict(list)
        for path, name in names.items():
            meeting[name].append(path)
        clashes = [path for met in meeting.values() if len(met) > 1 for path in met]
        if not clashes:
            return {file: names[path] for file, path in paths.items()}
        for path in clashes:
            num_folders[path] += 1


def _folders(path: Path, count: int) -> tuple[str, ...]:
    """The last so many folders of a path, without its root."""
    folders = path.parent.parts[1:]
    return folders[max(0, len(folders) - count) :]
