"""The distillation loss: golden numbers, SciPy, its gradients, and ignored points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from sightline.losses.classification import CrossEntropy, Distillation
from tests.golden_parity import load_golden


def test_values_and_gradients_are_the_golden_ones(shared: Path) -> None:
    golden = load_golden(shared, "distillation", area="compress")
    for case in golden.info["cases"]:
        student, teacher, y, kl, ce, total, gradient = (
            golden.tensor(f"case{case['case']:02d}/{name}")
            for name in ("student", "teacher", "y", "kl", "ce", "total", "grad_student")
        )
        logits, label = student.clone().requires_grad_(), y.long()
        teacher = teacher.clone().requires_grad_()
        loss = Distillation(num_classes=student.shape[-1], temperature=case["T"])
        own = CrossEntropy(num_classes=student.shape[-1])
        divergence = loss(logits=logits, teacher_logits=teacher, label=label) / loss.count(label=label)
        entropy_loss = own(logits=logits, label=label) / own.count(label=label)
        whole = (1 - case["alpha"]) * entropy_loss + case["alpha"] * divergence
        whole.backward()
        assert divergence.item() == pytest.approx(case["T"] ** 2 * kl.item(), rel=1e-12, abs=1e-14)
        assert entropy_loss.item() == pytest.approx(ce.item(), rel=1e-12)
        assert whole.item() == pytest.approx(total.item(), rel=1e-12)
        assert torch.allclose(logits.grad, gradient, rtol=1e-12, atol=1e-14)
        assert teacher.grad is None


def test_points_that_are_ignored_count_nothing_whatever_they_hold() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 3, 40, 5, generator=draws, dtype=torch.float64)
    label = torch.randint(0, 5, (3, 40), generator=draws)
    loss = Distillation(num_classes=5, ignore_index=2, temperature=3.0)
    found = loss(logits=logits, teacher_logits=teacher, label=label)
    is_counted = (label != 2).numpy()
    rows = entropy(softmax(teacher.numpy() / 3, axis=-1), softmax(logits.numpy() / 3, axis=-1), axis=-1)
    assert found.item() == pytest.approx(9 * rows[is_counted].sum(), rel=1e-12)
    assert loss.count(label=label).item() == is_counted.sum()
    moved = torch.where((label == 2)[..., None], 100.0, teacher)
    assert loss(logits=logits, teacher_logits=moved, label=label).item() == found.item()
    none = logits.clone().requires_grad_()
    loss(logits=none, teacher_logits=teacher, label=torch.full_like(label, 2)).backward()
    assert not none.grad.any()


def test_an_equal_student_costs_nothing_and_shifts_of_logits_do_not_matter() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss, label = Distillation(num_classes=4), torch.zeros(6, dtype=torch.int64)
    assert loss(logits=logits + 7, teacher_logits=logits, label=label).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="logits: found the shape"):
        loss(logits=logits, teacher_logits=logits[:, :3], label=label)


def test_gradients_agree_with_finite_differences() -> None:
    logits, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 0, 1])
    loss = Distillation(num_classes=3, ignore_index=1)
    assert torch.autograd.gradcheck(
        lambda values: loss(logits=values, teacher_logits=teacher, label=label), logits.requires_grad_()
    )
    assert np.isfinite(loss(logits=1e4 * logits, teacher_logits=-1e4 * teacher, label=label).item())
