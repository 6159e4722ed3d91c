"""B3.27 to B3.30: objects pasted, frames and objects moved with their boxes, and draws from one seed."""

from __future__ import annotations

import math
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch

import sightline
from tests.mission.rows import row
from tests.mission.small import CONFIGS
from tests.mission.trial import Edit

_STREETS = CONFIGS / "boxes3d/synthetic_streets_pointpillars.yaml"
_SIZES = ("data.test_size=1", "data.validation_size=1", "data.num_columns=256")
_EXACT = ("data.range_noise_m=0.0", "data.lost_share=0.0")
_ABOVE_M = 1e-3
"""From which height above the bottom of a box a point is of the object: the ground lies in the lowest face."""
Sample = dict[str, np.ndarray]


def _load(num_frames: int, transforms: str) -> list[tuple[Sample, Sample]]:
    """Frames of streets without noise, and what the transforms of training make of them."""
    words = (*_SIZES, *_EXACT, f"data.train_size={num_frames}", f"transforms.train=[{transforms}]")
    pair = [sightline.load_data(_STREETS, "train", overrides=words, transforms=kind) for kind in ("none", "train")]
    read = [
        [{name: each.numpy() for name, each in data[index].items()} for index in range(num_frames)] for data in pair
    ]
    return list(zip(*read, strict=True))


def _turn_into(vectors: np.ndarray, yaw: float) -> np.ndarray:
    """Bring vectors (N, 2) into the axes of a box: along its heading, and to the left."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    x, y = vectors.astype(np.float64).T
    return np.column_stack([cosine * x + sine * y, cosine * y - sine * x])


def _local(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Bring points (N, 3) into the frame of a box: its middle, heading, left and up."""
    away = points.astype(np.float64) - box[:3]
    return np.column_stack([_turn_into(away[:, :2], float(box[6])), away[:, 2]])


def _is_held(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Whether points are of the object in a box."""
    box = box.astype(np.float64)
    local = _local(points, box)
    is_inside = (np.abs(local) <= box[3:6] / 2 + 1e-6).all(axis=1)
    return np.asarray(is_inside & (local[:, 2] > _ABOVE_M - box[5] / 2))


def _corners(box: np.ndarray) -> np.ndarray:
    signs = np.array([*product((-0.5, 0.5), repeat=2)]) * box[3:5]
    cosine, sine = math.cos(box[6]), math.sin(box[6])
    return np.asarray(signs @ np.array([[cosine, sine], [-sine, cosine]]) + box[:2])


def _meet(box: np.ndarray, other: np.ndarray) -> bool:
    """Whether two boxes share ground by more than 0.1 mm: on none of their four axes they lie apart."""
    for yaw in (box[6], box[6] + math.pi / 2, other[6], other[6] + math.pi / 2):
        axis = np.array([math.cos(yaw), math.sin(yaw)])
        first, second = _corners(box) @ axis, _corners(other) @ axis
        if min(first.max(), second.max()) - max(first.min(), second.min()) < 1e-4:
            return False
    return True


def _list_rows(sample: Sample, chosen: np.ndarray | slice = slice(None)) -> set[tuple[float, ...]]:
    return set(map(tuple, np.column_stack([sample["points"], sample["remission"]])[chosen].tolist()))


@row(
    "B3.27",
    "put objects of other frames, with their points, where nothing stands",
    "`transforms.train=[{name: paste_objects, counts: {Car: 15}}]`",
)
def _pasted(work: Path) -> None:
    """Each pasted box is one of another frame, holds its points and no others, and meets no box; the rest stays."""
    frames = _load(8, "{name: paste_objects, counts: {Car: 9, Pedestrian: 9}, num_frames: 3}")
    sources = [(before, row) for before, _ in frames for row in range(len(before["boxes"]))]
    tables = np.concatenate([before["boxes"] for before, _ in frames])
    num_in_the_way = num_pasted = 0
    for before, after in frames:
        own, boxes = len(before["boxes"]), after["boxes"].astype(np.float64)
        assert np.array_equal(after["boxes"][:own], before["boxes"])
        num_pasted += len(boxes) - own
        near = np.zeros(len(before["points"]), dtype=bool)
        for number in range(own, len(boxes)):
            (place,) = np.flatnonzero((tables == after["boxes"][number]).all(axis=1))
            source, row = sources[place]
            assert source is not before
            assert not source["is_ignored"][row]
            assert after["label"][number] == source["label"][row] != 2
            assert after["num_points"][number] == source["num_points"][row]
            held = _list_rows(source, _is_held(source["points"], source["boxes"][row]))
            assert _list_rows(after, _is_held(after["points"], boxes[number])) == held
            reach = boxes[number, 3:6] / 2 + 0.011  # a centimetre wider, and its lowest face
            near |= (np.abs(_local(before["points"], boxes[number])) <= reach).all(axis=1)
        assert not any(_meet(*pair) for pair in combinations(boxes, 2))
        for box in boxes[:own]:
            assert _list_rows(after, _is_held(after["points"], box)) == _list_rows(
                before, _is_held(before["points"], box)
            )
        removed = _list_rows(before) - _list_rows(after)
        assert removed <= _list_rows(before, near)
        distances = np.linalg.norm(tables[:, None, :2] - before["boxes"][:, :2], axis=2)
        num_in_the_way += int(((distances > 0) & (distances < 0.7)).any(axis=1).sum())
    assert num_pasted > 30
    assert num_in_the_way > 8  # of other frames, with the middle in a box of the frame


@row(
    "B3.28",
    "turn, mirror and scale frames with their boxes, headings and velocities",
    "`transforms.train=[{name: flip, axes: [x, y]}, {name: rotate}, {name: scale, isotropic: true}]`",
)
def _moved_frames(work: Path) -> None:
    """In the frame of its box a point stays where it was, but for the scale, and left and right of a mirrored one."""
    frames = _load(
        12, "{name: flip, axes: [x, y]}, {name: rotate}, {name: scale, low: 0.8, high: 1.2, isotropic: true}"
    )
    signs, scales, turns = [], [], []
    for before, after in frames:
        boxes, moved = before["boxes"].astype(np.float64), after["boxes"].astype(np.float64)
        scale = float(np.median(moved[:, 3] / boxes[:, 3]))
        assert np.abs(moved[:, 3:6] - scale * boxes[:, 3:6]).max() < 1e-5
        assert (moved[:, 6] >= -math.pi).all()
        assert (moved[:, 6] < math.pi).all()
        fits = []
        for sign in (1, -1):
            mirror, away = np.array([1, sign, 1]) * scale, [0.0]
            for box, other, velocity, driven in zip(boxes, moved, before["velocity"], after["velocity"], strict=True):
                held = _is_held(before["points"], box)
                away += (
                    np.abs(_local(before["points"][held], box) * mirror - _local(after["points"][held], other))
                    .ravel()
                    .tolist()
                )
                speeds = [_turn_into(each[None], yaw)[0] for each, yaw in ((velocity, box[6]), (driven, other[6]))]
                away += np.abs(speeds[0] * mirror[:2] - speeds[1]).tolist()
            fits.append(max(away) < 1e-4)
        assert sum(fits) == 1, "points and boxes moved apart"
        signs.append(fits[0])
        scales.append(scale)
        turns.append(float(moved[0, 6] - boxes[0, 6]))
    assert 0 < sum(signs) < len(signs)
    assert min(scales) < 0.9 < 1.1 < max(scales)
    assert len({round(turn, 3) for turn in turns}) == len(turns)


@row(
    "B3.29",
    "move and turn every object a little with its points, where it then meets no other",
    "`transforms.train=[{name: move_objects}]`",
)
def _moved_objects(work: Path) -> None:
    """Each point stays where it was in its box; moves have the spread that is stated, turns are 9 degrees at most."""
    shifts, turns = [], []
    for before, after in _load(16, "{name: move_objects, std_m: 0.25}"):
        boxes, moved = before["boxes"].astype(np.float64), after["boxes"].astype(np.float64)
        assert np.array_equal(after["boxes"][:, 3:6], before["boxes"][:, 3:6])
        is_free = np.ones(len(before["points"]), dtype=bool)
        for box, other in zip(boxes, moved, strict=True):
            held = _is_held(before["points"], box)
            apart = _local(before["points"][held], box) - _local(after["points"][held], other)
            assert not held.any() or np.abs(apart).max() < 1e-4
            local = np.abs(_local(before["points"], box))
            is_free &= (local > box[3:6] / 2 + 1e-3).any(axis=1)
        assert np.array_equal(after["points"][is_free], before["points"][is_free])
        assert not any(_meet(*pair) for pair in combinations(moved, 2))
        shifts.append(moved[:, :3] - boxes[:, :3])
        turns.append((moved[:, 6] - boxes[:, 6] + math.pi) % (2 * math.pi) - math.pi)
    spread, turned = np.concatenate(shifts), np.abs(np.concatenate(turns))
    assert len(spread) > 100
    assert np.abs(spread.std(axis=0) - 0.25).max() < 0.04
    assert math.pi / 20 * 0.9 < turned.max() < math.pi / 20 + 1e-5
    assert abs(turned.mean() - math.pi / 40) < 0.015


ALL = (
    "{name: paste_objects, counts: {Car: 5, Pedestrian: 5}}, {name: move_objects}, {name: flip, axes: [x, y]}, "
    "{name: rotate}, {name: scale, isotropic: true}, "
    "{name: limit_extent, extent_m: [-46.08, -11.52, -3, 46.08, 11.52, 1]}, {name: shuffle_points}"
)
"""Every transform of training that moves or draws something."""


@row(
    "B3.30",
    "get the same augmented frames from the same seed, in any number of workers, and others in each epoch",
    "`seed=0`, `loader.workers=2`",
)
def _one_seed(work: Path) -> None:
    def read(*words: str, workers: int = 0) -> list[dict[str, torch.Tensor]]:
        given = (*_SIZES, "data.train_size=4", "train.batch_size=2", f"transforms.train=[{ALL}]", *words)
        loader = sightline.load_data(_STREETS, "train", overrides=given).loader(workers=workers)
        return [batch for _ in range(2) for batch in loader]

    first, others = read(), {"again": read(), "by workers": read(workers=2)}
    assert len(first) == 4
    for how, batches in others.items():
        for batch, other in zip(first, batches, strict=True):
            assert batch.keys() == other.keys()
            assert all(torch.equal(batch[name], other[name]) for name in batch), how
    assert first[0]["boxes"].shape[0] > 12  # own and pasted
    places = [
        {tuple(box) for batch in batches for box in batch["boxes"].tolist()} for batches in (first[:2], first[2:])
    ]
    assert not places[0] & places[1], "two epochs share a box"
    assert not places[0] & {tuple(box) for batch in read("seed=1") for box in batch["boxes"].tolist()}


MUTANTS: dict[str, Edit] = {
    "B3.27": Edit(
        "areas/boxes3d/transforms.py",
        "(box3d_iou_bev(boxes, torch.cat(present)) == 0).all(dim=1)",
        "(box3d_iou_bev(boxes, torch.cat(present)) >= 0).all(dim=1)",
    ),
    "B3.28": Edit("parts/transforms/moved_boxes.py", "math.pi - yaw, yaw)", "-yaw, yaw)"),
    "B3.29": Edit(
        "areas/boxes3d/transforms.py",
        "torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=1)",
        "torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], dim=1)",
    ),
    "B3.30": Edit(
        "areas/boxes3d/transforms.py",
        "shifts = draws.normal(num_boxes, self.tries, 3)[0]",
        "shifts = torch.randn(num_boxes, self.tries, 3)",
    ),
}
"""One edit a row that breaks its feature and raises nothing."""
