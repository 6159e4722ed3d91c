"""`sightline list configs` and `sightline copy`: the configs that come with the package."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Any

from sightline.config.shipped import ShippedConfig, copy_shipped, shipped_configs
from sightline.verbs.common import write_document
from sightline.verbs.output import print_note

__all__ = ["copy", "list_configs"]

WIDTH = 110


def list_configs(*, json: Path | None) -> int:
    """Print the path of each shipped config with its first comment."""
    configs = shipped_configs()
    for config in configs:
        description_lines = textwrap.wrap(config.description, WIDTH, initial_indent="    ", subsequent_indent="    ")
        sys.stdout.write("\n".join([config.path, *description_lines]) + "\n")
    print_note("to use one elsewhere: sightline copy CONFIG [TO]")
    write_document(json, {"configs": [_to_document(config) for config in configs]})
    return 0


def copy(name: str, to: Path, *, json: Path | None) -> int:
    """Copy a shipped config, with all files that it needs, into a folder."""
    written, alike = copy_shipped(name, to)
    for path in written:
        sys.stdout.write(f"{path}\n")
    if alike:
        print_note(f"there already, and alike: {', '.join(map(str, alike))}")
    write_document(json, {"written": [str(path) for path in written], "alike": [str(path) for path in alike]})
    return 0


def _to_document(config: ShippedConfig) -> dict[str, Any]:
    """Convert to JSON, where the description keeps its key `about`."""
    return {("about" if key == "description" else key): value for key, value in dataclasses.asdict(config).items()}
