"""Toy of detection: lists of boxes, some empty; what is positive is decided by assignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.loss import Loss
from sightline.contract.metric import Metric, append_rows
from sightline.parts.tasks.supervised import Supervised
from tests.contract.toy import Made, Toy, field, supervised

# detect: positives are decided by assignment, counted before the forward pass


def _boxes(draw: np.random.Generator) -> dict[str, Any]:
    boxes = torch.from_numpy(draw.random((int(draw.integers(0, 4)), 2)))
    return {"image": torch.from_numpy(draw.normal(size=(3, 5))), "boxes": boxes}


class BoxNet(nn.Module):
    """One score and one box (centre, size) for each of five anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 3)

    def forward(self, *, image: Tensor) -> Detections:
        out = self.net(image.transpose(1, 2))
        return {"scores": out[..., 0], "codes": out[..., 1:]}


class Detections(TypedDict):
    scores: Tensor
    codes: Tensor


class Assigning(Supervised):
    """Anchors go to the boxes that they predict best so far: each micro-batch is seen without gradient, then with it.

    What is positive, and the counts, come from the weights before the step, as contrast's rows do; losses, their counts
    and metrics read what was assigned.
    """

    context_keys = frozenset({"assigned"})

    def context(self, model: nn.Module, batch: dict) -> dict[str, Any]:
        codes, chosen = self.outputs(model, batch)["codes"], torch.full((len(batch["boxes"]), 5), -1)
        assert not codes.requires_grad
        for row, code, boxes in zip(chosen, codes, batch["boxes"], strict=True):
            if len(boxes):
                cost, best = torch.cdist(code, boxes, p=1).min(1)
                row[:] = torch.where(cost < 1.1, best, -1)
        return {"assigned": chosen}

    def step_counts(self, contexts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"n_pos": (torch.cat([each["assigned"].flatten() for each in contexts]) >= 0).sum()}


class Scores(Loss):
    def count(self, *, assigned: Tensor) -> Tensor:
        return (assigned >= 0).sum()

    def forward(self, *, scores: Tensor, assigned: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, (assigned >= 0).to(scores), reduction="sum")


class Codes(Scores):
    def forward(self, *, codes: Tensor, boxes: list[Tensor], assigned: Tensor) -> Tensor:
        total = codes.sum() * 0
        for code, chosen, each in zip(codes, assigned, boxes, strict=True):
            hit = chosen >= 0
            total = total + (code[hit] - each[chosen[hit]]).abs().sum()
        return total


class Found(Metric):
    """Any number of detections a sample: their scores and whether they were wanted, one row each, some samples none."""

    rows = ("detections",)

    def new_state(self) -> dict[str, Tensor]:
        return {"detections": torch.zeros(0, 3, dtype=torch.float64), "boxes": torch.zeros((), dtype=torch.int64)}

    def update(
        self, state: dict[str, Tensor], *, scores: Tensor, assigned: Tensor, boxes: list, sample_index: Tensor
    ) -> None:
        image, prior = (scores > 0).nonzero(as_tuple=True)
        wanted = assigned[image, prior] >= 0
        append_rows(state, "detections", sample_index[image], torch.stack([scores[image, prior], wanted], dim=1))
        state["boxes"] += sum(len(each) for each in boxes)

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        index, score, wanted = state["detections"].T
        weight = 1 + torch.arange(len(index), dtype=torch.float64)  # depends on the order of rows, as curves do
        return {
            "found": float((score * wanted * weight).sum()),
            "boxes": state["boxes"].item(),
            "last": index.sum().item(),
        }


BOXES: dict[str, Toy] = {
    "detect": Toy(
        BoxNet,
        supervised({"scores": Scores, "codes": Codes}, Assigning),
        Made(_boxes, image=field(), boxes=field("list")),
        {"scores": 1.0, "codes": 2.0},
        (Found,),
    )
}
