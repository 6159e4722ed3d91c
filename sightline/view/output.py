"""Files that `sightline view` writes: a picture of each sample, and one page of all."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.draw.pictures import encode_png
from sightline.runs.run_directory import RunDirectory
from sightline.view.page import encode_page
from sightline.view.sheet import draw_sheet
from sightline.view.stages import ViewedSample
from sightline.workbench.evaluate.saved_predictions import file_stems

_PAGE = "view.html"


def write_views(
    folder: RunDirectory, subjects: Sequence[ViewedSample], *, title: str, hidden: Sequence[str]
) -> list[str]:
    """Write `<sample>.png` and `view.html`; return the names of all files.

    `hidden` classes are left out of pictures and hidden at first in the page.
    """
    written = []
    for stem, subject in zip(file_stems([subject.name for subject in subjects]), subjects, strict=True):
        tile_px = 400 if all(cloud.is_flat for cloud in subject.stages) else 300  # boxes and dots on pictures are small
        written.append(f"{stem}.png")
        folder.write_bytes(written[-1], encode_png(draw_sheet(subject, hidden=hidden, tile_px=tile_px)))
    folder.write_text(_PAGE, encode_page(subjects, title=title, hidden=hidden))
    return [*written, _PAGE]
