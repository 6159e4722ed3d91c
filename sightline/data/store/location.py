"""Where prepared sets lie."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["prepared_root"]


def prepared_root(root: str | None, set_name: str) -> Path:
    """Where a prepared set lies: at `root`, else under its name in $SIGHTLINE_DATA, by default `data`."""
    if root is not None:
        return Path(root).expanduser()
    return Path(os.environ.get("SIGHTLINE_DATA", "data")).expanduser() / set_name
