"""Tables of boxes with the columns of TensorFlow's object detection: a row a box, as Roboflow exports them, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from sightline.store.boxes.label_table import LabelFormat, LabelledBox
from sightline.store.boxes.tools.boxes import make_box, parse_numbers, parse_size
from sightline.store.boxes.tools.folders import BAD_IMAGE, LabelReport, StatedImage, label_reader, name_subset
from sightline.store.boxes.tools.tables import iterate_rows, read_header

_COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")


@label_reader(
    layout="tensorflow_csv",
    suffixes=(".csv",),
    needs=f"a table of boxes has the columns {','.join(_COLUMNS)}",
    is_alone=False,
)
def read_tensorflow_csv(file: Path, report: LabelReport, *, first_pixel: Literal[0, 1] = 0) -> Iterator[StatedImage]:
    """Yield the images of a table, in the order in which it names them: none of a table with other columns.

    Corners are pixels from 0 on; `first_pixel` is 1 for tables that were made from Pascal VOC without a change, which
    counts from 1. Raises DataError as `iterate_rows`. Source: TensorFlow's object detection API; Roboflow's export of
    that name.
    """
    header = read_header(file)
    if missing := [name for name in _COLUMNS if name not in header]:
        text = f"tables have no column {missing[0]} and are passed over"
        report.habits[text].append(str(file))
        return
    by_image: dict[str, list[tuple[int, Mapping[str, str]]]] = {}
    for line, row in iterate_rows(file):
        by_image.setdefault(row["filename"].strip(), []).append((line, row))
        report.unread.update(f"column {name}"[:80] for name in header if name not in _COLUMNS and row[name])
    for name, rows in by_image.items():
        line = rows[0][0]
        sizes = {(row["height"].strip(), row["width"].strip()) for _, row in rows}
        try:
            if len(sizes) > 1:
                raise ValueError(f"'{name[:200]}' has two sizes; correct its rows")
            size_px = parse_size(*sizes.pop())
        except ValueError as error:
            report.faults.add(BAD_IMAGE, f"{file}:{line}: {error}")
            continue
        entries = ((f"{file}:{line}", (line, row)) for line, row in rows)
        parse = partial(_read_row, first_pixel=first_pixel)
        yield StatedImage(name, size_px, report.collect_boxes(entries, parse), name_subset(file), line)


def _read_row(entry: tuple[int, Mapping[str, str]], *, first_pixel: int) -> LabelledBox:
    line, row = entry
    left, top, right, bottom = parse_numbers({name: row[name] for name in _COLUMNS[4:]})
    return make_box(row["class"], (left - first_pixel, top - first_pixel, right, bottom), {}, line=line)


TENSORFLOW_CSV = LabelFormat(
    read=read_tensorflow_csv,
    known_by={".csv": rb"\A(?:\xef\xbb\xbf)?filename,width,height,class,xmin,ymin,xmax,ymax\s"},
)
