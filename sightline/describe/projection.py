"""The range images of a run: what they show of its scans, and what a network that is right in every pixel reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sightline.engine.build import Built, build_transforms
from sightline.geometry.scans.projection import RangeView
from sightline.geometry.scans.projection_summary import ProjectionSummary
from sightline.transforms.project import Project
from sightline.types import Component, SampleKey

__all__ = ["projection_of", "view_of"]

_MOST_SCANS = 8


def view_of(stages: Sequence[Component], facts: Mapping[str, Any]) -> RangeView | None:
    """What the transform `project` among these projects to; None without one."""
    found = [each.apply for each in build_transforms([s for s in stages if s.name == "project"], facts)]
    return found[-1].view if found and isinstance(found[-1], Project) else None


def projection_of(built: Built) -> dict[str, Any] | None:
    """The figures of a few evaluated scans, as `ProjectionSummary` has them; None for a run without range images."""
    part = built.data.selection
    facts = part.dataset.info.facts
    view = view_of(built.config.transforms.evaluate, facts)
    if view is None:
        return None
    summary = ProjectionSummary(view, facts["num_classes"], facts.get("ignore_index"))
    keys = [SampleKey(int(index), 0, built.config.seed) for index in part.spread(_MOST_SCANS)]
    for key in keys:
        batch = part.reader([key])
        offsets, ring = batch["whole_offsets"], batch.get("ring")
        summary.add(batch["points"], label=batch.get("whole_label"), offsets=offsets, ring=ring)
    return {"image": [view.height, view.width], "num_scans": len(keys), **summary.figures()}
