"""LiDAR sensors: presets, the config block of another sensor, the facts for projection, and the rings of its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from annotated_types import Ge, Gt, Le
from typing_extensions import TypedDict

from sightline.contract.arguments import Count, PositiveFloat
from sightline.contract.errors import ConfigError
from sightline.store.files.column_names import is_whole

SensorName = Literal["hdl64", "hdl32", "vlp16", "os1_64", "pandora", "pandar64"]
"""Name of a preset in `sensors.json`."""
Elevation = Annotated[float, Ge(-90.0), Le(90.0)]
Azimuth = Annotated[float, Ge(-360.0), Le(360.0)]
StdDev = Annotated[float, Gt(0.0), Le(1e9)]
Five = tuple[float, float, float, float, float]


class SensorBlock(TypedDict, total=False):
    """Config block of a sensor; missing keys are taken from `preset`.

    Degrees. `fov_deg` is the highest and the lowest elevation of the image; `azimuth_deg` the azimuths of its left and
    its right edge, counted from forward to the left; `beams_deg` the elevation of every beam, highest first. Remissions
    in files are from 0 to `remission_max`. `input_mean` and `input_std` are of range, x, y, z (metres) and remission
    (0 to 1).
    """

    preset: SensorName
    fov_deg: tuple[Elevation, Elevation]
    azimuth_deg: tuple[Azimuth, Azimuth]
    beams_deg: tuple[Elevation, ...]
    num_beams: Count
    remission_max: PositiveFloat
    input_mean: Five
    input_std: tuple[StdDev, StdDev, StdDev, StdDev, StdDev]


@dataclass(frozen=True)
class Sensor:
    """Checked description of a sensor. Fields as in `SensorBlock`; `beams_deg` is empty for equally spaced beams.

    `input_mean` and `input_std` are None if unknown.
    """

    fov_deg: tuple[float, float]
    num_beams: int
    azimuth_deg: tuple[float, float] = (180.0, -180.0)
    beams_deg: tuple[float, ...] = ()
    remission_max: float = 1.0
    input_mean: tuple[float, ...] | None = None
    input_std: tuple[float, ...] | None = None

    def facts(self) -> dict[str, Any]:
        """Return the facts of a data set with this sensor, without unknown statistics."""
        names = ("fov_deg", "azimuth_deg", "beams_deg", "num_beams", "input_mean", "input_std")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def elevations_rad(self) -> np.ndarray:
        """Return the elevation of every beam (H,) float64 in rad, highest first; equally spaced without a table."""
        beams = self.beams_deg or np.linspace(*self.fov_deg, self.num_beams)
        return np.deg2rad(np.asarray(beams, dtype=np.float64))

    def azimuths_rad(self, num_columns: int) -> np.ndarray:
        """Return the azimuth of the centre of every image column (W,) float64 in rad, left to right."""
        first, last = self.azimuth_deg
        return np.deg2rad(first + (np.arange(num_columns) + 0.5) / num_columns * (last - first))


def make_sensor(block: SensorBlock | None, *, preset: SensorName | None, owner: str) -> Sensor:
    """Make a sensor from a config block and a preset, which the block may name itself.

    Raises ConfigError, led by `owner`, for missing keys and for contradictory angles.
    """
    overrides: dict[str, Any] = dict(block or {})
    name = overrides.pop("preset", preset)
    presets = json.loads(Path(__file__).with_name("sensors.json").read_text(encoding="utf-8"))
    base = {key: value for key, value in presets.get(name, {}).items() if key != "about"}
    if any(key in overrides and [*_items(overrides[key])] != [*_items(base.get(key))] for key in _GEOMETRY):
        dropped = ("beams_deg", "input_mean", "input_std", *(["fov_deg"] if "beams_deg" in overrides else []))
        base = {key: value for key, value in base.items() if key not in dropped}  # they belong to the preset's beams
    values = {**base, **overrides}
    if beams := overrides.get("beams_deg"):
        values = {"fov_deg": (beams[0], beams[-1]), **values, "num_beams": overrides.get("num_beams", len(beams))}
    missing = [key for key in ("fov_deg", "num_beams") if key not in values]
    if missing:
        raise ConfigError(
            f"sensor: {owner} needs {' and '.join(missing)} of the sensor; give them, or a preset: {', '.join(presets)}"
        )
    arguments: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in values.items()}
    sensor = Sensor(**arguments)
    _check(sensor)
    return sensor


_GEOMETRY = ("fov_deg", "beams_deg", "num_beams")


def _items(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _check(sensor: Sensor) -> None:
    up, down = sensor.fov_deg
    if not up > down:
        raise ConfigError(f"sensor: fov_deg is [{up:g}, {down:g}]; the highest elevation comes first, in degrees")
    left, right = sensor.azimuth_deg
    if not 0 < left - right <= 360:
        raise ConfigError(
            f"sensor: azimuth_deg is [{left:g}, {right:g}]; the left edge comes first, at most 360 degrees from the "
            "right one, as in [45, -45]"
        )
    beams = np.asarray(sensor.beams_deg)
    if len(beams) not in (0, sensor.num_beams):
        raise ConfigError(f"sensor: beams_deg has {len(beams)} elevations, num_beams is {sensor.num_beams}")
    if (np.diff(beams) >= 0).any():
        index = int((np.diff(beams) >= 0).argmax()) + 1
        raise ConfigError(
            f"sensor: beams_deg[{index}] is {beams[index]:g} after {beams[index - 1]:g}; give every beam once, the "
            "highest first"
        )
    if (sensor.input_mean is None) != (sensor.input_std is None):
        raise ConfigError("sensor: give both input_mean and input_std, or neither")


# --- rings of scans, as their files state them -----------------------------------------------------------------------


RingOrder: TypeAlias = Literal["top_first", "bottom_first"]
"""Numbering of beams in files: ring 0 is the highest or the lowest beam."""
NUMBERS_OF_BEAMS = (1, 4, 8, 16, 32, 40, 64, 80, 128, 256)
"""Numbers of beams of sensors on the market."""
MAX_RINGS = NUMBERS_OF_BEAMS[-1]
MIN_RING_CORRELATION = 0.9
"""Minimum correlation, but for its sign, of ring number and elevation at which numbers count as rings."""
_MIN_POINTS = 50
"""Number of returns below which a scan does not show whether a column has rings."""


class Rings(NamedTuple):
    """Rings of a scan: `num_rings`, the largest number plus one, and the order of their beams."""

    num_rings: int
    order: RingOrder


def find_rings(points: np.ndarray, values: np.ndarray) -> Rings | None:
    """Return the rings that a column (N,) of the points (N, 3) has; None if it has none.

    Rings are whole numbers from 0 to 255 that rise or fall with the elevation. Points at the origin or without finite
    coordinates are not looked at.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.linalg.norm(points, axis=1)
        is_used = np.isfinite(distance) & (distance > 0)
    rings, sines = values[is_used], points[is_used, 2] / distance[is_used]
    if len(rings) < _MIN_POINTS or not is_whole(rings, 0, MAX_RINGS - 1) or not np.ptp(rings) or not np.ptp(sines):
        return None
    correlation = float(np.corrcoef(rings, np.arcsin(np.clip(sines, -1, 1)))[0, 1])
    if abs(correlation) < MIN_RING_CORRELATION:
        return None
    return Rings(int(rings.max()) + 1, "top_first" if correlation < 0 else "bottom_first")


def next_number_of_beams(count: int) -> int:
    """Return the smallest number of beams of a sensor on the market that is at least `count`, which is at most 256."""
    return next(number for number in NUMBERS_OF_BEAMS if number >= count)


def find_ring_column(tables: Sequence[np.ndarray]) -> tuple[int, int] | None:
    """Return which of the tables (N, columns), and which of its columns from the fourth on, has rings; None if none.

    The first three columns are read as x, y and z. Of a raw file, the tables are its numbers in rows of every length
    that fits; in rows of a wrong length, no column follows the elevation.
    """
    for index, table in enumerate(tables):
        for column in range(3, table.shape[1]):
            if find_rings(table[:, :3].astype(np.float64), table[:, column].astype(np.float64)) is not None:
                return index, column
    return None
