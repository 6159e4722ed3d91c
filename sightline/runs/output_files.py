"""Output files that a user requests, checked before any work is done for them and written atomically."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sightline.contract.errors import UserError
from sightline.runs.run_directory import RunDirectory


def assert_writable(path: Path, *, option: str = "--json") -> None:
    """Raise UserError if `option FILE` could not be written; the attempt leaves no file."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder; give a file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path}: is not a regular file; give another")
        folder = next(above for above in path.absolute().parents if os.path.lexists(above))
        if not folder.is_dir():
            raise UserError(f"{option} {path}: {folder} is not a folder; give another place")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror or error}; give another place") from error


def write_document(path: Path | None, document: object) -> None:
    """Write a JSON file unless `path` is None; numbers that are not finite become null."""
    if path is not None:
        _make_folder(path).write_json(path.name, document)


def write_file(path: Path | None, content: str | bytes) -> None:
    """Write a file unless `path` is None; text as UTF-8."""
    if path is None:
        return
    if isinstance(content, str):
        _make_folder(path).write_text(path.name, content)
    else:
        _make_folder(path).write_bytes(path.name, content)


def _make_folder(path: Path) -> RunDirectory:
    path.parent.mkdir(parents=True, exist_ok=True)
    return RunDirectory(path.parent, is_writer=True)
