"""Loading of a config with its plugins, and writing of results, for all verbs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline.config import RunConfig
from sightline.engine.run_loading import is_run
from sightline.plugins import Plugin
from sightline.runs.output_files import assert_writable, write_document, write_file
from sightline.runs.run_documents import load_document
from sightline.training.run_configs import read_with_plugins, reread
from sightline.verbs.output import print_note

__all__ = ["assert_writable", "is_run", "load_config", "load_document", "reread", "write_document", "write_file"]


def load_config(path: Path, overrides: Sequence[str], plugins: Sequence[Path]) -> tuple[RunConfig, list[Plugin]]:
    """Load the config of a file or run directory with plugins and overrides, and print its notes."""
    read = read_with_plugins(path, overrides, plugins)
    for line in read.notes:
        print_note(f"warning: {line}")
    return read.config, list(read.plugins)
