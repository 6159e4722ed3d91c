"""Synthetic furnished rooms: clouds of different sizes with colours and the class of every point."""

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
_MAX_POINTS = 2_000_000
_MAX_CACHE_BYTES = 2**28
_AREA = 4
_REACH_M = 10.0
_TOUCH_M = 1e-3
_CUT_AT_ROOM = (CLASS_NAMES.index("beam"), CLASS_NAMES.index("column"))
_MEAN_COLOURS = np.array(
    [
        *([0.85, 0.85, 0.83], [0.55, 0.50, 0.45], [0.80, 0.78, 0.74], [0.78, 0.77, 0.75], [0.76, 0.76, 0.72]),
        *([0.65, 0.75, 0.85], [0.60, 0.45, 0.35], [0.65, 0.52, 0.38], [0.35, 0.35, 0.40], [0.50, 0.35, 0.40]),
        *([0.55, 0.42, 0.32], [0.90, 0.90, 0.90], [0.50, 0.50, 0.50]),
    ]
)
"""Mean colour of each class; things of a class vary more than most classes differ."""


@registry.data.add("synthetic_rooms")
class SyntheticRooms:
    """Furnished rooms with the thirteen classes of S3DIS at every point, a pure function of (data_seed, split, index).

    Surfaces are sampled with `points_per_m2`, in random order; points covered by another thing are left out, so rooms
    differ in size. Metres, z up, a corner of the floor at the origin. `noise_m` is the standard deviation of the noise
    of the coordinates. `colours` adds red, green and blue, 0 to 1, to the model's input. Epoch and
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
        self._cache: dict[int, dict[str, np.ndarray]] = {}
        self._cache_bytes = 0
        self.info = _describe(self._sizes, colours)

    @classmethod
    def card(cls) -> dict[str, str]:
        """Description, accepted layouts, download page and licence."""
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
        room = self._cache.get(key.index)
        if room is None:
            room = self._make(key.index)
            num_bytes = sum(values.nbytes for values in room.values())
            if self._cache_bytes + num_bytes <= _MAX_CACHE_BYTES:
                self._cache[key.index] = room
                self._cache_bytes += num_bytes
        return {name: torch.from_numpy(values.copy()) for name, values in room.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without cached rooms: a worker process makes its own, with the same bits."""
        return self.__dict__ | {"_cache": {}, "_cache_bytes": 0}

    def _make(self, index: int) -> dict[str, np.ndarray]:
        split = _SPLITS.index(self._split)  # instead of the epoch, so train and test share no stream
        draws = Draws.for_samples([SampleKey(index, split, self._data_seed)])
        room = furnish_room(draws.stream("layout"))
        rows = np.concatenate([thing.rows for thing in room.things])
        count = round(rows[:, _AREA].sum() * self._points_per_m2)
        if not 1 <= count <= _MAX_POINTS:
            raise ConfigError(
                f"synthetic_rooms: points_per_m2 {self._points_per_m2:g} makes {count} points of room {index}; give "
                f"one that makes 1 to {_MAX_POINTS}"
            )
        surface = sample_patches(rows.reshape(1, -1, ROW), draws.stream("surface").bits(count, 2))
        owner = np.repeat(np.arange(len(room.things)), [len(thing.rows) for thing in room.things])[surface.patch[0]]
        visible_mask = _visible_mask(surface.points[0], owner, room)
        points = surface.points[0] + self._noise_m * draws.stream("noise").normal(count, 3)[0].double().numpy()
        labels = np.array([thing.label for thing in room.things])
        colours = _draw_colours(labels, owner, draws.stream("colours"))
        return {
            "points": points[visible_mask].astype(np.float32),
            "colours": colours[visible_mask],
            "label": labels[owner][visible_mask].astype(np.int64),
        }


def _visible_mask(points: np.ndarray, owner: np.ndarray, room: FurnishedRoom) -> np.ndarray:
    """Mask (N,) of points outside all other things' bodies; points of beams and columns must be inside the room."""
    visible_mask = np.ones(len(points), dtype=bool)
    for number, thing in enumerate(room.things):
        if thing.body is not None:
            visible_mask &= ~_body_mask(points, thing.body) | (owner == number)
    needs_room_mask = np.isin(np.array([thing.label for thing in room.things])[owner], _CUT_AT_ROOM)
    in_room_mask = ((points >= 0) & (points <= room.size)).all(axis=1)
    return visible_mask & (in_room_mask | ~needs_room_mask)


def _body_mask(points: np.ndarray, body: Body) -> np.ndarray:
    """Mask (N,) of points inside a body or on its surface."""
    offset = points - body.centre
    along = [offset[:, 0] * axis[0] + offset[:, 1] * axis[1] + offset[:, 2] * axis[2] for axis in body.turn.T]
    return np.all([np.abs(a) <= half + _TOUCH_M for a, half in zip(along, body.half, strict=True)], axis=0)


def _draw_colours(labels: np.ndarray, owner: np.ndarray, draws: Draws) -> np.ndarray:
    """Draw colours (N, 3) float32, 0 to 1: class colour with variation per thing, shade, light and point noise."""
    thing_offset = draws.normal(len(labels), 3)[0].double().numpy() * 0.10
    shade = draws.normal(len(labels), 1)[0].double().numpy() * 0.12
    point_noise = draws.normal(len(owner), 3)[0].double().numpy() * 0.03
    light = 0.8 + 0.3 * draws.uniform(1)[0].double().numpy()
    return np.clip((_MEAN_COLOURS[labels] + thing_offset + shade)[owner] * light + point_noise, 0, 1).astype(np.float32)


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
