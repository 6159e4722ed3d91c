"""Toy of contrast: two clouds and an image of each object, every row sees every other over ranks and micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.areas.contrast.crosspoint import CrossPointOutput
from sightline.areas.contrast.metrics import CrossPairs
from sightline.areas.contrast.task import Contrast
from sightline.contract.binding import AvailableKeys
from sightline.engine.learnt_losses import LearntLosses
from sightline.parts.losses.contrast import CrossModal, PairLoss, nt_xent
from tests.contract.toy import Made, Toy, field


def _views(draw: np.random.Generator) -> dict[str, Any]:
    code = draw.normal(size=4)
    points, other = (torch.from_numpy(code[:, None] + 0.2 * draw.normal(size=(4, 8))) for _ in range(2))
    return {"points": points, "other_points": other, "image": torch.from_numpy(np.outer(code, code))}


class ThreeViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points, self.image = nn.Linear(8, 6), nn.Linear(16, 6)

    def forward(self, *, points: Tensor, other_points: Tensor, image: Tensor) -> CrossPointOutput:
        first, second = (self.points(each).amax(1) for each in (points, other_points))
        return {"first": first, "second": second, "pictured": self.image(image.flatten(1))}


class Warmed(PairLoss):
    """The contrast of both clouds at a temperature that is learnt. Source: Radford et al. 2021, CLIP, section 2.5."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
        return nt_xent(first, second, temperature=1.0 / self.log_scale.exp())  # type: ignore[arg-type]


def _warmed(model: nn.Module, keys: Any) -> Contrast:
    losses = {"warmed": Warmed(), "cross_modal": CrossModal(temperature=0.5)}
    outputs = AvailableKeys("the toy's model", ("first", "second", "pictured"))
    task = Contrast(model=model, losses=losses, batch_keys=AvailableKeys("the toy", keys), output_keys=outputs)
    task.learnt = LearntLosses(losses)  # type: ignore[attr-defined]
    return task


PAIRS: dict[str, Toy] = {
    "warmed": Toy(
        ThreeViews,
        _warmed,
        Made(_views, points=field(), other_points=field(), image=field()),
        {"warmed": 1.0, "cross_modal": 3.0},
        (CrossPairs,),
    ),
}
