"""Listing images with boxes: files are looked at and stay where they are, boxes are kept beside the list."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.data.boxes.box_readings import BoxForm, ShownBoxes, box_notes
from sightline.data.files.image_files import ImageHeader, check_image, read_header
from sightline.data.store.columns import ColumnSpec
from sightline.data.store.prepared_writer import PreparationPlan, Progress, SampleRow, Shard, iterate_batches
from sightline.errors import DataError, escape_to_one_line

__all__ = [
    "MAX_PX",
    "AnnotationFaults",
    "BoxCorners",
    "CategoryIds",
    "FaultPolicy",
    "ListedImage",
    "ListedImageSet",
    "Values",
    "box_column",
    "check_splits",
    "guess_split",
    "is_valid_box",
    "number_of",
    "plan_image_set",
    "survey_images",
    "xywh_to_xyxy",
]

FaultPolicy = Literal["refuse", "leave_out"]
"""What is done with images and boxes that cannot be used: an error that counts them, or they are left out and noted."""
BoxCorners = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
MAX_PX = 2**24
"""Of a box's coordinates: beyond these, float32 does not tell pixels apart, and no image is as wide."""
Values = Mapping[str, np.ndarray]
"""The boxes of an image by column."""

_IMAGES_A_PART = 1000
_COLUMNS = {
    "size_px": ColumnSpec((2,), "int64"),
    "orientation": ColumnSpec((), "int64"),
    "image_id": ColumnSpec((), "int64"),
}
_SPLIT = re.compile(r"(?:^|[^a-z])(train|val|test)")
_SPLIT_OF = {"train": "train", "val": "validation", "test": "test"}
_MOST_NAMED = 5


class CategoryIds(NamedTuple):
    """The names of the classes, and the number of each in the files, in ascending order of these."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def from_ids(cls, names: Mapping[int, str], *, where: str) -> CategoryIds:
        """Raises DataError, led by `where`, for none, and for a name that two numbers have."""
        ids = tuple(sorted(names))
        counts = Counter(names.values())
        twice = [name for name, count in counts.items() if count > 1]
        if not ids or twice:
            what = f"'{twice[0]}' is the name of two classes" if twice else "names no class"
            raise DataError(f"{where}: {what}; every class needs a name of its own")
        return cls(tuple(names[each] for each in ids), ids)


class AnnotationFaults:
    """What cannot be used, by its kind, in words."""

    def __init__(self) -> None:
        self._found: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, what: str) -> None:
        self._found[kind].append(what)

    def raise_or_note(self, faulty: FaultPolicy, *, root: Path, target: Path | None = None) -> list[str]:
        """A note for each kind. Raises DataError instead, naming the first and the count, where they are refused.

        Where several are of one kind, `<target>.faults.txt` lists all, if a `target` is there.
        """
        reported = [f"{len(found)} {kind}, first: {found[0]}" for kind, found in self._found.items()]
        listed = "" if target is None else self._list_all(target.with_name(f"{target.name}.faults.txt"))
        if reported and faulty == "refuse":
            raise DataError(f"{root}: {'; '.join(reported)}; mend them, or prepare with faulty=leave_out{listed}")
        more = "; a file called as the set, and .faults.txt, lists all" if listed else ""
        return [f"left out: {each}{more}" for each in reported]

    def _list_all(self, report: Path) -> str:
        """Write every fault where several are of one kind; returns what to add to a line."""
        with contextlib.suppress(OSError):
            report.unlink(missing_ok=True)
            if any(len(found) > 1 for found in self._found.values()):
                lines = [f"{kind}: {what}" for kind, found in self._found.items() for what in found]
                report.parent.mkdir(parents=True, exist_ok=True)
                report.write_bytes("".join(f"{escape_to_one_line(each)}\n" for each in lines).encode(errors="replace"))
                return f"; {report} lists all"
        return ""


@dataclass(frozen=True)
class ListedImage:
    """An image that annotations name; `read` gives its boxes for a height and width, and notes what they lack.

    `size_px` is the height and width that the annotations state. `files` are further ones that the boxes come from.
    """

    split: str
    name: str
    path: Path
    read: Callable[[tuple[int, int], AnnotationFaults], Values]
    image_id: int = 0
    size_px: tuple[int, int] | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ListedImageSet:
    """All images found below `root`, what their boxes are kept in, and what to note.

    `shown` is the column of boxes that statistics are about. `faults` are those met on the way. The files
    state boxes in a `form`.
    """

    root: Path
    layout: str
    classes: CategoryIds
    images: Sequence[ListedImage]
    columns: Mapping[str, ColumnSpec]
    shown: str
    faults: AnnotationFaults
    notes: Sequence[str] = field(default_factory=list)
    form: BoxForm = "corner, size"


class _Looked(NamedTuple):
    image: ListedImage
    header: ImageHeader
    orientation: int
    size_px: tuple[int, int]
    values: Values


def box_column(shape: tuple[int, ...], dtype: str) -> ColumnSpec:
    """A column with an entry for each box of an image, of which there may be none."""
    return ColumnSpec(shape, dtype, is_ragged=True, can_be_empty=True)


def guess_split(path: Path) -> str:
    """`train`, `validation` or `test` by the words in a path, those of the last part first; else `all`."""
    for part in reversed(path.parts):
        if found := _SPLIT.search(part.lower()):
            return _SPLIT_OF[found[1]]
    return "all"


def xywh_to_xyxy(bbox: Any) -> BoxCorners:
    """Left, top, right and bottom of a box of left, top, width and height.

    Raises ValueError, TypeError or OverflowError for anything but four numbers, and for places beyond `MAX_PX`.
    """
    left, top, width, height = map(number_of, bbox)
    corners = left, top, left + width, top + height
    if not all(abs(each) <= MAX_PX for each in corners):
        raise ValueError(f"finite numbers, of pixels at most {MAX_PX:,} from the corner, are needed")
    return corners


def number_of(value: Any) -> float:
    """A number as float. Raises TypeError for text and truth values, which `float` would take for one."""
    if isinstance(value, bool | str | bytes):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def is_valid_box(box: BoxCorners, *, is_ignored: bool) -> bool:
    """Whether a box can be meant: it lies within `MAX_PX` pixels, and has an extent unless it is ignored."""
    left, top, right, bottom = box
    return all(abs(each) <= MAX_PX for each in box) and (is_ignored or (left < right and top < bottom))


def plan_image_set(
    found: ListedImageSet,
    *,
    set_name: str,
    faulty: FaultPolicy,
    options: Mapping[str, Any],
    progress: Progress,
    target: Path,
) -> PreparationPlan:
    """The plan of a set of images with boxes, every image decoded once; what headers and annotations show comes first.

    Raises DataError naming the first image that is missing, damaged or not of the stated size, the first box that
    cannot be, and how many there are; they are left out where `faulty` is `leave_out`. A file beside `target` lists
    all.
    """
    looked = _look(found, progress=progress)
    found.faults.raise_or_note(faulty, root=found.root, target=target)
    looked = _whole(found, looked, progress=progress)
    notes = [*found.notes, *found.faults.raise_or_note(faulty, root=found.root, target=target), *_notes(looked, found)]
    parts = []
    order = ("train", "validation", "test", "all")
    for split, members in itertools.groupby(
        sorted(looked, key=lambda each: (order.index(each.image.split), each.image.image_id)),
        key=lambda each: each.image.split,
    ):
        for part in iterate_batches(members, _IMAGES_A_PART):
            files = {file: None for each in part for file in (each.image.path, *each.image.files)}
            title = f"{part[0].image.name} to {part[-1].image.name}"
            num_boxes = sum(len(each.values["label"]) for each in part)
            parts.append(Shard(split, title, len(part), tuple(files), partial(_rows, part), num_boxes))
    about = {
        "classes": {"names": list(found.classes.names), "ids": list(found.classes.ids)},
        "statistics": _statistics(found, looked),
        "differences": notes,
    }
    columns = {**_COLUMNS, **found.columns}
    options = {**options, "faulty": faulty}
    return PreparationPlan(
        set_name, found.layout, found.root, columns, tuple(parts), about, lambda _: {}, options, True
    )


def survey_images(found: ListedImageSet) -> dict[str, Any]:
    """What `data info NAME --from PATH` prints; of images the headers are read, and nothing is refused."""
    looked = _look(found, progress=lambda *_: None)
    notes = [*found.notes, *found.faults.raise_or_note("leave_out", root=found.root), *_notes(looked, found)]
    return {"source": str(found.root), "layout": found.layout, **_statistics(found, looked), "differences": notes}


def _look(found: ListedImageSet, *, progress: Progress) -> list[_Looked]:
    """Every image whose header reads, with its boxes. Raises DataError where there is none."""
    headers: list[tuple[ListedImage, ImageHeader]] = []
    images = _with_splits(found)
    for done, image in enumerate(images, start=1):
        try:
            headers.append((image, read_header(image.path)))
        except DataError as error:
            found.faults.add("images that are missing or damaged", str(error))
        progress(done, 2 * len(images), f"looking at {image.name}")
    stored_px = {
        header.size_px(upright=False) == image.size_px != header.size_px(upright=True) for image, header in headers
    }
    looked = []
    for image, header in headers:
        is_turned = header.orientation > 1 and _is_upright(image, header, otherwise=True not in stored_px)
        size_px = header.size_px(upright=is_turned)
        if image.size_px in (None, size_px):
            orientation = header.orientation if is_turned else 1
            looked.append(_Looked(image, header, orientation, size_px, image.read(size_px, found.faults)))
        else:
            (rows, columns), (height, width) = image.size_px or (0, 0), size_px
            found.faults.add(
                "images of another size than stated",
                f"{image.path} is {width} wide and {height} high, the annotations state {columns} and {rows}",
            )
    return _some(found, looked)


def _whole(found: ListedImageSet, looked: Sequence[_Looked], *, progress: Progress) -> list[_Looked]:
    """The images that decode. Raises DataError where none does."""
    whole = []
    for done, each in enumerate(looked, start=1):
        try:
            check_image(each.image.path)
            whole.append(each)
        except DataError as error:
            found.faults.add("images that are missing or damaged", str(error))
        progress(len(looked) + done, 2 * len(looked), f"decoding {each.image.name}")
    return _some(found, whole)


def _some(found: ListedImageSet, looked: list[_Looked]) -> list[_Looked]:
    if not looked:
        found.faults.raise_or_note("refuse", root=found.root)
        raise DataError(f"{found.root}: the annotations name no image; give the folder of another set")
    return looked


def _is_upright(image: ListedImage, header: ImageHeader, *, otherwise: bool) -> bool:
    """Whether boxes are about the pixels turned as EXIF says: as the stated size shows, if it does."""
    is_stored, is_upright = (header.size_px(upright=each) == image.size_px for each in (False, True))
    return is_upright if is_stored != is_upright else otherwise


def _with_splits(found: ListedImageSet) -> list[ListedImage]:
    """The images in their final splits: what others call validation is tested on where nothing else is."""
    counts = check_splits([(image.split, image.name) for image in found.images], root=found.root)
    if "validation" in counts and "test" not in counts:
        return [replace(image, split="test") if image.split == "validation" else image for image in found.images]
    return list(found.images)


def check_splits(images: Sequence[tuple[str, str]], *, root: Path) -> Counter[str]:
    """Count the images, of a split and a name each, by split.

    Raises DataError where some belong to a split by their path and others do not.
    """
    counts = Counter(split for split, _ in images)
    if "all" in counts and len(counts) > 1:
        name = next(name for split, name in images if split == "all")
        raise DataError(
            f"{root}: {counts['all']} images, first '{name}', belong to no split, the others to "
            f"{', '.join(sorted(counts.keys() - {'all'}))}; call folders and files train, val and test, or none of them"
        )
    return counts


def _rows(part: Sequence[_Looked]) -> Iterator[SampleRow]:
    for each in part:
        own = {"size_px": each.size_px, "orientation": each.orientation, "image_id": each.image.image_id}
        yield SampleRow(each.image.name, str(each.image.path), {**own, **each.values}, (each.image.path,))


def _statistics(found: ListedImageSet, looked: Sequence[_Looked]) -> dict[str, Any]:
    label, is_ignored, boxes = (
        np.concatenate([each.values[name] for each in looked]) for name in ("label", "is_ignored", found.shown)
    )
    sizes, modes = (Counter(each) for each in ([each.size_px for each in looked], [e.header.mode for e in looked]))
    counts = np.bincount(label[~is_ignored], minlength=len(found.classes.names)).tolist()
    heights = np.sort((boxes[:, 3] - boxes[:, 1])[~is_ignored])
    limits = np.concatenate([np.tile(each.size_px[::-1], (len(each.values["label"]), 1)) for each in looked])
    is_outside = (boxes[:, :2] >= limits).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    per_split = Counter(each.image.split for each in looked)
    return {
        "images": dict(per_split),
        "images_without_boxes": sum(len(each.values["label"]) == 0 for each in looked),
        "image_sizes": {f"{width}x{height}": count for (height, width), count in sizes.most_common(_MOST_NAMED)},
        "image_modes": dict(sorted(modes.items())),
        "boxes": {
            split: sum(len(each.values["label"]) for each in looked if each.image.split == split) for split in per_split
        },
        "ignored_share": round(float(is_ignored.mean()), 4) if len(label) else 0.0,
        "boxes_outside": int(is_outside.sum()),
        "box_heights_px": heights[[0, len(heights) // 2, -1]].round(2).tolist() if len(heights) else [],
        "boxes_per_class": dict(zip(found.classes.names, counts, strict=True)),
    }


def _notes(looked: Sequence[_Looked], found: ListedImageSet) -> list[str]:
    odd = [each for each in looked if each.header.mode != "RGB"]
    turned = [each for each in looked if each.orientation > 1]
    left = [each for each in looked if each.header.orientation > 1 and each.orientation == 1]
    seen: dict[Path, str] = {}
    both = [each for each in looked if seen.setdefault(each.image.path, each.image.split) != each.image.split]
    counts = Counter((each.image.path, each.image.split) for each in looked)
    twice = [each for each in looked if counts.pop((each.image.path, each.image.split), 0) > 1]
    kinds = ", ".join(f"{count} {mode}" for mode, count in sorted(Counter(each.header.mode for each in odd).items()))
    notes = (
        (odd, f"are not RGB and are converted ({kinds})"),
        (turned, "are turned as their EXIF orientation says"),
        (left, "are not turned as their EXIF orientation says, for the annotations are about the stored pixels"),
        (both, "are in two splits"),
        (twice, "are listed more than once in one split"),
    )
    lines = [f"{len(which)} images {what}, first: {which[0].image.name}" for which, what in notes if which]
    return [*lines, *box_notes(_collect_shown(looked, found.shown), [each.image.name for each in looked], found.form)]


def _collect_shown(looked: Sequence[_Looked], column: str) -> ShownBoxes:
    """All boxes that are not ignored."""
    boxes, labels, is_ignored = (
        np.concatenate([each.values[name] for each in looked]) for name in (column, "label", "is_ignored")
    )
    counts = [len(each.values["label"]) for each in looked]
    limits = np.repeat([each.size_px[::-1] for each in looked], counts, axis=0)
    images = np.repeat(np.arange(len(looked)), counts)
    return ShownBoxes(*(each[~is_ignored] for each in (boxes, limits, images, labels)))
