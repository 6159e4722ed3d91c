"""Readers of a run's JSON files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline.contract.errors import DataError, UserError
from sightline.contract.regular_files import check_regular_file, find_outward_link, parse_json, read_regular_file

_MAX_LINE_BYTES = 1 << 24
_GET_AGAIN = "get it again, or repeat the command that wrote it"


def read_raw_lines(path: Path) -> list[bytes]:
    """Read lines with their line ends; a torn last one has none. Raises DataError for one longer than a run writes."""
    lines: list[bytes] = []
    with open(path, "rb") as file:
        while line := file.readline(_MAX_LINE_BYTES):
            lines.append(line)
            if len(line) == _MAX_LINE_BYTES:
                raise DataError(f"{path}:{len(lines)}: has {_MAX_LINE_BYTES} bytes or more; remove the line")
    return lines


def parse_lines(path: Path, lines: Sequence[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines with their entries. A torn last one, which has no line end, is left out."""
    whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
    for number, line in enumerate(whole, start=1):
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: is not JSON: {error}; remove the line") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path}:{number}: is not a JSON object; remove the line")
        yield line, entry


_MAX_COUNT = 2**20
"""Maximal number of channels, classes or joints that models are built for."""


def assert_own_files(run: Path) -> None:
    """Raise UserError if a link inside a run's folder leads out of it; the folder itself may be a link."""
    checkpoints = run / "checkpoints"
    for folder in (run, run / "predictions", checkpoints, *sorted(checkpoints.glob("step_*"))):
        names = sorted(os.listdir(folder)) if folder.is_dir() else ()
        if (path := find_outward_link(folder, names)) is not None:
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, out of the run directory; put the file itself there"
            )


def read_facts(run: Path) -> dict[str, Any]:
    """Read the facts of a run's data set, with tuples for JSON lists.

    Raises UserError for counts and lists of names that are none.
    """
    facts = {name: _lists_to_tuples(value) for name, value in load_document(run / "facts.json").items()}
    for name, value in facts.items():
        expected = ""
        if name.startswith(("num_", "in_")) and not (type(value) is int and 0 <= value <= _MAX_COUNT):
            expected = "a count"
        if name.endswith("_names") and not (isinstance(value, tuple) and all(isinstance(text, str) for text in value)):
            expected = "a list of names"
        if expected:
            raise UserError(f"{run / 'facts.json'}: {name} is {value!r:.40}, {expected} is needed; get the run again")
    return facts


def load_document(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run. Raises UserError if it is missing or does not contain a mapping."""
    try:
        document = parse_json(read_regular_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the run directory is incomplete: {_GET_AGAIN}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {_format_reason(error)}; {_GET_AGAIN}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: does not hold a mapping; {_GET_AGAIN}")
    return document


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`; a torn last one is left out.

    Raises UserError if the file is missing, DataError for any other line that is not a mapping.
    """
    try:
        check_regular_file(path)
        lines = read_raw_lines(path)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; training writes it; give a run directory") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {_format_reason(error)}") from None
    return [entry for _, entry in parse_lines(path, lines)]


def _format_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _lists_to_tuples(value: Any) -> Any:
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value
