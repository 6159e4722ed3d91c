"""WiderPerson: images of people in many places, with boxes in a text file beside each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sightline.contract.errors import DataError
from sightline.store.boxes.image_listing import guess_split
from sightline.store.boxes.label_table import (
    AnnotationFaults,
    Files,
    LabelFormat,
    LabelledBox,
    LabelledImage,
    LabelledSet,
)
from sightline.store.boxes.label_writing import group_by_split, plain, round_box
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
from sightline.store.files.input_files import expand_home, get_again, read_file
from sightline.store.files.text_tables import parse_count

KINDS = PeopleKinds(
    {"pedestrian": 1, "rider": 2, "partially_visible": 3, "ignored_region": 4, "crowd": 5},
    ignored=frozenset({"ignored_region", "crowd"}),
    crowds=frozenset({"crowd"}),
)
_FAULTY = "011765"
"""An image whose published annotation does not fit it."""
_MAX_NAME_LENGTH = 250
"""Longest name of an image: a suffix of four letters is added, and file systems allow 255."""


def read_widerperson(source: Path) -> LabelledSet:
    """Read WiderPerson: the images in train.txt, val.txt and test.txt, and Annotations/NAME.jpg.txt.

    Images of test.txt without annotations are left out; the published test split has none. An annotation file that is
    damaged is a fault. Raises DataError for a folder without such lists.
    """
    root = expand_home(source).resolve()
    lists = [path for name in ("train", "val", "test") if (path := root / f"{name}.txt").is_file()]
    if not lists or not (root / "Annotations").is_dir():
        raise layout_error(root, "train.txt and val.txt with Annotations/ and Images/", "WiderPerson")
    images: list[LabelledImage] = []
    faults, notes, num_unlabelled = AnnotationFaults(), list[str](), 0
    for file in lists:
        lines = read_file(file).decode("utf-8-sig", "replace").split("\n")
        names = [line.strip() for line in lines if line.strip()]
        for number, name in enumerate(names, start=1):
            image = f"{name.removesuffix('.jpg')}.jpg"
            if len(image) > _MAX_NAME_LENGTH or "/" in image or "\0" in image:
                raise get_again(f"{file}: entry {number}: '{name[:40]}' is not the name of an image")
            labels = root / "Annotations" / f"{image}.txt"
            if name.removesuffix(".jpg") == _FAULTY:
                notes.append(f"{labels} is left out: its published annotation does not fit the image")
            elif file.stem == "test" and not labels.is_file():
                num_unlabelled += 1
            else:
                try:
                    boxes = [*_read_people(labels, faults)]
                except DataError as error:
                    faults.add(BAD_FILE, str(error))
                    continue
                split, path = guess_split(Path(file.name)), root / "Images" / image
                images.append(LabelledImage(split, f"Images/{image}", path, boxes, number, files=(file, labels)))
    if num_unlabelled:
        notes.append(f"{num_unlabelled} images of test.txt have no annotations and are left out")
    return LabelledSet(root, "widerperson", KINDS.classes, images, faults, notes)


def _read_people(path: Path, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    lines = read_file(path).decode("utf-8-sig", "replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or parse_count(lines[0].strip()) != len(lines) - 1:
        count = lines[0].strip()[:40] if lines else ""
        raise get_again(f"{path}:1: states '{count}' boxes, {max(len(lines) - 1, 0)} follow")
    for number, line in enumerate(lines[1:], start=2):
        try:
            code, left, top, right, bottom = map(parse_finite, line.split())
            kind = KINDS.name_of_code(code)
            if kind is None:
                raise ValueError("classes are 1 to 5")
            box = to_corners((left, top, right - left, bottom - top), is_ignored=kind in KINDS.ignored)
        except (OverflowError, ValueError) as error:
            faults.add(BAD_BOX, f"{path}:{number}: '{line.strip()[:60]}' ({error})")
            continue
        is_ignored, is_crowd = kind in KINDS.ignored, kind in KINDS.crowds
        yield LabelledBox(kind, box, is_ignored=is_ignored, is_crowd=is_crowd, line=number)


def write_widerperson(labels: LabelledSet) -> Files:
    """Yield a text file for each image, and the list of the names of each split."""
    for image in labels.images:
        rows = [
            " ".join(map(str, (KINDS.codes[box.class_name], *(plain(number) for number in box.box or ()))))
            for box in image.boxes
        ]
        yield (
            f"Annotations/{PurePosixPath(image.name).name}.txt",
            "".join(f"{row}\n" for row in [len(rows), *rows]).encode(),
        )
    for word, images in group_by_split(labels.images).items():
        yield f"{word}.txt", "".join(f"{PurePosixPath(image.name).stem}\n" for image in images).encode()


def _fit(box: LabelledBox, size_px: tuple[int, int]) -> LabelledBox | str:
    """Round a person to whole pixels, at least one wide and high."""
    person = fit_person(box, KINDS)
    if isinstance(person, str) or person.box is None:
        return person
    return person._replace(box=round_box(person.box, is_ignored=person.is_ignored))


WIDERPERSON = LabelFormat(
    read=read_widerperson,
    columns=COLUMNS,
    write=write_widerperson,
    image_path=lambda image: f"Images/{PurePosixPath(image.name).stem}.jpg",
    holds=frozenset({"is_ignored", "is_crowd"}),
    fit=_fit,
    rounds="has whole pixels",
)
