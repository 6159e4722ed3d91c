"""The files that predictions are written to: their names, and the errors of writing them."""

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
    """Where the files of each prediction go, without an ending: into `out`, under the stem of its file.

    What is written has one of the `endings`. Files of one folder that share a stem keep their endings; where names
    still meet, each has as many of its folders before it as it takes to part them. Raises UserError where `out` is a
    file, and where a written file would replace one that is to be read, or the labels (.label) beside one.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    names = {file: out / name for file, name in _parted(files).items()}
    given = [*files, *(file.with_suffix(".label") for file in files)]
    inputs = {os.path.realpath(file) for file in given if os.path.lexists(file)}
    for name in names.values():
        for ending in endings:
            target = name.with_name(name.name + ending)
            if os.path.realpath(target) in inputs:
                raise UserError(f"--out {out}: {target} {_what_it_is(target)} and would be overwritten; give another")
    return names


def _what_it_is(target: Path) -> str:
    return "holds labels beside a file to predict" if target.suffix == ".label" else "is a file to predict"


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Raises RunError for what the disk refuses to write, DataError for a name that is too long for it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(
                f"{path}: this name is too long for the disk; shorten that of the file to predict"
            ) from error
        raise disk_failure(error, path) from error


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
