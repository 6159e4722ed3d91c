"""Reading of a config, from a file or a run directory, with the user's plugins and its skipped checks verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sightline.config import RunConfig, read_config
from sightline.engine.run_loading import config_path_of_run
from sightline.plugins import Plugin, check_recorded, load_plugins
from sightline.runs.run_documents import load_document

__all__ = ["ConfigWithPlugins", "read_with_plugins", "reread"]


class ConfigWithPlugins(NamedTuple):
    """A config, its loaded plugins, and notes on plugins that changed since its run was made."""

    config: RunConfig
    plugins: tuple[Plugin, ...]
    notes: tuple[str, ...]


def read_with_plugins(path: Path, overrides: Sequence[str] = (), plugins: Sequence[Path] = ()) -> ConfigWithPlugins:
    """Load the plugins, then read the config of a file or of a run directory under overrides.

    Raises PluginError for a plugin that a run directory needs and that is not given, ConfigError for a faulty config.
    """
    loaded = load_plugins(plugins)
    file = config_path_of_run(path)
    record = file.parent / "environment.json"
    notes: list[str] = []
    if file.name == "config.yaml" and record.exists():
        notes = check_recorded(load_document(record).get("plugins", []), loaded, run=file.parent)
    return ConfigWithPlugins(reread(path, overrides), tuple(loaded), tuple(notes))


def reread(path: Path, overrides: Sequence[str]) -> RunConfig:
    """Read the config of `read_with_plugins` again with other overrides; plugins are loaded already."""
    config = read_config(config_path_of_run(path), overrides)
    if config.checks.skip:
        from sightline.doctor.suite import assert_known

        assert_known(config)
    return config
