"""Sensors: presets, what a user's block changes, and what is refused."""

from __future__ import annotations

import typing

import numpy as np
import pytest

from sightline.data.scans.scan_samples import SensorBlock, SensorName, make_sensor
from sightline.errors import ConfigError
from sightline.registry import DATA_FACTS
from tests.cases import run_each


def own(**keys: object) -> SensorBlock:
    return typing.cast(SensorBlock, keys)


@pytest.mark.parametrize("name", typing.get_args(SensorName))
def test_presets_are_whole(name: SensorName) -> None:
    sensor = make_sensor(None, preset=name, owner="the test")
    assert len(sensor.elevations_rad()) == sensor.num_beams
    assert (np.diff(sensor.elevations_rad()) < 0).all()
    assert sensor.facts().keys() <= DATA_FACTS


def test_the_hdl64_has_two_blocks_of_beams() -> None:
    """By hand from the data sheet's blocks: 32 beams from 2 to -8.33 degrees, 32 from -8.83 to -24.33."""
    sensor = make_sensor(None, preset="hdl64", owner="the test")
    beams = sensor.beams_deg
    assert (beams[0], beams[31], beams[32], beams[63]) == (2.0, -8.33, -8.83, -24.33)
    assert np.allclose(np.diff(beams[:32]), -10.33 / 31, atol=2e-6)
    assert np.allclose(np.diff(beams[32:]), -0.5)
    assert sensor.fov_deg == (3.0, -25.0)


def test_columns_run_from_the_left_edge_to_the_right_one() -> None:
    turn = make_sensor(None, preset="vlp16", owner="the test").azimuths_rad(4)
    assert np.rad2deg(turn).tolist() == pytest.approx([135, 45, -45, -135])
    part = make_sensor(own(preset="vlp16", azimuth_deg=(45.0, -45.0)), preset=None, owner="the test").azimuths_rad(512)
    assert np.rad2deg(part[[0, -1]]).tolist() == pytest.approx([45 - 90 / 1024, -45 + 90 / 1024])


def test_a_block_changes_what_it_names() -> None:
    sensor = make_sensor(own(num_beams=32), preset="hdl64", owner="the test")
    assert (sensor.num_beams, sensor.beams_deg, sensor.fov_deg) == (32, (), (3.0, -25.0))
    assert sensor.input_mean is None  # those of the preset are of its own beams
    same = make_sensor(own(num_beams=64, fov_deg=[3.0, -25.0], azimuth_deg=(45.0, -45.0)), preset="hdl64", owner="it")
    assert (len(same.beams_deg), same.input_mean) == (64, (12.12, 10.88, 0.23, -1.04, 0.21))
    wider = make_sensor(own(fov_deg=(10.0, -20.0)), preset="hdl64", owner="the test")
    assert (wider.num_beams, wider.beams_deg, wider.input_mean) == (64, (), None)
    for preset in (None, "hdl64"):
        table = make_sensor(own(beams_deg=[5.0, 0.0, -9.5]), preset=preset, owner="the test")  # type: ignore[arg-type]
        assert table.fov_deg == (5.0, -9.5)
    assert (table.num_beams, table.fov_deg, table.beams_deg) == (3, (5.0, -9.5), (5.0, 0.0, -9.5))
    assert make_sensor(own(preset="os1_64"), preset="hdl64", owner="the test").fov_deg == (22.5, -22.5)


@run_each(
    "block, told",
    [
        (own(), "my set needs fov_deg and num_beams of the sensor; give them, or a preset: hdl64, hdl32, vlp16"),
        (own(fov_deg=(-25.0, 3.0), num_beams=4), r"fov_deg is \[-25, 3\]; the highest elevation comes first"),
        (own(fov_deg=(3.0, -25.0), num_beams=4, azimuth_deg=(-45.0, 45.0)), "the left edge comes first"),
        (own(fov_deg=(3.0, -25.0), num_beams=4, azimuth_deg=(200.0, -200.0)), "at most 360 degrees"),
        (own(beams_deg=(3.0, 1.0), num_beams=4), "beams_deg has 2 elevations, num_beams is 4"),
        (own(beams_deg=(3.0, 1.0, 1.0)), r"beams_deg\[2\] is 1 after 1; give every beam once"),
        (own(preset="vlp16", input_mean=(0.0,) * 5), "give both input_mean and input_std"),
    ],
)
def test_blocks_that_contradict_themselves_are_refused(block: SensorBlock, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^sensor: .*{told}"):
        make_sensor(block, preset=None, owner="my set")
