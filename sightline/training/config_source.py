"""Reading of a config from whatever states one, with the user's plugins loaded and its skipped checks verified."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from sightline.config import RunConfig, read_config
from sightline.config.prepared_name import is_of_folder
from sightline.contract.call_arguments import to_path, to_paths, to_texts
from sightline.contract.errors import UserError
from sightline.contract.plugins import Plugin, check_recorded, load_plugins
from sightline.runs.run_documents import load_document
from sightline.runs.run_files import config_path_of_run

logger = logging.getLogger(__name__)


class ConfigWithPlugins(NamedTuple):
    """A config, its loaded plugins, and notes: plugins that changed since its run was made, another data set."""

    config: RunConfig
    plugins: tuple[Plugin, ...]
    notes: tuple[str, ...]


ConfigSource: TypeAlias = "str | Path | Mapping[str, Any] | RunConfig"
"""Path of a YAML file or of a run directory, a mapping as in such a file, or a config that was read."""


def read_source(
    source: ConfigSource, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()
) -> ConfigWithPlugins:
    """Load the plugins, then read the config of whatever states one; notes are logged. Raises as `read_with_plugins`.

    The plugins of a run directory are those that it was made with.
    """
    files = to_paths(plugins, name="plugins", what="a Python file")
    overrides = to_texts(overrides, name="overrides")
    source = check_source(source)
    if not isinstance(source, Path):
        loaded = tuple(load_plugins(files))
        return ConfigWithPlugins(reread(source, overrides), loaded, ())
    read = read_with_plugins(source, overrides, files)
    for line in read.notes:
        logger.warning("%s", line)
    return read


def check_source(source: ConfigSource) -> Path | Mapping[str, Any] | RunConfig:
    """Return what states a config, a text as a path. Raises UserError for anything that states none."""
    if isinstance(source, str | os.PathLike):
        return to_path(source, name="config", what="a YAML file or a run directory")
    if not isinstance(source, Mapping | RunConfig):
        raise UserError(f"config: found a {type(source).__name__}, allowed is a path, a dict or a RunConfig")
    return source


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
    config = reread(path, overrides)
    name = config.origins["data.name"]
    if is_of_folder(name):
        root = config.data.arguments["root"]
        notes.append(f"data.name: {config.data.name}, as {root} was prepared, in the place of the config's")
    return ConfigWithPlugins(config, tuple(loaded), tuple(notes))


def reread(source: Path | Mapping[str, Any] | RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Read the config of `read_with_plugins` again with other overrides; plugins are loaded already."""
    config = read_config(config_path_of_run(source) if isinstance(source, Path) else source, overrides)
    if config.checks.skip:
        from sightline.workbench.check.suite import assert_known

        assert_known(config)
    return config
