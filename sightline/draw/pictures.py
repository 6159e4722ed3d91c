"""Pictures: type, encoding, and rendering of point clouds with NumPy and Pillow alone."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from sightline.contract.errors import escape_to_one_line

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

Axis = Literal["x", "y", "z"]
Frame = Literal["x", "y", "z", "camera_y_up", "camera_y_down"]
"""Frame of a cloud: its up axis, or a camera frame whose z points away and whose y points up or down."""

PALETTE = np.frombuffer(
    bytes.fromhex(
        "3b82c4 f2883b 3fa66b d9534f 8e6cc0 2ab3b8 e0679f b08a3e 7f8c99 a3b82e"
        "364a18 2c22ae 861854 e0b8ea 40eab8 905418 4a547c 7c22ae 187c18 b82c90"
        "eac286 4a54e0 90a4ea b81822 90d6ea cc68ea 187c7c 905472 cc9aa4 5e3636"
        "a4e022 18cc72 542c7c 727c40 9ac29a e090ea 18a4ea ae7272 1854ae 5e5e18"
        "e0cc2c ae4acc 6854ae ae86c2 2c5e54 189a18 861818 869a18 d6a418 7286ea"
    ),
    dtype=np.uint8,
).reshape(50, 3)
"""Palette of 50 distinct colours (50, 3) uint8: ten chosen by eye, then each the farthest from all others in Oklab."""
UNLABELLED = np.array([176, 182, 190], dtype=np.uint8)
"""The grey of points without a label."""
_COLORMAP = np.array([(52, 58, 120), (38, 120, 160), (60, 170, 120), (190, 200, 80), (245, 225, 140)], dtype=np.float64)
"""Stops of the colormap, from low to high."""

_AXES: dict[Frame, tuple[int, int, int]] = {  # right-handed once signed, upward last
    "x": (1, 2, 0),
    "y": (2, 0, 1),
    "z": (0, 1, 2),
    "camera_y_up": (2, 0, 1),
    "camera_y_down": (2, 0, 1),
}
_SIGNS: dict[Frame, tuple[int, int, int]] = {"camera_y_up": (-1, 1, 1), "camera_y_down": (-1, 1, -1)}
_LIGHT = np.array([-0.45, 0.65, 0.62]) / math.sqrt(0.45**2 + 0.65**2 + 0.62**2)  # right, up, towards the viewer
PAGE, _CARD_TOP, _CARD_BOTTOM = (233, 237, 242), (255, 255, 255), (243, 246, 250)
INK, _RIGHT, _WRONG = (58, 66, 78), (22, 128, 76), (200, 48, 42)


_AZIMUTH_DEG, _ELEVATION_DEG = 35.0, 24.0
"""Direction of the viewer of a cloud, in a frame whose z is up."""


class Lines(NamedTuple):
    """Line segments: ends (S, 2, 3), and their colour (3,) uint8; thinner without dots at the ends, or hollow dots."""

    ends: np.ndarray
    color: np.ndarray
    has_dots: bool = True
    is_hollow: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Picture to show: `pixels` (H, W, 3) uint8 RGB, a name that stays the same over a run, and a caption.

    A picture that `is_drawing`, with fine lines, takes the full width of a page and loses nothing where it is kept.
    """

    name: str
    pixels: np.ndarray
    caption: str = ""
    is_drawing: bool = False

    def __post_init__(self) -> None:
        assert self.pixels.dtype == np.uint8, f"picture '{self.name}': {self.pixels.dtype}, must be uint8"
        assert self.pixels.ndim == 3, f"picture '{self.name}': shape {self.pixels.shape}"
        assert self.pixels.shape[2] == 3, f"picture '{self.name}': shape {self.pixels.shape}"


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 pixels as the bytes of a PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=4)  # 4 % larger than by 6, in 60 % of its time
    return stream.getvalue()


def pad_to_3d(points: np.ndarray) -> np.ndarray:
    """Pad points (N, D) to (N, 3): missing coordinates are zero, further columns are dropped."""
    return np.pad(points[:, :3], ((0, 0), (0, max(0, 3 - points.shape[1]))))


def normalize_to_uint8(values: np.ndarray) -> np.ndarray:
    """Normalise numbers to uint8, the lowest to 0 and the highest to 255; all 0 if they are equal."""
    low, high = values.min(), values.max()
    scaled = (values - low) / max(high - low, np.finfo(np.float32).tiny)
    return (scaled * 255).round().astype(np.uint8)


def label_colors(labels: np.ndarray) -> np.ndarray:
    """Return a colour of `PALETTE` for each label, (..., 3) uint8; negative labels are grey, the palette repeats."""
    return np.where((labels < 0)[..., None], UNLABELLED, PALETTE[labels % len(PALETTE)])


def apply_colormap(values: np.ndarray) -> np.ndarray:
    """Map numbers (N,) to colours (N, 3) uint8, from low to high.

    Equal numbers get the middle of the colormap, those that are not finite are grey.
    """
    is_finite = np.isfinite(values)
    finite = values[is_finite].astype(np.float64)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    share = np.full(len(values), 0.5)
    if high > low:
        share[is_finite] = (finite - low) / (high - low)
    stops = np.linspace(0, 1, len(_COLORMAP))
    color = np.stack([np.interp(share, stops, channel) for channel in _COLORMAP.T], axis=1).round().astype(np.uint8)
    color[~is_finite] = UNLABELLED
    return color


def render_clouds(
    clouds: Sequence[np.ndarray | None],
    *,
    captions: Sequence[str] = (),
    is_right: Sequence[bool | None] = (),
    colors: Sequence[np.ndarray | None] | None = None,
    lines: Sequence[Sequence[Lines]] = (),
    up_axis: Frame = "z",
    columns: int | None = None,
    tile_px: int = 220,
    azimuth_deg: float = _AZIMUTH_DEG,
    elevation_deg: float = _ELEVATION_DEG,
) -> np.ndarray:
    """Render clouds, each on a card, in a parallel three-quarter view: a sheet (H, W, 3) uint8 RGB.

    The result is deterministic. Each cloud (N, 3) fills its card, regardless of its unit; points that are not
    finite are left out. `colors` holds one (3,) or (N, 3) uint8 array per cloud; without it each cloud takes the next
    colour of `PALETTE`. `lines` are drawn over the points of their cloud. Instead of a cloud, a picture
    (H, W, 3) uint8 may be given, which is fitted into its card; a small one is enlarged by pixel. None leaves a gap.
    Captions are drawn below; they are green where `is_right` is True and red where it is False.
    Raises ValueError for arrays of another shape, and for a list without one entry per cloud.
    Source: the darkening of edges follows Boucheny 2009 (eye-dome lighting), with depth in place of its logarithm.
    """
    for name, entries in (("captions", captions), ("is_right", is_right), ("colors", colors), ("lines", lines)):
        if entries and len(entries) != len(clouds):
            raise ValueError(f"{name}: {len(entries)} entries for {len(clouds)} clouds; give one for each")
    if not clouds:
        raise ValueError("clouds: none given; there is nothing to draw")
    columns = min(columns or math.ceil(math.sqrt(1.6 * len(clouds))), len(clouds))
    gap_px = max(4, tile_px // 22)
    strip_px = round(0.14 * tile_px) if any(captions) else 0
    card = _make_card(tile_px, tile_px + strip_px, tile_px)
    view = _make_view_axes(azimuth_deg, elevation_deg)
    rows = math.ceil(len(clouds) / columns)
    step_px = np.array([tile_px + strip_px + gap_px, tile_px + gap_px])
    sheet = np.full((*(step_px * (rows, columns) + gap_px), 3), PAGE, dtype=np.uint8)
    for index, cloud in enumerate(clouds):
        if cloud is None:
            continue
        top_px, left_px = gap_px + step_px * divmod(index, columns)
        tile = card.copy()
        if cloud.ndim == 3:
            _put_picture(tile[:tile_px], cloud, 0.1 * tile_px)
        else:
            given_color = None if colors is None else colors[index]
            points, color = _keep_finite(
                cloud, PALETTE[index % len(PALETTE)] if given_color is None else given_color, index
            )
            drawn_lines = [
                each._replace(ends=_to_view(each.ends, up_axis, view))
                for each in (Lines(*entry) for entry in (lines[index] if lines else ()))
                if len(each.ends)
            ]
            if len(points) or drawn_lines:
                tile[:tile_px] = _draw_cloud(tile[:tile_px], _to_view(points, up_axis, view), color, drawn_lines, view)
        tile = tile.round().astype(np.uint8)
        if strip_px:
            verdict = is_right[index] if is_right else None
            _write_caption(tile, captions[index], verdict, strip_px)
        sheet[top_px : top_px + tile.shape[0], left_px : left_px + tile_px] = tile
    return sheet


def render_strips(strips: Sequence[tuple[np.ndarray, str]], *, width: int, tile_px: int = 220) -> np.ndarray:
    """Render wide pictures (H, W, 3) uint8, each with its caption on a card of its own: a sheet (H, `width`, 3) uint8.

    Margins and captions are as large as those of `render_clouds` with the same `tile_px`.
    """
    gap_px, strip_px, margin_px = max(4, tile_px // 22), round(0.14 * tile_px), 0.1 * tile_px
    room_px = width - 2 * gap_px
    faces_px = [round((room_px - margin_px) * len(pixels) / pixels.shape[1] + margin_px) for pixels, _ in strips]
    sheet = np.full((sum(faces_px) + len(faces_px) * (strip_px + gap_px) + gap_px, width, 3), PAGE, dtype=np.uint8)
    top_px = gap_px
    for (picture, caption), face_px in zip(strips, faces_px, strict=True):
        tile = _make_card(room_px, face_px + strip_px, tile_px).copy()
        _put_picture(tile[:face_px], picture, margin_px)
        tile = tile.round().astype(np.uint8)
        _write_caption(tile, caption, None, strip_px)
        sheet[top_px : top_px + len(tile), gap_px : gap_px + room_px] = tile
        top_px += len(tile) + gap_px
    return sheet


def _keep_finite(cloud: np.ndarray, color: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite points (N, 3) float64 and their colours (N, 3) float32. Raises ValueError for other shapes."""
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise ValueError(f"clouds[{index}]: shape {cloud.shape}; a cloud is (N, 3)")
    if color.shape not in ((3,), cloud.shape):
        raise ValueError(f"colors[{index}]: shape {color.shape}; must be (3,) or {cloud.shape}")
    is_finite = np.isfinite(cloud).all(axis=1)
    return cloud[is_finite].astype(np.float64), np.broadcast_to(color, cloud.shape)[is_finite].astype(np.float32)


def _make_view_axes(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Return the view's axes (3, 3) as rows: right, up and towards the viewer, in a frame whose z is up."""
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    towards = np.array([*(math.cos(elevation) * np.array([math.cos(azimuth), math.sin(azimuth)])), math.sin(elevation)])
    return np.stack([right, np.cross(towards, right), towards])


def view_direction() -> np.ndarray:
    """Return the direction (3,) from a cloud to its viewer, by default, in a frame whose z is up."""
    return _make_view_axes(_AZIMUTH_DEG, _ELEVATION_DEG)[2]


def upright_points(points: np.ndarray, frame: Frame) -> np.ndarray:
    """Transform points (..., 3) of a frame to the one of the view's direction, whose z is up."""
    upright: np.ndarray = points[..., _AXES[frame]] * np.array(_SIGNS.get(frame, (1, 1, 1)))
    return upright


def _to_view(points: np.ndarray, frame: Frame, view: np.ndarray) -> np.ndarray:
    """Transform points (..., 3) of a frame to the axes of the view."""
    points_in_view: np.ndarray = upright_points(points, frame) @ view.T
    return points_in_view


def _draw_cloud(
    card: np.ndarray, seen_N3: np.ndarray, color_N3: np.ndarray, lines: Sequence[Lines], view: np.ndarray
) -> np.ndarray:
    """Draw shadow, points and lines on a card (T, T, 3) float32.

    All are given along the axes of the view.
    """
    every = np.concatenate([seen_N3, *(each.ends.reshape(-1, 3) for each in lines)])
    low, high = every.min(axis=0), every.max(axis=0)
    half = max(float((high - low)[:2].max()) / 2, 1e-12)
    middle = (low + high) / 2  # fits [-1, 1]; the same scale along all three axes
    size = len(card)
    if len(seen_N3):
        seen_N3 = (seen_N3 - middle) / half
        shaded = card * (1 - _draw_shadow(seen_N3, view, size)[..., None])
        radius = float(np.clip(0.62 / math.sqrt(len(seen_N3)), 0.003, 0.035))
        color, cover = _draw_points(seen_N3, color_N3, radius, 2 * size)
        card = color + (1 - cover[..., None]) * shaded
    return _draw_lines(card, [each._replace(ends=(each.ends - middle) / half) for each in lines])


def _draw_lines(card: np.ndarray, lines: Sequence[Lines]) -> np.ndarray:
    """Draw line segments on top of a card, thick ones with dots at their ends."""
    from PIL import Image, ImageDraw

    if not lines:
        return card
    size = len(card)
    image = Image.fromarray(card.round().astype(np.uint8)).resize((2 * size, 2 * size), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for ends, color, has_dots, is_hollow in lines:
        thick = max(2, size // (90 if has_dots else 200))
        column, row = _to_pixels(ends.reshape(-1, 3), 2 * size)
        positions = np.stack([column, row], axis=1).reshape(-1, 4)
        for segment in positions.tolist():
            draw.line(segment, fill=tuple(color.tolist()), width=thick)
        for x, y in positions.reshape(-1, 2).tolist() if has_dots else ():
            draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=tuple(color.tolist()))
            if is_hollow:
                inner = thick / 2
                draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=_CARD_TOP)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)


def _put_picture(face: np.ndarray, picture: np.ndarray, margin: float) -> None:
    """Put a picture into the middle of a card's face (H, W, 3), as large as fits; `margin` is of both sides."""
    from PIL import Image

    scale = min(round(side - margin) / length for side, length in zip(face.shape[:2], picture.shape[:2], strict=True))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    width, height = (max(1, round(scale * length)) for length in picture.shape[1::-1])
    fitted = np.asarray(Image.fromarray(picture).resize((width, height), resampling))
    top_px, left_px = ((side - length) // 2 for side, length in zip(face.shape[:2], (height, width), strict=True))
    face[top_px : top_px + height, left_px : left_px + width] = fitted


def _draw_shadow(seen_N3: np.ndarray, view: np.ndarray, size: int) -> np.ndarray:
    """Compute the shadow (T, T), 0 to 0.22: the points projected straight down onto the floor, blurred."""
    up = view[:, 2]
    height_N = seen_N3 @ up
    dropped_N3 = seen_N3 - (height_N - height_N.min())[:, None] * up
    column, row = _to_pixels(dropped_N3, size)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    share = np.bincount(row[inside] * size + column[inside], minlength=size * size) * (size * size / len(seen_N3))
    density = share.reshape(size, size).astype(np.float32)
    for reach in (size // 28, size // 40, size // 64):
        density = _box_blur(_box_blur(density, reach).T, reach).T
    fade = np.clip((size - np.arange(size)) / (0.12 * size), 0, 1)[:, None]  # none is cut off by the caption
    return (0.22 * fade * (1 - np.exp(-0.45 * density))).astype(np.float32)


def _box_blur(image: np.ndarray, reach: int) -> np.ndarray:
    """Average each pixel and `reach` pixels to either side along the rows; outside the image all is zero."""
    total = np.cumsum(np.pad(image, ((0, 0), (reach + 1, reach))), axis=1)
    return (total[:, 2 * reach + 1 :] - total[:, : -2 * reach - 1]) / (2 * reach + 1)


def _to_pixels(seen_N3: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return column and row of each point: [-1, 1] fills the middle 78 % of the card, slightly above the centre."""
    scale = 0.39 * size
    column = np.rint(size / 2 + scale * seen_N3[:, 0]).astype(np.int64)
    return column, np.rint(0.475 * size - scale * seen_N3[:, 1]).astype(np.int64)


def _draw_points(seen_N3: np.ndarray, color_N3: np.ndarray, radius: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw points as lit balls, nearest on top: premultiplied colour (T, T, 3) and cover (T, T), T = size / 2.

    `radius` is a share of the card. At each pixel the ball with the nearest centre wins, then the shade is found once.
    """
    order = np.argsort(seen_N3[:, 2], kind="stable")  # far to near
    seen_N3, color_N3 = seen_N3[order], color_N3[order]
    offset_K2, light_K, height_K = _make_ball(max(1, round(radius * size)))
    column, row = _to_pixels(seen_N3, size)
    winner = np.full(size * size, -1, dtype=np.int64)
    pixel = (row * size + column)[:, None] + offset_K2 @ np.array([1, size])  # inside: centres and radius leave a rim
    winner[pixel.ravel()] = np.arange(pixel.size)  # of several the last, which is the nearest
    hit = np.flatnonzero(winner >= 0)
    point, part = np.divmod(winner[hit], len(offset_K2))
    depth = np.full(size * size, -4.0, dtype=np.float32)
    depth[hit] = seen_N3[point, 2] + 2.5 * radius * height_K[part]
    nearness = np.interp(seen_N3[point, 2], (seen_N3[0, 2], seen_N3[-1, 2] + 1e-9), (0.0, 1.0)).astype(np.float32)
    bright = (light_K[part] * (0.80 + 0.20 * nearness) * _edge_darkening(depth.reshape(size, size), hit))[:, None]
    haze = (0.34 * (1 - nearness))[:, None]
    glint = 34 * np.maximum(light_K[part] - 0.98, 0)[:, None] / 0.2
    image = np.zeros((size, size, 4), dtype=np.float32)
    color = np.minimum((1 - haze) * (color_N3[point] * bright + glint) + haze * 240.0, 255)
    image.reshape(-1, 4)[hit] = np.concatenate([color, np.ones_like(haze)], axis=1)
    small = image[0::2, 0::2] + image[1::2, 0::2]
    for columns in (image[0::2, 1::2], image[1::2, 1::2]):
        small += columns
    small /= 4
    return small[..., :3], small[..., 3]


@functools.lru_cache(maxsize=16)
def _make_ball(radius_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a ball's pixels: offsets (K, 2), brightness (K,) under the light, height (K,) over its centre, 0 to 1."""
    reach = np.arange(-radius_px, radius_px + 1)
    offset_K2 = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
    offset_K2 = offset_K2[(offset_K2**2).sum(axis=1) <= (radius_px + 0.3) ** 2]
    flat_K2 = offset_K2 / (radius_px + 0.5)
    height_K = np.sqrt(1 - (flat_K2**2).sum(axis=1))
    facing_K = np.column_stack([flat_K2 * (1, -1), height_K]) @ _LIGHT
    return offset_K2, (0.66 + 0.52 * np.maximum(facing_K, 0)).astype(np.float32), height_K.astype(np.float32)


def _edge_darkening(depth: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Compute the eye-dome factor of each pixel in `hit`, 1 to 0.45: darker the farther it is behind its neighbours."""
    size = len(depth)
    reach = max(2, size // 110)
    padded = np.pad(depth, reach, constant_values=-4.0).ravel()
    width = size + 2 * reach
    pixel = (hit // size + reach) * width + hit % size + reach
    pixel_depth = padded[pixel]
    behind = np.zeros_like(pixel_depth)
    for right, down in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)):
        around = padded[pixel + round(down * reach) * width + round(right * reach)]
        behind += np.clip(around - pixel_depth, 0, 0.5)
    return np.maximum(np.exp(-0.55 * behind), 0.45)


@functools.lru_cache(maxsize=16)
def _make_card(width: int, height: int, tile_px: int) -> np.ndarray:
    """Draw an empty card (H, W, 3) float32 on the page's colour: a soft gradient, and the round corners of a tile."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (4 * width, 4 * height), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), radius=4 * tile_px // 18, fill=255)
    inside = np.asarray(mask.resize((width, height), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255
    slope = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    face = (1 - slope) * np.array(_CARD_TOP, np.float32) + slope * np.array(_CARD_BOTTOM, np.float32)
    return (inside * face + (1 - inside) * np.array(PAGE, np.float32)).astype(np.float32)


def _write_caption(tile: np.ndarray, text: str, is_right: bool | None, strip_px: int) -> None:
    """Write a line into the lowest `strip_px` rows of a tile, after a tick or a cross if there is a verdict."""
    from PIL import Image, ImageDraw

    strip = Image.fromarray(tile[-strip_px:]).resize((2 * tile.shape[1], 2 * strip_px), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(strip)
    ink = INK if is_right is None else _RIGHT if is_right else _WRONG
    mark_px = 0 if is_right is None else round(0.80 * strip_px)
    text, font = fit_text(draw, text, 0.92 * strip.width - mark_px, size_px=round(1.06 * strip_px))
    left_px = (strip.width - draw.textlength(text, font) - mark_px) / 2
    middle = 0.80 * strip_px
    draw.text((left_px + mark_px, middle), text, fill=ink, font=font, anchor="lm")
    if is_right is not None:
        arm = 0.26 * strip_px
        x, y, thick = left_px + arm, middle, max(2, round(0.14 * strip_px))
        tick = [(x - arm, y), (x - 0.3 * arm, y + 0.8 * arm), (x + 1.2 * arm, y - arm)]
        cross = [[(x - arm, y - arm), (x + arm, y + arm)], [(x - arm, y + arm), (x + arm, y - arm)]]
        for line in [tick] if is_right else cross:
            draw.line(line, fill=ink, width=thick, joint="curve")
    tile[-strip_px:] = np.asarray(strip.resize((tile.shape[1], strip_px), Image.Resampling.BOX))


def draw_legend(
    entries: Sequence[tuple[str, np.ndarray | tuple[int, ...]]], width: int, *, line_px: int = 24
) -> np.ndarray:
    """Draw a legend (H, width, 3) uint8: a swatch and the text of each entry, in as many rows as needed."""
    from PIL import Image, ImageDraw, ImageFont

    if not entries:
        return np.zeros((0, width, 3), dtype=np.uint8)
    font = ImageFont.load_default(0.62 * line_px)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin_px = round(0.66 * line_px)
    slots, left_px, row = [], margin_px, 0
    for text, color in ((escape_to_one_line(name), color) for name, color in entries):
        needed = round(measure.textlength(text, font)) + 2 * line_px
        if left_px > margin_px and left_px + needed > width:
            left_px, row = margin_px, row + 1
        slots.append((left_px, line_px * row, text, color))
        left_px += needed
    image = Image.new("RGB", (width, margin_px + line_px * (row + 1)), PAGE)
    draw = ImageDraw.Draw(image)
    side_px = round(0.58 * line_px)
    for left_px, top_px, text, color in slots:
        top_px += round(0.2 * line_px)
        draw.rounded_rectangle(
            (left_px, top_px, left_px + side_px, top_px + side_px), 3, tuple(map(int, color)), outline=INK
        )
        draw.text((left_px + 1.4 * side_px, top_px + side_px / 2), text, fill=INK, font=font, anchor="lm")
    return np.asarray(image)


def with_legend(pixels: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draw a legend of the classes among the labels below a picture (H, W, 3) uint8, coloured as by `label_colors`.

    A class without a name is called by its number; negative labels are `unlabelled`.
    """
    entries: list[tuple[str, np.ndarray | tuple[int, ...]]] = [
        (class_names[label] if label < len(class_names) else str(label), label_colors(np.array(label)))
        for label in np.unique(labels[labels >= 0]).tolist()
    ]
    entries += [("unlabelled", UNLABELLED)] if (labels < 0).any() else []
    return np.concatenate([pixels, draw_legend(entries, pixels.shape[1])])


def fit_text(
    draw: ImageDraw.ImageDraw, text: str, width: float, *, size_px: int
) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Fit a text to a width: return it and its font, smaller by up to two fifths, then cut with dots."""
    from PIL import ImageFont

    text = escape_to_one_line(text)
    font = ImageFont.load_default(size_px)
    length = draw.textlength(text, font)
    if length > width:
        font = ImageFont.load_default(max(0.6 * size_px, 0.97 * size_px * width / length))  # widths grow in steps
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text.rstrip(".")[:-1].rstrip() + "..."
    return text, font
