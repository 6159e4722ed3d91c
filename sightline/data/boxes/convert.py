"""Labels of images with boxes from one layout to another, through the neutral form; what is dropped is counted."""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.data.boxes.image_listing import Classes, Faulty
from sightline.data.boxes.layout_reading import KITTI_TYPES, UNSTATED, read_coco, read_kitti, read_lines, read_yolo
from sightline.data.boxes.neutral import Corner, LabelledBox, LabelledImage, LabelledSet
from sightline.data.boxes.odgt import BOX_KEYS, BoxType
from sightline.data.boxes.people_files import (
    CITYPERSONS,
    ECP,
    WIDERPERSON,
    Kinds,
    read_citypersons,
    read_ecp,
    read_widerperson,
)
from sightline.data.files.image_files import read_header
from sightline.data.files.whole_files import whole_file
from sightline.errors import DataError, UserError, assert_installed

__all__ = ["LAYOUTS", "convert"]

_PEOPLE = {
    "person": None,
    "pedestrian": "pedestrian",
    "rider": "rider",
    "cyclist": "rider",
    "person_sitting": "sitting",
}
"""Classes whose boxes sets of people take, and the kind that they are."""
_KITTI_OF = {"rider": "Cyclist", "sitting": "Person_sitting"}
_REPORT = "conversion.json"
_MOST_EXAMPLES = 3


@dataclass
class _Job:
    """What writers need besides the images, and what they cannot write: field or kind of box → where."""

    box: BoxType
    classes: Classes
    splits: frozenset[str]
    lost: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def chosen(self, box: LabelledBox) -> Corner:
        return box.boxes[self.box]


Files = Iterator[tuple[str, bytes]]
Placed = tuple[LabelledImage, str]


class Layout(NamedTuple):
    """How a layout is read and written.

    `write` yields the files of a split; `place` is where an image belongs. `says` are the boxes, and the names of other
    fields, that it can state; None for all. `says_of_images`: it has room for what is stated of an image, too.
    """

    read: Callable[[Path], LabelledSet]
    write: Callable[[str, Sequence[Placed], _Job], Files]
    place: Callable[[LabelledImage, _Job], str]
    says: frozenset[str] | None
    needs_size: bool = False
    says_of_images: bool = False


def convert(
    source: Path,
    layout: str,
    target: Path,
    as_layout: str,
    *,
    box: BoxType = "full",
    faulty: Faulty = "refuse",
    images: Literal["link", "leave"] = "link",
) -> dict[str, Any]:
    """Write the labels of a folder in another layout; returns what was written and dropped, as conversion.json has it.

    `box` is the one that layouts of one box get. `images` are linked to where the layout has them, or left. The same
    labels give the same bytes. Raises UserError for a target that is not empty, and DataError as readers do, for an
    image whose size the layout needs and that is missing, and for a person without the chosen box.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"data convert: {target} is there and not empty; give another folder by --to")
    writer, found = LAYOUTS[as_layout], LAYOUTS[layout].read(source)
    notes = [*found.notes, *found.faults.settle(faulty, root=found.root)]
    classes = found.classes or _classes_of(found.images, with_ignored=as_layout != "yolo_txt")
    job = _Job(box, classes, frozenset(each.split for each in found.images))
    by_split: defaultdict[str, list[Placed]] = defaultdict(list)
    for each in sorted(found.images, key=lambda image: image.name):
        image = _sized(each) if writer.needs_size else each
        says = None if as_layout == layout else writer.says
        kept = tuple(_reduced(one, each, says, job) for one in image.boxes)
        for key in each.own.keys() - {"id"} if not writer.says_of_images and as_layout != layout else ():
            job.lost[f"{key} of the image"].append(each.name)
        by_split[each.split].append((replace(image, boxes=kept), writer.place(image, job)))
    _assert_apart([place for placed in by_split.values() for _, place in placed])
    for split, placed in sorted(by_split.items()):
        for path, content in writer.write(split, placed, job):
            _write(target / path, content)
    for image, place in (each for placed in by_split.values() for each in placed):
        if images == "link" and image.path is not None and image.path.is_file():
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            (target / place).symlink_to(image.path.resolve())
    report = {
        "layout": layout,
        "as": as_layout,
        "root": str(target.resolve()),
        "images": {split: len(placed) for split, placed in sorted(by_split.items())},
        "boxes": sum(len(each.boxes) for each in found.images),
        "dropped": {
            what: {"count": len(where), "examples": where[:_MOST_EXAMPLES]} for what, where in sorted(job.lost.items())
        },
        "differences": notes,
    }
    _write(target / _REPORT, _json({key: value for key, value in report.items() if key != "root"}))
    return report


def _reduced(box: LabelledBox, image: LabelledImage, says: frozenset[str] | None, job: _Job) -> LabelledBox:
    """The box without what the layout cannot state, which is noted."""
    place = ", ".join(f"{each:g}" for each in next(iter(box.boxes.values()), ()))
    where = f"{image.name}: {box.kind or box.label} at {place}"
    if job.box not in box.boxes:
        raise DataError(f"{where}: has no {job.box} box; choose another by box=")
    if job.box == "head" and (box.own.get("head_attr") or {}).get("ignore", 0) != 0:
        box = replace(box, is_ignored=True)
    if says is None:
        return box
    single = "visible" not in says
    lost_boxes = [kind for kind in box.boxes if (kind != job.box if single else kind not in says)]
    lost = [*(f"{kind} box" for kind in lost_boxes), *(key for key in box.own if key not in says and key != "id")]
    lost += ["kind"] if box.kind is not None and "kind" not in says else []
    for what in lost:
        job.lost[what].append(where)
    return replace(box, own={key: value for key, value in box.own.items() if key in says})


def _coco(split: str, placed: Sequence[Placed], job: _Job) -> Files:
    """One JSON file a split, ids from 1, or those of COCO where the labels come from there."""
    numbers = [image.own.get("id", number) for number, (image, _) in enumerate(placed, start=1)]
    stated = [box.own.get("id", 0) for image, _ in placed for box in image.boxes]
    are_stated = all(type(each) is int and each > 0 for each in stated) and len({*stated}) == len(stated)
    ids = dict(zip(*job.classes, strict=True))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, place) in zip(numbers, placed, strict=True):
        assert image.size_px is not None
        height, width = image.size_px
        images.append({**image.own, "id": number, "file_name": place, "width": width, "height": height})
        for box in image.boxes:
            chosen, flag = job.chosen(box), int(box.is_ignored)
            annotation = {"area": chosen[2] * chosen[3], "iscrowd": flag, "ignore": flag, **box.own}
            annotation |= {"image_id": number, "category_id": ids[box.label], "bbox": chosen, "height": chosen[3]}
            annotation["id"] = box.own["id"] if are_stated else len(annotations) + 1
            if not np.isnan(box.visible_share):
                annotation["vis_ratio"] = box.visible_share
            if box.kind is not None:
                annotation["kind"] = box.kind
            if len(box.boxes) > 1 or job.box != "full":
                annotation |= {BOX_KEYS[kind]: corner for kind, corner in box.boxes.items()}
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    name = f"instances_{_short(split)}.json" if split != "all" else "instances.json"
    yield name, _json({"images": images, "annotations": annotations, "categories": categories})


def _odgt(split: str, placed: Sequence[Placed], job: _Job) -> Files:
    lines = []
    for image, place in placed:
        people = []
        for box in image.boxes:
            if _kind_of_person(box, image, job) is None:
                continue
            tag = {} if "tag" in box.own else {"tag": "mask" if box.is_ignored else "person"}
            people.append({**tag, **box.own, **{BOX_KEYS[kind]: corner for kind, corner in box.boxes.items()}})
        lines.append(json.dumps({"ID": PurePosixPath(place).stem, "gtboxes": people}))
    yield f"annotation_{_short(split)}.odgt", "".join(f"{line}\n" for line in lines).encode()


def _yolo(split: str, placed: Sequence[Placed], job: _Job) -> Files:
    """Rows of shares to ten digits; ignored boxes have no row, since they would be objects there."""
    for image, place in placed:
        assert image.size_px is not None
        limit, rows = np.array(image.size_px[::-1] * 2, dtype=np.float64), []
        for box in image.boxes:
            left, top, width, height = job.chosen(box)
            corners = np.array([left, top, left + width, top + height], dtype=np.float64)
            inside = corners.clip(0, limit)
            if box.is_ignored or not (inside[2:] > inside[:2]).all():
                job.lost["ignored boxes" if box.is_ignored else "boxes outside the image"].append(image.name)
                continue
            if (abs(inside - corners) > 1e-6 * limit).any():
                job.lost["parts of boxes outside the image"].append(image.name)
            shares = inside / limit
            values = [*(shares[:2] + shares[2:]) / 2, *shares[2:] - shares[:2]]
            rows.append(" ".join([str(job.classes.names.index(box.label)), *(f"{each:.10g}" for each in values)]))
        yield re.sub(r"^images/(.*)\.[^.]*$", r"labels/\1.txt", place), "".join(f"{row}\n" for row in rows).encode()
    names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(job.classes.names))
    parts = "".join(f"{_short(each)}: images/{_short(each)}\n" for each in sorted(job.splits - {"all"}))
    yield "data.yaml", f"path: .\n{parts}names:\n{names}".encode()


def _kitti(split: str, placed: Sequence[Placed], job: _Job) -> Files:
    for image, place in placed:
        rows = []
        for box in image.boxes:
            kind = "DontCare" if box.is_ignored else box.label
            if kind not in KITTI_TYPES:
                person = _PEOPLE.get(kind.lower(), "")
                kind = "Misc" if person == "" else _KITTI_OF.get(box.kind or person or "", "Pedestrian")
            if kind.lower() != box.label.lower() and (kind, box.label) != ("Pedestrian", "person"):
                job.lost["class"].append(f"{image.name}: {box.kind or box.label} becomes {kind}")
            left, top, width, height = job.chosen(box)
            stated = {**UNSTATED, **({} if box.is_ignored and box.label != "DontCare" else box.own)}
            numbers = [stated["truncated"], stated["occluded"], stated["alpha"], left, top, left + width, top + height]
            numbers += [*stated["dimensions"], *stated["location"], stated["rotation_y"]]
            numbers += [stated["score"]] if "score" in stated else []
            words = [str(int(each)) if at == 1 else _decimals(each) for at, each in enumerate(numbers)]
            rows.append(" ".join([kind, *words]))
        yield (
            place.replace("image_2/", "label_2/")[: -len(PurePosixPath(place).suffix)] + ".txt",
            ("".join(f"{row}\n" for row in rows).encode()),
        )


def _widerperson(split: str, placed: Sequence[Placed], job: _Job) -> Files:
    for image, place in placed:
        rows = []
        for box in image.boxes:
            if (code := _code(WIDERPERSON, box, image, job)) is None:
                continue
            left, top, width, height = job.chosen(box)
            corners = [round(each) for each in (left, top, left + width, top + height)]
            if any(each != whole for each, whole in zip((left, top, left + width, top + height), corners, strict=True)):
                job.lost["fractions of a pixel"].append(image.name)
            rows.append(" ".join(map(str, [code, *corners])))
        yield f"Annotations/{PurePosixPath(place).name}.txt", "".join(f"{row}\n" for row in [len(rows), *rows]).encode()
    names = "".join(f"{PurePosixPath(place).stem}\n" for _, place in placed)
    yield f"{_short(split)}.txt".replace("all", "train"), names.encode(errors="surrogateescape")


def _citypersons(split: str, placed: Sequence[Placed], job: _Job) -> Files:
    """Cells as CityPersons has them; a visible box that is not stated is of zeros."""
    assert_installed("scipy", needed_by="--as citypersons")
    from scipy.io import savemat

    cells = np.empty((1, len(placed)), dtype=object)
    for at, (image, place) in enumerate(placed):
        rows = []
        for box in image.boxes:
            if (code := _code(CITYPERSONS, box, image, job)) is not None:
                visible = box.boxes.get("visible", (0, 0, 0, 0))
                rows.append([code, *job.chosen(box), box.own.get("instance", 0), *visible])
        bbs = np.array(rows, dtype=np.float64).reshape(-1, 10)
        cells[0, at] = {"cityname": PurePosixPath(place).parent.name, "im_name": PurePosixPath(place).name, "bbs": bbs}
    name, stream = f"anno_{_short(split)}".replace("all", "train"), io.BytesIO()
    savemat(stream, {f"{name}_aligned": cells}, do_compression=True)
    header = b"MATLAB 5.0 MAT-file"  # without the date, which would make other bytes each time
    yield f"annotations/{name}.mat", header.ljust(116) + stream.getvalue()[116:]


def _ecp(split: str, placed: Sequence[Placed], job: _Job) -> Files:
    for image, place in placed:
        assert image.size_px is not None
        children = []
        for box in image.boxes:
            if (code := _code(ECP, box, image, job)) is None:
                continue
            left, top, width, height = job.chosen(box)
            corners = {"x0": left, "y0": top, "x1": left + width, "y1": top + height}
            children.append({"identity": code, "tags": [], "children": [], **corners, **box.own})
        frame = {"identity": "frame", "imageheight": image.size_px[0], "imagewidth": image.size_px[1]}
        frame |= {key: value for key, value in image.own.items() if key != "id"}
        yield re.sub(r"/img/(.*)\.[^.]*$", r"/labels/\1.json", place), _json({**frame, "children": children})


def _kind_of_person(box: LabelledBox, image: LabelledImage, job: _Job) -> str | None:
    """The kind of a person, or of what is ignored; None, noted, for a box of another class."""
    if box.kind is not None:
        return box.kind
    if box.is_ignored:
        return "ignored_region"
    if box.label.lower() not in _PEOPLE:
        job.lost["boxes of classes that are not people"].append(f"{image.name}: {box.label}")
        return None
    return _PEOPLE[box.label.lower()] or "pedestrian"


def _code(kinds: Kinds, box: LabelledBox, image: LabelledImage, job: _Job) -> int | str | None:
    """What a layout calls the kind of a box, or the nearest that it has, which is noted; None as `_kind_of_person`."""
    kind = _kind_of_person(box, image, job)
    if kind is None:
        return None
    meant = kind
    if box.is_ignored and kind not in kinds.ignored and not (kinds is ECP and box.own.get("tags")):
        meant = next(each for each in kinds.codes if each in kinds.ignored)
    elif meant not in kinds.codes:
        meant = "crowd" if box.is_ignored else "pedestrian"
    if meant != kind:
        job.lost["kind"].append(f"{image.name}: {kind} becomes {meant}")
    return kinds.codes[meant]


def _sized(image: LabelledImage) -> LabelledImage:
    """The image with its size, read from its file where the labels do not state it."""
    if image.size_px is not None:
        return image
    if image.path is None:
        raise DataError(f"{image.name}: is not there, and its size is needed; put the images below the labels")
    return replace(image, size_px=read_header(image.path).size_px(upright=False))


def _classes_of(images: Sequence[LabelledImage], *, with_ignored: bool) -> Classes:
    boxes = (box for image in images for box in image.boxes)
    names = sorted({box.label for box in boxes if with_ignored or not box.is_ignored}) or ["person"]
    return Classes(tuple(names), tuple(range(1, len(names) + 1)))


def _assert_apart(places: Sequence[str]) -> None:
    """Raises DataError where two images would be one: a layout names them by the last part of their path."""
    twice = [place for place, count in Counter(places).items() if count > 1]
    if twice:
        raise DataError(f"{twice[0]}: is the place of two images in this layout; convert their folders apart")
    outside = [place for place in places if place.startswith("/") or ".." in PurePosixPath(place).parts]
    if outside:
        raise DataError(f"{outside[0]}: lies outside of the folder; name images by paths below it")


def _short(split: str) -> str:
    return "val" if split == "validation" else split


def _of_yolo(image: LabelledImage, job: _Job) -> str:
    """A folder of the split, if it is one, and the image's own path without such words before it."""
    folder = "" if image.split == "all" else f"{_short(image.split)}/"
    return f"images/{folder}{image.name.removeprefix('images/').removeprefix(folder)}"


def _of_kitti(image: LabelledImage, job: _Job) -> str:
    folder = f"{_short(image.split)}/" if len(job.splits) > 1 else ""
    return f"{folder}image_2/{PurePosixPath(image.name).stem}.png"


def _of_city(image: LabelledImage, time: str, form: str) -> str:
    """Where EuroCity Persons or Cityscapes have an image; its folder stands for the city."""
    if re.match(form, image.name):
        return image.name
    path, short = PurePosixPath(image.name), _short(image.split).replace("all", "train")
    return f"{time}/{short}/{path.parent.name or 'images'}/{path.stem}.png"


def _decimals(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    rounded = round(value, 6)
    return f"{rounded:.2f}" if rounded == round(rounded, 2) else repr(rounded)


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(content)


_KITTI_FIELDS = frozenset({*UNSTATED, "score"})
LAYOUTS: Mapping[str, Layout] = {
    "coco": Layout(read_coco, _coco, lambda image, _: image.name, None, True, True),
    "odgt": Layout(
        read_lines,
        _odgt,
        lambda image, _: f"Images/{PurePosixPath(image.name).name}",
        frozenset({"full", "visible", "head", "tag", "extra", "head_attr"}),
    ),
    "yolo_txt": Layout(read_yolo, _yolo, _of_yolo, frozenset(), needs_size=True),
    "kitti": Layout(read_kitti, _kitti, _of_kitti, _KITTI_FIELDS),
    "widerperson": Layout(
        read_widerperson,
        _widerperson,
        lambda image, _: f"Images/{PurePosixPath(image.name).stem}.jpg",
        frozenset({"kind"}),
    ),
    "citypersons": Layout(
        read_citypersons,
        _citypersons,
        lambda image, _: _of_city(image, "leftImg8bit", r"leftImg8bit/\w+/\w+/"),
        frozenset({"full", "visible", "kind", "instance"}),
    ),
    "ecp": Layout(
        read_ecp,
        _ecp,
        lambda image, _: _of_city(image, "day/img", r"\w+/img/\w+/\w+/"),
        frozenset({"kind", "tags", "children", "orient", "Orient"}),
        needs_size=True,
        says_of_images=True,
    ),
}
"""Every layout once: whatever is read can be written as any other."""
