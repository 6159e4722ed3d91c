"""Range images of a run's parts for the checks about them: those of the rehearsals, or more where there is time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.describe.projection import view_of
from sightline.doctor.context import Context
from sightline.doctor.core.survey import distinct_parts, spread_keys
from sightline.engine.build import Part
from sightline.geometry.scans.projection import RangeView
from sightline.types import Batch

__all__ = ["PartImages", "images_by_part"]

_MOST_SCANS = 16


class PartImages(NamedTuple):
    """Batches of a part whose scans were projected, and the view that they were projected to."""

    part: Part
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
        view = view_of(stage, part.dataset.info.facts)
        found = [batch for batch in batches if "range_image" in batch and "nearest" in batch]
        if view is not None and found:
            yield PartImages(part, view, found)


def _batches(context: Context) -> Iterator[tuple[Part, list[Batch]]]:
    data = context.built.data
    rehearsed = {} if context.takes_time else {id(each.part): each.batch for each in context.evaluations}
    for part in distinct_parts(data):
        if not context.takes_time:
            yield part, [context.rehearsal.batch if part is data.train else rehearsed.get(id(part), {})]
            continue
        keys = spread_keys(part, epoch=0, seed=context.config.seed, most_samples=_MOST_SCANS)
        try:
            yield part, [part.reader(each) for each in keys]
        except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
            continue
