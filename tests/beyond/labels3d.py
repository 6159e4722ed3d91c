"""B3.5 to B3.10: 3D boxes of any tool, how they are meant, KITTI's objects, conversions, remarks, and own folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from sightline.contract.types import SampleKey
from tests.command import document_of, succeed
from tests.mission.rows import row
from tests.mission.trial import Edit

COLUMNS = "columns=[x, y, z, intensity]"
CAR = (10.0, 2.0, -1.0, 4.0, 2.0, 1.5, 0.5)
"""A car 4 m long: its centre, sizes and yaw."""
TRACKLETS = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<!DOCTYPE boost_serialization>
<boost_serialization version="9" signature="serialization::archive">
<tracklets version="0" tracking_level="0" class_id="0"><count>1</count><item_version>1</item_version>
<item version="1" tracking_level="0" class_id="1"><objectType>Car</objectType><h>2.0</h><w>4.0</w><l>1.5</l>
<first_frame>0</first_frame><poses version="0" tracking_level="0" class_id="2"><count>1</count>
<item_version>0</item_version><item version="1" tracking_level="0" class_id="3"><tx>10.0</tx><ty>2.0</ty><tz>-1.0</tz>
<rx>0.0</rx><ry>0.0</ry><rz>0.5</rz><state>2</state><occlusion>0</occlusion><truncation>0</truncation></item></poses>
<finished>1</finished></item></tracklets></boost_serialization>
"""
_XYZ = ("x", "y", "z")


def _point(*values: float, keys: tuple[str, ...] = _XYZ) -> dict[str, float]:
    return dict(zip(keys, values, strict=True))


def fill_box(box: tuple[float, ...], count: int = 400) -> np.ndarray:
    """Points (N, 4) on a grid that fills a box but for a hundredth of its sides, in its frame of yaw."""
    side = np.linspace(-0.495, 0.495, 8)
    local = np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3)[:count] * np.array(box[3:6])
    cosine, sine = math.cos(box[6]), math.sin(box[6])
    turned = np.column_stack([cosine * local[:, 0] - sine * local[:, 1], sine * local[:, 0] + cosine * local[:, 1]])
    return np.column_stack([turned + np.array(box[:2]), local[:, 2] + box[2], np.full(len(local), 0.5)])


def ground(height_m: float) -> np.ndarray:
    """Points (N, 4) of a level ground around the sensor, a metre apart."""
    places = np.stack(np.meshgrid(np.arange(-30.0, 31), np.arange(-30.0, 31)), axis=-1).reshape(-1, 2)
    return np.column_stack([places, np.full(len(places), height_m), np.full(len(places), 0.1)])


def write_frame(folder: Path, name: str, text: str, points: np.ndarray, *, label: str = "") -> None:
    for path in (folder / "points", (folder / (label or f"labels/{name}.txt")).parent):
        path.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"points/{name}.npy", points.astype(np.float32))
    (folder / (label or f"labels/{name}.txt")).write_text(text)


def format_row(box: tuple[float, ...], name: str = "Car") -> str:
    return f"{' '.join(f'{number:.9g}' for number in box)} {name}\n"


def survey(folder: Path, *options: str) -> dict[str, object]:
    document: dict[str, object] = document_of("data", "info", "boxes3d_folder", "--from", folder, COLUMNS, *options)
    return document


def read_sample(source: Path, target: Path, *options: str) -> dict[str, object]:
    """Prepare a folder, and read its first training sample."""
    from sightline.areas.boxes3d.sets.boxes3d_folder import Boxes3dFolder

    succeed("data", "prepare", "boxes3d_folder", "--from", source, "--to", target, COLUMNS, *options)
    data = Boxes3dFolder(split="train", root=str(target), test_share=0.0, validation_share=0.0)
    return {name: value.tolist() for name, value in data[SampleKey(0, 0, 0)].items()}


@row(
    "B3.5",
    "Read 3D boxes of SUSTechPOINTS, labelCloud, Supervisely, CVAT 3D and text beside clouds of any format",
    "`sightline data prepare boxes3d_folder --from FOLDER --to DIR`",
)
def boxes_of_any_tool(folder: Path) -> None:
    x, y, z, length, width, height, yaw = CAR
    psr = {"position": _point(x, y, z), "scale": _point(length, width, height), "rotation": _point(0, 0, yaw)}
    centroid = {
        "name": "Car",
        "centroid": _point(x, y, z),
        "dimensions": _point(length, width, height, keys=("length", "width", "height")),
        "rotations": _point(0, 0, math.degrees(yaw)),
    }
    geometry = {"position": _point(x, y, z), "rotation": _point(0, 0, yaw), "dimensions": _point(length, width, height)}
    figure = {"key": "f", "objectKey": "o", "geometryType": "cuboid_3d", "geometry": geometry}
    texts = {
        "labels/a.json": json.dumps([{"psr": psr, "obj_type": "Car", "obj_id": "1"}]),
        "label/a.json": json.dumps({"folder": "p", "filename": "a.pcd", "path": "p/a.pcd", "objects": [centroid]}),
        "ann/a.npy.json": json.dumps({"objects": [{"key": "o", "classTitle": "Car"}], "figures": [figure]}),
        "tracklet_labels.xml": TRACKLETS,
        "labels/a.txt": "# x y z dx dy dz yaw class\n" + format_row(CAR).replace(" ", "\t"),
    }
    for number, (label, text) in enumerate(texts.items()):
        source = folder / str(number)
        write_frame(source, "0" if "xml" in label else "a", text, ground(-1.75), label=label)
        sample = read_sample(source, folder / f"prepared{number}")
        assert np.abs(np.array(sample["boxes"]) - [CAR]).max() < 1e-6, label
        assert sample["label"] == [0]


@row(
    "B3.6",
    "Be told which frame, centre, order of sizes, unit and sense of yaw was taken of 3D boxes, and why",
    "`sightline data info boxes3d_folder --from FOLDER`",
)
def the_count_test(folder: Path) -> None:
    """Boxes are stated by their bottoms, width first, clockwise from the right: the points tell."""
    for frame in range(3):
        box = (10.0, 2.0 - 3 * frame, -1.0, 4.0, 1.6, 1.5, 0.3 + 0.5 * frame)
        x, y, z, length, width, height, yaw = box
        text = format_row((x, y, z - height / 2, width, length, height, -yaw - math.pi / 2))
        write_frame(folder / "own", f"{frame}", text, fill_box(box))
    reading = str(survey(folder / "own")["reading"])
    expected = "box_centre=bottom box_size=wlh yaw_unit=rad yaw_sense=cw yaw_zero=-y (by the count test): 1200 points"
    assert reading.startswith(expected), reading
    assert "front and back, half a turn, cannot be told by points" in reading
    stated = survey(folder / "own", "box_centre=centre")
    assert str(stated["reading"]).startswith("box_centre=centre box_size=wlh")
    (told,) = [line for line in list(stated["differences"]) if line.startswith("T1")]  # type: ignore[call-overload]
    assert "box_centre=bottom puts 1200 inside" in told


@row(
    "B3.7",
    "Train on KITTI's 3D boxes in the frame of the scanner, with what its image does not see left out",
    "`sightline data prepare kitti_boxes3d --from KITTI --to DIR`",
)
def kitti_objects(folder: Path) -> None:
    """The camera stands in the scanner: right is -y, down is -z. A car 12 m ahead and 3 m to the right heads ahead."""
    from sightline.areas.boxes3d.sets.kitti_boxes3d import KittiBoxes3d

    training = folder / "kitti/training"
    for name in ("velodyne", "label_2", "calib"):
        (training / name).mkdir(parents=True)
    cloud = np.concatenate([ground(-1.85), fill_box((12.0, -3.0, -1.0, 4.0, 1.8, 1.6, 0.0))])
    projection = "300 0 300 0 0 300 100 0 0 0 1 0"
    for frame in range(2):
        cloud.astype("<f4").tofile(training / f"velodyne/{frame:06d}.bin")
        (training / f"calib/{frame:06d}.txt").write_text(
            f"Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nP2: {projection}\n"
        )
        (training / f"label_2/{frame:06d}.txt").write_text(
            f"Car 0.1 1 -1.8 10 20 90 80 1.6 1.8 4.0 3 1.8 12 {-math.pi / 2:.9f}\n"
            "Van 0 0 0 10 20 90 80 2 2 5 -8 1.8 14 0\n"
            "DontCare -1 -1 -10 1 1 50 50 -1 -1 -1 -1000 -1000 -1000 -10\n"
        )
    words = ["--from", folder / "kitti", "--to", folder / "set", "image_px=[600, 200]"]
    succeed("data", "prepare", "kitti_boxes3d", *words)
    data = KittiBoxes3d(split="train", root=str(folder / "set"), test_share=0.5, validation_share=0.0)
    sample = data[SampleKey(0, 0, 0)]
    assert np.abs(sample["boxes"].numpy()[0] - [12.0, -3.0, -1.0, 4.0, 1.8, 1.6, 0.0]).max() < 1e-6
    assert sample["label"].tolist() == [0, 0]
    assert sample["is_ignored"].tolist() == [False, True]
    assert sample["num_points"].tolist()[0] == 400
    assert float((sample["points"][:, 1].abs() - sample["points"][:, 0]).max()) <= 1e-5  # 45 degrees fit the image


@row(
    "B3.8",
    "Convert 3D boxes among the forms of all tools, with every loss counted",
    "`sightline data convert boxes3d_folder --from FOLDER --as labelcloud_vertices --to DIR`",
)
def conversions_of_3d_boxes(folder: Path) -> None:
    text = "x,y,z,dx,dy,dz,yaw,class,score\n" + format_row((0, 0, 0, 4, 2, 1, math.pi / 2)).strip().replace(" ", ",")
    write_frame(folder / "own", "a", f"{text},0.9\n", ground(-0.5))
    words = ["--from", folder / "own", "--as", "labelcloud_vertices", "--to", folder / "new", COLUMNS]
    done = succeed("data", "convert", "boxes3d_folder", *words)
    assert "1 scores: labelcloud_vertices has none" in done.err
    (entry,) = json.loads((folder / "new/labels/a.json").read_text())["objects"]
    # heading to the left: back is -y, and the left side of the car is towards -x
    expected = [(1, -2), (-1, -2), (-1, 2), (1, 2)]
    corners = [(*place, height) for height in (-0.5, 0.5) for place in expected]
    assert entry["name"] == "Car"
    assert np.abs(np.array(entry["vertices"]) - corners).max() < 1e-7


@row(
    "B3.9",
    "Be warned of boxes above the ground, and of clouds that are labelled ahead alone, before any training",
    "`sightline data info boxes3d_folder --from FOLDER`",
)
def remarks_on_boxes(folder: Path) -> None:
    """Cars whose bottoms are 0.9 m above the ground are named with that height, those that stand on it are not."""
    for name, height in (("high", 0.9), ("level", 0.0)):
        for frame in range(3):
            box = (9.0 + frame, 0.0, -1.8 + 0.75 + height, 4.0, 1.8, 1.5, 0.0)
            cloud = np.concatenate([ground(-1.8), fill_box(box)])
            write_frame(folder / name, f"{frame}", format_row(box), cloud)
    told = [line for line in list(survey(folder / "high")["differences"]) if line.startswith("T")]  # type: ignore[call-overload]
    assert len(told) == 1, told
    assert told[0].startswith("T6: bottoms of boxes are far from the ground beside them: Car +0.90 m (median of 3)")
    assert survey(folder / "level")["differences"] == []


@row(
    "B3.10",
    "Get a range, a size of pillars and anchors from one's own boxes, and keep frames without boxes",
    "`sightline data info boxes3d_folder --from FOLDER`",
)
def proposals_from_own_boxes(folder: Path) -> None:
    write_frame(folder / "own", "a", format_row((10, 4, -1, 4.2, 1.8, 1.6, 0)), ground(-1.85))
    write_frame(folder / "own", "b", format_row((-8, -6, -0.8, 3.8, 1.6, 1.4, 0)), ground(-1.8))
    write_frame(folder / "own", "c", "", ground(-1.8))
    found = survey(folder / "own")
    car = dict(found["classes"])["Car"]  # type: ignore[call-overload]
    # the mean of both sizes, and of the bottoms at -1.8 and -1.5
    assert car["anchor"] == [4.0, 1.7, 1.5, -1.65]
    # width 1.7 m: pillars of 0.4 m, 16 of which are 6.4 m; z from half a metre below -1.8 to half a metre above -0.1
    assert found["pillar_m"] == 0.4
    assert found["range_m"] == [-12.8, -12.8, -2.5, 12.8, 6.4, 0.5]
    assert found["samples"] == {"all": 3}
    assert read_sample(folder / "own", folder / "set")["num_points"] == [0]


MUTANTS: dict[str, Edit] = {
    "B3.5": Edit(
        "store/boxes3d/tracklets.py",
        '"tracklets_cvat": Form(BoxReading(size="hlw")',
        '"tracklets_cvat": Form(BoxReading(size="lwh")',
    ),
    "B3.6": Edit("store/boxes3d/count_test.py", "MIN_MORE = 0.03", "MIN_MORE = 30.0"),
    "B3.7": Edit("areas/boxes3d/sets/kitti_boxes3d.py", '{"Van": "Car", ', '{"Van": "Cyclist", '),
    "B3.8": Edit("areas/boxes3d/sets/box_conversion.py", "+= int(find(table).sum())", "+= 0"),
    "B3.9": Edit("store/boxes3d/traps.py", "_MAX_ABOVE_GROUND_M = 0.3", "_MAX_ABOVE_GROUND_M = 3.0"),
    "B3.10": Edit("store/boxes3d/survey.py", "_round_z(bottom - 0.5, top + 0.5)", "_round_z(bottom, top)"),
}
"""One edit a row that breaks its feature and raises nothing."""
