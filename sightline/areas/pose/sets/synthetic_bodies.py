"""Depth images of procedural people before ITOP's camera, from the side or from the top: a trunk that leans, limbs."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from sightline.areas.pose.sets.capsules import capsule_rows
from sightline.areas.pose.sets.depth_frames import BODY_15, DepthCamera
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

BODY_CAMERA = DepthCamera(1 / 0.0035, -1 / 0.0035, 160.0, 120.0, width_px=320, height_px=240)
"""Camera of ITOP, for both views."""
View = Literal["side", "top"]
_DISTANCE_MM = 2800.0
"""Distance of the camera from the middle of the place, on the floor of which the figure is shifted."""
_SHIFT_MM = (400.0, 50.0, 400.0)
"""Reach of the body's middle across, up and away, to either side."""
_TURN_DEG, _LEAN_DEG, _SCALE = (60.0, 8.0, 8.0), (25.0, 15.0), (0.8, 1.1)
"""Yaw, pitch and roll to either side; lean of the trunk forwards and sideways, to either side; size of the body."""
_SWINGS_DEG = ((-30.0, 90.0), (0.0, 100.0), (0.0, 120.0), (-15.0, 60.0), (0.0, 20.0), (0.0, 80.0))
"""Ranges of each side's arm forwards, arm sideways, elbow, leg forwards, leg sideways and knee."""
_REST_MM = 1000 * np.array(
    [
        *([0.0, 0.62, 0.0], [0.0, 0.42, 0.0], [-0.18, 0.38, 0.0], [0.18, 0.38, 0.0]),
        *([-0.30, 0.12, 0.0], [0.30, 0.12, 0.0], [-0.34, -0.12, -0.05], [0.34, -0.12, -0.05]),
        *([0.0, 0.12, 0.0], [-0.10, -0.12, 0.0], [0.10, -0.12, 0.0]),
        *([-0.12, -0.54, 0.0], [0.12, -0.54, 0.0], [-0.12, -0.95, 0.0], [0.12, -0.95, 0.0]),
    ]
)
"""Joints at rest in ITOP's order: x to the right (a person who faces the camera has the right side at negative x), y
up, z away from the camera of the side view."""
_HEAD, _NECK, _TORSO, _CHEST, _HIPS = 0, 1, 8, 15, 16
_SIDES = ((2, 4, 6, 9, 11, 13, -1.0), (3, 5, 7, 10, 12, 14, 1.0))
"""Joints of the right and left side (shoulder, elbow, hand, hip, knee, foot), and the sign of x of a raised limb."""
_CHEST_SHARE = 0.6
"""End of the trunk's capsule, as a share of the way from torso to neck."""
_CAPSULES = (
    ((_HEAD, _HEAD), 110.0),
    ((_HEAD, _NECK), 60.0),
    ((2, 3), 60.0),
    ((_TORSO, _CHEST), 150.0),
    ((_HIPS, _TORSO), 150.0),
    *(pair for s, e, h, _, _, _, _ in _SIDES for pair in (((s, e), 50.0), ((e, h), 40.0))),
    *(pair for _, _, _, h, k, f, _ in _SIDES for pair in (((h, k), 75.0), ((k, f), 55.0))),
)
"""Capsules: end points (joints, then chest and middle of the hips) and radii."""


class BodyShape(NamedTuple):
    """Pose parameters of B bodies; angles in rad, right side before left.

    `lean_rad` (B, 2) of the trunk about x and z; `swings_rad` (B, 6, 2) in the order arm forwards, arm sideways, elbow,
    leg forwards, leg sideways, knee; `turn_rad` (B, 3) yaw, pitch and roll about the middle of the body, `scale` (B,),
    `centre_mm` (B, 3) of that middle relative to the point 2.8 m in front of the side view's camera.
    """

    lean_rad: np.ndarray
    swings_rad: np.ndarray
    turn_rad: np.ndarray
    scale: np.ndarray
    centre_mm: np.ndarray


def build_bodies(shape: BodyShape, *, view: View) -> Figures:
    """Build joints (B, 15, 3) in ITOP's order and capsules (B, 13, 7), in mm in the frame of the view's camera."""
    points = rotate(_pose_points(shape) * shape.scale[:, None, None], shape.turn_rad) + shape.centre_mm[:, None]
    if view == "top":  # a rotation: down becomes forward, away from the side view's camera becomes up
        points = np.stack((points[..., 0], points[..., 2], -points[..., 1]), axis=-1)
    points = points + np.array([0.0, 0.0, _DISTANCE_MM])
    ends, radii = zip(*_CAPSULES, strict=True)
    capsules = capsule_rows(points, ends, radii)
    capsules[..., 6] *= shape.scale[:, None]
    return Figures(points[:, :15], capsules)


def _pose_points(shape: BodyShape) -> np.ndarray:
    """Compute joints, chest and middle of the hips (B, 17, 3) of posed bodies of scale 1, before rotation."""
    points = np.empty((len(shape.lean_rad), 17, 3))
    points[:, :15] = _REST_MM
    points[:, _HIPS] = (_REST_MM[9] + _REST_MM[10]) / 2

    def lean(offset: np.ndarray) -> np.ndarray:
        return rotate_about_z(rotate_about_x(offset, shape.lean_rad[:, 0]), shape.lean_rad[:, 1])

    from_torso = _REST_MM - _REST_MM[_TORSO]
    points[:, _CHEST] = points[:, _TORSO] + lean(_CHEST_SHARE * from_torso[_NECK])
    for joint in (_HEAD, _NECK, 2, 3):
        points[:, joint] = points[:, _TORSO] + lean(from_torso[joint])
    for side, (shoulder, elbow, hand, hip, knee, foot, outwards) in enumerate(_SIDES):
        arm_swing, arm_raise, bend, leg_swing, leg_raise, knee_bend = np.moveaxis(shape.swings_rad[:, :, side], 1, 0)
        for limb, swing, lift, fold in (
            ((shoulder, elbow, hand), arm_swing, arm_raise, bend),
            ((hip, knee, foot), leg_swing, leg_raise, -knee_bend),
        ):
            for start, end, angle in zip(limb, limb[1:], (swing, swing + fold), strict=False):
                bone = rotate_about_z(rotate_about_x(_REST_MM[end] - _REST_MM[start], angle), outwards * lift)
                points[:, end] = points[:, start] + (lean(bone) if limb[0] == shoulder else bone)
    return points


@registry.data.add("synthetic_bodies")
class SyntheticBodies(SyntheticFigures):
    """Depth images of people with 15 exact joints in ITOP's order, a pure function of (data_seed, split, index).

    13 capsules, seen by ITOP's camera, 320 by 240 pixels, from the side or from the top, 2.8 m away; mm, z forward, y
    up. `noise_mm` is the range of the standard deviation of depth noise, `missing` that of the share of pixels without
    a depth, both drawn for each frame. A pose is drawn again if a joint is outside the image, or outside the cube of
    2 m about the torso or the centre of mass. Epoch and seed of a key change nothing. Source: made here.
    """

    set_name = "synthetic_bodies"
    farthest_mm = 2 * (_DISTANCE_MM + max(_SHIFT_MM))

    def __init__(
        self,
        *,
        split: str,
        view: View = "side",
        train_size: Many = 1920,
        test_size: Many = 480,
        noise_mm: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 10.0),
        missing: tuple[Probability, Probability] = (0.0, 0.05),
        reference: ReferencePoint | None = None,
        data_seed: Seed = 0,
    ) -> None:
        self._view = view
        super().__init__(
            split=split,
            sizes={"train": train_size, "test": test_size},
            camera=BODY_CAMERA,
            skeleton=BODY_15,
            reference=reference,
            noise_mm=noise_mm,
            missing=missing,
            data_seed=data_seed,
        )

    def pose(self, draws: Draws, lasting: Draws) -> Figures:
        shape = BodyShape(
            lean_rad=np.radians(scale_symmetric(draws.uniform(2), _LEAN_DEG)),
            swings_rad=np.radians(np.stack([scale_to_range(draws.uniform(2), reach) for reach in _SWINGS_DEG], axis=1)),
            turn_rad=np.radians(scale_symmetric(draws.uniform(3), _TURN_DEG)),
            scale=scale_to_range(draws.uniform(1), _SCALE)[:, 0],
            centre_mm=scale_symmetric(draws.uniform(3), _SHIFT_MM),
        )
        return build_bodies(shape, view=self._view)
