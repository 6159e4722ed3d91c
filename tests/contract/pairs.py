"""Toys of contrast: two modalities, every row sees every other over ranks and micro-batches."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.contrast.crosspoint import CrossPointOutput
from sightline.areas.contrast.metrics import CrossPairs
from sightline.areas.contrast.task import Contrast as OwnContrast
from sightline.contract.binding import AvailableKeys
from sightline.contract.metric import MeanMetric
from sightline.engine.learnt_losses import LearntLosses
from sightline.parts.losses.embeddings import CrossModal, IntraModal, PairLoss, nt_xent
from tests.contract.toy import Made, Toy, field


def _pair(draw: np.random.Generator) -> dict[str, Any]:
    code = draw.normal(size=4)
    return {
        "points": torch.from_numpy(code[:, None] + draw.normal(size=(4, 8))),
        "image": torch.from_numpy(np.outer(code, code)),
    }


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points, self.image = nn.Linear(8, 6), nn.Linear(16, 6)

    def forward(self, *, points: Tensor, image: Tensor) -> Embedded:
        return {"first": self.points(points).amax(1), "second": self.image(image.flatten(1))}


class Embedded(TypedDict):
    first: Tensor
    second: Tensor


class Contrast:
    """InfoNCE over all rows of the step: `prepare` embeds them, each part puts its live rows among them."""

    def prepare(self, model: nn.Module, micro_batches: list, world: Any) -> tuple[dict, list]:
        size = torch.tensor(sum(len(batch["points"]) for batch in micro_batches))
        count = world.all_reduce_sum({"contrast": size})
        with torch.no_grad():
            rows = [self._rows(model, batch) for batch in micro_batches]
        everyone, start = world.gather_rows(torch.cat(rows))
        starts = start + np.cumsum([0, *(len(row) for row in rows)])
        return count, [(everyone, int(place)) for place in starts[:-1]]

    def losses(self, model: nn.Module, batch: dict, context: tuple[Tensor, int]) -> dict[str, Tensor]:
        everyone, start = context
        live = self._rows(model, batch)
        own = slice(start, start + len(live))
        rows = torch.cat([everyone[:start], live, everyone[own.stop :]])
        first, second = F.normalize(rows[:, 0], dim=1), F.normalize(rows[:, 1], dim=1)
        each = F.cross_entropy(first @ second.T / 0.5, torch.arange(len(rows)), reduction="none")
        return {"contrast": each.sum() - each.sum().detach() + each[own].sum().detach()}

    def predict(self, model: nn.Module, batch: dict) -> dict[str, Tensor]:
        return model(points=batch["points"], image=batch["image"])

    def losses_and_predictions(self, model: nn.Module, batch: dict, context: Any) -> tuple[dict, dict]:
        return self.losses(model, batch, context), self.predict(model, batch)

    @staticmethod
    def _rows(model: nn.Module, batch: dict) -> Tensor:
        out = model(points=batch["points"], image=batch["image"])
        return torch.stack([out["first"], out["second"]], dim=1)


class Aligned(MeanMetric):
    """The share of pairs that point the same way."""

    figures = ("aligned",)

    def values(self, *, first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum(1) > 0


# the same through the task of the package: two clouds and an image of each object, two losses


def _views(draw: np.random.Generator) -> dict[str, Any]:
    code = draw.normal(size=4)
    points, other = (torch.from_numpy(code[:, None] + 0.2 * draw.normal(size=(4, 8))) for _ in range(2))
    return {"points": points, "other_points": other, "image": torch.from_numpy(np.outer(code, code))}


class ThreeViews(TwoTowers):
    def forward(self, *, points: Tensor, other_points: Tensor, image: Tensor) -> CrossPointOutput:  # type: ignore[override]
        first, second = (self.points(each).amax(1) for each in (points, other_points))
        return {"first": first, "second": second, "pictured": self.image(image.flatten(1))}


class Warmed(PairLoss):
    """The contrast of both clouds at a temperature that is learnt. Source: Radford et al. 2021, CLIP, section 2.5."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
        return nt_xent(first, second, temperature=1.0 / self.log_scale.exp())  # type: ignore[arg-type]


def _warmed(model: nn.Module, keys: Any) -> OwnContrast:
    losses = {"warmed": Warmed(), "cross_modal": CrossModal(temperature=0.5)}
    outputs = AvailableKeys("the toy's model", ("first", "second", "pictured"))
    task = OwnContrast(model=model, losses=losses, batch_keys=AvailableKeys("the toy", keys), output_keys=outputs)
    task.learnt = LearntLosses(losses)  # type: ignore[attr-defined]
    return task


def _contrast(model: nn.Module, keys: Any) -> OwnContrast:
    return OwnContrast(
        model=model,
        losses={"intra_modal": IntraModal(), "cross_modal": CrossModal(temperature=0.5)},
        batch_keys=AvailableKeys("the toy", keys),
        output_keys=AvailableKeys("the toy's model", ("first", "second", "pictured")),
    )


PAIRS: dict[str, Toy] = {
    "contrast": Toy(
        TwoTowers,
        lambda model, keys: Contrast(),
        Made(_pair, points=field(), image=field()),
        {"contrast": 1.0},
        Aligned,
    ),
    "warmed": Toy(
        ThreeViews,
        _warmed,
        Made(_views, points=field(), other_points=field(), image=field()),
        {"warmed": 1.0, "cross_modal": 3.0},
        CrossPairs,
    ),
    "crosspoint": Toy(
        ThreeViews,
        _contrast,
        Made(_views, points=field(), other_points=field(), image=field()),
        {"intra_modal": 1.0, "cross_modal": 3.0},
        CrossPairs,
    ),
}
