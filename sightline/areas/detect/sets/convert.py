"""Conversion of box labels from one layout to another; dropped values are counted."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sightline.areas.detect.sets.annotations import BoxType, LabelledBox, LabelledImage, LabelledSet
from sightline.areas.detect.sets.image_listing import CategoryIds, FaultPolicy, check_splits
from sightline.areas.detect.sets.labelling_tool_files import TOOL_READERS
from sightline.areas.detect.sets.layout_reading import read_coco
from sightline.areas.detect.sets.layout_writing import LAYOUTS, Job, Layout, Placed, json_bytes
from sightline.contract.errors import DataError, UserError
from sightline.store.files.atomic_write import whole_folder
from sightline.store.files.image_files import IMAGE_SUFFIXES, read_header
from sightline.store.files.input_files import expand_home

READERS = {**{name: layout.read for name, layout in LAYOUTS.items()}, **TOOL_READERS}
"""Layout that labels can be converted from -> its reader; those of `LAYOUTS` can be written, too."""
_REPORT_FILE = "conversion.json"
_MAX_EXAMPLES = 3


def convert_annotations(
    source: Path,
    layout: str,
    target: Path,
    as_layout: str,
    *,
    box: BoxType = "full",
    faulty: FaultPolicy = "refuse",
    images: Literal["link", "leave"] = "link",
    annotations: tuple[str, ...] | None = None,
    image_folder: str | None = None,
) -> dict[str, Any]:
    """Write the labels of a folder in another layout and return the report (conversion.json): written and dropped.

    `box` selects the box for layouts that have one box per object. `images` are linked to the paths that the layout
    demands, or not written. `annotations` and `image_folder` are, of COCO, the JSON files and the folder of the images
    in `source`, for other than the usual names. The same labels give the same bytes. Raises UserError for a target that
    is not empty, and DataError as the readers do, for a missing image whose size the layout needs, for images that the
    layout cannot distinguish, and for a person without the chosen box; RunError as `whole_folder`.
    """
    _check_target(target, source)
    writer, labelled = LAYOUTS[as_layout], _read(source, layout, annotations, image_folder)
    notes = [*labelled.notes, *labelled.faults.raise_or_note(faulty, root=labelled.root, target=target)]
    check_splits([(image.split, image.name) for image in labelled.images], root=labelled.root)
    classes = labelled.classes or _collect_classes(labelled.images, with_ignored=as_layout != "yolo_txt")
    job = Job(box, classes, frozenset(image.split for image in labelled.images))
    by_split: defaultdict[str, list[Placed]] = defaultdict(list)
    for source_image in sorted(labelled.images, key=lambda image: image.name):
        image = _add_size(source_image) if writer.needs_size else source_image
        supported = None if as_layout == layout else writer.supported_fields
        boxes = tuple(_drop_unsupported(labelled_box, source_image, supported, job) for labelled_box in image.boxes)
        for key in source_image.extra.keys() - {"id"} if not writer.has_image_fields and as_layout != layout else ():
            job.lost[f"{key} of the image"].append(source_image.name)
        by_split[source_image.split].append((replace(image, boxes=boxes), writer.image_path(image, job)))
    everything = [pair for placed in by_split.values() for pair in placed]
    _check_distinct(everything, writer)
    missing = [image.name for image, _ in everything if image.path is None or not image.path.is_file()]
    if images == "link" and missing:
        advice = "; image_folder=FOLDER states their folder" if layout == "coco" else ""
        notes.append(f"{len(missing)} images are missing and not linked, first: {missing[0]}{advice}")
    unsuffixed = [path for _, path in everything if PurePosixPath(path).suffix.lower() not in IMAGE_SUFFIXES]
    if unsuffixed and as_layout != "coco":
        notes.append(
            f"{len(unsuffixed)} images have no suffix of an image, so readers skip them, first: {unsuffixed[0]}"
        )
    notes += _note_unrotated([image for image, _ in everything]) if not writer.states_size else ()
    report = {
        "layout": layout,
        "as": as_layout,
        "root": str(target.resolve()),
        "images": {split: len(placed) for split, placed in sorted(by_split.items())},
        "boxes": sum(len(image.boxes) for image in labelled.images),
        "dropped": {},
        "differences": notes,
    }
    with whole_folder(target) as folder:
        for image, image_path in everything if images == "link" else ():
            if image.path is not None and image.path.is_file():
                _claim_path(folder, image_path).symlink_to(image.path.resolve())
        for split, placed in sorted(by_split.items()):
            for path, content in writer.write(split, placed, job):
                _write(folder, path, content)
        report["dropped"] = {
            kind: {"count": len(where), "examples": where[:_MAX_EXAMPLES]} for kind, where in sorted(job.lost.items())
        }
        _write(folder, _REPORT_FILE, json_bytes({key: value for key, value in report.items() if key != "root"}))
    return report


def _read(source: Path, layout: str, annotations: tuple[str, ...] | None, image_folder: str | None) -> LabelledSet:
    if annotations is None and image_folder is None:
        return READERS[layout](source)
    if layout != "coco":
        raise UserError(f"data convert: annotations= and image_folder= are about files of coco, not of {layout}")
    return read_coco(source, annotations=annotations, images=image_folder)


def _check_target(target: Path, source: Path) -> None:
    """Raise UserError for a target that is not empty, or that is in the folder from which labels are read."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"data convert: {target} is there and not empty; give another folder by --to")
    root = expand_home(source).resolve()
    if root.is_dir() and target.resolve().is_relative_to(root):
        raise UserError(
            f"data convert: {target} is in {root}, whose files would then be read with what is written; give a folder "
            "outside by --to"
        )


def _drop_unsupported(
    box: LabelledBox, image: LabelledImage, supported: frozenset[str] | None, job: Job
) -> LabelledBox:
    """Remove the boxes and fields that the layout does not support, and record them in `job.lost`."""
    corners = ", ".join(f"{number:g}" for number in next(iter(box.boxes.values()), ()))
    where = f"{image.name}: {box.kind or box.label} at {corners}"
    if job.box not in box.boxes:
        raise DataError(f"{where}: has no {job.box} box; choose another by box=")
    if job.box == "head" and (box.extra.get("head_attr") or {}).get("ignore", 0) != 0:
        box = replace(box, is_ignored=True)
    if supported is None:
        return box
    single = "visible" not in supported
    lost_boxes = [kind for kind in box.boxes if (kind != job.box if single else kind not in supported)]
    lost = [
        *(f"{kind} box" for kind in lost_boxes),
        *(key for key in box.extra if key not in supported and key != "id"),
    ]
    lost += ["kind"] if box.kind is not None and "kind" not in supported else []
    for field in lost:
        job.lost[field].append(where)
    return replace(box, extra={key: value for key, value in box.extra.items() if key in supported})


def _add_size(image: LabelledImage) -> LabelledImage:
    """Return the image with its size, which is read from its file if the labels do not state it."""
    if image.size_px is not None:
        return image
    if image.path is None:
        raise DataError(f"{image.name}: the image is missing, and its size is needed; put the images below the labels")
    return replace(image, size_px=read_header(image.path).size_px(upright=True))


def _note_unrotated(images: Sequence[LabelledImage]) -> list[str]:
    """Return a note on images whose boxes ignore the EXIF orientation, which the new layout's readers apply."""
    unrotated = []
    for image in images:
        if image.path is not None and image.path.is_file() and image.size_px is not None:
            header = read_header(image.path)
            if header.size_px(upright=False) == image.size_px != header.size_px(upright=True):
                unrotated.append(image.name)
    if not unrotated:
        return []
    fault = "have boxes in stored pixels, but readers of this layout apply the EXIF orientation"
    return [f"{len(unrotated)} images {fault}; rotate these files before converting, first: {unrotated[0]}"]


def _collect_classes(images: Sequence[LabelledImage], *, with_ignored: bool) -> CategoryIds:
    boxes = (box for image in images for box in image.boxes)
    names = sorted({box.label for box in boxes if with_ignored or not box.is_ignored}) or ["person"]
    return CategoryIds(tuple(names), tuple(range(1, len(names) + 1)))


def _check_distinct(placed: Sequence[Placed], layout: Layout) -> None:
    """Raise DataError if two images, or their labels, would have one path: many layouts drop folders and suffixes."""
    owners: dict[tuple[str, str], str] = {}
    for image, path in placed:
        if path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path:
            raise DataError(f"{path}: is outside the folder; name images by paths below it")
        for kind, key in (("image", path), ("labels", layout.label(path))):
            if (other := owners.get((kind, key))) is not None:
                raise DataError(
                    f"'{other}' and '{image.name}' would have the same {kind} '{key}' in this layout; rename one, or "
                    "convert their folders apart"
                )
            owners[kind, key] = image.name


def _write(folder: Path, relative_path: str, content: bytes) -> None:
    with open(_claim_path(folder, relative_path), "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _claim_path(folder: Path, relative_path: str) -> Path:
    """Return the free path of a new file and make its folders. Raises DataError if the path is taken."""
    path = folder / relative_path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_taken = path.is_symlink() or path.exists()
    except (FileExistsError, NotADirectoryError):
        is_taken = True
    if is_taken:
        raise DataError(f"'{relative_path}': an image and another file belong there in this layout; rename the image")
    return path
