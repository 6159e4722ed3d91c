"""Range images that scans fill in part: wrong field of view, degrees in radians, exchanged axes or rows.

Range images of a run's parts for checks: those of the dry runs, or more if the checks are thorough.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.contract.types import Batch, SampleKey
from sightline.engine.build import DataSubset
from sightline.ops.projection import RangeView, compute_pixels
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault, diagnose
from sightline.workbench.check.core.sample_statistics import distinct_parts, evenly_spaced_keys, read_samples
from sightline.workbench.describe.report import projection_view

_diagnose = functools.partial(diagnose, __file__)
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


_MAX_CLAMPED = 0.1
"""Share of points above or below the image; up to 0.044 for real scans of KITTI."""
_MAX_BESIDE = 0.1
_MAX_EMPTY_ROWS = 0.5
"""Share of the rows; KITTI's camera leaves the lowest 23 of 64 rows empty."""
_MAX_PITCH_GAPS = 0.25
"""Share of the rows, by pitch; beams of unequal pitch leave single rows empty, a sensor of half as many beams half."""
_MAX_INNER_GAPS = 0.1
"""Share of the rows, of one beam each; a beam or two of a sensor may be broken."""
_MAX_EMPTY_COLUMNS = 0.25
"""Share of adjacent columns; KITTI's camera leaves 0.1 of 90 degrees empty."""
_MAX_CORRELATION = -0.5
"""Correlation of rows with elevations; -1 for rows of equal pitch."""
_MIN_SHOWN = 0.5
"""Share of points that have a pixel of their own; 0.79 of real scans of 64 beams in 2048 columns."""
_MIN_POINTS = 100
_MIN_FOV_DEG = 2.0
"""Smallest plausible field of view in degrees; a smaller number is in radians."""


@check(
    "projection-coverage",
    "preflight",
    each=images_by_part,
    severity="warning",
    causes=("data.projection", "cfg.axis_swap", "data.layout"),
    config_path="data.sensor",
)
def projection_coverage(context: Context, images: PartImages) -> Fault | None:
    """Points are within the image and most have a pixel; row 0 is the highest beam, and half of the rows are used.

    Finds: Range images that scans fill in part: wrong field of view, degrees in radians, exchanged axes or rows.
    """
    fault = next(_iter_faults(images, _list_projections(context)), None)
    if fault is None:
        return None
    filled = float((images.range_image >= 0).double().mean())
    evidence = {"field": "range_image", "pixels_filled": filled}
    return replace(fault, measured=f"{fault.measured} in {images.num_scans} scans", evidence=evidence)


def _list_projections(context: Context) -> list[str]:
    """List the paths of the transforms that project, in the config."""
    transforms = context.config.transforms
    stages = {"train": transforms.train, "evaluate": transforms.evaluate, "vote": transforms.vote}
    return [
        f"transforms.{s}.{i}" for s, parts in stages.items() for i, part in enumerate(parts) if part.name == "project"
    ]


def _iter_faults(images: PartImages, projections: Sequence[str]) -> Iterator[Fault]:
    view = images.view
    row, elevation, beside, clamped, shown = _measure_points(images)
    if len(row) < _MIN_POINTS:
        return
    if clamped > _MAX_CLAMPED:
        yield _make_clamped_fault(view, elevation, clamped)
    if beside > _MAX_BESIDE:
        yield _diagnose("beside", share=beside, azimuth=view.azimuth_deg, limit=_MAX_BESIDE)
    correlation = _correlate(row, elevation)
    if correlation > _MAX_CORRELATION:  # False if it is NaN, for a single beam
        up = _find_up(images.part)
        words = {"up": up, "correlation": correlation, "limit": _MAX_CORRELATION}
        yield _diagnose("other axis" if up else "mixed rows", **words)
    yield from _iter_empty_faults(images, projections)
    if shown < _MIN_SHOWN:
        wider = view.width * 2 ** math.ceil(math.log2(len(row) / max(1, images.num_scans * view.height * view.width)))
        yield _diagnose("hidden", share=shown, view=view, limit=_MIN_SHOWN, wider=max(wider, 2 * view.width))


def _measure_points(images: PartImages) -> tuple[Tensor, Tensor, float, float, float]:
    """Compute row and elevation (rad) of each point, (N,), and the shares beside, above or below, and shown."""
    rows, elevations, num_seen, num_clamped, num_points, num_shown = [], [], 0, 0, 0, 0
    for batch in images.batches:
        points, offsets = batch["points"], batch["whole_offsets"]
        if len(points) != int(offsets[-1]):
            continue  # a later transform thinned them
        pixels = compute_pixels(points, view=images.view, offsets=offsets, ring=batch.get("ring"))
        is_point = pixels.ranges > 0
        rows.append((batch["nearest"] // images.view.width)[is_point].cpu())
        elevations.append((points[is_point, 2] / pixels.ranges[is_point]).double().clamp(-1, 1).asin().cpu())
        num_seen += int(pixels.is_seen.sum())
        num_clamped += int(pixels.is_clamped.sum())
        num_points += int(is_point.sum())
        num_shown += int((batch["range_image"] >= 0).sum())
    empty = torch.empty(0)
    beside = 1 - num_seen / max(1, num_points)
    clamped, shown = (count / max(1, num_seen) for count in (num_clamped, num_shown))
    return torch.cat([empty.long(), *rows]), torch.cat([empty.double(), *elevations]), beside, clamped, shown


def _find_up(part: DataSubset) -> str:
    """Find the axis, other than z, along which the rings of a scan fall, before any transform; "" without one."""
    sample = read_samples(part.dataset, [SampleKey(int(part.indices[0]), 0, 0)])[0]
    points, ring = torch.as_tensor(sample["points"]).double(), sample.get("ring")
    if ring is None:
        return ""
    angles = (points / points.norm(dim=1, keepdim=True).clamp(min=1e-9)).asin().T
    return next((name for name, angle in zip("xy", angles, strict=False) if _correlate(ring, angle) < -0.9), "")


def _correlate(row: Tensor, angle: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([row.double(), angle]))[0, 1])


def _make_clamped_fault(view: RangeView, elevation: Tensor, clamped: float) -> Fault:
    low, high = (
        float(angle)
        for angle in torch.rad2deg(elevation.sort().values[[len(elevation) // 50, -1 - len(elevation) // 50]])
    )
    up, down = view.fov_deg
    words = {"high": high, "low": low, "upper": high + 1, "lower": low - 1, "limit": _MAX_CLAMPED}
    diagnosis = "radians" if up - down < _MIN_FOV_DEG else "clamped"
    return _diagnose(diagnosis, share=clamped, fov=view.fov_deg, **words)


def _iter_empty_faults(images: PartImages, projections: Sequence[str]) -> Iterator[Fault]:
    is_filled = images.range_image >= 0
    rows, columns = (is_filled.any(dim=0).any(dim=axis) for axis in (1, 0))
    empty, inner, is_by_pitch = int((~rows).sum()), _count_inner_gaps(rows), images.view.rows == "pitch"
    if empty > _MAX_EMPTY_ROWS * len(rows) or (is_by_pitch and inner > _MAX_PITCH_GAPS * len(rows)):
        limit = _MAX_PITCH_GAPS if empty <= _MAX_EMPTY_ROWS * len(rows) else _MAX_EMPTY_ROWS
        arguments = " ".join(f"{path}.height={len(rows) - empty}" for path in projections)
        yield _diagnose("empty rows", number=empty, total=len(rows), limit=limit, arguments=arguments)
    if not is_by_pitch and inner > _MAX_INNER_GAPS * len(rows):
        yield _diagnose("missing rings", number=inner, total=len(rows), limit=_MAX_INNER_GAPS)
    flat = _count_flat_rows(images, is_filled)
    if flat:
        yield _diagnose("flat rows", number=flat, total=len(rows))
    gap = _find_longest_gap(columns)
    if gap > _MAX_EMPTY_COLUMNS * len(columns):
        degrees = abs(images.view.azimuth_deg[0] - images.view.azimuth_deg[1]) * gap / len(columns)
        total, limit = len(columns), _MAX_EMPTY_COLUMNS
        yield _diagnose("empty columns", degrees=degrees, number=gap, total=total, limit=limit)


def _count_inner_gaps(is_filled: Tensor) -> int:
    """Count the empty rows between the first and the last row with points."""
    filled = is_filled.nonzero()[:, 0]
    return int(filled[-1] - filled[0]) + 1 - len(filled) if len(filled) else 0


def _count_flat_rows(images: PartImages, is_filled: Tensor) -> int:
    """Count the rows whose pixels in `image` are equal in all scans, although points fill some of them."""
    pixels = [batch["image"].cpu() for batch in images.batches if "image" in batch]
    if not pixels or any(value.shape[2:] != is_filled.shape[1:] for value in pixels):
        return 0
    values = torch.cat(pixels)
    is_flat = (values.amax(dim=(0, 3)) == values.amin(dim=(0, 3))).all(dim=0)
    return int((is_flat & (is_filled.sum(dim=(0, 2)) > len(is_filled))).sum())


def _find_longest_gap(is_filled: Tensor) -> int:
    """Find the largest number of adjacent empty columns; the last column is next to the first."""
    filled_columns = is_filled.nonzero()[:, 0]
    if not len(filled_columns):
        return len(is_filled)
    return int(torch.cat([filled_columns.diff(), filled_columns[:1] + len(is_filled) - filled_columns[-1:]]).max()) - 1
