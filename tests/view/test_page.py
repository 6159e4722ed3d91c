"""The page: what is embedded is what is shown, the whole stays small, and nothing is asked of a network."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.draw.pictures import PALETTE
from sightline.view.page import MAX_SHOWN, encode_page, make_clouds
from sightline.view.panels import ImagePanel
from sightline.view.skeletons import TRUE, JointFigure
from sightline.view.stages import ClassColoring, RgbColoring, Stage, ViewedSample, height_coloring
from sightline.view.volumes import Volume

NAMES = ("floor", "wall", "chair")


def cloud_of(num_points: int, *, seed: int = 0, stage: str = "raw", dtype: type = np.float32) -> Stage:
    random = np.random.default_rng(seed)
    points = (random.normal(size=(num_points, 3)) * (1, 10, 0.1) + (0, 500, 0)).astype(dtype)
    labels = random.integers(-1, 3, num_points)
    rgb = random.integers(0, 256, (num_points, 3)).astype(np.uint8)
    colorings = (
        RgbColoring("colours", rgb),
        ClassColoring.from_labels("ground truth", labels, NAMES),
        height_coloring(points, "z"),
    )
    return Stage(stage, points, colorings, unit="m")


def drawn_stage(name: str = "voxels") -> Stage:
    """A stage with everything that one may have, on sides of three lengths."""
    values = np.zeros((2, 2, 3, 4), dtype=np.float32)
    values[0, 1, 2, 0], values[1, 0, 1, 3] = 1.0, 0.6
    volume = Volume.from_heatmaps(values, cell=2.0, is_y_up=True)
    points, owners = volume.cell_centres_above(0.5)
    joints = np.array([[2.5, 5.0, 1.0], [np.nan, 0, 0], [0.5, 3.0, 7.0]])
    figure = JointFigure(name, joints, np.array([True, True, True]), ((0, 1), (0, 2)), TRUE)
    panel = ImagePanel(name, np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
    coloring = ClassColoring.from_labels("joint", owners, ("wrist", "tip"))
    return Stage(name, points, (coloring,), "voxels", skeletons=(figure,), panels=(panel,))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def decoded(text: str, dtype: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).reshape(shape)


def points_in(cloud: dict[str, Any]) -> np.ndarray:
    steps = decoded(cloud["points"], "<u2", -1, 3)
    return np.array(cloud["low"]) + steps / 65535 * np.array(cloud["span"])


def test_embedded_points_colours_and_classes_are_those_of_the_cloud() -> None:
    cloud = cloud_of(500)
    shown = data_of(encode_page([ViewedSample("a", (cloud,))], title="t"))["subjects"][0]["clouds"][0]
    extent = np.ptp(cloud.points.astype(np.float64), axis=0)
    off = np.abs(points_in(shown) - cloud.points)
    assert (off <= extent / 65535 / 2 + 1e-9).all()  # half a step; the rest is the rounding of float64
    colours, classes, height = shown["colorings"]
    assert np.array_equal(decoded(colours["values"], "u1", -1, 3), cloud.colorings[0].colors())
    codes = decoded(classes["values"], "<u2", -1)
    table = np.array([each["color"] for each in classes["classes"]])
    assert np.array_equal(table[codes], cloud.colorings[1].colors())
    assert [each["name"] for each in classes["classes"]] == [*NAMES, "unlabelled"]
    assert classes["classes"][1]["color"] == PALETTE[1].tolist()
    assert sum(each["count"] for each in classes["classes"]) == 500
    assert height == {"name": "height", "kind": "height"}
    assert (shown["shown"], shown["total"]) == (500, 500)


def test_a_whole_room_makes_a_page_of_a_few_megabytes_that_says_what_is_left_out() -> None:
    """Five stages of the size of the real room, with colours and labels."""
    clouds = tuple(cloud_of(352_256, seed=seed, stage=f"stage {seed}") for seed in range(5))
    page = encode_page([ViewedSample("room", clouds)], title="t")
    assert len(page) < 15_000_000
    for given, shown in zip(clouds, data_of(page)["subjects"][0]["clouds"], strict=True):
        assert shown["total"] == 352_256
        assert 100_000 < shown["shown"] < MAX_SHOWN
        # Evenly chosen: of every class its share, to four standard deviations of a draw of so many.
        codes = decoded(shown["colorings"][1]["values"], "<u2", -1)
        counts = [each["count"] for each in shown["colorings"][1]["classes"]]
        expected = np.array(counts) / 352_256
        bound = 4 * np.sqrt(expected * (1 - expected) / shown["shown"])
        assert (np.abs(np.bincount(codes) / shown["shown"] - expected) < bound).all()
        assert points_in(shown).min(axis=0) == pytest.approx(given.points.min(axis=0), rel=0.2)


def test_many_small_clouds_share_the_bytes() -> None:
    def shown(size: int, max_bytes: int) -> list[int]:
        subjects = [ViewedSample(str(i), (cloud_of(size, seed=i),)) for i in range(3)]
        viewer = make_clouds(subjects, title="t", max_bytes=max_bytes)
        return [cloud["shown"] for subject in viewer.data["subjects"] for cloud in subject["clouds"]]

    assert shown(2000, 10**6) == [2000] * 3  # nothing is cut
    # 3 clouds at 6 + 2 + 3 bytes a point: max_bytes / (3 * 11 * 4 / 3) points each
    assert shown(2000, 44_000) == [1000] * 3


def test_nothing_is_asked_of_a_network() -> None:
    page = encode_page([ViewedSample("a", (cloud_of(5), drawn_stage()))], title="t")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "connect-src" not in policy[1]
    assert policy[1].endswith("img-src data:")  # pictures that are in the page
    for word in ("http:", "https:", "src=", "href=", "@import", "url(", "fetch(", "XMLHttpRequest", "import("):
        assert word not in page, word


def test_names_cannot_break_out_of_the_page() -> None:
    name = '</script><script>alert("x")</script> %SCRIPT% <b>&'
    labels = ClassColoring.from_labels("ground truth", np.zeros(4, dtype=np.int64), (name,))
    cloud = Stage(name, np.zeros((4, 3)), (labels,), description=name)
    plain = encode_page([ViewedSample("a", (cloud_of(4),))], title="t")
    page = encode_page([ViewedSample(name, (cloud, drawn_stage(name)))], title=name, hidden=[name])
    assert page.count("<script") == plain.count("<script") == 2
    assert page.count("</script>") == 2
    data = data_of(page)
    assert data["subjects"][0]["name"] == data["title"] == data["hidden"][0] == name


def test_the_pictures_and_the_skeleton_of_a_stage_are_in_the_page() -> None:
    stage = drawn_stage()
    subject = data_of(encode_page([ViewedSample("a", (stage,), "camera_y_up")], title="t"))["subjects"][0]
    (shown,) = subject["clouds"]
    assert subject["up"] == "camera_y_up"
    assert shown["unit"] == "voxels"
    kind, _, text = shown["panels"][0]["picture"].partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), stage.panels[0].pixels)
    joints = [[2.5, 5.0, 1.0], [0.5, 3.0, 7.0]]
    expected = {"name": "voxels", "color": TRUE.tolist(), "joints": joints, "bones": [[0, 1]]}
    assert shown["skeletons"] == [{**expected, "count": 2, "hasDots": True}]


def test_points_that_are_not_finite_and_clouds_without_points() -> None:
    gaps = cloud_of(6)
    gaps.points[2] = np.nan
    flat = Stage("flat", np.ones((3, 3)), (height_coloring(np.ones((3, 3)), "z"),))
    empty = Stage("empty", np.zeros((0, 3)), (height_coloring(np.zeros((0, 3)), "z"),))
    shown = data_of(encode_page([ViewedSample("a", (gaps, flat, empty))], title="t"))["subjects"][0]["clouds"]
    assert [each["shown"] for each in shown] == [5, 3, 0]
    assert np.array_equal(points_in(shown[1]), np.ones((3, 3)))
    kept = np.delete(gaps.points, 2, axis=0)
    assert np.allclose(points_in(shown[0]), kept, atol=np.ptp(kept, axis=0).max() / 65535)


def test_the_same_arguments_give_the_same_page() -> None:
    subjects = [ViewedSample("a", (cloud_of(3000),))]
    assert encode_page(subjects, title="t") == encode_page(subjects, title="t")


def test_stages_of_pictures_alone_and_strips_are_marked() -> None:
    """A browser lays them out by these marks: an image has no cloud, a range image is three times as wide as high."""
    none = RgbColoring("image", np.zeros((0, 3), dtype=np.uint8))
    photo, strip = (ImagePanel("p", np.zeros((20, width, 3), dtype=np.uint8)) for width in (59, 60))
    image = Stage("image", np.zeros((0, 3), dtype=np.float32), (none,), panels=(photo,))
    scan = Stage("scan", cloud_of(50).points, cloud_of(50).colorings, panels=(strip,))
    both = Stage("both", cloud_of(50).points, cloud_of(50).colorings, panels=(strip, photo))
    made = data_of(encode_page([ViewedSample("one", (image, scan, both))], title="t"))["subjects"][0]["clouds"]
    assert [each["isFlat"] for each in made] == [True, False, False]
    assert [each["isStrips"] for each in made] == [False, True, False]


def test_photos_are_kept_as_large_as_the_page_shows_them_and_masks_as_they_are() -> None:
    """A photo of 12 megapixels, alone and as one of four; WebP of quality 85 is some grey levels off."""
    pixels = np.broadcast_to(np.linspace(0, 255, 4000)[None, :, None], (3000, 4000, 3)).astype(np.uint8)
    photo, mask = ImagePanel("photo", pixels, is_photo=True), ImagePanel("mask", pixels[:300, :400])
    tiny = ImagePanel("tiny", pixels[:9, :9], is_photo=True)
    for panels, size in (((photo,), (1280, 960)), ((photo, mask, tiny, tiny), (640, 480))):
        stage = Stage("s", np.zeros((0, 3)), (RgbColoring("image", np.zeros((0, 3), np.uint8)),), panels=panels)
        page = encode_page([ViewedSample("a", (stage,))], title="t")
        assert len(page) < 200_000
        shown = [picture_of(panel) for panel in data_of(page)["subjects"][0]["clouds"][0]["panels"]]
        assert shown[0].size == size
        assert np.abs(np.asarray(shown[0])[:, :, 0] - np.linspace(0, 255, size[0])).max() < 8
        for panel, picture in zip(panels[1:], shown[1:], strict=True):
            assert np.array_equal(np.asarray(picture), panel.pixels)


def picture_of(panel: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(panel["picture"].partition(",")[2])))
