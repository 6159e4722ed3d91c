"""Range images of a run's parts for the checks about them: those of the rehearsals, or more where there is time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.describe.projection import projection_view
from sightline.doctor.context import Context
from sightline.doctor.core.sample_statistics import distinct_parts, evenly_spaced_keys
from sightline.engine.build import DataSubset
from sightline.geometry.scans.projection import RangeView
from sightline.types import Batch

__all__ = ["PartImages", "images_by_part"]

_MOST_SCANS = 16


class PartImages(NamedTuple):
    """Batches of a part whose scans were projected, and the view that they were projected to."""

    part: DataSubset
    view: RangeView
    batches: list[Batch]

    @property
    def num_scans(self) -> int:
        return sum(len(batch["range_image"]) for batch in self.batches)

    @property
    def range_image(self) -> Tensor:
        """(S, H, W) metres, -1 where empty."""
        return torch.cat([batch["range_image"] for batch in self.batches]).cpu()


def images_by_part(context: Context) -> Iterator[PartImages]:
    """The scans of each part that a transform projects: up to four, under `sightline check` up to sixteen."""
    for part, batches in _batches(context):
        stage = context.config.transforms.train if part.split == "train" else context.config.transforms.evaluate
        view = projection_view(stage, part.dataset.info.facts)
        found = [batch for batch in batches if "range_image" in batch and "nearest" in batch]
        if view is not None and found:
            yield PartImages(part, view, found)


def _batches(context: Context) -> Iterator[tuple[DataSubset, list[Batch]]]:
    data = context.built.data
    rehearsed = {} if context.is_thorough else {id(each.part): each.batch for each in context.dry_evaluations}
    for part in distinct_parts(data):
        if not context.is_thorough:
            yield part, [context.dry_run.batch if part is data.train else rehearsed.get(id(part), {})]
            continue
        keys = evenly_spaced_keys(part, epoch=0, seed=context.config.seed, most_samples=_MOST_SCANS)
        try:
            yield part, [part.reader(each) for each in keys]
        except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
            continue
