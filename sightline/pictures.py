"""Pictures for people: what an observer shows, and point clouds drawn with NumPy and Pillow alone."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.aliases import old_names
from sightline.errors import escape_to_one_line

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

__all__ = [
    "INK",
    "PAGE",
    "PALETTE",
    "UNLABELLED",
    "Axis",
    "Frame",
    "Lines",
    "Picture",
    "apply_colormap",
    "draw_legend",
    "encode_png",
    "fit_text",
    "label_colors",
    "normalize_to_uint8",
    "pad_to_3d",
    "render_clouds",
    "with_legend",
]

Axis = Literal["x", "y", "z"]
Frame = Literal["x", "y", "z", "camera_y_up", "camera_y_down"]
"""How a cloud stands: by its axis that is up, or seen by a camera whose z points away and whose y up or down."""
Lines = tuple[np.ndarray, np.ndarray]
"""The ends (S, 2, 3) of straight lines, and their colour (3,) uint8."""

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
"""50 distinct colours (50, 3) uint8: ten chosen by eye, each next one the farthest from all before it in Oklab."""
UNLABELLED = np.array([176, 182, 190], dtype=np.uint8)
"""The grey of points without a label."""
_RAMP = np.array([(52, 58, 120), (38, 120, 160), (60, 170, 120), (190, 200, 80), (245, 225, 140)], dtype=np.float64)
"""From low to high."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture to show: `pixels` (H, W, 3) uint8 RGB, a name that stays the same over a run, and a line of text."""

    name: str
    pixels: np.ndarray
    caption: str = ""

    def __post_init__(self) -> None:
        assert self.pixels.dtype == np.uint8, f"picture '{self.name}': {self.pixels.dtype}, must be uint8"
        assert self.pixels.ndim == 3, f"picture '{self.name}': shape {self.pixels.shape}"
        assert self.pixels.shape[2] == 3, f"picture '{self.name}': shape {self.pixels.shape}"


def encode_png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG file of (H, W, 3) uint8 pixels."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def pad_to_3d(points: np.ndarray) -> np.ndarray:
    """Points (N, D) as (N, 3): what is missing of x, y, z is zero, what comes after is left out."""
    return np.pad(points[:, :3], ((0, 0), (0, max(0, 3 - points.shape[1]))))


def normalize_to_uint8(values: np.ndarray) -> np.ndarray:
    """Numbers of any range as uint8, the lowest 0 and the highest 255; all 0 where they are equal."""
    low, high = values.min(), values.max()
    scaled = (values - low) / max(high - low, np.finfo(np.float32).tiny)
    return (scaled * 255).round().astype(np.uint8)


def label_colors(labels: np.ndarray) -> np.ndarray:
    """A colour of `PALETTE` for each label, (..., 3) uint8; negative labels are grey, the palette repeats after 50."""
    return np.where((labels < 0)[..., None], UNLABELLED, PALETTE[labels % len(PALETTE)])


def apply_colormap(values: np.ndarray) -> np.ndarray:
    """A colour (N, 3) uint8 for each number (N,), from low to high.

    The middle of the ramp where all are equal, grey where one is not finite.
    """
    is_finite = np.isfinite(values)
    finite = values[is_finite].astype(np.float64)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    share = np.full(len(values), 0.5)
    if high > low:
        share[is_finite] = (finite - low) / (high - low)
    stops = np.linspace(0, 1, len(_RAMP))
    color = np.stack([np.interp(share, stops, channel) for channel in _RAMP.T], axis=1).round().astype(np.uint8)
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
    azimuth_deg: float = 35.0,
    elevation_deg: float = 24.0,
) -> np.ndarray:
    """A sheet of clouds, each on its own card, seen in parallel projection from three quarters: (H, W, 3) uint8 RGB.

    The same arguments give the same bits. Each cloud (N, 3) fills its card, whatever its unit; points that are not
    finite are left out. `colors` holds one (3,) or (N, 3) uint8 array per cloud; without it each cloud takes the next
    colour of `PALETTE`. `lines` are drawn over the points of their cloud. In place of a cloud may stand a picture
    (H, W, 3) uint8, which is fitted into its card; a small one is enlarged pixel by pixel. None leaves its place empty.
    Captions stand below; they are green where `is_right` is True and red where it is False.
    Raises ValueError for arrays of another shape, and where a list has not one entry per cloud.
    Source: the darkening of edges follows Boucheny 2009 (eye-dome lighting), with depth in place of its logarithm.
    """
    for name, given in (("captions", captions), ("is_right", is_right), ("colors", colors), ("lines", lines)):
        if given and len(given) != len(clouds):
            raise ValueError(f"{name}: {len(given)} entries for {len(clouds)} clouds; give one for each")
    if not clouds:
        raise ValueError("clouds: none given; there is nothing to draw")
    columns = min(columns or math.ceil(math.sqrt(1.6 * len(clouds))), len(clouds))
    gap_px = max(4, tile_px // 22)
    strip_px = round(0.14 * tile_px) if any(captions) else 0
    card = _card(tile_px, tile_px + strip_px)
    view = _view(azimuth_deg, elevation_deg)
    rows = math.ceil(len(clouds) / columns)
    step_px = np.array([tile_px + strip_px + gap_px, tile_px + gap_px])
    sheet = np.full((*(step_px * (rows, columns) + gap_px), 3), PAGE, dtype=np.uint8)
    for index, cloud in enumerate(clouds):
        if cloud is None:
            continue
        top, left = gap_px + step_px * divmod(index, columns)
        tile = card.copy()
        if cloud.ndim == 3:
            _put_picture(tile[:tile_px], cloud)
        else:
            own = None if colors is None else colors[index]
            points, color = _checked(cloud, PALETTE[index % len(PALETTE)] if own is None else own, index)
            over = [(_seen(ends, up_axis, view), each) for ends, each in (lines[index] if lines else ()) if len(ends)]
            if len(points) or over:
                tile[:tile_px] = _draw_cloud(tile[:tile_px], _seen(points, up_axis, view), color, over, view)
        tile = tile.round().astype(np.uint8)
        if strip_px:
            verdict = is_right[index] if is_right else None
            _write_caption(tile, captions[index], verdict, strip_px)
        sheet[top : top + tile.shape[0], left : left + tile_px] = tile
    return sheet


def _checked(cloud: np.ndarray, color: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The finite points (N, 3) float64 and their colours (N, 3) float32."""
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise ValueError(f"clouds[{index}]: shape {cloud.shape}; a cloud is (N, 3)")
    if color.shape not in ((3,), cloud.shape):
        raise ValueError(f"colors[{index}]: shape {color.shape}; must be (3,) or {cloud.shape}")
    is_finite = np.isfinite(cloud).all(axis=1)
    return cloud[is_finite].astype(np.float64), np.broadcast_to(color, cloud.shape)[is_finite].astype(np.float32)


def _view(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Rows: the directions to the right, upwards in the picture and towards the viewer, in a frame whose z is up."""
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    towards = np.array([*(math.cos(elevation) * np.array([math.cos(azimuth), math.sin(azimuth)])), math.sin(elevation)])
    return np.stack([right, np.cross(towards, right), towards])


def _seen(points: np.ndarray, frame: Frame, view: np.ndarray) -> np.ndarray:
    """Points (..., 3) of a frame along the axes of the view."""
    seen: np.ndarray = points[..., _AXES[frame]] * np.array(_SIGNS.get(frame, (1, 1, 1))) @ view.T
    return seen


def _draw_cloud(
    card: np.ndarray, seen_N3: np.ndarray, color_N3: np.ndarray, lines: Sequence[Lines], view: np.ndarray
) -> np.ndarray:
    """The card (T, T, 3) float32 with a shadow on the floor, the points and, over them, the lines.

    All are given along the axes of the view.
    """
    every = np.concatenate([seen_N3, *(ends.reshape(-1, 3) for ends, _ in lines)])
    low, high = every.min(axis=0), every.max(axis=0)
    half = max(float((high - low)[:2].max()) / 2, 1e-12)
    middle = (low + high) / 2  # fits [-1, 1]; the same scale along all three axes
    size = len(card)
    if len(seen_N3):
        seen_N3 = (seen_N3 - middle) / half
        shaded = card * (1 - _shadow(seen_N3, view, size)[..., None])
        radius = float(np.clip(0.62 / math.sqrt(len(seen_N3)), 0.008, 0.035))
        color, cover = _splat(seen_N3, color_N3, radius, 2 * size)
        card = color + (1 - cover[..., None]) * shaded
    return _with_lines(card, [((ends - middle) / half, color) for ends, color in lines])


def _with_lines(card: np.ndarray, lines: Sequence[Lines]) -> np.ndarray:
    """The card with straight lines over everything, ends marked by dots."""
    from PIL import Image, ImageDraw

    if not lines:
        return card
    size = len(card)
    image = Image.fromarray(card.round().astype(np.uint8)).resize((2 * size, 2 * size), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    thick = max(2, size // 90)
    for ends, color in lines:
        column, row = _pixels(ends.reshape(-1, 3), 2 * size)
        places = np.stack([column, row], axis=1).reshape(-1, 4)
        for place in places.tolist():
            draw.line(place, fill=tuple(color.tolist()), width=thick)
        for x, y in places.reshape(-1, 2).tolist():
            draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=tuple(color.tolist()))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)


def _put_picture(face: np.ndarray, picture: np.ndarray) -> None:
    """Put a picture into the middle of a card's face (T, T, 3), as large as fits with a margin."""
    from PIL import Image

    room = round(0.9 * len(face))
    scale = room / max(picture.shape[:2])
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    width, height = (max(1, round(scale * length)) for length in picture.shape[1::-1])
    fitted = np.asarray(Image.fromarray(picture).resize((width, height), how))
    top, left = (len(face) - height) // 2, (len(face) - width) // 2
    face[top : top + height, left : left + width] = fitted


def _shadow(seen_N3: np.ndarray, view: np.ndarray, size: int) -> np.ndarray:
    """How dark the floor is (T, T), 0 to 0.22: the points dropped straight down onto it, blurred."""
    up = view[:, 2]
    height_N = seen_N3 @ up
    dropped_N3 = seen_N3 - (height_N - height_N.min())[:, None] * up
    column, row = _pixels(dropped_N3, size)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    share = np.bincount(row[inside] * size + column[inside], minlength=size * size) * (size * size / len(seen_N3))
    density = share.reshape(size, size).astype(np.float32)
    for reach in (size // 28, size // 40, size // 64):
        density = _box_blur(_box_blur(density, reach).T, reach).T
    fade = np.clip((size - np.arange(size)) / (0.12 * size), 0, 1)[:, None]  # none is cut off by the caption
    return (0.22 * fade * (1 - np.exp(-0.45 * density))).astype(np.float32)


def _box_blur(image: np.ndarray, reach: int) -> np.ndarray:
    """The mean of each pixel and `reach` pixels to either side along the rows; outside the image all is zero."""
    total = np.cumsum(np.pad(image, ((0, 0), (reach + 1, reach))), axis=1)
    return (total[:, 2 * reach + 1 :] - total[:, : -2 * reach - 1]) / (2 * reach + 1)


def _pixels(seen_N3: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of each point: [-1, 1] fills the middle 78 % of the card, slightly raised above the shadow."""
    scale = 0.39 * size
    column = np.rint(size / 2 + scale * seen_N3[:, 0]).astype(np.int64)
    return column, np.rint(0.475 * size - scale * seen_N3[:, 1]).astype(np.int64)


def _splat(seen_N3: np.ndarray, color_N3: np.ndarray, radius: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The points as small lit balls, the nearest on top: premultiplied colour (T, T, 3) and cover (T, T), T = size / 2.

    `radius` is a share of the card. At each pixel the ball with the nearest centre wins, then the shade is found once.
    """
    order = np.argsort(seen_N3[:, 2], kind="stable")  # far to near
    seen_N3, color_N3 = seen_N3[order], color_N3[order]
    offset_K2, light_K, height_K = _ball(max(1, round(radius * size)))
    column, row = _pixels(seen_N3, size)
    winner = np.full(size * size, -1, dtype=np.int64)
    place = (row * size + column)[:, None] + offset_K2 @ np.array([1, size])  # inside: centres and radius leave a rim
    np.maximum.at(winner, place.ravel(), np.arange(place.size))  # of several, the nearest: its number is the largest
    hit = np.flatnonzero(winner >= 0)
    point, part = np.divmod(winner[hit], len(offset_K2))
    depth = np.full(size * size, -4.0, dtype=np.float32)
    depth[hit] = seen_N3[point, 2] + 2.5 * radius * height_K[part]
    nearness = np.interp(seen_N3[point, 2], (seen_N3[0, 2], seen_N3[-1, 2] + 1e-9), (0.0, 1.0)).astype(np.float32)
    bright = (light_K[part] * (0.80 + 0.20 * nearness) * _edges(depth.reshape(size, size), hit))[:, None]
    haze = (0.34 * (1 - nearness))[:, None]
    glint = 34 * np.maximum(light_K[part] - 0.98, 0)[:, None] / 0.2
    image = np.zeros((size, size, 4), dtype=np.float32)
    color = np.minimum((1 - haze) * (color_N3[point] * bright + glint) + haze * 240.0, 255)
    image.reshape(-1, 4)[hit] = np.concatenate([color, np.ones_like(haze)], axis=1)
    small = (image[0::2, 0::2] + image[1::2, 0::2] + image[0::2, 1::2] + image[1::2, 1::2]) / 4
    return small[..., :3], small[..., 3]


def _ball(radius_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the pixels of a ball: offsets (K, 2), brightness (K,) under the light, height (K,) over its centre, 0 to 1."""
    reach = np.arange(-radius_px, radius_px + 1)
    offset_K2 = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
    offset_K2 = offset_K2[(offset_K2**2).sum(axis=1) <= (radius_px + 0.3) ** 2]
    flat_K2 = offset_K2 / (radius_px + 0.5)
    height_K = np.sqrt(1 - (flat_K2**2).sum(axis=1))
    facing_K = np.column_stack([flat_K2 * (1, -1), height_K]) @ _LIGHT
    return offset_K2, (0.66 + 0.52 * np.maximum(facing_K, 0)).astype(np.float32), height_K.astype(np.float32)


def _edges(depth: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """For each pixel in `hit`, 1 down to 0.45: darker the farther it lies behind the pixels around it."""
    size = len(depth)
    reach = max(2, size // 110)
    padded = np.pad(depth, reach, constant_values=-4.0).ravel()
    width = size + 2 * reach
    place = (hit // size + reach) * width + hit % size + reach
    here = padded[place]
    behind = np.zeros_like(here)
    for right, down in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)):
        around = padded[place + round(down * reach) * width + round(right * reach)]
        behind += np.clip(around - here, 0, 0.5)
    return np.maximum(np.exp(-0.55 * behind), 0.45)


def _card(width: int, height: int) -> np.ndarray:
    """An empty card (H, W, 3) float32: rounded corners on the page's colour, a faint rim, a soft gradient."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (4 * width, 4 * height), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), radius=4 * width // 18, fill=255)
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
    left = (strip.width - draw.textlength(text, font) - mark_px) / 2
    middle = 0.80 * strip_px
    draw.text((left + mark_px, middle), text, fill=ink, font=font, anchor="lm")
    if is_right is not None:
        arm = 0.26 * strip_px
        x, y, thick = left + arm, middle, max(2, round(0.14 * strip_px))
        tick = [(x - arm, y), (x - 0.3 * arm, y + 0.8 * arm), (x + 1.2 * arm, y - arm)]
        cross = [[(x - arm, y - arm), (x + arm, y + arm)], [(x - arm, y + arm), (x + arm, y - arm)]]
        for line in [tick] if is_right else cross:
            draw.line(line, fill=ink, width=thick, joint="curve")
    tile[-strip_px:] = np.asarray(strip.resize((tile.shape[1], strip_px), Image.Resampling.BOX))


def draw_legend(
    entries: Sequence[tuple[str, np.ndarray | tuple[int, ...]]], width: int, *, line_px: int = 24
) -> np.ndarray:
    """A swatch of its colour and the text of each entry, in as many rows of `width` as they need; no row for none."""
    from PIL import Image, ImageDraw, ImageFont

    if not entries:
        return np.zeros((0, width, 3), dtype=np.uint8)
    font = ImageFont.load_default(0.62 * line_px)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin_px = round(0.66 * line_px)
    places, left, row = [], margin_px, 0
    for text, color in ((escape_to_one_line(name), color) for name, color in entries):
        needed = round(measure.textlength(text, font)) + 2 * line_px
        if left > margin_px and left + needed > width:
            left, row = margin_px, row + 1
        places.append((left, line_px * row, text, color))
        left += needed
    image = Image.new("RGB", (width, margin_px + line_px * (row + 1)), PAGE)
    draw = ImageDraw.Draw(image)
    side_px = round(0.58 * line_px)
    for left, top, text, color in places:
        top += round(0.2 * line_px)
        draw.rounded_rectangle((left, top, left + side_px, top + side_px), 3, tuple(map(int, color)), outline=INK)
        draw.text((left + 1.4 * side_px, top + side_px / 2), text, fill=INK, font=font, anchor="lm")
    return np.asarray(image)


def with_legend(pixels: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """A picture (H, W, 3) uint8 over a legend of the classes that are among the labels, in the colours of `colors_of`.

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
    """The text, line ends as escapes, and a font in which it fits: smaller by up to two fifths, then cut with dots."""
    from PIL import ImageFont

    text = escape_to_one_line(text)
    font = ImageFont.load_default(size_px)
    length = draw.textlength(text, font)
    if length > width:
        font = ImageFont.load_default(max(0.6 * size_px, 0.97 * size_px * width / length))  # widths grow in steps
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text.rstrip(".")[:-1].rstrip() + "..."
    return text, font


__getattr__ = old_names(__name__)
