"""Label files of 3D boxes: golden texts, files as tools write them, messy forms, refusals, and mutations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.contract.errors import DataError
from sightline.store.boxes3d.conversions import BoxReading
from sightline.store.boxes3d.count_test import CountedFrame, choose_reading
from sightline.store.boxes3d.label_formats import find_format, read_labels
from sightline.store.boxes3d.label_rows import LabelFile
from tests.golden_parity import Golden, load_golden
from tests.marks import long_but

STATED = {
    "bottom.txt": BoxReading(centre="bottom"),
    "old_wlh_cw.txt": BoxReading(centre="bottom", size="wlh", sense="cw", zero="-y"),
}
"""Golden texts whose reading a user states; the count test finds it, too."""
BLANKS = {"Cyclist", "Truck"}


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return load_golden(shared, "own_formats", area="boxes3d")


@pytest.fixture(scope="module")
def texts(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for name, text in golden.info["files"].items():
        (folder / name).write_bytes(text.encode())
    return folder


def read_golden(texts: Path, name: str) -> LabelFile:
    return read_labels(texts / name, calibration=texts / "kitti_calib.txt" if "kitti" in name else None)


NAMES = (
    *("plain.txt", "plain_messy.txt", "plain.csv", "degrees.txt", "bottom.txt", "old_wlh_cw.txt", "sustech.json"),
    *("labelcloud_abs.json", "labelcloud_rel.json", "labelcloud_vertices.json", "kitti_label.txt"),
    *("labelcloud_kitti.txt", "labelcloud_kitti_untransformed.txt"),
)


@pytest.mark.parametrize("name", NAMES)
def test_golden_texts_are_read_by_the_points(texts: Path, golden: Golden, name: str) -> None:
    """The points of the golden count test lead to the reading of each of the 13 texts, none stated by a user."""
    labels, expected = read_golden(texts, name), golden.arrays[f"{name}/boxes"]
    points = golden.arrays["count_test/in_points"] + [expected[0, 0] - 17.5088798, 0, 0]
    rows = {form: each.rows(labels.frames[""]) for form, each in labels.forms.items()}
    choice = choose_reading([CountedFrame(points, rows)], labels.forms, {})
    assert [box.name for box in labels.frames[""]] == golden.info["names"][name]
    boxes = choice.taken.reading.to_boxes(rows[choice.taken.form])
    assert np.abs(boxes - expected).max() < 2e-6
    assert choice.better is None
    if name in STATED:
        assert choice.taken.reading == STATED[name]
    if name == "labelcloud_kitti.txt":
        assert choice.taken.form == "labelcloud_kitti"


def test_the_fourteenth_text_has_no_boxes(texts: Path) -> None:
    assert find_format(texts / "kitti_calib.txt") == ""


TRACKLETS = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<!DOCTYPE boost_serialization>
<boost_serialization version="9" signature="serialization::archive">
<tracklets version="0" tracking_level="0" class_id="0">
  <count>1</count>
  <item_version>1</item_version>
  <item version="1" tracking_level="0" class_id="1">
    <objectType>Car</objectType>
    <h>1.8</h>
    <w>4.2</w>
    <l>1.5</l>
    <first_frame>1</first_frame>
    <poses version="0" tracking_level="0" class_id="2">
      <count>2</count>
      <item_version>0</item_version>
      <item version="1" tracking_level="0" class_id="3">
        <tx>9.5</tx><ty>-2.0</ty><tz>0.25</tz><rx>0.0</rx><ry>0.0</ry><rz>0.5</rz>
        <state>2</state><occlusion>0</occlusion><occlusion_kf>0</occlusion_kf><truncation>0</truncation>
        <amt_occlusion>-1</amt_occlusion><amt_border_l>-1</amt_border_l><amt_border_r>-1</amt_border_r>
        <amt_occlusion_kf>-1</amt_occlusion_kf><amt_border_kf>-1</amt_border_kf>
      </item>
      <item>
        <tx>9.5</tx><ty>-2.0</ty><tz>0.25</tz><rx>0.0</rx><ry>0.0</ry><rz>0.5</rz>
        <state>2</state><occlusion>-1</occlusion><occlusion_kf>1</occlusion_kf><truncation>2</truncation>
        <amt_occlusion>-1</amt_occlusion><amt_border_l>-1</amt_border_l><amt_border_r>-1</amt_border_r>
        <amt_occlusion_kf>-1</amt_occlusion_kf><amt_border_kf>-1</amt_border_kf>
      </item>
    </poses>
    <finished>1</finished>
  </item>
</tracklets>
</boost_serialization>
"""
"""As CVAT exports a car of 4.2 by 1.8 by 1.5 m in frame 1, which is outside in frame 2: Datumaro's field names."""
SUPERVISELY: dict[str, Any] = {
    "description": "",
    "key": "a" * 32,
    "tags": [],
    "objects": [
        {
            "key": "b" * 32,
            "classTitle": "Car",
            "tags": [],
            "objects": [],
            "figures": [],
            "labelerLogin": "",
            "createdAt": "2026-01-01 00:00:00.000000",
            "updatedAt": "2026-01-01 00:00:00.000000",
        }
    ],
    "figures": [
        {
            "key": "c" * 32,
            "objectKey": "b" * 32,
            "geometryType": "cuboid_3d",
            "geometry": {
                "position": {"x": 9.5, "y": -2.0, "z": 0.25},
                "rotation": {"x": 0.0, "y": 0.0, "z": 0.5},
                "dimensions": {"x": 4.2, "y": 1.8, "z": 1.5},
            },
            "labelerLogin": "",
            "createdAt": "2026-01-01 00:00:00.000000",
            "updatedAt": "2026-01-01 00:00:00.000000",
        }
    ],
}
BOX = [9.5, -2.0, 0.25, 4.2, 1.8, 1.5, 0.5]


def first_boxes(labels: LabelFile, key: str = "") -> list[list[float]]:
    form = next(iter(labels.forms.values()))
    return form.reading.to_boxes(form.rows(labels.frames[key])).tolist()


def test_cvat_tracklets(tmp_path: Path) -> None:
    path = tmp_path / "tracklet_labels.xml"
    path.write_text(TRACKLETS)
    assert find_format(path) == "tracklets"
    labels = read_labels(path)
    assert {key: len(boxes) for key, boxes in labels.frames.items()} == {"#1": 1}
    assert labels.notes == ("1 poses are outside of their frame and are left out",)
    assert first_boxes(labels, "#1") == [BOX]
    (tmp_path / "frame_list.txt").write_text("0 first\n1 second\n2 third\n")
    named = read_labels(path).frames
    assert {key: len(boxes) for key, boxes in named.items()} == {"first": 0, "second": 1, "third": 0}
    # KITTI's own order of attributes: bottoms, and both poses are boxes
    path.write_text(TRACKLETS.replace('version="9" signature="s', 'signature="s').replace("<h>1.8", "<h>1.5"))
    kitti = read_labels(path)
    assert list(kitti.forms) == ["tracklets_kitti", "tracklets_cvat"]
    assert [len(boxes) for boxes in kitti.frames.values()] == [0, 1, 1]
    assert first_boxes(kitti, "second") == [[9.5, -2.0, 1.0, 1.5, 4.2, 1.5, 0.5]]


def test_supervisely(tmp_path: Path) -> None:
    path = tmp_path / "a.pcd.json"
    other = {**SUPERVISELY["figures"][0], "geometryType": "point_3d", "key": "d" * 32}
    path.write_text(json.dumps({**SUPERVISELY, "figures": [*SUPERVISELY["figures"], other]}))
    labels = read_labels(path)
    assert (labels.format_name, first_boxes(labels)) == ("supervisely", [BOX])
    assert labels.notes == ("1 figures are no cuboids and are left out",)
    assert labels.frames[""][0].track == "b" * 32


ROW = "9.5 -2 0.25 4.2 1.8 1.5 0.5"
READ: dict[str, tuple[str, list[str]]] = {
    "blanks and tabs": (f"\n# boxes\n{ROW.replace(' ', chr(9))}   big  car \r\n", ["big car"]),
    "commas": (ROW.replace(" ", ", ") + ", big car,\n", ["big car"]),
    "names": ("Class,X,Y,Z,L,W,H,Heading,Track_ID\nCar," + ROW.replace(" ", ",") + ",7\n", ["Car"]),
    "names and blanks": (f"x y z dx dy dz yaw class\n{ROW} traffic cone\n", ["traffic cone"]),
    "a number for a class": (f"{ROW} 3\n", ["3"]),
    "a mark": ("\ufeff" + f"{ROW} Car\n", ["Car"]),
    "nothing": ("", []),
}


@pytest.mark.parametrize("name", READ)
def test_messy_texts(tmp_path: Path, name: str) -> None:
    text, names = READ[name]
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    labels = read_labels(path, format_name="txt")
    assert [box.name for box in labels.frames[""]] == names
    assert first_boxes(labels) == [BOX] * len(names)


def make_sustech(**changes: Any) -> str:
    axes = ("x", "y", "z")
    psr = {
        "position": dict(zip(axes, BOX[:3], strict=True)),
        "scale": dict(zip(axes, BOX[3:6], strict=True)),
        "rotation": {"x": 0.05, "y": -0.01, "z": 0.5 + 2 * math.pi},
    }
    return json.dumps([{"psr": {**psr, **changes}, "obj_type": "Car", "obj_id": "4"}])


def test_tilted_boxes_of_sustechpoints(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(make_sustech())
    box = read_labels(tmp_path / "a.json").frames[""][0]
    assert (box.name, box.track, box.tilt) == ("Car", "4", 0.05)
    assert np.abs(np.array(first_boxes(read_labels(tmp_path / "a.json"))) - BOX).max() < 1e-12


def labelcloud(*angles: float) -> str:
    objects = [
        {
            "name": "Car",
            "centroid": {"x": 9.5, "y": -2.0, "z": 0.25},
            "dimensions": {"length": 4.2, "width": 1.8, "height": 1.5},
            "rotations": {"x": 0, "y": 0, "z": angle},
        }
        for angle in angles
    ]
    return json.dumps({"folder": "p", "filename": "a.pcd", "path": "p/a.pcd", "objects": objects})


@pytest.mark.parametrize(
    ("angles", "forms"),
    [
        ((344.2,), ["labelcloud_absolute"]),
        ((1.0, 2.0, 3.0), ["labelcloud_absolute"]),
        ((-0.2, 3.0), ["labelcloud_relative"]),
        ((0.2, 3.0), ["labelcloud_relative", "labelcloud_absolute"]),
        ((), ["labelcloud_relative", "labelcloud_absolute"]),
    ],
)
def test_the_two_units_of_labelcloud(tmp_path: Path, angles: tuple[float, ...], forms: list[str]) -> None:
    (tmp_path / "a.json").write_text(labelcloud(*angles))
    assert list(read_labels(tmp_path / "a.json").forms) == forms


VERTICES = json.loads(labelcloud(0.0)) | {"objects": [{"name": "Car", "vertices": [[0, 0, 0]] * 8}]}
KITTI = "Car 0 0 0 0 0 9 9 1.5 1.8 4.2 1 2 9.5 0.5"
REFUSED: dict[str, tuple[str, str, str]] = {
    "too few numbers": ("a.txt", "1 2 3 4 5 6 Car\n", "a.txt:1: .* correct the line"),
    "a class first": ("a.txt", f"Car {ROW}\n", "a.txt:1: 'Car' is no finite number"),
    "a score without a name": ("a.txt", f"{ROW} Car 0.9\n", "a.txt:1: has 9 columns, .* name the columns"),
    "not a number": ("a.txt", ROW.replace("4.2", "nan") + " Car\n", "a.txt:1: 'nan' is no finite number"),
    "no extent": ("a.txt", f"\n{ROW.replace('4.2', '0')} Car\n", "a.txt:2: its sizes are 0, 1.8, 1.5 m"),
    "millimetres": ("a.txt", ROW.replace("4.2", "4200") + " Car\n", "a.txt:1: its sizes are 4200"),
    "no class": ("a.csv", ROW.replace(" ", ",") + ",\n", "a.csv:1: "),
    "a short row below names": ("a.csv", f"x,y,z,dx,dy,dz,yaw,class\n{ROW.replace(' ', ',')}\n", "a.csv:2: has 7"),
    "two bytes a character": ("a.txt", f"{ROW} Car\n", "UTF-16"),
    "a truth for a number": ("a.json", make_sustech(scale={"x": True, "y": 1, "z": 1}), r"\[0\].psr.scale.x is True"),
    "no rotation": ("a.json", make_sustech(rotation=None), r"\[0\].psr.rotation is None"),
    "a huge number": ("a.json", make_sustech(scale={"x": 10**400, "y": 1, "z": 1}), "which is no finite number"),
    "no class in JSON": ("a.json", make_sustech().replace('"Car"', "null"), "class is None"),
    "one point for corners": ("a.json", json.dumps(VERTICES), "its sizes are 0|not the corners"),
    "corners and centres": (
        "a.json",
        json.dumps(VERTICES | {"objects": [*json.loads(labelcloud(0.0))["objects"], *VERTICES["objects"]]}),
        "a.json: has objects with vertices and others without",
    ),
    "an unknown object": ("a.json", json.dumps({**SUPERVISELY, "objects": []}), "is none of the objects"),
    "JSON of others": ("a.json", '{"a": 1}', "is no file of 3D boxes that is read"),
    "broken JSON": ("a.json", "[{", "does not read as JSON"),
    "occlusion": ("a.txt", KITTI.replace("0 0 0 0", "0 0.5 0 0", 1) + "\n", "a.txt:1: occluded is 0.5"),
    "fewer columns below": ("a.txt", f"{KITTI}\n{KITTI[:-4]}\n", "a.txt:2: has 14 columns"),
    "no first frame": ("a.xml", TRACKLETS.replace("<first_frame>1<", "<first_frame>-1<"), "a.xml:7: .* first_frame"),
    "no length": ("a.xml", TRACKLETS.replace("<l>1.5</l>", ""), "a.xml:7: has no <l>"),
    "an entity": (
        "a.xml",
        TRACKLETS.replace("boost_serialization>", 'b [<!ENTITY a "b">]>', 1),
        "a.xml:2: has a DOCTYPE",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files_are_named_with_the_place(tmp_path: Path, name: str) -> None:
    file, text, message = REFUSED[name]
    path = tmp_path / file
    path.write_bytes(text.encode("utf-16" if name == "two bytes a character" else "utf-8"))
    format_name = None if path.suffix in (".json", ".xml") or name in ("occlusion", "fewer columns below") else "txt"
    with pytest.raises(DataError, match=message) as caught:
        read_labels(path, format_name=format_name)
    assert "\n" not in str(caught.value)


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Change, cut out, repeat or exchange some bytes."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        place, length = int(random.integers(0, len(data))), int(random.integers(1, 12))
        kind = random.integers(0, 4)
        if kind == 0:
            data[place] = int(random.integers(0, 256))
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        else:
            other = int(random.integers(0, len(data)))
            data[place], data[other] = data[other], data[place]
        data = data or bytearray(b" ")
    return bytes(data)


def try_mutations(texts: Path, folder: Path, count: int, seed: int) -> None:
    """No traceback, and no box invented: at most as many boxes as the damaged file has rows or entries."""
    random = np.random.default_rng(seed)
    names = [*NAMES, "tracklets.xml", "figures.json"]
    contents = {name: (texts / name).read_bytes() for name in NAMES}
    contents |= {"tracklets.xml": TRACKLETS.encode(), "figures.json": json.dumps(SUPERVISELY).encode()}
    most = {**dict.fromkeys(NAMES, 7), "tracklets.xml": 2, "figures.json": 1}
    num_refused = 0
    for index in range(count):
        name = names[index % len(names)]
        path = folder / name
        path.write_bytes(mutate(contents[name], random))
        try:
            labels = read_labels(path)
        except DataError as error:
            num_refused += str(error).count("\n") == 0
            continue
        boxes = [box for each in labels.frames.values() for box in each]
        lines = path.read_bytes().count(b"\n") + path.read_bytes().count(b"\r") + 1
        assert len(boxes) <= (lines if path.suffix in (".txt", ".csv") else most[name] + 1), name
        for box in boxes:
            assert np.isfinite(box.numbers).all()
            assert min(box.numbers[3:6]) > 0
        for form in labels.forms.values():
            for each in labels.frames.values():
                assert np.isfinite(form.reading.to_boxes(form.rows(each))).all()
    assert num_refused >= count // 4


@pytest.mark.parametrize("count", long_but((60,), (60, 400)))
def test_mutated_files_are_refused_or_read(texts: Path, tmp_path: Path, count: int) -> None:
    try_mutations(texts, tmp_path, count, seed=count)
