"""Labels of images with boxes from one layout to another, through the neutral form; what is dropped is counted."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sightline.data.boxes.annotations import LabelledBox, LabelledImage
from sightline.data.boxes.image_listing import CategoryIds, FaultPolicy, check_splits
from sightline.data.boxes.layout_writing import LAYOUTS, Job, Layout, Placed, json_bytes
from sightline.data.boxes.odgt import BoxType
from sightline.data.files.atomic_write import whole_folder
from sightline.data.files.image_files import IMAGE_SUFFIXES, read_header
from sightline.errors import DataError, UserError

__all__ = ["LAYOUTS", "convert_annotations"]

_REPORT = "conversion.json"
_MOST_EXAMPLES = 3


def convert_annotations(
    source: Path,
    layout: str,
    target: Path,
    as_layout: str,
    *,
    box: BoxType = "full",
    faulty: FaultPolicy = "refuse",
    images: Literal["link", "leave"] = "link",
) -> dict[str, Any]:
    """Write the labels of a folder in another layout; returns what was written and dropped, as conversion.json has it.

    `box` is the one that layouts of one box get. `images` are linked to where the layout has them, or left. The same
    labels give the same bytes. Raises UserError for a target that is not empty, and DataError as readers do, for an
    image whose size the layout needs and that is missing, for images that the layout cannot keep apart, and for a
    person without the chosen box; RunError as `whole_folder`.
    """
    _check_target(target, source)
    writer, found = LAYOUTS[as_layout], LAYOUTS[layout].read(source)
    notes = [*found.notes, *found.faults.raise_or_note(faulty, root=found.root, target=target)]
    check_splits([(each.split, each.name) for each in found.images], root=found.root)
    classes = found.classes or _classes_of(found.images, with_ignored=as_layout != "yolo_txt")
    job = Job(box, classes, frozenset(each.split for each in found.images))
    by_split: defaultdict[str, list[Placed]] = defaultdict(list)
    for each in sorted(found.images, key=lambda image: image.name):
        image = _sized(each) if writer.needs_size else each
        says = None if as_layout == layout else writer.supported_fields
        kept = tuple(_reduced(one, each, says, job) for one in image.boxes)
        for key in each.extra.keys() - {"id"} if not writer.has_image_fields and as_layout != layout else ():
            job.lost[f"{key} of the image"].append(each.name)
        by_split[each.split].append((replace(image, boxes=kept), writer.image_path(image, job)))
    everything = [each for placed in by_split.values() for each in placed]
    _assert_apart(everything, writer)
    absent = [image.name for image, _ in everything if image.path is None or not image.path.is_file()]
    if images == "link" and absent:
        notes.append(f"{len(absent)} images are not there and not linked, first: {absent[0]}")
    bare = [place for _, place in everything if PurePosixPath(place).suffix.lower() not in IMAGE_SUFFIXES]
    if bare and as_layout != "coco":
        notes.append(f"{len(bare)} images have no ending of an image, so readers pass them over, first: {bare[0]}")
    notes += _note_turned([image for image, _ in everything]) if not writer.states_size else ()
    report = {
        "layout": layout,
        "as": as_layout,
        "root": str(target.resolve()),
        "images": {split: len(placed) for split, placed in sorted(by_split.items())},
        "boxes": sum(len(each.boxes) for each in found.images),
        "dropped": {},
        "differences": notes,
    }
    with whole_folder(target) as folder:
        for image, place in everything if images == "link" else ():
            if image.path is not None and image.path.is_file():
                _claim_place(folder, place).symlink_to(image.path.resolve())
        for split, placed in sorted(by_split.items()):
            for path, content in writer.write(split, placed, job):
                _write(folder, path, content)
        report["dropped"] = {
            what: {"count": len(where), "examples": where[:_MOST_EXAMPLES]} for what, where in sorted(job.lost.items())
        }
        _write(folder, _REPORT, json_bytes({key: value for key, value in report.items() if key != "root"}))
    return report


def _check_target(target: Path, source: Path) -> None:
    """Raises UserError for a target that is not empty, and for one in the folder that labels are read from."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"data convert: {target} is there and not empty; give another folder by --to")
    root = source.expanduser().resolve()
    if root.is_dir() and target.resolve().is_relative_to(root):
        raise UserError(
            f"data convert: {target} is in {root}, whose files would then be read with what is written; give a folder "
            "outside by --to"
        )


def _reduced(box: LabelledBox, image: LabelledImage, says: frozenset[str] | None, job: Job) -> LabelledBox:
    """The box without what the layout cannot state, which is noted."""
    place = ", ".join(f"{each:g}" for each in next(iter(box.boxes.values()), ()))
    where = f"{image.name}: {box.kind or box.label} at {place}"
    if job.box not in box.boxes:
        raise DataError(f"{where}: has no {job.box} box; choose another by box=")
    if job.box == "head" and (box.extra.get("head_attr") or {}).get("ignore", 0) != 0:
        box = replace(box, is_ignored=True)
    if says is None:
        return box
    single = "visible" not in says
    lost_boxes = [kind for kind in box.boxes if (kind != job.box if single else kind not in says)]
    lost = [*(f"{kind} box" for kind in lost_boxes), *(key for key in box.extra if key not in says and key != "id")]
    lost += ["kind"] if box.kind is not None and "kind" not in says else []
    for what in lost:
        job.lost[what].append(where)
    return replace(box, extra={key: value for key, value in box.extra.items() if key in says})


def _sized(image: LabelledImage) -> LabelledImage:
    """The image with its size, read from its file where the labels do not state it."""
    if image.size_px is not None:
        return image
    if image.path is None:
        raise DataError(f"{image.name}: is not there, and its size is needed; put the images below the labels")
    return replace(image, size_px=read_header(image.path).size_px(upright=True))


def _note_turned(images: Sequence[LabelledImage]) -> list[str]:
    """A note on images whose boxes are about pixels as they are stored, where no size says so to readers."""
    stored = []
    for image in images:
        if image.path is not None and image.path.is_file() and image.size_px is not None:
            header = read_header(image.path)
            if header.size_px(upright=False) == image.size_px != header.size_px(upright=True):
                stored.append(image.name)
    if not stored:
        return []
    what = "have boxes about their stored pixels, and this layout's readers turn them as their EXIF orientation says"
    return [f"{len(stored)} images {what}; store them turned before, first: {stored[0]}"]


def _classes_of(images: Sequence[LabelledImage], *, with_ignored: bool) -> CategoryIds:
    boxes = (box for image in images for box in image.boxes)
    names = sorted({box.label for box in boxes if with_ignored or not box.is_ignored}) or ["person"]
    return CategoryIds(tuple(names), tuple(range(1, len(names) + 1)))


def _assert_apart(placed: Sequence[Placed], layout: Layout) -> None:
    """Raises DataError where two images, or their labels, would be one: many layouts drop folders and endings."""
    owners: dict[tuple[str, str], str] = {}
    for image, place in placed:
        if place.startswith("/") or ".." in PurePosixPath(place).parts or "\0" in place:
            raise DataError(f"{place}: lies outside of the folder; name images by paths below it")
        for what, key in (("image", place), ("labels", layout.label(place))):
            if (other := owners.get((what, key))) is not None:
                raise DataError(
                    f"'{other}' and '{image.name}' would have the same {what} '{key}' in this layout; rename one, or "
                    "convert their folders apart"
                )
            owners[what, key] = image.name


def _write(folder: Path, place: str, content: bytes) -> None:
    with open(_claim_place(folder, place), "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _claim_place(folder: Path, place: str) -> Path:
    """The path of what belongs there. Raises DataError where something else is, or is a folder above it."""
    path = folder / place
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_taken = path.is_symlink() or path.exists()
    except (FileExistsError, NotADirectoryError):
        is_taken = True
    if is_taken:
        raise DataError(f"'{place}': an image and another file belong there in this layout; rename the image")
    return path
