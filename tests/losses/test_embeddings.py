"""NT-Xent with its two uses and the alignment penalty: published code and hand-worked values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.parts.losses.contrast import CrossModal, IntraModal, chance_level, nt_xent
from sightline.parts.losses.feature_transform import FeatureTransformPenalty
from tests.golden_parity import load_golden

CASES = [f"case{number}" for number in range(12)]


def rows(num_pairs: int, width: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(num_pairs, width, dtype=torch.float64), torch.randn(num_pairs, width, dtype=torch.float64)


@pytest.mark.shared
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_reference(shared: Path, case: str) -> None:
    golden = load_golden(shared, "fn_nt_xent")
    first, second = (golden.tensor(f"{case}.{side}").requires_grad_() for side in "ab")
    loss = nt_xent(first, second, temperature=golden.tensor(f"{case}.temperature").item()).mean()
    loss.backward()
    torch.testing.assert_close(loss, golden.tensor(f"{case}.loss"), rtol=1e-9, atol=1e-12)
    for side, given in (("a", first), ("b", second)):
        expected = golden.tensor(f"{case}.grad_{side}")
        torch.testing.assert_close(given.grad, expected, rtol=1e-7, atol=1e-9 * max(1.0, expected.abs().max().item()))


@pytest.mark.shared
def test_all_pairs_and_those_of_a_process_agree_with_the_reference(shared: Path) -> None:
    """A mean of processes that see their own pairs alone is another number than the loss over all pairs."""
    golden = load_golden(shared, "fn_nt_xent_ranks")
    for case in golden.info["cases"]:
        first, second = (golden.tensor(f"{case}.{side}").requires_grad_() for side in "ab")
        whole = nt_xent(first, second, temperature=0.1).mean()
        whole.backward()
        torch.testing.assert_close(whole, golden.tensor(f"{case}.full"), rtol=1e-9, atol=1e-12)
        for side, given in (("a", first), ("b", second)):
            torch.testing.assert_close(given.grad, golden.tensor(f"{case}.full_grad_{side}"), rtol=1e-7, atol=1e-9)
        sides = (side.chunk(int(golden.tensor(f"{case}.world"))) for side in (first, second))
        parts = torch.stack([nt_xent(*pairs, temperature=0.1).mean() for pairs in zip(*sides, strict=True)])
        torch.testing.assert_close(parts, golden.tensor(f"{case}.rank_loss"), rtol=1e-9, atol=1e-12)
        assert len(parts) == 1 or abs(parts.mean() - whole) > 1e-3


@pytest.mark.shared
@pytest.mark.parametrize("case", ["crosspoint0", "crosspoint1", "crosspoint2"])
def test_both_losses_agree_with_the_reference(shared: Path, case: str) -> None:
    """The prototype is the mean before its rows are normalised; the total is the sum."""
    golden = load_golden(shared, "fn_nt_xent")
    given = {
        ours: golden.tensor(f"{case}.{theirs}").requires_grad_()
        for ours, theirs in (("first", "z1"), ("second", "z2"), ("pictured", "h"))
    }
    imid = IntraModal()(first=given["first"], second=given["second"]).mean()
    cmid = CrossModal()(**given).mean()
    (imid + cmid).backward()
    for found, name in ((imid, "imid"), (cmid, "cmid"), (imid + cmid, "total")):
        torch.testing.assert_close(found, golden.tensor(f"{case}.{name}"), rtol=1e-9, atol=1e-12)
    for ours, theirs in (("first", "z1"), ("second", "z2"), ("pictured", "h")):
        torch.testing.assert_close(given[ours].grad, golden.tensor(f"{case}.grad_{theirs}"), rtol=1e-7, atol=1e-9)


# --- what is known beforehand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_pairs", [2, 16, 20])
def test_rows_all_alike_are_at_chance(num_pairs: int) -> None:
    alike = torch.ones(num_pairs, 4, dtype=torch.float64)
    found = nt_xent(alike, alike, temperature=0.1)
    assert found.tolist() == pytest.approx([math.log(2 * num_pairs - 1)] * num_pairs, abs=1e-12)
    assert chance_level(num_pairs) == math.log(2 * num_pairs - 1)


def test_a_single_pair_has_no_negatives() -> None:
    assert nt_xent(*rows(1), temperature=0.1).tolist() == [0.0]


def test_a_row_of_zeros_leaves_numbers() -> None:
    first, second = (side.requires_grad_() for side in (torch.zeros(2, 4), torch.randn(2, 4)))
    nt_xent(first, second, temperature=0.1).sum().backward()
    assert first.grad.isfinite().all()
    assert second.grad.isfinite().all()


def test_half_precision_is_compared_in_single() -> None:
    """At a temperature of a thousandth exp overflows half precision; the rows are rounded, and nothing else is."""
    first, second = (side.to(torch.bfloat16) for side in rows(5))
    found = nt_xent(first, second, temperature=1e-3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, nt_xent(first.float(), second.float(), temperature=1e-3), rtol=0, atol=0)


def test_rows_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"nt_xent: found rows of \(3, 8\) and \(4, 8\), expected two \(M, D\)"):
        nt_xent(torch.zeros(3, 8), torch.zeros(4, 8), temperature=0.1)


def test_every_pair_counts_once() -> None:
    assert int(IntraModal().count(sample_index=torch.arange(6))) == 6


# --- The alignment penalty against NumPy, a public implementation, and where its root has no slope ---


def test_agrees_with_numpy() -> None:
    matrices = torch.randn(5, 4, 4, dtype=torch.float64)
    expected = sum(np.linalg.norm(a @ a.T - np.eye(4), ord="fro") for a in matrices.numpy())
    penalty = FeatureTransformPenalty()
    assert penalty(feature_transform=matrices).item() == pytest.approx(expected, rel=1e-14)
    assert penalty.count(sample_index=torch.zeros(5, dtype=torch.int64)).item() == 5


@pytest.mark.shared
@pytest.mark.parametrize("case", ["reg0", "reg1", "reg2"])
def test_the_penalty_agrees_with_the_reference(shared: Path, case: str) -> None:
    golden = load_golden(shared, "fn_pointnet_ops")
    matrices = golden.tensor(f"{case}.A").requires_grad_()
    mean = FeatureTransformPenalty()(feature_transform=matrices) / len(matrices)
    mean.backward()
    # Up to 64 x 64 terms of one sign in another order: some ten roundings of 1e-16.
    torch.testing.assert_close(mean, golden.tensor(f"{case}.loss"), rtol=1e-13, atol=0)
    torch.testing.assert_close(matrices.grad, golden.tensor(f"{case}.grad"), rtol=1e-12, atol=1e-14)


def test_exactly_orthogonal_is_zero_with_zero_gradient() -> None:
    permutation = torch.eye(4)[torch.tensor([2, 0, 3, 1])]
    matrices = torch.stack([torch.eye(4), permutation, -torch.eye(4)]).requires_grad_()
    total = FeatureTransformPenalty()(feature_transform=matrices)
    total.backward()
    assert total.item() == 0
    assert torch.equal(matrices.grad, torch.zeros(3, 4, 4))


def test_lowered_precision_keeps_the_digits_of_a_small_excess() -> None:
    """Close to the identity, bf16 products would have an excess of their own rounding."""
    transform = torch.eye(8)[None] + 1e-4 * torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = FeatureTransformPenalty()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = loss(feature_transform=transform)
    assert torch.equal(lowered, loss(feature_transform=transform))
