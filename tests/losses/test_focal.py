"""Focal cross entropy and class weights by rule: against NumPy, cross entropy itself, and the frequencies of others."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.doctor.oracles.losses import focal
from sightline.errors import ConfigError
from sightline.losses.classification import CrossEntropy, FocalCrossEntropy, resolve_class_weights

WEIGHTS = (0.5, 1.0, 2.0, 4.0)


def made(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, 4, generator=random, dtype=torch.float64), torch.randint(0, 4, (2, 5), generator=random)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_agrees_with_numpy(gamma: float) -> None:
    logits, label = made()
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    expected = 0.0
    for row, target in zip(p.reshape(-1, 4), label.flatten().tolist(), strict=True):
        if target != 1:
            expected += -WEIGHTS[target] * (1 - row[target]) ** gamma * np.log(row[target])
    loss = FocalCrossEntropy(num_classes=4, ignore_index=1, gamma=gamma, class_weights=WEIGHTS)
    assert loss(logits=logits, label=label).item() == pytest.approx(expected, abs=1e-12)
    counted = [WEIGHTS[target] for target in label.flatten().tolist() if target != 1]
    assert loss.count(label=label).item() == sum(counted)
    once = FocalCrossEntropy(num_classes=4, ignore_index=1, class_weights=WEIGHTS, divide_by="targets")
    assert once.count(label=label).item() == len(counted)


def test_with_gamma_zero_it_is_cross_entropy() -> None:
    logits, label = made()
    focal = FocalCrossEntropy(num_classes=4, gamma=0.0, class_weights=WEIGHTS)
    plain = CrossEntropy(num_classes=4, class_weights=WEIGHTS)
    expected = plain(logits=logits, label=label).item()
    assert focal(logits=logits, label=label).item() == pytest.approx(expected, abs=1e-12)


def test_gradients_agree_with_finite_differences_also_at_certainty() -> None:
    logits, label = made()
    loss = FocalCrossEntropy(num_classes=4, class_weights=WEIGHTS)
    assert torch.autograd.gradcheck(lambda values: loss(logits=values, label=label), logits.requires_grad_())
    sure = torch.tensor([[100.0, 0.0, 0.0, 0.0]], requires_grad=True)
    loss(logits=sure, label=torch.tensor([0])).backward()
    assert bool(sure.grad.isfinite().all())


def test_all_ignored_is_zero_with_zero_gradients() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = FocalCrossEntropy(num_classes=4, ignore_index=0)
    found = loss(logits=logits, label=torch.zeros(2, 3, dtype=torch.int64))
    found.backward()
    assert found.item() == 0
    assert not logits.grad.any()


# --- class weights ----------------------------------------------------------------------------------------------------


def weights(rule: str, counts: tuple[int, ...] | None, ignore_index: int | None = None) -> list[float]:
    made = resolve_class_weights(
        rule,  # type: ignore[arg-type]
        loss="cross_entropy",
        num_classes=3 if counts is None else len(counts),
        class_counts=counts,
        ignore_index=ignore_index,
    )
    assert made is not None
    return made.tolist()


@pytest.mark.parametrize("scans", ["single", "multi"])
def test_weights_of_semantic_kittis_scripts(shared: Path, scans: str) -> None:
    """The weights of all labelled scans by the reference's script, from its shares of 10^12 points."""
    with np.load(shared / "golden" / "lidar" / "semantic_kitti_scripts.npz", allow_pickle=False) as golden:
        frequency, expected = golden[f"weights/frequency_{scans}"], golden[f"weights/inverse_{scans}"]
    found = weights("inverse", tuple((frequency * 1e12).round().astype(int).tolist()), ignore_index=0)
    assert abs(frequency.sum() - 1) < 2e-6, "the script's shares are rounded"
    assert np.allclose(found[1:], expected[1:], rtol=2e-6)
    assert found[0] == 0
    sidewalk = weights("inverse", (856_077, 143_923))[1], weights("inverse_log", (856_077, 143_923))[1]
    assert np.round(sidewalk, 2).tolist() == [6.90, 6.59]


def test_weights_of_few_labels_by_hand() -> None:
    assert weights("inverse", (3, 1)) == pytest.approx([1 / 0.751, 1 / 0.251], abs=1e-12)
    assert weights("inverse_log", (3, 1)) == pytest.approx([1 / math.log(1.77), 1 / math.log(1.27)], abs=1e-12)


def test_a_class_that_never_occurs_weighs_nothing_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert weights("inverse", (0, 5, 0, 15), ignore_index=0)[2] == 0
    (message,) = caplog.messages
    assert "absent-class-weight: cross_entropy.class_weights: classes 2 do not occur" in message


def test_a_rule_needs_the_counts_of_the_data_set() -> None:
    with pytest.raises(ConfigError, match="inverse needs the fact class_counts, which this data set does not state"):
        weights("inverse", None)


@pytest.mark.parametrize("divide_by", ["weights", "targets"])
def test_check_deep_compares_it_with_numpy(divide_by: str) -> None:
    logits, label = made()
    loss = FocalCrossEntropy(num_classes=4, ignore_index=1, class_weights=WEIGHTS, divide_by=divide_by)  # type: ignore[arg-type]
    mean = loss(logits=logits, label=label) / loss.count(label=label)
    rows = logits.numpy().reshape(-1, 4), label.numpy().ravel()
    by_weights = divide_by == "weights"
    expected = focal(*rows, gamma=2.0, weights=WEIGHTS, by_weights=by_weights, ignore_index=1)
    assert mean.item() == pytest.approx(expected, abs=1e-12)
