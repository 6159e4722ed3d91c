"""LiDAR sensors: presets, the config block that describes another sensor, and the facts for projection."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le
from typing_extensions import TypedDict

from sightline.contract.arguments import Count, PositiveFloat
from sightline.contract.errors import ConfigError

SensorName = Literal["hdl64", "hdl32", "vlp16", "os1_64", "pandar64"]
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
