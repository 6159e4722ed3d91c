"""Checkpoints on disk: whole or absent after any crash; every byte verified before a tensor is used; no pickle."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from sightline.errors import CheckpointError
from sightline.regular_files import find_outward_link
from sightline.runs.atomic_files import disk_failure, sync_folder
from sightline.runs.optimizer_and_rng_state import get_rng_state, optimizer_tensors, restore_optimizer, set_rng_state
from sightline.runs.snapshots import FORMAT_VERSION, Snapshot, read_snapshot, read_steps, step_of, write_snapshot
from sightline.runs.weights import WeightLoadReport, load_weights

__all__ = [
    "FORMAT_VERSION",
    "Snapshot",
    "WeightLoadReport",
    "enclosing_run",
    "get_rng_state",
    "list_checkpoints",
    "load",
    "load_weights",
    "newest_valid",
    "optimizer_tensors",
    "resolve",
    "restore_optimizer",
    "rewind",
    "save",
    "set_rng_state",
]

_FOLDER = "checkpoints"
_LEFTOVER = re.compile(r"step_\d{8,}(\.replaced)?\.(partial|removed)", re.ASCII)
_REMEDY = "resume from it, or with --resume auto"


def _assert_nothing() -> None:
    """Stands where nobody holds the directory."""


def save(
    directory: Path,
    snapshot: Snapshot,
    *,
    keep_last: int,
    is_best: bool,
    assert_own: Callable[[], None] = _assert_nothing,
) -> Path:
    """Add a checkpoint to a run directory; at every instant the newest complete one before or after is there.

    `checkpoints/last`, and `best` if it is, point to it; the oldest beyond `keep_last` go, except where those point.
    `assert_own` raises where the directory is another run's by now, before each step that replaces or removes; with it,
    the directory has to be there.
    Raises RunError where the disk is full or read-only; what was there before is then intact.
    """
    assert keep_last >= 1, f"keep_last is {keep_last}, must be at least 1"
    assert snapshot.step >= 0, f"step is {snapshot.step}"
    shelf = directory / _FOLDER
    target = shelf / _folder_name(snapshot.step)
    try:
        assert_own()
        shelf.mkdir(parents=assert_own is _assert_nothing, exist_ok=True)  # one that was moved is not made anew
        _tidy(shelf)
        best_step = snapshot.step if is_best else _linked_step(shelf, "best")
        write_snapshot(_beside(target, "partial"), snapshot, best_step=best_step)
        assert_own()
        _swap_in(target)
        for link in ("best", "last") if is_best else ("last",):
            assert_own()
            _point(shelf, link, target.name)
        for old in _superfluous(shelf, keep_last):
            assert_own()
            _remove(old)
    except OSError as error:
        with contextlib.suppress(OSError):
            assert_own()
            _tidy(shelf)
        raise disk_failure(
            error, target, still_intact="earlier checkpoints are intact" if list_checkpoints(directory) else ""
        ) from error
    return target


def load(path: Path, *, remedy: str = _REMEDY) -> Snapshot:
    """Read a checkpoint folder, a link to one, or the `last` of a run directory.

    `remedy` is what to do with a sound one where this is damaged; by default that of training.
    Raises CheckpointError, naming the file and the newest sound checkpoint beside it, if a byte is not as it was saved.
    """
    folder = resolve(path, remedy)
    try:
        return read_snapshot(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_sound_hint(folder, remedy)}") from error


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints that a run directory keeps, oldest first."""
    return _steps(_shelf_of(directory))


def newest_valid(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run directory that verifies, and one line for each newer one that does not."""
    rejected = []
    for folder in reversed(_steps(_shelf_of(directory))):
        try:
            read_snapshot(folder)
        except CheckpointError as error:
            rejected.append(str(error))
        else:
            return folder, rejected
    return None, rejected


def rewind(directory: Path, *, step: int, assert_own: Callable[[], None] = lambda: None) -> None:
    """Make the checkpoint of `step` the newest: later ones go, `last` and `best` point where they did then.

    For a resume from an earlier step, so that no checkpoint of the abandoned future is ever taken for a newer one.
    `assert_own` as in `save`. Raises CheckpointError if there is no sound checkpoint of that step.
    """
    shelf = _shelf_of(directory)
    target = shelf / _folder_name(step)
    try:
        assert_own()
        _tidy(shelf)
        _, best_step = read_steps(target)
        best = _folder_name(best_step) if best_step is not None else None
        assert_own()
        _point(shelf, "last", target.name)
        if best and (shelf / best).is_dir():
            _point(shelf, "best", best)
        else:
            (shelf / "best").unlink(missing_ok=True)
        for folder in _steps(shelf):
            assert_own()
            if (step_of(folder) or 0) > step:
                _remove(folder)
    except OSError as error:
        raise disk_failure(error, shelf) from error


# --- writing ---------------------------------------------------------------------------------------------------------


def _swap_in(target: Path) -> None:
    """Put the partial folder in its place; one that stands there is set aside first and remains a candidate."""
    old = _beside(target, "replaced")
    if target.exists():
        os.rename(target, old)
    os.rename(_beside(target, "partial"), target)
    sync_folder(target.parent)
    if old.exists():
        _remove(old)


def _tidy(shelf: Path) -> None:
    """Remove what a killed process left; a checkpoint that was set aside and not yet replaced goes back."""
    for leftover in sorted(shelf.iterdir()):
        if leftover.name in (".last.new", ".best.new"):
            leftover.unlink()
        elif _LEFTOVER.fullmatch(leftover.name):
            shutil.rmtree(leftover)
        elif _is_set_aside(leftover) and leftover.with_suffix("").exists():
            _remove(leftover)
        elif _is_set_aside(leftover):
            os.rename(leftover, leftover.with_suffix(""))
    _link_copies(shelf)


def _link_copies(shelf: Path) -> None:
    """Make links of `last` and `best` again where a copy of the run followed them, as zip, S3 and `cp -L` do."""
    for link in ("last", "best"):
        copied = shelf / link
        if copied.is_symlink() or not copied.is_dir():
            continue
        try:
            step, _ = read_steps(copied)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {copied} is a copy in the place of a link: remove it") from error
        target = shelf / _folder_name(step)
        if target.exists():
            _remove(target)
        os.rename(copied, target)
        _point(shelf, link, target.name)


def _superfluous(shelf: Path, keep_last: int) -> list[Path]:
    pointed = {_linked_step(shelf, "last"), _linked_step(shelf, "best")}
    return [folder for folder in _steps(shelf)[:-keep_last] if step_of(folder) not in pointed]


def _remove(folder: Path) -> None:
    """Delete a checkpoint; renamed first, so that one half deleted is never mistaken for a damaged one."""
    doomed = _beside(folder, "removed")
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def _point(shelf: Path, link: str, target: str) -> None:
    temporary = shelf / f".{link}.new"
    os.symlink(target, temporary)
    os.replace(temporary, shelf / link)
    sync_folder(shelf)


# --- names -----------------------------------------------------------------------------------------------------------


def _folder_name(step: int) -> str:
    return f"step_{step:08d}"


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _is_set_aside(folder: Path) -> bool:
    return step_of(folder) is not None and folder.suffix == ".replaced"


def _steps(shelf: Path) -> list[Path]:
    """The checkpoint folders, oldest first; one that was set aside comes before the one that replaces it."""
    found = [path for path in shelf.iterdir() if step_of(path) is not None] if shelf.is_dir() else []
    return sorted(found, key=lambda path: (step_of(path), not _is_set_aside(path)))


def _linked_step(shelf: Path, link: str) -> int | None:
    path = shelf / link
    return step_of(Path(os.readlink(path))) if path.is_symlink() else None


def _shelf_of(directory: Path) -> Path:
    return directory / _FOLDER if (directory / _FOLDER).is_dir() else directory


def resolve(path: Path, remedy: str = _REMEDY) -> Path:
    """The checkpoint folder that a user's path means. Raises CheckpointError where there is none."""
    shelf = _shelf_of(path)
    if (shelf / "last").is_symlink() or shelf.name == _FOLDER:
        path = shelf / "last"
    link = f"{path}: points to '{os.readlink(path)}'" if path.is_symlink() else ""
    if find_outward_link(path.parent, [path.name]) is not None:
        raise CheckpointError(f"{link}, out of {path.parent}; give the folder itself")
    if link and not path.exists():
        raise CheckpointError(f"{link}, which is not there; {_sound_hint(path, remedy)}")
    if not path.is_dir():
        found = "is a file, not a checkpoint folder" if path.exists() else "no checkpoint is here"
        raise CheckpointError(f"{path}: {found}; give a run directory or one of its {_FOLDER}/step_... folders")
    return path.parent / os.readlink(path) if path.is_symlink() else path


def enclosing_run(place: Path) -> Path | None:
    """The run that a path is the directory of, or that a checkpoint lies in; None where there is no config beside it.

    No further than a run keeps its checkpoints: a config somewhere above does not describe copied weights.
    """
    folders = (place, *place.resolve().parents[:2])
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def _sound_hint(damaged: Path, remedy: str) -> str:
    sound, _ = newest_valid(damaged.parent)
    return f"the newest sound one is {sound}; {remedy}" if sound else "no other checkpoint beside it is sound"
