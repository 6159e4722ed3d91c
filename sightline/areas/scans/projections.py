"""Range images of a run: coverage of its scans, and the upper bound of the mIoU over points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sightline.areas.scans.projection_summary import ProjectionSummary
from sightline.contract.types import ComponentConfig, PrintedTable, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.run_data import build_transforms
from sightline.ops.views.projection import RangeView
from sightline.workbench.describe.report import DataDescription

_MAX_SCANS = 8


def projection_summary(built: TrainingSetup) -> dict[str, Any] | None:
    """Compute the ProjectionSummary of a few evaluated scans; None for a run without range images."""
    part = built.data.selection
    facts = part.dataset.info.facts
    view = _find_view(built.config.transforms.evaluate, facts)
    if view is None:
        return None
    summary = ProjectionSummary(view, facts["num_classes"], facts.get("ignore_index"))
    keys = [SampleKey(int(index), 0, built.config.seed) for index in part.evenly_spaced_indices(_MAX_SCANS)]
    for key in keys:
        batch = part.reader([key])
        offsets, ring = batch["whole_offsets"], batch.get("ring")
        summary.add(batch["points"], label=batch.get("whole_label"), offsets=offsets, ring=ring)
    return {"image": [view.height, view.width], "num_scans": len(keys), **summary.figures()}


def describe_projection(built: TrainingSetup) -> DataDescription | None:
    """Describe the coverage of scans by range images, and the upper bound of the mIoU over points."""
    projection = projection_summary(built)
    if projection is None:
        return None
    height, width = projection["image"]
    lines: list[str | PrintedTable] = [
        f"range images of {height} x {width} pixels, over {projection['num_scans']} scan(s): "
        f"{projection['points_shown']:.1%} of the points shown, {projection['pixels_filled']:.1%} of the pixels filled"
    ]
    if "ceiling_knn" in projection:
        lines.append(
            f"mIoU over points of a network that is correct in every pixel: {projection['ceiling_nearest']:.4f} by "
            f"lift: nearest, {projection['ceiling_knn']:.4f} by lift: knn"
        )
    return DataDescription("projection", projection, lines)


def _find_view(stages: Sequence[ComponentConfig], facts: Mapping[str, Any]) -> RangeView | None:
    """Return the view of the transform `project` among these, or None without one."""
    transforms = [transform.apply for transform in build_transforms([s for s in stages if s.name == "project"], facts)]
    view = getattr(transforms[-1], "view", None) if transforms else None
    return view if isinstance(view, RangeView) else None
