"""Pictures: what is drawn is where it should be, the same each time, and refused where it cannot be drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sightline.draw.pictures import (
    PALETTE,
    UNLABELLED,
    Axis,
    Frame,
    Picture,
    encode_png,
    label_colors,
    render_clouds,
    with_legend,
)

RED, GREEN, BLUE = (np.array(color, dtype=np.uint8) for color in ((220, 30, 30), (30, 200, 30), (30, 30, 220)))


@pytest.fixture
def ball() -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(1024, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def place_of(image: np.ndarray, channel: int, margin: int = 60) -> np.ndarray:
    """Mean row and column of the pixels in which one channel stands out."""
    others = [c for c in range(3) if c != channel]
    is_there = image[..., channel].astype(int) - image[..., others].max(axis=-1) > margin
    assert is_there.any()
    return np.argwhere(is_there).mean(axis=0)


def saturation(image: np.ndarray) -> np.ndarray:
    return image.max(axis=-1).astype(int) - image.min(axis=-1)


def test_up_is_up_along_each_axis() -> None:
    axes: tuple[Axis, ...] = ("x", "y", "z")
    for axis, up in zip(axes, np.eye(3), strict=True):
        cloud = np.stack([up, -up])
        image = render_clouds([cloud], colors=[np.stack([RED, BLUE])], up_axis=axis)
        assert place_of(image, 0)[0] < place_of(image, 2)[0] - 50


def test_axes_are_right_handed() -> None:
    """Seen from azimuth 0 and level, from +x: +y lies to the right, +z above; the same after a cyclic turn of axes."""
    cloud = np.array([[0.0, 1, 0], [0, 0, 1], [0, -1, -1]])
    turns: dict[Axis, list[int]] = {"z": [0, 1, 2], "x": [2, 0, 1], "y": [1, 2, 0]}
    for axis, turn in turns.items():
        image = render_clouds(
            [cloud[:, turn]], colors=[np.stack([RED, GREEN, BLUE])], up_axis=axis, azimuth_deg=0, elevation_deg=0
        )
        right, above, corner = (place_of(image, channel) for channel in range(3))
        assert right[1] > above[1] + 50
        assert above[0] < right[0] - 50
        assert corner[1] < above[1] - 50


def test_the_nearer_point_covers_the_farther() -> None:
    cloud = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 1], [0, -1, -1]])  # seen from +x: the first hides the second
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        colors = np.stack([RED, BLUE, UNLABELLED, UNLABELLED])[order]
        image = render_clouds([cloud[order]], colors=[colors], azimuth_deg=0, elevation_deg=0)
        assert place_of(image, 0).any()
        assert not ((image[..., 2].astype(int) - image[..., 0]) > 60).any()


def test_the_same_whatever_the_unit_place_and_order_of_points(ball: np.ndarray) -> None:
    image = render_clouds([ball])
    assert np.array_equal(image, render_clouds([ball]))
    # A power of two scales exactly, so every rounding is the same; equal depths do not occur in this cloud.
    assert np.array_equal(image, render_clouds([ball * 1024.0]))
    shuffled = render_clouds([ball[np.random.default_rng(1).permutation(len(ball))]])
    assert np.array_equal(image, shuffled)
    moved = render_clouds([ball + 3.0]).astype(int)
    assert (np.abs(moved - image).max(axis=-1) > 8).mean() < 0.01  # rounding may move single points by a pixel


def test_no_argument_is_changed_and_no_random_state_used(ball: np.ndarray) -> None:
    ball.flags.writeable = False
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    render_clouds([ball, ball], captions=["a", "b"], is_right=[True, False])
    assert np.array_equal(before, np.random.get_state(legacy=False)["state"]["key"])


def test_layout_of_the_sheet(ball: np.ndarray) -> None:
    gap = 100 // 22
    assert render_clouds([ball] * 5, columns=3, tile_px=100).shape == (2 * 100 + 3 * gap, 3 * 100 + 4 * gap, 3)
    with_captions = render_clouds([ball] * 5, columns=3, tile_px=100, captions=["one"] * 5)
    assert with_captions.shape == (2 * 114 + 3 * gap, 3 * 100 + 4 * gap, 3)


def test_captions_tell_right_from_wrong(ball: np.ndarray) -> None:
    grey = [np.array([128, 128, 128], dtype=np.uint8)]

    def strip(verdict: bool | None) -> np.ndarray:
        return render_clouds([ball], captions=["chair"], is_right=[verdict], colors=grey)[-40:]

    # The green ink is 52 above its next channel, the red one 152; half of the lesser, since edges are blended.
    assert place_of(strip(True), 1, margin=26).all()
    assert place_of(strip(False), 0, margin=26).all()
    assert saturation(strip(None)).max() < 40
    assert strip(None).min() < 100  # dark enough to read


def test_a_long_caption_stays_on_its_card(ball: np.ndarray) -> None:
    sheet = render_clouds([ball], captions=["a name that is far too long for one small card " * 4], tile_px=120)
    gap = 120 // 22
    assert (sheet[-40:, : gap + 2] > 220).all()
    assert (sheet[-40:, -gap - 2 :] > 220).all()


@pytest.mark.parametrize("name", ["rod's\nend", "\x1b[31mred", "a\r\tb"])
def test_names_are_drawn_with_their_escapes(ball: np.ndarray, name: str) -> None:
    """A folder may be called so; two lines of text have no length."""
    escaped = name.encode("unicode_escape").decode()
    drawn, expected = (render_clouds([ball], captions=[each], is_right=[False]) for each in (name, escaped))
    assert np.array_equal(drawn, expected)
    labels = np.zeros(1, dtype=np.int64)
    assert np.array_equal(with_legend(drawn, labels, [name]), with_legend(drawn, labels, [escaped]))


def test_odd_clouds_are_drawn() -> None:
    render_clouds([np.zeros((0, 3)), np.zeros((1, 3)), np.ones((7, 3)), np.full((4, 3), np.nan)], tile_px=64)
    whole = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    with_gaps = np.concatenate([whole, [[np.nan, 0, 0], [np.inf, 0, 0]]]).astype(np.float32)
    assert np.array_equal(render_clouds([whole], tile_px=64), render_clouds([with_gaps], tile_px=64))


def test_refused() -> None:
    cloud = np.zeros((5, 3))
    with pytest.raises(ValueError, match=r"clouds\[1\]: shape \(5, 2\)"):
        render_clouds([cloud, np.zeros((5, 2))])
    with pytest.raises(ValueError, match="captions: 1 entries for 2 clouds"):
        render_clouds([cloud, cloud], captions=["one"])
    with pytest.raises(ValueError, match=r"colors\[0\]: shape \(4, 3\)"):
        render_clouds([cloud], colors=[np.zeros((4, 3), dtype=np.uint8)])
    with pytest.raises(ValueError, match="none given"):
        render_clouds([])
    with pytest.raises(AssertionError, match="must be uint8"):
        Picture("a", np.zeros((4, 4, 3)))


def test_png_holds_the_same_pixels(ball: np.ndarray) -> None:
    image = render_clouds([ball], tile_px=64)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(image)))), image)


def test_colours_of_labels() -> None:
    labels = np.array([[0, 3], [-1, 50]])
    assert np.array_equal(label_colors(labels), [[PALETTE[0], PALETTE[3]], [UNLABELLED, PALETTE[0]]])


def test_the_palette_is_distinct_and_visible_on_white() -> None:
    """CIE 1976: a difference of 2.3 is just noticeable; the closest pair of ours must be several times that."""
    lab = lab_of(PALETTE / 255.0)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(50, 1)]
    assert PALETTE.shape == (50, 3)
    assert apart.min() > 3 * 2.3
    assert (np.linalg.norm(lab - [100, 0, 0], axis=-1) > 10 * 2.3).all()


def lab_of(rgb: np.ndarray) -> np.ndarray:
    """CIELAB under D65. Source: IEC 61966-2-1 (sRGB); CIE 15:2004."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear @ matrix.T / matrix.sum(axis=1)
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)


# --- pictures and lines on cards -------------------------------------------------------------------------------------


def test_a_picture_is_enlarged_pixel_by_pixel_into_the_middle_of_its_card() -> None:
    picture = np.zeros((2, 3, 3), dtype=np.uint8)
    picture[0, 0], picture[1, 2] = (255, 0, 0), (0, 0, 255)
    sheet = render_clouds([picture], tile_px=100)
    gap, room = 4, 90  # the margin is a twentieth of the card on either side
    height = 60
    top, left = gap + (100 - height) // 2, gap + (100 - room) // 2
    shown = sheet[top : top + height, left : left + room]
    assert (shown[:30, :30] == (255, 0, 0)).all()
    assert (shown[30:, 60:] == (0, 0, 255)).all()
    assert (shown[:30, 30:] == 0).all()


def test_an_empty_place_is_the_page() -> None:
    picture = np.zeros((2, 2, 3), dtype=np.uint8)
    sheet = render_clouds([picture, None, picture], tile_px=100, columns=2)
    assert (sheet[4:104, 108:208] == sheet[0, 0]).all()
    assert not (sheet[108:208, 4:104] == sheet[0, 0]).all()


@pytest.mark.parametrize("frame", ["z", "y", "camera_y_up", "camera_y_down"])
def test_lines_lie_over_the_points_of_their_cloud(frame: Frame) -> None:
    """A red line through the middle of a grey ball, seen whole although it lies inside."""
    points = np.random.default_rng(0).normal(size=(4000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    color = np.array([255, 0, 0], dtype=np.uint8)
    grey = np.array([150, 150, 150], dtype=np.uint8)
    ends = np.array([[[0.0, 0.0, -0.9], [0.0, 0.0, 0.9]]])
    sheet = render_clouds([points], colors=[grey], lines=[[(ends, color)]], up_axis=frame, tile_px=200)
    red = (sheet.astype(int)[..., 0] - sheet[..., 1] > 60).sum()
    assert red > 30 * 2  # a line of some length, two pixels wide
    alone = render_clouds([np.zeros((0, 3))], colors=[grey], lines=[[(ends, color)]], up_axis=frame, tile_px=200)
    assert (alone.astype(int)[..., 0] - alone[..., 1] > 60).sum() > 30 * 2


@pytest.mark.parametrize(("frame", "y_up"), [("camera_y_up", 1), ("camera_y_down", -1)])
def test_a_camera_sees_x_to_the_right_and_y_as_its_set_says(frame: Frame, y_up: int) -> None:
    """And what lies nearer, at a smaller z, in front: the last two lie on one ray."""
    cloud = np.array([[10.0, 0, 400], [0, 10 * y_up, 400], [0, 0, 390], [0, 0, 410]])
    colors = np.stack([RED, GREEN, BLUE, UNLABELLED])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        image = render_clouds([cloud[order]], colors=[colors[order]], up_axis=frame, azimuth_deg=0, elevation_deg=0)
        right, above, middle = (place_of(image, channel) for channel in range(3))
        assert right[1] > max(above[1], middle[1]) + 50
        assert above[0] < min(right[0], middle[0]) - 50
