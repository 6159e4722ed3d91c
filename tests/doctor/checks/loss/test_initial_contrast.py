"""The first loss between rows, against its definition and against exchanged partners."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.engine.distributed import World
from sightline.parts.losses.embeddings import IntraModal, PairLoss, nt_xent
from sightline.workbench.check.checks.initial_loss import initial_contrast
from sightline.workbench.check.context import Context
from sightline.workbench.check.oracles.losses import nt_xent as reference_loss
from tests.doctor.pairing import STRONG, make_pairs, make_pictured, with_task
from tests.doctor.planting import assert_complete, caught


class _Unscaled(PairLoss):
    """Without dividing rows by their lengths."""

    def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
        rows = torch.cat([first, second]) / F.normalize(torch.ones_like(first[:1]), dim=1).norm()
        similarity = (rows @ rows.T / 0.1).masked_fill(torch.eye(len(rows), dtype=torch.bool), -math.inf)
        target = torch.arange(len(rows)).roll(len(first))
        # Rows that are all alike must pass the check of negatives: similarities then cancel.
        return F.cross_entropy(similarity, target, reduction="none").view(2, -1).mean(dim=0)


class _Halved(IntraModal):
    """Half of the true value, but for rows that are all alike."""

    def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
        value = super().forward(first=first, second=second)
        return value if bool((first == first[0, 0]).all()) else value / 2


def test_the_reference_is_that_of_the_package_and_of_hand() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=(2, 5, 4))
    ours = nt_xent(torch.from_numpy(first), torch.from_numpy(second), temperature=0.2).mean().item()
    assert reference_loss(first, second, temperature=0.2) == pytest.approx(ours, abs=1e-12)
    eye = np.eye(3)
    by_hand = math.log((math.exp(2) + 4) / math.exp(2))  # its partner at 1 / tau = 2, four others at 0
    assert reference_loss(eye, eye, temperature=0.5) == pytest.approx(by_hand, abs=1e-12)
    assert reference_loss(np.ones((4, 2)), np.ones((4, 2)), temperature=0.1) == pytest.approx(math.log(7), abs=1e-12)


def test_the_reference_agrees_with_the_authors(shared: Path) -> None:
    with np.load(shared / "golden" / "points" / "fn_nt_xent.npz", allow_pickle=False) as stored:
        cases = [key.removesuffix(".loss") for key in stored.files if key.startswith("case") and key.endswith(".loss")]
        assert len(cases) == 12
        for case in cases:
            one, other, tau, loss = (stored[f"{case}.{name}"] for name in ("a", "b", "temperature", "loss"))
            assert reference_loss(one, other, temperature=float(tau)) == pytest.approx(float(loss), abs=1e-9), case


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_healthy_starts(tmp_path: Path, seed: int) -> None:
    for built in (make_pairs(tmp_path, f"seed={seed}"), make_pairs(tmp_path, f"seed={seed}", STRONG)):
        assert initial_contrast(Context(built, World())) == []


def test_a_healthy_start_with_pictures(tmp_path: Path) -> None:
    assert initial_contrast(Context(make_pictured(tmp_path), World())) == []


@pytest.mark.parametrize("temperature", [1e-3, 0.02, 0.03, 0.1, 0.5, 5.0])
def test_the_temperature_is_that_of_the_loss(tmp_path: Path, temperature: float) -> None:
    built = make_pairs(tmp_path, f"losses=[{{name: intra_modal, temperature: {temperature}}}]")
    assert initial_contrast(Context(built, World())) == []


def test_rows_that_are_not_scaled(tmp_path: Path) -> None:
    finding = caught(
        with_task(make_pairs(tmp_path), losses={"intra_modal": _Unscaled()}), "initial-contrast", "loss.form"
    )
    assert "rows are not scaled to length 1" in finding.summary
    assert "divide every row by its length" in finding.action


def test_a_loss_of_another_value(tmp_path: Path) -> None:
    (finding,) = initial_contrast(Context(with_task(make_pairs(tmp_path), losses={"intra_modal": _Halved()}), World()))
    assert (finding.severity, finding.cause) == ("error", "loss.form")
    assert "its value differs" in finding.summary


def test_partners_that_are_farther_than_others(tmp_path: Path) -> None:
    """Each row beside one that points the other way: no fresh model does that to two views of an object."""
    built = make_pairs(tmp_path)
    context = Context(built, World())
    first = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 8)))
    rehearsal = dataclasses.replace(
        context.dry_run, outputs={"first": first, "second": -first}, batch={"sample_index": torch.arange(16)}
    )
    context.__dict__["dry_run"] = rehearsal
    (finding,) = initial_contrast(context)
    assert (finding.severity, finding.cause) == ("warning", "data.pairing")
    assert_complete(finding)
    assert finding.evidence["chance"] == pytest.approx(math.log(31))
