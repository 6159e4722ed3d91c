"""CityPersons: people in the images of Cityscapes, with full and visible boxes in MAT files."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from sightline.contract.errors import assert_installed
from sightline.store.boxes.image_listing import guess_split, list_images, note_unlabelled
from sightline.store.boxes.label_table import (
    AnnotationFaults,
    Files,
    LabelFormat,
    LabelledBox,
    LabelledImage,
    LabelledSet,
)
from sightline.store.boxes.label_writing import city_path, group_by_split, xyxy_to_xywh
from sightline.store.boxes.people.kinds import (
    BAD_BOX,
    BAD_IMAGE,
    PeopleKinds,
    fit_person,
    layout_error,
    parse_finite,
    to_corners,
)
from sightline.store.files.input_files import expand_home, get_again
from sightline.store.files.mat_files import read_mat

KINDS = PeopleKinds(
    {"ignored_region": 0, "pedestrian": 1, "rider": 2, "sitting": 3, "other": 4, "crowd": 5},
    ignored=frozenset({"ignored_region", "crowd"}),
    crowds=frozenset({"crowd"}),
)


def read_citypersons(source: Path) -> LabelledSet:
    """Read CityPersons: the images in anno_train.mat and anno_val.mat; ids count the cells of a file from 1.

    The images are below leftImg8bit. Raises DataError for a folder without such files, and with the number of a damaged
    cell.
    """
    root = expand_home(source).resolve()
    files = sorted({*root.glob("anno_*.mat"), *root.glob("annotations/anno_*.mat"), *root.glob("*/*/anno_*.mat")})
    if not files:
        raise layout_error(root, "anno_train.mat and anno_val.mat beside leftImg8bit/", "CityPersons")
    image_root = root / "leftImg8bit"
    paths: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_images(image_root if image_root.is_dir() else root):
        paths[path.name].append(path)
    images: list[LabelledImage] = []
    faults, unread = AnnotationFaults(), Counter[str]()
    for file in files:
        for number, cell in enumerate(read_mat(file, f"{file.stem}_aligned", kinds="O").ravel(), start=1):
            where = f"{file}: image {number}"
            try:
                name, city, rows = str(cell["im_name"]), str(cell["cityname"]), np.asarray(cell["bbs"])
                if not {"/", "\0"}.isdisjoint(name + city):
                    raise ValueError(f"'{city}' and '{name}' are no names of a folder and a file")
                if rows.size and (rows.ndim != 2 or rows.shape[1] != 10 or rows.dtype.kind not in "fiu"):
                    raise ValueError(f"bbs has the shape {rows.shape}")
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise get_again(f"{where}: cityname, im_name and bbs of 10 columns are needed ({error})") from error
            boxes = [*_read_people(rows.reshape(-1, 10), f"{where}, {name}", faults)]
            unread["instance numbers"] += int(np.count_nonzero(rows.reshape(-1, 10)[:, 5]))
            folders = (file.stem.removeprefix("anno_"), city)
            matches = [path for path in paths[name] if path.parts[-3:-1] == folders] or paths[name]
            if len(matches) == 1:
                split, (path,) = guess_split(Path(file.name)), matches
                images.append(
                    LabelledImage(split, path.relative_to(root).as_posix(), path, boxes, number, files=(file,))
                )
            else:
                count = f"there are {len(matches)} images" if matches else "there is no image"
                faults.add(BAD_IMAGE, f"{where}: {count} '{name}' below {image_root}")
    notes = note_unlabelled(image_root if image_root.is_dir() else root, (image.path for image in images))
    return LabelledSet(root, "citypersons", KINDS.classes, images, faults, notes, unread)


def _read_people(rows: np.ndarray, where: str, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    for number, row in enumerate(rows.tolist(), start=1):
        try:
            code, left, top, width, height, _ = map(parse_finite, row[:6])
            kind = KINDS.name_of_code(code)
            is_ignored = kind in KINDS.ignored
            if kind is None:
                raise ValueError("classes are 0 to 5")
            full = to_corners((left, top, width, height), is_ignored=is_ignored)
            visible_left, visible_top, visible_width, visible_height = map(parse_finite, row[6:])
            visible = to_corners((visible_left, visible_top, visible_width, visible_height), is_ignored=True)
        except ValueError as error:
            faults.add(BAD_BOX, f"{where}, box {number}: {row} ({error})")
            continue
        part = visible if min(visible_width, visible_height) > 0 else None
        yield LabelledBox(kind, full, part, is_ignored=is_ignored, is_crowd=kind in KINDS.crowds, line=number)


def write_citypersons(labels: LabelledSet) -> Files:
    """Yield a MAT file for each split; a visible box that is not stated is all zeros, and so is the instance."""
    assert_installed("scipy", needed_by="--as citypersons")
    from scipy.io import savemat

    for word, images in group_by_split(labels.images).items():
        cells = np.empty((1, len(images)), dtype=object)
        for index, image in enumerate(images):
            rows = [
                [
                    KINDS.codes[box.class_name],
                    *xyxy_to_xywh(box.box or _NO_BOX),
                    0,
                    *xyxy_to_xywh(box.visible or _NO_BOX),
                ]
                for box in image.boxes
            ]
            city, name = PurePosixPath(image.name).parts[-2:]
            bbs = np.array(rows, dtype=np.float64).reshape(-1, 10)
            cells[0, index] = {"cityname": city, "im_name": name, "bbs": bbs}
        stream = io.BytesIO()
        savemat(stream, {f"anno_{word}_aligned": cells}, do_compression=True)
        content = stream.getvalue()
        header = b"MATLAB 5.0 MAT-file".ljust(_DATE_END)  # without its date, which would make other bytes each time
        yield f"annotations/anno_{word}.mat", header + content[_DATE_END:]


_NO_BOX = (0.0, 0.0, 0.0, 0.0)
_DATE_END = 116
"""Bytes of text, with the date, at the beginning of a MAT file."""


CITYPERSONS = LabelFormat(
    read=read_citypersons,
    columns=("full", "visible", "label", "is_ignored", "visible_share"),
    fills_visible=True,
    write=write_citypersons,
    image_path=lambda image: city_path(image, "leftImg8bit"),
    holds=frozenset({"visible", "is_ignored", "is_crowd"}),
    fit=lambda box, _: fit_person(box, KINDS),
)
