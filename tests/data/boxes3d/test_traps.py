"""Remarks on traps: each has a planted fault that is named, and a healthy twin that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.boxes3d.sets.boxes3d_folder import Boxes3dFolder
from sightline.areas.boxes3d.sets.synthetic_streets3d import SyntheticStreets3d
from sightline.contract.types import SampleKey
from sightline.store.boxes3d.conversions import BoxReading, boxes_to_flat_camera
from sightline.store.boxes3d.traps import TRAPS
from tests.data.boxes3d.box_writers import format_txt, make_boxes, make_names, write_streets

COLUMNS = ("x", "y", "z", "intensity")
Plant = Callable[[Path], dict[str, Any]]
"""Writes a folder of clouds with boxes, and returns options of its survey."""


def list_traps(source: Path, **options: Any) -> dict[str, str]:
    """The remarks of a folder by the number of their trap."""
    found = Boxes3dFolder.survey(source, **{"columns": COLUMNS, **options})["differences"]
    return {line.partition(": ")[0]: line for line in found if line.startswith("T")}


def streets(num_frames: int = 4, options: dict[str, Any] | None = None, **arguments: Any) -> Plant:
    def write(root: Path) -> dict[str, Any]:
        write_streets(root, num_frames, **arguments)
        return options or {}

    return write


def ahead(frame: int) -> np.ndarray:
    """Boxes within 40 degrees of the front."""
    return make_boxes(frame, directions=(-0.7, 0.5))


def lift(height_m: float) -> Callable[[int, np.ndarray], np.ndarray]:
    def change(frame: int, boxes: np.ndarray) -> np.ndarray:
        return boxes + np.array([0, 0, height_m, 0, 0, 0, 0])

    return change


def renamed(old: str, new: str) -> Plant:
    """Rename a class in one frame."""

    def write(root: Path) -> dict[str, Any]:
        write_streets(root, 4)
        path = root / "labels/0000.txt"
        path.write_text(path.read_text().replace(old, new))
        return {}

    return write


def kitti_rows(image: str) -> Plant:
    """Rows like KITTI's with these image boxes, in the camera that stands in the scanner."""

    def write(root: Path) -> dict[str, Any]:
        write_streets(root, 2)
        for frame in range(2):
            boxes = make_boxes(frame)
            rows = boxes_to_flat_camera(boxes)[:, [4, 5, 3, 0, 1, 2, 6]]
            text = "".join(
                f"{name} 0 0 0.1 {image} {' '.join(f'{value:.6f}' for value in row)}\n"
                for name, row in zip(make_names(), rows, strict=True)
            )
            (root / f"labels/{frame:04d}.txt").write_text(text)
        return {"form": "kitti"}

    return write


def raw_files(num_columns: int, stated: tuple[str, ...]) -> Plant:
    """Raw clouds in the order of a turning sensor, with more columns than x, y, z and remission."""

    def write(root: Path) -> dict[str, Any]:
        write_streets(root, 2)
        for frame in range(2):
            path = root / f"points/{frame:04d}.npy"
            cloud = np.load(path)
            cloud = cloud[np.argsort(np.arctan2(cloud[:, 1], cloud[:, 0]).round(2) + cloud[:, 0] * 1e-5)]
            cloud = cloud[: len(cloud) // 20 * 20]
            rings = np.arange(len(cloud), dtype=np.float32)[:, None] % 32
            np.hstack([cloud, *[rings] * (num_columns - 4)]).astype("<f4").tofile(path.with_suffix(".bin"))
            path.unlink()
        return {"columns": stated}

    return write


def scaled_remission(factor: float, frames: tuple[int, ...]) -> Plant:
    def write(root: Path) -> dict[str, Any]:
        write_streets(root, 4)
        for frame in frames:
            path = root / f"points/{frame:04d}.npy"
            np.save(path, np.load(path) * np.float32([1, 1, 1, factor]))
        return {}

    return write


def same_objects(frame: int) -> np.ndarray:
    """The objects of a drive of ten frames, which keep their sizes and move a little."""
    boxes = make_boxes(frame // 10)
    boxes[:, :2] += 0.2 * (frame % 10)
    return boxes


def divided(order: Callable[[int], bool]) -> Plant:
    """Twenty frames of two drives; `order` chooses those that are tested."""

    def write(root: Path) -> dict[str, Any]:
        write_streets(root, 20, make=same_objects)
        (root / "ImageSets").mkdir()
        for part, is_tested in (("train", False), ("val", True)):
            names = [f"{frame:04d}\n" for frame in range(20) if order(frame) == is_tested]
            (root / f"ImageSets/{part}.txt").write_text("".join(names))
        return {}

    return write


def few_tested(num_tested: int) -> Plant:
    def write(root: Path) -> dict[str, Any]:
        write_streets(root, 24)
        (root / "ImageSets").mkdir()
        names = [f"{frame:04d}\n" for frame in range(24)]
        (root / "ImageSets/train.txt").write_text("".join(names[num_tested:]))
        (root / "ImageSets/val.txt").write_text("".join(names[:num_tested]))
        return {}

    return write


def dense(num_points: int) -> Plant:
    """Points of a dense sensor, on a ground of 80 by 80 m."""

    def write(root: Path) -> dict[str, Any]:
        write_streets(root, 2)
        for frame in range(2):
            random, path = np.random.default_rng(frame), root / f"points/{frame:04d}.npy"
            ground = random.uniform(-32, 32, (num_points, 4)).astype(np.float32)
            ground[:, 2:] = (-1.7, 0.5)
            np.save(path, np.concatenate([ground, np.load(path)]))
        return {}

    return write


IN_RANGE = (-60.0, -60.0, -3.0, 60.0, 60.0, 2.0)
ROWS: dict[str, tuple[str, Plant, Plant, str]] = {
    "T1": (
        "T1",
        streets(reading=BoxReading(centre="bottom"), options={"box_centre": "centre"}),
        streets(reading=BoxReading(centre="bottom"), options={"box_centre": "bottom"}),
        "box_centre=bottom puts",
    ),
    "T2": (
        "T2",
        streets(reading=BoxReading(unit="deg"), options={"yaw_unit": "rad"}),
        streets(reading=BoxReading(unit="deg")),
        "beyond a turn of radians",
    ),
    "T3, zeros": ("T3", kitti_rows("0 0 0 0"), kitti_rows("10 20 90 80"), "18 of 18 boxes have a placeholder"),
    "T3, 50": ("T3", kitti_rows("0 0 50 50"), kitti_rows("10 20 90 80"), "18 of 18 boxes have a placeholder"),
    "T4": ("T4", few_tested(5), few_tested(14), "Car 15 (35%)"),
    "T5, case": ("T5", renamed("Car", "CAR"), streets(), "CAR and Car"),
    "T5, blanks": ("T5", renamed("Cyclist", "Cy_clist"), renamed("Cyclist", "Bicycle"), "Cy_clist and Cyclist"),
    "T6": ("T6", streets(change=lift(0.6)), streets(change=lift(0.1)), "Car +0.6"),
    "T7": (
        "T7",
        streets(options={"range_m": (0.0, -60.0, -3.0, 60.0, 60.0, 2.0)}),
        streets(options={"range_m": IN_RANGE}),
        "of 36 boxes",
    ),
    "T13": (
        "T13",
        raw_files(5, COLUMNS),
        raw_files(5, (*COLUMNS, "ring")),
        "read with 4 columns, and 5 fit their numbers better",
    ),
    "T14": ("T14", scaled_remission(255.0, (1,)), scaled_remission(255.0, (0, 1, 2, 3)), "state remission_max"),
    "T15, ahead": (
        "T15",
        streets(make=ahead),
        streets(make=ahead, options={"azimuth_deg": (-60.0, 60.0)}),
        "azimuth_deg",
    ),
    "T15, blind": ("T15", streets(options={"azimuth_deg": (-60.0, 60.0)}), streets(), "directions without points"),
    "T22": ("T22", divided(lambda frame: frame % 4 == 0), divided(lambda frame: frame >= 10), "same class and sizes"),
    "T23": ("T23", dense(300_000), dense(20_000), "more than 40,000 pillars"),
}
"""Trap, its plant, its healthy twin, and words of the remark."""


@pytest.mark.parametrize("name", ROWS)
def test_a_planted_fault_is_named_and_its_twin_is_not(tmp_path: Path, name: str) -> None:
    number, plant, twin, words = ROWS[name]
    planted = list_traps(tmp_path / "planted", **plant(tmp_path / "planted"))
    assert words in planted.get(number, f"no {number} in {planted}")
    healthy = list_traps(tmp_path / "twin", **twin(tmp_path / "twin"))
    assert number not in healthy


def test_every_trap_has_a_row() -> None:
    assert {row[0] for row in ROWS.values()} == {trap.number for trap in TRAPS}


def test_synthetic_streets_raise_no_alarm(tmp_path: Path) -> None:
    data = SyntheticStreets3d(split="train", sensor={"preset": "hdl32"})
    names = data.info.facts["class_names"]
    for frame in range(6):
        sample = {name: value.numpy() for name, value in data[SampleKey(frame, 0, 0)].items()}
        np.save(tmp_path / f"{frame:04d}.npy", np.hstack([sample["points"], sample["remission"]]))
        text = format_txt(sample["boxes"], [names[label] for label in sample["label"]])
        (tmp_path / f"{frame:04d}.txt").write_text(text)
    assert list_traps(tmp_path) == {}


def test_healthy_streets_raise_no_alarm(tmp_path: Path) -> None:
    write_streets(tmp_path / "own", 30)
    assert list_traps(tmp_path / "own") == {}
