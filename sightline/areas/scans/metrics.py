"""Mean IoU of LiDAR scans by distance, and of range-image pixels, in addition to that of all points."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import PositiveFloat
from sightline.contract.metric import Metric, State
from sightline.parts.metrics.confusion import confusion_matrix
from sightline.parts.metrics.iou import IoU
from sightline.parts.metrics.predicted_labels import predict_classes


@registry.metrics.add("pixel_iou")
class PixelIoU(Metric):
    """Pixel mIoU and accuracy over the labelled pixels of range images, 0 to 1, by the rules of `iou`.

    They measure how well the network labels its input. A pixel shows only the nearest of the points that fall into it,
    and the others are not scored here: such figures are usually higher than those of all points, and are not to be
    compared with them. Voting does not change them: they are those of the first pass.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.scans.metrics import PixelIoU
    >>> meter = Meter(PixelIoU(num_classes=3, ignore_index=0))
    >>> meter.update(seen=torch.tensor([1, 2, 1, 2]), label=torch.tensor([[[1, 1], [0, 2]]]))
    >>> meter.compute()
    {'pixel_miou': 0.5, 'pixel_accuracy': 0.6666666666666666}

    Source: as `iou`.
    """

    higher_is_better = True

    def __init__(
        self,
        *,
        num_classes: int,
        class_names: tuple[str, ...] | None = None,
        ignore_index: int | None = None,
        absent: Literal["skipped", "zero"] = "skipped",
    ) -> None:
        self._iou = IoU(num_classes=num_classes, class_names=class_names, ignore_index=ignore_index, absent=absent)
        self.scores_absent_zero = self._iou.scores_absent_zero

    def new_state(self) -> State:
        return {"confusion": torch.zeros(self._iou.num_classes, self._iou.num_classes, dtype=torch.int64)}

    def update(self, state: State, *, seen: Tensor, label: Tensor) -> None:
        """Add a batch: `label` (B, H, W), and in `seen` (B * H * W,) the predicted class of each pixel.

        Raises ValueError for a `label` of another shape, and for a label or a prediction outside the classes.
        """
        if label.ndim != 3:
            raise ValueError(f"label: found the shape {tuple(label.shape)}; pixel_iou scores range images (B, H, W)")
        counts = confusion_matrix(
            seen.view(label.shape), label, num_classes=self._iou.num_classes, ignore_index=self._iou.ignore_index
        )
        state["confusion"] += counts.to(state["confusion"].device)

    def compute(self, state: State) -> dict[str, float]:
        figures = self._iou.compute(state)
        return {"pixel_miou": figures["miou"], "pixel_accuracy": figures["overall_accuracy"]}

    def per_class(self, state: State) -> dict[str, dict[str, Any]]:
        """Return the `pixel_iou` by class name; NaN if there is nothing to count."""
        return {name: {"pixel_iou": row["iou"]} for name, row in self._iou.per_class(state).items()}


@registry.metrics.add("iou_by_distance")
class DistanceIoU(Metric):
    """Mean IoU by distance from the sensor: `miou_0_10m`, ... and `miou_over_50m`.

    `edges_m` are the distances in between, in rising order; a point at an edge belongs to the farther side. Rules are
    those of `iou`, for each range by its own confusion matrix; a point whose distance is NaN is in none. The table
    `by_distance` has each class. The evaluator of SemanticKITTI leaves out points exactly at an edge or at the sensor,
    and those beyond 50 m.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.scans.metrics import DistanceIoU
    >>> point_range, target = torch.tensor([3.0, 9.5, 12.0, 80.0]), torch.tensor([0, 1, 1, 0])
    >>> meter = Meter(DistanceIoU(num_classes=2, edges_m=(10.0, 50.0)))
    >>> meter.update(probabilities=torch.eye(2)[[0, 0, 1, 0]], target=target, point_range=point_range)
    >>> meter.compute()
    {'miou_0_10m': 0.25, 'miou_10_50m': 1.0, 'miou_over_50m': 1.0}

    Source: Behley et al. 2019, semantic-kitti-api, evaluate_semantics_by_distance.
    """

    higher_is_better = True

    def __init__(
        self,
        *,
        num_classes: int,
        class_names: tuple[str, ...] | None = None,
        ignore_index: int | None = None,
        absent: Literal["skipped", "zero"] = "skipped",
        edges_m: tuple[PositiveFloat, ...] = (10.0, 20.0, 30.0, 40.0, 50.0),
    ) -> None:
        if not edges_m or any(low >= high for low, high in pairwise(edges_m)):
            raise ValueError(f"edges_m {edges_m}: give distances in rising order")
        self._iou = IoU(num_classes=num_classes, class_names=class_names, ignore_index=ignore_index, absent=absent)
        self.scores_absent_zero = self._iou.scores_absent_zero
        self.edges_m = edges_m
        self.stretches = [f"{low:g}_{high:g}m" for low, high in pairwise((0.0, *edges_m))]
        self.stretches.append(f"over_{edges_m[-1]:g}m")

    def new_state(self) -> State:
        size = self._iou.num_classes
        return {"confusion": torch.zeros(len(self.stretches), size, size, dtype=torch.int64)}

    def update(self, state: State, *, probabilities: Tensor, target: Tensor, point_range: Tensor) -> None:
        """Add a batch: `probabilities` (P, C), `target` (P,) and the points' distances `point_range` (P,) in metres.

        Raises ValueError for NaN and for labels outside the classes.
        """
        labels = predict_classes(probabilities, target, self._iou.num_classes, "points")
        self.update_labels(state, labels=labels, target=target, point_range=point_range)

    def update_labels(self, state: State, *, labels: Tensor, target: Tensor, point_range: Tensor) -> None:
        """Update the state with predicted `labels` (P,) instead of probabilities."""
        stretch = torch.zeros_like(target, dtype=torch.uint8)
        for edge in self.edges_m:  # comparisons of so few edges take a fifth of a search
            stretch += (point_range >= edge).view(torch.uint8)
        stretch += point_range.isnan().view(torch.uint8) * len(self.stretches)  # a group of their own, which is dropped
        counts = confusion_matrix(
            labels,
            target,
            num_classes=self._iou.num_classes,
            ignore_index=self._iou.ignore_index,
            group=stretch,
            num_groups=len(self.stretches) + 1,
        )[:-1]
        state["confusion"] += counts.to(state["confusion"].device)

    def compute(self, state: State) -> dict[str, float]:
        return {
            f"miou_{stretch}": self._iou.compute({"confusion": confusion})["miou"]
            for stretch, confusion in zip(self.stretches, state["confusion"], strict=True)
        }

    def tables(self, state: State) -> dict[str, Any]:
        """Return `by_distance`: the ranges, each class's IoU in each (None if nothing counts), and point counts."""
        parts = [self._iou.per_class({"confusion": confusion}) for confusion in state["confusion"]]
        classes = {name: [_or_none(part[name]["iou"]) for part in parts] for name in self._iou.class_names}
        points = state["confusion"].sum(dim=(1, 2)).tolist()
        return {"by_distance": {"stretches": self.stretches, "iou": classes, "points": points}}


def _or_none(value: float) -> float | None:
    return None if value != value else value
