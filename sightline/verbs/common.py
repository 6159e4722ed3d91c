"""What every verb on a config or a run does first."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from sightline.config import RunConfig, read_config
from sightline.engine.loading import is_run
from sightline.errors import UserError
from sightline.plugins import Plugin, check_recorded, load_plugins
from sightline.runs.run_documents import load_document
from sightline.verbs.output import note

__all__ = ["assert_writable", "config_of", "is_run", "load_document", "reread", "write_document", "write_file"]


def config_of(path: Path, overrides: Sequence[str], plugins: Sequence[Path]) -> tuple[RunConfig, list[Plugin]]:
    """The config of a file or of a run directory, with plugins loaded and overrides laid over it."""
    loaded = load_plugins(plugins)
    file = _file_of(path)
    record = file.parent / "environment.json"
    if file.name == "config.yaml" and record.exists():
        notes = check_recorded(load_document(record).get("plugins", []), loaded, run=file.parent)
        for line in notes:
            note(f"warning: {line}")
    return reread(path, overrides), loaded


def reread(path: Path, overrides: Sequence[str]) -> RunConfig:
    """The config that `config_of` gave, under other overrides: plugins are loaded, and their record was looked at."""
    config = read_config(_file_of(path), overrides)
    if config.checks.skip:
        from sightline.doctor.suite import assert_known

        assert_known(config)
    return config


def _file_of(path: Path) -> Path:
    return path / "config.yaml" if is_run(path) else path


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
    """Write what `--json FILE` asks for; numbers that are not finite become null."""
    if path is None:
        return
    from sightline.runs.run_directory import RunDirectory

    path.parent.mkdir(parents=True, exist_ok=True)
    RunDirectory(path.parent, is_writer=True).write_json(path.name, document)


def write_file(path: Path | None, text: str) -> None:
    """Write a text file that was asked for, whole or not at all."""
    if path is None:
        return
    from sightline.runs.run_directory import RunDirectory

    path.parent.mkdir(parents=True, exist_ok=True)
    RunDirectory(path.parent, is_writer=True).write_text(path.name, text)
