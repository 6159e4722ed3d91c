"""Names of the files with predictions, and the errors of writing them."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sightline.errors import DataError, UserError
from sightline.runs.atomic_files import disk_failure

__all__ = ["output_names", "report_write_errors"]


def output_names(files: Sequence[Path], out: Path, *, endings: Collection[str]) -> dict[Path, Path]:
    """Choose the path without ending of each prediction's files: in `out`, named by the stem of its file.

    The written files have one of the `endings`. Files of one folder with the same stem keep their suffixes; if names
    still collide, as many parent folders are added as make them unique. Raises UserError if `out` is a file, and if a
    written file would replace one that is to be read, or its labels (.label).
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    names = {file: out / name for file, name in _make_unique_names(files).items()}
    input_files = [*files, *(file.with_suffix(".label") for file in files)]
    inputs = {os.path.realpath(file) for file in input_files if os.path.lexists(file)}
    for name in names.values():
        for ending in endings:
            target = name.with_name(name.name + ending)
            if os.path.realpath(target) in inputs:
                raise UserError(
                    f"--out {out}: {target} {_describe_input(target)} and would be overwritten; give another"
                )
    return names


def _describe_input(target: Path) -> str:
    """Describe the input file that would be overwritten."""
    return "contains the labels of a file to predict" if target.suffix == ".label" else "is a file to predict"


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Raise RunError for a write error of the disk, DataError for a name that is too long for it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(
                f"{path}: this name is too long for the disk; shorten that of the file to predict"
            ) from error
        raise disk_failure(error, path) from error


def _make_unique_names(files: Sequence[Path]) -> Mapping[Path, str]:
    """Choose a unique name for each file; two spellings of one path share a name."""
    paths = {file: Path(os.path.normpath(file.absolute())) for file in files}
    paths_by_stem: dict[Path, set[Path]] = defaultdict(set)
    for path in paths.values():
        paths_by_stem[path.parent / path.stem].add(path)
    base_names = {
        path: path.name if len(paths_by_stem[path.parent / path.stem]) > 1 else path.stem for path in paths.values()
    }
    num_folders = dict.fromkeys(paths.values(), 0)
    while True:
        names = {path: "/".join([*_last_folders(path, count), base_names[path]]) for path, count in num_folders.items()}
        paths_by_name: dict[str, list[Path]] = defaultdict(list)
        for path, name in names.items():
            paths_by_name[name].append(path)
        clashes = [path for colliding in paths_by_name.values() if len(colliding) > 1 for path in colliding]
        if not clashes:
            return {file: names[path] for file, path in paths.items()}
        for path in clashes:
            num_folders[path] += 1


def _last_folders(path: Path, count: int) -> tuple[str, ...]:
    """Return the last `count` folders of a path, without its root."""
    folders = path.parent.parts[1:]
    return folders[max(0, len(folders) - count) :]
