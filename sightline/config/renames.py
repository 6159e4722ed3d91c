"""Names and defaults of before: refused in a new config, or others there; read as then where a run recorded them."""

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
"""Codes of checks, as `checks.skip` names them."""
DATA_BEFORE: Mapping[str, Any] = {"split_rule": "sorted"}
"""Arguments of data sets that came later, and the value that does what was done before."""


def is_recorded(path: Path) -> bool:
    """Whether a config file is the one that a run keeps in its directory."""
    return path.name == "config.yaml" and (path.parent / "facts.json").exists()


def apply_renames(config: RunConfig) -> RunConfig:
    """The config that a run recorded, under the names of today, with the defaults of its day."""
    skip = tuple(RENAMED_CHECKS.get(code, code) for code in config.checks.skip)
    data = restore_data(config.data, config.origins)
    return dataclasses.replace(config, checks=dataclasses.replace(config.checks, skip=skip), data=data)


def restore_data(data: ComponentConfig, origins: Mapping[str, SourceLocation]) -> ComponentConfig:
    """The data set, and those in it, with the values of before for arguments that a run's config does not have.

    A config that a run records today has every argument.
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
    return tuple(_restore_within(each, origins) for each in value) if isinstance(value, tuple) else value
