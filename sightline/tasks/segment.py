"""One label for every point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.binding import Offer
from sightline.losses.base import Loss
from sightline.pictures import Axis
from sightline.tasks.supervised import Supervised
from sightline.types import Batch

__all__ = ["Segment"]


@registry.tasks.add("segment")
class Segment(Supervised):
    """Predicts class probabilities of every point from `logits`; voting averages probabilities over passes.

    Answers are ragged whatever the form of the batch: `probabilities` (P, C) of the points of all clouds one after
    another, `cloud_offsets` (S+1,) where each cloud starts, and, where the batch has labels, `target` (P,). Where a
    transform thinned the clouds and kept `nearest`, the row of the kept point that stands for each point of the whole
    cloud, the answers are those of the whole cloud, and `target` is its `whole_label`.
    """

    predicts = frozenset({"probabilities", "target", "cloud_offsets"})

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: Offer,
        output_keys: Offer,
        class_names: tuple[str, ...] = (),
        up_axis: Axis = "z",
    ) -> None:
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        self.class_names = tuple(class_names)
        self.up_axis = up_axis

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Probabilities of every point, those of the whole clouds where a transform thinned them."""
        return self._answers(batch, self.outputs(model, batch))

    def assess(self, model: nn.Module, batch: Batch, around: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Loss sums over the points that the model saw, and what `predict` gives."""
        outputs = self.outputs(model, batch)
        return {name: term(batch, outputs) for name, term in self._terms.items()}, self._answers(batch, outputs)

    def vote(self, passes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The mean of the probabilities of several passes over varied input."""
        sizes = {len(each["probabilities"]) for each in passes}
        assert len(sizes) == 1, f"passes answer for {sizes} points; voting needs the same points in every pass"
        total = passes[0]["probabilities"].clone()
        for each in passes[1:]:
            total += each["probabilities"]
        return {**passes[0], "probabilities": total / len(passes)}

    def _answers(self, batch: Batch, outputs: Mapping[str, Any]) -> dict[str, Any]:
        logits = outputs["logits"].flatten(0, -2)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        probabilities = logits.to(dtype).softmax(dim=1)
        offsets = batch["offsets"] if "offsets" in batch else _even_offsets(batch["points"])
        label = batch.get("label")
        if "nearest" in batch:
            whole = batch["whole_offsets"]
            starts = offsets[:-1].repeat_interleave(whole.diff())
            probabilities, offsets, label = probabilities[batch["nearest"] + starts], whole, batch.get("whole_label")
        target = {} if label is None else {"target": label.flatten()}
        return {"probabilities": probabilities, "cloud_offsets": offsets, **target}


def _even_offsets(points: Tensor) -> Tensor:
    num_clouds, num_points = points.shape[:2]
    return torch.arange(num_clouds + 1, device=points.device) * num_points
