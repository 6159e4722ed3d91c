"""Classification: one label per sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.binding import AvailableKeys
from sightline.contract.loss import Loss
from sightline.contract.types import Batch
from sightline.draw.pictures import Axis, Picture, label_colors, pad_to_3d, render_clouds, with_legend
from sightline.parts.tasks.supervised import Decoder, Supervised

NUM_SHOWN = 12


@registry.tasks.add("classify")
class Classify(Supervised):
    """Predicts class probabilities from `logits`; voting averages probabilities over passes. Source: made here."""

    predicts = frozenset({"probabilities"})

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: AvailableKeys,
        output_keys: AvailableKeys,
        class_names: tuple[str, ...] = (),
        up_axis: Axis = "z",
    ) -> None:
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        self.class_names = tuple(class_names)
        self.up_axis = up_axis

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Add `probabilities` (B, C), the softmax of `logits` (B, C)."""
        dtype = torch.float64 if outputs["logits"].dtype == torch.float64 else torch.float32
        return {**outputs, "probabilities": outputs["logits"].to(dtype).softmax(dim=1)}

    def make_decoding(self, example: Batch) -> Decoder:
        """Make the decoding of an exported file: `probabilities` (B, C)."""
        return lambda outputs, batch: {"probabilities": outputs["logits"].softmax(dim=1)}

    def vote(self, passes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Average the probabilities (B, C) of several passes over varied input."""
        return {"probabilities": torch.stack([p["probabilities"] for p in passes]).mean(dim=0)}

    def hardness(self, batch: Batch, predictions: Mapping[str, Any]) -> Tensor:
        """Return 1 minus the probability of the true class (B,), and 1 more where the prediction is wrong.

        It is 0 for a label that is no class, and for several labels a sample.
        """
        probabilities, label = predictions["probabilities"], batch["label"]
        if label.shape != probabilities.shape[:1]:
            return probabilities.new_zeros(len(probabilities))
        is_class = (label >= 0) & (label < probabilities.shape[1])
        true_class = torch.where(is_class, label, 0).long()
        hardness = 1 - probabilities.gather(1, true_class[:, None])[:, 0] + (probabilities.argmax(dim=1) != label)
        return hardness * is_class

    def show(self, batch: Batch, predictions: Mapping[str, Any]) -> list[Picture]:
        """Draw the first clouds of a batch, coloured by predicted class; captions name a true class that differs."""
        if "points" not in batch:
            return []
        shown = min(NUM_SHOWN, len(batch["label"]))
        predicted = predictions["probabilities"][:shown].argmax(dim=1).tolist()
        labels = batch["label"][:shown].tolist()
        captions = [
            self._class_name(predicted_label)
            if predicted_label == label
            else f"{self._class_name(predicted_label)} (is {self._class_name(label)})"
            for predicted_label, label in zip(predicted, labels, strict=True)
        ]
        clouds = _first_clouds(batch, shown)
        is_right_of_clouds = [
            predicted_label == label for predicted_label, label in zip(predicted, labels, strict=True)
        ]
        colors = list(label_colors(np.array(predicted)))
        pixels = render_clouds(
            clouds, captions=captions, is_right=is_right_of_clouds, colors=colors, up_axis=self.up_axis
        )
        pixels = with_legend(pixels, np.array(predicted), self.class_names)
        return [Picture("predictions", pixels, f"{sum(is_right_of_clouds)} of {shown} right")]

    def _class_name(self, index: int) -> str:
        return self.class_names[index] if index < len(self.class_names) else str(index)


def _first_clouds(batch: Batch, count: int) -> list[np.ndarray]:
    """Return the first clouds (N, 3) of a batch that is stacked, padded, listed or packed with offsets."""
    points = batch["points"]
    if "offsets" in batch:
        clouds = [points[start:end] for start, end in pairwise(batch["offsets"][: count + 1].tolist())]
    elif "points_mask" in batch:
        clouds = [cloud[mask] for cloud, mask in zip(points[:count], batch["points_mask"][:count], strict=True)]
    else:
        clouds = list(points[:count])
    return [pad_to_3d(cloud.float().cpu().numpy()) for cloud in clouds]
