"""The alignment penalty against NumPy, finite differences, a public implementation, and where its root has no slope."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from sightline.losses.embeddings import FeatureTransformPenalty
from tests.golden_parity import load_golden


def test_agrees_with_numpy() -> None:
    matrices = torch.randn(5, 4, 4, dtype=torch.float64)
    expected = sum(np.linalg.norm(a @ a.T - np.eye(4), ord="fro") for a in matrices.numpy())
    penalty = FeatureTransformPenalty()
    assert penalty(feature_transform=matrices).item() == pytest.approx(expected, rel=1e-14)
    assert penalty.count(sample_index=torch.zeros(5, dtype=torch.int64)).item() == 5


@pytest.mark.shared
@pytest.mark.parametrize("case", ["reg0", "reg1", "reg2"])
def test_agrees_with_the_reference(shared: Path, case: str) -> None:
    golden = load_golden(shared, "fn_pointnet_ops")
    matrices = golden.tensor(f"{case}.A").requires_grad_()
    mean = FeatureTransformPenalty()(feature_transform=matrices) / len(matrices)
    mean.backward()
    # Up to 64 x 64 terms of one sign in another order: some ten roundings of 1e-16.
    torch.testing.assert_close(mean, golden.tensor(f"{case}.loss"), rtol=1e-13, atol=0)
    torch.testing.assert_close(matrices.grad, golden.tensor(f"{case}.grad"), rtol=1e-12, atol=1e-14)


def test_gradients_agree_with_finite_differences() -> None:
    matrices = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: FeatureTransformPenalty()(feature_transform=a), (matrices,))


def test_exactly_orthogonal_is_zero_with_zero_gradient() -> None:
    permutation = torch.eye(4)[torch.tensor([2, 0, 3, 1])]
    matrices = torch.stack([torch.eye(4), permutation, -torch.eye(4)]).requires_grad_()
    total = FeatureTransformPenalty()(feature_transform=matrices)
    total.backward()
    assert total.item() == 0
    assert torch.equal(matrices.grad, torch.zeros(3, 4, 4))


def test_rotations_of_the_features_do_not_matter() -> None:
    matrix, turn = np.random.default_rng(0).normal(size=(6, 6)), ortho_group.rvs(6, random_state=1)
    plain, turned = (
        FeatureTransformPenalty()(feature_transform=torch.from_numpy(a)[None]).item() for a in (matrix, matrix @ turn)
    )
    assert turned == pytest.approx(plain, rel=1e-13)


def test_lowered_precision_keeps_the_digits_of_a_small_excess() -> None:
    """Close to the identity, bf16 products would have an excess of their own rounding."""
    transform = torch.eye(8)[None] + 1e-4 * torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = FeatureTransformPenalty()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = loss(feature_transform=transform)
    assert torch.equal(lowered, loss(feature_transform=transform))
