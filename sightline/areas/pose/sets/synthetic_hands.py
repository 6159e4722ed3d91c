"""Depth images of procedural hands before MSRA's camera: fingers that bend and splay, a palm, a forearm."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sightline.areas.pose.sets.capsules import capsule_rows
from sightline.areas.pose.sets.depth_frames import HAND_21, DepthCamera
from sightline.areas.pose.sets.synthetic_figures import (
    Figures,
    SyntheticFigures,
    rotate,
    rotate_about_x,
    rotate_about_z,
    scale_symmetric,
    scale_to_range,
)
from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, Probability, ReferencePoint, Seed
from sightline.contract.draws import Draws
from sightline.store.computed_samples import Many

HAND_CAMERA = DepthCamera(241.42, -241.42, 160.0, 120.0, width_px=320, height_px=240)
"""Camera of MSRA."""
_CENTRE_MM = np.array([0.0, 0.0, 350.0])
_SHIFT_MM = (60.0, 40.0, 60.0)
"""Reach of the palm across, up and away from `_CENTRE_MM`, to either side."""
_TURN_DEG, _FLEXION_RAD, _REACH_SPLAY_DEG, _SCALE = (45.0, 30.0, 40.0), (0.0, 1.4), 15.0, (0.8, 1.2)
"""Yaw, pitch and roll to either side; bend of a finger at each joint; its splay to either side; size of the hand."""
_FOREARM_SHARE = 0.5
# x to the right, y up, z away from the camera, in mm: MSRA's frame, the palm about the origin.
_WRIST = (0.0, -45.0, 0.0)
_KNUCKLES = ((25.0, 40.0, 0.0), (5.0, 45.0, 0.0), (-13.0, 42.0, 0.0), (-30.0, 33.0, 0.0))
"""Knuckles of index, middle, ring and little finger, the order of all constants below."""
_BONES_MM = ((40.0, 24.0, 20.0), (44.0, 28.0, 22.0), (40.0, 26.0, 21.0), (31.0, 19.0, 18.0))
_SPLAY_DEG = (-8.0, 0.0, 6.0, 14.0)
_THUMB_KNUCKLE = (28.0, -22.0, -5.0)
_THUMB_BONES_MM = (40.0, 31.0, 25.0)
_THUMB_ALONG = np.array([0.75, 0.62, -0.2]) / np.sqrt(0.75**2 + 0.62**2 + 0.2**2)
_THUMB_ACROSS = np.array([-0.6, 0.3, -0.75])
"""Bending direction of the thumb: over the palm, towards the little finger."""
_THUMB_FLEXION = 0.5
"""Bend of the thumb at each joint, as a share of the drawn flexion."""
_PALM = ((1, 5), (5, 9), (9, 13))
_FINGER_RADII_MM = ((12.0, 9.0, 8.0, 7.5), (12.0, 9.5, 8.5, 8.0), (12.0, 9.0, 8.0, 7.5), (12.0, 8.0, 7.0, 6.5))
_THUMB_RADII_MM = (14.0, 11.0, 10.0, 9.0)
_PALM_RADIUS_MM = 11.0
_FOREARM_MM = np.array([0.0, -60.0, 0.0])
_FOREARM_RADIUS_MM = 22.0
_FOREARM_DEG = (30.0, 15.0)
"""Maximum bend of the wrist to either side: forwards and sideways."""


class HandShape(NamedTuple):
    """Pose parameters of B hands; fingers in the order index, middle, ring, little, thumb.

    `flexion_rad` (B, 5) at each joint of a finger, `splay_rad` (B, 5) relative to the hand at rest, `turn_rad`
    (B, 3) yaw, pitch and roll about the palm, `scale` (B,), `centre_mm` (B, 3) of the palm in the camera's frame,
    `wrist_rad` (B, 2) by which the forearm turns about x and z, `has_forearm` (B,) bool.
    """

    flexion_rad: np.ndarray
    splay_rad: np.ndarray
    turn_rad: np.ndarray
    scale: np.ndarray
    centre_mm: np.ndarray
    wrist_rad: np.ndarray
    has_forearm: np.ndarray


def build_hands(shape: HandShape) -> Figures:
    """Build joints (B, 21, 3) in MSRA's order and capsules (B, 24, 7): 4 per finger, 3 of the palm, the forearm."""
    joints = _pose_joints(shape)
    tip = joints[:, 0] + rotate_about_z(rotate_about_x(_FOREARM_MM, shape.wrist_rad[:, 0]), shape.wrist_rad[:, 1])
    points = rotate(np.concatenate((joints, tip[:, None]), axis=1) * shape.scale[:, None, None], shape.turn_rad)
    points = points + shape.centre_mm[:, None]
    fingers = [(0 if level == 0 else 4 * f + level, 4 * f + level + 1) for f in range(5) for level in range(4)]
    radii = [radius for finger in (*_FINGER_RADII_MM, _THUMB_RADII_MM) for radius in finger]
    capsules = capsule_rows(points, [*fingers, *_PALM, (0, 21)], [*radii, *[_PALM_RADIUS_MM] * 3, _FOREARM_RADIUS_MM])
    capsules[..., 6] *= shape.scale[:, None]
    capsules[~shape.has_forearm, -1, 6] = 0
    return Figures(points[:, :21], capsules)


def _pose_joints(shape: HandShape) -> np.ndarray:
    """Compute the joints (B, 21, 3) of posed hands of scale 1 before rotation, the palm at the origin."""
    count, levels = len(shape.flexion_rad), np.arange(1, 4)
    splay = np.radians(_SPLAY_DEG) + shape.splay_rad[:, :4]
    bent = rotate_about_x(np.array([0.0, 1.0, 0.0]), -levels * shape.flexion_rad[:, :4, None])
    fingers = np.array(_BONES_MM)[..., None] * rotate_about_z(bent, splay[..., None])
    bent = _bend_thumb(levels * _THUMB_FLEXION * shape.flexion_rad[:, 4:])
    thumb = np.array(_THUMB_BONES_MM)[:, None] * rotate_about_z(bent, shape.splay_rad[:, 4:])
    knuckles = np.broadcast_to(np.array((*_KNUCKLES, _THUMB_KNUCKLE))[:, None], (count, 5, 1, 3))
    bones = np.concatenate((fingers, thumb[:, None]), axis=1)
    joints = np.cumsum(np.concatenate((knuckles, bones), axis=2), axis=2).reshape(count, 20, 3)
    return np.concatenate((np.broadcast_to(_WRIST, (count, 1, 3)), joints), axis=1)


def _bend_thumb(bend_rad: np.ndarray) -> np.ndarray:
    """Compute directions (..., 3) of thumb bones bent by `bend_rad` (...), from along the thumb to the palm."""
    across = _THUMB_ACROSS - (_THUMB_ACROSS @ _THUMB_ALONG) * _THUMB_ALONG
    across /= np.sqrt((across**2).sum())
    # a rotation about z takes x to y, as bending takes the thumb's axis to the direction across
    part = rotate_about_z(np.array([1.0, 0.0, 0.0]), bend_rad)
    bent: np.ndarray = part[..., :1] * _THUMB_ALONG + part[..., 1:2] * across
    return bent


@registry.data.add("synthetic_hands")
class SyntheticHands(SyntheticFigures):
    """Depth images of hands with 21 exact joints in MSRA's order, a pure function of (data_seed, split, index).

    23 capsules, and one of the forearm for half of the hands, seen by MSRA's camera, 320 by 240 pixels; mm, z forward,
    y up. `noise_mm` is the range of the standard deviation of depth noise, `missing` that of the share of pixels
    without a depth, both drawn for each frame. A pose is drawn again if a joint is outside the image, or outside the
    cube of 200 mm about the middle knuckle or the centre of mass. Epoch and seed of a key change nothing.
    Source: made here.
    """

    set_name = "synthetic_hands"
    farthest_mm = 2 * float(_CENTRE_MM[2] + _SHIFT_MM[2])

    def __init__(
        self,
        *,
        split: str,
        train_size: Many = 1920,
        test_size: Many = 480,
        noise_mm: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 2.0),
        missing: tuple[Probability, Probability] = (0.0, 0.05),
        reference: ReferencePoint | None = None,
        data_seed: Seed = 0,
    ) -> None:
        super().__init__(
            split=split,
            sizes={"train": train_size, "test": test_size},
            camera=HAND_CAMERA,
            skeleton=HAND_21,
            reference=reference,
            noise_mm=noise_mm,
            missing=missing,
            data_seed=data_seed,
        )

    def pose(self, draws: Draws, lasting: Draws) -> Figures:
        shape = HandShape(
            flexion_rad=scale_to_range(draws.uniform(5), _FLEXION_RAD),
            splay_rad=np.radians(scale_symmetric(draws.uniform(5), _REACH_SPLAY_DEG)),
            turn_rad=np.radians(scale_symmetric(draws.uniform(3), _TURN_DEG)),
            scale=scale_to_range(draws.uniform(1), _SCALE)[:, 0],
            centre_mm=scale_symmetric(draws.uniform(3), _SHIFT_MM) + _CENTRE_MM,
            wrist_rad=np.radians(scale_symmetric(draws.uniform(2), _FOREARM_DEG)),
            has_forearm=lasting.uniform(1)[:, 0].numpy() < _FOREARM_SHARE,
        )
        return build_hands(shape)
