"""Width of range images: the columns of planted sensors, with jitter, missing columns, and a step that drifts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from sightline.areas.scans.sets.azimuth_step import measure_step, ring_differences
from sightline.areas.scans.sets.scan_folder import ScanFolder

_BEAMS = np.radians(np.linspace(10, -20, 8))


class Turn(NamedTuple):
    """A turn of a planted sensor: so many columns, of which a share is missing; jitter in steps, drift of the step."""

    columns: int
    jitter: float = 0.0
    missing: float = 0.0
    drift: float = 0.0
    ticks: int = 0

    def measure(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return points (N, 3) float32 and rings (N,), the pulses of a turn in the order in which they are sent.

        Each beam begins at an angle of its own, ranges are drawn, and a tenth of the turn side by side has no return.
        `ticks` rounds azimuths down to so many of a turn.
        """
        generator = np.random.default_rng(seed)
        steps = 1 + self.drift * np.linspace(-0.5, 0.5, self.columns)
        azimuth = 2 * np.pi * (np.cumsum(steps) - steps) / steps.sum()
        points, rings = [], []
        for ring, elevation in enumerate(_BEAMS):
            noise = generator.normal(0, self.jitter * 2 * np.pi / self.columns, self.columns)
            is_return = generator.random(self.columns) >= self.missing
            is_return[np.arange(self.columns // 10) + generator.integers(self.columns * 9 // 10)] = False
            angle = (azimuth + generator.uniform(0, 2 * np.pi) + noise)[is_return]
            if self.ticks:
                angle = np.floor(angle / (2 * np.pi) * self.ticks) * (2 * np.pi) / self.ticks
            flat, height = np.cos(elevation), np.sin(elevation)
            distance = generator.uniform(3, 60, len(angle))
            points.append(
                distance[:, None] * np.stack([flat * np.cos(angle), flat * np.sin(angle), height + 0 * angle], 1)
            )
            rings.append(np.full(len(angle), ring))
        return np.concatenate(points).astype(np.float32), np.concatenate(rings)


TURNS = [
    turn
    for columns in (900, 1024, 1080, 1800, 2083)
    for turn in (
        Turn(columns),
        Turn(columns, missing=0.3),
        Turn(columns, jitter=0.05, missing=0.1),
        Turn(columns, jitter=0.1, missing=0.3),
        Turn(columns, drift=0.02),
    )
]


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_the_width_is_the_next_multiple_above_the_columns_of_the_sensor(turn: Turn, tmp_path: Path) -> None:
    """Of 16, the stride of the network; without jitter, 99 % of the points have a pixel of their own, else 95 %."""
    points, ring = turn.measure(0)
    np.concatenate([points, np.ones((len(points), 1)), ring[:, None]], axis=1).astype("<f4").tofile(tmp_path / "0.bin")
    found = ScanFolder.survey(tmp_path, columns=("x", "y", "z", "intensity", "ring"))
    assert float(found["sensor"]["columns_per_turn"].split(",")[0]) == pytest.approx(turn.columns, rel=0.005)
    width = 16 * (turn.columns // 16 + 1)
    assert f"width: {width}, rows: ring" in found["proposed_projection"]
    pixels = np.floor((np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) + 0.5) * width).astype(int) % width
    alone = len(np.unique(ring * width + pixels)) / len(points)
    assert alone >= (0.95 if turn.jitter else 0.99)
    assert found["projected"][f"16 x {width}"]["points_shown"] == pytest.approx(alone, abs=0.002)
    size = (f"{key}={value}" for key, value in {"height": 16, "width": width, "rows": "ring"}.items())
    stages = ("transforms.evaluate.0", "transforms.train.2")
    assert set(shlex.split(found["for_config"])[1:]) == {f"{stage}.{word}" for word in size for stage in stages}


@pytest.mark.parametrize(
    ("turn", "columns"),
    [
        (Turn(1080, missing=0.7), 1080),
        (Turn(2160, ticks=4000), 2160),  # an HDL-64E's encoder
        (Turn(1800, ticks=36000, jitter=0.02), 1800),  # a VLP-16's
        (Turn(360, jitter=0.1), 360),
        (Turn(4000), 4000),
    ],
    ids=str,
)
def test_steps_of_other_sensors(turn: Turn, columns: int) -> None:
    step = measure_step([ring_differences(*turn.measure(seed)) for seed in range(2)])
    assert step is not None
    assert step.columns_per_turn == pytest.approx(columns, rel=0.005)
    if not turn.ticks:
        assert step.jitter == pytest.approx(turn.jitter, abs=0.01)


def test_turns_of_different_speed_are_averaged() -> None:
    step = measure_step([ring_differences(*Turn(columns).measure(0)) for columns in (1070, 1080, 1090)])
    assert step is not None
    assert step.columns_per_turn == pytest.approx(1080, rel=0.005)


@pytest.mark.parametrize("num_points", [0, 40, 5000])
def test_azimuths_without_a_step_have_none(num_points: int) -> None:
    generator = np.random.default_rng(0)
    points, ring = generator.normal(size=(num_points, 3)), generator.integers(0, 16, num_points)
    assert measure_step([ring_differences(points, ring)]) is None


def test_returns_of_one_pulse_are_one_column() -> None:
    """A sensor that reports the strongest and the last return of every pulse."""
    points, ring = Turn(1024).measure(0)
    step = measure_step([ring_differences(np.concatenate([points, 1.5 * points]), np.concatenate([ring, ring]))])
    assert step is not None
    assert step.columns_per_turn == pytest.approx(1024, rel=0.001)
