"""Old names and defaults: refused or changed in a new config, and restored for configs that a run recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.config.run_config import RunConfig
from sightline.config.yaml_tree import DEFAULT
from sightline.types import ComponentConfig, SourceLocation

__all__ = ["DATA_BEFORE", "RENAMED_CHECKS", "apply_renames", "is_recorded", "restore_data"]

RENAMED_CHECKS = {
    "foreign-hooks": "leftover-hooks",
    "foreign-image": "mismatched-image",
    "half-checked": "unverified-layers",
    "misaligned-views": "mismatched-views",
    "set-agreement": "dataset-mismatch",
    "stage-agreement": "pretraining-mismatch",
}
"""Old code of a check -> its code, for `checks.skip`."""
DATA_BEFORE: Mapping[str, Any] = {"split_rule": "sorted"}
"""Later arguments of data sets, with the value that reproduces the earlier behaviour."""


def is_recorded(path: Path) -> bool:
    """Return True if a config file is the recorded one of a run directory."""
    return path.name == "config.yaml" and (path.parent / "facts.json").exists()


def apply_renames(config: RunConfig) -> RunConfig:
    """Convert a recorded config to today's names, with the defaults of its time."""
    skip = tuple(RENAMED_CHECKS.get(code, code) for code in config.checks.skip)
    data = restore_data(config.data, config.origins)
    return dataclasses.replace(config, checks=dataclasses.replace(config.checks, skip=skip), data=data)


def restore_data(data: ComponentConfig, origins: Mapping[str, SourceLocation]) -> ComponentConfig:
    """Restore earlier defaults of a data set, and of data sets in it, for arguments that the config lacks.

    A config that is recorded today has every argument.
    """
    arguments = {}
    for name, value in data.arguments.items():
        where = origins.get(f"{data.location.path}.{name}")
        is_left_out = where is not None and where.source == DEFAULT
        arguments[name] = DATA_BEFORE[name] if is_left_out and name in DATA_BEFORE else _restore_within(value, origins)
    return dataclasses.replace(data, arguments=arguments)


def _restore_within(value: Any, origins: Mapping[str, SourceLocation]) -> Any:
    if isinstance(value, ComponentConfig):
        return restore_data(value, origins)
    return tuple(_restore_within(item, origins) for item in value) if isinstance(value, tuple) else value
