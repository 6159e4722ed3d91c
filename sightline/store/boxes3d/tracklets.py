"""Tracklets in XML: boxes of objects over frames, as KITTI's raw data have them and as CVAT 3D exports them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.boxes3d.conversions import BoxReading
from sightline.store.boxes3d.label_rows import Form, LabelFile, StatedBox, check_sizes, parse_name, parse_words
from sightline.store.files.text_tables import parse_count
from sightline.store.files.xml_files import XmlElement, iterate_xml

FRAME_LIST = "frame_list.txt"
"""File beside the tracklets with the number and the name of each frame, which CVAT writes."""
_ROOT = "boost_serialization"
_FORMS = {
    "tracklets_kitti": Form(BoxReading(centre="bottom"), frozenset({"unit", "sense", "zero"})),
    "tracklets_cvat": Form(BoxReading(size="hlw"), frozenset({"unit", "sense", "zero"})),
}
"""Both have h, w, l, tx, ty, tz and rz. KITTI's tz is the bottom; CVAT writes centres, and its x, y, z as w, h, l.

Source: the raw data development kit of KITTI; Datumaro's exporter `kitti_raw`, which CVAT calls.
"""
_OUTSIDE = (-1, 2)
"""Occlusion and truncation of a pose that CVAT writes for a frame in which the object is not."""


def is_tracklets(content: bytes) -> bool:
    """Return True for XML with KITTI's tracklets."""
    return f"<{_ROOT}".encode() in content[:4096] and b"<tracklets" in content[:8192]


def read_tracklets(path: Path) -> LabelFile:
    """Read tracklets; frames are called by their names in the list beside the file, else `#NUMBER`.

    CVAT is known by the order of attributes, and its poses outside of a frame are left out, with a note. Raises
    DataError with the line.
    """
    frames: defaultdict[int, list[StatedBox]] = defaultdict(list)
    is_cvat, outside = False, 0
    for number, element in enumerate(iterate_xml(path)):
        if number == 0 and element.tag == _ROOT:
            is_cvat = list(element.attributes)[:1] == ["version"]
        elif number == 0 or element.tag != "tracklets":
            raise DataError(f"{path}:{element.line}: is <{element.tag[:40]}>, tracklets are needed; export it again")
        for track, item in enumerate(element.find_all("item")):
            for pose in _read_item(item, f"{path}:{item.line}", str(track)):
                if is_cvat and pose.state == _OUTSIDE:
                    outside += 1
                else:
                    frames[pose.frame].append(pose.box)
    names = _read_frame_list(path.with_name(FRAME_LIST))
    unnamed = [frame for frame in frames if names is not None and frame not in names]
    if names is not None and unnamed:
        raise DataError(f"{path}: has boxes in frame {unnamed[0]}, which {FRAME_LIST} does not name; export both again")
    named = {f"#{frame}": boxes for frame, boxes in sorted(frames.items())}
    if names is not None:
        named = {name: frames.get(frame, []) for frame, name in names.items()}
    order = reversed(_FORMS) if is_cvat else iter(_FORMS)
    notes = (f"{outside} poses are outside of their frame and are left out",) if outside else ()
    return LabelFile(path, "tracklets", named, {name: _FORMS[name] for name in order}, notes)


class _Pose(NamedTuple):
    frame: int
    state: tuple[int, int]
    box: StatedBox


def _read_item(item: XmlElement, where: str, track: str) -> Iterator[_Pose]:
    name = parse_name(item.text("objectType"), f"{where}: objectType")
    sizes = _read_numbers(item, ("l", "w", "h"), where)
    first = parse_count(item.text("first_frame"))
    lists = item.find_all("poses")
    if first is None or len(lists) != 1:
        raise DataError(f"{where}: this object has no first_frame or no poses; export it again")
    for index, pose in enumerate(lists[0].find_all("item")):
        at = f"{where.rpartition(':')[0]}:{pose.line}"
        place, turn = (_read_numbers(pose, tags, at) for tags in (("tx", "ty", "tz"), ("rx", "ry", "rz")))
        numbers = (*place, *sizes, turn[2])
        check_sizes(numbers, at)
        state = _read_state(pose.text("occlusion")), _read_state(pose.text("truncation"))
        tilt = max(abs(math.remainder(angle, 2 * math.pi)) for angle in turn[:2])
        yield _Pose(first + index, state, StatedBox(name, numbers, at, tilt=tilt, track=track))


def _read_state(text: str) -> int:
    """Return a state of a pose; -2 where there is none, or no number."""
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 4 and text.isascii() else -2


def _read_numbers(element: XmlElement, tags: Sequence[str], where: str) -> list[float]:
    missing = [tag for tag in tags if not element.text(tag)]
    if missing:
        raise DataError(f"{where}: has no <{missing[0]}>, {', '.join(tags)} are needed; export it again")
    return parse_words([element.text(tag) for tag in tags], where)


def _read_frame_list(path: Path) -> dict[int, str] | None:
    """Read the names of frames by their numbers; None without the file. Raises DataError with the line."""
    if not path.is_file():
        return None
    names: dict[int, str] = {}
    for line_number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        number, _, name = line.strip().partition(" ")
        if not number:
            continue
        frame = parse_count(number)
        if frame is None or not name.strip() or frame in names:
            raise DataError(f"{path}:{line_number}: a frame's number, once, and its name are needed; export it again")
        names[frame] = name.strip()
    return names


def write_tracklets(frames: Mapping[str, tuple[Sequence[str], np.ndarray, np.ndarray]]) -> tuple[bytes, bytes]:
    """Write frames of names (M,), boxes (M, 7) and tracks (M,) as CVAT does, and the list of frames beside them.

    Each box is an object of its own: an object has one size in all frames, and boxes may differ.
    """
    items = []
    for number, (names, boxes, _) in enumerate(frames.values()):
        items += [_format_item(name, box, number) for name, box in zip(names, boxes, strict=True)]
    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n<!DOCTYPE boost_serialization>\n'
    body = (
        '<boost_serialization version="9" signature="serialization::archive">\n'
        '<tracklets version="0" tracking_level="0" class_id="0">\n'
        f"<count>{len(items)}</count>\n<item_version>1</item_version>\n{''.join(items)}"
        "</tracklets>\n</boost_serialization>\n"
    )
    listed = "".join(f"{number} {name}\n" for number, name in enumerate(frames))
    return (head + body).encode(), listed.encode()


def _format_item(name: str, box: np.ndarray, frame: int) -> str:
    x, y, z, length, width, height, yaw = (f"{value:.9g}" for value in box)
    states = {"state": 2, "occlusion": 0, "occlusion_kf": 0, "truncation": 0, "amt_occlusion": -1, "amt_border_l": -1}
    states |= {"amt_border_r": -1, "amt_occlusion_kf": -1, "amt_border_kf": -1}
    pose = {"tx": x, "ty": y, "tz": z, "rx": 0.0, "ry": 0.0, "rz": yaw, **states}
    fields = "".join(f"<{tag}>{value}</{tag}>" for tag, value in pose.items())
    return (
        f"<item><objectType>{escape(name)}</objectType><h>{width}</h><w>{length}</w><l>{height}</l>"
        f"<first_frame>{frame}</first_frame><poses><count>1</count><item_version>0</item_version>"
        f"<item>{fields}</item></poses><finished>1</finished></item>\n"
    )
