"""A plugin with a label format of boxes: text files of 'PASCAL Annotation Version 1.00', one for each photo.

`sightline data prepare pascal_text --plugin my_labels.py --from FOLDER --to prepared` checks photos and labels;
`sightline data convert pascal_text --plugin my_labels.py --from FOLDER --as coco --to converted` writes them as COCO.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import sightline

COUNT = re.compile(r"Objects with ground truth : (\d+)")
NAME = re.compile(r'Image filename : "(.+)"')
SIZE = re.compile(r"Image size \(X x Y x C\) : (\d+) x (\d+)")
BOX = re.compile(r'Bounding box for object \d+ "(.+?)" .* : \((\d+), (\d+)\) - \((\d+), (\d+)\)')
NEEDS = "the text files of PASCAL have Image filename, Image size and Bounding box for object"


@sightline.label_reader(layout="pascal_text", suffixes=(".txt",), needs=NEEDS)
def read_pascal(file: Path, report: sightline.LabelReport) -> Iterator[sightline.StatedImage]:
    """Yield the image of a file: none of text of another kind. What is raised is a fault of this file."""
    text = file.read_text(encoding="latin-1")
    name, size, count = (pattern.search(text) for pattern in (NAME, SIZE, COUNT))
    if name is None or size is None or count is None:
        report.habits["text files are not of PASCAL and are passed over"].append(str(file))
        return
    boxes = [*BOX.finditer(text)]
    if len(boxes) != int(count[1]):
        raise ValueError(f"states {count[1]} objects, {len(boxes)} follow")
    places = (f"{file}:{text.count(chr(10), 0, box.start()) + 1}" for box in boxes)
    entries = zip(places, boxes, strict=True)
    yield sightline.StatedImage(name[1], (int(size[2]), int(size[1])), report.collect_boxes(entries, read_box))


def read_box(found: re.Match[str]) -> sightline.LabelledBox:
    """Read a box; the first pixel is 1, 1, so that 3 is the end of the third one."""
    left, top, right, bottom = (float(number) for number in found.groups()[1:])
    return sightline.make_box(found[1], (left - 1, top - 1, right, bottom))


@sightline.register.data("pascal_text")
class PascalText(sightline.LabelledImages):
    """Photos with boxes in PASCAL's first text files. Source: Dalal and Triggs 2005, the INRIA person data set."""

    spec = sightline.SetSpec(
        name="pascal_text",
        entries=lambda: {"layouts": {"text": "NAME.txt and NAME.png, in folders or not"}, "obtain": "your own files"},
    )
    label_format = sightline.LabelFormat(read=read_pascal)
