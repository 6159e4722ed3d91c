"""EuroCity Persons: images of 31 cities by day and by night, with a JSON file beside each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sightline.contract.errors import DataError
from sightline.store.boxes.image_listing import guess_split, note_unlabelled
from sightline.store.boxes.label_table import (
    AnnotationFaults,
    Files,
    LabelFormat,
    LabelledBox,
    LabelledImage,
    LabelledSet,
    parse_number,
)
from sightline.store.boxes.label_writing import city_path, json_bytes, plain
from sightline.store.boxes.people.kinds import (
    BAD_BOX,
    BAD_FILE,
    COLUMNS,
    PeopleKinds,
    fit_person,
    layout_error,
    parse_finite,
    to_corners,
)
from sightline.store.files.input_files import expand_home, parse_json_content, read_file

KINDS = PeopleKinds(
    {
        "pedestrian": "pedestrian",
        "rider": "rider",
        "crowd": "person-group-far-away",
        "rider_crowd": "rider+vehicle-group-far-away",
    },
    ignored=frozenset({"crowd", "rider_crowd"}),
    crowds=frozenset({"crowd", "rider_crowd"}),
)
_OCCLUDED_PATTERN = re.compile(r"(?:occluded|truncated)>([0-9]{1,3})")
_VISIBLE_BY_OCCLUSION = {10: 0.9, 40: 0.6, 80: 0.2}
"""Tag (percent occluded or truncated) → largest visible share of the person."""
_IGNORED_TAGS = frozenset({"sitting-lying", "behind-glass"})


def read_ecp(source: Path) -> LabelledSet:
    """Read EuroCity Persons: frames of labels/SPLIT/CITY/NAME.json with img/SPLIT/CITY/NAME.png, day and night.

    Vehicles are not people and are left out. Ids count the frames of a split from 1, in the order of their paths.
    A file that is not a frame is a fault. Raises DataError for a folder without labels.
    """
    root = expand_home(source).resolve()
    folders = [path for form in ("labels", "*/labels", "*/*/labels") for path in sorted(root.glob(form))]
    files = [(folder, file) for folder in folders for file in sorted(folder.rglob("*.json"))]
    if not files:
        raise layout_error(root, "day/labels/train/CITY/NAME.json with day/img/", "EuroCity Persons")
    images: list[LabelledImage] = []
    faults, unread, num_vehicles = AnnotationFaults(), Counter[str](), 0
    numbers = Counter[str]()
    for folder, file in files:
        part = file.relative_to(folder)
        try:
            frame = _find_frame(parse_json_content(read_file(file), where=str(file), advice="get the file again"))
            size_px = int(frame["imageheight"]), int(frame["imagewidth"])
            boxes = [*_read_people(frame["children"], str(file), faults, unread)]
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            needed = f"{file}: a frame with imagewidth, imageheight and children is needed ({error!r}); get it again"
            faults.add(BAD_FILE, str(error) if isinstance(error, DataError) else needed)
            continue
        num_vehicles += sum(KINDS.name_of_code(child["identity"]) is None for child in frame["children"])
        split = next((guess for word in part.parts if (guess := guess_split(Path(word))) != "all"), "all")
        numbers[split] += 1
        path = folder.parent / "img" / part.with_suffix(".png")
        name = path.relative_to(root).as_posix()
        images.append(LabelledImage(split, name, path, boxes, numbers[split], size_px, (file,)))
    notes = [f"{num_vehicles} boxes of vehicles are left out"] if num_vehicles else []
    notes += note_unlabelled(root, (image.path for image in images))
    return LabelledSet(root, "ecp", KINDS.classes, images, faults, notes, unread)


def _find_frame(document: Any) -> dict[str, Any]:
    """Find the frame of a document, which some files wrap in a list of sequences; {} if there is none."""
    queue = [document]
    while queue:
        node = queue.pop(0)
        if isinstance(node, dict) and node.get("identity") == "frame":
            return node
        if isinstance(node, dict):
            queue += [*node.get("children", ()), *(value for value in node.values() if isinstance(value, dict))]
    return {}


def _read_people(children: Any, where: str, faults: AnnotationFaults, unread: Counter[str]) -> Iterator[LabelledBox]:
    for number, child in enumerate(children):
        kind = KINDS.name_of_code(child["identity"])
        if kind is None:
            continue  # a vehicle
        tags = child.get("tags") or []
        try:
            if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
                raise TypeError("tags are a list of words")
            is_ignored = kind in KINDS.ignored or (kind == "pedestrian" and not _IGNORED_TAGS.isdisjoint(tags))
            left, top, right, bottom = (parse_finite(parse_number(child[key])) for key in ("x0", "y0", "x1", "y1"))
            box = to_corners((left, top, right - left, bottom - top), is_ignored=is_ignored)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            faults.add(BAD_BOX, f"{where}: child {number}: {str(child)[:120]} ({error})")
            continue
        unread["tags of people"] += not all(_OCCLUDED_PATTERN.fullmatch(tag) or tag in _IGNORED_TAGS for tag in tags)
        unread["orientations of people"] += any(key in child for key in ("orient", "Orient"))
        share = None if is_ignored else ecp_visible_share(tags)
        yield LabelledBox(
            kind, box, is_ignored=is_ignored, is_crowd=kind in KINDS.crowds, visible_share=share, line=number
        )


def ecp_visible_share(tags: Any) -> float:
    """Return the visible share of an ECP person: 1, 0.9, 0.6 or 0.2, by the larger of occlusion and truncation."""
    shares = [
        _VISIBLE_BY_OCCLUSION.get(int(match[1]), 1.0)
        for tag in tags or ()
        if (match := _OCCLUDED_PATTERN.fullmatch(str(tag)))
    ]
    return min(shares, default=1.0)


def write_ecp(labels: LabelledSet) -> Files:
    """Yield a JSON file for each image, with a tag of occlusion for each visible share."""
    for image in labels.images:
        assert image.size_px is not None
        children = []
        for box in image.boxes:
            tags = [f"occluded>{percent}" for percent, share in _VISIBLE_BY_OCCLUSION.items() if box.share == share]
            corners = zip(("x0", "y0", "x1", "y1"), map(plain, box.box or ()), strict=True)
            children.append({"identity": KINDS.codes[box.class_name], "tags": tags, "children": [], **dict(corners)})
        frame = {"identity": "frame", "imageheight": image.size_px[0], "imagewidth": image.size_px[1]}
        time, _, path = image.name.partition("/img/")
        label_path = PurePosixPath(f"{time}/labels/{path}").with_suffix(".json")
        yield str(label_path), json_bytes({**frame, "children": children})


def _image_path(image: LabelledImage) -> str:
    """Return TIME/img/SPLIT/CITY/NAME.png; the time is that of the name, else the day."""
    return city_path(image, "night/img" if image.name.startswith("night/") else "day/img")


def _fit(box: LabelledBox, size_px: tuple[int, int]) -> LabelledBox | str:
    """Return a person with the nearest visible share that a tag states: no less is visible than it says."""
    person = fit_person(box, KINDS)
    if isinstance(person, str):
        return person
    share = 1.0 if person.visible_share is None else person.visible_share
    shares = [tagged for tagged in _VISIBLE_BY_OCCLUSION.values() if share <= tagged]
    return person._replace(visible_share=None if person.is_ignored else min(shares, default=1.0))


ECP = LabelFormat(
    read=read_ecp,
    columns=COLUMNS,
    write=write_ecp,
    image_path=_image_path,
    holds=frozenset({"is_ignored", "is_crowd", "visible_share", "size"}),
    fit=_fit,
)
