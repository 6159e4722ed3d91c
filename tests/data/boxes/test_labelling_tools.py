"""Files of labelling tools from disk to samples: Pascal VOC, LabelMe and CVAT, in their dialects and damaged."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.store.boxes.labelled_images import LabelledImages
from sightline.store.boxes.tools.cvat import read_cvat
from sightline.store.boxes.tools.labelme import read_labelme
from sightline.store.boxes.tools.voc import read_voc
from sightline.store.prepared.prepared_set import verify
from tests.cases import run_each
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.boxes.tool_files import OBJECTS, SIZE, WHOLE_OBJECTS, WRITERS, write_cvat, write_labelme, write_voc
from tests.data.preparing import list_other_notes, prepare_set, refuse
from tests.limits import count_calls, limited
from tests.long.mutations import mutated


def all_of(name: str, root: Path) -> dict[str, list[tuple[str, list[float], bool]]]:
    """All boxes by the stem of the image."""
    images: LabelledImages = registry.data.get_entry(name).builder(
        split="train", root=str(root), test_share=0.0, validation_share=0.0
    )
    names = [Path(images.sample_name(index)).stem.removeprefix("1a2b3c4d-") for index in range(len(images))]
    records = {name: images.record(index) for index, name in enumerate(names)}
    return {
        stem: [
            (images.classes.names[label], box, ignored)
            for label, box, ignored in zip(
                each.label, each.boxes.round(9).tolist(), each.is_ignored.tolist(), strict=True
            )
        ]
        for stem, each in records.items()
    }


EXPECTED, EXPECTED_WHOLE = (
    {stem: [(label, [*map(float, box)], mark) for label, box, mark in rows] for stem, rows in objects.items()}
    for objects in (OBJECTS, WHOLE_OBJECTS)
)
UNMARKED = {stem: [(label, box, False) for label, box, _ in rows] for stem, rows in EXPECTED.items()}
EXPECTED_OF = {
    "label_studio": UNMARKED,
    "supervisely": UNMARKED,
    "tensorflow_csv": {stem: rows for stem, rows in UNMARKED.items() if rows},
    "voc": EXPECTED_WHOLE,
    "wider_face": {stem: [("face", *rest) for _, *rest in rows] for stem, rows in EXPECTED.items()},
}
"""What is read of formats that state less: no marks, no image without a box, no class."""
CLASSES_OF = {"cvat": ["car", "dog", "never"], "wider_face": ["face"]}
"""Classes of formats that declare others than those of their boxes."""


@pytest.mark.parametrize("name", WRITERS)
def test_boxes_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    """Unless an image is missing, or a photo is in no file, which is left out only if that is asked for."""
    source, expected = WRITERS[name](tmp_path / "in"), EXPECTED_OF.get(name, EXPECTED)
    manifest = prepare_set(name, source, tmp_path / "set")
    assert all_of(name, tmp_path / "set") == expected
    classes = CLASSES_OF.get(name, ["car", "dog"])
    assert manifest["classes"] == {"names": classes, "ids": [*range(1, len(classes) + 1)]}
    assert list_other_notes(manifest) == []
    labels = [path for path in source.rglob("*") if path.is_file() and path.suffix != ".png"]
    assert verify(tmp_path / "set") >= len(expected) + len(labels)
    assert registry.data.get_entry(name).builder.survey(source)["images"] == {"all": len(expected)}
    write_image(source / "more" / "d.png", pattern(*SIZE))
    refuse(name, source, r"1 images that no annotation file is about, first: more/d\.png; correct them")
    prepare_set(name, source, tmp_path / "most", faulty="leave_out")
    assert all_of(name, tmp_path / "most") == expected
    for image in source.rglob("*.png"):
        image.unlink()
    lost = rf"{len(expected)} images that are missing or damaged, first: .*there is no image '.*a\.png' below"
    refuse(name, source, lost)
    (tmp_path / "empty").mkdir()
    refuse(name, tmp_path / "empty", r"holds nothing; .* has .*: give the folder with them")


def test_voc_counts_pixels_from_1_unless_stated(tmp_path: Path) -> None:
    """A box about the first pixel alone is 1, 1, 1, 1; tools that count from 0 are noticed by their zeros."""
    [text] = [
        "<object><name>car</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>"
        "</object></annotation>"
    ]
    root = write_voc(tmp_path / "in")
    path = root / "Annotations" / "c.xml"
    path.write_text(path.read_text().replace("</annotation>", text).replace("c.png", "another.jpg"))
    assert read_voc(root).unread == {"pose": 3}
    manifest = prepare_set("voc", root, tmp_path / "set")
    assert all_of("voc", tmp_path / "set")["c"] == [("car", [0, 0, 1, 1], False)]
    renamed = "1 files state another name than that of the image called as they are"
    assert [note.partition(", first: ")[0] for note in list_other_notes(manifest)] == [renamed]
    root = write_voc(tmp_path / "tool", first_pixel=0)
    [note] = list_other_notes(prepare_set("voc", root, tmp_path / "shifted"))
    assert note.startswith("1 boxes begin at 0, and VOC counts pixels from 1; if the tool counts from 0, first_pixel=0")
    assert all_of("voc", tmp_path / "shifted")["a"][1] == ("dog", [-1, -1, 64, 48], True)
    manifest = prepare_set("voc", root, tmp_path / "stated", first_pixel=0)
    assert (all_of("voc", tmp_path / "stated"), list_other_notes(manifest)) == (EXPECTED_WHOLE, [])
    assert manifest["options"]["first_pixel"] == 0


BETWEEN: dict[str, tuple[list[tuple[float, float, float, float]], int | None, list[list[float]], str]] = {
    "globox": (
        [(33.77687406100193, 22.738632088209073, 51.394021485927276, 33.69371734494723), (2.5, 1, 9, 9), (4, 6, 8, 9)],
        None,
        [[33.77687406100193, 22.738632088209073, 51.394021485927276, 33.69371734494723], [2.5, 1, 9, 9], [4, 6, 8, 9]],
        "2 of 3 boxes have corners between pixels, which do not count pixels from 1, and are taken as they are; "
        "first_pixel=1 says otherwise; so are the others",
    ),
    "VOC 2012": (
        [(45.7, 6, 8.5e1, 9), (4, 6, 8, 9), (5, 6, 8, 9)],
        None,
        [[45.7, 6, 85, 9], [3, 5, 8, 9], [4, 5, 8, 9]],
        "1 boxes",
    ),
    "stated": ([(2.5, 1, 9, 9), (4, 6, 8, 9)], 1, [[1.5, 0, 9, 9], [3, 5, 8, 9]], ""),
    "floats": ([(4.0, 6.0, 8.0, 9.0)], None, [[3, 5, 8, 9]], ""),
}
"""Corners as a tool writes them, the option, the boxes, and the note."""


@pytest.mark.parametrize("kind", BETWEEN)
def test_corners_between_pixels_do_not_count_pixels_from_1(kind: str, tmp_path: Path) -> None:
    """globox writes them so: all 30 boxes of a set were shifted by a pixel without a word."""
    stated, first_pixel, boxes, told = BETWEEN[kind]
    rows = [("car", corners, False) for corners in stated]
    labels = read_voc(write_voc(tmp_path, {"a": rows}, first_pixel=0), first_pixel=first_pixel)  # type: ignore[arg-type]
    assert [list(box.box or ()) for box in labels.images[0].boxes] == boxes
    assert told in "".join(labels.notes)
    assert bool(told) == bool(labels.notes)


@run_each("left, count", [(4, 0), (40, 1)])
def test_polygons_of_voc_elsewhere_than_their_boxes_are_counted(left: int, count: int, tmp_path: Path) -> None:
    """Roboflow writes a polygon beside each box."""
    corners = [(left, 6), (left + 20, 6), (left + 20, 36)]
    points = "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(corners, start=1))
    root = write_voc(tmp_path / str(left), {"a": OBJECTS["a"][:1]})
    file = root / "Annotations/a.xml"
    file.write_text(file.read_text().replace("</bndbox>", f"</bndbox><polygon>{points}</polygon>"))
    notes = read_voc(root).notes
    assert len(notes) == count
    assert all("1 boxes and their polygons are of different places; the boxes are read" in note for note in notes)


def test_the_lists_of_voc_state_splits(tmp_path: Path) -> None:
    """Lists of classes are none of them; an image in no list is left out only if that is asked for."""
    root = write_voc(tmp_path / "in")
    write_image(root / "SegmentationClass" / "a.png", pattern(*SIZE))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "car_train.txt").write_text("a 1\nb -1\n")
    (lists / "trainval.txt").write_text("a\nb\n")
    (lists / "test.txt").write_text('"c.png"\n\nd\n')
    with pytest.raises(DataError) as refused:
        prepare_set("voc", root, tmp_path / "set")
    assert f"{lists / 'test.txt'}:3: 'd' has no file in Annotations" in str(refused.value)
    assert "1 images in none of the lists that state splits, first: JPEGImages/b.png" in str(refused.value)
    (lists / "test.txt").write_text("c\n")
    (lists / "val.txt").write_text("b\n")
    counts = prepare_set("voc", root, tmp_path / "set")["statistics"]["images"]
    assert counts == {"train": 1, "validation": 1, "test": 1}
    (lists / "val.txt").unlink()
    (lists / "train.txt").unlink()
    assert prepare_set("voc", root, tmp_path / "both")["statistics"]["images"] == {"train": 2, "test": 1}
    (lists / "test.txt").write_text("c\n\n")
    with pytest.raises(DataError, match=r"test\.txt: has 3 bytes, 2 when the set was prepared"):
        verify(tmp_path / "both")
    for name in ("test.txt", "trainval.txt"):
        (lists / name).unlink()
    (lists / "default.txt").write_text("a\n")
    (lists.with_name("Segmentation")).mkdir()
    (lists.with_name("Segmentation") / "train.txt").write_text("a\n")
    manifest = prepare_set("voc", root, tmp_path / "other")
    assert manifest["statistics"]["images"] == {"all": 3}
    assert "1 lists are not read; put them into ImageSets/Main beside Annotations" in " ".join(manifest["differences"])


def test_splits_are_those_of_folders_and_of_the_nearest_image(tmp_path: Path) -> None:
    """As Roboflow exports VOC: the same names in train, valid and test, each beside its file."""
    for split in ("train", "valid", "test"):
        write_voc(tmp_path / "once", {"a": OBJECTS["a"], split: OBJECTS["b"]})
        (tmp_path / "in" / split).mkdir(parents=True)
        for path in [*(tmp_path / "once").rglob("*.xml"), *(tmp_path / "once").rglob("*.png")]:
            path.rename(tmp_path / "in" / split / path.name)
    counts = prepare_set("voc", tmp_path / "in", tmp_path / "set")["statistics"]["images"]
    assert counts == {"train": 2, "validation": 2, "test": 2}
    (tmp_path / "in" / "train" / "a.png").unlink()
    several = r"train/a\.xml: states the image 'a\.png', which .* and .* may be; rename one"
    refuse("voc", tmp_path / "in", several)


def test_shapes_of_labelme_become_the_boxes_about_them(tmp_path: Path) -> None:
    def shape(kind: str | None, points: list[list[float]], **more: Any) -> dict[str, Any]:
        return {"label": "cell ", "points": points, "shape_type": kind, **more}

    shapes = [
        shape("polygon", [[2, 3], [9, 5], [4, 8]]),
        shape(None, [[1, 1], [5, 2], [3, 4]]),
        shape("circle", [[20, 20], [23, 24]]),
        shape("mask", [[30, 10], [39, 19]]),
        shape("rectangle", [[40, 4], [50, 4], [50, 9], [40, 9]], group_id=0, difficult=True),
        shape("polygon", [[44, 8], [60, 8], [44, 20]], group_id=0),
        shape("rectangle", [[0, 0], [1, 1]], group_id=0, label="other"),
        shape("point", [[5, 5]]),
        shape("linestrip", [[5, 5], [6, 7]]),
        shape("rectangle", [[5, 5], [5, 7]]),
        shape("rectangle", [[5, float("nan")], [5, 7]]),
        shape("rectangle", [[5, 5], [6, 7]], label=None),
        shape("rectangle", [["5", 5], [6, 7]]),
        shape("rectangle", [[5, 10**400], [6, 7]]),
        None,
    ]
    write_labelme(
        tmp_path / "in", {"a": []}, shapes=shapes, imageHeight=None, imageWidth=0, flags={"night": True, "day": False}
    )
    (tmp_path / "in" / "package.json").write_text("{}")
    refused = r"2 shapes that are no boxes, first: .*a\.json: shapes\[7\]: 'cell ' is a point; 6 imp"
    refuse("labelme", tmp_path / "in", refused)
    counts = {"polygons": 3, "circles": 1, "masks": 1}
    unread = read_labelme(tmp_path / "in").unread
    assert unread == {
        **{f"{kind}, but the boxes about them": n for kind, n in counts.items()},
        "flag night of an image": 1,
    }
    manifest = prepare_set("labelme", tmp_path / "in", tmp_path / "set", faulty="leave_out")
    boxes = [[2, 3, 9, 8], [1, 1, 5, 4], [15, 15, 25, 25], [30, 10, 40, 20], [40, 4, 60, 20]]
    expected = [("cell", [*map(float, box)], False) for box in boxes] + [("other", [0.0, 0.0, 1.0, 1.0], False)]
    assert all_of("labelme", tmp_path / "set") == {"a": expected}
    assert [note.partition(", first: ")[0] for note in manifest["differences"][:2]] == [
        "1 shapes are parts of an object by their group_id, in the box about all",
        "1 JSON files are not of LabelMe and are passed over",
    ]


def test_shapes_of_cvat_are_boxes_or_named(tmp_path: Path) -> None:
    more = (
        '<polygon label="car" points="1.0,2.0;5,2;3,7"/>\n<ellipse label="car" cx="20" cy="20" rx="5" ry="4"/>\n'
        '<mask label="car" group_id="4" rle="1,2" left="3" top="4" width="10" height="20"/>\n<tag label="car"/>\n'
        '<points label="car" points="1,1"/>\n<box label="car" xtl="1" ytl="1" xbr="9" ybr="9" rotation="30.5"/>\n'
        '<box label="car" xtl="1" ytl="1" xbr="nan" ybr="9"/>\n<polygon label="car" points="1"/>\n'
        '<cuboid label="car"/>\n'
    )
    root = write_cvat(tmp_path / "in", more=more)
    file = root / "annotations.xml"
    with pytest.raises(DataError) as refused:
        prepare_set("cvat", root, tmp_path / "set")
    for text in (
        f"2 shapes that are no boxes, first: {file}:15: points 'car'",
        f"2 impossible boxes, first: {file}:17: box 'car' (its sides are at 1, 1, nan, 9 (left, top, right, bottom)",
    ):
        assert text in str(refused.value)
    counts = {"polygons": 1, "ellipses": 1, "masks": 1}
    unread = {**{f"{kind}, but the boxes about them": n for kind, n in counts.items()}, "group_id": 1}
    assert read_cvat(root).unread == unread
    manifest = prepare_set("cvat", root, tmp_path / "set", faulty="leave_out")
    boxes = [box for _, box, _ in all_of("cvat", tmp_path / "set")["a"][2:]]
    assert boxes == [
        [1, 2, 5, 7],
        [15, 16, 25, 24],
        [3, 4, 13, 24],
        [-0.476670094, -0.476670094, 10.476670094, 10.476670094],
    ]
    assert manifest["differences"][0] == f"1 tags of whole images are not read, first: {file}:14: tag 'car'"


def test_subsets_of_cvat_are_splits_and_a_video_is_refused(tmp_path: Path) -> None:
    """Two subsets have an image of the same name, each in a folder that is called as the subset."""
    root = tmp_path / "in"
    for subset in ("Train", "Validation"):
        write_cvat(root / subset, {"a": OBJECTS["b"]}, subset=f' subset="{subset}"')
        (root / "images" / subset).mkdir(parents=True)
        (root / subset / "images" / "a.png").rename(root / "images" / subset / "a.png")
        (root / subset / "annotations.xml").rename(root / f"{subset}.xml")
    assert prepare_set("cvat", root, tmp_path / "set")["statistics"]["images"] == {"train": 1, "test": 1}
    assert prepare_set("cvat", root / "Train.xml", tmp_path / "one")["statistics"]["images"] == {"train": 1}
    (root / "Train.xml").write_text('<annotations>\n<track id="0" label="car"/></annotations>')
    video = r"Train\.xml:2: is a track of a video, .*export it as 'CVAT for images 1\.1'"
    refuse("cvat", root, video)


FAULTS = {
    "twice": ("voc", ("<filename>a", "<filename>b"), "states the image 'b.png', and is called as"),
    "no box": (
        "voc",
        ("bndbox", "robndbox"),
        "a.xml:1: object 'car' (its robndbox has xmin, ymin, xmax, ymax; cx, cy, w, h and angle are needed)",
    ),
    "no number": ("voc", ("<xmin>5<", "<xmin>four<"), "a.xml:1: object 'car' (xmin is 'four', a number is needed)"),
    "no name": ("voc", (" dog ", " "), "a.xml:3: object '' (it has no label)"),
    "no mark": ("voc", ("<difficult>1", "<difficult>x"), "difficult is 'x'; it is 0 or 1, false or true"),
    "upside down": (
        "voc",
        ("<xmin>5<", "<xmin>40<"),
        "object 'car' (its sides are at 39, 6, 24, 36 (left, top, right, bottom); width and",
    ),
    "another size": ("voc", ("64.0", "65.0"), "1 images of another size than stated"),
    "half a pixel": ("voc", ("64.0", "64.5"), "a.xml: the size 64.5 x 48 is not one of whole pixels"),
    "no size": ("voc", ("64.0", "wide"), "a.xml: width is 'wide', a number is needed"),
    "cut": ("voc", ("</annotation>", ""), "a.xml:5: does not read as XML (no element found); export it again"),
    "entities": (
        "voc",
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'),
        "a.xml:1: has a DOCTYPE, whose",
    ),
    "encoding": ("voc", ("<annotation>", '<?xml version="1.0" encoding="gbk"?><annotation>'), "in another encod"),
    "no JSON": ("labelme", ("}]", "}"), "a.json: does not read as JSON"),
    "no shapes": ("labelme", ("shapes", "figures"), "1 images that no annotation file is about"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named_with_file_and_line(kind: str, tmp_path: Path) -> None:
    name, change, text = FAULTS[kind]
    root = WRITERS[name](tmp_path / "in")
    [path] = [path for path in root.rglob("a.*") if path.suffix != ".png"]
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(DataError, match=re.escape(text)) as refused:
        prepare_set(name, root, tmp_path / "set")
    assert "\n" not in str(refused.value)
    prepare_set(name, root, tmp_path / "set", faulty="leave_out")
    assert all_of(name, tmp_path / "set")["b"] == EXPECTED_OF.get(name, EXPECTED)["b"]


def test_the_set_of_another_one_names_the_one_that_reads_the_files(tmp_path: Path) -> None:
    sources = {name: write(tmp_path / name) for name, write in WRITERS.items()}
    write_coco(write_image(tmp_path / "coco/a.png", pattern(6, 8)).with_name("all.json"), [(1, "a.png", 8, 6)], [])
    for name, source in [*sources.items(), ("coco", tmp_path / "coco")]:
        for other in ("coco", "yolo_txt", *sources):
            if other != name:
                with pytest.raises(DataError, match=rf"a file of {name}: 'sightline data prepare {name}' reads it$"):
                    registry.data.get_entry(other).builder.survey(source)


@pytest.mark.parametrize("name", ["coco", "yolo_txt", "via"])
def test_files_of_createml_are_named(name: str, tmp_path: Path) -> None:
    """As supervision 0.31 writes them."""
    box = {"label": "car", "coordinates": {"x": 4, "y": 3, "width": 2, "height": 2}}
    write_image(tmp_path / "a.png", pattern(6, 8))
    (tmp_path / "all.json").write_text(json.dumps([{"image": "a.png", "annotations": [box]}], indent=3))
    with pytest.raises(DataError, match=r"; all\.json is of CreateML, .* write it for 'data prepare coco'$"):
        registry.data.get_entry(name).builder.survey(tmp_path)


def write_listed_voc(root: Path) -> Path:
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    return write_voc(root)


_LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
_WORSE: Mapping[str, Callable[[str, random.Random], str]] = {
    "laughs": lambda text, _: text.replace(
        "<annotation", f'<!DOCTYPE a [<!ENTITY l0 "lol">{_LAUGHS}]><annotation', 1
    ).replace("car", "&l9;"),
    "external": lambda text, _: text.replace(
        "<annotation", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation', 1
    ).replace("car", "&x;"),
    "deep": lambda text, draw: text.replace(">", ">" + "<a>" * draw.choice((100, 300, 50_000)), 1),
    "lost tag": lambda text, draw: _without(text, draw),
    "NUL": lambda text, draw: text.replace("car", "c\0r", draw.choice((1, -1))),
    "encoding": lambda text, draw: (
        f'<?xml version="1.0" encoding="{draw.choice(("utf-16", "latin-1", "x", "idna"))}"?>'
        + text.partition("?>\n")[2]
    ),
    "entity": lambda text, _: text.replace("car", "&car;"),
}
"""Mutations of XML that bytes alone rarely make."""


def _without(text: str, draw: random.Random) -> str:
    tag = draw.choice([*re.finditer(r"<[^>]*>", text)])
    return text[: tag.start()] + text[tag.end() :]


def _mutate(sound: bytes, seed: str) -> bytes:
    draw = random.Random(seed)
    if draw.random() < 0.6 or not sound.lstrip().startswith(b"<"):
        return mutated(sound, draw)
    return _WORSE[draw.choice([*_WORSE])](sound.decode(), draw).encode()


MUTATED = [
    ("voc", write_listed_voc, "Annotations/a.xml"),
    ("voc", write_listed_voc, "ImageSets/Main/train.txt"),
    ("labelme", write_labelme, "labels/a.json"),
    ("cvat", write_cvat, "annotations.xml"),
    ("label_studio", WRITERS["label_studio"], "project-1-at-2026.json"),
    ("supervisely", WRITERS["supervisely"], "ds0/ann/a.png.json"),
    ("tensorflow_csv", WRITERS["tensorflow_csv"], "_annotations.csv"),
    ("via", WRITERS["via"], "via_project.json"),
    ("wider_face", WRITERS["wider_face"], "wider_face_split/wider_face_all_bbx_gt.txt"),
]


@pytest.mark.parametrize("num_mutations", [12, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize(("name", "write", "file"), MUTATED)
def test_damaged_files_are_read_or_refused_in_a_line(
    name: str, write: Callable[[Path], Path], file: str, num_mutations: int, tmp_path: Path
) -> None:
    """With at most ten times the calls that the sound file takes."""
    root = write(tmp_path / "in")
    sound, builder = (root / file).read_bytes(), registry.data.get_entry(name).builder
    messages = []
    whole = count_calls(lambda: builder.survey(root))

    def survey() -> None:
        try:
            assert builder.survey(root)["images"]
        except DataError as error:
            messages.append(str(error))

    for number in range(num_mutations):
        (root / file).write_bytes(_mutate(sound, f"{file} {number}"))
        with limited():
            assert count_calls(survey) < 10 * whole
    assert all(message.isprintable() for message in messages)
    assert len(messages) < num_mutations
