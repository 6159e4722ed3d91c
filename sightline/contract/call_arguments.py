"""Arguments of calls from Python that are paths, lists of texts or counts: refused in one line if they are not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path

from sightline.contract.errors import UserError
from sightline.contract.schema import format_value


def to_path(value: object, *, name: str, what: str, asks: bool = True) -> Path:
    """Convert an argument to a path. Raises UserError for another type, an empty text, and a path that cannot be.

    `what` describes the right argument, "a run directory". If it `asks` no system whether such a path can be, one of
    too long a name is left to those who read it.
    """
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise UserError(f"{name}: found {_describe(value)}, allowed is the path of {what}")
    path = Path(value)
    if "\0" in str(path):
        raise UserError(f"{name}: {path}: has the character U+0000, which no path has; check the path")
    try:
        _ = asks and path.exists()  # a missing one is reported by those who read it
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: {path}: {getattr(error, 'strerror', None) or error}; check the path") from None
    return path


def to_list(values: object, *, name: str) -> list[object]:
    """Convert an argument to a list. Raises UserError for one text, of which each letter would be taken, and a dict."""
    if isinstance(values, str | os.PathLike | bytes):
        raise UserError(f"{name}: found {_describe(values)}, allowed is a list: [{str(values)!r}]")
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise UserError(f"{name}: found {_describe(values)}, allowed is a list")
    return list(values)


def to_paths(values: object, *, name: str, what: str, asks: bool = True) -> list[Path]:
    """Convert an argument to a list of paths. Raises UserError as `to_list` and `to_path`."""
    return [to_path(value, name=name, what=what, asks=asks) for value in to_list(values, name=name)]


def to_texts(values: object, *, name: str) -> list[str]:
    """Convert an argument to a list of texts. Raises UserError for anything else."""
    texts = []
    for value in to_list(values, name=name):
        if not isinstance(value, str):
            raise UserError(f"{name}: found {_describe(value)}, allowed are texts, as 'train.epochs=10'")
        texts.append(value)
    return texts


def to_count(value: object, *, name: str, minimum: int) -> int:
    """Return an argument that is a whole number of at least `minimum`, of Python or NumPy.

    Raises UserError for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise UserError(f"{name}: found {value!r}, allowed is a whole number from {minimum} on")
    return int(value)


def _describe(value: object) -> str:
    """Describe a value, or of an object without a plain form its class."""
    is_plain = value is None or isinstance(value, str | bool | int | float | dict | list | tuple)
    return format_value(value) if is_plain else f"a {type(value).__name__}"
