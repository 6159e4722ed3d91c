"""Self-contained HTML page that shows stages and rotates their clouds, in any browser and without a network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from sightline.pictures import encode_png
from sightline.view.sheet import subsample
from sightline.view.stages import ClassColoring, Coloring, RgbColoring, Stage, ViewedSample
from sightline.view.volumes import Volume

__all__ = ["MAX_PAGE_BYTES", "MAX_SHOWN", "encode_page", "max_points_per_cloud"]

MAX_SHOWN = 200_000
"""Default maximum of points per cloud: as many as a browser rotates smoothly without a graphics card."""
MAX_PAGE_BYTES = 12_000_000
"""Maximum size of all points of a page (base64): more clouds get fewer points each, so that it can be mailed."""
_MIN_STRIP_RATIO = 3
"""Minimum width / height of a picture that is shown as a strip."""
_STEPS = 65_535
"""Quantisation of coordinates: number of steps from the cloud's lowest to its highest."""


def encode_page(
    subjects: Sequence[ViewedSample],
    *,
    title: str,
    notes: Sequence[str] = (),
    hidden: Sequence[str] = (),
    most: int = MAX_SHOWN,
) -> str:
    """Encode the page of these samples: selection of sample, stage and colouring, and a legend that hides classes.

    The flat pictures of a stage and the slices of its volume are shown below its cloud; a stage of pictures only fills
    the page.

    The page contains at most `most` finite points of every cloud, fewer if all would exceed `MAX_PAGE_BYTES`, chosen
    evenly; the page states how many. Coordinates are rounded to 1/65535 of the cloud's extent. `hidden` are names of
    classes that are hidden at first.
    """
    count = max_points_per_cloud(subjects, most=most)
    data = {
        "title": title,
        "notes": list(notes),
        "hidden": list(hidden),
        "subjects": [_encode_subject(subject, count) for subject in subjects],
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    page = _read_part("page.html")
    for mark, content in (  # from the bottom up, so that no inserted text is taken for a mark
        ("SCRIPT", _read_part("page.js") + _read_part("page_flat.js")),
        ("DATA", text.replace("<", "\\u003c")),  # no class name can end the element that contains the data
        ("STYLE", _read_part("page.css")),
        ("TITLE", html.escape(title)),
    ):
        head, separator, tail = page.partition(f"%{mark}%")
        assert separator, f"page.html lacks the mark {mark}"
        page = head + content + tail
    return page


def max_points_per_cloud(subjects: Sequence[ViewedSample], *, most: int) -> int:
    """Return the largest number of points per cloud, up to `most`, so that all fit into `MAX_PAGE_BYTES` of base64."""
    clouds = [(len(cloud.points), _bytes_per_point(cloud)) for subject in subjects for cloud in subject.stages]

    def num_bytes(count: int) -> float:
        return sum(min(size, count) * width for size, width in clouds) * 4 / 3

    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if num_bytes(middle) <= MAX_PAGE_BYTES else (low, middle - 1)
    return low


def _bytes_per_point(cloud: Stage) -> int:
    widths = {ClassColoring: 2, RgbColoring: 3}
    return 6 + sum(widths.get(type(coloring), 0) for coloring in cloud.colorings)


def _encode_subject(subject: ViewedSample, count: int) -> dict[str, Any]:
    class_lines = [f"{key}: {subject.facts[key]}" for key in ("class", "category") if key in subject.facts]
    return {
        "name": subject.name,
        "facts": class_lines,
        "up": subject.up_axis,
        "clouds": [_encode_cloud(cloud, count) for cloud in subject.stages],
    }


def _encode_cloud(cloud: Stage, count: int) -> dict[str, Any]:
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
        "isFlat": cloud.is_flat,
        "isStrips": all(_is_strip(panel.pixels) for panel in cloud.panels),
        "panels": [{"name": panel.name, "png": _encode_picture(panel.pixels)} for panel in cloud.panels],
        "volume": None if cloud.volume is None else _encode_volume(cloud.volume),
    }


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


def _encode_volume(volume: Volume) -> dict[str, Any]:
    """Encode the filled cells of a volume: flat index (z fastest), value in 255 steps, and owner."""
    steps = (volume.values * 255).round().astype(np.uint8).ravel()
    indices = np.flatnonzero(steps)
    return {
        "size": list(volume.values.shape),
        "cell": volume.cell,
        "palette": volume.palette.tolist(),
        "places": _base64(indices.astype("<u4")),
        "values": _base64(steps[indices]),
        "owners": _base64(volume.owners.ravel()[indices].astype("<u2")),
    }


def _is_strip(pixels: np.ndarray) -> bool:
    """Return True if a picture, such as a range image, is wide enough to take the full width of the page."""
    return pixels.shape[1] >= _MIN_STRIP_RATIO * pixels.shape[0]


def _encode_picture(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode("ascii")


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _read_part(name: str) -> str:
    return resources.files("sightline.view").joinpath(name).read_text(encoding="utf-8")
