"""Rules of range images: what scans fill of them, which points they show, and labels that belong to the points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.ops.views.projection import RangeView, compute_pixels

_NUM_SCANS, _MIN_POINTS, _MIN_CHANGES, _MIN_JUMP = 4, 100, 60, 1.1
_MAX_ASIDE, _MAX_EMPTY_ROWS, _MAX_GAPS, _MAX_EMPTY_COLUMNS, _MIN_SHOWN = 0.1, 0.5, (0.25, 0.1), 0.25, 0.5
"""Shares: of points out of the image (0.044 for real scans of KITTI); of rows that are empty (23 of 64 for KITTI's
camera); of rows between others, by pitch and of a beam each; of columns; of points with a pixel of their own (0.79)."""
_MIN_CHANCE_RATIO, _MIN_EXCESS = 5.0, 0.15
"""Changes of the label at jumps of the range, as a multiple of chance and above it: real scans of KITTI have 14 to 57
and 0.23 to 0.67, with labels of another scan 0.6 to 6.7 and -0.01 to 0.14."""


class ScanImages(NamedTuple):
    """Range images (S, H, W) of a part, -1 where empty, with their batch, view and place."""

    ranges: Tensor
    batch: Batch
    view: RangeView
    where: FindingLocation


@measure()
def scan_images(run: Any) -> list[ScanImages]:
    """Project the first scans of the training and of the evaluated part."""
    parts = []
    for part in (run.built.data.train, run.built.data.selection):
        owners = [getattr(bound.function, "__self__", None) for bound in part.reader.transforms.functions]
        views = [view for owner in owners if isinstance(view := getattr(owner, "view", None), RangeView)]
        if views and {"range_image", "nearest"} <= part.reader.keys and len(part.indices):
            keys = [SampleKey(int(index), 0, run.config.seed) for index in part.evenly_spaced_indices(_NUM_SCANS)]
            batch, where = part.reader(keys), run.locate(part.split, config_path="data.sensor")
            parts.append(ScanImages(batch["range_image"].cpu(), batch, views[-1], where))
    if not parts:
        raise NotApplicableError("no range images")
    return parts


@rule(
    "projection-coverage",
    "warning",
    "data.projection cfg.axis_swap data.layout data.sampling",
    holds="points within the image, the nearest of each pixel shown, the highest beam in row 0, and rows in use",
    do="look at data.sensor (fov_deg and azimuth_deg in degrees, highest and left first), at the height and width of "
    "`project`, at the order of x, y and z (z is up), and at ring_order; `data info SET --from PATH` measures",
    is_statistical=True,
)
def projection_coverage(scan_images: list[ScanImages]) -> Iterator[Fault]:
    """Compare the points of scans with the rows, columns and pixels that show them."""
    for images in scan_images:
        faults = [*_judge_pixels(images), *_judge_points(images)]
        for summary, measured, cause in faults[:1]:
            measured += f" in {len(images.ranges)} scans"
            yield Fault(summary, measured=measured, causes=[cause, "data.projection"], where=images.where)
            return


def _judge_points(images: ScanImages) -> Iterator[tuple[str, str, str]]:
    batch, view = images.batch, images.view
    points, offsets = batch["points"], batch["whole_offsets"]
    if len(points) != int(offsets[-1]):
        return  # a later transform thinned them
    pixels = compute_pixels(points, view=view, offsets=offsets, ring=batch.get("ring"))
    is_point, is_seen, pixel = pixels.ranges > 0, pixels.is_seen, batch["nearest"]
    if int(is_point.sum()) < _MIN_POINTS:
        return
    elevation = (points[is_point, 2] / pixels.ranges[is_point]).double().clamp(-1, 1).asin()
    row = torch.div(pixel, view.width, rounding_mode="floor")[is_point].double()
    beside, clamped = 1 - float(is_seen.sum() / is_point.sum()), float(pixels.is_clamped.sum() / is_seen.sum())
    correlation = float(torch.corrcoef(torch.stack([row, elevation]))[0, 1])
    shown = int((images.ranges >= 0).sum()) / max(1, int(is_seen.sum()))
    scan = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff().cpu()) * view.num_pixels
    nearest = images.ranges.new_full((images.ranges.numel(),), torch.inf)
    nearest.scatter_reduce_(0, (scan + pixel.cpu())[is_seen.cpu()], pixels.ranges[is_seen].cpu().float(), "amin")
    farther = float((images.ranges.flatten() > nearest * 1.001).double().mean())
    if clamped > _MAX_ASIDE:
        low, high = (float(angle) for angle in torch.rad2deg(elevation).quantile(elevation.new_tensor([0.02, 0.98])))
        borders = f"borders at {view.fov_deg[0]:g} and {view.fov_deg[1]:g} degrees, points from {low:.1f} to {high:.1f}"
        yield f"{clamped:.0%} of the points are above or below the image", borders, "data.projection"
    if beside > _MAX_ASIDE:
        yield (
            f"{beside:.0%} of the points are left or right of the image",
            f"azimuths {view.azimuth_deg}",
            "data.projection",
        )
    if correlation > -0.5:  # False if it is NaN, for a single beam
        cause = "data.layout" if correlation < 0.5 else "data.projection"
        yield "rows do not fall with the elevation of their points", f"a correlation of {correlation:.2f}", cause
    if farther > 0:
        yield "pixels show farther points than the nearest in them", f"{farther:.1%} of the pixels", "data.projection"
    if shown < _MIN_SHOWN:
        size = f"{view.height} x {view.width} pixels"
        yield f"the image shows {shown:.0%} of the points, others hide the rest", size, "data.projection"


def _judge_pixels(images: ScanImages) -> Iterator[tuple[str, str, str]]:
    is_filled = images.ranges >= 0
    rows, columns = is_filled.any(dim=0).any(dim=1), is_filled.any(dim=0).any(dim=0)
    used, count = rows.nonzero()[:, 0], len(rows)
    inner = int(used[-1] - used[0]) + 1 - len(used) if len(used) else 0
    if count - len(used) > _MAX_EMPTY_ROWS * count or inner > _MAX_GAPS[images.view.rows != "pitch"] * count:
        cause = "data.projection" if images.view.rows == "pitch" else "data.sampling"
        yield f"{count - len(used)} of {count} rows of the image are always empty", f"{inner} between others", cause
    places = columns.nonzero()[:, 0]
    gaps = torch.cat([places.diff(), places[:1] + len(columns) - places[-1:]])
    if len(places) and int(gaps.max()) - 1 > _MAX_EMPTY_COLUMNS * len(columns):
        summary = f"{int(gaps.max()) - 1} of {len(columns)} columns of the image, side by side, are always empty"
        yield summary, f"azimuths {images.view.azimuth_deg}", "data.projection"


@rule(
    "mismatched-labels",
    "warning",
    "data.pairing data.ordering",
    holds="labels that change where the range jumps, five times as often as by chance, or 15 % more of them",
    do="check that labels belong to the scan of the same name, one per point and in its order: `sightline view`",
    is_statistical=True,
)
def mismatched_labels(run: Any, scan_images: list[ScanImages]) -> Iterator[Fault]:
    """Compare the places where labels change along a row with those where the range jumps."""
    ignored = run.built.data.facts.get("ignore_index")
    for images in scan_images:
        ranges, label = images.ranges, images.batch.get("label")
        if label is None or label.shape != ranges.shape:
            raise NotApplicableError("no labels of pixels")
        is_labelled = (ranges > 0) & (label.cpu() != (-1 if ignored is None else ignored))
        is_pair = is_labelled[..., 1:] & is_labelled[..., :-1]
        ratio = torch.maximum(ranges[..., 1:], ranges[..., :-1]) / torch.minimum(ranges[..., 1:], ranges[..., :-1])
        is_jump, is_change = is_pair & (ratio > _MIN_JUMP), is_pair & (label[..., 1:] != label[..., :-1]).cpu()
        pairs, jumps, changes = (float(mask.sum()) for mask in (is_pair, is_jump, is_change))
        both = float((is_jump & is_change).sum())
        if changes < _MIN_CHANGES or not jumps:
            continue
        chance, most = jumps / pairs, (both + 2 * both**0.5 + 2) / changes  # with two standard deviations more
        if most < _MIN_CHANCE_RATIO * chance and (most - chance) / (1 - chance) < _MIN_EXCESS:
            yield Fault(
                "labels do not fit the points: the label does not change at the edges of objects",
                measured=f"the range jumps at {both / changes:.1%} of {changes:.0f} changes of the label, and at "
                f"{chance:.1%} of all neighbouring pixels",
                where=images.where,
            )
            return
