"""Flat pictures of a stage with the joints drawn over them: depth image, volume from three sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sightline.draw.pictures import PALETTE, apply_colormap
from sightline.ops.views.pinhole import project_points
from sightline.view.skeletons import JointFigure
from sightline.view.volumes import PLANES, Plane, Volume

_SIDE_PX = 352
_PAPER, _OUTSIDE = (252, 252, 252), (222, 226, 231)
_NAMES: dict[Plane, str] = {"xy": "xy, front", "xz": "xz, from above", "yz": "yz, side"}

Window = tuple[int, int, int, int]
"""Left, top, right, bottom of a crop of an image, in pixels; right and bottom are excluded."""


@dataclass(frozen=True, eq=False)
class ImagePanel:
    """Picture (H, W, 3) uint8 with its name. Only a photo may lose a little where it is kept in few bytes.

    A picture that `is_large` takes the full width of the page, as one of `_MIN_STRIP_RATIO` does. `caption` is what is
    written below it, by default the name.
    """

    name: str
    pixels: np.ndarray
    is_photo: bool = False
    is_large: bool = False
    caption: str = ""

    @property
    def text(self) -> str:
        """Return the text below the picture."""
        return self.caption or self.name


def depth_panel(
    name: str,
    depth: np.ndarray,
    camera: np.ndarray,
    skeletons: Sequence[JointFigure],
    *,
    window: Window | None = None,
    is_inside: np.ndarray | None = None,
    cube: JointFigure | None = None,
) -> ImagePanel:
    """Draw a depth image (H, W), near pixels dark, with joint figures given in the camera frame.

    Only its `window` is shown; measured pixels that are not inside are grey; `cube` is drawn in thin lines.
    """
    left, top, right, bottom = window or (0, 0, depth.shape[1], depth.shape[0])
    shown = depth[top:bottom, left:right]
    inside = (depth if is_inside is None else np.where(is_inside, depth, 0))[top:bottom, left:right]
    pixels = np.full((*shown.shape, 3), _PAPER, dtype=np.uint8)
    pixels[shown > 0] = _OUTSIDE
    if (inside > 0).any():
        measured = inside[inside > 0]
        pixels[inside > 0] = apply_colormap(measured.clip(*np.percentile(measured, (2, 98))))
    scale = _pixels_per_cell(shown.shape)

    def to_picture(points: np.ndarray) -> np.ndarray:  # pixel centres are at integers
        column_row_depth = project_points(points, camera)
        column_row_depth[column_row_depth[:, 2] <= 0] = np.nan  # behind the camera, where a picture shows nothing
        return (column_row_depth[:, :2] - (left, top) + 0.5) * scale

    figures = [figure.with_joints(to_picture(figure.joints)) for figure in ([cube] if cube else []) + list(skeletons)]
    return ImagePanel(name, _draw_figures(_enlarge(pixels, scale), figures, num_thin=1 if cube else 0))


def volume_panels(volume: Volume, skeletons: Sequence[JointFigure]) -> list[ImagePanel]:
    """Draw the maximum projections of a volume along its three axes, with joint figures in its cloud's frame."""
    panels = []
    for plane in PLANES:
        values, owners = volume.projection(plane)
        scale = _pixels_per_cell(values.shape)
        pixels = _enlarge(volume.colors(values, owners), scale)
        figures = [skeleton.with_joints(volume.to_pixels(skeleton.joints, plane) * scale) for skeleton in skeletons]
        panels.append(ImagePanel(_NAMES[plane], _draw_figures(pixels, figures)))
    return panels


def _pixels_per_cell(shape: Sequence[int]) -> int:
    """Return the number of pixels per cell with which the longer side comes close to `_SIDE_PX`."""
    return max(1, _SIDE_PX // max(1, *shape[:2]))


def _enlarge(pixels: np.ndarray, times: int) -> np.ndarray:
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _draw_figures(pixels: np.ndarray, figures: Sequence[JointFigure], *, num_thin: int = 0) -> np.ndarray:
    """Draw figures with joints (J, 2) in pixels: bones in the figure's colour, joints in the palette's.

    Joints that are not sure are hollow. The first `num_thin` figures are thin lines without joints. Of the others,
    neither joints outside of the picture nor bones to them are drawn.
    """
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    thin, wide = figures[:num_thin], figures[num_thin:]
    for number, figure in enumerate([*thin, *(figure.within(pixels.shape[1], pixels.shape[0]) for figure in wide)]):
        color = tuple(figure.color.tolist())
        for first, last in figure.known_bones():
            ends = (*figure.joints[first].tolist(), *figure.joints[last].tolist())
            draw.line(ends, fill=color, width=1 if number < num_thin else 3)
        unsure = set(figure.unsure_joint_indices().tolist())
        for joint in figure.known_joint_indices().tolist() if number >= num_thin else ():
            x, y = figure.joints[joint].tolist()
            tint = tuple(PALETTE[joint % len(PALETTE)].tolist())
            fill, outline, width = (_PAPER, tint, 2) if joint in unsure else (tint, color, 1)
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=fill, outline=outline, width=width)
    return np.asarray(image)


_MIN_STRIP_RATIO = 3
"""Minimum width / height of a picture that is shown as a strip."""


def is_strip(panel: ImagePanel) -> bool:
    """Return True if a picture, such as a range image, takes the full width of the page."""
    return panel.is_large or panel.pixels.shape[1] >= _MIN_STRIP_RATIO * panel.pixels.shape[0]
