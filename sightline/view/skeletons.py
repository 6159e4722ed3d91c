"""Figures of joints: where their bones run, for pictures, pages and files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.pictures import Lines

__all__ = ["READ", "TRUE", "JointFigure"]

TRUE, READ = np.array([30, 122, 74], dtype=np.uint8), np.array([214, 69, 65], dtype=np.uint8)
"""Green for what is labelled, red for what is read from heat maps."""
_LINKS = 24


@dataclass(frozen=True, eq=False)
class JointFigure:
    """Joints (J, 3) in the frame of a cloud or of a picture; `is_known` (J,) marks those that there are.

    `bones` are pairs of joints, `color` (3,) uint8 is that of the whole figure.
    """

    name: str
    joints: np.ndarray
    is_known: np.ndarray
    bones: tuple[tuple[int, int], ...]
    color: np.ndarray

    def moved(self, joints: np.ndarray) -> JointFigure:
        """The same figure with its joints at other places."""
        return JointFigure(self.name, joints, self.is_known, self.bones, self.color)

    def known_joint_indices(self) -> np.ndarray:
        """The numbers of the joints that there are."""
        return np.flatnonzero(self.is_known & np.isfinite(self.joints).all(axis=1))

    def known_bones(self) -> list[tuple[int, int]]:
        """The bones of which both ends are there."""
        known = set(self.known_joint_indices().tolist())
        return [bone for bone in self.bones if known.issuperset(bone)]

    def lines(self) -> Lines:
        """The ends of its bones, and its colour."""
        bones = self.known_bones()
        return (self.joints[np.array(bones)] if bones else np.zeros((0, 2, 3))), self.color

    def chain(self) -> np.ndarray:
        """Points (P, 3) float64 along its bones, for files without lines: joint after joint, evenly spaced."""
        ends, _ = self.lines()
        share = np.linspace(0, 1, _LINKS)[:, None]
        links = [first + share * (last - first) for first, last in ends.astype(np.float64)]
        return np.concatenate([self.joints[self.known_joint_indices()].astype(np.float64), *links])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a page: known joints in their order, bones by their places among these."""
        known = self.known_joint_indices().tolist()
        return {
            "name": self.name,
            "color": self.color.tolist(),
            "joints": [[round(float(value), 4) for value in self.joints[joint]] for joint in known],
            "bones": [[known.index(end) for end in bone] for bone in self.known_bones()],
        }
