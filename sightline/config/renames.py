"""Names of before: refused in a new config, translated where a run recorded them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sightline.config.run_config import RunConfig

__all__ = ["RENAMED_CHECKS", "is_recorded", "translated"]

RENAMED_CHECKS = {
    "foreign-hooks": "leftover-hooks",
    "foreign-image": "mismatched-image",
    "half-checked": "unverified-layers",
    "misaligned-views": "mismatched-views",
    "set-agreement": "dataset-mismatch",
    "stage-agreement": "pretraining-mismatch",
}
"""Codes of checks, as `checks.skip` names them."""


def is_recorded(path: Path) -> bool:
    """Whether a config file is the one that a run keeps in its directory."""
    return path.name == "config.yaml" and (path.parent / "facts.json").exists()


def translated(config: RunConfig) -> RunConfig:
    """The config that a run recorded, under the names of today."""
    skip = tuple(RENAMED_CHECKS.get(code, code) for code in config.checks.skip)
    return dataclasses.replace(config, checks=dataclasses.replace(config.checks, skip=skip))
