"""One HTML page that shows stages and turns their clouds: everything in it, nothing from a network, for any browser."""

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

__all__ = ["MOST_BYTES", "MOST_SHOWN", "encode_page", "shown_per_cloud"]

MOST_SHOWN = 200_000
"""Points of a cloud in a page, unless asked for otherwise: what a browser turns smoothly without a graphics card."""
MOST_BYTES = 12_000_000
"""Of the points of a page: more clouds get fewer points each, so that a page stays one that can be mailed."""
_STRIP_RATIO = 3
"""Width over height."""
_STEPS = 65_535
"""A coordinate is kept as one of so many steps from the cloud's lowest to its highest."""


def encode_page(
    subjects: Sequence[ViewedSample],
    *,
    title: str,
    notes: Sequence[str] = (),
    hidden: Sequence[str] = (),
    most: int = MOST_SHOWN,
) -> str:
    """The page of these samples: a switch between them, their stages and colourings, a legend that hides classes.

    Below a cloud stand the flat pictures of its stage, and the slices of its volume; pictures alone fill the page.

    Of every cloud at most `most` finite points are in it, fewer where the whole would exceed `MOST_BYTES`, chosen
    evenly; the page states how many. Coordinates are rounded to 1/65535 of the cloud's extent. `hidden` are names of
    classes that are hidden at first.
    """
    count = shown_per_cloud(subjects, most=most)
    data = {
        "title": title,
        "notes": list(notes),
        "hidden": list(hidden),
        "subjects": [_subject(subject, count) for subject in subjects],
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    page = _part("page.html")
    for mark, content in (  # from the bottom up, so that nothing inserted is taken for a mark
        ("SCRIPT", _part("page.js") + _part("page_flat.js")),
        ("DATA", text.replace("<", "\\u003c")),  # no name of a class can end the element that holds it
        ("STYLE", _part("page.css")),
        ("TITLE", html.escape(title)),
    ):
        before, found, after = page.partition(f"%{mark}%")
        assert found, f"page.html has lost its place for {mark}"
        page = before + content + after
    return page


def shown_per_cloud(subjects: Sequence[ViewedSample], *, most: int) -> int:
    """The largest number of points per cloud, up to `most`, with which all clouds fit into `MOST_BYTES` of base64."""
    clouds = [(len(cloud.points), _bytes_per_point(cloud)) for subject in subjects for cloud in subject.stages]

    def num_bytes(count: int) -> float:
        return sum(min(size, count) * width for size, width in clouds) * 4 / 3

    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if num_bytes(middle) <= MOST_BYTES else (low, middle - 1)
    return low


def _bytes_per_point(cloud: Stage) -> int:
    widths = {ClassColoring: 2, RgbColoring: 3}
    return 6 + sum(widths.get(type(each), 0) for each in cloud.colorings)


def _subject(subject: ViewedSample, count: int) -> dict[str, Any]:
    whole = [f"{key}: {subject.facts[key]}" for key in ("class", "category") if key in subject.facts]
    return {
        "name": subject.name,
        "facts": whole,
        "up": subject.up_axis,
        "clouds": [_cloud(cloud, count) for cloud in subject.stages],
    }


def _cloud(cloud: Stage, count: int) -> dict[str, Any]:
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
        "colorings": [_coloring(each, rows) for each in cloud.colorings],
        "skeletons": [each.to_dict() for each in cloud.skeletons],
        "isFlat": cloud.is_flat,
        "isStrips": all(_is_strip(each.pixels) for each in cloud.panels),
        "panels": [{"name": each.name, "png": _picture(each.pixels)} for each in cloud.panels],
        "volume": None if cloud.volume is None else _volume(cloud.volume),
    }


def _coloring(coloring: Coloring, rows: np.ndarray) -> dict[str, Any]:
    """Codes that count the rows of its legend, colours, or for heights nothing: the page finds them itself."""
    if isinstance(coloring, RgbColoring):
        return {"name": coloring.name, "kind": "colors", "values": _base64(coloring.rgb[rows])}
    if not isinstance(coloring, ClassColoring):
        return {"name": coloring.name, "kind": "height"}
    legend = coloring.legend()
    place_of = {name: place for place, (name, _, _) in enumerate(legend)}
    places = np.array([place_of.get(name, 0) for name in (*coloring.class_names, "unlabelled")], dtype="<u2")
    return {
        "name": coloring.name,
        "kind": "classes",
        "values": _base64(places[np.maximum(coloring.codes[rows], -1)]),
        "classes": [{"name": name, "color": color.tolist(), "count": count} for name, color, count in legend],
    }


def _volume(volume: Volume) -> dict[str, Any]:
    """Its filled cells alone, numbered with z running fastest, with their values in 255 steps and their owners."""
    steps = (volume.values * 255).round().astype(np.uint8).ravel()
    places = np.flatnonzero(steps)
    return {
        "size": list(volume.values.shape),
        "cell": volume.cell,
        "palette": volume.palette.tolist(),
        "places": _base64(places.astype("<u4")),
        "values": _base64(steps[places]),
        "owners": _base64(volume.owners.ravel()[places].astype("<u2")),
    }


def _is_strip(pixels: np.ndarray) -> bool:
    """Whether a picture, such as a range image, is so wide that it takes the whole width of the page."""
    return pixels.shape[1] >= _STRIP_RATIO * pixels.shape[0]


def _picture(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode("ascii")


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _part(name: str) -> str:
    return resources.files("sightline.view").joinpath(name).read_text(encoding="utf-8")
