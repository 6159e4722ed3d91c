"""Skeletons of hands and bodies in the order of each data set: joint names, bones, OKS and PCK constants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


def _read_skeletons() -> list[Skeleton]:
    """Read the skeletons of the sets, in the order of the file; a person's right is before the left.

    OKS deviations of hands are those from the knuckle to the tip of Jin et al. 2020 (COCO-WholeBody, its evaluation
    code); palm and roots have those of wrist and knuckles. COCO has none for neck, torso, hand and foot of a body:
    shoulder, wrist and ankle replace them, and the ear the head.
    """
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return [Skeleton(**{key: _to_tuple(value) for key, value in row.items()}) for row in rows.values()]


def _to_tuple(value: Any) -> Any:
    return tuple(map(_to_tuple, value)) if isinstance(value, list) else value


HAND_21, HAND_21_BY_LEVEL, HAND_16, HAND_14, BODY_15 = _read_skeletons()
"""Joint orders of MSRA (wrist, then finger by finger), HANDS 2017 (wrist, all knuckles, then finger by finger), ICVL
(palm, then root, middle and tip of each finger), the 14 evaluated joints of NYU and ITOP. HAND_14 has no knuckles: the
unit of PCK is wrist to palm.
"""
