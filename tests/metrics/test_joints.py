"""Errors of joints and similarity of key points: others' own numbers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.pose.metrics import JointError, Keypoints
from sightline.contract.errors import ConfigError
from sightline.contract.metric import State, make_state
from tests.golden_parity import load_golden


def joint_error(num_joints: int, **arguments: Any) -> JointError:
    return JointError(num_joints=num_joints, joint_names=tuple(map(str, range(num_joints))), **arguments)


def scored(metric: Any, found: Tensor, true: Tensor, visible: Tensor | None = None, parts: int = 1) -> State:
    """The state after all frames, in as many batches as `parts`."""
    state = make_state(metric, num_samples=len(true))
    visible = torch.ones(true.shape[:2], dtype=torch.bool) if visible is None else visible
    for index in torch.arange(len(true)).tensor_split(parts):
        metric.update(state, joints_mm=found[index], joints=true[index], visible=visible[index], sample_index=index)
    return state


@pytest.mark.shared
@pytest.mark.parametrize("number", range(5))
def test_agrees_with_the_evaluations_that_papers_use(shared: Path, number: int) -> None:
    golden = load_golden(shared, "fn_pose_errors", area="pose")

    def of(name: str) -> np.ndarray:
        return golden.arrays[f"case{number}.{name}"]

    true, found = torch.from_numpy(of("gt")), torch.from_numpy(of("pred"))
    metric = joint_error(true.shape[1], threshold_mm=20.0)
    state = scored(metric, found, true, parts=min(3, len(true)))
    figures = metric.compute(state)
    assert figures["mean_error_mm"] == pytest.approx(of("mean_error").item(), rel=1e-12)
    assert figures["max_error_mm"] == pytest.approx(of("max_error").item(), rel=1e-12)
    assert figures["frames_within"] == of("frames_within_max")[20] / len(true)
    per_joint = [row["error_mm"] for row in metric.per_class(state).values()]
    np.testing.assert_allclose(per_joint, of("joint_mean"), rtol=1e-12)
    np.testing.assert_allclose(metric.per_sample(state), of("mean_per_frame"), rtol=1e-12)
    curve = metric.tables(state)["error_curve"]
    np.testing.assert_array_equal(np.rint(np.array(curve["frames_by_worst"]) * len(true)), of("frames_within_max"))
    np.testing.assert_array_equal(np.rint(np.array(curve["frames_by_mean"]) * len(true)), of("frames_within_mean"))
    np.testing.assert_allclose(curve["joints"], of("ahp_joint")[:81], rtol=1e-12)
    assert curve["joints"][10] == pytest.approx(of("pck10_le").item(), rel=1e-12)


def test_predictions_and_labels_that_are_not_finite_are_refused() -> None:
    broken = torch.zeros(2, 1, 3)
    broken[1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="joints_mm: 1 joints are not finite, first in sample 1"):
        scored(joint_error(1), broken, torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="joints: 1 joints are not finite, first in sample 1"):
        scored(joint_error(1), torch.zeros(2, 1, 3), broken)


def test_joints_in_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="all are"):
        scored(joint_error(2), torch.zeros(2, 3, 3), torch.zeros(2, 2, 3))


@pytest.mark.shared
@pytest.mark.parametrize("number", range(2))
def test_key_points_in_space_agree_with_the_plain_formula(shared: Path, number: int) -> None:
    golden = load_golden(shared, "fn_oks", area="pose")

    def of(name: str) -> np.ndarray:
        return golden.arrays[f"formula3d_{number}.{name}"]

    true, found = torch.from_numpy(of("gt")), torch.from_numpy(of("pred"))
    names = tuple(map(str, range(true.shape[1])))
    metric = Keypoints(joint_names=names, pck_joints=(0, 5), keypoint_sigmas=tuple(of("sigmas").tolist()))
    everything = metric.compute(scored(metric, found, true))  # its PCK is over all joints
    assert everything["pck"] == pytest.approx(of("pck02").item(), rel=1e-12)
    area, visible = torch.from_numpy(of("s2")), torch.from_numpy(of("visible")).bool()
    state, rows = make_state(metric, num_samples=len(true)), torch.arange(len(true))
    metric.update(state, joints_mm=found, joints=true, visible=visible, sample_index=rows, area=area)
    np.testing.assert_allclose(state["similarity"].sum(dim=1) / visible.sum(dim=1), of("oks"), rtol=1e-10)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(5))
def test_similarity_in_images_is_that_of_coco(shared: Path, number: int) -> None:
    """Every detection of an image against each of its labelled people."""
    golden = load_golden(shared, "fn_oks", area="pose")

    def of(name: str) -> np.ndarray:
        return golden.arrays[f"case{number}.{name}"]

    sigmas = tuple(of("sigmas").tolist())
    metric = Keypoints(joint_names=tuple(map(str, range(len(sigmas)))), sigmas=sigmas, dimensions=2)
    compared = 0
    for image in (image for image in range(1, 20) if f"case{number}.image{image}_oks" in golden.arrays):
        theirs, people = of(f"image{image}_dt_order"), of(f"image{image}_gt_order")
        found = torch.from_numpy(of("dt_keypoints")[theirs])[..., :2]
        for column, person in enumerate(people):
            joints = torch.from_numpy(of("gt_keypoints")[person]).expand(len(theirs), -1, -1)
            if not (joints[..., 2] > 0).any():  # COCO measures these against their box; no frame of a pose set is so
                continue
            state, area = make_state(metric, num_samples=len(theirs)), torch.tensor([of("gt_area")[person]])
            batch = {"joints_mm": found, "joints": joints[..., :2], "visible": joints[..., 2] > 0}
            metric.update(state, **batch, sample_index=torch.arange(len(theirs)), area=area.expand(len(theirs)))
            similarity = state["similarity"].sum(dim=1) / state["labelled"].sum(dim=1)
            np.testing.assert_allclose(similarity, of(f"image{image}_oks")[:, column], rtol=1e-9, atol=1e-12)
            compared += 1
    assert compared > 2


def test_shifted_key_points_have_the_figures_of_the_shift() -> None:
    """Off by 10 of a length of 50, all joints: a fifth, of which the area of the curve to 0.5 is three fifths."""
    true = torch.tensor([[[0.0, 0, 0], [0, 50, 0], [40, 50, 0]]]).expand(4, -1, -1)
    metric = Keypoints(joint_names=("wrist", "knuckle", "tip"), pck_joints=(0, 1))
    state = scored(metric, true + torch.tensor([0.0, 0, 10]), true, parts=2)
    assert metric.compute(state) == {"pck": 1.0, "pck_auc": pytest.approx(0.6, abs=1e-12)}
    curve = metric.tables(state)["pck_curve"]
    assert curve["joints"] == curve["by_joint"]["tip"] == [0.0] * 20 + [1.0] * 31
    flat = Keypoints(
        joint_names=("wrist", "knuckle", "tip"), pck_joints=(0, 1), keypoint_sigmas=(0.1,) * 3, dimensions=2
    )
    assert flat.compute(scored(flat, true + torch.tensor([0.0, 0, 10]), true)) == dict.fromkeys(
        ("pck", "pck_auc", "oks", "oks_ap"), 1.0
    )


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({}, r"states neither a length nor deviations.*length: \[wrist, tip\]"),
        ({"length": ("wrist", "tipp")}, "length: there is no joint 'tipp'.*did you mean 'tip'"),
        ({"length": ("tip", "tip")}, "joins 'tip' to itself"),
        ({"sigmas": (0.1,)}, "found 1 for 2 joints"),
    ],
)
def test_key_points_without_constants_are_refused(arguments: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal):
        Keypoints(joint_names=("wrist", "tip"), **arguments)


def test_joints_of_an_image_are_no_joints_in_space() -> None:
    metric = Keypoints(joint_names=("wrist", "tip"), pck_joints=(0, 1))
    with pytest.raises(ValueError, match="have 2 coordinates; give the metric dimensions: 2"):
        scored(metric, torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
