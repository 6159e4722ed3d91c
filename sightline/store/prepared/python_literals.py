"""Lists in Python files of other projects, which are parsed and never run."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sightline.contract.errors import DataError
from sightline.store.files.input_files import convert_errors, read_file

_MAX_BYTES = 2**20
"""Largest file that is parsed: lists of names are far smaller, and Python's parser takes much memory."""


def read_literals(path: Path, names: Collection[str], *, advice: str) -> dict[str, Any]:
    """Read the values that a Python file assigns to `names` at its top level, as plain literals: numbers, text, lists.

    The file is parsed, and nothing of it is run or imported; of a name that is assigned twice, the last value counts.
    Raises DataError, which ends with `advice`, for a file that is not Python, and for a name that it does not assign,
    or to anything else than a literal.
    """
    content = read_file(path)
    if len(content) > _MAX_BYTES:
        raise DataError(f"{path}: has {len(content):,} bytes, a list of names has at most {_MAX_BYTES:,}; {advice}")
    with convert_errors(path, "does not read as a Python file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in text
        statements = ast.parse(content).body
    values: dict[str, Any] = {}
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in names:
                try:
                    values[name] = ast.literal_eval(value)
                except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                    raise DataError(
                        f"{path}:{statement.lineno}: {name} is not a plain list of values; {advice}"
                    ) from None
            case _:
                continue
    missing = [name for name in names if name not in values]
    if missing:
        raise DataError(f"{path}: assigns no {', '.join(missing)}; {advice}")
    return {name: values[name] for name in names}
