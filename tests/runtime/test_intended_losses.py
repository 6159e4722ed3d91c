"""Losses of outputs beside labels that are no scores of classes: distances, levels of an order, features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.doctor.evidence.terms import is_ordinal

NUM_GRADES = 5


class Distances(nn.Module):
    """Squared distances from prototypes (Yang et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.prototypes = nn.Linear(8, 16), nn.Parameter(torch.randn(NUM_GRADES, 16))

    def forward(self, rows: Tensor) -> Tensor:
        point, squares = self.body(rows), self.prototypes.square().sum(1)
        return torch.addmm(point.square().sum(1, keepdim=True) + squares, point, self.prototypes.T, alpha=-2)


def nearest(distances: Tensor, label: Tensor) -> Tensor:
    own, others = distances.gather(1, label[:, None])[:, 0], distances.scatter(1, label[:, None], math.inf)
    return own.mean() + F.relu(4 + own - others.amin(dim=1)).mean()


def levels(scores: Tensor, label: Tensor) -> Tensor:
    """CORAL (Cao et al. 2020)."""
    is_reached = torch.arange(scores.shape[1], device=label.device) < label[:, None]
    return F.binary_cross_entropy_with_logits(scores, is_reached.to(scores))


def conditional_levels(scores: Tensor, label: Tensor) -> Tensor:
    """CORN (Shi et al. 2021)."""
    place = torch.arange(scores.shape[1], device=label.device)
    each = F.binary_cross_entropy_with_logits(scores, (place < label[:, None]).to(scores), reduction="none")
    return (each * (place <= label[:, None])).sum() / len(label)


def linked(scores: Tensor, label: Tensor) -> Tensor:
    """Proportional odds (McCullagh 1980)."""
    reached = F.pad(F.pad(scores.sigmoid(), (1, 0), value=1.0), (0, 1))
    return F.nll_loss((reached[:, :-1] - reached[:, 1:]).clamp(min=1e-8).log(), label)


def expected(scores: Tensor, label: Tensor) -> Tensor:
    return F.smooth_l1_loss(scores.sigmoid().sum(1), label.to(scores))


CENTRES = torch.randn(NUM_GRADES, 16, generator=torch.Generator().manual_seed(1))


def centre(features: Tensor, label: Tensor) -> Tensor:
    return (features - CENTRES.to(features)[label]).square().sum(1).mean()


def proxies(features: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(-torch.cdist(features, CENTRES.to(features)).square(), label)


class Program(NamedTuple):
    make: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    is_bug: bool = False


def scores(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, width))


def rectified() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, NUM_GRADES), nn.ReLU())


PROGRAMS = {
    "softmax of negative distances": Program(Distances, lambda outputs, label: F.cross_entropy(-outputs, label)),
    "distance with a margin": Program(Distances, nearest),
    "levels": Program(scores(NUM_GRADES - 1), levels),
    "levels, one more than is needed": Program(scores(NUM_GRADES), levels),
    "levels that fall": Program(scores(NUM_GRADES - 1), lambda outputs, label: levels(-outputs, label)),
    "conditional levels": Program(scores(NUM_GRADES - 1), conditional_levels),
    "linked levels": Program(scores(NUM_GRADES - 1), linked),
    "the expected level": Program(scores(NUM_GRADES - 1), expected),
    "centres": Program(scores(16), centre),
    "proxies": Program(scores(16), proxies),
    "a minus": Program(scores(NUM_GRADES), lambda outputs, label: -F.cross_entropy(outputs, label), is_bug=True),
    "a minus of rectified scores": Program(
        rectified, lambda outputs, label: -F.cross_entropy(outputs, label), is_bug=True
    ),
    "swapped scores": Program(scores(NUM_GRADES), lambda outputs, label: F.cross_entropy(-outputs, label), is_bug=True),
}


def make_batch() -> tuple[Tensor, Tensor]:
    rows = torch.randn(64, 8)
    return rows, (1.5 * rows[:, 0] + 2).round().clamp(0, NUM_GRADES - 1).long()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_loss_of_other_outputs_than_scores_has_no_wrong_direction(name: str) -> None:
    torch.manual_seed(0)
    model = PROGRAMS[name].make()
    report = sightline.check(model, PROGRAMS[name].loss, make_batch())
    found = [each.code for each in report.findings if each.severity != "note" and each.code.startswith("loss-")]
    assert bool(found) == PROGRAMS[name].is_bug, found


def test_rows_of_scores_are_no_levels() -> None:
    own = torch.eye(4, dtype=torch.bool)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0], [0, 0, 1, 1], [0, 0, 0, 0]):
        assert not is_ordinal(own[order], ~own[order])
        assert not is_ordinal(~own[order], own[order])
    below = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    assert is_ordinal(below, ~below)
    assert is_ordinal(~below, below)
    assert is_ordinal(below, own)
