"""Faults of runs that compare two clouds and an image of each object (SSL)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.contrast.crosspoint import CrossPoint
from sightline.contract.draws import Draws
from sightline.parts.losses.contrast import PairLoss, nt_xent
from sightline.parts.transforms.two_views import TwoViews
from tests.planted.planting import Plant, change_result, wrap

_INTRA = "{name: intra_modal}"
_CROSS = "{name: cross_modal}"


def add_intra_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Plant:
    """Make a plant of a loss of one's own between two clouds: rows (M, D) to the loss (M,) of each pair."""

    class OwnPairs(PairLoss):
        def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
            return function(first, second)

    return lambda planter: planter.add_loss(OwnPairs, _CROSS)


def _add_cross_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Plant:
    """Make a plant of a loss of one's own between the mean of two clouds and an image."""

    class OwnCross(PairLoss):
        def forward(self, *, first: Tensor, second: Tensor, pictured: Tensor) -> Tensor:
            return function((first + second) / 2, pictured)

    return lambda planter: planter.add_loss(OwnCross, _INTRA)


def compare_pairs(first: Tensor, second: Tensor, *, is_masked: bool = True, is_scaled: bool = True) -> Tensor:
    """Compute NT-Xent of pairs, as one writes it down; without the mask an anchor is its own negative."""
    rows = torch.cat([first, second])
    rows = F.normalize(rows, dim=1) if is_scaled else rows
    similarity = rows @ rows.T / 0.1
    if is_masked:
        similarity = similarity.masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    target = torch.arange(len(rows)).roll(len(first))
    return F.cross_entropy(similarity, target, reduction="none").view(2, -1).mean(0)


def _draw_both_alike(own: Any, transform: Any, draws: Draws, **fields: Tensor) -> dict[str, Tensor]:
    """Draw the second view with the numbers of the first."""
    views: dict[str, Tensor] = own(transform, draws, **fields)
    return {**views, "other_points": views["points"].clone()}


CONTRAST_PLANTS: dict[str, Plant] = {
    "O26": add_intra_loss(lambda a, b: compare_pairs(a, b, is_masked=False)),
    "O27": change_result(CrossPoint, "forward", lambda out: {name: 0 * value + 0.1 for name, value in out.items()}),
    "O28": add_intra_loss(lambda a, b: compare_pairs(a, b, is_scaled=False)),
    "O29": change_result(SyntheticShapes, "get_batch", lambda b: {**b, "image": b["image"].roll(-1, 0)}),
    "O30": wrap(TwoViews, "__call__", _draw_both_alike),
    "O33": _add_cross_loss(lambda a, b: nt_xent(a.detach(), b.detach(), temperature=0.1) + 0 * (a + b).sum()),
    "L13": add_intra_loss(
        lambda a, b: F.cross_entropy(F.normalize(a) @ F.normalize(b).T / 0.1, torch.arange(len(a)), reduction="none")
    ),
    "L14": add_intra_loss(lambda a, b: nt_xent(a, b, temperature=10.0)),
    "L15": add_intra_loss(lambda a, b: nt_xent(a, b.roll(1, 0), temperature=0.1)),
    "D17": change_result(
        SyntheticShapes, "get_batch", lambda b: {**b, "image": b["image"][:1].expand_as(b["image"]).clone()}
    ),
}
