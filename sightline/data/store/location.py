"""Default folder of a prepared set."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["prepared_root"]


def prepared_root(root: str | None, set_name: str) -> Path:
    """Return the folder of a prepared set: `root`, else `set_name` in $SIGHTLINE_DATA (default `data`)."""
    if root is not None:
        return Path(root).expanduser()
    return Path(os.environ.get("SIGHTLINE_DATA", "data")).expanduser() / set_name
