"""Flat pictures of a stage with the joints drawn over them: depth image, volume from three sides.

Skeletons: joints and bones for pictures, pages and files.

Volumes for viewing: maximum projections along the axes, and the filled cells.

A volume is indexed (x, y, z). In pictures of xy and xz, columns are x; in those of yz they are z, the depth. Rows are
y, upwards if the set's y points up, or the depth, upwards: front, top and side view as in an engineering drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sightline.draw.pictures import PALETTE, Lines, apply_colormap
from sightline.ops.pinhole import project_points

TRUE, READ = np.array([30, 122, 74], dtype=np.uint8), np.array([214, 69, 65], dtype=np.uint8)
"""Colours: green for labelled joints, red for joints decoded from heat maps."""


@dataclass(frozen=True, eq=False)
class JointFigure:
    """Skeleton: joints (J, 3) in the frame of a cloud or a picture; `is_known` (J,) marks the labelled ones.

    `bones` are pairs of joint indices, `color` (3,) uint8 is the colour of the whole figure.
    """

    name: str
    joints: np.ndarray
    is_known: np.ndarray
    bones: tuple[tuple[int, int], ...]
    color: np.ndarray

    def with_joints(self, joints: np.ndarray) -> JointFigure:
        """Return the figure with its joints at other positions (J, 3) or, in a picture, (J, 2)."""
        return JointFigure(self.name, joints, self.is_known, self.bones, self.color)

    def known_joint_indices(self) -> np.ndarray:
        """Return the indices of the known joints with finite coordinates."""
        return np.flatnonzero(self.is_known & np.isfinite(self.joints).all(axis=1))

    def known_bones(self) -> list[tuple[int, int]]:
        """List the bones with two known ends."""
        known_joints = set(self.known_joint_indices().tolist())
        return [bone for bone in self.bones if known_joints.issuperset(bone)]

    def lines(self) -> Lines:
        """Return the ends of the known bones (E, 2, 3), and the colour."""
        bones = self.known_bones()
        return (self.joints[np.array(bones)] if bones else np.zeros((0, 2, 3))), self.color

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a page: known joints in order, and bones as pairs of indices into them."""
        known_joints = self.known_joint_indices().tolist()
        return {
            "name": self.name,
            "color": self.color.tolist(),
            "joints": [[round(float(value), 4) for value in self.joints[joint]] for joint in known_joints],
            "bones": [[known_joints.index(end) for end in bone] for bone in self.known_bones()],
        }


Plane = Literal["xy", "xz", "yz"]
PLANES: dict[Plane, tuple[int, int, int]] = {"xy": (0, 1, 2), "xz": (0, 2, 1), "yz": (2, 1, 0)}
"""Axes of each picture: that of its columns, that of its rows, and the one that it is projected along."""
_INK = np.array([[58, 66, 78]], dtype=np.uint8)
_VOLUME_PAPER = 252.0


@dataclass(frozen=True, eq=False)
class Volume:
    """Volume of values (X, Y, Z) in [0, 1]; `owners` (X, Y, Z) are each cell's index into the colours of `palette`.

    A cell is `cell` wide in the frame of the cloud that the volume belongs to, whose origin is the volume's corner.
    `is_y_up`: y points up in pictures.
    """

    values: np.ndarray
    owners: np.ndarray
    palette: np.ndarray
    cell: float = 1.0
    is_y_up: bool = field(default=True, kw_only=True)

    @classmethod
    def from_voxels(cls, values: np.ndarray, *, is_y_up: bool) -> Volume:
        """Make a volume of occupied voxels (X, Y, Z), in one colour."""
        return cls(values, np.zeros(values.shape, dtype=np.int64), _INK, is_y_up=is_y_up)

    @classmethod
    def from_heatmaps(cls, maps: np.ndarray, *, cell: float, is_y_up: bool) -> Volume:
        """Make the maximum over joints of heat maps (J, X, Y, Z); a cell is owned by the joint with its largest value.

        A map whose peak exceeds 1 is divided by it; values below 0 become 0.
        """
        peaks = np.maximum(maps.reshape(len(maps), -1).max(axis=1), 1.0)
        maps = (maps / peaks[:, None, None, None]).clip(0, 1)
        palette = PALETTE[np.arange(len(maps)) % len(PALETTE)]
        return cls(maps.max(axis=0), maps.argmax(axis=0), palette, cell, is_y_up=is_y_up)

    def cell_centres_above(self, above: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the centres (N, 3) float64 of cells with values > `above`, in the cloud's frame, and their owners."""
        indices = np.argwhere(self.values > above)
        return (indices + 0.5) * self.cell, self.owners[tuple(indices.T)]

    def projection(self, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        """Compute the maximum projection of a plane, (rows, columns), and the owners of its cells."""
        along = PLANES[plane][2]
        index = np.expand_dims(self.values.argmax(axis=along), along)
        flat = [np.take_along_axis(volume, index, axis=along).squeeze(along) for volume in (self.values, self.owners)]
        return self._to_rows(flat[0], plane), self._to_rows(flat[1], plane)

    def colors(self, values: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """Draw values and owners (H, W) as a picture (H, W, 3) uint8, from the paper's colour to the owner's."""
        share = values[..., None].astype(np.float64)
        return ((1 - share) * _VOLUME_PAPER + share * self.palette[owners]).round().astype(np.uint8)

    def to_pixels(self, points: np.ndarray, plane: Plane) -> np.ndarray:
        """Project points (P, 3) in the cloud's frame to columns and rows (P, 2), in cells from the upper left."""
        column_axis, row_axis, _ = PLANES[plane]
        columns, rows = points[:, column_axis] / self.cell, points[:, row_axis] / self.cell
        if self._is_flipped(row_axis):
            rows = self.values.shape[row_axis] - rows
        return np.stack([columns, rows], axis=1)

    def _to_rows(self, flat: np.ndarray, plane: Plane) -> np.ndarray:
        """Turn an array over the two remaining axes, in their order, into (rows, columns)."""
        column_axis, row_axis, _ = PLANES[plane]
        rows = flat.T if column_axis < row_axis else flat
        return rows[::-1] if self._is_flipped(row_axis) else rows

    def _is_flipped(self, axis: int) -> bool:
        """Return True if rows are counted from the bottom."""
        return axis == 2 or self.is_y_up


_SIDE_PX = 352
_PAPER, _OUTSIDE = (252, 252, 252), (222, 226, 231)
_NAMES: dict[Plane, str] = {"xy": "xy, front", "xz": "xz, from above", "yz": "yz, side"}

Window = tuple[int, int, int, int]
"""Left, top, right, bottom of a crop of an image, in pixels; right and bottom are excluded."""


@dataclass(frozen=True, eq=False)
class ImagePanel:
    """Picture (H, W, 3) uint8 with its name. Only a photo may lose a little where it is kept in few bytes."""

    name: str
    pixels: np.ndarray
    is_photo: bool = False


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
        return (project_points(points, camera)[:, :2] - (left, top) + 0.5) * scale

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
