"""B3.35 to B3.37: kinds of errors of planted detections, predictions for scans without labels, and evaluations."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.boxes3d.vehicles import (
    BY_HEART,
    COLUMNS,
    NUM_FRAMES,
    SIZES,
    list_vehicles,
    make_cloud,
    prepare_vehicles,
)
from tests.command import document_of, succeed
from tests.mission.rows import row
from tests.mission.small import CPU, figures, said
from tests.mission.trial import Edit
from tests.trained import trained_run

# --- kinds of errors --------------------------------------------------------------------------------------------------

_CAR, _TRUCK = (4.0, 2.0, 1.5), (8.0, 2.5, 3.0)
_LABELS = {
    "t0": [("Car", 10.0, 5.0, 120), ("Truck", 25.0, -6.0, 100)],
    "t1": [("Car", 20.0, 0.0, 40), ("Car", 40.0, 0.0, 5)],
    "t2": [("Car", 12.0, -4.0, 20), ("Truck", 60.0, 0.0, 12)],
    "used": [("Car", 10.0, 0.0, 9)],
}
"""Class, x and y in metres, and points inside, of the labels of frames; the last frame is not of the test part."""
_FOUND = {
    "t0": [("Car", 10.0, 5.0, 0.0, 0.9), ("Car", 10.3, 5.0, 0.0, 0.8), ("Truck", 25.0, -6.0, math.pi, 0.7)],
    "t1": [("Car", 20.0, 0.0, 0.0, 0.6), ("Car", 30.0, 9.0, 0.0, 0.5), ("Car", 40.0, 0.0, 0.0, 0.29)],
    "t2": [("Truck", 12.0, -4.0, 0.0, 0.8), ("Truck", 61.9, 0.1, 2.0, 0.4), ("Car", 70.0, -9.0, 0.0, 0.3)],
}
"""Class, x, y, turn and score of detections: right, double, reversed; right, background, low; class, place, background.

The truck that is placed wrongly is turned, too, so that it overlaps its label by less than a half. The class of the
detection at 12 m is wrong, but its box fits.
"""


def _box(name: str, x: float, y: float, yaw: float = 0.0) -> list[float]:
    size = _CAR if name == "Car" else _TRUCK
    return [x, y, -1.7 + size[2] / 2, *size, yaw]


def _write_planted(work: Path) -> tuple[Path, Path]:
    """Write the frames with points in their boxes, prepare them, and write the detections in KITTI's rows."""
    for folder in ("own/points", "own/labels", "found"):
        (work / folder).mkdir(parents=True)
    for frame, labels in _LABELS.items():
        clouds, rows = [np.zeros((1, 4))], []
        for name, x, y, count in labels:
            box = np.array(_box(name, x, y))
            spread = np.column_stack([np.linspace(-0.45, 0.45, count), *np.zeros((2, count))])
            clouds.append(np.column_stack([box[:3] + spread * box[3:6], np.full(count, 0.5)]))
            rows.append(f"{' '.join(map(str, box))} {name}\n")
        np.save(work / f"own/points/{frame}.npy", np.concatenate(clouds).astype(np.float32))
        (work / f"own/labels/{frame}.txt").write_text("".join(rows))
    for frame, found in _FOUND.items():
        lines = []
        for name, x, y, yaw, score in found:
            size = _CAR if name == "Truck" and x == 12 else _box(name, x, y)[3:6]
            lines.append(
                f"{name} 0 0 0 0 0 9 9 {size[2]} {size[1]} {size[0]} {-y} 1.7 {x} {-yaw - math.pi / 2} {score}\n"
            )
        (work / f"found/{frame}.txt").write_text("".join(lines))
    words = ("--from", work / "own", "--to", work / "set", COLUMNS, "box_centre=centre")
    succeed("data", "prepare", "boxes3d_folder", *words)
    config = work / "score.yaml"
    data = f"{{name: boxes3d_folder, root: '{work / 'set'}', tested: [t], validation_share: 0.0}}"
    config.write_text(f"data: {data}\nmetrics: [{{name: boxes3d_errors}}]\n")
    return config, work / "found"


@row(
    "B3.35",
    "learn which kinds of errors a detector of 3D boxes makes, where, and what it misses by distance and points",
    "`sightline score RESULTS --data CONFIG 'metrics=[{name: boxes3d_errors}]'`, and every evaluation",
)
def _kinds_of_errors(work: Path) -> None:
    """Of six labels one is missed, the car at 40 m with five points: its detection has a score below 0.3."""
    config, results = _write_planted(work)
    found = document_of("score", results, "--data", config)
    counts = {kind: each["counted"] for kind, each in found["box_errors"].items()}
    assert counts == {"class": 1, "place": 1, "double": 1, "background": 2, "reversed": 1, "missed": 1}
    shares = {f"error_{kind}": count / (6 if kind == "missed" else 8) for kind, count in counts.items()}
    assert {name: round(value, 9) for name, value in found["metrics"].items()} == {
        name: round(value, 9) for name, value in shares.items()
    }
    by = {name: (each["labels"], each["missed"]) for name, each in found["missed_by"].items()}
    distances = {"0 to 15 m": (2, 0), "15 to 30 m": (2, 0), "30 to 50 m": (1, 1), "50 m or more": (1, 0)}
    points = {
        "1 to 5 points": (0, 0),
        "5 to 20 points": (2, 1),
        "20 to 100 points": (2, 0),
        "100 points or more": (2, 0),
    }
    assert by == {**distances, **points}
    worst = {
        kind: [(each["name"], each["count"]) for each in listed]
        for kind, listed in found["worst_samples"]["kinds"].items()
    }
    assert worst == {
        "class": [("t2", 1)],
        "place": [("t2", 1)],
        "double": [("t0", 1)],
        "background": [("t1", 1), ("t2", 1)],
        "reversed": [("t0", 1)],
        "missed": [("t1", 1)],
    }


# --- predictions ------------------------------------------------------------------------------------------------------


def _list_corners(box: list[float], *, ahead: float) -> np.ndarray:
    """Corners (4, 2) of a box from above, and the tip of an arrow, by `ahead` of its length before its front."""
    cosine, sine = math.cos(box[6]), math.sin(box[6])
    local = np.array([(0.5, 0.5), (0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5 + ahead, 0)]) * box[3:5]
    return np.asarray(local @ np.array([[cosine, sine], [-sine, cosine]]) + box[:2])


@row(
    "B3.36",
    "get the boxes in scans without labels, as JSON, as KITTI's rows and as a picture",
    "`sightline predict RUN SCANS --columns x,y,z,intensity --out DIR --json FILE`",
)
def _predicted(work: Path) -> None:
    """A frame that the run has learnt by heart, from a raw file: its boxes lie where its vehicles stand."""
    names, boxes = list_vehicles(1)
    make_cloud(boxes).tofile(work / "scan.bin")
    words = (trained_run("vehicles"), work / "scan.bin", "--columns", "x,y,z,intensity", *CPU)
    succeed("predict", *words, "--out", work / "out", "--json", work / "found.json")
    (found,) = json.loads((work / "found.json").read_text())["predictions"]
    assert found["num_points"] == len(make_cloud(boxes))
    assert found["num_boxes"] == len(found["boxes"]) == len(boxes)
    scores = [box["score"] for box in found["boxes"]]
    assert scores == sorted(scores, reverse=True)
    assert found["highest_score"] == scores[0]
    ours = [[*box["centre_m"], *box["size_m"], box["yaw_rad"]] for box in found["boxes"]]
    apart = np.linalg.norm(np.array(ours)[:, None, :2] - boxes[:, :2], axis=2)
    truth = apart.argmin(axis=1)
    assert sorted(truth) == [0, 1, 2, 3]
    off = np.abs(np.array(ours) - boxes[truth])
    off[:, 6] = np.minimum(off[:, 6], 2 * math.pi - off[:, 6])
    assert (off < [0.35, 0.35, 0.1, 0.4, 0.2, 0.2, 0.15]).all(), off
    assert [box["class"] for box in found["boxes"]] == [names[number] for number in truth]
    kitti = [line.split() for line in (work / "out/scan.txt").read_text().splitlines()]
    for words_of_row, box, whole in zip(kitti, found["boxes"], ours, strict=True):
        x, y, z, length, width, height, yaw = whole
        turn = (-yaw - math.pi / 2 + math.pi) % (2 * math.pi) - math.pi
        expected = [height, width, length, -y, height / 2 - z, x, turn, box["score"]]
        assert words_of_row[0] == box["class"]
        assert np.abs(np.array(words_of_row[8:], dtype=np.float64) - expected).max() < 1e-4
    _assert_drawn(work / "out/scan.boxes.png", make_cloud(boxes)[:, :2].astype(np.float64), found["boxes"], ours)


def _assert_drawn(picture: Path, points: np.ndarray, boxes: list[dict[str, Any]], ours: list[list[float]]) -> None:
    """Each class has its colour between the corners of its boxes, in a picture of 24 pixels a metre around all."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    corners = np.concatenate(
        [_list_corners(box, ahead=0) for box in ours] + [np.quantile(points, (0.05, 0.95), axis=0)]
    )
    low, high = corners.min(axis=0) - 4, corners.max(axis=0) + 4
    assert abs(pixels.shape[1] - 24 * (high - low)[0]) < 2
    rows = math.ceil(24 * (high - low)[1])
    for name, color in zip(SIZES, ((59, 130, 196), (242, 136, 59)), strict=True):
        own = np.concatenate(
            [_list_corners(box, ahead=0.25) for box, each in zip(ours, boxes, strict=True) if each["class"] == name]
        )
        is_own = (np.abs(pixels[:rows] - color) <= 12).all(axis=2)
        row_px, column_px = np.nonzero(is_own)
        x, y = low[0] + column_px / 24, high[1] - row_px / 24
        drawn = np.array([np.quantile(x, 0.002), np.quantile(x, 0.998), np.quantile(y, 0.002), np.quantile(y, 0.998)])
        expected = np.array([own[:, 0].min(), own[:, 0].max(), own[:, 1].min(), own[:, 1].max()])
        assert np.abs(drawn - expected).max() < 0.3, (name, drawn, expected)


# --- evaluations ------------------------------------------------------------------------------------------------------


@row(
    "B3.37",
    "evaluate a run of 3D boxes: next to nothing for an untrained one, whose report names what it misses",
    "`sightline evaluate RUN`, `sightline report RUN`",
)
def _evaluated(work: Path) -> None:
    """After a step at a rate of nearly 0 all 16 vehicles are missed; the run by heart finds them; both read anew."""
    config = prepare_vehicles(work)
    kept = [word for word in BY_HEART if not word.startswith(("train.epochs", "optimizer", "evaluate.every"))]
    words = (*kept, "train.epochs=1", "optimizer.lr=1e-9")
    succeed("train", config, *words, "--no-check", *CPU, "--out", work / "run")
    untrained = document_of("evaluate", work / "run", "task.score=0.0", *CPU)["metrics"]
    assert untrained["ap_overlap"] < 0.05
    assert untrained["error_missed"] == 1
    learnt = document_of("evaluate", trained_run("vehicles"), f"data.root={work / 'set'}", *CPU)["metrics"]
    assert learnt == figures(trained_run("vehicles"))
    assert learnt["error_missed"] == 0
    assert learnt["ap_overlap"] > 0.9

    table = said("evaluate", work / "run", *CPU)
    near = sum(int(np.hypot(*box[:2]) < 15) for frame in range(NUM_FRAMES) for box in list_vehicles(frame)[1])
    assert f"0 to 15 m │ {near} │ {near} │" in table
    succeed("report", work / "run")
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", (work / "run/report.html").read_text()))
    assert "missed 16 copy0 (4), copy1 (4), copy2 (4)" in page


MUTANTS: dict[str, Edit] = {
    "B3.35": Edit("areas/boxes3d/metrics/boxes3d_errors.py", "is_real & is_free & ~is_about)", "is_real & is_free)"),
    "B3.36": Edit("areas/boxes3d/predictor.py", '"centre_m": box[:3],', '"centre_m": [box[0], -box[1], box[2]],'),
    "B3.37": Edit(
        "areas/boxes3d/metrics/boxes3d_errors.py",
        "rows = errors.groups.truth_frame[errors.is_missed]",
        "rows = errors.groups.truth_frame[~errors.is_missed]",
    ),
}
"""One edit a row that breaks its feature and raises nothing."""
