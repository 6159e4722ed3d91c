"""Conversion of box labels from one format to another: what the new format cannot hold is counted."""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sightline.contract import registry
from sightline.contract.errors import DataError, UserError
from sightline.contract.schema import suggest
from sightline.store.boxes.image_listing import CheckedImage, check_headers, check_splits
from sightline.store.boxes.label_table import (
    AnnotationFaults,
    FaultPolicy,
    LabelFormat,
    LabelledBox,
    LabelledImage,
    area_of,
)
from sightline.store.boxes.photo_orientation import OrientationRule, assume_turned
from sightline.store.files.atomic_write import can_link, whole_folder
from sightline.store.files.input_files import expand_home
from sightline.store.prepared.prepared_writer import Progress

BoxChoice = Literal["full", "visible", "head"]
"""Box of a person that is converted; with `full`, the visible box and the head go along."""
_ROUNDING_PX = 1e-6
"""Largest difference of corners that are the same."""
_SAME_AREA = 1e-6
"""Largest difference of a stated area, as a share of the box's, that is none."""
_ROUNDED = 5e-4
"""Largest difference of an area, or of a side, that is rounded to three decimals."""
_WORDS = {
    "visible": "visible boxes",
    "head": "head boxes",
    "is_head_ignored": "ignore marks of heads",
    "is_crowd": "crowd marks",
    "visible_share": "visible shares",
    "area": "areas of masks",
    "is_turned": "turned boxes, but the boxes about them",
}
"""Field of a box → what a format that does not hold it loses."""


def convert_labels(
    name: str,
    source: Path,
    new_name: str,
    target: Path,
    *,
    progress: Progress,
    box: BoxChoice = "full",
    faulty: FaultPolicy = "refuse",
    orientation: OrientationRule = "sizes",
    **options: Any,
) -> dict[str, Any]:
    """Write the labels of the set `name` as the set `new_name` reads them, and return what was written and lost.

    Images are linked where the new format expects them, or copied where the file system has no links, and what was
    written is read back before it takes its place: the target is whole or absent. `options` are those of the reader.
    Raises UserError for a set without such files and for a target that is not empty, or is in the source; DataError as
    preparation does, and for a name that cannot be read back; RunError as `whole_folder`.
    """
    reader, writer = _find_format(name, written=False), _find_format(new_name, written=True)
    _check_target(target, source)
    labels = reader.load(source, **options)
    check_splits([(image.split, image.name) for image in labels.images], root=labels.root)
    checked = check_headers(labels, progress=progress, orientation=orientation)
    lost = Counter({f"{what}: not read": count for what, count in labels.unread.items()})
    fitting = _Fitting(new_name, writer, box, labels.faults, lost)
    images = [fitting.fit(item) for item in checked]
    unique = _join_repeated(images, labels.faults)
    notes = [*labels.notes, *labels.faults.raise_or_note(faulty, root=labels.root, target=target)]
    lost["images that are listed more than once: they are written once"] = len(images) - len(unique)
    fitting.count_turned(checked)
    renamed = _assign_paths(unique, labels.root, writer, lost)
    with whole_folder(target) as folder:
        has_links = can_link(folder)
        for path, image_path in {image.name: image.path for image in renamed}.items():
            if has_links:
                _claim(folder, path).symlink_to(image_path.resolve())
            else:
                shutil.copyfile(image_path, _claim(folder, path))
        notes += [] if has_links else ["images are copied: the file system of the target has no links"]
        assert writer.write is not None
        for path, content in writer.write(replace(labels, images=renamed)):
            _claim(folder, path).write_bytes(content)
        names = _read_back(new_name, writer, folder, renamed)
        boxed = {box.class_name for image in labels.images for box in image.boxes}
        lost[f"classes without boxes: {new_name} has none"] = len({*labels.classes.names} - boxed - {*names})
        os.sync()  # once: a file for each of 100,000 images would take minutes
    return {
        "labels": name,
        "as": new_name,
        "root": str(target.resolve()),
        "images": dict(sorted(Counter(image.split for image in renamed).items())),
        "boxes": sum(len(image.boxes) for image in renamed),
        "lost": {what: count for what, count in sorted(lost.items()) if count},
        "differences": notes,
    }


def _find_format(name: str, *, written: bool) -> LabelFormat:
    """Find the label format of a set. Raises UserError for a set that has none, or none that is `written`."""
    formats = {
        known: row
        for known in registry.data.names()
        if (row := getattr(registry.data.get_entry(known).builder, "label_format", None)) is not None
        and (row.write is not None or not written)
    }
    if name not in formats:
        option, what = ("--as ", "writes") if written else ("", "reads")
        known = suggest(name, formats, otherwise=f"; there are {', '.join(sorted(formats))}; globox has others")
        raise UserError(f"data convert: {option}{name}: is no set that {what} labels of boxes{known}")
    return formats[name]


def _check_target(target: Path, source: Path) -> None:
    """Raise UserError for a target that is not empty, or that is in the folder from which labels are read."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"data convert: {target} is there and not empty; give another folder by --to")
    root = expand_home(source).resolve()
    root = root.parent if root.is_file() else root
    if target.resolve().is_relative_to(root):
        raise UserError(
            f"data convert: {target} is in {root}, whose files would then be read with what is written; give a folder "
            "outside by --to"
        )


@dataclass(frozen=True)
class _Fitting:
    """Fit of boxes to the format `name`: what it cannot hold is counted in `lost`, `faults` are added."""

    name: str
    writer: LabelFormat
    choice: BoxChoice
    faults: AnnotationFaults
    lost: Counter[str]

    def fit(self, item: CheckedImage) -> LabelledImage:
        """Return an image with its size, and with its boxes as the format can state them."""
        image = replace(item.image, boxes=[*self._fit_boxes(item.image, item.size_px)], size_px=item.size_px)
        if image.split != "all" or "undivided" in self.writer.holds:
            return image
        self.lost[f"images of no split: {self.name} calls them train"] += 1
        return replace(image, split="train")

    def count_turned(self, checked: Sequence[CheckedImage]) -> None:
        """Count images that a reader of the new files, who sees no size, or two equal ones, takes for turned."""
        holds_size = "size" in self.writer.holds
        pairs = [(replace(item.image, size_px=item.size_px if holds_size else None), item.header) for item in checked]
        for item, is_turned in zip(checked, assume_turned(pairs, "sizes"), strict=True):
            if is_turned and item.orientation == 1:
                about = f"{self.name} is about upright images, unless orientation=ignore is stated"
                self.lost[f"images with boxes of their pixels as stored: {about}"] += 1

    def _fit_boxes(self, image: LabelledImage, size_px: tuple[int, int]) -> Iterator[LabelledBox]:
        for stated in image.boxes:
            box = _choose(stated, self.choice)
            if box.is_ignored and "part" not in self.writer.holds:
                box = box._replace(box=box.box or box.visible or box.head)
            if box.box is None and ("part" not in self.writer.holds or self.choice != "full"):
                where = f"{image.name}, entry {stated.line}"
                self.faults.add(f"people without a {self.choice} box", f"{where}; choose another by --box")
            elif box.is_ignored and "is_ignored" not in self.writer.holds:
                self.lost[f"ignored boxes: {self.name} has none"] += 1
            else:
                yield from self._fit_box(box, size_px)

    def _fit_box(self, box: LabelledBox, size_px: tuple[int, int]) -> Iterator[LabelledBox]:
        restricted, words = _restrict(box, self.writer)
        fitted = self.writer.fit(restricted, size_px)
        if isinstance(fitted, str):
            self.lost[f"{fitted}: {self.name} has none"] += 1
            return
        self.lost.update(f"{word}: {self.name} has none" for word in words)
        self.lost.update(_compare(fitted, restricted, self.name, self.writer.rounds))
        yield fitted


def _compare(new: LabelledBox, old: LabelledBox, name: str, rounds: str) -> Iterator[str]:
    """Yield what the fit to a format, which has this name and `rounds` corners, changed of a box."""
    if new.class_name != old.class_name:
        yield f"boxes of the class {old.class_name}: {name} calls them {new.class_name}"
    if new.is_crowd != old.is_crowd:
        yield f"ignored boxes that are no crowds: {name} calls them crowds"
    if _is_moved(new, old):
        yield f"boxes: {name} {rounds}"
    if new.visible_share != old.visible_share:
        yield f"visible shares: {name} has 1, 0.9, 0.6 and 0.2"


def _is_moved(box: LabelledBox, before: LabelledBox) -> bool:
    """Return True if corners differ by more than rounding leaves, those of the visible box or the head, too."""
    pairs = ((box.box, before.box), (box.visible, before.visible), (box.head, before.head))
    corners = (zip(new or (), old or (), strict=True) for new, old in pairs)
    return any(abs(new - old) > _ROUNDING_PX for new, old in chain.from_iterable(corners))


def _choose(box: LabelledBox, choice: BoxChoice) -> LabelledBox:
    """Return an object with one of its boxes in the place of the whole one."""
    if choice == "full":
        return box
    corners = box.visible if choice == "visible" else box.head
    is_ignored = box.is_ignored or (choice == "head" and box.is_head_ignored)
    whole = (corners or box.box or box.visible) if is_ignored else corners  # of an ignored object any box will do
    return LabelledBox(box.class_name, whole, is_ignored=is_ignored, is_crowd=box.is_crowd, line=box.line)


def _restrict(box: LabelledBox, writer: LabelFormat) -> tuple[LabelledBox, list[str]]:
    """Remove the fields of a box that a format does not hold; also return what these are called."""
    empty = LabelledBox("", None)
    lost = [name for name in _WORDS if name not in writer.holds and getattr(box, name) != getattr(empty, name)]
    changed: dict[str, Any] = {name: getattr(empty, name) for name in lost}
    if "visible" in lost and "visible_share" in writer.holds:
        changed["visible_share"] = box.share
    if "area" in lost and box.box is not None:
        left, top, right, bottom = box.box
        rounded = _ROUNDED * (1 + abs(right - left) + abs(bottom - top))
        if abs(area_of(box.box) - (box.area or 0)) <= max(rounded, _SAME_AREA * area_of(box.box)):
            lost.remove("area")
    return box._replace(**changed), [_WORDS[name] for name in lost]


def _join_repeated(images: Sequence[LabelledImage], faults: AnnotationFaults) -> list[LabelledImage]:
    """Return images once for each split; an image that is labelled again with other boxes is a fault."""
    unique: dict[tuple[Path, str], LabelledImage] = {}
    for image in images:
        first = unique.setdefault((image.path, image.split), image)
        if [box._replace(line=0) for box in first.boxes] != [box._replace(line=0) for box in image.boxes]:
            faults.add("images that are labelled twice, with other boxes", str(image.path))
    return [*unique.values()]


_RENAMED = "images whose names are equal in the new format: their folders, or suffixes, are joined to their names"


def _assign_paths(
    images: Sequence[LabelledImage], root: Path, writer: LabelFormat, lost: Counter[str]
) -> list[LabelledImage]:
    """Return images under their paths in the new format; those of equal names are called after their folders, too.

    Images of one name that differ in the suffix alone have it in their name. Counts both in `lost`. Raises DataError
    for two that would still have one name.
    """
    names = {image.path: image.path.relative_to(root).as_posix() for image in images}
    stated = dict(names)
    for _ in range(2):  # of images that share folders and stems, too
        for paths in _group_equal(images, names, writer):
            joined = {path: names[path].replace("/", "_") for path in paths}
            are_apart = len({os.path.splitext(name)[0] for name in joined.values()}) > 1
            names |= joined if are_apart else {path: _join_suffix(names[path]) for path in paths}
    lost[_RENAMED] = sum(names[path] != name for path, name in stated.items())
    for first, second, *_ in _group_equal(images, names, writer):
        raise DataError(f"{first}: {second} would have the same name, '{names[first]}', in the new format; rename one")
    return [replace(image, name=_find_path(image, names, writer)) for image in images]


def _group_equal(images: Sequence[LabelledImage], names: Mapping[Path, str], writer: LabelFormat) -> list[list[Path]]:
    """Group the files that would have one name in the new format, where several would."""
    groups: defaultdict[str, dict[Path, None]] = defaultdict(dict)
    for image in images:
        path = _find_path(image, names, writer)
        groups[path if "suffix" in writer.holds else os.path.splitext(path)[0]][image.path] = None
    return [[*paths] for paths in groups.values() if len(paths) > 1]


def _find_path(image: LabelledImage, names: Mapping[Path, str], writer: LabelFormat) -> str:
    return writer.image_path(replace(image, name=names[image.path]))


def _join_suffix(name: str) -> str:
    """Return a name with its suffix before the dot, too: a.png is a_png.png."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}_{suffix[1:].lower()}{suffix}"


def _claim(folder: Path, path: str) -> Path:
    """Return the path of a new file, and make its folders. Raises DataError if it is taken, or not text."""
    if not path.isprintable() or ".." in PurePosixPath(path).parts:
        raise DataError(f"{path!r}: is no path for a file of labels; rename the image")
    file = folder / path
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_taken = file.is_symlink() or file.exists()
    except (FileExistsError, NotADirectoryError):
        is_taken = True
    if is_taken:
        raise DataError(
            f"'{path}': an image and another file, or an image in two splits, would have this path in the new "
            "format; rename the image, or keep it in one split"
        )
    return file


def _read_back(name: str, writer: LabelFormat, folder: Path, renamed: Sequence[LabelledImage]) -> Sequence[str]:
    """Return the classes that are read again. Raises DataError if images are not, with as many boxes each."""
    try:
        back = writer.read(folder)
        back.faults.raise_or_note("refuse", root=folder)
        read_images = {
            (image.path.relative_to(back.root).as_posix(), image.split, len(image.boxes)) for image in back.images
        }
    except DataError as error:
        advice = "" if any(image.boxes for image in renamed) else ", or, as no box is left, choose another --as"
        raise DataError(f"{name} does not read what was written: {error}; rename the images{advice}") from error
    for image in renamed:
        if (image.name, image.split, len(image.boxes)) not in read_images:
            raise DataError(f"{image.path}: {name} does not read its labels again from '{image.name}'; rename it")
    return back.classes.names
