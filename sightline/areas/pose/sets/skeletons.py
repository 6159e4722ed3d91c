"""Skeletons of hands and bodies in the order of each data set: joint names, bones, OKS and PCK constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.contract.errors import ConfigError
from sightline.contract.schema import suggest


@dataclass(frozen=True)
class Skeleton:
    """Skeleton of a set: joints (counted from 0), bones, and the constants of metrics.

    `bones` is a tree of pairs of joints. `sigmas` are the per-joint constants of object keypoint similarity (OKS):
    deviations of annotators relative to the figure's scale; empty where nobody measured them. `pck_joints` are the two
    joints whose distance is the unit of PCK. `centre` is the central joint, the reference point `truth`; `cube_mm` is
    the usual side of the cube. The centre and the unit of PCK are None if a selection of joints lacks them.
    """

    joint_names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    pck_joints: tuple[int, int] | None
    centre: int | None
    cube_mm: float

    def __post_init__(self) -> None:
        num_joints = len(self.joint_names)
        assert len(self.sigmas) in (0, num_joints), f"{len(self.sigmas)} deviations of {num_joints} joints"
        assert len(self.bones) == num_joints - 1, f"{len(self.bones)} bones, a tree of {num_joints} joints has one less"

    def __len__(self) -> int:
        return len(self.joint_names)

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the joints that a data set states."""
        facts = {
            "num_joints": len(self),
            "joint_names": self.joint_names,
            "bones": self.bones,
            "keypoint_sigmas": self.sigmas or None,
            "pck_joints": self.pck_joints,
            "centre_joint": self.centre,
            "cube_mm": self.cube_mm,
        }
        return {name: value for name, value in facts.items() if value is not None}

    def joint_indices(self, names: Sequence[str]) -> list[int]:
        """Return the indices of joints by name; all without names. Raises ConfigError for unknown or repeated names."""
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
        """Return the skeleton of some joints, in the order of `names`; bones skip the joints left out."""
        indices = self.joint_indices(names)
        new_index = {joint: row for row, joint in enumerate(indices)}
        bones, queue, visited = [], [(indices[0], indices[0])], {indices[0]}
        while queue:
            joint, last = queue.pop(0)
            if joint in new_index and joint != last:
                bones.append((new_index[last], new_index[joint]))
            neighbours = [a + b - joint for a, b in self.bones if joint in (a, b) and a + b - joint not in visited]
            visited.update(neighbours)
            queue += [(neighbour, joint if joint in new_index else last) for neighbour in neighbours]
        return Skeleton(
            tuple(self.joint_names[joint] for joint in indices),
            self.bones if indices == list(range(len(self))) else tuple(bones),
            tuple(self.sigmas[joint] for joint in indices if self.sigmas),
            _reindex(self.pck_joints, new_index),
            None if self.centre is None else new_index.get(self.centre),
            self.cube_mm,
        )


def _reindex(joints: tuple[int, int] | None, new_index: Mapping[int, int]) -> tuple[int, int] | None:
    if joints is None or not new_index.keys() >= {*joints}:
        return None
    return new_index[joints[0]], new_index[joints[1]]


_WRIST = 0.029
_FINGERS = {
    "thumb": (0.022, 0.035, 0.037, 0.047),
    "index": (0.026, 0.025, 0.024, 0.035),
    "middle": (0.018, 0.024, 0.022, 0.026),
    "ring": (0.017, 0.021, 0.021, 0.032),
    "little": (0.020, 0.019, 0.022, 0.031),
}
"""OKS deviations from the knuckle to the tip. Source: Jin et al. 2020 (COCO-WholeBody), its evaluation code."""
_FINGER_JOINTS = ("mcp", "pip", "dip", "tip")


def _hand_21() -> Skeleton:
    """Build the order wrist, then finger by finger, each from the knuckle to the tip."""
    fingers = ("index", "middle", "ring", "little", "thumb")
    names = ["wrist", *(f"{finger}_{part}" for finger in fingers for part in _FINGER_JOINTS)]
    bones = [(0 if level == 0 else 4 * f + level, 4 * f + level + 1) for f in range(5) for level in range(4)]
    sigmas = [_WRIST, *(sigma for finger in fingers for sigma in _FINGERS[finger])]
    return Skeleton(tuple(names), tuple(bones), tuple(sigmas), (0, 5), 5, 200.0)


def _hand_21_by_level() -> Skeleton:
    """Build the order wrist, all knuckles (thumb first), then the other joints finger by finger."""
    fingers = tuple(_FINGERS)
    names = ["wrist", *(f"{finger}_mcp" for finger in fingers)]
    names += [f"{finger}_{part}" for finger in fingers for part in _FINGER_JOINTS[1:]]
    bones = [(0, 1 + f) for f in range(5)]
    bones += [(1 + f if level == 0 else 5 + 3 * f + level, 6 + 3 * f + level) for f in range(5) for level in range(3)]
    sigmas = [_WRIST, *(_FINGERS[finger][0] for finger in fingers)]
    sigmas += [sigma for finger in fingers for sigma in _FINGERS[finger][1:]]
    return Skeleton(tuple(names), tuple(bones), tuple(sigmas), (0, 3), 3, 250.0)


def _hand_16() -> Skeleton:
    """Build the order palm, then finger by finger: root, middle, tip; palm and roots use wrist and knuckle sigmas."""
    fingers = tuple(_FINGERS)
    names = ["palm", *(f"{finger}_{part}" for finger in fingers for part in ("root", "middle", "tip"))]
    bones = [(0 if level == 0 else 3 * f + level, 3 * f + level + 1) for f in range(5) for level in range(3)]
    sigmas = [_WRIST, *(_FINGERS[finger][index] for finger in fingers for index in (0, 1, 3))]
    return Skeleton(tuple(names), tuple(bones), tuple(sigmas), (0, 7), 0, 200.0)


def _hand_14() -> Skeleton:
    """Build the order tips and middles from little finger to thumb, the thumb's root, two wrist points, palm."""
    fingers = ("little", "ring", "middle", "index", "thumb")
    names = [f"{finger}_{part}" for finger in fingers for part in ("tip", "middle")]
    bones = [bone for f in range(4) for bone in ((13, 2 * f + 1), (2 * f + 1, 2 * f))]
    sigmas = [_FINGERS[finger][level] for finger in fingers[:4] for level in (3, 1)]
    sigmas += [_FINGERS["thumb"][3], _FINGERS["thumb"][2], _FINGERS["thumb"][0], _WRIST, _WRIST, _WRIST]
    bones += [(13, 10), (10, 9), (9, 8), (13, 11), (13, 12)]
    names += ["thumb_root", "wrist_1", "wrist_2", "palm"]
    return Skeleton(tuple(names), tuple(bones), tuple(sigmas), (11, 13), 13, 250.0)


def _body_15() -> Skeleton:
    """Build ITOP's order; the person's right is before the left.

    COCO has no sigma for neck, torso, hand and foot: shoulder, wrist and ankle replace them, and the ear the head.
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
"""Joint order of MSRA."""
HAND_21_BY_LEVEL = _hand_21_by_level()
"""Joint order of HANDS 2017."""
HAND_16 = _hand_16()
"""Joint order of ICVL."""
HAND_14 = _hand_14()
"""Joint order of the 14 evaluated joints of NYU. There are no knuckles: the unit of PCK is wrist to palm."""
BODY_15 = _body_15()
"""Joint order of ITOP."""
