"""Drawing of crowd scenes with NumPy: pixels, masks, and the exact boxes of people who occlude each other.

All random numbers come from one generator. Lengths are pixels, but for u and v, which count heights of a figure: v is
the distance below its crown, so 1 at its soles, and u the distance to the right of its middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

_MAX_PEOPLE = 40
_MEAN_PEOPLE = 13.0
_WIDTH = 0.41
"""Width of a figure in units of its height, as in CrowdHuman's full boxes."""
_IGNORED_SHARE = 0.35
_MARGIN = 0.1


@dataclass(frozen=True)
class Person:
    """Boxes of one figure in whole pixels (left, top, right, bottom), and its visible share of pixels.

    `full` includes parts outside the image and behind others, `visible` is None for a hidden figure.
    """

    full: tuple[int, int, int, int]
    visible: tuple[int, int, int, int] | None
    head: tuple[int, int, int, int]
    visibility: float


@dataclass(frozen=True)
class Scene:
    """Image (H, W, 3) uint8 with people; `owner` (H, W) is the index of the person at each pixel, -1 for none.

    `ignored` are regions with unlabelled people: distant crowds and printed figures.
    """

    image: np.ndarray
    owner: np.ndarray
    people: tuple[Person, ...]
    ignored: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class _Figure:
    """Position, size, pose and colours of a figure."""

    centre: float
    foot: float
    height: float
    width: float
    pose: np.ndarray
    colours: np.ndarray
    texture: np.ndarray


def draw_scene(generator: np.random.Generator, *, height: int, width: int) -> Scene:
    """Draw a scene of 1 to 40 people on the ground in front of a wall, with distractors.

    Nearer people are larger, lower in the image and occlude those behind; half of them start a row of companions.
    """
    horizon = height * generator.uniform(0.3, 0.45)
    image = _draw_background(generator, height, width, horizon)
    regions = _draw_ignored_regions(generator, image, horizon) if generator.random() < _IGNORED_SHARE else []
    figures = sorted(_draw_crowd(generator, height, width, horizon), key=lambda figure: figure.foot)
    owner = np.full((height, width), -1, dtype=np.int16)
    shapes = [_paint_figure(generator, image, owner, figure, number) for number, figure in enumerate(figures)]
    people = tuple(
        _make_person(owner == number, mask, head, corner) for number, (mask, head, corner) in enumerate(shapes)
    )
    return Scene(np.clip(image, 0, 255).round().astype(np.uint8), owner, people, tuple(regions))


def _draw_crowd(generator: np.random.Generator, height: int, width: int, horizon: float) -> list[_Figure]:
    """Draw at most 40 figures, unsorted."""
    num_people = int(np.clip(generator.negative_binomial(3, 3 / (3 + _MEAN_PEOPLE)), 1, _MAX_PEOPLE))
    figures: list[_Figure] = []
    while len(figures) < num_people:
        foot = horizon + (1.08 * height - horizon) * generator.beta(1.2, 1.8)
        leader = _draw_figure(
            generator, generator.uniform(0, width), foot, _draw_height(generator, foot, height, horizon)
        )
        figures.append(leader)
        if generator.random() < 0.5:
            centre, side = leader.centre, generator.choice((-1.0, 1.0))
            for _ in range(min(int(generator.integers(1, 6)), num_people - len(figures))):
                centre += side * generator.uniform(0.2, 0.9) * leader.width
                companion_foot = foot + 0.04 * leader.height * generator.standard_normal()
                figures.append(
                    _draw_figure(
                        generator,
                        centre,
                        companion_foot,
                        _draw_height(generator, max(companion_foot, horizon), height, horizon),
                    )
                )
    return figures


def _draw_height(generator: np.random.Generator, foot: float, height: int, horizon: float) -> float:
    """Draw the height in pixels of a person with feet at row `foot`: 16 at the horizon, more below it."""
    share = (foot - horizon) / (height - horizon)
    return float((16 + (0.40 * height - 16) * share**1.2) * np.exp(0.1 * generator.standard_normal()))


def _draw_figure(generator: np.random.Generator, centre: float, foot: float, height: float) -> _Figure:
    width = _WIDTH * height * float(np.clip(1 + 0.1 * generator.standard_normal(), 0.7, 1.3))
    colours = generator.uniform(0, 255, (4, 2, 3))
    return _Figure(centre, foot, height, width, generator.uniform(-1, 1, 6), colours, generator.integers(0, 4, 4))


def _iterate_part_masks(figure: _Figure, u: np.ndarray, v: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the masks of legs, arms, torso and head on the grid (u, v), from back to front."""
    stride, swing, lean = 0.05 * figure.pose[0], 0.05 * figure.pose[1:3], 0.03 * figure.pose[3]
    yield _capsule_mask(u, v, (-0.055, 0.5), (-0.07 - stride, 0.955), 0.045) | _capsule_mask(
        u, v, (0.055, 0.5), (0.07 + stride, 0.955), 0.045
    )
    yield _capsule_mask(u, v, (-0.13 + lean, 0.19), (-0.165 - swing[0], 0.5), 0.033) | _capsule_mask(
        u, v, (0.13 + lean, 0.19), (0.165 + swing[1], 0.5), 0.033
    )
    across, down = np.abs(u - lean) - (0.14 - 0.04), np.abs(v - 0.34) - (0.19 - 0.04)
    yield np.hypot(np.maximum(across, 0), np.maximum(down, 0)) <= 0.04
    yield ((u - 1.5 * lean) / 0.055) ** 2 + ((v - 0.075) / 0.075) ** 2 <= 1


def _capsule_mask(
    u: np.ndarray, v: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: float
) -> np.ndarray:
    """Mask of grid points within `radius` of a segment."""
    along = np.array([end[0] - start[0], end[1] - start[1]])
    share = np.clip(((u - start[0]) * along[0] + (v - start[1]) * along[1]) / (along @ along), 0, 1)
    mask: np.ndarray = np.hypot(u - start[0] - share * along[0], v - start[1] - share * along[1]) <= radius
    return mask


def _paint_figure(
    generator: np.random.Generator, image: np.ndarray, owner: np.ndarray, figure: _Figure, number: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Draw a figure over the image; return masks of figure and head on its own grid, and the grid's corner."""
    left, top = int(np.floor(figure.centre - figure.width)), int(np.floor(figure.foot - (1 + _MARGIN) * figure.height))
    columns = np.arange(left, int(np.ceil(figure.centre + figure.width)))
    rows = np.arange(top, int(np.ceil(figure.foot + _MARGIN * figure.height)))
    scale = figure.width / _WIDTH
    u, v = np.meshgrid((columns + 0.5 - figure.centre) / scale, (rows + 0.5 - figure.foot) / figure.height + 1)
    masks = list(_iterate_part_masks(figure, u, v))
    if not masks[-1].any():  # a head of less than a pixel
        masks[-1][np.abs(v[:, 0] - 0.075).argmin(), len(columns) // 2] = True
    figure_mask = np.logical_or.reduce(masks)
    corner = np.array([top, left])
    start = np.clip(-corner, 0, figure_mask.shape)
    stop = np.clip(image.shape[:2] - corner, start, figure_mask.shape)
    if (stop > start).all():
        grid_slices = tuple(map(slice, start, stop))
        image_slices = tuple(map(slice, start + corner, stop + corner))
        shade = 1.1 - 0.35 * v[grid_slices]
        for part, mask in enumerate(masks):
            part_mask = mask[grid_slices]
            colour = _draw_texture(
                generator, int(figure.texture[part]), figure.colours[part], u[grid_slices], v[grid_slices]
            )
            image[image_slices][part_mask] = (colour * shade[..., None])[part_mask]
        owner[image_slices][figure_mask[grid_slices]] = number
    return figure_mask, masks[-1], (top, left)


def _draw_texture(
    generator: np.random.Generator, kind: int, colours: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Draw a texture (H, W, 3) of two colours: flat, stripes, checks or noise."""
    if kind == 0:
        share = np.zeros_like(u)
    elif kind == 1:
        share = (np.floor(v * 40) % 2).astype(float)
    elif kind == 2:
        share = ((np.floor(v * 30) + np.floor(u * 30)) % 2).astype(float)
    else:
        share = generator.random((12, 12))[(np.floor(v * 24) % 12).astype(int), (np.floor(u * 24) % 12).astype(int)]
    blended: np.ndarray = colours[0] + share[..., None] * (colours[1] - colours[0])
    return blended


def _make_person(visible_mask: np.ndarray, mask: np.ndarray, head: np.ndarray, corner: tuple[int, int]) -> Person:
    visible = _mask_to_box(visible_mask, (0, 0)) if visible_mask.any() else None
    full, head_box = _mask_to_box(mask, corner), _mask_to_box(head, corner)
    return Person(full, visible, head_box, float(visible_mask.sum() / mask.sum()))


def _mask_to_box(mask: np.ndarray, corner: tuple[int, int]) -> tuple[int, int, int, int]:
    """Compute the box (xyxy) of a mask whose upper left pixel is at `corner` (row, column)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        int(columns[0]) + corner[1],
        int(rows[0]) + corner[0],
        int(columns[-1]) + 1 + corner[1],
        int(rows[-1]) + 1 + corner[0],
    )


def _draw_background(generator: np.random.Generator, height: int, width: int, horizon: float) -> np.ndarray:
    """Draw a wall of smooth noise above the ground, and 5 to 15 distractors: (H, W, 3)."""
    noise = torch.from_numpy(generator.normal(128, 45, (1, 3, 8, 8)))
    smooth = functional.interpolate(noise, size=(height, width), mode="bicubic", align_corners=False)
    image = smooth[0].permute(1, 2, 0).numpy().copy()
    below = np.clip((np.arange(height) + 0.5 - horizon) / (height - horizon), 0, 1)[:, None, None]
    ground = generator.uniform(60, 180, 3) + below * generator.uniform(-40, 60)
    image = np.where(below > 0, 0.35 * image + 0.65 * ground, image)
    row, column = np.mgrid[:height, :width]
    for _ in range(int(generator.integers(5, 16))):
        kind, colour = int(generator.integers(4)), generator.uniform(0, 255, 3)
        x, size = generator.uniform(0, width), generator.uniform(0.03, 0.15) * height
        y = horizon + generator.uniform(-0.2, 0.5) * height
        if kind == 0:  # a pole
            shape = (np.abs(column - x) < 0.1 * size + 1) & (row < y) & (row > y - 4 * size)
        elif kind == 1:  # a box
            shape = (np.abs(column - x) < size) & (np.abs(row - y) < 0.7 * size)
        elif kind == 2:  # a disc
            shape = np.hypot(column - x, row - y) < 0.6 * size
        else:  # a striped bin
            shape = (np.abs(column - x) < 0.5 * size) & (np.abs(row - y) < 0.8 * size) & (row // 3 % 2 == 0)
        image[shape] = colour
    return image


def _draw_ignored_regions(
    generator: np.random.Generator, image: np.ndarray, horizon: float
) -> list[tuple[int, int, int, int]]:
    """Draw 1 to 3 ignored regions into the image: distant crowds of tiny figures, or posters with printed figures."""
    height, width = image.shape[:2]
    regions = []
    for _ in range(int(generator.integers(1, 4))):
        region_owner = np.full(image.shape[:2], -1, dtype=np.int16)
        x = generator.uniform(0, width)
        if generator.random() < 0.5:
            for number in range(int(generator.integers(20, 61))):
                foot = horizon + generator.uniform(0, 0.05) * height
                tall = generator.uniform(6, 12)
                centre = x + generator.normal(0, 0.06 * width)
                _paint_figure(generator, image, region_owner, _draw_figure(generator, centre, foot, tall), number)
        else:
            tall, wide = generator.uniform(0.15, 0.3) * height, generator.uniform(0.08, 0.2) * width
            y = horizon - generator.uniform(0, 0.1) * height
            top, bottom, left, right = int(max(y - tall, 0)), int(max(y, 2)), int(max(x - wide, 0)), int(x + 1)
            image[top:bottom, left:right] = generator.uniform(150, 255, 3)
            region_owner[top:bottom, left:right] = 0
            poster = image[top:bottom, left:right]
            for number in range(int(generator.integers(1, 4))):
                printed = _draw_figure(
                    generator, generator.uniform(0, right - left), 0.95 * (bottom - top), 0.8 * (bottom - top)
                )
                _paint_figure(generator, poster, np.zeros(poster.shape[:2], dtype=np.int16), printed, number)
        if (region_owner >= 0).any():
            regions.append(_mask_to_box(region_owner >= 0, (0, 0)))
    return regions
