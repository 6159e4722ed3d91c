"""What `sightline view` leaves in a folder: a picture and coloured clouds of each sample, and one page of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.data.ply_writing import write_ply
from sightline.engine.durable import disk_failure
from sightline.engine.kept_predictions import file_stems
from sightline.engine.run_directory import RunDirectory
from sightline.pictures import encode_png
from sightline.view.clouds import ByClass, Subject
from sightline.view.page import encode_page
from sightline.view.sheet import Tile, draw_sheet, tiles_of

__all__ = ["write_views"]


def write_views(
    folder: RunDirectory, subjects: Sequence[Subject], *, title: str, hidden: Sequence[str], most: int
) -> list[str]:
    """Write `<sample>.png`, a PLY file of each card on it, and `view.html`; returns the names of all.

    PLY files hold every point and class; `hidden` classes are left out of the pictures and hidden at first in the page.
    """
    written = []
    for stem, subject in zip(file_stems([subject.name for subject in subjects]), subjects, strict=True):
        folder.write_bytes(f"{stem}.png", encode_png(draw_sheet(subject, hidden=hidden)))
        written.append(f"{stem}.png")
        tiles = tiles_of(subject)
        views = file_stems([f"{place}_{t.cloud.stage}_{t.coloring.name}" for place, t in enumerate(tiles)])
        for view, tile in zip(views, tiles, strict=True):
            labels = tile.coloring.labels() if isinstance(tile.coloring, ByClass) else None
            if not len(tile.cloud.points):
                continue
            written.append(f"{stem}.{view}.ply")
            _write_ply(folder.path / written[-1], tile, labels)
    folder.write_text("view.html", encode_page(subjects, title=title, hidden=hidden, most=most))
    return [*written, "view.html"]


def _write_ply(path: Path, tile: Tile, labels: np.ndarray | None) -> None:
    try:
        write_ply(path, points=tile.cloud.points, colors=tile.coloring.colors(), label=labels)
    except OSError as error:
        raise disk_failure(error, path) from error
