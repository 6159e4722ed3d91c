"""Synthetic hands and bodies: the measured hand, exact joints, purity, noise as it is said, and pinned bits."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.pose.sets.capsules import render_capsules
from sightline.areas.pose.sets.depth_frames import CentreOfMass, TrueJoint
from sightline.areas.pose.sets.synthetic_bodies import BODY_CAMERA, BodyShape, SyntheticBodies, View, build_bodies
from sightline.areas.pose.sets.synthetic_figures import Figures, SyntheticFigures
from sightline.areas.pose.sets.synthetic_hands import HAND_CAMERA, HandShape, SyntheticHands, build_hands
from sightline.contract.errors import ConfigError
from sightline.contract.types import Batch, SampleKey
from sightline.ops.views.pinhole import depth_points, project_points

top_bodies = partial(SyntheticBodies, view="top")
SETS: dict[str, Callable[..., SyntheticFigures]] = {
    "hands": SyntheticHands,
    "bodies": SyntheticBodies,
    "bodies from the top": top_bodies,
}
QUIET: dict[str, Any] = {"noise_mm": (0.0, 0.0), "missing": (0.0, 0.0)}


def keys(index: Sequence[int], *, epoch: int = 0, seed: int = 0) -> list[SampleKey]:
    return [SampleKey(int(i), epoch, seed) for i in index]


@pytest.fixture(scope="module")
def frames() -> dict[str, Batch]:
    """40 frames of each set without noise."""
    return {name: make(split="train", **QUIET).get_batch(keys(range(40))) for name, make in SETS.items()}


@pytest.fixture
def hands_without_noise(frames: dict[str, Batch]) -> Batch:
    """40 hands without noise."""
    return frames["hands"]


def default_hand() -> Figures:
    """The reference hand: fingers bent by 0.2 rad, thumb straight, no forearm, at 350 mm."""
    zero, place_mm = np.zeros((1, 5)), np.array([[0.0, 0.0, 350.0]])
    bends = np.array([[0.2, 0.2, 0.2, 0.2, 0.0]])
    return build_hands(HandShape(bends, zero, zero[:, :3], np.ones(1), place_mm, zero[:, :2], np.zeros(1, dtype=bool)))


# --- the hand that was measured ---------------------------------------------------------------------------------------


def test_the_default_hand_is_the_one_that_was_measured() -> None:
    """The numbers of the specification, section 7.9."""
    hand = default_hand()
    depth = render_capsules(hand.capsules, HAND_CAMERA)[0]
    points = depth_points(depth, HAND_CAMERA.intrinsics)
    assert depth.shape == (240, 320)
    assert len(points) == 6784
    assert [round(float(z), 2) for z in (points[:, 2].min(), points[:, 2].max())] == [309.94, 348.48]
    centre = points.mean(axis=0)
    assert centre == pytest.approx([9.998, 38.649, 333.247], abs=5e-4)
    assert (np.abs(hand.joints[0] - centre) < 100).all()
    for side_mm, num_voxels in ((200, 3346), (250, 2392)):
        cells = np.floor(((points - centre) / (side_mm / 2) + 1) * 44)
        inside = ((cells >= 0) & (cells < 88)).all(axis=1)
        assert len(np.unique(cells[inside], axis=0)) == num_voxels


def test_the_joints_of_the_default_hand_are_where_the_constants_put_them() -> None:
    """By hand: the middle finger has no splay, so its bones of 44, 28, 22 bend in the plane of y and z."""
    joints = default_hand().joints[0]
    assert joints[0] == pytest.approx([0, -45, 350])
    assert joints[5] == pytest.approx([5, 45, 350])
    pip = np.array([5, 45 + 44 * np.cos(0.2), 350 - 44 * np.sin(0.2)])
    assert joints[6] == pytest.approx(pip)
    assert joints[7] - pip == pytest.approx([0, 28 * np.cos(0.4), -28 * np.sin(0.4)])
    # the little finger leans to the outside by 14 degrees, to smaller x
    lean = joints[14] - joints[13]
    assert np.degrees(np.arctan2(-lean[0], lean[1])) == pytest.approx(14)
    assert joints[20] - joints[17] == pytest.approx(96 * np.array([0.75, 0.62, -0.2]) / np.sqrt(0.9869))


def test_a_mirrored_hand_gives_a_mirrored_picture() -> None:
    """About the column u0 = 160: column 0 has no partner."""
    hand = default_hand()
    mirrored = hand.capsules.copy()
    mirrored[..., [0, 3]] *= -1
    first, second = (render_capsules(capsules, HAND_CAMERA)[0] for capsules in (hand.capsules, mirrored))
    assert first.any()
    assert np.array_equal(first[:, 1:], second[:, :0:-1])


# --- the body ---------------------------------------------------------------------------------------------------------


def default_body(view: View = "side") -> Figures:
    """A body at rest, arms hanging, its middle 2.8 m from the camera."""
    zero = np.zeros((1, 3))
    return build_bodies(BodyShape(zero[:, :2], np.zeros((1, 6, 2)), zero, np.ones(1), zero), view=view)


def test_the_body_stands_where_each_view_has_it() -> None:
    side, top = default_body().joints[0], default_body("top").joints[0]
    assert side[0].tolist() == [0, 620, 2800]
    assert side[2, 0] < 0 < side[3, 0], "one who faces the camera has the right shoulder to the left"
    assert top[0] == pytest.approx([0, 0, 2800 - 620])
    assert top[13] == pytest.approx([-120, 0, 2800 + 950])
    # hands are 50 mm before the body: nearer from the side, lower in the picture from the top
    assert side[6, 2] == pytest.approx(2750)
    assert top[6, 1] == pytest.approx(-50)
    depth = render_capsules(default_body("top").capsules, BODY_CAMERA)[0]
    assert depth[120, 160] == depth[depth > 0].min() == pytest.approx(2800 - 620 - 110), "the crown of the head"


def test_bodies_are_no_mirror_images() -> None:
    """Shoulders, trunk and a forearm that bends forwards span the same hand in both views."""
    zero, bent = np.zeros((1, 3)), np.zeros((1, 6, 2))
    bent[:, 2] = 1.0
    for view in ("side", "top"):
        joints = build_bodies(BodyShape(zero[:, :2], bent, zero, np.ones(1), zero), view=view).joints  # type: ignore[arg-type]
        spans = np.stack([joints[:, 3] - joints[:, 2], joints[:, 1] - joints[:, 8], joints[:, 7] - joints[:, 5]], 1)
        assert (np.linalg.det(spans) < 0).all(), "to the left, up, and forwards: z away, in a left-handed frame"


# --- joints and pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "rest", "low", "high"),
    [(SyntheticHands, default_hand, 0.8, 1.2), (SyntheticBodies, default_body, 0.8, 1.1)],
)
def test_bones_keep_their_lengths(
    make: Callable[..., SyntheticFigures], rest: Callable[[], Figures], low: float, high: float
) -> None:
    """However a figure is posed: all of them in one proportion, its scale, within the range."""
    figures = make(split="train")
    joints, still = figures.figures(range(60))[0].joints, rest().joints
    first, second = np.array(figures.info.facts["bones"]).T
    if make is SyntheticBodies:  # the trunk leans against the hips: their distance is none of its bones
        is_rigid = ~np.isin(second, (9, 10))
        first, second = first[is_rigid], second[is_rigid]
    lengths, rests = (np.linalg.norm(each[:, first] - each[:, second], axis=2) for each in (joints, still))
    scale = lengths / rests
    assert np.ptp(scale, axis=1).max() < 1e-12
    assert low - 1e-12 <= scale.min() < scale.max() <= high + 1e-12
    assert np.ptp(scale[:, 0]) > 0.6 * (high - low)


@pytest.mark.parametrize("name", SETS)
def test_joints_appear_where_the_figure_is_and_behind_its_surface(name: str, frames: dict[str, Batch]) -> None:
    """Every joint is inside a capsule more than a pixel wide, so the ray of the nearest pixel meets a surface first."""
    batch = frames[name]
    pixels = project_points(batch["joints"], batch["camera"][:, None])
    u, v = (pixels[..., axis].round().long() for axis in (0, 1))
    depth = batch["depth"][torch.arange(len(u))[:, None], v, u]
    assert (depth > 0).all()
    assert (depth < pixels[..., 2]).all()


@pytest.mark.parametrize("name", SETS)
def test_every_joint_can_be_answered(name: str) -> None:
    """Inside of the cube about the truth and about the centre of mass of the noisy frame, and in the picture."""
    cube_mm = 200 if name == "hands" else 2000
    for reference in (TrueJoint(), CentreOfMass()):
        figures = SETS[name](split="test", reference=reference)
        assert figures.info.facts["cube_mm"] == cube_mm
        batch = figures.get_batch(keys(range(16)))
        away = (batch["joints"] - batch["reference"][:, None]).abs()
        assert away.max() < cube_mm / 2
        u, v, _ = project_points(batch["joints"], batch["camera"][:, None]).unbind(-1)
        assert 0 <= u.min() <= u.max() <= 319
        assert 0 <= v.min() <= v.max() <= 239


def test_forearms_are_as_frequent_as_said() -> None:
    """Though a pose with a forearm fits less often: 100 of probability 0.5, 4 deviations."""
    thickness = SyntheticHands(split="train").figures(range(100))[0].capsules[:, 23, 6]
    assert abs((thickness > 0).sum() - 50) < 4 * np.sqrt(25)


# --- what the camera does ---------------------------------------------------------------------------------------------


def test_depth_errors_are_normal_and_as_large_as_said(hands_without_noise: Batch) -> None:
    noisy = SyntheticHands(split="train", noise_mm=(2.0, 2.0), missing=(0.0, 0.0)).get_batch(keys(range(40)))
    clean = hands_without_noise
    assert torch.equal(noisy["joints"], clean["joints"])
    is_there = clean["depth"] > 0
    assert torch.equal(noisy["depth"] > 0, is_there)
    errors = (noisy["depth"] - clean["depth"])[is_there].double().numpy()
    count = len(errors)
    assert count > 100_000
    assert abs(errors.mean()) < 5 * 2 / np.sqrt(count)
    assert abs(errors.std() / 2 - 1) < 5 / np.sqrt(2 * count)
    assert abs((errors**4).mean() / 16 - 3) < 5 * np.sqrt(96 / count)  # the fourth moment's own deviation
    within = np.corrcoef(errors[1:], errors[:-1])[0, 1]
    assert abs(within) < 5 / np.sqrt(count), "neighbouring pixels err independently"


def test_an_error_that_leads_behind_the_camera_leaves_no_depth() -> None:
    depth = SyntheticHands(split="train", noise_mm=(400.0, 400.0)).get_batch(keys([0]))["depth"]
    assert depth.min() == 0
    assert 0 < depth[depth > 0].min() < 100


def test_missing_pixels_are_as_many_as_said_and_anywhere(hands_without_noise: Batch) -> None:
    gappy = SyntheticHands(split="train", noise_mm=(0.0, 0.0), missing=(0.05, 0.05)).get_batch(keys(range(40)))
    clean = hands_without_noise["depth"]
    is_there, is_left = clean > 0, gappy["depth"] > 0
    assert torch.equal(gappy["depth"][is_left], clean[is_left])
    gone, count = int((is_there & ~is_left).sum()), int(is_there.sum())
    assert abs(gone - 0.05 * count) < 5 * np.sqrt(0.05 * 0.95 * count)
    neighbours = is_there[..., 1:] & is_there[..., :-1]
    both = int((neighbours & ~is_left[..., 1:] & ~is_left[..., :-1]).sum())
    expected = 0.05**2 * int(neighbours.sum())
    assert abs(both - expected) < 5 * np.sqrt(expected)


def test_by_default_each_frame_has_a_noise_and_a_share_of_its_own(hands_without_noise: Batch) -> None:
    """Uniform in 0 to 2 mm and in 0 to 5 %: means of 40 within 4 deviations, and both ends come near."""
    noisy = SyntheticHands(split="train").get_batch(keys(range(40)))["depth"]
    clean = hands_without_noise["depth"]
    both = (noisy > 0) & (clean > 0)
    deviations = np.array([float((n - c)[b].std()) for n, c, b in zip(noisy, clean, both, strict=True)])
    shares = 1 - (both.sum((1, 2)) / (clean > 0).sum((1, 2))).numpy()
    for values, high in ((deviations, 2.0), (shares, 0.05)):
        assert abs(values.mean() - high / 2) < 4 * high / np.sqrt(12 * 40)
        assert values.min() < 0.2 * high
        assert 0.8 * high < values.max() < 1.1 * high


# --- purity -----------------------------------------------------------------------------------------------------------


def assert_same(first: Batch, second: Batch) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first)


def test_a_frame_is_a_pure_function_of_seed_split_and_index(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = SyntheticHands(split="train", train_size=60)
    index = [7, 3, 58, 3, 20]
    batch = figures.get_batch(keys(index))
    bits = {name: value.clone() for name, value in batch.items()}
    for value in batch.values():
        value.zero_()
    assert_same(figures.get_batch(keys(index)), bits)
    assert_same(pickle.loads(pickle.dumps(figures)).get_batch(keys(index)), bits)
    monkeypatch.setattr("sightline.areas.pose.sets.synthetic_figures._MAX_CACHE_BYTES", 0)
    longer = SyntheticHands(split="train", train_size=900)
    for row, place in reversed(list(enumerate(index))):
        sample = longer[SampleKey(place, epoch=4, seed=9)]
        assert all(torch.equal(sample[name], bits[name][row]) for name in sample)
    others = (SyntheticHands(split="test"), SyntheticHands(split="train", data_seed=1))
    seen = {other.get_batch(keys(range(5)))["joints"].numpy().tobytes() for other in (*others, longer)}
    assert len(seen) == 3


def test_a_frame_that_does_not_fit_into_memory_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = SyntheticHands(split="train").get_batch(keys([0]))
    monkeypatch.setattr("sightline.areas.pose.sets.synthetic_figures._MAX_CACHE_BYTES", 100_000)
    hands = SyntheticHands(split="train")
    hands.get_batch(keys(range(10)))
    assert 1 <= len(hands._cache) < 4
    assert hands._cache.num_bytes <= 100_000
    assert len(pickle.loads(pickle.dumps(hands))._cache) == 0
    assert_same(hands.get_batch(keys([0])), one)


@pytest.mark.parametrize(
    ("name", "pinned", "mean"),
    [
        ("hands", "680436628ba2f563", 20.18928967),
        ("bodies", "b5251de3ab023b0b", 161.22654243),
        ("bodies from the top", "6985ecaac6796d17", 80.49414592),
    ],
)
def test_pinned_bits(name: str, pinned: str, mean: float, frames: dict[str, Batch]) -> None:
    """An alarm for any change of the content, on any platform: pixels exactly, lengths to a hundredth of a mm."""
    batch, digest = frames[name], hashlib.sha256()
    digest.update(np.packbits(batch["depth"].numpy() > 0).tobytes())
    for field in ("depth", "joints"):
        digest.update(np.floor(batch[field].double().numpy() * 100 + 0.5).astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == pinned
    noisy = SETS[name](split="test").get_batch(keys(range(20)))
    assert noisy["depth"].double().mean().item() == pytest.approx(mean, rel=1e-6)


# --- what they say of themselves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", SETS)
def test_samples_keep_what_the_set_promises(figure: str) -> None:
    figures = SETS[figure](split="test", test_size=30)
    batch, facts = figures.get_batch(keys(range(30))), figures.info.facts
    assert set(batch) == {*figures.info.fields, "sample_index"}
    for name, field in figures.info.fields.items():
        assert str(batch[name].dtype) == f"torch.{field.dtype}"
        assert tuple(batch[name].shape[1:]) == tuple(int(size) for size in field.shape.split())
        if field.low is not None and field.high is not None:
            assert field.low <= batch[name].min()
            assert batch[name].max() <= field.high
    camera = HAND_CAMERA if figure == "hands" else BODY_CAMERA
    assert torch.equal(batch["camera"][0], torch.from_numpy(camera.intrinsics))
    assert batch["visible"].all()
    assert len(facts["joint_names"]) == facts["num_joints"] == batch["joints"].shape[1]
    assert figures.info.split_sizes == {"train": 1920, "test": 30}
    assert facts["reference_source"] == "centre_of_mass"
    assert set(type(figures).card()) == {"layout", "obtain", "terms"}
    assert figures.fingerprint == f"{figures.set_name} 1"


@pytest.mark.parametrize(("name", "joint"), [("hands", "middle_mcp"), ("bodies", "torso")])
def test_the_true_reference_is_the_middle_joint(name: str, joint: str) -> None:
    truth = SETS[name](split="test", reference=TrueJoint())
    batch, names = truth.get_batch(keys(range(5))), truth.info.facts["joint_names"]
    assert torch.equal(batch["reference"], batch["joints"][:, names.index(joint)])


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="synthetic_hands: there is no split 'validation'; it has train and test"):
        SyntheticHands(split="validation")
    with pytest.raises(ConfigError, match=r"noise_mm: is from 3 to 2"):
        SyntheticHands(split="train", noise_mm=(3.0, 2.0))
    with pytest.raises(IndexError, match="synthetic_hands has the samples 0 to 479"):
        SyntheticHands(split="test")[SampleKey(480, 0, 0)]
