"""Furnished rooms from numbers alone: clouds of different sizes with colours and the class of every point."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sightline import registry
from sightline.arguments import NonNegativeFloat, PositiveFloat, Seed
from sightline.data.scenes.indoor_classes import CLASS_NAMES
from sightline.data.synthetic.synthetic_furniture import Body
from sightline.data.synthetic.synthetic_layout import FurnishedRoom, furnish_room
from sightline.data.synthetic.synthetic_shapes import Many
from sightline.draws import Draws
from sightline.errors import ConfigError
from sightline.geometry.parametric_surfaces import ROW, sample_patches
from sightline.types import CloudInputSpec, DataInfo, Field, Sample, SampleKey

__all__ = ["SyntheticRooms"]

_SPLITS = ("train", "test")
_MOST_POINTS = 2_000_000
_MAX_CACHE_BYTES = 2**28
_AREA = 4
_REACH_M = 10.0
_TOUCH_M = 1e-3
_ONLY_INSIDE = (CLASS_NAMES.index("beam"), CLASS_NAMES.index("column"))
_HUES = np.array(
    [
        *([0.85, 0.85, 0.83], [0.55, 0.50, 0.45], [0.80, 0.78, 0.74], [0.78, 0.77, 0.75], [0.76, 0.76, 0.72]),
        *([0.65, 0.75, 0.85], [0.60, 0.45, 0.35], [0.65, 0.52, 0.38], [0.35, 0.35, 0.40], [0.50, 0.35, 0.40]),
        *([0.55, 0.42, 0.32], [0.90, 0.90, 0.90], [0.50, 0.50, 0.50]),
    ]
)
"""The mean colour of each class; things differ from it by more than most classes do from each other."""


@registry.data.add("synthetic_rooms")
class SyntheticRooms:
    """Furnished rooms with the thirteen classes of S3DIS at every point, a pure function of (data_seed, split, index).

    `points_per_m2` points lie on a square metre of every surface, in random order; what another thing covers is left
    out, so rooms differ in size. Metres, z up, a corner of the floor at the origin. `noise_m` is the standard deviation
    of normal errors of the coordinates. `colours` adds red, green and blue, 0 to 1, to the model's input. Epoch and
    seed of a key change nothing. Source: made here; sightline/data/synthetic/synthetic_furniture.py.
    """

    def __init__(
        self,
        *,
        split: str,
        train_size: Many = 160,
        test_size: Many = 40,
        points_per_m2: PositiveFloat = 40.0,
        noise_m: NonNegativeFloat = 0.005,
        colours: bool = True,
        data_seed: Seed = 0,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"synthetic_rooms: there is no split '{split}'; it has {' and '.join(_SPLITS)}")
        self._split = split
        self._sizes = {"train": train_size, "test": test_size}
        self._points_per_m2 = points_per_m2
        self._noise_m = noise_m
        self._data_seed = data_seed
        self._made: dict[int, dict[str, np.ndarray]] = {}
        self._made_bytes = 0
        self.info = _describe(self._sizes, colours)

    @classmethod
    def card(cls) -> dict[str, str]:
        """What `sightline data info` says of this set."""
        return {
            "layout": "no files: every room is computed from data_seed, the split and its index",
            "obtain": "nothing to obtain; it is part of sightline",
            "terms": "free to use in any way, under the licence of sightline",
        }

    def __len__(self) -> int:
        return self._sizes[self._split]

    def __getitem__(self, key: SampleKey) -> Sample:
        if not 0 <= key.index < len(self):
            raise IndexError(f"synthetic_rooms: sample {key.index} of '{self._split}', which has {len(self)}")
        room = self._made.get(key.index)
        if room is None:
            room = self._make(key.index)
            num_bytes = sum(values.nbytes for values in room.values())
            if self._made_bytes + num_bytes <= _MAX_CACHE_BYTES:
                self._made[key.index] = room
                self._made_bytes += num_bytes
        return {name: torch.from_numpy(values.copy()) for name, values in room.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Without the rooms made so far: a worker process makes its own, with the same bits."""
        return self.__dict__ | {"_made": {}, "_made_bytes": 0}

    def _make(self, index: int) -> dict[str, np.ndarray]:
        split = _SPLITS.index(self._split)  # in the epoch's place, so train and test share no stream
        draws = Draws.for_samples([SampleKey(index, split, self._data_seed)])
        room = furnish_room(draws.stream("layout"))
        rows = np.concatenate([thing.rows for thing in room.things])
        count = round(rows[:, _AREA].sum() * self._points_per_m2)
        if not 1 <= count <= _MOST_POINTS:
            raise ConfigError(
                f"synthetic_rooms: points_per_m2 {self._points_per_m2:g} makes {count} points of room {index}; give "
                f"one that makes 1 to {_MOST_POINTS}"
            )
        surface = sample_patches(rows.reshape(1, -1, ROW), draws.stream("surface").bits(count, 2))
        owner = np.repeat(np.arange(len(room.things)), [len(thing.rows) for thing in room.things])[surface.patch[0]]
        is_seen = _is_seen(surface.points[0], owner, room)
        points = surface.points[0] + self._noise_m * draws.stream("noise").normal(count, 3)[0].double().numpy()
        labels = np.array([thing.label for thing in room.things])
        colours = _paint(labels, owner, draws.stream("colours"))
        return {
            "points": points[is_seen].astype(np.float32),
            "colours": colours[is_seen],
            "label": labels[owner][is_seen].astype(np.int64),
        }


def _is_seen(points: np.ndarray, owner: np.ndarray, room: FurnishedRoom) -> np.ndarray:
    """Which points (N,) are inside no other thing's body; of beams and columns also which are inside the room."""
    is_seen = np.ones(len(points), dtype=bool)
    for number, thing in enumerate(room.things):
        if thing.body is not None:
            is_seen &= ~_is_within(points, thing.body) | (owner == number)
    is_cut = np.isin(np.array([thing.label for thing in room.things])[owner], _ONLY_INSIDE)
    is_inside = ((points >= 0) & (points <= room.size)).all(axis=1)
    return is_seen & (is_inside | ~is_cut)


def _is_within(points: np.ndarray, body: Body) -> np.ndarray:
    """Which points lie in a box, or touch it."""
    offset = points - body.centre
    along = [offset[:, 0] * axis[0] + offset[:, 1] * axis[1] + offset[:, 2] * axis[2] for axis in body.turn.T]
    return np.all([np.abs(a) <= half + _TOUCH_M for a, half in zip(along, body.half, strict=True)], axis=0)


def _paint(labels: np.ndarray, owner: np.ndarray, draws: Draws) -> np.ndarray:
    """Colours (N, 3) float32 in 0..1: that of the class, of the thing, of light, and of every point's own."""
    of_thing = draws.normal(len(labels), 3)[0].double().numpy() * 0.10
    shade = draws.normal(len(labels), 1)[0].double().numpy() * 0.12
    own = draws.normal(len(owner), 3)[0].double().numpy() * 0.03
    light = 0.8 + 0.3 * draws.uniform(1)[0].double().numpy()
    return np.clip((_HUES[labels] + of_thing + shade)[owner] * light + own, 0, 1).astype(np.float32)


def _describe(sizes: dict[str, int], colours: bool) -> DataInfo:
    frame = "room, z up, a corner of the floor at the origin"
    fields = {
        "points": Field("points 3", "float32", "m", frame, -_REACH_M, _REACH_M, "concatenate"),
        "colours": Field("points 3", "float32", "red, green, blue", "", 0.0, 1.0, "concatenate"),
        "label": Field("points", "int64", "class", "", 0, len(CLASS_NAMES) - 1, "concatenate"),
    }
    facts = {
        "num_classes": len(CLASS_NAMES),
        "class_names": CLASS_NAMES,
        "in_channels": 6 if colours else 3,
        "up_axis": "z",
    }
    features = ("colours",) if colours else ()
    return DataInfo(facts=facts, fields=fields, split_sizes=sizes, features=features, clouds=CloudInputSpec())
