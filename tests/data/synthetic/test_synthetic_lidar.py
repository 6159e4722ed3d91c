"""The embedded LiDAR scans: every return lies on a surface that is in sight, labels are exact, samples are pure."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from sightline.areas.scans.sets.synthetic_lidar import CLASS_IDS, CLASS_NAMES, SyntheticLidar, draw_street
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.store.files.sensors import SensorBlock, make_sensor
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.streets.beams import GROUND, Obstacles
from sightline.store.streets.casting import SENSOR_HEIGHT_M, LidarNoise, Scan, Street, cast_street

EXACT = LidarNoise(range_m=0.0, remission=0.0, lost_share=0.0)
HDL64 = make_sensor(None, preset="hdl64", owner="the test")
OWN: SensorBlock = {"fov_deg": (10.0, -20.0), "azimuth_deg": (50.0, -50.0), "num_beams": 16}
"""A user's sensor: 16 beams, 100 degrees wide."""
EPS = float(np.finfo(np.float32).eps)


def exact_scan(seed: int, *, num_columns: int = 256) -> tuple[Street, Scan]:
    generator = np.random.default_rng(seed)
    street = draw_street(generator)
    return street, cast_street(street, HDL64, num_columns=num_columns, generator=generator, disturbance=EXACT)


def depth_inside(street: Street, points: np.ndarray) -> np.ndarray:
    """How deep points (N, 3) lie in each thing (N, A + C), metres, negative outside: by coordinates, not by rays."""
    depths = []
    for x, y, half_length, half_width, yaw, top in street.things.boxes:
        offset = points[:, :2] - (x, y)
        along = offset @ (np.cos(yaw), np.sin(yaw))
        across = offset @ (-np.sin(yaw), np.cos(yaw))
        depths.append(np.minimum(half_length - np.abs(along), half_width - np.abs(across)))
        depths[-1] = np.minimum(depths[-1], top - points[:, 2])
    for x, y, radius, top in street.things.cylinders:
        depths.append(np.minimum(radius - np.hypot(*(points[:, :2] - (x, y)).T), top - points[:, 2]))
    return np.stack(depths, axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_returns_lie_on_the_surface_they_are_said_to_come_from(seed: int) -> None:
    street, scan = exact_scan(seed)
    points = scan.points.astype(np.float64)
    bound = 4 * EPS * 80
    is_ground = scan.thing == GROUND
    assert np.abs(points[is_ground, 2] + SENSOR_HEIGHT_M).max() < bound
    depth = depth_inside(street, points[~is_ground])
    assert np.abs(depth[np.arange(len(depth)), scan.thing[~is_ground]]).max() < bound
    assert (scan.ids[~is_ground] == street.ids[scan.thing[~is_ground]]).all()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_stands_between_the_sensor_and_a_return(seed: int) -> None:
    street, scan = exact_scan(seed, num_columns=64)
    points = scan.points[::7].astype(np.float64)
    margin = 1e-3  # a march over straight lines, in steps that a pole cannot hide between
    for part in np.split(points, range(200, len(points), 200)):
        shares = np.linspace(0.0, 1 - margin, 800)[:, None, None]
        before = (shares * part).reshape(-1, 3)
        assert depth_inside(street, before).max() <= margin
        assert before[:, 2].min() >= -SENSOR_HEIGHT_M


def test_ground_is_road_sidewalk_and_terrain_by_distance_from_the_middle() -> None:
    _, scan = exact_scan(0)
    aside = np.abs(scan.points[:, 1])
    for name, low, high in (("road", 0, 4), ("sidewalk", 4, 6), ("terrain", 6, 80)):
        found = aside[scan.ids == CLASS_IDS[name]]
        assert len(found) > 1000
        assert low - 1e-3 <= found.min() <= found.max() <= high + 1e-3


def test_a_car_below_the_sensor_shows_its_roof_and_hides_the_ground_behind_it() -> None:
    """By hand: a box 1.5 m high from 8 to 12 m ahead. The sensor looks down on it from 0.23 m above its roof."""
    boxes = np.array([[10.0, 0.0, 2.0, 0.9, 0.0, 1.5 - SENSOR_HEIGHT_M]])
    street = Street(Obstacles(boxes, np.zeros((0, 4))), np.array([10]))
    sensor = make_sensor(
        {"fov_deg": (5.0, -25.0), "beams_deg": (0.0, -1.0, -1.3, -5.0, -13.0)}, preset=None, owner="the test"
    )
    forward = make_sensor(
        {"beams_deg": sensor.beams_deg, "fov_deg": (5.0, -25.0), "azimuth_deg": (1.0, -1.0)}, preset=None, owner="it"
    )
    scan = cast_street(street, forward, num_columns=1, generator=np.random.default_rng(0), disturbance=EXACT)
    assert scan.ring.tolist() == [2, 3, 4]  # level beams and one of -1 degree pass above and reach no ground in 80 m
    assert scan.points[0].tolist() == pytest.approx([0.23 / np.tan(np.deg2rad(1.3)), 0.0, -0.23], rel=1e-6)
    assert scan.points[1].tolist() == pytest.approx([8.0, 0.0, -8 * np.tan(np.deg2rad(5.0))], rel=1e-6)
    assert scan.points[2, 0] == pytest.approx(SENSOR_HEIGHT_M / np.tan(np.deg2rad(13.0)), rel=1e-6)
    assert scan.ids.tolist() == [10, 10, 40]
    car, road = 0.55, 0.2
    expected = [car * np.sin(np.deg2rad(1.3)), car * np.cos(np.deg2rad(5.0)), road * np.sin(np.deg2rad(13.0))]
    assert scan.remission.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_turn_has_about_as_many_returns_as_the_specification_measured() -> None:
    """128,551 of 131,072 in its own scene: all but the beams above the horizon that meet no house."""
    for seed in range(3):
        _, scan = exact_scan(seed, num_columns=2048)
        assert 0.96 <= len(scan.points) / (64 * 2048) <= 1.0


def test_files_order_is_that_of_kitti() -> None:
    _, scan = exact_scan(0)
    assert (np.diff(scan.ring) >= 0).all()
    azimuth = np.arctan2(scan.points[:, 1], scan.points[:, 0]) % (2 * np.pi)
    assert (np.diff(azimuth)[np.diff(scan.ring) == 0] > 0).all()
    column = np.floor((np.pi - (azimuth + np.pi) % (2 * np.pi) + np.pi) / (2 * np.pi) * 256).astype(int)
    assert (column == scan.column).all()


def test_samples_are_those_of_the_contract() -> None:
    scans = SyntheticLidar(split="train", train_size=2, test_size=1)
    sample = scans[SampleKey(0, 0, 0)]
    assert {name: str(each.dtype) for name, each in sample.items()} == {
        "points": "torch.float32",
        "remission": "torch.float32",
        "label": "torch.int64",
        "ring": "torch.int64",
    }
    assert set(sample) == set(scans.info.fields)
    for name, field in scans.info.fields.items():
        assert field.low is not None
        assert field.high is not None
        assert field.low <= sample[name].min() <= sample[name].max() <= field.high
    facts = scans.info.facts
    assert (facts["num_classes"], facts["ignore_index"], facts["class_names"][0]) == (9, 0, "unlabeled")
    assert set(sample["label"].tolist()) == set(range(1, 9))
    assert facts["azimuth_deg"] == (180.0, -180.0)
    assert len(facts["beams_deg"]) == facts["num_beams"] == 64
    batch = BatchReader(scans)([SampleKey(0, 0, 0), SampleKey(1, 0, 0)])
    assert batch["offsets"].tolist()[0] == 0
    assert batch["features"].shape == (batch["offsets"][-1], 1)


def test_statistics_are_those_of_the_returns() -> None:
    scans = SyntheticLidar(split="train", train_size=4, test_size=1)
    samples = [scans[SampleKey(index, 0, 0)] for index in range(4)]
    points = torch.cat([each["points"] for each in samples]).double()
    values = torch.cat([points.norm(dim=1, keepdim=True), points, torch.cat([s["remission"] for s in samples])], dim=1)
    assert values.mean(dim=0).tolist() == pytest.approx(scans.info.facts["input_mean"], abs=1e-4)
    assert values.std(dim=0, correction=0).tolist() == pytest.approx(scans.info.facts["input_std"], abs=1e-4)


def test_classes_are_counted_where_asked_for() -> None:
    assert "class_counts" not in SyntheticLidar(split="train", train_size=3).info.facts
    scans = SyntheticLidar(split="test", train_size=3, test_size=1, count_classes=True)
    train = SyntheticLidar(split="train", train_size=3)
    labels = torch.cat([train[SampleKey(index, 0, 0)]["label"] for index in range(3)])
    assert scans.info.facts["class_counts"] == tuple(labels.bincount(minlength=len(CLASS_NAMES)).tolist())


def test_the_same_key_gives_the_same_bits_in_another_process_too() -> None:
    scans = SyntheticLidar(split="train", train_size=4)
    first = scans[SampleKey(3, 0, 0)]
    for other in (pickle.loads(pickle.dumps(scans)), SyntheticLidar(split="train", train_size=9), scans):
        again = other[SampleKey(3, 7, 5)]
        assert all(torch.equal(first[name], again[name]) for name in first)
    first["points"].zero_()
    assert scans[SampleKey(3, 0, 0)]["points"].any()
    assert not torch.equal(scans[SampleKey(2, 0, 0)]["remission"], scans[SampleKey(3, 0, 0)]["remission"])
    test = SyntheticLidar(split="test", test_size=4)[SampleKey(3, 0, 0)]
    assert not torch.equal(test["remission"], scans[SampleKey(3, 0, 0)]["remission"])


def test_a_sensor_of_ones_own_sees_what_it_covers() -> None:
    scans = SyntheticLidar(split="train", train_size=2, sensor=OWN, num_columns=128, lost_share=0.0)
    sample = scans[SampleKey(0, 0, 0)]
    azimuth = torch.rad2deg(torch.atan2(sample["points"][:, 1], sample["points"][:, 0]))
    assert -50 < azimuth.min() < -49
    assert 49 < azimuth.max() < 50
    assert azimuth[0] > azimuth[10]  # from the left edge on
    assert sample["ring"].max() == 15
    facts = scans.info.facts
    assert (facts["beams_deg"], facts["num_beams"], facts["azimuth_deg"]) == ((), 16, (50.0, -50.0))
    stated: SensorBlock = {**OWN, "input_mean": (1.0, 2.0, 3.0, 4.0, 5.0), "input_std": (1.0, 1.0, 1.0, 1.0, 1.0)}
    assert SyntheticLidar(split="train", train_size=1, sensor=stated).info.facts["input_mean"] == (1, 2, 3, 4, 5)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no split 'validation'"):
        SyntheticLidar(split="validation")
    with pytest.raises(IndexError, match="sample 40 of 'test', which has 40"):
        SyntheticLidar(split="test")[SampleKey(40, 0, 0)]
