"""Inputs of requests: uploaded bytes or JSON, checked and stored as a file of the server's own.

Of an upload's name only the ending is stored; it seeds random draws, and no text of a client becomes a path.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.errors import DataError, UserError
from sightline.contract.regular_files import parse_json
from sightline.store.files.image_files import IMAGE_SUFFIXES, open_image
from sightline.workbench.predict.predictor import Predictor


class RequestError(UserError):
    """Request that cannot be answered: status of HTTP, and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StoredInput(NamedTuple):
    """File of one request, the name by which its answer calls it, and the one that seeds its random draws."""

    path: Path
    name: str
    draw_name: str


class InputStore:
    """Store of inputs, each in a folder that its request gives, for one predictor."""

    def __init__(self, predictor: Predictor[Any], *, max_pixels: int) -> None:
        self._predictor = predictor
        self._max_pixels = max_pixels
        self._suffixes = predictor.suffixes
        self._categories: Sequence[str] = getattr(predictor, "categories", ())
        self.takes_json = "points" in predictor.fields

    def describe(self, columns: Sequence[str] | None) -> dict[str, Any]:
        """Describe what requests may hold; `columns` are those of a row of points, where the server was given them."""
        known = self._predictor.run.files.inputs
        form = known.scans or known.clouds
        if not columns and self.takes_json and form is not None:
            columns = form.columns or (None if known.features else ("x", "y", "z"))
        return {
            "endings": list(self._suffixes),
            "json": "points" if self.takes_json else None,
            "columns": list(columns or ()),
            "categories": list(self._categories),
        }

    def store_upload(self, folder: Path, filename: str, content: bytes, category: str | None) -> StoredInput:
        """Store an uploaded file. Raises RequestError for an ending that the run's predictor does not read."""
        name = Path(filename.replace("\0", "").encode(errors="replace").decode())
        suffix = name.suffix.lower()
        if suffix not in self._suffixes:
            raise RequestError(415, f"file: its name has to end in one of {' '.join(self._suffixes)}")
        if not content:
            raise RequestError(422, "file: is empty; send its content")
        stored = self._store(folder / f"input{suffix}", content, category, name)
        if suffix in IMAGE_SUFFIXES:
            self._assert_small(stored.path)
        return stored

    def _assert_small(self, path: Path) -> None:
        """Raise RequestError for an image of too many pixels, of which nothing is decoded."""
        try:
            with open_image(path) as image:
                width, height = image.size
        except DataError:
            return  # its reader says what it is
        if width * height > self._max_pixels:
            raise RequestError(
                413,
                f"file: the image has {width:,} x {height:,} pixels, {width * height / 1e6:.0f} million; at most "
                f"{self._max_pixels / 1e6:g} million are taken (serve --max-megapixels): send it smaller",
            )

    def store_json(self, folder: Path, text: bytes) -> StoredInput:
        """Store the numbers of a JSON document. Raises RequestError for any other text and for unknown keys."""
        if not self.takes_json:
            raise RequestError(415, "body: JSON holds points, which the run does not take; send a file")
        try:
            document = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"body: is not JSON ({' '.join(str(error).split())[:200]})") from None
        if not isinstance(document, dict):
            raise RequestError(422, "body: a mapping with the key 'points' is needed")
        unknown = sorted(set(map(str, document)) - {"points", "category"})
        if unknown or "points" not in document:
            keys = "'points'" + (" and 'category'" if self._categories else "")
            stated = f"'{unknown[0][:60]}'" if unknown else "none"
            raise RequestError(422, f"body: takes the key {keys}, found {stated}")
        category = document.get("category")
        if not isinstance(category, str | None):
            raise RequestError(422, "category: a text is needed")
        content = io.BytesIO()
        np.save(content, _to_numbers(document["points"]))
        return self._store(folder / "input.npy", content.getvalue(), category, Path("points"))

    def _store(self, path: Path, content: bytes, category: str | None, called: Path) -> StoredInput:
        inner = self._find_category(category)
        path = path if inner is None else path.parent / inner / path.name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return StoredInput(path, called.name[:200], called.stem)

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


def _to_numbers(rows: Any) -> np.ndarray:
    """Convert rows of points (N, C) to float64. Raises RequestError unless all are numbers in rows of equal length."""
    try:
        numbers = np.asarray(rows, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise RequestError(422, "points: lists of numbers of equal length are needed") from None
    if numbers.ndim != 2 or not numbers.size:
        raise RequestError(422, f"points: found the shape {list(numbers.shape)}, 2 axes are needed")
    if not set(map(type, chain.from_iterable(rows))) <= {int, float}:  # NumPy takes texts, true and false for numbers
        raise RequestError(422, "points: numbers are needed, without quotes, and no true or false")
    return numbers
