"""What a user gets of scores of 3D boxes: KITTI's AP and a plain one, own classes, files of results, and remarks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from sightline.store.boxes3d.box_table import make_box_table
from sightline.store.boxes3d.results import format_json, format_kitti, read_results
from tests.command import document_of, refuse, succeed
from tests.data.boxes3d_scores.streets import detect, draw_streets, write_config, write_rows
from tests.mission.rows import row
from tests.mission.trial import Edit

CAR = "Car 0 0 0 100 100 200 200 1.5 2 4 {x} 1.7 20 {turn}{score}\n"
"""A car of 4 x 2 x 1.5 m, 20 m ahead and `x` to the right, which counts at every difficulty."""
_AHEAD = -math.pi / 2


def write_cars(folder: Path, *frames: list[tuple[float, ...]]) -> Path:
    """Write cars of each frame: how far to the right, the turn from ahead, and of a detection its score."""
    folder.mkdir(parents=True)
    for number, cars in enumerate(frames):
        lines = [
            CAR.format(x=x, turn=_AHEAD + turn, score="".join(f" {value}" for value in score))
            for x, turn, *score in cars
        ]
        (folder / f"{number:06d}.txt").write_text("".join(lines))
    return folder


@row(
    "B3.15",
    "score anybody's 3D detections by KITTI's AP, recalls named, with the labels that count and the ceiling",
    "`sightline score RESULTS --data CONFIG` with the metric `kitti_ap`",
)
def _kitti(work: Path) -> None:
    """All of 15 cars are found: (15 - 1) / 40 at 40 recalls, 4 of 11 slots at 11, and no detector reaches more."""
    frames = draw_streets(5)
    results = write_rows(work / "results", detect(frames))
    found = document_of("score", results, "--data", write_config(work, write_rows(work / "labels", frames)))
    for form in ("3d", "bev", "2d"):
        assert abs(found["metrics"][f"ap_{form}_r40_easy"] - 0.35) < 1e-12
        assert abs(found["metrics"][f"ap_{form}_r11_easy"] - 4 / 11) < 1e-12
    car = found["by_difficulty"]["Car, moderate"]
    assert (car["count"], car["ceiling_r40"], round(car["ceiling_r11"], 6)) == (15, 0.35, 0.363636)
    assert 0.34 < car["aos_r40"] < 0.35


@row(
    "B3.16",
    "score small sets by a plain AP, by overlap and by distance, with errors and an interval",
    "`sightline score RESULTS --data CONFIG` with the metric `boxes3d_ap`",
)
def _plain(work: Path) -> None:
    """Four cars: one is found exactly, one 0.8 m aside and reversed, one 1.6 m aside, one not; one place is empty.

    At 2 m the detections by score are right, wrong, right, right: AP = (1 + 3/4 + 3/4) / 4; at 1 m right, wrong, right,
    wrong: (1 + 2/3) / 4; at 0.5 m, and at an overlap of 0.5 (of 2 m wide cars, 0.8 m aside: 1.2 / 2.8), 1 / 4.
    """
    labels = write_cars(work / "labels", [(0, 0), (10, 0)], [(0, 0), (10, 0)])
    results = write_cars(work / "results", [(0, 0, 0.9), (-10, 0, 0.8)], [(0.8, math.pi, 0.7), (11.6, 0, 0.6)])
    config = write_config(work, labels, metrics="[{name: boxes3d_ap}]")
    found = document_of("score", results, "--data", config)
    aps = {"ap_overlap": 1 / 4, "ap_0_5m": 1 / 4, "ap_1m": 5 / 12, "ap_2m": 5 / 8, "ap_distance": 31 / 72}
    errors = {"centre_error_m": 0.8, "height_error_m": 0, "size_error": 0, "yaw_error_rad": math.pi / 3}
    expected = {**aps, **errors, "axis_error_rad": 0}
    assert all(abs(found["metrics"][name] - value) < 1e-5 for name, value in expected.items()), found["metrics"]
    interval = found["class_intervals"]["Car"]["ap_distance"]
    assert 0 <= interval["low"] < 31 / 72 < interval["high"] <= 1
    assert (interval["num_samples"], interval["method"]) == (2, "bootstrap over frames")


@row(
    "B3.17",
    "score classes of one's own by overlaps of one's own, and learn of those that have none",
    "`sightline score RESULTS --data CONFIG 'metrics=[{name: kitti_ap, min_overlap: {Bus: 0.4}}]'`",
)
def _own_classes(work: Path) -> None:
    """Cars of 2 m, 0.8 m aside, overlap by 1.2 / 2.8 = 0.43: found at 0.4, lost at 0.45."""
    labels = write_cars(work / "labels", [(0, 0), (10, 0)], [(0, 0), (10, 0)])
    results = write_cars(work / "results", [(0.8, 0, 0.9), (10.8, 0, 0.8)], [(0.8, 0, 0.7), (10.8, 0, 0.6)])
    for file in [*labels.iterdir(), *results.iterdir()]:
        file.write_text(file.read_text().replace("Car", "Bus"))
    config = write_config(work, labels, metrics="[{name: kitti_ap}]")
    assert "KITTI states no overlap for the class 'Bus'" in refuse("score", results, "--data", config)
    for level, expected in ((0.4, 3 / 40), (0.45, 0)):
        metrics = f"metrics=[{{name: kitti_ap, min_overlap: {{Bus: {level}}}}}]"
        found = document_of("score", results, "--data", config, metrics)
        assert abs(found["metrics"]["ap_bev_r40_easy"] - expected) < 1e-12


@row(
    "B3.18",
    "write and read results in KITTI's rows and in one's own form, matched with frames by their ids alone",
    "`sightline score RESULTS`, a folder of FRAME.txt or a JSON file",
)
def _files(work: Path) -> None:
    """The box of a row by hand, both forms read back, and an error that names the frame without results."""
    labels = write_cars(work / "labels", [(2, 0)], [(0, 0)], [])
    config = write_config(work, labels, metrics="[{name: boxes3d_ap}]")
    box = np.array([[20, -2, -1.7 + 0.75, 4, 2, 1.5, 0]])
    table = make_box_table(box, np.zeros(1, dtype=np.int64), ("Car",), score=np.array([0.5]))
    assert format_kitti(table).split()[8:] == ["1.5", "2", "4", "2", "1.7", "20", "-1.5707963", "0.5"]
    tables = {"000000": table, "000001": table, "000002": table.select(np.zeros(1, dtype=bool))}
    (work / "own.json").write_text(format_json(tables))
    (work / "rows").mkdir()
    for name, one in tables.items():
        (work / f"rows/{name}.txt").write_text(format_kitti(one))
    for path in (work / "own.json", work / "rows"):
        read = read_results(path, {})
        assert [*map(len, read.values())] == [1, 1, 0]
        assert np.allclose(read["000001"].boxes, box, atol=1e-6)
        assert abs(document_of("score", path, "--data", config)["metrics"]["ap_1m"] - 1 / 2) < 1e-12
    (work / "rows/000001.txt").unlink()
    assert "no results of 1 of 3 frames: 000001" in refuse("score", work / "rows", "--data", config)


@row(
    "B3.19",
    "learn from a score what its figures hide: no image boxes, few labels, cut names, headings and sizes turned",
    "`sightline score`, `sightline report`",
)
def _remarks(work: Path) -> None:
    frames = draw_streets(5)
    found = detect(frames)
    config = write_config(work, write_rows(work / "labels", frames))
    faults = {
        "detections have no image box": lambda kind, row: (kind, [*row[:3], 0, 0, 0, 0, *row[7:]]),
        "'Car': 15 of 15 found boxes point backwards": lambda kind, row: (
            kind,
            [*row[:13], row[13] + math.pi, row[14]],
        ),
        "if dx, dy, dz are read as width, length, height": lambda kind, row: (
            kind,
            [*row[:8], row[9], row[8], *row[10:]],
        ),
        "it looks like 'Cyclist', cut to 3 letters": lambda kind, row: (kind[:3] if kind == "Cyclist" else kind, row),
    }
    said = succeed("score", write_rows(work / "sound", found), "--data", config).err
    assert "15 easy (at most 0.35 at 40 recalls" in said
    assert not [sentence for sentence in faults if sentence in said]
    for number, (sentence, edit) in enumerate(faults.items()):
        results = write_rows(work / f"faulty{number}", found, edit)
        said = succeed("score", results, "--data", config).err
        assert [other for other in faults if other in said] == [sentence], sentence


_METRICS = "areas/boxes3d/metrics"
MUTANTS: dict[str, Edit] = {
    "B3.15": Edit(f"{_METRICS}/kitti_ap.py", '"r11": np.arange(0, 41, 4)', '"r11": np.arange(0, 41, 5)'),
    "B3.16": Edit(f"{_METRICS}/boxes3d_ap.py", '"ap_1m": 1.0', '"ap_1m": 0.7'),
    "B3.17": Edit(
        f"{_METRICS}/kitti_ap.py", "volume = own.get(name, volume)", "volume = 0.5 if name in own else volume"
    ),
    "B3.18": Edit(
        "store/boxes3d/results.py",
        "(alpha, *corners, height, width, length, x",
        "(alpha, *corners, height, length, width, x",
    ),
    "B3.19": Edit(
        "areas/boxes3d/score_remarks.py",
        "_MIN_REVERSED, _MAX_AXIS_RAD = 0.35, 0.5",
        "_MIN_REVERSED, _MAX_AXIS_RAD = 1.35, 0.5",
    ),
}
