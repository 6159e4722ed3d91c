"""Import of pictures rendered by others, in the layout of MVCNN, as a view store."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le

from sightline.contract.arguments import Count
from sightline.contract.errors import DataError, join_some
from sightline.ops.rendering import Background
from sightline.parts.transforms.images import resize_images
from sightline.store.files.image_files import composite_over, open_image
from sightline.store.files.input_files import expand_home, natural_sort_key
from sightline.store.prepared.prepared_set import PreparedSet, read_manifest, summarise_folder
from sightline.store.prepared.prepared_writer import (
    ColumnSpec,
    PreparationPlan,
    Progress,
    SampleRow,
    Shard,
    write_prepared_set,
)
from sightline.store.prepared.views import IMAGE, VIEWS_SET

_FILE = re.compile(r"(?P<name>.+?)(\.obj)?_(white)?shaded_v?(?P<view>\d+)\.png", flags=re.IGNORECASE)
_SPLITS = ("train", "test")
_SHAPES_PER_SHARD = 64
_join_first = functools.partial(join_some, most=10)


class RenderedShape(NamedTuple):
    """Shape with its name and split, and its pictures, sorted by camera set-up (folder) and number."""

    name: str
    split: str
    files: tuple[Path, ...]


def list_pictures(root: Path) -> list[RenderedShape]:
    """List the shapes in a folder, `[SET-UP/]CLASS/{train,test}/NAME.obj_whiteshaded_vNNNN.png`, by split and name.

    Pictures of one name belong to one shape, in any folder; files with other names are ignored.
    Raises DataError if there is none, for one outside of train and test, and for a shape in both.
    Source: Su et al. 2018, "A deeper look at 3D shape classifiers"; spec of the release by towardshch/MVCNN_images.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the one with the pictures")
    files: defaultdict[str, list[Path]] = defaultdict(list)
    splits: dict[str, str] = {}
    for path in root.rglob("*.png"):
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        name, split = match["name"], path.parent.name
        if split not in _SPLITS:
            raise DataError(f"{path}: is in '{split}', pictures must be in CLASS/train or CLASS/test; move it there")
        if splits.setdefault(name, split) != split:
            raise DataError(f"{path}: '{name}' has pictures in train and in test; leave one of them out")
        files[name].append(path)
    if not files:
        raise DataError(
            f"{root}: holds {summarise_folder(root)}, no picture CLASS/train/NAME.obj_whiteshaded_v0000.png "
            "in any folder below"
        )
    order = sorted(files, key=lambda name: (_SPLITS.index(splits[name]), natural_sort_key(name)))
    return [RenderedShape(name, splits[name], tuple(sorted(files[name], key=_make_sort_key(root)))) for name in order]


def import_views(
    source: Path,
    target: Path,
    *,
    progress: Progress,
    clouds: str | Path | None = None,
    min_views: Count = 12,
    background: Background = "black",
    size_px: Annotated[int, Ge(8), Le(2048)] | None = None,
) -> dict[str, Any]:
    """Write a view store of rendered pictures; return its manifest with `root` and `outcome`, as `write_prepared_set`.

    Left out, and named in the manifest's `differences`: shapes with fewer than `min_views` pictures, and, if `clouds`
    is a prepared set, shapes without a cloud of their name. Transparent pixels show `background`; pictures are resized
    to `size_px`, or with None keep their size, which must then be equal. Raises DataError for pictures that are
    unreadable, not square or of another size, and if no shape remains.
    """
    root = expand_home(source).resolve()
    shapes = list_pictures(root)
    clouds = None if clouds is None else Path(clouds)
    cloud_names = None if clouds is None else _list_cloud_names(clouds)
    selected, differences = _select_shapes(shapes, min_views, cloud_names, clouds)
    if not selected:
        raise DataError(f"{root}: none of the {len(shapes)} shapes can be used: {'; '.join(differences)}")
    differences += _note_gaps(root, shapes)
    picture_size_px = size_px or read_picture(selected[0].files[0], background=background).shape[0]
    plan = PreparationPlan(
        VIEWS_SET,
        "mvcnn",
        root,
        {IMAGE: ColumnSpec((picture_size_px, picture_size_px, 3), "uint8", is_ragged=True)},
        tuple(_make_shards(selected, background, picture_size_px, is_resized=size_px is not None)),
        {
            "style": "as the pictures are",
            "background": background,
            "of": {"set": "pictures", "shapes": len(selected), "pictures": sum(len(shape.files) for shape in selected)},
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
    """Read a picture on a background: (H, W, 3) uint8. Raises DataError naming the file if it is unreadable."""
    with open_image(path) as picture:
        return composite_over(np.asarray(picture.convert("RGBA")), background)


def _make_sort_key(root: Path) -> Any:
    """Make a sort key of pictures: by set-up, then by number."""

    def sort_key(path: Path) -> tuple[Any, ...]:
        match = _FILE.fullmatch(path.name)
        assert match is not None
        return path.parent.relative_to(root).as_posix(), int(match["view"])

    return sort_key


def _list_cloud_names(clouds: Path) -> set[str]:
    """List the names of the clouds of a prepared set."""
    prepared = PreparedSet(clouds, read_manifest(clouds))
    return {name for split in prepared.splits for name in prepared.names(split)}


def _select_shapes(
    listed: Sequence[RenderedShape], min_views: int, cloud_names: set[str] | None, clouds: Path | None
) -> tuple[list[RenderedShape], list[str]]:
    """Select the shapes with enough pictures and a cloud; return them with notes on the others."""
    few = [shape for shape in listed if len(shape.files) < min_views]
    enough = [shape for shape in listed if len(shape.files) >= min_views]
    notes = []
    if few:
        names = _join_first([f"{shape.name} ({len(shape.files)})" for shape in few])
        notes.append(f"{len(few)} shapes have fewer than {min_views} pictures and are left out: {names}")
    if cloud_names is None:
        return enough, notes
    unmatched = [shape.name for shape in enough if shape.name not in cloud_names]
    if unmatched:
        notes.append(f"{len(unmatched)} shapes have no cloud of their name in {clouds}: {_join_first(unmatched)}")
    unpictured = sorted(cloud_names - {shape.name for shape in enough}, key=natural_sort_key)
    if unpictured:
        notes.append(
            f"{len(unpictured)} of {len(cloud_names)} clouds in {clouds} have no pictures: {_join_first(unpictured)}"
        )
    return [shape for shape in enough if shape.name in cloud_names], notes


def _note_gaps(root: Path, listed: Sequence[RenderedShape]) -> list[str]:
    """Note the shapes that have fewer pictures in a set-up than most."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for shape in listed:
        for file in shape.files:
            counts[file.relative_to(root).parts[0]][shape.name] += 1
    notes = []
    for set_up, count_by_shape in sorted(counts.items()):
        max_count = max(count_by_shape.values())
        incomplete = [f"{name} ({count})" for name, count in count_by_shape.items() if count < max_count]
        if incomplete:
            notes.append(
                f"{set_up}: {len(incomplete)} shapes have fewer than {max_count} pictures: {_join_first(incomplete)}"
            )
    return notes


def _make_shards(
    selected: Sequence[RenderedShape], background: Background, size_px: int, *, is_resized: bool
) -> Iterator[Shard]:
    """Yield shards of up to 64 shapes of one split."""
    for split in _SPLITS:
        shapes = [shape for shape in selected if shape.split == split]
        for first in range(0, len(shapes), _SHAPES_PER_SHARD):
            members = shapes[first : first + _SHAPES_PER_SHARD]
            files = tuple(file for shape in members for file in shape.files)
            rows = functools.partial(_read_rows, members, background, size_px, is_resized=is_resized)
            yield Shard(split, split, len(members), files, rows, len(files))


def _read_rows(
    shapes: Sequence[RenderedShape], background: Background, size_px: int, *, is_resized: bool
) -> Iterator[SampleRow]:
    """Iterate over the rows of a shard, read shape by shape."""

    def row(shape: RenderedShape) -> SampleRow:
        pictures = [_read_sized(file, background, size_px, is_resized=is_resized) for file in shape.files]
        return SampleRow(shape.name, str(shape.files[0]), {IMAGE: np.stack(pictures)})

    return map(row, shapes)


def _read_sized(path: Path, background: Background, size_px: int, *, is_resized: bool) -> np.ndarray:
    """Read a picture at its final size. Raises DataError for another shape or size."""
    picture = read_picture(path, background=background)
    if picture.shape[0] != picture.shape[1]:
        raise DataError(f"{path}: is {picture.shape[1]} by {picture.shape[0]} pixels, squares are needed; crop it")
    if is_resized:
        return resize_images(torch.from_numpy(picture), size=(size_px, size_px)).numpy()
    if picture.shape[0] != size_px:
        raise DataError(
            f"{path}: is {picture.shape[0]} pixels wide, others {size_px}; give one size for all: size_px=96"
        )
    return picture
