"""Decisions of a task before the forward pass: ties that rounding turns are nobody's fault, wrong targets are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.workbench.compare.layerwise import LOSS, TARGETS, LayerComparison
from tests.compare.steps import LossesAlone, compared

RATIOS = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
"""Of anchors of equal areas: one that holds a box overlaps it as much as any other, but for rounding."""
SIZES = torch.tensor([30.0, 60.0], dtype=torch.float64)
"""Of anchors: a box of the larger ones has one that is best."""


class Assigning(LossesAlone):
    """Each box goes to the anchors that it overlaps most; `skips` the best of them, `scale` is the loss's."""

    def __init__(self, *, skips: int = 0, scale: float = 1.0, divisor: float = 1.0) -> None:
        self.skips, self.scale, self.divisor = skips, scale, divisor

    def prepare(self, model: Any, micro_batches: Any, world: Any) -> Any:
        boxes = micro_batches[0]["boxes"]
        ratios = RATIOS.to(boxes.dtype).sqrt()
        sides = torch.cat([SIZES[:1].expand(len(ratios)), SIZES[1:]]).to(boxes)
        ratios = torch.cat([ratios, ratios[:1]])
        areas = (sides * ratios) * (sides / ratios)
        held = boxes.prod(dim=1, keepdim=True)
        overlap = torch.minimum(held, areas) / torch.maximum(held, areas)
        target = overlap == overlap.amax(dim=1, keepdim=True)
        target = target.roll(self.skips, dims=1)
        return {"weighted": target.sum() * self.divisor}, [{"target": target, "sizes": boxes.log()}]

    def losses(self, model: Any, batch: dict[str, Tensor], around: Any) -> dict[str, Tensor]:
        made = model(batch["input"])
        return {"weighted": self.scale * (made[:, :, None] - around["sizes"][:, None]).square()[around["target"]].sum()}


def rows_of(seed: int, own: Assigning | None = None, reference: Assigning | None = None) -> list[LayerComparison]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5))
    sizes = 5 + 10 * torch.rand(4, 2)
    batch = {"boxes": torch.cat([sizes[:2], 4 * sizes[2:]]), "input": torch.randn(4, 4)}
    return compared(model, model, batch, tasks=(own or Assigning(), reference or Assigning()))


def test_ties_that_rounding_turns_are_explained() -> None:
    turned = 0
    for seed in range(4):
        rows = rows_of(seed)
        assert [row for row in rows if row.is_guilty] == []
        assert sum(row.deviation.undefined for row in rows if row.layer == LOSS) == 0, "the losses are judged whole"
        torch.manual_seed(seed)
        boxes = 5 + 10 * torch.rand(4, 2)
        (one, two) = (Assigning().prepare(None, [{"boxes": each}], None)[1][0] for each in (boxes, boxes.double()))
        turned += int((one["target"] != two["target"]).sum())
    assert turned > 0, "rounding turns no tie here"


@pytest.mark.parametrize(
    ("bug", "layer"),
    [({"skips": 1}, TARGETS), ({"scale": 1.0001}, LOSS), ({"divisor": 1.0001}, TARGETS)],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
@pytest.mark.parametrize("side", ["own", "reference"])
def test_faults_beside_ties_are_found(bug: dict[str, Any], layer: str, side: str) -> None:
    rows = [row for row in rows_of(0, **{side: Assigning(**bug)}) if row.is_guilty]
    assert rows
    assert rows[0].layer == layer
