"""WIDER FACE: photos of faces, and a text file about all photos of a split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sightline.store.boxes.label_table import LabelFormat, LabelledBox
from sightline.store.boxes.tools.boxes import make_box, parse_numbers
from sightline.store.boxes.tools.folders import LabelReport, StatedImage, label_reader, name_subset
from sightline.store.files.input_files import get_again, read_file
from sightline.store.files.text_tables import parse_count

_MARKS = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
_NEEDS = "WIDER FACE has wider_face_train_bbx_gt.txt with WIDER_train/images/"


@label_reader(layout="wider_face", suffixes=(".txt",), needs=_NEEDS, is_alone=False, unlabelled=("WIDER_test",))
def read_wider_face(file: Path, report: LabelReport) -> Iterator[StatedImage]:
    """Yield the photos of a file: name, number of faces, and a line for each face; one of zeros where there is none.

    Invalid faces are ignored. Raises DataError for a file that is cut. Source: readme.txt of WIDER FACE.
    """
    if not file.name.endswith("_bbx_gt.txt"):
        report.habits["text files are no lists of faces and are passed over"].append(str(file))
        return
    report.class_names = ["face"]
    lines, start = read_file(file).decode("utf-8-sig", "replace").rstrip().split("\n"), 0
    while start < len(lines):
        stated = "".join(lines[start + 1 : start + 2]).strip()
        count = parse_count(stated)
        rows = lines[start + 2 : start + 2 + (count or 0)]
        if count != len(rows):
            raise get_again(f"{file}:{start + 2}: states '{stated[:40]}' faces, {len(rows)} follow")
        entries = ((f"{file}:{number}", (number, row)) for number, row in enumerate(rows, start=start + 3))
        boxes = report.collect_boxes(entries, partial(_read_face, report=report))
        yield StatedImage(lines[start].strip(), None, boxes, name_subset(file), start + 1)
        start += 2 + max(count, 1)


def _read_face(entry: tuple[int, str], *, report: LabelReport) -> LabelledBox:
    line, words = entry[0], entry[1].split()
    if len(words) != 4 + len(_MARKS):
        raise ValueError("four sides and six marks are needed")
    marks = dict(zip(_MARKS, words[4:], strict=True))
    left, top, width, height = parse_numbers(dict(zip(("left", "top", "width", "height"), words[:4], strict=True)))
    report.unread.update(f"marks of {name}" for name in _MARKS if name != "invalid" and marks[name] != "0")
    return make_box("face", (left, top, left + width, top + height), {"ignore": marks["invalid"]}, line=line)


WIDER_FACE = LabelFormat(read=read_wider_face, known_by={".txt": rb"\A[^\n]+\.\w+\s*\n\d+\s*\n(?:-?\d+ ){9}"})
