"""Labels of images in one table in memory, which every label format is read into, and stored and written from."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.contract.errors import DataError, escape_to_one_line
from sightline.store.prepared.columns import ColumnSpec

FaultPolicy = Literal["refuse", "leave_out"]
"""Treatment of unusable images and boxes: an error that counts them (`refuse`), or a note (`leave_out`)."""
BoxCorners = tuple[float, float, float, float]
"""Left, top, right, bottom; the right and bottom side lie just outside of the box."""
MAX_PX = 2**24
"""Largest absolute box coordinate: beyond it float32 cannot distinguish pixels, and no image is as wide."""
Values = Mapping[str, np.ndarray]
"""Columns of the boxes of an image: name → array."""


ENCLOSED = ", but the boxes about them"
"""End of what labels state and no box holds: shapes, of which the boxes about them are read."""
UNKNOWN_SHARE = -1.0
"""Stored value of an unknown visible share: prepared columns must be finite."""


class LabelledBox(NamedTuple):
    """Labelled object: its class, up to three boxes, and marks; None where the file states nothing.

    `box` is the whole object; people may also have a `visible` part and a `head`. At least one of the three is stated.
    A crowd is ignored, too; `is_head_ignored` is the mark of the head alone. `visible_share` (0 to 1) and `area` are
    stated where they are not those of the boxes. `line` is the number of its line or entry in the label file. Of an
    object whose sides are not upright, which `is_turned`, `box` is the box about its corners.
    """

    class_name: str
    box: BoxCorners | None
    visible: BoxCorners | None = None
    head: BoxCorners | None = None
    is_ignored: bool = False
    is_head_ignored: bool = False
    is_crowd: bool = False
    visible_share: float | None = None
    area: float | None = None
    line: int = 0
    is_turned: bool = False

    @property
    def share(self) -> float | None:
        """Visible share: as stated, else area of the visible box over that of the whole one, at most 1; or None."""
        if self.visible_share is not None:
            return self.visible_share
        areas = area_of(self.visible), area_of(self.box)
        return min(areas[0] / areas[1], 1.0) if min(areas) > 0 else None


@dataclass(frozen=True)
class LabelledImage:
    """Image that labels name, and its boxes in the order of the file.

    `name` identifies it in results. `size_px` is the height and width that the labels state. `files` are the files of
    its labels. Boxes are in pixels, or in shares of width and height if they are `relative`.
    """

    split: str
    name: str
    path: Path
    boxes: Sequence[LabelledBox]
    image_id: int = 0
    size_px: tuple[int, int] | None = None
    files: tuple[Path, ...] = ()
    relative: bool = False


@dataclass(frozen=True)
class LabelledSet:
    """Labelled images of a source below `root`, with its classes, the faults found so far, and notes.

    `layout` names the form in which the source was found. `unread` counts what the labels state and no box holds.
    """

    root: Path
    layout: str
    classes: CategoryIds
    images: Sequence[LabelledImage]
    faults: AnnotationFaults
    notes: Sequence[str] = field(default_factory=list)
    unread: Mapping[str, int] = field(default_factory=dict)


class CategoryIds(NamedTuple):
    """Class names and the category ids that the files use, in ascending order of the ids."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def from_ids(cls, names: Mapping[int, str], *, where: str) -> CategoryIds:
        """Sort a mapping of id → name. Raises DataError, led by `where`, for no class and for a repeated name."""
        ids = tuple(sorted(names))
        counts = Counter(names.values())
        repeated = [name for name, count in counts.items() if count > 1]
        if not ids or repeated:
            fault = f"'{repeated[0]}' is the name of two classes" if repeated else "names no class"
            raise DataError(f"{where}: {fault}; give every class a name of its own there")
        return cls(tuple(names[number] for number in ids), ids)


class AnnotationFaults:
    """Unusable images and boxes: kind of fault → descriptions."""

    def __init__(self) -> None:
        self._faults: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, fault: str) -> None:
        self._faults[kind].append(fault)

    def raise_or_note(self, faulty: FaultPolicy, *, root: Path, target: Path | None = None) -> list[str]:
        """Return a note for each kind of fault, or raise DataError with the same text if faults are refused.

        A note states the count and the first fault. If several are of one kind, `<target>.faults.txt` lists all, if a
        `target` is given.
        """
        reported = [f"{len(faults)} {kind}, first: {faults[0]}" for kind, faults in self._faults.items()]
        listed = "" if target is None else self._list_all(target.absolute())
        if reported and faulty == "refuse":
            advice = f"correct them, or leave them out by faulty=leave_out{listed}"
            raise DataError(f"{root}: {'; '.join(reported)}; {advice}")
        more = "; a file called as the set, and .faults.txt, lists all" if listed else ""
        return [f"left out: {note}{more}" for note in reported]

    def _list_all(self, target: Path) -> str:
        """Write all faults beside `target` if several are of one kind; return the text that refers to it, else ""."""
        report = target.with_name(f"{target.name}.faults.txt")
        with contextlib.suppress(OSError):
            report.unlink(missing_ok=True)
            if any(len(faults) > 1 for faults in self._faults.values()):
                lines = [f"{kind}: {fault}" for kind, faults in self._faults.items() for fault in faults]
                report.parent.mkdir(parents=True, exist_ok=True)
                report.write_bytes("".join(f"{escape_to_one_line(line)}\n" for line in lines).encode(errors="replace"))
                return f"; {report} lists all"
        return ""


_PLAIN_NUMBERS = {float, int}


def xywh_to_xyxy(bbox: Any) -> BoxCorners:
    """Convert a box from left, top, width, height to left, top, right, bottom.

    Raises ValueError, TypeError or OverflowError for anything but four numbers, and for coordinates beyond `MAX_PX`.
    """
    left, top, width, height = map(float if {*map(type, bbox)} <= _PLAIN_NUMBERS else parse_number, bbox)
    corners = left, top, left + width, top + height
    if not is_valid_box(corners, is_ignored=True):
        raise ValueError(f"finite numbers, of pixels at most {MAX_PX:,} from the corner, are needed")
    return corners


def parse_number(value: Any) -> float:
    """Convert a number to float. Raises TypeError for text and booleans, which `float` would accept."""
    if type(value) is not float and isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{value!r} is not a number")
    try:
        return float(value)
    except TypeError:
        raise TypeError(f"a number is needed, not a {type(value).__name__}") from None


def is_valid_box(box: BoxCorners, *, is_ignored: bool) -> bool:
    """Return True if a box lies within `MAX_PX` pixels and is not empty; ignored boxes may be empty."""
    left, top, right, bottom = box
    is_near = -MAX_PX <= left <= MAX_PX and -MAX_PX <= top <= MAX_PX and abs(right) <= MAX_PX and abs(bottom) <= MAX_PX
    return is_near and (is_ignored or (left < right and top < bottom))


def area_of(box: BoxCorners | None) -> float:
    """Return the area of a box, 0 without one."""
    return 0.0 if box is None else (box[2] - box[0]) * (box[3] - box[1])


BOX_COLUMNS = ("boxes", "label", "area", "is_ignored")
"""Stored columns of formats with one box of an object: the box, class, area, and whether it is ignored."""


_TURNED = inspect.Parameter(
    "turned", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Literal["ignored"] | None
)
_HELD = frozenset({*LabelledBox._fields, "part", "size", "undivided", "suffix"})
"""What a format may hold."""
Files = Iterator[tuple[str, bytes]]
"""Files of labels to write: path below the folder of the set, and content."""


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """Row of a label format: its reader and writer, what it can hold, and the stored columns of its boxes.

    - `read(source, *, ...)` reads a folder or file; its keyword arguments are options of `data prepare`.
    - `turns` says that the format has turned boxes, which the option `turned` of `load` is about.
    - `columns` are stored, the boxes to show first. A visible box that is not stated is stored as the whole box if
      `fills_visible`.
    - `write(labels)` yields the files of a set that fits: its images have their sizes, and as names the paths in the
      published layout, which `image_path(image)` returns.
    - `holds` are the fields of a box that the format can state, beside class and box; and `part`: a person without a
      whole box, `size`: that of an image, `undivided`: images of no split, `suffix`: names that differ in it alone.
    - `fit(box, size_px)` returns the nearest box that the format can state, or a text: why it is left out. `rounds`
      says what it does to corners.
    - `known_by` maps a suffix to a regular expression that the first 64 KiB of such a file match, and no file of
      another format: the sets of other formats then name this one in a refusal.
    """

    read: Callable[..., LabelledSet]
    turns: bool = False
    columns: tuple[str, ...] = BOX_COLUMNS
    fills_visible: bool = False
    write: Callable[[LabelledSet], Files] | None = None
    image_path: Callable[[LabelledImage], str] = lambda image: image.name
    holds: frozenset[str] = frozenset()
    fit: Callable[[LabelledBox, tuple[int, int]], LabelledBox | str] = lambda box, _: box
    rounds: str = ""
    known_by: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.holds <= _HELD, f"{self.holds - _HELD}: no field of a box, and no other that a format may hold"

    def load(self, source: Path, *, turned: Literal["ignored"] | None = None, **options: Any) -> LabelledSet:
        """Read a folder or file by `options` of the reader; turned boxes are ignored, or the boxes about them.

        Raises DataError as the reader.
        """
        labels = self.read(source, **options)
        if turned is None:
            return labels
        images = [
            replace(image, boxes=[row._replace(is_ignored=row.is_ignored or row.is_turned) for row in image.boxes])
            for image in labels.images
        ]
        return replace(labels, images=images)

    @property
    def options(self) -> list[inspect.Parameter]:
        """Options of the reader, with resolved annotations, and `turned` if the format has turned boxes."""
        hints = typing.get_type_hints(self.read, include_extras=True)
        named = inspect.signature(self.read).parameters.values()
        options = [item.replace(annotation=hints[item.name]) for item in named if item.kind is item.KEYWORD_ONLY]
        return [*options, *([_TURNED] if self.turns else [])]

    @cached_property
    def column_specs(self) -> dict[str, ColumnSpec]:
        """Specs of the stored columns: one entry for each box of an image, possibly none."""
        stored = {name: _COLUMNS[name] for name in self.columns}
        return {name: ColumnSpec(c.shape, c.dtype, is_ragged=True, can_be_empty=True) for name, c in stored.items()}

    def stack(self, boxes: Sequence[LabelledBox], classes: CategoryIds) -> Values:
        """Return the stored columns of the boxes of an image."""
        if self.fills_visible:
            boxes = [box if box.visible else box._replace(visible=box.box) for box in boxes]
        labels = {name: label for label, name in enumerate(classes.names)}
        values = {name: [_COLUMNS[name].value(box, labels) for box in boxes] for name in self.columns}
        specs = self.column_specs
        return {
            name: np.array(rows, specs[name].dtype).reshape(-1, *specs[name].shape) for name, rows in values.items()
        }


class _Column(NamedTuple):
    """Stored column: shape and dtype of an entry, and its value for a box, by the labels of class names."""

    shape: tuple[int, ...]
    dtype: str
    value: Callable[[LabelledBox, Mapping[str, int]], Any]


def _fill(box: LabelledBox, stated: BoxCorners | None) -> BoxCorners:
    """Return a stated box; for a missing one, another one of an ignored object, else an empty box."""
    if stated is not None:
        return stated
    corners_of_parts = (corners for corners in (box.box, box.visible, box.head) if corners is not None)
    return next(corners_of_parts) if box.is_ignored else (0.0, 0.0, 0.0, 0.0)


def _store_share(box: LabelledBox) -> float:
    return UNKNOWN_SHARE if box.is_ignored or box.share is None else box.share


_COLUMNS = {
    "boxes": _Column((4,), "float64", lambda box, _: box.box),
    "full": _Column((4,), "float64", lambda box, _: _fill(box, box.box)),
    "visible": _Column((4,), "float64", lambda box, _: _fill(box, box.visible)),
    "head": _Column((4,), "float64", lambda box, _: _fill(box, box.head)),
    "label": _Column((), "int64", lambda box, labels: labels[box.class_name]),
    "area": _Column((), "float64", lambda box, _: area_of(box.box) if box.area is None else box.area),
    "is_ignored": _Column((), "bool", lambda box, _: box.is_ignored),
    "is_head_ignored": _Column((), "bool", lambda box, _: box.is_ignored or box.is_head_ignored),
    "visible_share": _Column((), "float64", lambda box, _: _store_share(box)),
}
