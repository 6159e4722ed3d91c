"""CrowdHuman's lines of JSON (.odgt), what is ignored in them, and COCO's form of the same boxes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from sightline.data.files.input_files import read_file
from sightline.errors import DataError

__all__ = ["BOX_KEYS", "BoxType", "coco_to_odgt", "is_ignored", "odgt_to_coco", "read_odgt"]

BoxType = Literal["full", "visible", "head"]
BOX_KEYS: Mapping[BoxType, str] = {"full": "fbox", "visible": "vbox", "head": "hbox"}
"""The kinds of boxes and their keys, each left, top, width and height."""
_KEPT = ("tag", "extra", "head_attr", *BOX_KEYS.values())
"""What of a person stands in both forms as it is."""


def read_odgt(path: Path) -> list[dict[str, Any]]:
    """The lines of a file. Raises DataError with the line that is not JSON, lacks ID or gtboxes, or has an ID again."""
    lines: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(read_file(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            key, boxes = str(line["ID"]), line["gtboxes"]
            marks = [each.get(mark) or {} for each in boxes for mark in ("extra", "head_attr")]
            if not all(isinstance(mark, dict) for mark in marks):
                raise TypeError("extra and head_attr are objects, where they are there")
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: is not a line of .odgt with ID and gtboxes ({error}); get it again"
            ) from error
        if key in lines:
            raise DataError(f"{path}:{number}: the image '{key}' is there twice; keep one of the lines")
        lines[key] = line
    if not lines:
        raise DataError(f"{path}: holds no lines; get the file again")
    return list(lines.values())


def is_ignored(person: Mapping[str, Any], box: BoxType) -> bool:
    """Whether a box is neither a target nor background: not a person, or marked so; of a head by its own mark too."""
    marks = [person.get("extra") or {}, (person.get("head_attr") or {}) if box == "head" else {}]
    return person.get("tag") != "person" or any(mark.get("ignore", 0) != 0 for mark in marks)


def odgt_to_coco(
    lines: Iterable[Mapping[str, Any]], sizes_px: Mapping[str, tuple[int, int]], *, box: BoxType = "full"
) -> dict[str, Any]:
    """A COCO document of lines, by file name, the same for any order of them; `sizes_px` is (width, height) by ID.

    `bbox` is the box chosen, not rounded and not clipped. An ignored box has `ignore` and `iscrowd`, since evaluators
    read the latter. Raises DataError for a person without such a box.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for line in sorted(lines, key=lambda line: f"{line['ID']}.jpg"):
        width, height = sizes_px[line["ID"]]
        images.append({"id": len(images) + 1, "file_name": f"{line['ID']}.jpg", "width": width, "height": height})
        for person in line["gtboxes"]:
            chosen = person.get(BOX_KEYS[box])
            if chosen is None:
                raise DataError(f"image '{line['ID']}': box {person} has no {BOX_KEYS[box]}; choose another box")
            flag = int(is_ignored(person, box))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": len(images),
                "category_id": 1,
                "bbox": chosen,
                "area": chosen[2] * chosen[3],
                "iscrowd": flag,
                "ignore": flag,
                "height": chosen[3],
            }
            if "fbox" in person and "vbox" in person and person["fbox"][2] * person["fbox"][3] > 0:
                visible, full = (person[key][2] * person[key][3] for key in ("vbox", "fbox"))
                annotation["vis_ratio"] = visible / full
            annotations.append(annotation | {key: person[key] for key in _KEPT if key in person})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def coco_to_odgt(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of a COCO document of people, by image; those that `odgt_to_coco` was given where it comes from there.

    A box of another document is a full box; one that is ignored has the tag `mask`.
    """
    people: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for each in document["annotations"]:
        is_person = not (each.get("ignore") or each.get("iscrowd"))
        other = {"tag": "person" if is_person else "mask", "fbox": each["bbox"]}
        kept = {key: each[key] for key in _KEPT if key in each}
        people[each["image_id"]].append(kept if "tag" in kept else other | kept)
    return [{"ID": Path(each["file_name"]).stem, "gtboxes": people[each["id"]]} for each in document["images"]]
