"""View store: rendered pictures of objects, looked up by the objects' names, mapped from one file."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contract.errors import ConfigError, DataError, MissingDataError, join_some
from sightline.contract.types import Field, SampleKey
from sightline.ops.views.rendering import Background, on_background
from sightline.store.files.input_files import expand_home
from sightline.store.prepared.prepared_set import MANIFEST, PreparedSet, check_sizes, read_manifest

VIEWS_SET = "views"
"""Name of the set in the manifest of a view store."""
IMAGE = "image"
_MAX_LISTED = 5
DEFAULT_SIZE_PX = 96
"""Default picture size of `sightline data render`, in pixels."""


class Views:
    """View store: pictures of objects, read-only, mapped on first use.

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
        """Open the store at `root`; check the manifest's digest and the sizes of files, but not their contents.

        Raises MissingDataError with the command that makes one if there is none; DataError for another kind of folder,
        a damaged manifest or a file of another size.
        """
        folder = expand_home(root)
        if not (folder / MANIFEST).is_file():
            raise MissingDataError(
                f"{folder}: is not a view store; if it is elsewhere, give "
                f"data.views=FOLDER; to make one: {_command('SET', folder)}"
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
        """The folder of the views."""
        return self._prepared.root

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The manifest of the views."""
        return self._prepared.manifest

    @property
    def size_px(self) -> int:
        """Height and width of every picture, in pixels."""
        return int(self.manifest["columns"][IMAGE]["shape"][0])

    @property
    def num_views(self) -> int:
        """Minimum number of views of an object; `counts` returns that of each."""
        return int(self._counts.min())

    @property
    def fixed_background(self) -> Background | None:
        """Background that the pictures were stored with; None if they can be composed with any."""
        background: Background | None = self.manifest["background"]
        return background

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of views (len(rows),) of the objects of these rows."""
        return self._counts[rows]

    def image(self, name: str, view: int, *, background: Background | None = None) -> np.ndarray:
        """Return one view of an object: (H, W, 3) uint8, writable; on black if no background is stored or named.

        Raises DataError for an unknown name, and as `take` does; IndexError for a view that does not exist.
        """
        return self.take(
            self.row_indices([name], set_name="the name asked for"), np.array([view]), background=background
        )[0]

    def row_indices(self, names: Sequence[str], *, set_name: str) -> np.ndarray:
        """Return the rows of these objects: (len(names),) int64.

        Raises DataError that counts and names those without views; `set_name` is the set of the names, for the message.
        """
        missing = [name for name in names if name not in self._row_of]
        if missing:
            examples = ", ".join(self.names[:2])
            raise DataError(
                f"{self.root}: {len(missing)} of {len(names)} objects of {set_name} have no views here: "
                f"{join_some(missing, most=_MAX_LISTED)}; it holds {len(self.names)} objects ({examples}, ...), "
                f"rendered from {self.manifest['source']['path']}; render the set that is read: "
                f"{_command('SET', 'DIR')}"
            )
        return np.array([self._row_of[name] for name in names], dtype=np.int64)

    def take(self, rows: np.ndarray, views: np.ndarray, *, background: Background | None = None) -> np.ndarray:
        """Return one view of each of these objects: (B, H, W, 3) uint8, a new array.

        Raises DataError for another background than the pictures were stored with; IndexError for a view out of range.
        """
        is_outside = (views < 0) | (views >= self._counts[rows])
        if is_outside.any():
            first = int(is_outside.argmax())
            raise IndexError(
                f"{self.root}: '{self.names[rows[first]]}' has the views 0 to {self._counts[rows[first]] - 1}, asked "
                f"for {views[first]}"
            )
        self.check_background(background)
        splits = np.searchsorted(self._starts, rows, side="right") - 1
        pictures = np.stack([self._read_view(*location) for location in zip(splits, rows, views, strict=True)])
        return pictures if self.fixed_background is not None else on_background(pictures, background or "black")

    def check_background(self, background: Background | None) -> None:
        """Raise DataError if the pictures were stored on another background than this one."""
        fixed = self.fixed_background
        if None not in (background, fixed) and background != fixed:
            raise DataError(
                f"{self.root}: its pictures were stored on {fixed}, {background} is wanted; set background: {fixed}, or"
                f" make the store again with background={background}"
            )

    def sample_views(self, rows: np.ndarray, keys: Sequence[SampleKey], *, background: Background) -> np.ndarray:
        """Draw one view of each object uniformly by seed, epoch and index of its key: (B, H, W, 3) uint8."""
        counts = self._counts[rows].tolist()
        views = [key.generator().integers(count) for key, count in zip(keys, counts, strict=True)]
        return self.take(rows, np.array(views, dtype=np.int64), background=background)

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """Summary of a prepared folder for `data info`."""
        views = cls.open(root)
        printed_keys = ("of", "style", "cameras", "background", "up_axis", "differences")
        return {
            "set": VIEWS_SET,
            "root": str(root.resolve()),
            "source": views.manifest["source"]["path"],
            "sizes": {split: facts["num_rows"] for split, facts in views.manifest["splits"].items()},
            "views_per_object": _range_text(views._counts),
            "size_px": views.size_px,
            **{key: views.manifest[key] for key in printed_keys if key in views.manifest},
        }

    def _read_view(self, part: int, row: int, view: int) -> np.ndarray:
        split = self._prepared.splits[part]
        first = self._prepared.offsets(split)[row - self._starts[part]]
        return self._prepared.array(split, IMAGE)[first + view]


class StoredViews:
    """One view per sample from a store, looked up by the names of the samples' shapes.

    Raises DataError that counts and names the shapes without views, or names the background that the pictures were
    stored on if another is wanted.
    """

    def __init__(self, views: Views, names: Sequence[str], *, set_name: str, background: Background | None) -> None:
        self.views = views
        self.views.check_background(background)
        self.background: Background = background or self.views.fixed_background or "black"
        self.field = image_field(self.background)
        self._rows = self.views.row_indices(names, set_name=set_name)
        self._rows.flags.writeable = False

    def sample(self, keys: Sequence[SampleKey]) -> np.ndarray:
        """Draw a view of each sample's shape by seed, epoch and index of its key: (B, H, W, 3) uint8, a new array."""
        rows = self._rows[[key.index for key in keys]]
        return self.views.sample_views(rows, keys, background=self.background)


def open_views(root: str | None, *, background: Background | None) -> Views | None:
    """Open the store that a data set's arguments name; None if they name none. Raises as `Views.open`.

    Raises ConfigError for a background without a store.
    """
    if root is None and background is not None:
        raise ConfigError(
            "background: is an option for views, and there are none; set views: FOLDER too, or leave it out"
        )
    return None if root is None else Views.open(root)


def image_field(background: str) -> Field:
    """Return the Field of the pictures of a set."""
    return Field("height width 3", "uint8", "brightness", f"red green blue, on {background}", 0, 255)


def promised_image(root: str | None) -> Field:
    """Return the Field of the pictures of a store; a missing store is expected to have `data render`'s defaults."""
    try:
        size_px = DEFAULT_SIZE_PX if root is None else Views.open(root).size_px
    except MissingDataError:
        size_px = DEFAULT_SIZE_PX
    return dataclasses.replace(image_field("black"), shape=f"{size_px} {size_px} 3")


def _range_text(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def _command(source: str, target: str | Path) -> str:
    return shlex.join(["sightline", "data", "render", source, "--to", str(target)])
