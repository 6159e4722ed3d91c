"""The number of negatives, and who is whose partner, told from rows of our own making."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.areas.contrast.task import Contrast
from sightline.engine.distributed import World
from sightline.parts.losses.embeddings import CrossModal, IntraModal, PairLoss
from sightline.workbench.check.checks.loss_terms import negatives
from sightline.workbench.check.context import Context
from tests.doctor.pairing import STRONG, make_pairs, make_pictured, with_task
from tests.doctor.planting import assert_complete, assert_healthy, caught
from tests.processes import run_ranks


class _Entropy(PairLoss):
    """NT-Xent with a mistake of the user's choice."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake

    def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
        first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
        if self.mistake == "one side":
            return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(first)), reduction="none")
        rows = torch.cat([first, second])
        similarity = rows @ rows.T / 0.1
        if self.mistake != "itself":
            similarity = similarity.masked_fill(torch.eye(len(rows), dtype=torch.bool), -math.inf)
        if self.mistake == "sign":
            similarity = -similarity.masked_fill(similarity.isinf(), math.inf)
        step = 1 if self.mistake == "next" else 0
        target = torch.arange(len(rows)).roll(len(first) + step)
        return F.cross_entropy(similarity, target, reduction="none").view(2, -1).mean(dim=0)


class _OwnBatch(Contrast):
    """Compares each micro-batch alone."""

    def prepare(self, model, micro_batches, world):  # type: ignore[no-untyped-def]
        counts, _ = super().prepare(model, micro_batches, world)
        return counts, [super(_OwnBatch, self).prepare(model, [batch], world)[1][0] for batch in micro_batches]


def test_healthy_runs(tmp_path: Path) -> None:
    assert_healthy(make_pairs(tmp_path, STRONG))
    assert_healthy(make_pictured(tmp_path))
    built = make_pairs(tmp_path, "train.micro_batches=2", "losses=[{name: intra_modal, temperature: 0.5}]")
    assert negatives(Context(built, World())) == []


def test_a_row_that_is_its_own_negative(tmp_path: Path) -> None:
    broken = with_task(make_pairs(tmp_path), losses={"intra_modal": _Entropy("itself")})
    finding = caught(broken, "negatives", "loss.negatives")
    assert "a row's similarity to itself counts as well" in finding.summary
    assert "so 11 negatives" in finding.measured  # of 6 pairs: 2 M - 1
    assert finding.expected.endswith("so 10")


def test_rows_of_one_side_alone(tmp_path: Path) -> None:
    broken = with_task(make_pairs(tmp_path), losses={"intra_modal": _Entropy("one side")})
    (finding,) = negatives(Context(broken, World()))
    assert "only the rows of one side" in finding.summary
    assert "so 5 negatives" in finding.measured


def test_rows_of_the_own_micro_batch_alone(tmp_path: Path) -> None:
    built = make_pairs(tmp_path)
    built.job.task.__class__ = _OwnBatch
    (finding,) = negatives(Context(built, World()))
    assert "only the rows of the same micro-batch" in finding.summary
    assert "in 2 micro-batches, so 4 negatives" in finding.measured


@pytest.mark.parametrize("mistake", ["next", "sign"])
def test_the_wrong_partner(tmp_path: Path, mistake: str) -> None:
    broken = with_task(make_pairs(tmp_path), losses={"intra_modal": _Entropy(mistake)})
    (finding,) = negatives(Context(broken, World()))
    assert finding.cause == "data.pairing"
    assert "does not reward an object's own partner" in finding.summary
    assert_complete(finding)


def test_pictures_are_asked_about_too(tmp_path: Path) -> None:
    class Turned(CrossModal):
        def forward(self, *, first: Tensor, second: Tensor, pictured: Tensor) -> Tensor:
            return super().forward(first=first, second=second, pictured=pictured.roll(1, 0))

    built = make_pictured(tmp_path, losses={"intra_modal": IntraModal(), "cross_modal": Turned()})
    (finding,) = negatives(Context(built, World()))
    assert "'cross_modal'" in finding.summary


def test_processes_alone_are_named_with_their_numbers(tmp_path: Path) -> None:
    """Two processes, 8 pairs each of 16: gathered negatives say nothing, those of a process what they cost."""
    make_pairs(tmp_path)
    run_ranks(["-m", "tests.doctor.run_pairs", str(tmp_path)], 2)
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["gathered"] == []
        (finding,) = result["process"]
        assert (finding["code"], finding["severity"], finding["cause"]) == ("negatives", "warning", "loss.negatives")
        assert "14 negatives an anchor; a collapsed network has the loss 2.7081" in finding["measured"]  # ln 15
        assert "30 of the 16 pairs of a step, and 3.4340" in finding["expected"]  # ln 31
        (broken,) = [each for each in result["broken"] if each["severity"] == "error"]
        assert "some rows of other processes are left out" in broken["summary"]
        assert "for 13 pairs" in broken["measured"]  # 6 and 7
