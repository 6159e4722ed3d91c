"""The embedded streets with 3D boxes: boxes hold what is theirs, headings can be told, motion and ids are true."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from sightline.areas.boxes3d.sets.street_traffic import FRAME_S, place_street
from sightline.areas.boxes3d.sets.synthetic_streets3d import StreetFrame, SyntheticStreets3d
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.store.files.sensors import SensorBlock
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.streets.beams import NOTHING, Obstacles, cast_beams
from sightline.store.streets.casting import SENSOR_HEIGHT_M

CAR = 0
HDL32: SensorBlock = {"preset": "hdl32"}


def to_box(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Points (N, 3) in the axes of a box (7,), as shares of its size: -0.5 to 0.5 inside."""
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    x, y, z = (points.astype(np.float64) - box[:3]).T
    return np.stack([cosine * x + sine * y, cosine * y - sine * x, z], axis=1) / box[3:6]


def is_in(points: np.ndarray, box: np.ndarray, *, wider_m: float = 0.0) -> np.ndarray:
    inside = np.abs(points[:, :2] - box[:2]).max(axis=1) < box[3:6].max() + wider_m  # most are far away
    box = box + np.array([0, 0, 0, wider_m, wider_m, wider_m, 0])
    inside[inside] = (np.abs(to_box(points[inside], box)) <= 0.5).all(axis=1)
    return inside


@pytest.fixture(scope="module")
def frames() -> list[StreetFrame]:
    streets = SyntheticStreets3d(split="train", num_columns=512)
    return [streets.frame("train", index) for index in range(8)]


@pytest.fixture(scope="module")
def sequence() -> list[StreetFrame]:
    streets = SyntheticStreets3d(split="train", sequence=10, num_columns=512)
    return [streets.frame("train", index) for index in (*range(10), *range(20, 30))]


def test_boxes_hold_their_points_and_no_others(frames: list[StreetFrame]) -> None:
    held, num_points, num_others = 0, 0, 0
    for frame in frames:
        for row, box in enumerate(frame.table.boxes):
            inside, is_own = is_in(frame.scan.points, box), frame.owner == row
            assert abs(int(inside.sum()) - frame.table.num_points[row]) <= 1  # on a face, float32 may see it outside
            held, num_points = held + int((inside & is_own).sum()), num_points + int(is_own.sum())
            num_others += int((inside & ~is_own).sum())
        assert (frame.table.is_ignored == (frame.table.num_points < 5)).all()
        bottoms = frame.table.boxes[:, 2] - frame.table.boxes[:, 5] / 2
        assert bottoms == pytest.approx(np.full(len(bottoms), -SENSOR_HEIGHT_M), abs=1e-12)
    assert num_points > 5_000
    assert held >= 0.98 * num_points
    assert num_others <= 0.01 * num_points  # the ground within the margin of a box


def test_the_front_of_a_car_can_be_told_by_its_cabin(frames: list[StreetFrame]) -> None:
    along = [
        to_box(frame.scan.points[(frame.owner == row)], box)
        for frame in frames
        for row, box in enumerate(frame.table.boxes)
        if frame.table.label[row] == CAR
    ]
    cars = np.concatenate(along)
    cabin = cars[cars[:, 2] > 0.15, 0]  # above the body, which is 0.55 of the height
    assert len(cabin) > 200
    assert -0.38 < cabin.min() < -0.33
    assert 0.17 < cabin.max() < 0.22  # never over the hood: half a turn would put it there
    body = cars[cars[:, 2] < 0.0, 0]
    assert body.max() > 0.45
    assert body.min() < -0.45


@pytest.fixture(scope="module")
def pairs(frames: list[StreetFrame]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each box (7,) and the points of its frame that are near it."""
    return [
        (points[np.abs(points - box[:3]).max(axis=1) < 6], box)
        for frame in frames
        for points in [frame.scan.points]
        for box in frame.table.boxes
    ]


def count_test(pairs: list[tuple[np.ndarray, np.ndarray]], change: Callable[[np.ndarray], np.ndarray]) -> int:
    """Points inside of all boxes, read wrongly."""
    return sum(int(is_in(points, change(box[None])[0]).sum()) for points, box in pairs)


_Z, _YAW = np.eye(7)[2], np.eye(7)[6]
WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bottom for centre": lambda boxes: boxes + _Z * boxes[:, 5:6] / 2,
    "turned clockwise": lambda boxes: boxes * (1 - 2 * _YAW),
    "from the left": lambda boxes: boxes + _YAW * np.pi / 2,
    "clockwise from the left": lambda boxes: boxes * (1 - 2 * _YAW) - _YAW * np.pi / 2,
    "width first": lambda boxes: boxes[:, [0, 1, 2, 4, 3, 5, 6]],
    "height first": lambda boxes: boxes[:, [0, 1, 2, 5, 4, 3, 6]],
    "degrees": lambda boxes: boxes * (1 - _YAW) + boxes * _YAW * np.pi / 180,
}


def test_counts_name_the_true_reading(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Three per cent is the difference from which the readers warn."""
    true = count_test(pairs, lambda boxes: boxes)
    counts = {name: count_test(pairs, change) / true for name, change in WRONG.items()}
    assert len(counts) == 7
    assert max(counts.values()) < 0.97, counts


def test_half_a_turn_cannot_be_told_by_counts(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    turned = count_test(pairs, lambda boxes: boxes + _YAW * np.pi)
    assert turned == pytest.approx(count_test(pairs, lambda boxes: boxes), abs=2)


def test_yaws_of_cars_cover_the_circle_and_their_speeds_the_range() -> None:
    streets = SyntheticStreets3d(split="train")
    users = [streets.traffic("train", index).users for index in range(90)]
    label, yaw, speed = (np.concatenate([getattr(each, name) for each in users]) for name in ("label", "yaw", "speed"))
    car_yaw = (yaw[label == CAR] + np.pi) % (2 * np.pi) - np.pi
    share, _ = np.histogram(car_yaw, bins=12, range=(-np.pi, np.pi))
    assert (share / len(car_yaw)).min() > 0.01
    across = np.abs(np.sin(car_yaw)) > np.sin(0.2)
    assert 0.25 < across.mean() < 0.38
    driving = speed[(label == CAR) & (speed > 0)]
    assert 0 < driving.min() < 1.5
    assert 13 < driving.max() <= 15
    assert 0.3 < len(driving) / len(car_yaw) < 0.65
    assert set(label.tolist()) == {0, 1, 2}


def test_three_in_ten_cars_are_partly_hidden() -> None:
    """By the beams alone: returns of a car among all others, and of the same car alone, a tenth to nine are missing."""
    streets = SyntheticStreets3d(split="train")
    azimuth, elevation = np.linspace(-np.pi, np.pi, 512), np.deg2rad(np.linspace(1.0, -22.0, 24))
    hidden = []
    for index in range(40):
        street, owner = place_street(streets.traffic("train", index), 0.0)
        boxes, owner = street.things.boxes, np.append(owner, [-1, -1])
        seen = cast_beams(elevation, azimuth, street.things, ground_m=-SENSOR_HEIGHT_M).object_id
        for row in sorted(set(owner[:-2][street.ids == 10].tolist())):
            alone = Obstacles(boxes[owner[: len(boxes)] == row], np.zeros((0, 4)))
            near = np.abs((azimuth - np.arctan2(*alone.boxes[0, 1::-1]) + np.pi) % (2 * np.pi) - np.pi) < 0.6
            whole = (
                cast_beams(elevation, azimuth[near], alone, ground_m=-SENSOR_HEIGHT_M).object_id > NOTHING + 1
            ).sum()
            if whole >= 15:
                hidden.append(1 - (owner[seen[:, near]] == row).sum() / whole)
    share = np.mean([0.1 < each < 0.9 for each in hidden])
    assert len(hidden) > 200
    assert 0.23 < share < 0.37, share


def bring_back(sequence: list[StreetFrame], velocity_factor: float) -> dict[str, float]:
    """Share of points of frame t + 1 that lie in the box of t, brought there by poses and the box's velocity."""
    counts = {"driving": np.zeros(2), "standing": np.zeros(2)}
    for now, after in pairwise(sequence):
        if after.time_s == 0:
            continue
        back = np.linalg.inv(now.pose) @ after.pose
        for row in np.flatnonzero(now.table.label == CAR):
            assert now.table.track[row] == after.table.track[row]
            speed = float(np.hypot(*now.table.velocity[row]))
            turned = after.table.boxes[row, 6] - now.table.boxes[row, 6] + np.arctan2(back[1, 0], back[0, 0])
            if abs(np.sin(turned)) > 1e-9 or 0 < speed < 3:
                continue
            points = after.scan.points[after.owner == row] @ back[:3, :3].T + back[:3, 3]
            points[:, :2] -= velocity_factor * FRAME_S * now.table.velocity[row]
            inside = is_in(points, now.table.boxes[row], wider_m=0.1)
            counts["driving" if speed else "standing"] += (inside.sum(), len(inside))
    assert min(total for _, total in counts.values()) > 1000
    return {name: float(inside / total) for name, (inside, total) in counts.items()}


def test_points_move_back_into_the_box_of_the_frame_before(sequence: list[StreetFrame]) -> None:
    assert min(bring_back(sequence, 1.0).values()) >= 0.95
    without = bring_back(sequence, 0.0)
    assert without["driving"] < 0.95
    assert without["standing"] >= 0.95


def test_poses_move_houses_onto_themselves(sequence: list[StreetFrame]) -> None:
    """Both long sides of the street stay at their place in the world, to 3 sigma, while the sensor moves."""
    first, last = sequence[0], sequence[9]
    assert np.hypot(*(last.pose[:2, 3] - first.pose[:2, 3])) > 0.5
    fronts = []
    for frame in (first, last):
        house = frame.scan.points[frame.scan.ids == 50] @ frame.pose[:3, :3].T + frame.pose[:3, 3]
        near = house[(np.abs(house[:, 0]) < 5) & (house[:, 1] > 0), 1]
        fronts.append(np.median(near))
        assert frame.scan.points[frame.scan.ids == 40, 2].mean() + frame.pose[2, 3] == pytest.approx(0.0, abs=0.01)
    assert abs(fronts[0] - fronts[1]) < 0.06
    assert np.linalg.det(last.pose[:3, :3]) == pytest.approx(1.0, abs=1e-12)


def test_a_street_keeps_its_objects_in_all_frames(sequence: list[StreetFrame]) -> None:
    for frame in sequence[1:10]:
        assert (frame.table.track == sequence[0].table.track).all()
        assert (frame.table.label == sequence[0].table.label).all()
        assert frame.table.boxes[:, 3:6] == pytest.approx(sequence[0].table.boxes[:, 3:6], abs=0)
    assert not set(sequence[0].table.track) & set(sequence[10].table.track)
    assert [frame.time_s for frame in sequence[:10]] == pytest.approx(np.arange(10) / 10)
    assert sequence[3].table.frame == "0000/03"


def test_samples_are_those_of_the_contract() -> None:
    streets = SyntheticStreets3d(split="train", sensor=HDL32, num_columns=256, sequence=2)
    samples = [streets[SampleKey(index, 0, 0)] for index in range(2)]
    fields = streets.info.fields
    assert set(samples[0]) == set(fields)
    for name, field in fields.items():
        value = samples[0][name]
        assert str(value.dtype) == f"torch.{field.dtype}"
        assert value.ndim == len(field.shape.split())
    assert (streets.info.facts["class_names"], streets.info.facts["in_channels"]) == (
        ("Car", "Pedestrian", "Cyclist"),
        4,
    )
    assert streets.frame("train", 0).scan.ring.max() == 31
    batch = BatchReader(streets)([SampleKey(0, 0, 0), SampleKey(1, 0, 0)])
    assert batch["offsets"].tolist() == [0, *np.cumsum([len(each["points"]) for each in samples])]
    assert batch["box_offsets"].tolist() == [0, *np.cumsum([len(each["boxes"]) for each in samples])]
    assert batch["features"].shape == (batch["offsets"][-1], 1)
    assert batch["pose"].dtype == torch.float64
    low, high = np.array(streets.info.facts["range_m"]).reshape(2, 3)
    boxes = samples[0]["boxes"].numpy()
    assert ((boxes[:, :3] > low) & (boxes[:, :3] < high)).all()
    assert ((boxes[:, 6] >= -np.pi) & (boxes[:, 6] < np.pi)).all()


def test_the_same_key_gives_the_same_bits() -> None:
    streets = SyntheticStreets3d(split="train", num_columns=128)
    assert [len(streets), len(SyntheticStreets3d(split="test"))] == [400, 100]
    first = streets[SampleKey(3, 0, 0)]
    for other in (pickle.loads(pickle.dumps(streets)), streets):
        again = other[SampleKey(3, 7, 5)]
        assert all(torch.equal(first[name], again[name]) for name in first)
    first["boxes"].zero_()
    assert streets[SampleKey(3, 0, 0)]["boxes"].any()
    others = [
        streets[SampleKey(2, 0, 0)],
        *(SyntheticStreets3d(split=split, num_columns=128)[SampleKey(3, 0, 0)] for split in ("validation", "test")),
        SyntheticStreets3d(split="train", num_columns=128, data_seed=1)[SampleKey(3, 0, 0)],
    ]
    assert not any(torch.equal(each["remission"], streets[SampleKey(3, 0, 0)]["remission"]) for each in others)


def test_boxes_of_a_noisy_sensor_are_wider_and_apart() -> None:
    frame = SyntheticStreets3d(split="train", range_noise_m=0.2, num_columns=256).frame("train", 0)
    owner = np.full(len(frame.scan.points), -1)
    for row, box in enumerate(frame.table.boxes):
        inside = is_in(frame.scan.points, box)
        assert not (inside & (owner >= 0)).any()
        owner[inside] = row
    is_users = frame.owner >= 0
    assert (owner[is_users] == frame.owner[is_users]).mean() > 0.9


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no split 'val'; it has train, validation, test"):
        SyntheticStreets3d(split="val")
    with pytest.raises(IndexError, match="sample 100 of 'test', which has 100"):
        SyntheticStreets3d(split="test")[SampleKey(100, 0, 0)]
