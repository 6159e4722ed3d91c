"""Pictures of the user's own photos in `sightline view`."""

from __future__ import annotations

from pathlib import Path

from sightline.store.files.image_files import DEPTH_MODES, IMAGE_SUFFIXES, read_header, read_image
from sightline.view.image_stages import picture_stage
from sightline.view.panels import ImagePanel
from sightline.view.stages import ViewedSample


def view_photo(path: Path, *, name: str) -> ViewedSample | None:
    """View a photo upright, as `predict` sees it; None for a file of another kind, such as a depth image.

    Raises DataError for a damaged one.
    """
    suffix = path.suffix.lower()
    header = read_header(path) if suffix in IMAGE_SUFFIXES else None
    if header is None or header.mode in DEPTH_MODES.get(suffix, ()):
        return None
    pixels = read_image(path, orientation=header.orientation)
    height, width = pixels.shape[:2]
    turned = ", turned as its EXIF orientation says" if header.orientation > 1 else ""
    text = f"{width} x {height} pixels, {header.mode}{turned}"
    panel, figures = ImagePanel("photo", pixels, is_photo=True), {"height_px": height, "width_px": width}
    stage = picture_stage("as read", text, (panel,), figures | {"mode": header.mode})
    return ViewedSample(name, (stage,), "camera_y_down", {"file": str(path)})
