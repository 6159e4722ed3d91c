"""Skeletons: joints and bones for pictures, pages and files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sightline.draw.pictures import Lines

TRUE, READ = np.array([30, 122, 74], dtype=np.uint8), np.array([214, 69, 65], dtype=np.uint8)
"""Colours: green for labelled joints, red for joints decoded from heat maps."""


@dataclass(frozen=True, eq=False)
class JointFigure:
    """Skeleton: joints (J, 3) in the frame of a cloud or a picture; `is_known` (J,) marks the labelled ones.

    `bones` are pairs of joint indices, `color` (3,) uint8 is the colour of the whole figure. A figure of `num_objects`
    outlines, such as all boxes of a class, is drawn without dots at its joints. Joints that are not `is_sure` (J,) are
    drawn hollow.
    """

    name: str
    joints: np.ndarray
    is_known: np.ndarray
    bones: tuple[tuple[int, int], ...]
    color: np.ndarray
    num_objects: int | None = None
    is_sure: np.ndarray | None = None

    def with_joints(self, joints: np.ndarray) -> JointFigure:
        """Return the figure with its joints at other positions (J, 3) or, in a picture, (J, 2)."""
        return replace(self, joints=joints)

    def within(self, width: int, height: int) -> JointFigure:
        """Return the figure in a picture without its joints (J, 2) outside of 0 to `width` and `height`."""
        is_inside = ((self.joints >= 0) & (self.joints < (width, height))).all(axis=1)
        return replace(self, is_known=self.is_known & is_inside)

    def known_joint_indices(self) -> np.ndarray:
        """Return the indices of the known joints with finite coordinates."""
        return np.flatnonzero(self.is_known & np.isfinite(self.joints).all(axis=1))

    def known_bones(self) -> list[tuple[int, int]]:
        """List the bones with two known ends."""
        known_joints = set(self.known_joint_indices().tolist())
        return [bone for bone in self.bones if known_joints.issuperset(bone)]

    def unsure_joint_indices(self) -> np.ndarray:
        """Return the indices of the known joints that are not sure."""
        known = self.known_joint_indices()
        return known[:0] if self.is_sure is None else known[~self.is_sure[known]]

    def lines(self) -> tuple[Lines, ...]:
        """Return the known bones and, of a figure with dots, joints without a bone and those that are drawn hollow."""
        bones = self.known_bones()
        ends = self.joints[np.array(bones)] if bones else np.zeros((0, 2, 3))
        if self.num_objects is not None:
            return (Lines(ends, self.color, has_dots=False),)
        single = np.setdiff1d(self.known_joint_indices(), np.array(bones, dtype=np.int64))
        dots = self.joints[np.stack([single, single], axis=1)]
        hollow = self.joints[np.stack([self.unsure_joint_indices()] * 2, axis=1)]
        lines = (Lines(np.concatenate([ends, dots]), self.color), Lines(hollow, self.color, is_hollow=True))
        return tuple(each for each in lines if len(each.ends))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a page: known joints in order, and bones as pairs of indices into them."""
        known_joints = self.known_joint_indices().tolist()
        index_of = {joint: index for index, joint in enumerate(known_joints)}
        return {
            "name": self.name,
            "color": self.color.tolist(),
            "joints": [[round(float(value), 4) for value in self.joints[joint]] for joint in known_joints],
            "bones": [[index_of[end] for end in bone] for bone in self.known_bones()],
            "count": len(known_joints) if self.num_objects is None else self.num_objects,
            "hasDots": self.num_objects is None,
        }
