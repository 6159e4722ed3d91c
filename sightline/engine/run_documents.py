"""The JSON files of a run, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightline.errors import UserError

__all__ = ["load_document", "read_facts"]


def read_facts(run: Path) -> dict[str, Any]:
    """What the data set of a run stated, with tuples where JSON has lists."""
    return {name: _frozen(value) for name, value in load_document(run / "facts.json").items()}


def load_document(path: Path) -> dict[str, Any]:
    """A JSON file of a run. Raises UserError where it is missing or holds no mapping."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the run directory is incomplete") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: does not hold a mapping")
    return document


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
