"""Inputs of requests: uploaded bytes or JSON, checked and stored as a file of the server's own.

The name of an upload gives nothing but its ending, and no text of a client becomes a path.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sightline.contract.errors import UserError
from sightline.contract.regular_files import parse_json
from sightline.workbench.predict.predictor import Predictor

_KINDS = {"points": 2, "depth": 2, "image": 3}
"""Keys of JSON that hold numbers, and their number of axes."""


class RequestError(UserError):
    """Request that cannot be answered: status of HTTP, and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StoredInput(NamedTuple):
    """File of one request, and the name by which its answer calls it."""

    path: Path
    name: str


class InputStore:
    """Store of inputs, each in a folder that its request gives, for one predictor."""

    def __init__(self, predictor: Predictor[Any]) -> None:
        self._predictor = predictor
        self._suffixes = predictor.suffixes
        self._categories: Sequence[str] = getattr(predictor, "categories", ())
        self.json_key = next((name for name in _KINDS if name in predictor.fields), "points")

    def describe(self, columns: Sequence[str] | None) -> dict[str, Any]:
        """Describe what requests may hold; `columns` are those of a row of points, where the server was given them."""
        known = self._predictor.run.files.inputs
        form = known.scans or known.clouds
        if not columns and self.json_key == "points" and form is not None:
            columns = form.columns or (None if known.features else ("x", "y", "z"))
        return {
            "endings": list(self._suffixes),
            "json": self.json_key,
            "columns": list(columns or ()),
            "categories": list(self._categories),
        }

    def store_upload(self, folder: Path, filename: str, content: bytes, category: str | None) -> StoredInput:
        """Store an uploaded file. Raises RequestError for an ending that the run's predictor does not read."""
        suffix = Path(filename.replace("\0", "")).suffix.lower()
        if suffix not in self._suffixes:
            raise RequestError(415, f"file: its name has to end in one of {' '.join(self._suffixes)}")
        if not content:
            raise RequestError(422, "file: is empty; send its content")
        return self._store(folder / f"input{suffix}", content, category, Path(filename).name[:200])

    def store_json(self, folder: Path, text: bytes) -> StoredInput:
        """Store the numbers of a JSON document. Raises RequestError for any other text and for unknown keys."""
        try:
            document = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"body: is not JSON ({' '.join(str(error).split())[:200]})") from None
        if not isinstance(document, dict):
            raise RequestError(422, f"body: a mapping with the key '{self.json_key}' is needed")
        unknown = sorted(set(map(str, document)) - {self.json_key, "category"})
        if unknown or self.json_key not in document:
            keys = f"'{self.json_key}'" + (" and 'category'" if self._categories else "")
            found = f"'{unknown[0][:60]}'" if unknown else "none"
            raise RequestError(422, f"body: takes the key {keys}, found {found}")
        category = document.get("category")
        if not isinstance(category, str | None):
            raise RequestError(422, "category: a text is needed")
        values = _to_numbers(document[self.json_key], self.json_key)
        if self.json_key == "image":
            return self._store(folder / "input.png", _encode_image(values), category, "image")
        content = io.BytesIO()
        np.save(content, values.astype(np.float32 if self.json_key == "depth" else np.float64))
        return self._store(folder / "input.npy", content.getvalue(), category, self.json_key)

    def _store(self, path: Path, content: bytes, category: str | None, called: str) -> StoredInput:
        inner = self._find_category(category)
        path = path if inner is None else path.parent / inner / path.name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return StoredInput(path, called)

    def _find_category(self, category: str | None) -> str | None:
        """Return the run's own name of a category: its predictor reads it from the name of the folder."""
        if not self._categories:
            if category is not None:
                raise RequestError(422, "category: the run has none; leave it out")
            return None
        names = {name.casefold(): name for name in self._categories if Path(name).name == name}
        if category is None or category.casefold() not in names:
            raise RequestError(422, f"category: one of {', '.join(names.values())} is needed")
        return names[category.casefold()]


def _to_numbers(value: Any, key: str) -> np.ndarray:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise RequestError(422, f"{key}: lists of numbers of equal length are needed") from None
    if numbers.ndim != _KINDS[key] or not numbers.size:
        raise RequestError(422, f"{key}: found the shape {list(numbers.shape)}, {_KINDS[key]} axes are needed")
    for _ in range(_KINDS[key] - 1):
        value = chain.from_iterable(value)
    if not set(map(type, value)) <= {int, float}:  # NumPy takes texts, true and false for numbers
        raise RequestError(422, f"{key}: numbers are needed, without quotes, and no true or false")
    return numbers


def _encode_image(values: np.ndarray) -> bytes:
    """Encode pixels (H, W, 3) as PNG. Raises RequestError unless they are whole numbers of 0 to 255."""
    if values.shape[2] != 3 or not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
        raise RequestError(422, "image: rows of pixels with red, green and blue of 0 to 255 are needed")
    content = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(content, "PNG", compress_level=1)
    return content.getvalue()
