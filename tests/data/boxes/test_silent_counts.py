"""Damaged labels of every format: refused in a line, said, or read with as many boxes as an independent count finds."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sightline.contract import registry
from sightline.contract.errors import DataError
from tests.cases import run_each
from tests.data.boxes.test_convert import FORMATS, convert, write_street
from tests.data.boxes.tool_files import WRITERS
from tests.limits import limited
from tests.long.mutations import mutated

NUM_MUTATIONS = 400
DAILY = 2
"""Mutations of each format every day."""


def _count_people(document: Mapping[str, Any]) -> int:
    """Count the children of EuroCity's frames, and theirs, by their names in the published files."""
    children = document.get("children", [])
    own = document.get("identity") not in ("frame", "sequence", "seqlist")
    return own + sum(map(_count_people, children))


def _count_citypersons(content: bytes) -> int:
    from scipy.io import loadmat

    cells = [values for name, values in loadmat(io.BytesIO(content)).items() if not name.startswith("__")]
    return sum(len(cell["bbs"][0, 0]) for table in cells for cell in table.ravel())


def _count_faces(text: str) -> int:
    """Count rows of faces by the number above them; a line of zeros stands for none."""
    lines, at, count = text.splitlines(), 0, 0
    while at < len(lines):
        number = int(lines[at + 1])
        count += number
        at += 2 + max(number, 1)
    return count


def _count_tasks(text: str) -> int:
    results = [a for task in json.loads(text) for a in task["annotations"] if not a.get("was_cancelled")]
    return sum(len(annotation["result"]) for annotation in results)


def _count_lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


COUNTERS: Mapping[str, Callable[[str], int]] = {
    "coco": lambda text: len(json.loads(text)["annotations"]),
    "crowdhuman": lambda text: sum(len(json.loads(line)["gtboxes"]) for line in text.splitlines() if line.strip()),
    "cvat": lambda text: len(ElementTree.fromstring(text).findall("image/box")),
    "ecp": lambda text: _count_people(json.loads(text)),
    "kitti_boxes": _count_lines,
    "label_studio": _count_tasks,
    "labelme": lambda text: len(json.loads(text)["shapes"]),
    "supervisely": lambda text: len(json.loads(text)["objects"]),
    "tensorflow_csv": lambda text: len([row for row in csv.reader(io.StringIO(text)) if row]) - 1,
    "via": lambda text: sum(len(image["regions"]) for image in json.loads(text)["_via_img_metadata"].values()),
    "voc": lambda text: len(ElementTree.fromstring(text).findall("object")),
    "wider_face": _count_faces,
    "widerperson": lambda text: _count_lines(text) - 1,
    "yolo_txt": _count_lines,
}
"""Number of the entries of boxes in a file, by the standard library."""
FILES = {
    "coco": "instances_train.json",
    "citypersons": "anno_train.mat",
    "crowdhuman": "annotation_train.odgt",
    "cvat": "*.xml",
    "tensorflow_csv": "*.csv",
    "label_studio": "project*.json",
    "via": "*.json",
    "wider_face": "*.txt",
    "supervisely": "a.png.json",
    "labelme": "a.json",
}
"""File that is damaged, where it is not the first with `a` for its stem."""


def write_sound(name: str, folder: Path) -> Path:
    if name not in FORMATS:
        return WRITERS[name](folder / "in")
    convert("coco", write_street(folder / "street"), name, folder / "in")
    return folder / "in"


def change_entry(content: bytes, draw: random.Random) -> bytes:
    """Leave out, repeat, exchange or cut one of the pieces of a text: lines, or what lies between brackets."""
    text = content.decode("latin-1")
    separator = draw.choice([each for each in ("\n", "}, {", "},", "<object>", "<box ", ",") if each in text] or [" "])
    pieces = text.split(separator)
    place, other = (draw.randrange(len(pieces)) for _ in range(2))
    match draw.choice(("leave out", "repeat", "exchange", "cut")):
        case "leave out":
            del pieces[place]
        case "repeat":
            pieces.insert(other, pieces[place])
        case "exchange":
            pieces[place], pieces[other] = pieces[other], pieces[place]
        case "cut":
            pieces[place] = pieces[place][: draw.randrange(len(pieces[place]) + 1)]
    return separator.join(pieces).encode("latin-1")


def count_said(name: str, root: Path) -> tuple[int, int, Sequence[str]]:
    """Return the number of images and boxes, and all that is said of the set: faults, notes, what is not read."""
    labels = registry.data.get_entry(name).builder.label_format.read(root)
    said = labels.faults.raise_or_note("leave_out", root=labels.root)
    said += [*labels.notes, *(f"{what}: {count}" for what, count in sorted(labels.unread.items()) if count)]
    return len(labels.images), sum(len(image.boxes) for image in labels.images), said


def count_entries(name: str, content: bytes) -> int | None:
    """Count the entries of a file; None if it does not read as one of its format."""
    try:
        return _count_citypersons(content) if name == "citypersons" else COUNTERS[name](content.decode())
    except Exception:  # noqa: BLE001  whatever a parser of damaged bytes raises
        return None


def find_silent(name: str, folder: Path, num_mutations: int) -> list[str]:
    """Describe the mutations after which another number of boxes was read, and nothing said."""
    root = write_sound(name, folder)
    [file, *_] = sorted(root.rglob(FILES.get(name, "a.*")), key=lambda path: (path.is_symlink(), path))
    sound = file.read_bytes()
    images, boxes, said_before = count_said(name, root)
    entries = count_entries(name, sound)
    assert entries is not None
    silent = []
    for number in range(num_mutations):
        draw = random.Random(f"{name} {number}")
        changed = (mutated if number % 2 else change_entry)(sound, draw)
        file.write_bytes(changed)
        with limited():
            try:
                found_images, found, said = count_said(name, root)
            except DataError as error:
                silent += [] if str(error).isprintable() else [f"{name} {number}: {error!a} is not one line"]
                continue
        now = count_entries(name, changed)
        expected = boxes if now is None else boxes + now - entries
        if (found_images, found) != (images, expected) and list(said) == list(said_before):
            silent.append(f"{name} {number}: {found} boxes in {found_images} images; {now} entries of {entries}")
    return silent


ALL = sorted({*FORMATS, *WRITERS})


@run_each("name", ALL)
def test_no_damage_changes_a_count_in_silence(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert not find_silent(name, tmp_path_factory.mktemp(name), DAILY)


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_no_damage_of_very_many_changes_a_count_in_silence(name: str, tmp_path: Path) -> None:
    assert not find_silent(name, tmp_path, NUM_MUTATIONS)
