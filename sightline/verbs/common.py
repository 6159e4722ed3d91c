"""What every verb on a config or a run does first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.config import RunConfig, read_config
from sightline.errors import UserError
from sightline.plugins import Plugin, check_recorded, load_plugins

__all__ = ["config_of", "is_run", "load_document", "read_for_run", "write_document"]


def is_run(path: Path) -> bool:
    """Whether a path is a run directory rather than a config file."""
    return (path / "config.yaml").is_file()


def config_of(path: Path, overrides: Sequence[str], plugins: Sequence[Path]) -> tuple[RunConfig, list[Plugin]]:
    """The config of a file or of a run directory, with plugins loaded and overrides laid over it."""
    loaded = load_plugins(plugins)
    return read_config(path / "config.yaml" if is_run(path) else path, overrides), loaded


def read_for_run(run: Path, plugins: Sequence[Path]) -> tuple[RunConfig, list[Plugin], list[str]]:
    """The config of a run directory, its plugins, and notes on plugins that changed since."""
    if not is_run(run):
        raise UserError(f"{run}: is not a run directory (no config.yaml in it)")
    loaded = load_plugins(plugins)
    notes = check_recorded(load_document(run / "environment.json").get("plugins", []), loaded, run=run)
    return read_config(run / "config.yaml"), loaded, notes


def load_document(path: Path) -> dict[str, Any]:
    """A JSON file of a run."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the run directory is incomplete") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: does not hold a mapping")
    return document


def write_document(path: Path | None, document: object) -> None:
    """Write what `--json FILE` asks for; numbers that are not finite become null."""
    if path is None:
        return
    from sightline.engine.run_directory import RunDirectory

    path.parent.mkdir(parents=True, exist_ok=True)
    RunDirectory(path.parent, is_writer=True).write_json(path.name, document)
