"""Strict YAML reader for the user's own files, such as label maps and lists of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import read_tables
from sightline.errors import ConfigError, DataError

__all__ = ["parsed_yaml"]

MAX_BYTES = 2_000_000
MAX_NODES = 100_000


def parsed_yaml(content: bytes, path: Path, *, name: str) -> Any:
    """Parse a YAML (or JSON) document to plain values; its keys are text, integers too.

    `name` is its name in errors. Raises DataError with the line for anything but plain YAML: repeated keys, tags, merge
    keys, anchors that contain themselves or expand to more than `MAX_NODES` values, numbers beyond 64 bits.
    """
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: has {len(content):,} bytes; {name} has at most {MAX_BYTES:,}")
    faults = ConfigFaults()
    try:
        tree = read_tables(content.decode("utf-8-sig"), str(path), faults, name=name, max_nodes=MAX_NODES)
        faults.raise_any()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ConfigError as error:
        more = f" (and {len(error.faults) - 1} more)" if len(error.faults) > 1 else ""
        raise DataError(f"{error.faults[0]}{more}") from None
    return tree.plain()
