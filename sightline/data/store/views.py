"""A view store: pictures of objects, found by the objects' names, mapped from one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.store.prepared_set import MANIFEST, PreparedSet, check_sizes, read_manifest
from sightline.errors import ConfigError, DataError, MissingDataError
from sightline.geometry.rendering import Background, on_background
from sightline.types import Field, SampleKey

__all__ = [
    "DEFAULT_SIZE_PX",
    "IMAGE",
    "VIEWS_SET",
    "StoredViews",
    "Views",
    "image_field",
    "open_views",
    "promised_image",
]

VIEWS_SET = "views"
"""What the manifest of a view store calls itself."""
IMAGE = "image"
_MOST_LISTED = 5
DEFAULT_SIZE_PX = 96
"""The default of `sightline data render` for pictures."""


class Views:
    """The pictures of a view store: read-only, mapped on first use, opened in milliseconds.

    Each object has at least one view; objects may have different numbers of them. Pickling carries no pictures.
    """

    def __init__(self, prepared: PreparedSet) -> None:
        self._prepared = prepared
        self.names: tuple[str, ...] = tuple(name for split in prepared.splits for name in prepared.names(split))
        self._row_of = {name: row for row, name in enumerate(self.names)}
        if len(self._row_of) < len(self.names):
            raise DataError(f"{prepared.root}: names an object twice; make it again: {_command('SET', prepared.root)}")
        sizes = [len(prepared.offsets(split)) - 1 for split in prepared.splits]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._counts = np.concatenate([np.diff(prepared.offsets(split)) for split in prepared.splits])

    @classmethod
    def open(cls, root: str | Path) -> Views:
        """The store at `root`; the manifest's digest and the sizes of files are checked, contents are not.

        Raises MissingDataError with the command that makes one where there is none; DataError where another kind of
        folder, a damaged manifest or a file of another size is.
        """
        folder = Path(root).expanduser()
        if not (folder / MANIFEST).is_file():
            partial = folder.with_name(folder.name + ".partial")
            unfinished = (
                f" ({partial} is unfinished; the command that made it continues it)" if partial.is_dir() else ""
            )
            raise MissingDataError(
                f"{folder}: is not a view store{unfinished}; if it lies elsewhere, give data.views=FOLDER; to make "
                f"one: {_command('SET', folder)}"
            )
        manifest = read_manifest(folder)
        if manifest["set"] != VIEWS_SET:
            raise DataError(
                f"{folder}: holds the data set '{manifest['set']}', a view store is needed; to make one of it: "
                f"{_command(str(folder), 'DIR')}"
            )
        check_sizes(folder, manifest)
        return cls(PreparedSet(folder, manifest))

    @property
    def root(self) -> Path:
        return self._prepared.root

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self._prepared.manifest

    @property
    def size_px(self) -> int:
        """Height and width of every picture."""
        return int(self.manifest["columns"][IMAGE]["shape"][0])

    @property
    def num_views(self) -> int:
        """How many views every object has at least; `counts` is how many each has."""
        return int(self._counts.min())

    @property
    def fixed_background(self) -> Background | None:
        """The background that the pictures were stored with; None where they can be shown on any."""
        found: Background | None = self.manifest["background"]
        return found

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """How many views the objects of these rows have."""
        return self._counts[rows]

    def image(self, name: str, view: int, *, background: Background | None = None) -> np.ndarray:
        """One view of an object: (H, W, 3) uint8, its own to write to; on black where no background is stored or named.

        Raises DataError for a name that is not there, and as `take`; IndexError for a view that there is none of.
        """
        return self.take(
            self.row_indices([name], set_name="the name asked for"), np.array([view]), background=background
        )[0]

    def row_indices(self, names: Sequence[str], *, set_name: str) -> np.ndarray:
        """Where these objects stand: (len(names),) int64.

        Raises DataError that counts and names those without views; `set_name` is whose names they are.
        """
        missing = [name for name in names if name not in self._row_of]
        if missing:
            more = f" and {len(missing) - _MOST_LISTED} more" if len(missing) > _MOST_LISTED else ""
            held = ", ".join(self.names[:2])
            raise DataError(
                f"{self.root}: {len(missing)} of {len(names)} objects of {set_name} have no views here: "
                f"{', '.join(missing[:_MOST_LISTED])}{more}; it holds {len(self.names)} objects ({held}, ...), "
                f"rendered from {self.manifest['source']['path']}; render the set that is read: "
                f"{_command('SET', 'DIR')}"
            )
        return np.array([self._row_of[name] for name in names], dtype=np.int64)

    def has(self, names: Sequence[str]) -> np.ndarray:
        """Whether each of these objects has views: (len(names),) bool."""
        return np.array([name in self._row_of for name in names], dtype=bool)

    def take(self, rows: np.ndarray, views: np.ndarray, *, background: Background | None = None) -> np.ndarray:
        """One view of each of these objects: (B, H, W, 3) uint8, fresh.

        Raises DataError for another background than the pictures were stored with; IndexError for a view too many.
        """
        is_outside = (views < 0) | (views >= self._counts[rows])
        if is_outside.any():
            place = int(is_outside.argmax())
            raise IndexError(
                f"{self.root}: '{self.names[rows[place]]}' has the views 0 to {self._counts[rows[place]] - 1}, asked "
                f"for {views[place]}"
            )
        self.check_background(background)
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        pictures = np.stack([self._stored(*each) for each in zip(parts, rows, views, strict=True)])
        return pictures if self.fixed_background is not None else on_background(pictures, background or "black")

    def check_background(self, wanted: Background | None) -> None:
        """Raises DataError where pictures were stored on another background than the one wanted."""
        fixed = self.fixed_background
        if None not in (wanted, fixed) and wanted != fixed:
            raise DataError(
                f"{self.root}: its pictures were stored on {fixed}, {wanted} is wanted; set background: {fixed}, or "
                f"make the store again with background={wanted}"
            )

    def sample_views(self, rows: np.ndarray, keys: Sequence[SampleKey], *, background: Background) -> np.ndarray:
        """A view of each of these objects, drawn evenly from all that it has by seed, epoch and index of its key."""
        counts = self._counts[rows].tolist()
        views = [key.generator().integers(count) for key, count in zip(keys, counts, strict=True)]
        return self.take(rows, np.array(views, dtype=np.int64), background=background)

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """What `data info` prints of a store."""
        views = cls.open(root)
        shown = ("of", "style", "cameras", "background", "up_axis", "differences")
        return {
            "set": VIEWS_SET,
            "root": str(root.resolve()),
            "source": views.manifest["source"]["path"],
            "sizes": {split: facts["num_rows"] for split, facts in views.manifest["splits"].items()},
            "views_per_object": _range_text(views._counts),
            "size_px": views.size_px,
            **{key: views.manifest[key] for key in shown if key in views.manifest},
        }

    def _stored(self, part: int, row: int, view: int) -> np.ndarray:
        split = self._prepared.splits[part]
        first = self._prepared.offsets(split)[row - self._starts[part]]
        return self._prepared.array(split, IMAGE)[first + view]


class StoredViews:
    """One view per sample from a store: the shapes of a data set, found by their names.

    Raises DataError that counts and names the shapes without views, or names the background that the pictures were
    stored on where another is wanted.
    """

    def __init__(self, views: Views, names: Sequence[str], *, of: str, background: Background | None) -> None:
        self.views = views
        self.views.check_background(background)
        self.background: Background = background or self.views.fixed_background or "black"
        self.field = image_field(self.background)
        self._rows = self.views.row_indices(names, set_name=of)
        self._rows.flags.writeable = False

    def sample(self, keys: Sequence[SampleKey]) -> np.ndarray:
        """A view of each sample's shape, drawn by seed, epoch and index of its key: (B, H, W, 3) uint8, fresh."""
        rows = self._rows[[key.index for key in keys]]
        return self.views.sample_views(rows, keys, background=self.background)


def open_views(root: str | None, *, background: Background | None, without_views: str) -> Views | None:
    """The store that a data set's arguments name, None where they name none. Raises as `Views.open`.

    Raises ConfigError for arguments on how views are shown where there are none.
    """
    if root is not None:
        return Views.open(root)
    if background is not None or without_views != "refused":
        name = "background" if background is not None else "without_views"
        raise ConfigError(f"{name}: is about views, and there are none; set views: FOLDER too, or leave it out")
    return None


def image_field(background: str) -> Field:
    """What a data set promises of its pictures."""
    return Field("height width 3", "uint8", "brightness", f"red green blue, on {background}", 0, 255)


def promised_image(root: str | None) -> Field:
    """The field of pictures in a store; one that is not there yet is taken to be as `data render` makes it."""
    try:
        size_px = DEFAULT_SIZE_PX if root is None else Views.open(root).size_px
    except MissingDataError:
        size_px = DEFAULT_SIZE_PX
    return dataclasses.replace(image_field("black"), shape=f"{size_px} {size_px} 3")


def _range_text(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def _command(source: str, target: str | Path) -> str:
    return f"sightline data render {source} --to {target}"
