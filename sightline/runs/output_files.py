"""Files that a user asks for beside a run: checked before any work is done for them, written whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sightline.errors import UserError
from sightline.runs.run_directory import RunDirectory

__all__ = ["assert_writable", "write_document", "write_file"]


def assert_writable(path: Path, *, option: str = "--json") -> None:
    """Raises UserError where `option FILE` could not be written; nothing is left of the attempt."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder; give a file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path}: is not a regular file; give another")
        folder = next(above for above in path.absolute().parents if above.exists())
        if not folder.is_dir():
            raise UserError(f"{option} {path}: {folder} is not a folder; give another place")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror or error}; give another place") from error


def write_document(path: Path | None, document: object) -> None:
    """Write a JSON file, where one is asked for; numbers that are not finite become null."""
    if path is not None:
        _folder_of(path).write_json(path.name, document)


def write_file(path: Path | None, content: str | bytes) -> None:
    """Write a file, where one is asked for; text as UTF-8."""
    if path is None:
        return
    if isinstance(content, str):
        _folder_of(path).write_text(path.name, content)
    else:
        _folder_of(path).write_bytes(path.name, content)


def _folder_of(path: Path) -> RunDirectory:
    path.parent.mkdir(parents=True, exist_ok=True)
    return RunDirectory(path.parent, is_writer=True)
