"""Errors of reference points: by hand, against NumPy, the same bits for any split of the frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.metrics.base import State, make_state
from sightline.metrics.joints import CentreError


def scored(found: Tensor, reference: Tensor, joints: Tensor, visible: Tensor, *, parts: int = 1) -> State:
    metric = CentreError(centre_joint=1)
    state = make_state(metric, num_samples=len(joints))
    for index in torch.arange(len(joints)).tensor_split(parts):
        metric.update(
            state,
            centre_mm=found[index],
            reference=reference[index],
            joints=joints[index],
            visible=visible[index],
            sample_index=index,
        )
    return state


def test_by_hand() -> None:
    """Refined by (3, 4, 0) and (0, 0, 12), before (0, 0, 10) and (20, 0, 0); the third frame has no label."""
    joints = torch.zeros(3, 2, 3)
    joints[:2, 1] = torch.tensor([10.0, 20.0, 300.0])
    found = joints[:, 1] + torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 12.0], [9.0, 9.0, 9.0]])
    reference = joints[:, 1] + torch.tensor([[0.0, 0.0, 10.0], [20.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    visible = torch.tensor([[True, True], [False, True], [True, False]])
    state = scored(found, reference, joints, visible)
    figures = CentreError(centre_joint=1).compute(state)
    expected = {"centre_error_mm": 8.5, "median_centre_error_mm": 5.0, "max_centre_error_mm": 12.0}
    assert figures == {**expected, "reference_error_mm": 15.0}
    assert CentreError(centre_joint=1).per_sample(state)[:2].tolist() == [5.0, 12.0]


def test_any_split_has_the_same_bits_and_agrees_with_numpy() -> None:
    joints, found, reference = torch.randn(11, 2, 3) * 50, torch.randn(11, 3) * 50, torch.randn(11, 3) * 50
    visible = torch.arange(22).view(11, 2) % 5 > 0
    metric = CentreError(centre_joint=1)
    whole = metric.compute(scored(found, reference, joints, visible))
    assert metric.compute(scored(found, reference, joints, visible, parts=4)) == whole
    distances = np.linalg.norm(found.double().numpy() - joints[:, 1].double().numpy(), axis=1)[visible[:, 1].numpy()]
    assert whole["centre_error_mm"] == pytest.approx(distances.mean(), rel=1e-12)


def test_without_frames_there_are_no_figures() -> None:
    metric = CentreError(centre_joint=0)
    assert all(math.isnan(value) for value in metric.compute(make_state(metric)).values())
