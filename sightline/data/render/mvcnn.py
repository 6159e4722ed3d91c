"""Pictures of shapes that others rendered, in the layout of MVCNN's renders, as a view store."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sightline.data.clouds.modelnet_classes import natural_sort_key
from sightline.data.files.input_files import BoundedFile
from sightline.data.files.png_views import composite_over
from sightline.data.store.prepared_set import PreparedSet, read_manifest, summarise_folder
from sightline.data.store.prepared_writer import (
    ColumnSpec,
    PreparationPlan,
    Progress,
    SampleRow,
    Shard,
    write_prepared_set,
)
from sightline.data.store.views import IMAGE, VIEWS_SET
from sightline.errors import DataError
from sightline.geometry.rendering import Background
from sightline.transforms.images import resize_images

__all__ = ["RenderedShape", "import_views", "list_pictures", "read_picture"]

_FILE = re.compile(r"(?P<name>.+?)(\.obj)?_(white)?shaded_v?(?P<view>\d+)\.png", flags=re.IGNORECASE)
_SPLITS = ("train", "test")
_PART = 64
_MOST_LISTED = 10


class RenderedShape(NamedTuple):
    """One shape: its name and part, and its pictures, those of each camera set-up (folder) together, by number."""

    name: str
    split: str
    files: tuple[Path, ...]


def list_pictures(root: Path) -> list[RenderedShape]:
    """The shapes below a folder, `[SET-UP/]CLASS/{train,test}/NAME.obj_whiteshaded_vNNNN.png`, by part and name.

    Pictures of one name belong to one shape, whatever folders they lie in; files of other names are passed over.
    Raises DataError where there is none, for one outside of train and test, and for a shape in both.
    Source: Su et al. 2018, "A deeper look at 3D shape classifiers"; spec of the release by towardshch/MVCNN_images.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the one with the pictures")
    files: defaultdict[str, list[Path]] = defaultdict(list)
    splits: dict[str, str] = {}
    for path in root.rglob("*.png"):
        found = _FILE.fullmatch(path.name)
        if found is None:
            continue
        name, split = found["name"], path.parent.name
        if split not in _SPLITS:
            raise DataError(f"{path}: lies in '{split}', pictures lie in CLASS/train or CLASS/test; move it there")
        if splits.setdefault(name, split) != split:
            raise DataError(f"{path}: '{name}' has pictures in train and in test; leave one of them out")
        files[name].append(path)
    if not files:
        raise DataError(
            f"{root}: holds {summarise_folder(root)}, no picture CLASS/train/NAME.obj_whiteshaded_v0000.png "
            "in any folder below"
        )
    order = sorted(files, key=lambda name: (_SPLITS.index(splits[name]), natural_sort_key(name)))
    return [RenderedShape(name, splits[name], tuple(sorted(files[name], key=_place(root)))) for name in order]


def import_views(
    source: Path,
    target: Path,
    *,
    progress: Progress,
    clouds: Path | None = None,
    min_views: int = 12,
    background: Background = "black",
    size_px: int | None = None,
) -> dict[str, Any]:
    """Write a view store of rendered pictures; returns its manifest with `root` and `outcome`, as `prepare_native`.

    Left out, and named in the manifest's `differences`: shapes with fewer than `min_views` pictures, and, where
    `clouds` is a prepared set, those that have no cloud of their name there. Transparent pixels show `background`;
    pictures become `size_px` wide and high, None: stay as they are, and must all be alike.
    Raises DataError for pictures that do not read, are no squares or of another size, and where no shape is left.
    """
    root = source.expanduser().resolve()
    listed = list_pictures(root)
    known = None if clouds is None else _names_of(clouds)
    kept, differences = _paired(listed, min_views, known, clouds)
    if not kept:
        raise DataError(f"{root}: no shape is left of {len(listed)}: {'; '.join(differences)}")
    differences += _gaps(root, listed)
    shown_px = size_px or read_picture(kept[0].files[0], background=background).shape[0]
    plan = PreparationPlan(
        VIEWS_SET,
        "mvcnn",
        root,
        {IMAGE: ColumnSpec((shown_px, shown_px, 3), "uint8", is_ragged=True)},
        tuple(_parts(kept, background, shown_px, is_resized=size_px is not None)),
        {
            "style": "as the pictures are",
            "background": background,
            "of": {"set": "pictures", "shapes": len(kept), "pictures": sum(len(each.files) for each in kept)},
            "differences": differences,
        },
        lambda prepared: {},
        {
            "min_views": min_views,
            "background": background,
            "size": size_px,
            "clouds": None if clouds is None else read_manifest(clouds)["digest"],
        },
    )
    return write_prepared_set(plan, target, progress=progress)


def read_picture(path: Path, *, background: Background) -> np.ndarray:
    """A picture on a background: (H, W, 3) uint8. Raises DataError naming the file where it does not read."""
    try:
        with BoundedFile(path) as file, Image.open(file) as picture:
            return composite_over(np.asarray(picture.convert("RGBA")), background)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n", 1)[0]
        raise DataError(f"{path}: does not read as a picture ({reason}); get the file again") from error


def _place(root: Path) -> Any:
    """Set-up after set-up, the pictures of each by number."""

    def place(path: Path) -> tuple[Any, ...]:
        found = _FILE.fullmatch(path.name)
        assert found is not None
        return path.parent.relative_to(root).as_posix(), int(found["view"])

    return place


def _names_of(clouds: Path) -> set[str]:
    prepared = PreparedSet(clouds, read_manifest(clouds))
    return {name for split in prepared.splits for name in prepared.names(split)}


def _paired(
    listed: Sequence[RenderedShape], min_views: int, known: set[str] | None, clouds: Path | None
) -> tuple[list[RenderedShape], list[str]]:
    """The shapes that are kept, and what is to be said of the others."""
    few = [each for each in listed if len(each.files) < min_views]
    enough = [each for each in listed if len(each.files) >= min_views]
    notes = []
    if few:
        which = _some([f"{each.name} ({len(each.files)})" for each in few])
        notes.append(f"{len(few)} shapes have fewer than {min_views} pictures and are left out: {which}")
    if known is None:
        return enough, notes
    unmatched = [each.name for each in enough if each.name not in known]
    if unmatched:
        notes.append(f"{len(unmatched)} shapes have no cloud of their name in {clouds}: {_some(unmatched)}")
    bare = sorted(known - {each.name for each in enough}, key=natural_sort_key)
    if bare:
        notes.append(f"{len(bare)} of {len(known)} clouds in {clouds} have no pictures: {_some(bare)}")
    return [each for each in enough if each.name in known], notes


def _gaps(root: Path, listed: Sequence[RenderedShape]) -> list[str]:
    """Which shapes lack pictures that most shapes of a set-up have."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each in listed:
        for file in each.files:
            counts[file.relative_to(root).parts[0]][each.name] += 1
    notes = []
    for set_up, of_shapes in sorted(counts.items()):
        most = max(of_shapes.values())
        short = [f"{name} ({count})" for name, count in of_shapes.items() if count < most]
        if short:
            notes.append(f"{set_up}: {len(short)} shapes have fewer than {most} pictures: {_some(short)}")
    return notes


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def _parts(kept: Sequence[RenderedShape], background: Background, size_px: int, *, is_resized: bool) -> Iterator[Shard]:
    for split in _SPLITS:
        shapes = [each for each in kept if each.split == split]
        for first in range(0, len(shapes), _PART):
            some = shapes[first : first + _PART]
            files = tuple(file for each in some for file in each.files)
            rows = functools.partial(_rows, some, background, size_px, is_resized=is_resized)
            yield Shard(split, split, len(some), files, rows, len(files))


def _rows(
    shapes: Sequence[RenderedShape], background: Background, size_px: int, *, is_resized: bool
) -> Iterator[SampleRow]:
    def row(each: RenderedShape) -> SampleRow:
        pictures = [_sized(file, background, size_px, is_resized=is_resized) for file in each.files]
        return SampleRow(each.name, str(each.files[0]), {IMAGE: np.stack(pictures)})

    return map(row, shapes)


def _sized(path: Path, background: Background, size_px: int, *, is_resized: bool) -> np.ndarray:
    picture = read_picture(path, background=background)
    if picture.shape[0] != picture.shape[1]:
        raise DataError(f"{path}: is {picture.shape[1]} by {picture.shape[0]} pixels, squares are needed; crop it")
    if is_resized:
        return resize_images(torch.from_numpy(picture), size=(size_px, size_px)).numpy()
    if picture.shape[0] != size_px:
        raise DataError(f"{path}: is {picture.shape[0]} pixels wide, others {size_px}; give one size for all: --size")
    return picture
