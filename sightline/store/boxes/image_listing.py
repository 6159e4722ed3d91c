"""Listing of images with boxes: files are checked and stay in place, boxes are stored next to the list."""

from __future__ import annotations

import filecmp
import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from sightline.contract.errors import DataError, join_some
from sightline.store.boxes.label_table import (
    ENCLOSED,
    BoxCorners,
    CategoryIds,
    FaultPolicy,
    LabelFormat,
    LabelledImage,
    LabelledSet,
    Values,
)
from sightline.store.boxes.photo_orientation import OrientationRule, agrees_with_size, assume_turned, leave_out_beyond
from sightline.store.boxes.records import propose_canvas
from sightline.store.files.image_files import (
    CONVERT_ADVICE,
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    ImageHeader,
    advise_unread,
    check_image,
    read_header,
    read_image,
)
from sightline.store.files.input_files import list_files
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.copies import digest_arrays
from sightline.store.prepared.prepared_set import describe_contents
from sightline.store.prepared.prepared_writer import PreparationPlan, Progress, SampleRow, Shard, iterate_batches

_IMAGES_PER_SHARD = 1000
_COLUMNS = {
    "size_px": ColumnSpec((2,), "int64"),
    "orientation": ColumnSpec((), "int64"),
    "image_id": ColumnSpec((), "int64"),
}
_SPLIT_PATTERN = re.compile(r"(?:^|[^a-z])(train|val|test)")
_SPLIT_BY_WORD = {"train": "train", "val": "validation", "test": "test"}
_MAX_IMAGE_SIZES = 5
_MAX_RARE = 5
_DARK = 63
"""Highest value, of 255, of images of 10, 12 or 14 bits that are stored in 16."""


class CheckedImage(NamedTuple):
    """Labelled image with boxes in pixels, its header, the orientation to apply, and the size that results."""

    image: LabelledImage
    header: ImageHeader
    orientation: int
    size_px: tuple[int, int]


class _StoredImage(NamedTuple):
    """Checked image, whose boxes are columns."""

    image: LabelledImage
    header: ImageHeader
    orientation: int
    size_px: tuple[int, int]
    values: Values
    deep_max: int | None = None
    """Highest value of the RGB pixels of an image of more than 8 bits."""
    content: str | None = None
    """Digest of all pixels of an image that may have a copy in another file."""


def list_images(root: Path, *, may_lack: bool = False) -> list[Path]:
    """List all images below a folder, links followed, sorted by path.

    Raises DataError if there are none, unless `may_lack`.
    """
    images = list_files(root, IMAGE_SUFFIXES)
    if not images and not may_lack:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        advice = advise_unread(root) or "; give a folder with images"
        raise DataError(f"{root}: {describe_contents(root)}, no image ({suffixes}){advice}")
    return images


UNREAD_KIND = f"labelled images of a kind that is not read: {CONVERT_ADVICE}"
"""Kind of fault of an image, such as one of HEIC, that labels are about."""


class UnreadImages:
    """Photos below a folder whose kind is not read."""

    def __init__(self, root: Path) -> None:
        self._by_stem: defaultdict[str, list[Path]] = defaultdict(list)
        for path in list_files(root, UNREAD_SUFFIXES):
            self._by_stem[unicodedata.normalize("NFC", path.stem)].append(path)

    def take(self, name: str, folder: Path | None = None) -> Path | None:
        """Return a photo called as the last part of a name, of `folder` if stated, whatever its kind; each only once.

        None if there is none.
        """
        [*_, last] = _list_ends(name) or [name]
        paths = self._by_stem.get(os.path.splitext(last)[0], self._by_stem.get(last, []))
        path = next((path for path in paths if folder in (None, path.parent)), None)
        if path is not None:
            paths.remove(path)
        return path

    def list_notes(self) -> list[str]:
        """Return a note on the photos that were not taken, if there are any."""
        left = sorted(path for paths in self._by_stem.values() for path in paths)
        kinds = ", ".join(sorted({path.suffix.lower() for path in left}))
        text = f"{len(left)} images are of a kind that is not read ({kinds}), and are left out"
        return [f"{text}, first: {left[0]}; {CONVERT_ADVICE}"] if left else []


def note_unlabelled(root: Path, labelled: Iterable[Path]) -> list[str]:
    """Return notes on the images below a folder that its labels do not name, and on those of kinds not read."""
    images = list_images(root, may_lack=True)
    left = sorted({*images} - {*labelled})
    notes = [f"{len(left)} images are in no annotation file and are left out, first: {left[0]}"] if left else []
    return notes + UnreadImages(root).list_notes()


class NameEnds:
    """Index of images by every end of their paths, with and without suffix: other tools name them from any folder."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            for end in _list_ends(name):
                self._names[end].append(name)
                stem, suffix = os.path.splitext(end)
                if suffix.lower() in IMAGE_SUFFIXES:
                    self._names[stem].append(name)

    def find(self, name: str) -> list[str]:
        """Return the images that have the longest end in common with a name; [] if none has its last part.

        An image whose kind is not read, such as a.heic, may have been saved as another one: a.jpg.
        """
        stem, suffix = os.path.splitext(name)
        names = [name, stem] if suffix.lower() in UNREAD_SUFFIXES else [name]
        return next((self._names[end] for text in names for end in _list_ends(text) if end in self._names), [])


def is_other_photo(stated: str | Path, image: Path) -> bool:
    """Return True if a stated path leads to a file with other bytes than those of an image that is called alike."""
    try:
        return os.path.isfile(stated) and not filecmp.cmp(stated, image, shallow=False)
    except (OSError, ValueError):
        return False


def _list_ends(name: str) -> list[str]:
    """List the ends of a path, the longest first: forward slashes, no `.` parts, Unicode form NFC."""
    parts = [part for part in unicodedata.normalize("NFC", name.replace("\\", "/")).split("/") if part not in ("", ".")]
    return ["/".join(parts[first:]) for first in range(len(parts))]


def guess_split(path: Path) -> str:
    """Guess the split (`train`, `validation`, `test`) from the words in a path, last part first; else `all`."""
    return guess_split_of_parts(path.parts)


def guess_split_of_parts(parts: Sequence[str]) -> str:
    """Guess the split from the parts of a path, as `guess_split` does."""
    for part in reversed(parts):
        if match := _SPLIT_PATTERN.search(part.lower()):
            return _SPLIT_BY_WORD[match[1]]
    return "all"


def plan_image_set(
    listed: LabelledSet,
    label_format: LabelFormat,
    *,
    set_name: str,
    faulty: FaultPolicy,
    orientation: OrientationRule,
    options: Mapping[str, Any],
    progress: Progress,
    target: Path,
) -> PreparationPlan:
    """Build the preparation plan of a set of images with boxes; every image is decoded once to check it.

    `orientation` states which pixels boxes are about; by default those whose size the annotations state, else turned
    photos.
    Faults of headers and annotations are reported before images are decoded. Raises DataError with the first image
    that is missing, damaged or not of the stated size, the first invalid box, and their counts; they are left out if
    `faulty` is `leave_out`. A file next to `target` lists all.
    """
    listed = _assign_splits(listed)
    listed = replace(listed, notes=[*listed.notes, *_note_shapes(listed)])
    headers = check_headers(
        listed,
        progress=lambda done, total, what: progress(done, 2 * total, what),  # the other half is decoding
        orientation=orientation,
    )
    listed.faults.raise_or_note(faulty, root=listed.root, target=target)
    checked = _decode(listed, _stack(listed, label_format, headers), progress=progress)
    shown = label_format.columns[0]
    doubts = [*_note_all_ignored(listed.classes, checked), *_note_rare_classes(listed.classes, checked)]
    notes = [
        *listed.notes,
        *listed.faults.raise_or_note(faulty, root=listed.root, target=target),
        *_collect_notes(checked, shown),
        *doubts,
    ]
    shards = []
    order = ("train", "validation", "test", "all")
    ordered = sorted(checked, key=lambda item: (order.index(item.image.split), item.image.image_id))
    first_use = {
        file: item.image
        for item in reversed(ordered)
        for file in item.image.files
        if file.is_relative_to(listed.root) and ".." not in file.parts  # else it cannot be listed
    }
    for split, members in itertools.groupby(ordered, key=lambda item: item.image.split):
        for shard_items in iterate_batches(members, _IMAGES_PER_SHARD):
            files = {file: None for item in shard_items for file in (item.image.path, *item.image.files)}
            title = f"{shard_items[0].image.name} to {shard_items[-1].image.name}"
            num_boxes = sum(len(item.values["label"]) for item in shard_items)
            shards.append(
                Shard(
                    split,
                    title,
                    len(shard_items),
                    tuple(files),
                    partial(_iterate_rows, shard_items, first_use),
                    num_boxes,
                )
            )
    about = {
        "classes": {"names": list(listed.classes.names), "ids": list(listed.classes.ids)},
        "statistics": _compute_statistics(listed.classes, checked, shown),
        "proposed_canvas": _propose_canvas(checked, shown),
        "doubts": doubts,
        "differences": notes,
    }
    columns = {**_COLUMNS, **label_format.column_specs}
    return PreparationPlan(
        set_name, listed.layout, listed.root, columns, tuple(shards), about, lambda _: {}, options, True
    )


def survey_images(
    listed: LabelledSet, label_format: LabelFormat, *, orientation: OrientationRule = "sizes"
) -> dict[str, Any]:
    """Summary of unprepared files for `data info NAME --from PATH`; reads image headers only, refuses nothing."""
    listed = _assign_splits(listed)
    listed = replace(listed, notes=[*listed.notes, *_note_shapes(listed)])
    checked = _stack(listed, label_format, check_headers(listed, progress=lambda *_: None, orientation=orientation))
    shown = label_format.columns[0]
    notes = [
        *listed.notes,
        *listed.faults.raise_or_note("leave_out", root=listed.root),
        *_collect_notes(checked, shown),
        *_note_all_ignored(listed.classes, checked),
        *_note_rare_classes(listed.classes, checked),
    ]
    return {
        "source": str(listed.root),
        "layout": listed.layout,
        **_compute_statistics(listed.classes, checked, shown),
        "proposed_canvas": _propose_canvas(checked, shown),
        "differences": notes,
    }


def check_headers(
    listed: LabelledSet, *, progress: Progress, orientation: OrientationRule = "sizes"
) -> list[CheckedImage]:
    """Read the header of every image and express its boxes in pixels of the orientation they are about; add faults.

    Raises DataError if no image is usable.
    """
    headers: list[tuple[LabelledImage, ImageHeader]] = []
    for done, image in enumerate(listed.images, start=1):
        try:
            headers.append((image, read_header(image.path)))
        except DataError as error:
            listed.faults.add("images that are missing or damaged", str(error))
        progress(done, len(listed.images), f"looking at {image.name}")
    checked = []
    for (image, header), is_turned in zip(headers, assume_turned(headers, orientation), strict=True):
        size_px = header.size_px(upright=is_turned)
        if agrees_with_size(image, header, orientation, is_turned=is_turned):
            inside = leave_out_beyond(_scale(image, size_px), header, listed.faults, is_turned=is_turned)
            checked.append(CheckedImage(inside, header, header.orientation if is_turned else 1, size_px))
        else:
            (rows, columns), (height, width) = image.size_px or (0, 0), size_px
            listed.faults.add(
                "images of another size than stated",
                f"{image.path} is {width} wide and {height} high, the annotations state {columns} and {rows}",
            )
    if not checked:
        _refuse_none(listed)
    return checked


def _scale(image: LabelledImage, size_px: tuple[int, int]) -> LabelledImage:
    """Return an image whose boxes are in pixels of its size."""
    if not image.relative:
        return image
    height, width = size_px

    def scale(box: BoxCorners | None) -> BoxCorners | None:
        return box and (box[0] * width, box[1] * height, box[2] * width, box[3] * height)

    boxes = [row._replace(box=scale(row.box), visible=scale(row.visible), head=scale(row.head)) for row in image.boxes]
    return replace(image, boxes=boxes, relative=False)


def _stack(listed: LabelledSet, label_format: LabelFormat, checked: Sequence[CheckedImage]) -> list[_StoredImage]:
    """Return the images with the stored columns of their boxes."""
    stacked = [(item, label_format.stack(item.image.boxes, listed.classes)) for item in checked]
    return [
        _StoredImage(replace(item.image, boxes=()), item.header, item.orientation, item.size_px, values)
        for item, values in stacked
    ]


def _decode(listed: LabelledSet, checked: Sequence[_StoredImage], *, progress: Progress) -> list[_StoredImage]:
    """Return the images that can be decoded; add faults. Raises DataError if there are none."""
    decodable: list[_StoredImage] = []
    alike: dict[tuple[Any, ...], dict[Path, None]] = {}
    for done, item in enumerate(checked, start=1):
        try:
            survey = check_image(item.image.path)
            decodable.append(item._replace(deep_max=survey.deep_max))
            alike.setdefault((*item.size_px, survey.digest), {})[item.image.path] = None
        except DataError as error:
            listed.faults.add("images that are missing or damaged", str(error))
        progress(len(checked) + done, 2 * len(checked), f"decoding {item.image.name}")
    if not decodable:
        _refuse_none(listed)
    repeated = {path for paths in alike.values() if len(paths) > 1 for path in paths}
    return [
        item._replace(content=digest_arrays(read_image(item.image.path, orientation=item.orientation)))
        if item.image.path in repeated
        else item
        for item in decodable
    ]


def _refuse_none(listed: LabelledSet) -> NoReturn:
    """Raise DataError for a set without a usable image: its faults, where it has some."""
    listed.faults.raise_or_note("refuse", root=listed.root)
    raise DataError(f"{listed.root}: the annotations name no image; give the folder of another set")


def _assign_splits(listed: LabelledSet) -> LabelledSet:
    """Return the set with its final splits: validation images are the test split if there is no other."""
    counts = check_splits([(image.split, image.name) for image in listed.images], root=listed.root)
    if "validation" not in counts or "test" in counts:
        return listed
    images = [replace(image, split="test") if image.split == "validation" else image for image in listed.images]
    return replace(listed, images=images)


def check_splits(images: Sequence[tuple[str, str]], *, root: Path) -> Counter[str]:
    """Count images, given as (split, name), by split.

    Raises DataError if some belong to a split by their path and others do not.
    """
    counts = Counter(split for split, _ in images)
    if "all" in counts and len(counts) > 1:
        name = next(name for split, name in images if split == "all")
        raise DataError(
            f"{root}: {counts['all']} images, first '{name}', belong to no split, the others to "
            f"{', '.join(sorted(counts.keys() - {'all'}))}; call folders and files train, val and test, or none of them"
        )
    return counts


def _iterate_rows(part: Sequence[_StoredImage], first_use: Mapping[Path, LabelledImage]) -> Iterator[SampleRow]:
    """Yield the rows of images; each lists its file, and the annotation files that no image before it has."""
    for item in part:
        image = item.image
        image_columns = {"size_px": item.size_px, "orientation": item.orientation, "image_id": image.image_id}
        files = [image.path, *(file for file in image.files if first_use.get(file) is image)]
        yield SampleRow(
            image.name, str(image.path), {**image_columns, **item.values}, tuple(files), content=item.content
        )


def _compute_statistics(classes: CategoryIds, checked: Sequence[_StoredImage], shown: str) -> dict[str, Any]:
    label, is_ignored, boxes = (
        np.concatenate([item.values[name] for item in checked]) for name in ("label", "is_ignored", shown)
    )
    sizes, modes = (Counter(values) for values in ([i.size_px for i in checked], [i.header.mode for i in checked]))
    counts = np.bincount(label[~is_ignored], minlength=len(classes.names)).tolist()
    heights = np.sort((boxes[:, 3] - boxes[:, 1])[~is_ignored])
    limits = np.concatenate([np.tile(item.size_px[::-1], (len(item.values["label"]), 1)) for item in checked])
    is_outside = (boxes[:, :2] >= limits).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    per_split = Counter(item.image.split for item in checked)
    return {
        "images": dict(per_split),
        "images_without_boxes": sum(len(item.values["label"]) == 0 for item in checked),
        "image_sizes": {f"{width}x{height}": count for (height, width), count in sizes.most_common(_MAX_IMAGE_SIZES)},
        "image_modes": dict(sorted(modes.items())),
        "boxes": {
            split: sum(len(item.values["label"]) for item in checked if item.image.split == split)
            for split in per_split
        },
        "ignored_share": round(float(is_ignored.mean()), 4) if len(label) else 0.0,
        "boxes_outside": int(is_outside.sum()),
        "box_heights_px": heights[[0, len(heights) // 2, -1]].round(2).tolist() if len(heights) else [],
        "boxes_per_class": dict(zip(classes.names, counts, strict=True)),
    }


def _propose_canvas(checked: Sequence[_StoredImage], shown: str) -> dict[str, Any]:
    boxes = np.concatenate([item.values[shown][~item.values["is_ignored"]] for item in checked])
    return propose_canvas(np.array([item.size_px for item in checked]), boxes)


def _collect_notes(checked: Sequence[_StoredImage], shown: str) -> list[str]:
    non_rgb = [item for item in checked if item.header.mode != "RGB"]
    rotated = [item for item in checked if item.orientation > 1]
    not_rotated = [item for item in checked if item.header.orientation > 1 and item.orientation == 1]
    overruled = [item for item in checked if item.image.size_px not in (None, item.size_px)]
    split_by_path: dict[Path, str] = {}
    in_two_splits = [
        item for item in checked if split_by_path.setdefault(item.image.path, item.image.split) != item.image.split
    ]
    counts = Counter((item.image.path, item.image.split) for item in checked)
    repeated = [item for item in checked if counts.pop((item.image.path, item.image.split), 0) > 1]
    deep = [item for item in checked if item.deep_max is not None]
    deep_max = max((item.deep_max or 0 for item in deep), default=0)
    modes = ", ".join(f"{count} {mode}" for mode, count in sorted(Counter(i.header.mode for i in non_rgb).items()))
    notes = (
        (non_rgb, f"are not RGB and are converted ({modes})"),
        (
            deep if deep_max <= _DARK else (),
            f"of 16 bits are dark: their upper 8 bits, which are used, are {deep_max} at most; if the camera has fewer "
            "bits, scale the values to 65535",
        ),
        (rotated, "are turned as their EXIF orientation says (orientation=ignore, if labels are about stored pixels)"),
        (not_rotated, "are not turned as their EXIF orientation says, for the annotations are about the stored pixels"),
        (overruled, "have labels that state the size of the other orientation, which is overruled"),
        (in_two_splits, "are in two splits"),
        (repeated, "are listed more than once in one split"),
    )
    lines = [
        f"{len(images)} images {description}, first: {images[0].image.name}" for images, description in notes if images
    ]
    return [*lines, *_note_repeated(checked, shown)]


def _note_all_ignored(classes: CategoryIds, checked: Sequence[_StoredImage]) -> list[str]:
    """Return a note on the boxes of a set in which all are ignored, so that none is trained on."""
    labels, ignored = (np.concatenate([item.values[name] for item in checked]) for name in ("label", "is_ignored"))
    if not len(labels) or not ignored.all():
        return []
    named = [f"{count} {classes.names[label]}" for label, count in sorted(Counter(labels.tolist()).items())]
    return [
        f"all {len(labels)} boxes are marked as ignored (difficult, iscrowd, ignore): "
        f"{join_some(named, most=_MAX_RARE)}; nothing is left to train on and to score; clear the marks if these are "
        "the objects"
    ]


def _note_shapes(listed: LabelledSet) -> list[str]:
    """Return notes on turned boxes and other shapes, which are read as the boxes about them, if there are any."""
    turned = [image.name for image in listed.images for box in image.boxes if box.is_turned and not box.is_ignored]
    ignored = [image.name for image in listed.images for box in image.boxes if box.is_turned and box.is_ignored]
    shapes = {what.removesuffix(ENCLOSED): n for what, n in listed.unread.items() if what.endswith(ENCLOSED) and n}
    lines = [f"{len(turned)} turned boxes, first in {turned[0]},"] if turned else []
    lines += [f"{count} {kind}" for kind, count in sorted(shapes.items())]
    notes = [f"{len(ignored)} turned boxes, first in {ignored[0]}, are ignored"] if ignored else []
    return notes + [f"{line} are read as the upright boxes about them" for line in lines]


def _note_rare_classes(classes: CategoryIds, checked: Sequence[_StoredImage]) -> list[str]:
    """Return notes on classes with at most one training image, or no tested one, where the source states both parts.

    Classes without a box in any part are left out: their names alone are there.
    """
    counts = {split: np.zeros(len(classes.names), dtype=np.int64) for split in ("train", "test")}
    for item in checked:
        if item.image.split in counts:
            counts[item.image.split][np.unique(item.values["label"][~item.values["is_ignored"]])] += 1
    if not counts.keys() <= {item.image.split for item in checked}:
        return []
    train, test = counts["train"], counts["test"]
    rows = [
        ((train < 2) & (train + test > 0), "at most one training image", "add some, or choose others by data.classes"),
        ((test == 0) & (train > 0), "no image of the test part", "they are learnt and never measured"),
    ]
    notes = []
    for is_rare, fault, advice in rows:
        named = [f"{classes.names[i]} (train {train[i]}, test {test[i]})" for i in np.flatnonzero(is_rare)]
        if named:
            of_all = f"{len(named)} of {len(classes.names)} classes"
            notes.append(f"{of_all} have boxes in {fault}: {join_some(named, most=_MAX_RARE)}; {advice}")
    return notes


def _note_repeated(checked: Sequence[_StoredImage], shown: str) -> list[str]:
    """Return a note on boxes, but the ignored, that are there more than once with the same class, if there are any."""
    counts: Counter[tuple[int, int, tuple[float, ...]]] = Counter()
    for index, item in enumerate(checked):
        is_shown = ~item.values["is_ignored"]
        labels, boxes = (item.values[name][is_shown].tolist() for name in ("label", shown))
        counts.update((index, label, tuple(box)) for label, box in zip(labels, boxes, strict=True))
    repeated = [key for key, count in counts.items() if count > 1]
    if not repeated:
        return []
    index, _, box = repeated[0]
    number, corners = sum(counts[key] - 1 for key in repeated), ", ".join(f"{corner:g}" for corner in box)
    text = "boxes are there once more with the same class, first in"
    return [f"{number} {text} {checked[index].image.name}: {corners} (left, top, right, bottom); keep one of each"]
