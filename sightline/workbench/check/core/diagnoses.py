"""Diagnoses: what a fault is called, its causes and what to do, as rows of a file beside the checks that find it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from sightline.workbench.check.core.finding import Fault

_FIELDS = ("severity", "causes", "where", "at", "split", "dataset", "sample", "layer", "param", "step", "evidence")
_NUMBERS = ("value", "bound", "sureness")


@functools.cache
def read_diagnoses(file: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of a file by their names."""
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def diagnose(module: str, diagnosis: str, measured: str = "", /, **words: Any) -> Fault:
    """Make a fault by its row in the file of JSON that has the name of a module's file."""
    return make_fault(Path(module).with_suffix(".json"), diagnosis, measured, **words)


def make_fault(file: Path, diagnosis: str, measured: str = "", /, **words: Any) -> Fault:
    """Make a fault by its row in a file.

    A row has what it `says`, and what is `expected`, `measured` and to `do`, with the names of `words` in braces, and
    some fields of `Fault`. Words that are such fields are set as well, and go before those of the row.
    """
    row = read_diagnoses(file)[diagnosis]
    texts = {name: row.get(key, "").format(**words) for name, key in _TEXTS.items()}
    fields = {name: given[name] for given in (row, words) for name in (*_FIELDS, *_NUMBERS) if name in given}
    return Fault(texts.pop("summary"), **{**texts, "measured": measured or texts["measured"], **fields})


_TEXTS = {"summary": "says", "measured": "measured", "expected": "expected", "action": "do"}
