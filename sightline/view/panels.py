"""Flat pictures of a stage: a depth image, a volume from three sides, its slices, with the joints drawn over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sightline.geometry.pinhole import project_points
from sightline.pictures import PALETTE, apply_colormap
from sightline.view.skeletons import JointFigure
from sightline.view.volumes import PLANES, Plane, Volume

__all__ = ["ImagePanel", "Window", "depth_panel", "slices_panel", "volume_panels"]

_SIDE_PX = 352
_PAPER, _OUTSIDE, _SHADE = (252, 252, 252), (222, 226, 231), (226, 230, 235)
_NUM_SLICES = 16
_NAMES: dict[Plane, str] = {"xy": "xy, front", "xz": "xz, from above", "yz": "yz, side"}

Window = tuple[int, int, int, int]
"""Left, top, right, bottom of a part of an image, in pixels; the last two are excluded."""


@dataclass(frozen=True, eq=False)
class ImagePanel:
    """A picture (H, W, 3) uint8 and what it is called."""

    name: str
    pixels: np.ndarray


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
    """A depth image (H, W), dark where near, with figures in the camera's frame over it.

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
    times = _times(shown.shape)

    def places(points: np.ndarray) -> np.ndarray:  # the middle of a pixel lies at a whole number
        return (project_points(points, camera)[:, :2] - (left, top) + 0.5) * times

    figures = [each.moved(places(each.joints)) for each in ([cube] if cube else []) + list(skeletons)]
    return ImagePanel(name, _drawn_over(_enlarged(pixels, times), figures, num_thin=1 if cube else 0))


def volume_panels(
    volume: Volume, skeletons: Sequence[JointFigure], *, behind: Volume | None = None
) -> list[ImagePanel]:
    """The volume's largest values from three sides, with figures in its cloud's frame over them.

    `behind` it lies the shade of another volume of the same space.
    """
    panels = []
    for plane in PLANES:
        values, owners = volume.projection(plane)
        times = _times(values.shape)
        pixels = _enlarged(volume.colors(values, owners), times)
        if behind is not None:
            pixels = _on_shade(pixels, behind.projection(plane)[0])
        figures = [each.moved(volume.to_pixels(each.joints, plane) * times) for each in skeletons]
        panels.append(ImagePanel(_NAMES[plane], _drawn_over(pixels, figures)))
    return panels


def slices_panel(volume: Volume) -> ImagePanel:
    """Sixteen slices along z on one picture, the nearest at the upper left, evenly from the first that holds something
    to the last."""
    held = np.flatnonzero((volume.values > 0.02).any(axis=(0, 1)))
    first, last = (int(held[0]), int(held[-1])) if len(held) else (0, volume.values.shape[2] - 1)
    numbers = np.linspace(first, last, _NUM_SLICES).round().astype(np.int64).tolist()
    cards = [
        np.pad(volume.colors(*volume.slice(number)), ((1, 1), (1, 1), (0, 0)), constant_values=200)
        for number in numbers
    ]
    rows = [np.concatenate(cards[start : start + 4], axis=1) for start in range(0, _NUM_SLICES, 4)]
    return ImagePanel(f"slices, z {first} to {last}", np.concatenate(rows))


def _times(shape: Sequence[int]) -> int:
    """How many pixels wide a cell is drawn, so that the longer side comes near to that of all pictures."""
    return max(1, _SIDE_PX // max(1, *shape[:2]))


def _enlarged(pixels: np.ndarray, times: int) -> np.ndarray:
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _on_shade(pixels: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Paper becomes a shade of grey where something lies behind it."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(pixels.shape, behind.shape, strict=False))
    darkness = behind[np.ix_(rows, columns)][..., None] * (1 - np.array(_SHADE) / _PAPER[0])
    return (pixels * (1 - darkness)).round().astype(np.uint8)


def _drawn_over(pixels: np.ndarray, figures: Sequence[JointFigure], *, num_thin: int = 0) -> np.ndarray:
    """Figures whose joints are places (J, 2) of a picture: bones in their own colour, joints in the palette's.

    The first `num_thin` figures are thin lines without joints.
    """
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for number, figure in enumerate(figures):
        ends, color = figure.lines()
        for end in ends.reshape(-1, 4).tolist():
            draw.line(end, fill=tuple(color.tolist()), width=1 if number < num_thin else 3)
        for joint in figure.known_joint_indices().tolist() if number >= num_thin else ():
            x, y = figure.joints[joint].tolist()
            fill = tuple(PALETTE[joint % len(PALETTE)].tolist())
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=fill, outline=tuple(color.tolist()))
    return np.asarray(image)
