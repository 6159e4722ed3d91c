"""Checkpoints on disk: atomic after any crash, every byte verified before a tensor is used, no pickle."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from sightline.contract.errors import CheckpointError
from sightline.contract.regular_files import find_outward_link, read_regular_file
from sightline.runs.snapshots import (
    OWN_FILES,
    Snapshot,
    is_sound,
    parse_step,
    read_snapshot,
    read_steps,
    write_snapshot,
)
from sightline.store.files.atomic_write import disk_failure, is_without_links, replace_atomic, sync_folder

_FOLDER = "checkpoints"
_LEFTOVER = re.compile(r"step_\d{8,}(\.replaced)?\.(partial|removed)", re.ASCII)
_REMEDY = "resume from it, or with --resume auto"
_MAX_NAME_BYTES = 64


def _assert_nothing() -> None:
    """Check nothing: the default of `assert_own` without a lock."""


def save(
    directory: Path,
    snapshot: Snapshot,
    *,
    keep_last: int,
    is_best: bool,
    verified_steps: Collection[int] = (),
    assert_own: Callable[[], None] = _assert_nothing,
) -> Path:
    """Add a checkpoint to a run directory; at any moment, the newest complete one is on disk.

    `checkpoints/last`, and `best` if `is_best`, link to it, or are small files with its name where the file system has
    no links; the oldest beyond `keep_last` are removed, except the linked ones. An earlier checkpoint of this step is
    replaced. A checkpoint that does not verify is kept as `step_<number>.damaged`; those of `verified_steps`, which
    this process has read or written, are not read for that.
    `assert_own` raises if the directory is another run's by now, before each step that replaces or removes; with it,
    the directory must exist.
    Raises RunError if the disk is full or read-only; earlier checkpoints are then intact.
    """
    assert keep_last >= 1, f"keep_last is {keep_last}, must be at least 1"
    assert snapshot.step >= 0, f"step is {snapshot.step}"
    folder = directory / _FOLDER
    target = folder / _format_folder_name(snapshot.step)
    try:
        assert_own()
        folder.mkdir(parents=assert_own is _assert_nothing, exist_ok=True)  # a moved directory is not created again
        _clean_up(folder)
        best_step = snapshot.step if is_best else _read_linked_step(folder, "best")
        partial = _with_suffix(target, "partial")
        write_snapshot(partial, snapshot, best_step=best_step)
        assert_own()
        _replace_checkpoint(target, partial, is_verified=snapshot.step in verified_steps)
        for link in ("best", "last") if is_best else ("last",):
            assert_own()
            _replace_link(folder, link, target.name)
        for old in _list_removable(folder, keep_last):
            assert_own()
            _remove(old, is_verified=parse_step(old) in verified_steps)
    except OSError as error:
        with contextlib.suppress(OSError):
            assert_own()
            _clean_up(folder)
        raise disk_failure(
            error, target, still_intact="earlier checkpoints are intact" if list_checkpoints(directory) else ""
        ) from error
    return target


def load(path: Path, *, remedy: str = _REMEDY) -> Snapshot:
    """Read a checkpoint folder, a link to one, or the `last` of a run directory.

    `remedy` states what to do with a sound checkpoint if this one is damaged; by default that of training.
    Raises CheckpointError, naming the file and the newest sound checkpoint in its folder, if a byte has changed.
    """
    checkpoint = resolve(path, remedy)
    try:
        return read_snapshot(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_format_sound_hint(checkpoint, remedy)}") from error


def list_checkpoints(directory: Path) -> list[Path]:
    """List the checkpoints of a run directory, oldest first."""
    return _list_step_folders(_checkpoint_folder(directory))


def newest_valid(directory: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that verifies, and one line for each newer one that does not.

    Raises OtherFormatError for a newer one of another format.
    """
    rejected = []
    for folder in reversed(_list_step_folders(_checkpoint_folder(directory))):
        try:
            read_snapshot(folder)
        except CheckpointError as error:
            rejected.append(str(error))
        else:
            return folder, rejected
    return None, rejected


def rewind(directory: Path, *, step: int, assert_own: Callable[[], None] = lambda: None) -> None:
    """Make the checkpoint of `step` the newest: remove later ones, and reset `last` and `best`.

    For a resume from an earlier step: no checkpoint of the abandoned future is ever taken for a newer one. Those that
    do not verify are kept as `step_<number>.damaged`.
    `assert_own` as in `save`. Raises CheckpointError if there is no sound checkpoint of that step.
    """
    folder = _checkpoint_folder(directory)
    target = folder / _format_folder_name(step)
    try:
        assert_own()
        _clean_up(folder)
        _, best_step = read_steps(target)
        best = _format_folder_name(best_step) if best_step is not None else None
        assert_own()
        _replace_link(folder, "last", target.name)
        if best and (folder / best).is_dir():
            _replace_link(folder, "best", best)
        else:
            (folder / "best").unlink(missing_ok=True)
        for step_folder in _list_step_folders(folder):
            assert_own()
            if (parse_step(step_folder) or 0) > step:
                _remove(step_folder)
    except OSError as error:
        raise disk_failure(error, folder) from error


# --- writing ---------------------------------------------------------------------------------------------------------


def _replace_checkpoint(target: Path, new: Path, *, is_verified: bool = False) -> None:
    """Rename the folder `new` to `target`; an existing sound one is set aside first and stays a candidate."""
    old = _with_suffix(target, "replaced")
    if target.exists() and (is_verified or is_sound(target)):
        os.rename(target, old)
    _keep(target, "damaged")
    os.rename(new, target)
    sync_folder(target.parent)
    if old.exists():
        _remove(old, is_verified=True)


def _clean_up(folder: Path) -> None:
    """Remove leftovers of a killed process; a checkpoint that was set aside and not replaced is restored."""
    for leftover in sorted(folder.iterdir()):
        if leftover.name in (".last.new", ".best.new"):
            leftover.unlink()
        elif _LEFTOVER.fullmatch(leftover.name):
            shutil.rmtree(leftover)
        elif _is_set_aside(leftover):
            target = leftover.with_suffix("")
            if target.exists() and is_sound(target):
                _remove(leftover)
            else:
                _keep(target, "damaged")
                os.rename(leftover, target)
    _restore_links(folder)


def _restore_links(folder: Path) -> None:
    """Restore the links `last` and `best` if a copy of the run followed them, as zip, S3 and `cp -L` do."""
    for link in ("last", "best"):
        copied = folder / link
        if copied.is_symlink() or not copied.is_dir():
            continue
        try:
            step, _ = read_steps(copied)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {copied} is a copy instead of a link: remove it") from error
        target = folder / _format_folder_name(step)
        _replace_checkpoint(target, copied)
        _replace_link(folder, link, target.name)


def _list_removable(folder: Path, keep_last: int) -> list[Path]:
    linked_steps = {_read_linked_step(folder, "last"), _read_linked_step(folder, "best")}
    return [path for path in _list_step_folders(folder)[:-keep_last] if parse_step(path) not in linked_steps]


def _remove(folder: Path, *, is_verified: bool = False) -> None:
    """Delete a checkpoint that verifies, unless a user has put files into it: that one is renamed to `.kept`.

    It is renamed first, so that one half deleted is never mistaken for a damaged one.
    """
    if not is_verified and not is_sound(folder):
        _keep(folder, "damaged")
        return
    if any(name not in OWN_FILES and not name.startswith(".") for name in os.listdir(folder)):
        _keep(folder, "kept")
        return
    doomed = _with_suffix(folder, "removed")
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def _keep(folder: Path, reason: str) -> None:
    """Rename a checkpoint, if it is there, to a name that ends in the reason, under which nothing looks for one."""
    if not folder.exists():
        return
    free, number = folder.with_name(f"{folder.name.removesuffix('.replaced')}.{reason}"), 1
    while os.path.lexists(free):
        number += 1
        free = folder.with_name(f"{folder.name.removesuffix('.replaced')}.{reason}.{number}")
    os.rename(folder, free)


def _replace_link(folder: Path, link: str, target: str) -> None:
    temporary = folder / f".{link}.new"
    try:
        os.symlink(target, temporary)
    except OSError as error:
        if not is_without_links(error):
            raise
        replace_atomic(folder / link, f"{target}\n".encode())
    else:
        os.replace(temporary, folder / link)
        sync_folder(folder)


# --- names -----------------------------------------------------------------------------------------------------------


def _format_folder_name(step: int) -> str:
    return f"step_{step:08d}"


def _with_suffix(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _is_set_aside(folder: Path) -> bool:
    return parse_step(folder) is not None and folder.suffix == ".replaced"


def _list_step_folders(folder: Path) -> list[Path]:
    """List checkpoint folders, oldest first; one that was set aside comes before its replacement."""
    folders = [path for path in folder.iterdir() if parse_step(path) is not None] if folder.is_dir() else []
    return sorted(folders, key=lambda path: (parse_step(path), not _is_set_aside(path)))


def _read_linked_step(folder: Path, link: str) -> int | None:
    path = folder / link
    return parse_step(Path(os.readlink(path)) if path.is_symlink() else follow(path))


def follow(path: Path) -> Path:
    """Follow a `last` or `best` that is a small file with the name of a checkpoint; return any other path as it is.

    Raises CheckpointError if the file holds something else.
    """
    if path.name not in ("last", "best") or path.is_symlink() or not path.is_file():
        return path
    try:
        name = read_regular_file(path, max_bytes=_MAX_NAME_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    if parse_step(Path(name)) is None or Path(name).name != name:
        raise CheckpointError(
            f"{path}: is a file that names no checkpoint; remove it, and give a folder step_... itself"
        )
    return path.with_name(name)


def _checkpoint_folder(directory: Path) -> Path:
    return directory / _FOLDER if (directory / _FOLDER).is_dir() else directory


def resolve(path: Path, remedy: str = _REMEDY) -> Path:
    """Resolve a user's path to a checkpoint folder. Raises CheckpointError if it leads to none."""
    folder = _checkpoint_folder(path)
    if os.path.lexists(folder / "last") or folder.name == _FOLDER:
        path = folder / "last"
    named = follow(path)
    if named != path and not named.is_dir():
        raise CheckpointError(f"{path}: names '{named.name}', which is not there; {_format_sound_hint(path, remedy)}")
    path = named
    link = f"{path}: points to '{os.readlink(path)}'" if path.is_symlink() else ""
    if find_outward_link(path.parent, [path.name]) is not None:
        raise CheckpointError(f"{link}, out of {path.parent}; give the folder itself")
    if link and not path.exists():
        raise CheckpointError(f"{link}, which is not there; {_format_sound_hint(path, remedy)}")
    if not path.is_dir():
        reason = "is a file, not a checkpoint folder" if path.exists() else "no checkpoint is here"
        raise CheckpointError(f"{path}: {reason}; give a run directory or one of its {_FOLDER}/step_... folders")
    return path.parent / os.readlink(path) if path.is_symlink() else path


def enclosing_run(path: Path) -> Path | None:
    """Return the run directory that a path is, or that contains the checkpoint `path`; None without a config.

    Only two levels are searched: a config somewhere above does not describe copied weights.
    """
    folders = (path, *path.resolve().parents[:2])
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def _format_sound_hint(damaged: Path, remedy: str) -> str:
    sound, _ = newest_valid(damaged.parent)
    return f"the newest sound one is {sound}; {remedy}" if sound else "no other checkpoint in its folder is sound"
