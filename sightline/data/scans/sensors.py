"""LiDAR sensors: presets, the block with which a user describes another, and the facts that a projection needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le
from typing_extensions import TypedDict

from sightline.arguments import Count, PositiveFloat
from sightline.errors import ConfigError

__all__ = ["Sensor", "SensorBlock", "SensorName", "make_sensor"]

SensorName = Literal["hdl64", "hdl32", "vlp16", "os1_64", "pandar64"]
"""A sensor of `sensors.json`."""
Elevation = Annotated[float, Ge(-90.0), Le(90.0)]
Azimuth = Annotated[float, Ge(-360.0), Le(360.0)]
StdDev = Annotated[float, Gt(0.0), Le(1e9)]
Five = tuple[float, float, float, float, float]


class SensorBlock(TypedDict, total=False):
    """What is said of a sensor in a config; every key that is left out is that of `preset`.

    Degrees. `fov_deg` is the highest and the lowest elevation of the image; `azimuth_deg` the azimuths of its left and
    its right edge, counted from forward to the left; `beams_deg` the elevation of every beam, highest first. Files hold
    remissions from 0 to `remission_max`. `input_mean` and `input_std` are of range, x, y, z (metres) and remission
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
    """A sensor, checked. Fields as in `SensorBlock`; `beams_deg` is empty where beams have equal pitch.

    `input_mean` and `input_std` are None where nobody knows them.
    """

    fov_deg: tuple[float, float]
    azimuth_deg: tuple[float, float]
    beams_deg: tuple[float, ...]
    num_beams: int
    remission_max: float
    input_mean: tuple[float, ...] | None
    input_std: tuple[float, ...] | None

    def facts(self) -> dict[str, Any]:
        """The facts of a data set with this sensor; statistics that nobody knows are left out."""
        names = ("fov_deg", "azimuth_deg", "beams_deg", "num_beams", "input_mean", "input_std")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def elevations_rad(self) -> np.ndarray:
        """The elevation of every beam (H,) float64, highest first; equally spaced where there is no table."""
        beams = self.beams_deg or np.linspace(*self.fov_deg, self.num_beams)
        return np.deg2rad(np.asarray(beams, dtype=np.float64))

    def azimuths_rad(self, num_columns: int) -> np.ndarray:
        """The azimuth of the middle of every column (W,) float64, left to right."""
        first, last = self.azimuth_deg
        return np.deg2rad(first + (np.arange(num_columns) + 0.5) / num_columns * (last - first))


def make_sensor(block: SensorBlock | None, *, preset: SensorName | None, owner: str) -> Sensor:
    """The sensor of a block over a preset, which the block may name itself.

    Raises ConfigError, `owner` in front, for what is lacking and for angles that contradict one another.
    """
    given: dict[str, Any] = dict(block or {})
    name = given.pop("preset", preset)
    base = {} if name is None else _presets()[name]
    if any(key in given and _plain(given[key]) != base.get(key) for key in ("fov_deg", "beams_deg", "num_beams")):
        dropped = (*_OF_BEAMS, "fov_deg") if "beams_deg" in given else _OF_BEAMS
        base = {key: each for key, each in base.items() if key not in dropped}  # they belong to the preset's beams
    values = {**_DEFAULTS, **base, **given}
    if given.get("beams_deg"):
        values = {"fov_deg": (given["beams_deg"][0], given["beams_deg"][-1]), **values}
        values["num_beams"] = given.get("num_beams", len(given["beams_deg"]))
    missing = [key for key in ("fov_deg", "num_beams") if key not in values]
    if missing:
        raise ConfigError(
            f"sensor: {owner} needs {' and '.join(missing)} of the sensor; give them, or a preset: "
            f"{', '.join(_presets())}"
        )
    sensor = Sensor(**{key: _plain(each) for key, each in values.items()})
    _check(sensor)
    return sensor


_OF_BEAMS = ("beams_deg", "input_mean", "input_std")
_DEFAULTS: Mapping[str, Any] = {
    "azimuth_deg": (180.0, -180.0),
    "beams_deg": (),
    "remission_max": 1.0,
    "input_mean": None,
    "input_std": None,
}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _presets() -> dict[SensorName, dict[str, Any]]:
    stored = json.loads(Path(__file__).with_name("sensors.json").read_text(encoding="utf-8"))
    return {name: _preset(entry) for name, entry in stored.items()}


def _preset(entry: Mapping[str, Any]) -> dict[str, Any]:
    blocks = [np.linspace(first, last, count) for first, last, count in entry.get("beam_blocks_deg", ())]
    beams = tuple(np.concatenate(blocks).round(6).tolist()) if blocks else ()
    kept = {key: each for key, each in entry.items() if key not in ("about", "beam_blocks_deg")}
    return {key: _plain(each) for key, each in {**kept, "beams_deg": beams}.items()}


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
        place = int((np.diff(beams) >= 0).argmax()) + 1
        raise ConfigError(
            f"sensor: beams_deg[{place}] is {beams[place]:g} after {beams[place - 1]:g}; give every beam once, the "
            "highest first"
        )
    if (sensor.input_mean is None) != (sensor.input_std is None):
        raise ConfigError("sensor: give both input_mean and input_std, or neither")
