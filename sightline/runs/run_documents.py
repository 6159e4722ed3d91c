"""Readers of a run's JSON files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sightline.errors import DataError, UserError
from sightline.regular_files import find_outward_link, parse_json, read_regular_file

__all__ = ["assert_own_files", "load_document", "read_facts", "read_lines"]

_MAX_COUNT = 2**20
"""Maximal number of channels, classes or joints that models are built for."""


def assert_own_files(run: Path) -> None:
    """Raise UserError if a link inside a run's folder leads out of it; the folder itself may be a link."""
    for folder in (run, run / "checkpoints"):
        names = sorted(os.listdir(folder)) if folder.is_dir() else ()
        if (path := find_outward_link(folder, names)) is not None:
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, out of the run directory; put the file itself there"
            )


def read_facts(run: Path) -> dict[str, Any]:
    """Read the facts of a run's data set, with tuples for JSON lists. Raises UserError for a count that is not one."""
    facts = {name: _lists_to_tuples(value) for name, value in load_document(run / "facts.json").items()}
    for name, value in facts.items():
        if name.startswith(("num_", "in_")) and not (type(value) is int and 0 <= value <= _MAX_COUNT):
            raise UserError(f"{run / 'facts.json'}: {name} is {value!r:.40}, a count is needed; get the run again")
    return facts


def load_document(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run. Raises UserError if it is missing or does not contain a mapping."""
    try:
        document = parse_json(read_regular_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the run directory is incomplete: get it again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {_format_reason(error)}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: does not hold a mapping")
    return document


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`; a torn last one is left out.

    Raises UserError if the file is missing, DataError for any other line that is not a mapping.
    """
    try:
        texts = read_regular_file(path).decode("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; training writes it; give a run directory") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {_format_reason(error)}") from None
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = parse_json(text)
        except ValueError as error:
            if number == len(texts):
                break
            raise DataError(f"{path}:{number}: is not JSON ({error}); the line was cut or edited") from None
        if not isinstance(line, dict):
            raise DataError(f"{path}:{number}: found {text[:40]}, allowed is a mapping of names to numbers")
        lines.append(line)
    return lines


def _format_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _lists_to_tuples(value: Any) -> Any:
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value
