"""Range images of a run's parts for checks: those of the dry runs, or more if the checks are thorough."""

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

_MAX_SCANS = 16


class PartImages(NamedTuple):
    """Batches of a part with projected scans, and the view of the projection."""

    part: DataSubset
    view: RangeView
    batches: list[Batch]

    @property
    def num_scans(self) -> int:
        return sum(len(batch["range_image"]) for batch in self.batches)

    @property
    def range_image(self) -> Tensor:
        """Range images (S, H, W) in metres, -1 where empty."""
        return torch.cat([batch["range_image"] for batch in self.batches]).cpu()


def images_by_part(context: Context) -> Iterator[PartImages]:
    """Yield the projected scans of each part: up to four, or up to sixteen under `sightline check`."""
    for part, batches in _read_batches(context):
        stage = context.config.transforms.train if part.split == "train" else context.config.transforms.evaluate
        view = projection_view(stage, part.dataset.info.facts)
        image_batches = [batch for batch in batches if "range_image" in batch and "nearest" in batch]
        if view is not None and image_batches:
            yield PartImages(part, view, image_batches)


def _read_batches(context: Context) -> Iterator[tuple[DataSubset, list[Batch]]]:
    data = context.built.data
    dry_batches = {} if context.is_thorough else {id(dry.part): dry.batch for dry in context.dry_evaluations}
    for part in distinct_parts(data):
        if not context.is_thorough:
            yield part, [context.dry_run.batch if part is data.train else dry_batches.get(id(part), {})]
            continue
        keys = evenly_spaced_keys(part, epoch=0, seed=context.config.seed, most_samples=_MAX_SCANS)
        try:
            yield part, [part.reader(key) for key in keys]
        except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
            continue
