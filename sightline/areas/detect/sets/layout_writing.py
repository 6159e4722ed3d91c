"""Writers of box label layouts: paths of images and labels, and the bytes of the files."""

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

from sightline.areas.detect.sets.annotations import (
    BOX_KEYS,
    BoxCorners,
    BoxType,
    LabelledBox,
    LabelledImage,
    LabelledSet,
)
from sightline.areas.detect.sets.image_listing import CategoryIds
from sightline.areas.detect.sets.layout_reading import (
    KITTI_TYPES,
    UNSTATED,
    read_coco,
    read_kitti,
    read_lines,
    read_yolo,
)
from sightline.areas.detect.sets.people_files import (
    CITYPERSONS,
    ECP,
    WIDERPERSON,
    PersonCategories,
    read_citypersons,
    read_ecp,
    read_widerperson,
)
from sightline.contract.errors import DataError, assert_installed

_KIND_BY_CLASS = {
    "person": None,
    "pedestrian": "pedestrian",
    "rider": "rider",
    "cyclist": "rider",
    "person_sitting": "sitting",
}
"""Class name in lower case → kind of person in the data sets of people."""
_KITTI_TYPE_BY_KIND = {"rider": "Cyclist", "sitting": "Person_sitting"}
_SUFFIX_PATTERN = re.compile(r"\.[a-z][a-z0-9]{1,4}\Z", re.IGNORECASE | re.ASCII)
"""Suffix of an image's name; `v1.0` has none."""


@dataclass
class Job:
    """Options of a conversion for the writers, and the record of dropped values: field or kind of box → where."""

    box: BoxType
    classes: CategoryIds
    splits: frozenset[str]
    lost: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def select_box(self, box: LabelledBox) -> BoxCorners:
        """Return the box to write in layouts that have one box per object."""
        return box.boxes[self.box]


Files = Iterator[tuple[str, bytes]]
Placed = tuple[LabelledImage, str]


class Layout(NamedTuple):
    """Layout of box labels: its reader, its writer and the fields that it supports.

    `write` yields the files of a split. `image_path` is the path that the layout demands for an image, and `label` the
    key of that image's labels (their file, or a name in a common file). `supported_fields` are the kinds of boxes and
    the names of other fields that the layout can store; None for all. `needs_size`: the writer needs the image's
    size. `states_size`: the layout stores it. `has_image_fields`: the layout stores further fields of an image.
    """

    read: Callable[[Path], LabelledSet]
    write: Callable[[str, Sequence[Placed], Job], Files]
    image_path: Callable[[LabelledImage, Job], str]
    label: Callable[[str], str]
    supported_fields: frozenset[str] | None
    needs_size: bool = False
    states_size: bool = False
    has_image_fields: bool = False


def _write_coco(split: str, placed: Sequence[Placed], job: Job) -> Files:
    """Yield one JSON file per split; ids count from 1, unless the labels have COCO's ids; no category has the id 0."""
    numbers = [image.extra.get("id") for image, _ in placed]
    if not _are_ids(numbers):
        numbers = [*range(1, len(placed) + 1)]
    box_ids = [box.extra.get("id", 0) for image, _ in placed for box in image.boxes]
    has_box_ids = _are_ids(box_ids, minimum=1)
    first = int(min(job.classes.ids) == 0)  # several readers refuse COCO's files with a category 0
    ids = {name: category + first for name, category in zip(*job.classes, strict=True)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, path) in zip(numbers, placed, strict=True):
        assert image.size_px is not None
        height, width = image.size_px
        images.append({**image.extra, "id": number, "file_name": path, "width": width, "height": height})
        for box in image.boxes:
            corners, flag = job.select_box(box), int(box.is_ignored)
            annotation = {"area": corners[2] * corners[3], "iscrowd": flag, "ignore": flag, **box.extra}
            annotation |= {"image_id": number, "category_id": ids[box.label], "bbox": corners, "height": corners[3]}
            annotation["id"] = box.extra["id"] if has_box_ids else len(annotations) + 1
            if not np.isnan(box.visible_share):
                annotation["vis_ratio"] = box.visible_share
            if box.kind is not None:
                annotation["kind"] = box.kind
            if len(box.boxes) > 1 or job.box != "full":
                annotation |= {BOX_KEYS[kind]: xywh for kind, xywh in box.boxes.items()}
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    name = f"instances_{_short_split(split)}.json" if split != "all" else "instances.json"
    yield name, json_bytes({"images": images, "annotations": annotations, "categories": categories})


def _are_ids(numbers: Sequence[Any], *, minimum: int = 0) -> bool:
    """Return True if these are unique integers of at least `minimum`."""
    return all(type(number) is int and number >= minimum for number in numbers) and len({*numbers}) == len(numbers)


def _write_odgt(split: str, placed: Sequence[Placed], job: Job) -> Files:
    lines = []
    for image, path in placed:
        people = []
        for box in image.boxes:
            if _get_person_kind(box, image, job) is None:
                continue
            tag = {} if "tag" in box.extra else {"tag": "mask" if box.is_ignored else "person"}
            people.append({**tag, **box.extra, **{BOX_KEYS[kind]: xywh for kind, xywh in box.boxes.items()}})
        lines.append(json.dumps({"ID": _stem(path), "gtboxes": people}))
    yield f"annotation_{_short_split(split)}.odgt", "".join(f"{line}\n" for line in lines).encode()


def _write_yolo(split: str, placed: Sequence[Placed], job: Job) -> Files:
    """Yield rows of relative coordinates to ten digits; ignored boxes are dropped, since YOLO would count them."""
    for image, path in placed:
        assert image.size_px is not None
        limit, rows = np.array(image.size_px[::-1] * 2, dtype=np.float64), []
        for box in image.boxes:
            left, top, width, height = job.select_box(box)
            corners = np.array([left, top, left + width, top + height], dtype=np.float64)
            inside = corners.clip(0, limit)
            if box.is_ignored or not (inside[2:] > inside[:2]).all():
                job.lost["ignored boxes" if box.is_ignored else "boxes outside the image"].append(image.name)
                continue
            if (abs(inside - corners) > 1e-6 * limit).any():
                job.lost["parts of boxes outside the image"].append(image.name)
            shares = inside / limit
            values = [*(shares[:2] + shares[2:]) / 2, *shares[2:] - shares[:2]]
            rows.append(" ".join([str(job.classes.names.index(box.label)), *(f"{value:.10g}" for value in values)]))
        yield _yolo_label(path), "".join(f"{row}\n" for row in rows).encode()
    if split == max(job.splits):
        yield "data.yaml", _yolo_yaml(job).encode()


def _yolo_label(path: str) -> str:
    """Return the path of the text file of an image: the last folder `images` becomes `labels`."""
    *folders, name = path.split("/")
    last = len(folders) - 1 - folders[::-1].index("images")
    return "/".join([*folders[:last], "labels", *folders[last + 1 :], f"{_stem(name)}.txt"])


def _yolo_yaml(job: Job) -> str:
    """Format data.yaml: class names, and the splits for training and validation that YOLO trainers require.

    Trainers resolve images relative to this file, so it states no `path`.
    """
    folders: dict[str, str | None] = {
        split: f"images/{_short_split(split)}".removesuffix("/all") for split in job.splits
    }
    train = folders.get("train", folders.get("all"))
    folders |= {"validation": folders.get("validation", None if "test" in folders else train), "train": train}
    parts = "".join(
        f"{_short_split(key)}: {folders[key] or ''}".rstrip() + "\n" for key in sorted(folders.keys() - {"all"})
    )
    names = "".join(f"  {number}: {_quote(name)}\n" for number, name in enumerate(job.classes.names))
    return f"{parts}names:\n{names}"


def _quote(text: str) -> str:
    """Quote a text for YAML. JSON's escapes fit except above U+FFFF (emoji), where JSON writes surrogate pairs."""
    characters = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    needs_escape = {char: ord(char) > 0xFFFF or char == "\x7f" for char in characters}
    pieces = (f"\\U{ord(char):08x}" if needs_escape[char] else json.dumps(char)[1:-1] for char in characters)
    return f'"{"".join(pieces)}"'


def _write_kitti(split: str, placed: Sequence[Placed], job: Job) -> Files:
    for image, path in placed:
        rows = []
        for box in image.boxes:
            kind = "DontCare" if box.is_ignored else box.label
            if kind not in KITTI_TYPES:
                person = _KIND_BY_CLASS.get(kind.lower(), "")
                kind = "Misc" if person == "" else _KITTI_TYPE_BY_KIND.get(box.kind or person or "", "Pedestrian")
            if kind.lower() != box.label.lower() and (kind, box.label) != ("Pedestrian", "person"):
                job.lost["class"].append(f"{image.name}: {box.kind or box.label} becomes {kind}")
            left, top, width, height = job.select_box(box)
            stated = {**UNSTATED, **({} if box.is_ignored and box.label != "DontCare" else box.extra)}
            numbers = [stated["truncated"], stated["occluded"], stated["alpha"], left, top, left + width, top + height]
            numbers += [*stated["dimensions"], *stated["location"], stated["rotation_y"]]
            numbers += [stated["score"]] if "score" in stated else []
            texts = [str(int(value)) if i == 1 else _format_decimal(value) for i, value in enumerate(numbers)]
            rows.append(" ".join([kind, *texts]))
        yield _kitti_label(path), "".join(f"{row}\n" for row in rows).encode()


def _kitti_label(path: str) -> str:
    folder, _, name = path.rpartition("image_2/")
    return f"{folder}label_2/{_stem(name)}.txt"


def _write_widerperson(split: str, placed: Sequence[Placed], job: Job) -> Files:
    for image, path in placed:
        rows = []
        for box in image.boxes:
            if (code := _find_code(WIDERPERSON, box, image, job)) is None:
                continue
            left, top, width, height = job.select_box(box)
            corners = [round(number) for number in (left, top, left + width, top + height)]
            for side in (2, 3) if width > 0 and height > 0 else ():
                corners[side] = max(corners[side], corners[side - 2] + 1)  # readers refuse a box without an extent
            if any(a != b for a, b in zip((left, top, left + width, top + height), corners, strict=True)):
                job.lost["fractions of a pixel"].append(image.name)
            rows.append(" ".join(map(str, [code, *corners])))
        yield f"Annotations/{PurePosixPath(path).name}.txt", "".join(f"{row}\n" for row in [len(rows), *rows]).encode()
    names = [_stem(path) for _, path in placed]
    for name in names:
        if name != name.strip() or "\n" in name or name.endswith(".jpg") or _is_undecodable(name):
            raise DataError(f"'{name}.jpg': the lists of names in this layout have no room for such a one; rename it")
    yield f"{_short_split(split)}.txt".replace("all", "train"), "".join(f"{name}\n" for name in names).encode()


def _write_citypersons(split: str, placed: Sequence[Placed], job: Job) -> Files:
    """Yield a MAT file of CityPersons cells; a missing visible box is written as zeros."""
    assert_installed("scipy", needed_by="--as citypersons")
    from scipy.io import savemat

    cells = np.empty((1, len(placed)), dtype=object)
    for index, (image, path) in enumerate(placed):
        rows = []
        for box in image.boxes:
            if (code := _find_code(CITYPERSONS, box, image, job)) is not None:
                visible = box.boxes.get("visible", (0, 0, 0, 0))
                rows.append([code, *job.select_box(box), box.extra.get("instance", 0), *visible])
        bbs = np.array(rows, dtype=np.float64).reshape(-1, 10)
        city, name = path.split("/")[-2:]
        if _is_undecodable(city + name):
            raise DataError(f"'{city}/{name}': is not text, which names in this layout are; rename it")
        cells[0, index] = {"cityname": city, "im_name": name, "bbs": bbs}
    name, stream = f"anno_{_short_split(split)}".replace("all", "train"), io.BytesIO()
    savemat(stream, {f"{name}_aligned": cells}, do_compression=True)
    header = b"MATLAB 5.0 MAT-file"  # without the date, which would make other bytes each time
    yield f"annotations/{name}.mat", header.ljust(116) + stream.getvalue()[116:]


def _write_ecp(split: str, placed: Sequence[Placed], job: Job) -> Files:
    for image, path in placed:
        assert image.size_px is not None
        children = []
        for box in image.boxes:
            if (code := _find_code(ECP, box, image, job)) is None:
                continue
            left, top, width, height = job.select_box(box)
            corners = {"x0": left, "y0": top, "x1": left + width, "y1": top + height}
            children.append({"identity": code, "tags": [], "children": [], **corners, **box.extra})
        frame = {"identity": "frame", "imageheight": image.size_px[0], "imagewidth": image.size_px[1]}
        frame |= {key: value for key, value in image.extra.items() if key != "id"}
        yield _ecp_label(path), json_bytes({**frame, "children": children})


def _ecp_label(path: str) -> str:
    time, _, relative = path.partition("/img/")
    return f"{time}/labels/{_strip_suffix(relative)}.json"


def _get_person_kind(box: LabelledBox, image: LabelledImage, job: Job) -> str | None:
    """Return the kind of a person or of an ignored region; record a box of another class and return None."""
    if box.kind is not None:
        return box.kind
    if box.is_ignored:
        return "ignored_region"
    if box.label.lower() not in _KIND_BY_CLASS:
        job.lost["boxes of classes that are not people"].append(f"{image.name}: {box.label}")
        return None
    return _KIND_BY_CLASS[box.label.lower()] or "pedestrian"


def _find_code(kinds: PersonCategories, box: LabelledBox, image: LabelledImage, job: Job) -> int | str | None:
    """Return a layout's code of a box's kind, or of the nearest kind, which is recorded; None for another class."""
    kind = _get_person_kind(box, image, job)
    if kind is None:
        return None
    written_kind = kind
    if box.is_ignored and kind not in kinds.ignored and not (kinds is ECP and box.extra.get("tags")):
        written_kind = next(name for name in kinds.codes if name in kinds.ignored)
    elif written_kind not in kinds.codes:
        written_kind = "crowd" if box.is_ignored else "pedestrian"
    if written_kind != kind:
        job.lost["kind"].append(f"{image.name}: {kind} becomes {written_kind}")
    return kinds.codes[written_kind]


def _stem(path: str) -> str:
    """Return the file name without an image suffix; other text after a dot belongs to the name."""
    return _strip_suffix(PurePosixPath(path).name)


def _strip_suffix(path: str) -> str:
    return _SUFFIX_PATTERN.sub("", path)


def _is_undecodable(name: str) -> bool:
    """Return True if a name contains bytes that are not UTF-8 text."""
    return any("\ud800" <= char <= "\udfff" for char in name)


def _short_split(split: str) -> str:
    return "val" if split == "validation" else split


def _yolo_image_path(image: LabelledImage, job: Job) -> str:
    """Return images/[SPLIT/]NAME, without a repeated `images/` or split folder."""
    folder = "" if image.split == "all" else f"{_short_split(image.split)}/"
    return f"images/{folder}{image.name.removeprefix('images/').removeprefix(folder)}"


def _kitti_image_path(image: LabelledImage, job: Job) -> str:
    folder = f"{_short_split(image.split)}/" if len(job.splits) > 1 else ""
    return f"{folder}image_2/{_stem(image.name)}.png"


def _city_image_path(image: LabelledImage, time: str, pattern: str) -> str:
    """Return TIME/SPLIT/CITY/NAME.png for EuroCity Persons or Cityscapes; the image's folder is the city."""
    if re.match(pattern, image.name):
        return f"{_strip_suffix(image.name)}.png"
    path, short = PurePosixPath(image.name), _short_split(image.split).replace("all", "train")
    return f"{time}/{short}/{path.parent.name or 'images'}/{_stem(image.name)}.png"


def _format_decimal(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    rounded = round(value, 6)
    return f"{rounded:.2f}" if rounded == round(rounded, 2) else repr(rounded)


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """Encode a document as indented JSON; undecodable bytes are escaped."""
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


_KITTI_FIELDS = frozenset({*UNSTATED, "score"})
LAYOUTS: Mapping[str, Layout] = {
    "coco": Layout(read_coco, _write_coco, lambda image, _: image.name, lambda path: path, None, True, True, True),
    "odgt": Layout(
        read_lines,
        _write_odgt,
        lambda image, _: f"Images/{PurePosixPath(image.name).name}",
        lambda path: f"{_stem(path)}",
        frozenset({"full", "visible", "head", "tag", "extra", "head_attr"}),
    ),
    "yolo_txt": Layout(read_yolo, _write_yolo, _yolo_image_path, _yolo_label, frozenset(), needs_size=True),
    "kitti": Layout(read_kitti, _write_kitti, _kitti_image_path, _kitti_label, _KITTI_FIELDS),
    "widerperson": Layout(
        read_widerperson,
        _write_widerperson,
        lambda image, _: f"Images/{_stem(image.name)}.jpg",
        lambda path: path,
        frozenset({"kind"}),
    ),
    "citypersons": Layout(
        read_citypersons,
        _write_citypersons,
        lambda image, _: _city_image_path(image, "leftImg8bit", r"leftImg8bit/\w+/\w+/"),
        lambda path: PurePosixPath(path).name,
        frozenset({"full", "visible", "kind", "instance"}),
    ),
    "ecp": Layout(
        read_ecp,
        _write_ecp,
        lambda image, _: _city_image_path(image, "day/img", r"\w+/img/\w+/\w+/"),
        _ecp_label,
        frozenset({"kind", "tags", "children", "orient", "Orient"}),
        needs_size=True,
        states_size=True,
        has_image_fields=True,
    ),
}
"""Registry of layouts; every layout can be converted to every other one."""
