"""Errors of joints: others' own numbers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.pose.metrics import JointError
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


def test_no_answer_is_refused() -> None:
    found = torch.zeros(2, 1, 3)
    found[1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="1 joints are not finite, first in sample 1"):
        scored(joint_error(1), found, torch.zeros(2, 1, 3))


def test_joints_in_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="all are"):
        scored(joint_error(2), torch.zeros(2, 3, 3), torch.zeros(2, 2, 3))
