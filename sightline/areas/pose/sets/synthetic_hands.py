"""Depth images of procedural hands and people: jointed figures of capsules before MSRA's and ITOP's camera."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from sightline.areas.pose.sets.depth_frames import DepthCamera
from sightline.areas.pose.sets.skeletons import BODY_15, HAND_21
from sightline.areas.pose.sets.synthetic_figures import (
    Angle,
    Figures,
    NoiseRange,
    ScaleRange,
    SensorNoise,
    ShareRange,
    SyntheticFigures,
    assert_in_order,
    capsule_rows,
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

Bend = Annotated[float, Ge(0.0), Le(3.0)]


class HandPoses(TypedDict):
    """Ranges of uniformly drawn hand poses; a missing key keeps its default, which is stated here.

    `turn_deg`: yaw, pitch and roll to either side, 45, 30 and 40. `flexion_rad`: bend of each finger at each of its
    joints, 0 to 1.4 (half of it for the thumb). `splay_deg`: of each finger to either side, 15. `scale`: 0.8 to 1.2.
    `shift_mm`: from the middle of the picture at 350 mm, to either side, 60, 40 and 60 across, up and away.
    """

    turn_deg: NotRequired[tuple[Angle, Angle, Angle]]
    flexion_rad: NotRequired[tuple[Bend, Bend]]
    splay_deg: NotRequired[Angle]
    scale: NotRequired[ScaleRange]
    shift_mm: NotRequired[tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]]


_HAND_POSES: HandPoses = {
    "turn_deg": (45.0, 30.0, 40.0),
    "flexion_rad": (0.0, 1.4),
    "splay_deg": 15.0,
    "scale": (0.8, 1.2),
    "shift_mm": (60.0, 40.0, 60.0),
}
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
_PLACE_MM = np.array([0.0, 0.0, 350.0])


class HandShape(NamedTuple):
    """Pose parameters of B hands; fingers in the order index, middle, ring, little, thumb.

    `flexion_rad` (B, 5) at each joint of a finger, `splay_rad` (B, 5) relative to the hand at rest, `turn_rad`
    (B, 3) yaw, pitch and roll about the palm, `scale` (B,), `place_mm` (B, 3) of the palm in the camera's frame,
    `wrist_rad` (B, 2) by which the forearm turns about x and z, `has_forearm` (B,) bool.
    """

    flexion_rad: np.ndarray
    splay_rad: np.ndarray
    turn_rad: np.ndarray
    scale: np.ndarray
    place_mm: np.ndarray
    wrist_rad: np.ndarray
    has_forearm: np.ndarray


@registry.data.add("synthetic_hands")
class SyntheticHands(SyntheticFigures):
    """Depth images of hands with 21 exact joints in MSRA's order, a pure function of (data_seed, split, index).

    23 capsules, and one of the forearm, seen by MSRA's camera, 320 by 240 pixels; mm, z forward, y up. `poses` are
    the ranges of poses. `noise_mm` is the range of the standard deviation of depth noise, `missing` that of the share
    of pixels without a depth; `forearm` is the share of hands with a forearm. Poses with a joint outside the cube of
    200 mm about the middle knuckle or the centre of mass, or outside the image, are drawn again.
    Source: made here; sightline/areas/pose/sets/capsules.py.
    """

    set_name = "synthetic_hands"

    def __init__(
        self,
        *,
        split: str,
        train_size: Many = 1920,
        test_size: Many = 480,
        poses: HandPoses | None = None,
        noise_mm: NoiseRange = (0.0, 2.0),
        missing: ShareRange = (0.0, 0.05),
        forearm: Probability = 0.5,
        reference: ReferencePoint | None = None,
        joints: tuple[str, ...] = (),
        data_seed: Seed = 0,
    ) -> None:
        self._poses: HandPoses = {**_HAND_POSES, **(poses or {})}
        self._forearm = forearm
        assert_in_order("poses.flexion_rad", self._poses["flexion_rad"])
        assert_in_order("poses.scale", self._poses["scale"])
        super().__init__(
            split=split,
            sizes={"train": train_size, "test": test_size},
            camera=HAND_CAMERA,
            skeleton=HAND_21,
            reference=reference,
            joints=joints,
            noise=SensorNoise(noise_mm, missing),
            data_seed=data_seed,
            farthest_mm=2 * float(_PLACE_MM[2] + self._poses["shift_mm"][2]),
        )

    def _draw(self, draws: Draws, sample_draws: Draws) -> Figures:
        poses = self._poses
        shape = HandShape(
            flexion_rad=scale_to_range(draws.uniform(5), poses["flexion_rad"]),
            splay_rad=np.radians(scale_symmetric(draws.uniform(5), poses["splay_deg"])),
            turn_rad=np.radians(scale_symmetric(draws.uniform(3), poses["turn_deg"])),
            scale=scale_to_range(draws.uniform(1), poses["scale"])[:, 0],
            place_mm=scale_symmetric(draws.uniform(3), poses["shift_mm"]) + _PLACE_MM,
            wrist_rad=np.radians(scale_symmetric(draws.uniform(2), _FOREARM_DEG)),
            has_forearm=sample_draws.uniform(1)[:, 0].numpy() < self._forearm,
        )
        return build_hands(shape)


def default_hand() -> Figures:
    """Build the reference hand: fingers bent by 0.2 rad, thumb straight, no forearm, at 350 mm.

    In MSRA's camera it covers 6,784 pixels at 309.94 to 348.48 mm, with the centre of mass (9.998, 38.649,
    333.247).
    """
    bends = np.array([[0.2, 0.2, 0.2, 0.2, 0.0]])
    zero = np.zeros((1, 5))
    place_mm = _PLACE_MM[None]
    shape = HandShape(bends, zero, zero[:, :3], np.ones(1), place_mm, zero[:, :2], np.zeros(1, dtype=bool))
    return build_hands(shape)


def build_hands(shape: HandShape) -> Figures:
    """Build joints (B, 21, 3) in MSRA's order and capsules (B, 24, 7): 4 per finger, 3 of the palm, the forearm."""
    joints = _pose_joints(shape)
    tip = joints[:, 0] + rotate_about_z(rotate_about_x(_FOREARM_MM, shape.wrist_rad[:, 0]), shape.wrist_rad[:, 1])
    points = rotate(np.concatenate((joints, tip[:, None]), axis=1) * shape.scale[:, None, None], shape.turn_rad)
    points = points + shape.place_mm[:, None]
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


BODY_CAMERA = DepthCamera(1 / 0.0035, -1 / 0.0035, 160.0, 120.0, width_px=320, height_px=240)
"""Camera of ITOP, for both views."""
View = Literal["side", "top"]
Swing = Annotated[float, Ge(-180.0), Le(180.0)]


class BodyPoses(TypedDict):
    """Ranges of uniformly drawn body poses; a missing key keeps its default, which is stated here.

    `turn_deg`: yaw, pitch and roll to either side, 60, 8 and 8. `lean_deg`: of the trunk to either side, 25 forwards
    and backwards, 15 sideways. `arm_swing_deg` forwards, -30 to 90; `arm_raise_deg` sideways, 0 to 100; `elbow_deg`, 0
    to 120. `leg_swing_deg` forwards, -15 to 60; `leg_raise_deg` sideways, 0 to 20; `knee_deg`, 0 to 80. `scale`: 0.8 to
    1.1. `shift_mm`: to either side, 400, 50 and 400 across, up and away from the side view's camera.
    """

    turn_deg: NotRequired[tuple[Angle, Angle, Angle]]
    lean_deg: NotRequired[tuple[Angle, Angle]]
    arm_swing_deg: NotRequired[tuple[Swing, Swing]]
    arm_raise_deg: NotRequired[tuple[Swing, Swing]]
    elbow_deg: NotRequired[tuple[Swing, Swing]]
    leg_swing_deg: NotRequired[tuple[Swing, Swing]]
    leg_raise_deg: NotRequired[tuple[Swing, Swing]]
    knee_deg: NotRequired[tuple[Swing, Swing]]
    scale: NotRequired[ScaleRange]
    shift_mm: NotRequired[tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]]


_BODY_POSES: BodyPoses = {
    "turn_deg": (60.0, 8.0, 8.0),
    "lean_deg": (25.0, 15.0),
    "arm_swing_deg": (-30.0, 90.0),
    "arm_raise_deg": (0.0, 100.0),
    "elbow_deg": (0.0, 120.0),
    "leg_swing_deg": (-15.0, 60.0),
    "leg_raise_deg": (0.0, 20.0),
    "knee_deg": (0.0, 80.0),
    "scale": (0.8, 1.1),
    "shift_mm": (400.0, 50.0, 400.0),
}
_SWINGS = ("arm_swing_deg", "arm_raise_deg", "elbow_deg", "leg_swing_deg", "leg_raise_deg", "knee_deg")
"""Ranges of angles that are drawn for each side."""
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
"""Joints of the right and left side (shoulder, elbow, hand, hip, knee, foot), and the sign of x of a raised arm."""
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
_DISTANCE_MM = 2800.0


class BodyShape(NamedTuple):
    """Pose parameters of B bodies; angles in rad, right side before left.

    `lean` (B, 2) of the trunk about x and z; `swings` (B, 6, 2) in the order of `BodyPoses`, arm forwards, arm
    sideways, elbow, leg forwards, leg sideways, knee; `turn` (B, 3) yaw, pitch and roll about the middle of the body,
    `scale` (B,), `place_mm` (B, 3) of that middle relative to the point 2.8 m in front of the side view's camera.
    """

    lean: np.ndarray
    swings: np.ndarray
    turn: np.ndarray
    scale: np.ndarray
    place_mm: np.ndarray


@registry.data.add("synthetic_bodies")
class SyntheticBodies(SyntheticFigures):
    """Depth images of people with 15 exact joints in ITOP's order, a pure function of (data_seed, split, index).

    13 capsules, seen by ITOP's camera, 320 by 240 pixels, from the side or from the top, 2.8 m away; mm, z forward, y
    up. `poses` are the ranges of poses. `noise_mm` is the range of the standard deviation of depth noise, `missing`
    that of the share of pixels without a depth. Poses with a joint outside the cube of 2 m about the torso or the
    centre of mass, or outside the image, are drawn again.
    Source: made here; sightline/areas/pose/sets/capsules.py.
    """

    set_name = "synthetic_bodies"

    def __init__(
        self,
        *,
        split: str,
        view: View = "side",
        train_size: Many = 1920,
        test_size: Many = 480,
        poses: BodyPoses | None = None,
        noise_mm: NoiseRange = (0.0, 10.0),
        missing: ShareRange = (0.0, 0.05),
        reference: ReferencePoint | None = None,
        joints: tuple[str, ...] = (),
        data_seed: Seed = 0,
    ) -> None:
        self._poses: dict[str, Any] = {**_BODY_POSES, **(poses or {})}
        self._view = view
        for name in (*_SWINGS, "scale"):
            assert_in_order(f"poses.{name}", self._poses[name])
        super().__init__(
            split=split,
            sizes={"train": train_size, "test": test_size},
            camera=BODY_CAMERA,
            skeleton=BODY_15,
            reference=reference,
            joints=joints,
            noise=SensorNoise(noise_mm, missing),
            data_seed=data_seed,
            farthest_mm=2 * (_DISTANCE_MM + max(self._poses["shift_mm"])),
        )

    def _draw(self, draws: Draws, sample_draws: Draws) -> Figures:
        poses = self._poses
        shape = BodyShape(
            lean=np.radians(scale_symmetric(draws.uniform(2), poses["lean_deg"])),
            swings=np.radians(np.stack([scale_to_range(draws.uniform(2), poses[name]) for name in _SWINGS], axis=1)),
            turn=np.radians(scale_symmetric(draws.uniform(3), poses["turn_deg"])),
            scale=scale_to_range(draws.uniform(1), poses["scale"])[:, 0],
            place_mm=scale_symmetric(draws.uniform(3), poses["shift_mm"]),
        )
        return build_bodies(shape, view=self._view)


def default_body(*, view: View = "side") -> Figures:
    """Build a body at rest, arms hanging, its middle 2.8 m from the camera."""
    no_lean = np.zeros((1, 2))
    return build_bodies(
        BodyShape(no_lean, np.zeros((1, 6, 2)), np.zeros((1, 3)), np.ones(1), np.zeros((1, 3))), view=view
    )


def build_bodies(shape: BodyShape, *, view: View) -> Figures:
    """Build joints (B, 15, 3) in ITOP's order and capsules (B, 13, 7), in mm in the frame of the view's camera."""
    points = rotate(_pose_points(shape) * shape.scale[:, None, None], shape.turn) + shape.place_mm[:, None]
    if view == "top":  # a rotation: down becomes forward, away from the side view's camera becomes up
        points = np.stack((points[..., 0], points[..., 2], -points[..., 1]), axis=-1)
    points = points + np.array([0.0, 0.0, _DISTANCE_MM])
    ends, radii = zip(*_CAPSULES, strict=True)
    capsules = capsule_rows(points, ends, radii)
    capsules[..., 6] *= shape.scale[:, None]
    return Figures(points[:, :15], capsules)


def _pose_points(shape: BodyShape) -> np.ndarray:
    """Compute joints, chest and middle of the hips (B, 17, 3) of posed bodies of scale 1, before rotation."""
    count = len(shape.lean)
    points = np.empty((count, 17, 3))
    points[:, :15] = _REST_MM
    chest = _REST_MM[_TORSO] + _CHEST_SHARE * (_REST_MM[_NECK] - _REST_MM[_TORSO])
    points[:, _HIPS] = (_REST_MM[9] + _REST_MM[10]) / 2
    swings = np.moveaxis(shape.swings, 1, 0)  # (6, B, 2)

    def lean(offset: np.ndarray) -> np.ndarray:
        return rotate_about_z(rotate_about_x(offset, shape.lean[:, 0]), shape.lean[:, 1])

    points[:, _CHEST] = points[:, _TORSO] + lean(chest - _REST_MM[_TORSO])
    for joint in (_HEAD, _NECK, 2, 3):
        points[:, joint] = points[:, _TORSO] + lean(_REST_MM[joint] - _REST_MM[_TORSO])
    for side, (shoulder, elbow, hand, hip, knee, foot, outwards) in enumerate(_SIDES):
        arm_swing, arm_raise, bend, leg_swing, leg_raise, knee_bend = swings[:, :, side]
        for start, middle, end, swing, lift, fold in (
            (shoulder, elbow, hand, arm_swing, arm_raise, bend),
            (hip, knee, foot, leg_swing, leg_raise, -knee_bend),
        ):
            upper, lower = _REST_MM[middle] - _REST_MM[start], _REST_MM[end] - _REST_MM[middle]
            bone = rotate_about_z(rotate_about_x(upper, swing), outwards * lift)
            points[:, middle] = points[:, start] + (lean(bone) if start == shoulder else bone)
            bone = rotate_about_z(rotate_about_x(lower, swing + fold), outwards * lift)
            points[:, end] = points[:, middle] + (lean(bone) if start == shoulder else bone)
    return points
