"""Centre refinement: a network predicts the offset from a depth frame's reference point to a better one."""

from __future__ import annotations

from typing import Any

from sightline import registry
from sightline.geometry.crops import CropPlacement, from_crop_coordinates
from sightline.tasks.supervised import Supervised
from sightline.types import Batch

__all__ = ["CentreRefinement"]


@registry.tasks.add("centre")
class CentreRefinement(Supervised):
    """Predicts `centre_mm` (B, 3), camera frame, where the joint in the middle is, from `offset`.

    What it finds are the reference points of another run: `sightline predict --data` writes them.
    Source: Oberweger and Lepetit 2017, DeepPrior++, section 3.1.
    """

    predicts = frozenset({"centre_mm"})

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Add `centre_mm` (B, 3), camera frame, computed from `offset` (B, 3) and the placement of each crop."""
        placement = CropPlacement.from_rows(batch["crop_placement"])
        return {**outputs, "centre_mm": from_crop_coordinates(outputs["offset"].detach()[:, None], placement)[:, 0]}
