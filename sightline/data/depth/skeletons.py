"""The joints of hands and bodies as depth data sets order them: names, bones, the deviations and lengths of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.errors import ConfigError
from sightline.schema import suggest

__all__ = ["BODY_15", "HAND_14", "HAND_16", "HAND_21", "HAND_21_BY_LEVEL", "Skeleton"]


@dataclass(frozen=True)
class Skeleton:
    """What is known of a set's joints, which are counted from 0.

    `bones` is a tree of pairs of joints. `sigmas` are the deviations of annotators, in scales of the figure, with which
    object keypoint similarity is computed; `pck_joints` the two joints whose distance is the unit of PCK. `centre` is
    the joint that the cube lies about where the truth is the reference point; `cube_mm` is the cube's usual side. Some
    of a set's joints may lack the centre, or the unit of PCK: None.
    """

    joint_names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    pck_joints: tuple[int, int] | None
    centre: int | None
    cube_mm: float

    def __post_init__(self) -> None:
        num_joints = len(self.joint_names)
        assert len(self.sigmas) == num_joints, f"{len(self.sigmas)} deviations of {num_joints} joints"
        assert len(self.bones) == num_joints - 1, f"{len(self.bones)} bones, a tree of {num_joints} joints has one less"

    def __len__(self) -> int:
        return len(self.joint_names)

    @property
    def facts(self) -> dict[str, Any]:
        """What a data set with these joints states of them."""
        known = {
            "num_joints": len(self),
            "joint_names": self.joint_names,
            "bones": self.bones,
            "keypoint_sigmas": self.sigmas,
            "pck_joints": self.pck_joints,
            "centre_joint": self.centre,
            "cube_mm": self.cube_mm,
        }
        return {name: value for name, value in known.items() if value is not None}

    def joint_indices(self, names: Sequence[str]) -> list[int]:
        """Where these joints stand, all of them for no name. Raises ConfigError for an unknown or repeated name."""
        for name in names:
            if name not in self.joint_names:
                otherwise = f"; they are {', '.join(self.joint_names)}"
                raise ConfigError(
                    f"joints: '{name}' is not a joint{suggest(name, self.joint_names, otherwise=otherwise)}"
                )
            if names.count(name) > 1:
                raise ConfigError(f"joints: '{name}' is given twice")
        return [self.joint_names.index(name) for name in names] or list(range(len(self)))

    def select_joints(self, names: Sequence[str]) -> Skeleton:
        """The skeleton of these joints alone, in their order; bones lead past those that are left out."""
        places = self.joint_indices(names)
        row_of = {place: row for row, place in enumerate(places)}
        bones, reached, seen = [], [(places[0], places[0])], {places[0]}
        while reached:
            joint, last = reached.pop(0)
            if joint in row_of and joint != last:
                bones.append((row_of[last], row_of[joint]))
            near = [a + b - joint for a, b in self.bones if joint in (a, b) and a + b - joint not in seen]
            seen.update(near)
            reached += [(each, joint if joint in row_of else last) for each in near]
        return Skeleton(
            tuple(self.joint_names[place] for place in places),
            self.bones if places == list(range(len(self))) else tuple(bones),
            tuple(self.sigmas[place] for place in places),
            _rows(self.pck_joints, row_of),
            None if self.centre is None else row_of.get(self.centre),
            self.cube_mm,
        )


def _rows(joints: tuple[int, int] | None, row_of: Mapping[int, int]) -> tuple[int, int] | None:
    if joints is None or not row_of.keys() >= {*joints}:
        return None
    return row_of[joints[0]], row_of[joints[1]]


_WRIST = 0.029
_FINGERS = {
    "thumb": (0.022, 0.035, 0.037, 0.047),
    "index": (0.026, 0.025, 0.024, 0.035),
    "middle": (0.018, 0.024, 0.022, 0.026),
    "ring": (0.017, 0.021, 0.021, 0.032),
    "little": (0.020, 0.019, 0.022, 0.031),
}
"""Deviations from the knuckle to the tip. Source: Jin et al. 2020 (COCO-WholeBody), as its evaluation code has them."""
_PARTS = ("mcp", "pip", "dip", "tip")


def _hand_21() -> Skeleton:
    """Wrist, then finger after finger, each from the knuckle to the tip."""
    fingers = ("index", "middle", "ring", "little", "thumb")
    names = ["wrist", *(f"{finger}_{part}" for finger in fingers for part in _PARTS)]
    bones = [(0 if level == 0 else 4 * f + level, 4 * f + level + 1) for f in range(5) for level in range(4)]
    sigmas = [_WRIST, *(sigma for finger in fingers for sigma in _FINGERS[finger])]
    return Skeleton(tuple(names), tuple(bones), tuple(sigmas), (0, 5), 5, 200.0)


def _hand_21_by_level() -> Skeleton:
    """Wrist, then all knuckles, thumb first, then the other joints finger after finger."""
    fingers = tuple(_FINGERS)
    names = ["wrist", *(f"{finger}_mcp" for finger in fingers)]
    names += [f"{finger}_{part}" for finger in fingers for part in _PARTS[1:]]
    bones = [(0, 1 + f) for f in range(5)]
    bones += [(1 + f if level == 0 else 5 + 3 * f + level, 6 + 3 * f + level) for f in range(5) for level in range(3)]
    sigmas = [_WRIST, *(_FINGERS[finger][0] for finger in fingers)]
    sigmas += [sigma for finger in fingers for sigma in _FINGERS[finger][1:]]
    return Skeleton(tuple(names), tuple(bones), tuple(sigmas), (0, 3), 3, 250.0)


def _hand_16() -> Skeleton:
    """Palm, then finger after finger: root, middle, tip. The palm has the wrist's deviation, a root the knuckle's."""
    fingers = tuple(_FINGERS)
    names = ["palm", *(f"{finger}_{part}" for finger in fingers for part in ("root", "middle", "tip"))]
    bones = [(0 if level == 0 else 3 * f + level, 3 * f + level + 1) for f in range(5) for level in range(3)]
    sigmas = [_WRIST, *(_FINGERS[finger][place] for finger in fingers for place in (0, 1, 3))]
    return Skeleton(tuple(names), tuple(bones), tuple(sigmas), (0, 7), 0, 200.0)


def _hand_14() -> Skeleton:
    """Tips and middles from the little finger to the thumb, its root, two points of the wrist, and the palm."""
    fingers = ("little", "ring", "middle", "index", "thumb")
    names = [f"{finger}_{part}" for finger in fingers for part in ("tip", "middle")]
    bones = [bone for f in range(4) for bone in ((13, 2 * f + 1), (2 * f + 1, 2 * f))]
    sigmas = [_FINGERS[finger][place] for finger in fingers[:4] for place in (3, 1)]
    sigmas += [_FINGERS["thumb"][3], _FINGERS["thumb"][2], _FINGERS["thumb"][0], _WRIST, _WRIST, _WRIST]
    bones += [(13, 10), (10, 9), (9, 8), (13, 11), (13, 12)]
    names += ["thumb_root", "wrist_1", "wrist_2", "palm"]
    return Skeleton(tuple(names), tuple(bones), tuple(sigmas), (11, 13), 13, 250.0)


def _body_15() -> Skeleton:
    """The person's own right before the left. COCO has no neck, torso, hand and foot: shoulder, wrist, ankle stand in.

    The head has the ear's deviation.
    """
    pairs = ("shoulder", "elbow", "hand")
    names = ["head", "neck", *(f"{side}_{joint}" for joint in pairs for side in ("right", "left")), "torso"]
    names += [f"{side}_{joint}" for joint in ("hip", "knee", "foot") for side in ("right", "left")]
    bones = [(1, 0), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (1, 8)]
    bones += [(8, 9), (8, 10), (9, 11), (10, 12), (11, 13), (12, 14)]
    sigmas = [0.035, 0.079, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.079]
    sigmas += [0.107, 0.107, 0.087, 0.087, 0.089, 0.089]
    return Skeleton(tuple(names), tuple(bones), tuple(sigmas), (1, 8), 8, 2000.0)


HAND_21 = _hand_21()
"""MSRA's order."""
HAND_21_BY_LEVEL = _hand_21_by_level()
"""The order of HANDS 2017."""
HAND_16 = _hand_16()
"""ICVL's order."""
HAND_14 = _hand_14()
"""The fourteen of NYU's 36 joints that are evaluated. It has no knuckles: the unit of PCK is wrist to palm."""
BODY_15 = _body_15()
"""ITOP's order."""
