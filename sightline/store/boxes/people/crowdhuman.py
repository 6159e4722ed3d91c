"""CrowdHuman: images of crowds, with full, visible and head boxes of people in .odgt files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sightline.contract.errors import DataError
from sightline.contract.regular_files import parse_json
from sightline.store.boxes.image_listing import guess_split, list_images, note_unlabelled
from sightline.store.boxes.label_table import (
    AnnotationFaults,
    Files,
    LabelFormat,
    LabelledBox,
    LabelledImage,
    LabelledSet,
    is_valid_box,
    xywh_to_xyxy,
)
from sightline.store.boxes.label_writing import group_by_split, json_bytes, name_file, xyxy_to_xywh
from sightline.store.boxes.people.kinds import BAD_BOX, BAD_IMAGE, BOX_KEYS, PeopleKinds, fit_person
from sightline.store.files.input_files import expand_home, read_file
from sightline.store.prepared.prepared_set import describe_contents

KINDS = PeopleKinds({"person": 1})
_READ = "ignore"
"""Mark of people and heads that boxes hold; others that are stated, such as box_id, occ and unsure, are counted."""


def read_crowdhuman(source: Path) -> LabelledSet:
    """Read CrowdHuman's .odgt files with all boxes of every person, and images in any folders beside them.

    Ids count the sorted names of a file from 1. Raises DataError for a folder without such files, for a file in another
    format, and for a name that two images below it have.
    """
    root = expand_home(source).resolve()
    files = [root] if root.is_file() else sorted([*root.glob("*.odgt"), *root.glob("annotations/*.odgt")])
    root = root.parent if root.is_file() else root
    if not files:
        raise DataError(f"{root}: {describe_contents(root)}, no .odgt file; give the folder with annotation_train.odgt")
    paths: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_images(root, may_lack=True):
        paths[path.stem].append(path)
    images: list[LabelledImage] = []
    faults, unread = AnnotationFaults(), Counter[str]()
    for file in files:
        split = guess_split(file.relative_to(root))
        lines = sorted(_read_lines(file).items(), key=lambda line: f"{line[0]}.jpg")
        for number, (name, people) in enumerate(lines, start=1):
            boxes = [*_read_people(people, name, faults, unread)]
            if name not in paths:
                faults.add(BAD_IMAGE, f"there is no image '{name}' below {root}")
                continue
            path, *duplicates = paths[name]
            if duplicates:
                raise DataError(
                    f"{path}: {duplicates[0]} has the same name, and the boxes of '{name}' fit either; keep one"
                )
            images.append(LabelledImage(split, name, path, boxes, number, files=(file,)))
    notes = note_unlabelled(root, (image.path for image in images))
    return LabelledSet(root, "crowdhuman", KINDS.classes, images, faults, notes, unread)


def _read_lines(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the people of each ID of a file. Raises DataError with the line for bad JSON, no ID, or a repeated ID."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for number, text in enumerate(read_file(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = parse_json(text)
            key, people = str(line["ID"]), line["gtboxes"]
            marks = [person.get(mark) or {} for person in people for mark in ("extra", "head_attr")]
            if key.startswith("/") or ".." in key.split("/"):
                raise ValueError(f"the ID '{key[:80]}' leads out of the folder")
            if not all(isinstance(mark, dict) and not isinstance(mark.get("ignore"), str) for mark in marks):
                raise TypeError("extra and head_attr must be objects, and their ignore a number")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}:{number}: is not a line of .odgt with ID and gtboxes ({error}); get it again"
            ) from error
        if key in lines:
            raise DataError(f"{path}:{number}: the image '{key}' appears twice; keep one of the lines")
        lines[key] = people
    if not lines:
        raise DataError(f"{path}: contains no lines; the file is empty or damaged")
    return lines


def _read_people(
    people: Sequence[Mapping[str, Any]], name: str, faults: AnnotationFaults, unread: Counter[str]
) -> Iterator[LabelledBox]:
    """Yield people, ignored if no person or marked so."""
    for index, person in enumerate(people):
        is_ignored = person.get("tag") != "person" or (person.get("extra") or {}).get("ignore", 0) != 0
        is_head_ignored = (person.get("head_attr") or {}).get("ignore", 0) != 0
        try:
            stated = {kind: xywh_to_xyxy(person[key]) for kind, key in BOX_KEYS.items() if person.get(key) is not None}
            marks = {"full": is_ignored, "visible": is_ignored, "head": is_ignored or is_head_ignored}
            if not stated or not all(is_valid_box(box, is_ignored=marks[kind]) for kind, box in stated.items()):
                raise ValueError("a box of finite numbers, with width and height above 0, is needed")
        except (ArithmeticError, TypeError, ValueError) as error:
            faults.add(BAD_BOX, f"{name}: box {index} is {str(dict(person))[:160]} ({error})")
            continue
        for mark in ("extra", "head_attr"):
            unread.update(f"{mark}.{str(key)[:40]}" for key in person.get(mark) or {} if key != _READ)
        if (tag := person.get("tag")) != "person":
            unread[f"the tag {str(tag)[:40]}, which is an ignored person here"] += 1
        boxes = (stated.get("full"), stated.get("visible"), stated.get("head"))
        yield LabelledBox("person", *boxes, is_ignored, is_head_ignored, line=index)


def write_crowdhuman(labels: LabelledSet) -> Files:
    """Yield an .odgt file for each split, a line for each image."""
    for word, images in group_by_split(labels.images).items():
        lines = [
            {"ID": PurePosixPath(image.name).stem, "gtboxes": [*map(_state_person, image.boxes)]} for image in images
        ]
        yield name_file("annotation", word, ".odgt"), b"".join(json_bytes(line, indent=None) for line in lines)


def _state_person(box: LabelledBox) -> dict[str, Any]:
    corners = zip(BOX_KEYS.values(), (box.box, box.visible, box.head), strict=True)
    person: dict[str, Any] = {"tag": "person"}
    person |= {key: xyxy_to_xywh(stated) for key, stated in corners if stated is not None}
    if box.is_head_ignored:
        person["head_attr"] = {"ignore": 1}
    return {**person, "extra": {"ignore": 1} if box.is_ignored else {}}


CROWDHUMAN = LabelFormat(
    read=read_crowdhuman,
    columns=("full", "visible", "head", "label", "is_ignored", "is_head_ignored"),
    write=write_crowdhuman,
    image_path=lambda image: f"Images/{PurePosixPath(image.name).name}",
    holds=frozenset({"visible", "head", "is_ignored", "is_head_ignored", "part", "undivided"}),
    fit=lambda box, _: fit_person(box, KINDS),
)
