"""Range images of a run: coverage of its scans, and the upper bound of the mIoU over points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sightline.engine.build import TrainingSetup, build_transforms
from sightline.geometry.scans.projection import RangeView
from sightline.geometry.scans.projection_summary import ProjectionSummary
from sightline.transforms.range_projection import Project
from sightline.types import ComponentConfig, SampleKey

__all__ = ["projection_summary", "projection_view"]

_MAX_SCANS = 8


def projection_view(stages: Sequence[ComponentConfig], facts: Mapping[str, Any]) -> RangeView | None:
    """Return the view of the transform `project` among these, or None without one."""
    transforms = [transform.apply for transform in build_transforms([s for s in stages if s.name == "project"], facts)]
    return transforms[-1].view if transforms and isinstance(transforms[-1], Project) else None


def projection_summary(built: TrainingSetup) -> dict[str, Any] | None:
    """Compute the ProjectionSummary of a few evaluated scans; None for a run without range images."""
    part = built.data.selection
    facts = part.dataset.info.facts
    view = projection_view(built.config.transforms.evaluate, facts)
    if view is None:
        return None
    summary = ProjectionSummary(view, facts["num_classes"], facts.get("ignore_index"))
    keys = [SampleKey(int(index), 0, built.config.seed) for index in part.evenly_spaced_indices(_MAX_SCANS)]
    for key in keys:
        batch = part.reader([key])
        offsets, ring = batch["whole_offsets"], batch.get("ring")
        summary.add(batch["points"], label=batch.get("whole_label"), offsets=offsets, ring=ring)
    return {"image": [view.height, view.width], "num_scans": len(keys), **summary.figures()}
