"""Frames of one's own with boxes: a config by `prepare`, a short training, predictions for scans without labels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from sightline.config import read_config
from tests.command import refuse, succeed
from tests.data.boxes3d.box_writers import write_streets

COLUMNS = "columns=[x, y, z, intensity]"
SMALL = ("train.epochs=1", "train.batch_size=2", "task.score=0.0", "task.most=5", "model.max_pillars=500")


def test_own_frames_become_a_detector(tmp_path: Path) -> None:
    """The config that `prepare` writes has extent, pillars and anchors of the boxes, and trains as it is."""
    source, config = tmp_path / "own", tmp_path / "own.yaml"
    write_streets(source, 4)
    words = ("data", "prepare", "boxes3d_folder", "--from", source, "--to", tmp_path / "prepared", COLUMNS)
    succeed(*words, "--config", config)
    read = read_config(config, ())
    names = set(read.task.arguments["anchors"])
    assert names == {line.split()[-1] for path in source.rglob("*.txt") for line in path.read_text().splitlines()}
    extent = read.model.arguments["extent_m"]
    assert [block.arguments["extent_m"] for block in read.transforms.evaluate] == [extent]
    assert read.data.arguments["remission"] is True
    run = tmp_path / "run"
    succeed("train", config, *SMALL, "--no-check", "--out", run)
    cloud = next(path for path in sorted(source.rglob("*")) if path.suffix in (".bin", ".pcd", ".npy"))
    options = ("--columns", "x,y,z,intensity", "--out", tmp_path / "found", "--json", tmp_path / "found.json")
    succeed("predict", run, cloud, "score=0.0", *options)
    [found] = json.loads((tmp_path / "found.json").read_text())["predictions"]
    assert 0 < found["num_boxes"] <= 5
    assert found["highest_score"] == max(box["score"] for box in found["boxes"])
    assert {box["class"] for box in found["boxes"]} <= names
    lines = (tmp_path / "found" / f"{cloud.stem}.txt").read_text().splitlines()
    kitti = np.array([line.split()[8:15] for line in lines], dtype=np.float64)  # height, width, length, then x, y, z
    ours = np.array([box["centre_m"] + box["size_m"] for box in found["boxes"]])
    np.testing.assert_allclose(kitti[:, :3], ours[:, [5, 4, 3]], atol=1e-5)
    np.testing.assert_allclose(kitti[:, [5, 3]], ours[:, :2] * [1, -1], atol=1e-5)  # forward is z there, right is x
    check_image_boxes(run, cloud, tmp_path, ours)
    assert "input pillars" in succeed("export", run, "--out", tmp_path / "run.onnx").out
    assert (tmp_path / "found" / f"{cloud.stem}.boxes.png").stat().st_size > 1000


CALIBRATION = (
    "P2: 700 0 600 0 0 700 180 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
)


def check_image_boxes(run: Path, cloud: Path, work: Path, found: np.ndarray) -> None:
    """With a calibration rows state where boxes are in the image of a camera in the scanner, of focal length 700 px."""
    (work / "calib").mkdir()
    (work / "calib/other.txt").write_text(CALIBRATION)
    words = ("predict", run, cloud, "score=0.0", "--columns", "x,y,z,intensity", "--out", work / "seen")
    assert "image_px= cuts boxes in an image" in refuse(*words, "image_px=[1200, 360]")
    assert f"calibrations= has none of {cloud.stem}" in refuse(*words, f"calibrations={work / 'calib'}")
    (work / f"calib/{cloud.stem}.txt").write_text(CALIBRATION)
    succeed(*words, f"calibrations={work / 'calib'}", "image_px=[1200, 360]")
    lines = (work / "seen" / f"{cloud.stem}.txt").read_text().splitlines()
    assert len(lines) == len(found)
    for line, (x, y, z, length, width, height) in zip(lines, found.tolist(), strict=True):
        alpha, *corners = (float(word) for word in line.split()[3:8])
        turn = float(line.split()[14])
        assert math.cos(alpha - turn - math.atan2(y, x)) > 1 - 1e-9
        reach = math.hypot(length, width, height) / 2
        if x < -reach:
            assert corners == [0, 0, 0, 0]
        elif x > reach + 0.1:  # all corners are ahead: the middle is inside, or beside the image as the box is
            column, row = 600 - 700 * y / x, 180 - 700 * z / x
            assert corners[0] <= min(max(column, 0), 1199) <= corners[2]
            assert corners[1] <= min(max(row, 0), 359) <= corners[3]
