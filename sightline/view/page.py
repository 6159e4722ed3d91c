"""Self-contained HTML page that shows stages and rotates their clouds, in any browser and without a network."""

from __future__ import annotations

import base64
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from sightline.draw.drawn_rows import MIN_FACING, find_shell
from sightline.draw.page import PHOTO_PX, PageClouds, encode_picture, render_page
from sightline.draw.pictures import Frame, upright_points
from sightline.view.panels import ImagePanel, is_strip
from sightline.view.sheet import subsample
from sightline.view.stages import ClassColoring, Coloring, RgbColoring, Stage, ViewedSample

MAX_SHOWN = 200_000
"""Default maximum of points per cloud: as many as a browser rotates smoothly without a graphics card."""
MAX_PAGE_BYTES = 12_000_000
"""Maximum size of all points of a page (base64): more clouds get fewer points each, so that it can be mailed."""
_STEPS = 65_535
"""Quantisation of coordinates: number of steps from the cloud's lowest to its highest."""


def encode_page(subjects: Sequence[ViewedSample], *, title: str, hidden: Sequence[str] = ()) -> str:
    """Encode the page of these samples: selection of sample, stage and colouring, and a legend that hides classes.

    The flat pictures of a stage are shown below its cloud; a stage of pictures only fills the page.
    """
    return render_page(title, [make_clouds(subjects, title=title, hidden=hidden)])


def make_clouds(
    subjects: Sequence[ViewedSample], *, title: str, hidden: Sequence[str] = (), max_bytes: int = MAX_PAGE_BYTES
) -> PageClouds:
    """Make the viewer of these samples for a page.

    It contains at most `MAX_SHOWN` finite points of every cloud, fewer if all would exceed `max_bytes`, chosen evenly;
    the page states how many. Coordinates are rounded to 1/65535 of the cloud's extent. `hidden` are names of classes
    that are hidden at first.
    """
    clouds = [(len(cloud.points), _bytes_per_point(cloud)) for subject in subjects for cloud in subject.stages]

    def num_bytes(count: int) -> int:  # in base64, times 3
        return sum(min(size, count) * width for size, width in clouds) * 4

    count = max(1, bisect_right(range(1, MAX_SHOWN + 1), 3 * max_bytes, key=num_bytes))
    encoded = [_encode_subject(subject, count) for subject in subjects]
    return PageClouds({"title": title, "notes": [], "hidden": list(hidden), "subjects": encoded})


def _bytes_per_point(cloud: Stage) -> int:
    widths = {ClassColoring: 2, RgbColoring: 3}
    return 6 + sum(widths.get(type(coloring), 0) for coloring in cloud.colorings)


def _encode_subject(subject: ViewedSample, count: int) -> dict[str, Any]:
    class_lines = [f"{key}: {subject.facts[key]}" for key in ("class", "category") if key in subject.facts]
    return {
        "name": subject.name,
        "facts": class_lines,
        "up": subject.up_axis,
        "clouds": [_encode_cloud(cloud, count, subject.up_axis) for cloud in subject.stages],
    }


def _encode_cloud(cloud: Stage, count: int, frame: Frame) -> dict[str, Any]:
    finite = np.flatnonzero(np.isfinite(cloud.points).all(axis=1))
    rows = subsample(finite, count)
    points = cloud.points[rows].astype(np.float64)
    extent = cloud.extent() or ([0.0] * 3, [0.0] * 3)
    low, high = (np.array(bound) for bound in extent)
    span = np.where(high > low, high - low, 1.0)
    steps = ((points - low) / span * _STEPS).round().astype("<u2")
    return {
        "stage": cloud.stage,
        "unit": cloud.unit,
        "lines": cloud.lines(),
        "isRight": cloud.is_right,
        "shown": len(rows),
        "total": len(cloud.points),
        "low": low.tolist(),
        "span": span.tolist(),
        "points": _base64(steps),
        "colorings": [_encode_coloring(coloring, rows) for coloring in cloud.colorings],
        "skeletons": [skeleton.to_dict() for skeleton in cloud.skeletons],
        "shell": _encode_shell(cloud.points[finite], frame) if cloud.surroundings == "room" else None,
        "isFlat": cloud.is_flat,
        "isStrips": all(is_strip(panel) for panel in cloud.panels),
        "panels": [_encode_panel(panel, len(cloud.panels)) for panel in cloud.panels],
    }


def _encode_shell(points: np.ndarray, frame: Frame) -> dict[str, Any] | None:
    """Encode walls, floor and ceiling of a room in the page's frame, whose z is up; None if nothing encloses it."""
    shell = find_shell(upright_points(points, frame))
    if shell is None:
        return None
    ceiling = None if np.isinf(shell.ceiling) else float(shell.ceiling)
    return {"walls": shell.walls.tolist(), "floor": float(shell.floor), "ceiling": ceiling, "facing": MIN_FACING}


def _encode_panel(panel: ImagePanel, count: int) -> dict[str, Any]:
    """Encode one of `count` pictures of a stage, which the page shows in as many columns as rows, or one more."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    photo_px = (PHOTO_PX[0] // columns, PHOTO_PX[1] // rows) if panel.is_photo else None
    return {"name": panel.name, "caption": panel.text, "picture": encode_picture(panel.pixels, photo_px=photo_px)}


def _encode_coloring(coloring: Coloring, rows: np.ndarray) -> dict[str, Any]:
    """Encode a colouring: indices into its legend, colours, or for heights nothing, as the page computes them."""
    if isinstance(coloring, RgbColoring):
        return {"name": coloring.name, "kind": "colors", "values": _base64(coloring.rgb[rows])}
    if not isinstance(coloring, ClassColoring):
        return {"name": coloring.name, "kind": "height"}
    legend = coloring.legend()
    index_by_name = {name: index for index, (name, _, _) in enumerate(legend)}
    indices = np.array([index_by_name.get(name, 0) for name in (*coloring.class_names, "unlabelled")], dtype="<u2")
    return {
        "name": coloring.name,
        "kind": "classes",
        "values": _base64(indices[np.maximum(coloring.codes[rows], -1)]),
        "classes": [{"name": name, "color": color.tolist(), "count": count} for name, color, count in legend],
    }


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
