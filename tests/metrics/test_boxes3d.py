"""KITTI's AP and the plain AP of 3D boxes: the authors' numbers, a second evaluator, and values by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.boxes3d.metrics.kitti_ap import KittiAp
from sightline.contract.metric import Meter
from tests.golden_parity import load_golden
from tests.metrics.boxes3d_sets import CLASSES, LEVEL, draw_frames, make_batch, make_sample
from tests.metrics.kitti_reference import LOOSE, STRICT, Frame, Thing, evaluate

DIFFICULTIES = ("easy", "moderate", "hard")


def score(frames: Sequence[Frame], to_camera: np.ndarray = LEVEL, **arguments: Any) -> dict[str, dict[str, Any]]:
    """Rows of `by_difficulty`."""
    meter = Meter(KittiAp(class_names=CLASSES, **arguments))
    meter.update(**make_batch([make_sample(frame, to_camera) for frame in frames]))
    return meter.metric.tables(meter.state)["by_difficulty"]


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(8, 300))])
def test_kitti_ap_is_that_of_a_second_evaluator(seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = draw_frames(random, int(random.integers(1, 20)), has_angles=seed % 5 > 0)
    names, least = [("strict", STRICT), ("loose", LOOSE)][seed % 2]
    rows = score(frames, overlaps=names)
    for (kind, difficulty), figures in evaluate(frames, CLASSES, least).items():
        row = rows[f"{kind}, {difficulty}"]
        assert {key: row[key] for key in figures} == pytest.approx(figures, abs=1e-12, nan_ok=True), (kind, difficulty)


# --- the authors' numbers ---------------------------------------------------------------------------------------------


def tilted_camera() -> np.ndarray:
    """From a scanner to a camera that is 0.3 m away and 2 degrees askew, as a calibration states it."""
    turn = np.deg2rad(2)
    around_x = np.array([[1, 0, 0], [0, math.cos(turn), -math.sin(turn)], [0, math.sin(turn), math.cos(turn)]])
    around_z = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    return np.column_stack([around_x @ around_z @ LEVEL[:, :3], [0.05, -0.1, -0.3]])


def golden_frames(case: str, arrays: Any, names: Sequence[str], count: int) -> list[Frame]:
    def things(prefix: str) -> list[list[Thing]]:
        of_frames: list[list[Thing]] = [[] for _ in range(count)]
        columns = (arrays[f"{case}/in_{prefix}_{column}"].tolist() for column in ("frame", "class", "rows"))
        for frame, number, row in zip(*columns, strict=True):
            of_frames[frame].append(Thing(names[number], *row[:3], tuple(row[3:7]), *row[7:]))
        return of_frames

    return list(zip(things("gt"), things("dt"), strict=True))


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize(("overlaps", "column"), [("strict", 0), ("loose", 1)])
def test_kitti_ap_is_that_of_the_authors(shared: Path, case: int, overlaps: str, column: int) -> None:
    golden = load_golden(shared, "kitti_eval", area="boxes3d")
    name, frames = f"case{case:02d}", golden.info["cases"][case]["frames"]
    rows = score(
        golden_frames(name, golden.arrays, golden.info["class_codes"], frames), tilted_camera(), overlaps=overlaps
    )
    for number, kind in enumerate(CLASSES):
        for level, difficulty in enumerate(DIFFICULTIES):
            row = rows[f"{kind}, {difficulty}"]
            for ours, theirs in {"ap_2d": "bbox", "ap_bev": "bev", "ap_3d": "3d", "aos": "aos"}.items():
                for recalls in ("r11", "r40"):
                    expected = golden.arrays.get(f"{name}/{theirs}_{recalls.upper()}")
                    if expected is None:
                        assert theirs == "aos"
                        assert math.isnan(row[f"aos_{recalls}"])
                    elif row["count"]:
                        value = float(expected[number, level, column])
                        assert 100 * row[f"{ours}_{recalls}"] == pytest.approx(value, abs=1e-9)
                    else:
                        assert math.isnan(row[f"{ours}_{recalls}"])
