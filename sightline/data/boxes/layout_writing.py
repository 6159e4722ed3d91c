"""Every layout of images with boxes: the places of its images and labels, and the bytes of its files."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from sightline.data.boxes.annotations import BoxCorners, LabelledBox, LabelledImage, LabelledSet
from sightline.data.boxes.image_listing import CategoryIds
from sightline.data.boxes.layout_reading import KITTI_TYPES, UNSTATED, read_coco, read_kitti, read_lines, read_yolo
from sightline.data.boxes.odgt import BOX_KEYS, BoxType
from sightline.data.boxes.people_files import (
    CITYPERSONS,
    ECP,
    WIDERPERSON,
    PersonCategories,
    read_citypersons,
    read_ecp,
    read_widerperson,
)
from sightline.errors import DataError, assert_installed

__all__ = ["LAYOUTS", "Job", "Layout", "Placed", "json_bytes"]

_PEOPLE = {
    "person": None,
    "pedestrian": "pedestrian",
    "rider": "rider",
    "cyclist": "rider",
    "person_sitting": "sitting",
}
"""Classes whose boxes sets of people take, and the kind that they are."""
_KITTI_OF = {"rider": "Cyclist", "sitting": "Person_sitting"}
_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,4}\Z", re.IGNORECASE | re.ASCII)
"""Of an image's name: `v1.0` has none."""


@dataclass
class Job:
    """What writers need besides the images, and what they cannot write: field or kind of box → where."""

    box: BoxType
    classes: CategoryIds
    splits: frozenset[str]
    lost: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def chosen(self, box: LabelledBox) -> BoxCorners:
        """The box that layouts of one box get."""
        return box.boxes[self.box]


Files = Iterator[tuple[str, bytes]]
Placed = tuple[LabelledImage, str]


class Layout(NamedTuple):
    """How a layout is read and written.

    `write` yields the files of a split; `place` is where an image belongs, and `label` what distinguishes the labels of
    an image at such a place: their file, or its name among others. `says` are the boxes, and the names of other fields,
    that it can state; None for all. `says_of_images`: it has room for what is stated of an image, too; `states_size`:
    for its width and height.
    """

    read: Callable[[Path], LabelledSet]
    write: Callable[[str, Sequence[Placed], Job], Files]
    image_path: Callable[[LabelledImage, Job], str]
    label: Callable[[str], str]
    supported_fields: frozenset[str] | None
    needs_size: bool = False
    states_size: bool = False
    has_image_fields: bool = False


def _coco(split: str, placed: Sequence[Placed], job: Job) -> Files:
    """One JSON file a split, ids from 1, or those of COCO where the labels come from there."""
    numbers = [image.extra.get("id") for image, _ in placed]
    if not _are_ids(numbers):
        numbers = [*range(1, len(placed) + 1)]
    stated = [box.extra.get("id", 0) for image, _ in placed for box in image.boxes]
    are_stated = _are_ids(stated, least=1)
    ids = dict(zip(*job.classes, strict=True))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, place) in zip(numbers, placed, strict=True):
        assert image.size_px is not None
        height, width = image.size_px
        images.append({**image.extra, "id": number, "file_name": place, "width": width, "height": height})
        for box in image.boxes:
            chosen, flag = job.chosen(box), int(box.is_ignored)
            annotation = {"area": chosen[2] * chosen[3], "iscrowd": flag, "ignore": flag, **box.extra}
            annotation |= {"image_id": number, "category_id": ids[box.label], "bbox": chosen, "height": chosen[3]}
            annotation["id"] = box.extra["id"] if are_stated else len(annotations) + 1
            if not np.isnan(box.visible_share):
                annotation["vis_ratio"] = box.visible_share
            if box.kind is not None:
                annotation["kind"] = box.kind
            if len(box.boxes) > 1 or job.box != "full":
                annotation |= {BOX_KEYS[kind]: corner for kind, corner in box.boxes.items()}
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    name = f"instances_{_short(split)}.json" if split != "all" else "instances.json"
    yield name, json_bytes({"images": images, "annotations": annotations, "categories": categories})


def _are_ids(stated: Sequence[Any], *, least: int = 0) -> bool:
    """Whether these are whole numbers, each of them once, as ids are."""
    return all(type(each) is int and each >= least for each in stated) and len({*stated}) == len(stated)


def _odgt(split: str, placed: Sequence[Placed], job: Job) -> Files:
    lines = []
    for image, place in placed:
        people = []
        for box in image.boxes:
            if _kind_of_person(box, image, job) is None:
                continue
            tag = {} if "tag" in box.extra else {"tag": "mask" if box.is_ignored else "person"}
            people.append({**tag, **box.extra, **{BOX_KEYS[kind]: corner for kind, corner in box.boxes.items()}})
        lines.append(json.dumps({"ID": _stem(place), "gtboxes": people}))
    yield f"annotation_{_short(split)}.odgt", "".join(f"{line}\n" for line in lines).encode()


def _yolo(split: str, placed: Sequence[Placed], job: Job) -> Files:
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
        yield _yolo_label(place), "".join(f"{row}\n" for row in rows).encode()
    if split == max(job.splits):
        yield "data.yaml", _yolo_yaml(job).encode()


def _yolo_label(place: str) -> str:
    """The last folder `images` becomes `labels`, as all readers of the layout have it."""
    *folders, name = place.split("/")
    last = len(folders) - 1 - folders[::-1].index("images")
    return "/".join([*folders[:last], "labels", *folders[last + 1 :], f"{_stem(name)}.txt"])


def _yolo_yaml(job: Job) -> str:
    """The file of names, with the two parts that trainers of YOLO ask for: training, and what is looked at meanwhile.

    They find the images from where the file lies, so it states no `path`.
    """
    folders: dict[str, str | None] = {each: f"images/{_short(each)}".removesuffix("/all") for each in job.splits}
    train = folders.get("train", folders.get("all"))
    folders |= {"validation": folders.get("validation", None if "test" in folders else train), "train": train}
    parts = "".join(f"{_short(key)}: {folders[key] or ''}".rstrip() + "\n" for key in sorted(folders.keys() - {"all"}))
    names = "".join(f"  {number}: {_quote(name)}\n" for number, name in enumerate(job.classes.names))
    return f"{parts}names:\n{names}"


def _quote(text: str) -> str:
    """A text in quotes as YAML has it: JSON has escapes in pairs for what YAML has one for, such as smileys."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    is_odd = {each: ord(each) > 0xFFFF or each == "\x7f" for each in whole}
    pieces = (f"\\U{ord(each):08x}" if is_odd[each] else json.dumps(each)[1:-1] for each in whole)
    return f'"{"".join(pieces)}"'


def _kitti(split: str, placed: Sequence[Placed], job: Job) -> Files:
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
            stated = {**UNSTATED, **({} if box.is_ignored and box.label != "DontCare" else box.extra)}
            numbers = [stated["truncated"], stated["occluded"], stated["alpha"], left, top, left + width, top + height]
            numbers += [*stated["dimensions"], *stated["location"], stated["rotation_y"]]
            numbers += [stated["score"]] if "score" in stated else []
            words = [str(int(each)) if at == 1 else _decimals(each) for at, each in enumerate(numbers)]
            rows.append(" ".join([kind, *words]))
        yield _kitti_label(place), "".join(f"{row}\n" for row in rows).encode()


def _kitti_label(place: str) -> str:
    folder, _, name = place.rpartition("image_2/")
    return f"{folder}label_2/{_stem(name)}.txt"


def _widerperson(split: str, placed: Sequence[Placed], job: Job) -> Files:
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
    names = [_stem(place) for _, place in placed]
    for name in names:
        if name != name.strip() or "\n" in name or name.endswith(".jpg") or _is_undecodable(name):
            raise DataError(f"'{name}.jpg': the lists of names in this layout have no room for such a one; rename it")
    yield f"{_short(split)}.txt".replace("all", "train"), "".join(f"{name}\n" for name in names).encode()


def _citypersons(split: str, placed: Sequence[Placed], job: Job) -> Files:
    """Cells as CityPersons has them; a visible box that is not stated is of zeros."""
    assert_installed("scipy", needed_by="--as citypersons")
    from scipy.io import savemat

    cells = np.empty((1, len(placed)), dtype=object)
    for at, (image, place) in enumerate(placed):
        rows = []
        for box in image.boxes:
            if (code := _code(CITYPERSONS, box, image, job)) is not None:
                visible = box.boxes.get("visible", (0, 0, 0, 0))
                rows.append([code, *job.chosen(box), box.extra.get("instance", 0), *visible])
        bbs = np.array(rows, dtype=np.float64).reshape(-1, 10)
        city, name = place.split("/")[-2:]
        if _is_undecodable(city + name):
            raise DataError(f"'{city}/{name}': is not text, which names in this layout are; rename it")
        cells[0, at] = {"cityname": city, "im_name": name, "bbs": bbs}
    name, stream = f"anno_{_short(split)}".replace("all", "train"), io.BytesIO()
    savemat(stream, {f"{name}_aligned": cells}, do_compression=True)
    header = b"MATLAB 5.0 MAT-file"  # without the date, which would make other bytes each time
    yield f"annotations/{name}.mat", header.ljust(116) + stream.getvalue()[116:]


def _ecp(split: str, placed: Sequence[Placed], job: Job) -> Files:
    for image, place in placed:
        assert image.size_px is not None
        children = []
        for box in image.boxes:
            if (code := _code(ECP, box, image, job)) is None:
                continue
            left, top, width, height = job.chosen(box)
            corners = {"x0": left, "y0": top, "x1": left + width, "y1": top + height}
            children.append({"identity": code, "tags": [], "children": [], **corners, **box.extra})
        frame = {"identity": "frame", "imageheight": image.size_px[0], "imagewidth": image.size_px[1]}
        frame |= {key: value for key, value in image.extra.items() if key != "id"}
        yield _ecp_label(place), json_bytes({**frame, "children": children})


def _ecp_label(place: str) -> str:
    time, _, rest = place.partition("/img/")
    return f"{time}/labels/{_strip_ending(rest)}.json"


def _kind_of_person(box: LabelledBox, image: LabelledImage, job: Job) -> str | None:
    """The kind of a person, or of what is ignored; None, noted, for a box of another class."""
    if box.kind is not None:
        return box.kind
    if box.is_ignored:
        return "ignored_region"
    if box.label.lower() not in _PEOPLE:
        job.lost["boxes of classes that are not people"].append(f"{image.name}: {box.label}")
        return None
    return _PEOPLE[box.label.lower()] or "pedestrian"


def _code(kinds: PersonCategories, box: LabelledBox, image: LabelledImage, job: Job) -> int | str | None:
    """What a layout calls the kind of a box, or the nearest that it has, which is noted; None as `_kind_of_person`."""
    kind = _kind_of_person(box, image, job)
    if kind is None:
        return None
    meant = kind
    if box.is_ignored and kind not in kinds.ignored and not (kinds is ECP and box.extra.get("tags")):
        meant = next(each for each in kinds.codes if each in kinds.ignored)
    elif meant not in kinds.codes:
        meant = "crowd" if box.is_ignored else "pedestrian"
    if meant != kind:
        job.lost["kind"].append(f"{image.name}: {kind} becomes {meant}")
    return kinds.codes[meant]


def _stem(place: str) -> str:
    """The name of an image without the ending of its kind; what else follows a dot belongs to the name."""
    return _strip_ending(PurePosixPath(place).name)


def _strip_ending(path: str) -> str:
    return _ENDING.sub("", path)


def _is_undecodable(name: str) -> bool:
    """Whether bytes of a name are not text."""
    return any("\ud800" <= each <= "\udfff" for each in name)


def _short(split: str) -> str:
    return "val" if split == "validation" else split


def _of_yolo(image: LabelledImage, job: Job) -> str:
    """A folder of the split, if it is one, and the image's own path without such words before it."""
    folder = "" if image.split == "all" else f"{_short(image.split)}/"
    return f"images/{folder}{image.name.removeprefix('images/').removeprefix(folder)}"


def _of_kitti(image: LabelledImage, job: Job) -> str:
    folder = f"{_short(image.split)}/" if len(job.splits) > 1 else ""
    return f"{folder}image_2/{_stem(image.name)}.png"


def _of_city(image: LabelledImage, time: str, form: str) -> str:
    """Where EuroCity Persons or Cityscapes have an image; its folder stands for the city."""
    if re.match(form, image.name):
        return f"{_strip_ending(image.name)}.png"
    path, short = PurePosixPath(image.name), _short(image.split).replace("all", "train")
    return f"{time}/{short}/{path.parent.name or 'images'}/{_stem(image.name)}.png"


def _decimals(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    rounded = round(value, 6)
    return f"{rounded:.2f}" if rounded == round(rounded, 2) else repr(rounded)


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """A document as all files of a conversion have it; what is no text is escaped."""
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


_KITTI_FIELDS = frozenset({*UNSTATED, "score"})
LAYOUTS: Mapping[str, Layout] = {
    "coco": Layout(read_coco, _coco, lambda image, _: image.name, lambda place: place, None, True, True, True),
    "odgt": Layout(
        read_lines,
        _odgt,
        lambda image, _: f"Images/{PurePosixPath(image.name).name}",
        lambda place: f"{_stem(place)}",
        frozenset({"full", "visible", "head", "tag", "extra", "head_attr"}),
    ),
    "yolo_txt": Layout(read_yolo, _yolo, _of_yolo, _yolo_label, frozenset(), needs_size=True),
    "kitti": Layout(read_kitti, _kitti, _of_kitti, _kitti_label, _KITTI_FIELDS),
    "widerperson": Layout(
        read_widerperson,
        _widerperson,
        lambda image, _: f"Images/{_stem(image.name)}.jpg",
        lambda place: place,
        frozenset({"kind"}),
    ),
    "citypersons": Layout(
        read_citypersons,
        _citypersons,
        lambda image, _: _of_city(image, "leftImg8bit", r"leftImg8bit/\w+/\w+/"),
        lambda place: PurePosixPath(place).name,
        frozenset({"full", "visible", "kind", "instance"}),
    ),
    "ecp": Layout(
        read_ecp,
        _ecp,
        lambda image, _: _of_city(image, "day/img", r"\w+/img/\w+/\w+/"),
        _ecp_label,
        frozenset({"kind", "tags", "children", "orient", "Orient"}),
        needs_size=True,
        states_size=True,
        has_image_fields=True,
    ),
}
"""Every layout once: whatever is read can be written as any other."""
