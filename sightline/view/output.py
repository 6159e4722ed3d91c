"""Files that `sightline view` writes: per sample a picture, coloured clouds and volumes, and one page of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.data.files.ply_writing import write_ply
from sightline.evaluation.saved_predictions import file_stems
from sightline.pictures import encode_png
from sightline.runs.atomic_files import disk_failure
from sightline.runs.run_directory import RunDirectory
from sightline.view.page import encode_page
from sightline.view.sheet import Tile, draw_sheet, make_tiles
from sightline.view.stages import ClassColoring, ViewedSample
from sightline.view.vtk import encode_vtk

__all__ = ["write_views"]

_PAGE = "view.html"
_INDEX = "written beside this page: "
_MAX_INDEX_BYTES = 4_000_000


def write_views(
    folder: RunDirectory, subjects: Sequence[ViewedSample], *, title: str, hidden: Sequence[str], most: int
) -> list[str]:
    """Write `<sample>.png`, a PLY file of each cloud on it, and `view.html`; return the names of all files.

    PLY files contain all points and classes; `hidden` classes are left out of pictures and hidden at first in the page.
    A stage with skeletons has a PLY file of points along their bones too, one with a volume a VTK file.
    Files that an earlier call wrote there, and listed in its page, are removed unless this call writes them again.
    """
    earlier = _read_file_list(folder.path / _PAGE)
    written = []
    for stem, subject in zip(file_stems([subject.name for subject in subjects]), subjects, strict=True):
        tile_px = 400 if all(cloud.is_flat for cloud in subject.stages) else 300  # boxes and dots on pictures are small
        folder.write_bytes(f"{stem}.png", encode_png(draw_sheet(subject, hidden=hidden, tile_px=tile_px)))
        written.append(f"{stem}.png")
        tiles = [tile for tile in make_tiles(subject) if tile.panel is None]
        views = file_stems([f"{index}_{t.cloud.stage}_{t.coloring.name}" for index, t in enumerate(tiles)])
        for view, tile in zip(views, tiles, strict=True):
            labels = tile.coloring.labels() if isinstance(tile.coloring, ClassColoring) else None
            if not len(tile.cloud.points):
                continue
            written.append(f"{stem}.{view}.ply")
            _write_ply(folder.path / written[-1], tile, labels)
        written += _write_figures(folder, stem, subject)
    file_list = json.dumps(written).replace("-", "\\u002d")  # two of them would end the comment
    page = encode_page(subjects, title=title, hidden=hidden, most=most)
    folder.write_text(_PAGE, f"{page}<!-- {_INDEX}{file_list} -->\n")
    for name in sorted(earlier - set(written)):
        folder.remove(name)
    return [*written, _PAGE]


def _read_file_list(page: Path) -> set[str]:
    """Read from an earlier page the files written with it; names of other kinds, or in other folders, are ignored."""
    try:
        with page.open("rb") as file:
            file.seek(max(0, page.stat().st_size - _MAX_INDEX_BYTES))
            text = file.read().decode(errors="replace").rpartition(f"<!-- {_INDEX}")[2].partition(" -->")[0]
        names = json.loads(text)
    except (OSError, ValueError):
        return set()
    listed = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return {name for name in listed if Path(name).name == name and Path(name).suffix in (".png", ".ply", ".vtk")}


def _write_figures(folder: RunDirectory, stem: str, subject: ViewedSample) -> list[str]:
    """Write the skeletons and the volume of each stage that has them; a skeleton's points are labelled by its index."""
    written = []
    for name, cloud in zip(file_stems([cloud.stage for cloud in subject.stages]), subject.stages, strict=True):
        chains = [skeleton.chain() for skeleton in cloud.skeletons]
        label = np.repeat(np.arange(len(chains)), [len(chain) for chain in chains])
        if len(label):
            written.append(f"{stem}.{name}_skeletons.ply")
            colors = np.stack([skeleton.color for skeleton in cloud.skeletons])[label]
            _write_points(folder.path / written[-1], np.concatenate(chains), colors, label)
        if cloud.volume is not None:
            written.append(f"{stem}.{name}.vtk")
            folder.write_bytes(written[-1], encode_vtk(cloud.volume, title=f"{subject.name}, {cloud.stage}"))
    return written


def _write_ply(path: Path, tile: Tile, labels: np.ndarray | None) -> None:
    _write_points(path, tile.cloud.points, tile.coloring.colors(), labels)


def _write_points(path: Path, points: np.ndarray, colors: np.ndarray, labels: np.ndarray | None) -> None:
    try:
        write_ply(path, points=points, colors=colors, label=labels)
    except OSError as error:
        raise disk_failure(error, path) from error
