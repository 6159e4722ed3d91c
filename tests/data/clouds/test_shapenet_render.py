"""ShapeNetRender is read back as it was written, as pairs by synset and name; what is missing or broken is named."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.areas.contrast.shapenet_render import ShapeNetRender
from sightline.contract.errors import DataError, MissingDataError
from sightline.contract.types import SampleKey
from sightline.store.files.image_files import read_view
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.prepared.views import Views
from tests.command import run_here, succeed
from tests.data.clouds.shapenet_part_writers import write_text as write_parts
from tests.data.clouds.shapenet_render_writers import (
    NUM_POINTS,
    NUM_VIEWS,
    SIZE_PX,
    SYNSETS,
    cloud_of,
    names,
    prepare,
    view_of,
    write_cloud,
    write_release,
)
from tests.data.preparing import Damage, cut, flip_bit, refuse


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole, and not to be changed."""
    return write_release(tmp_path_factory.mktemp("release") / "in")


@pytest.fixture(scope="module")
def prepared(release: Path) -> Path:
    prepare(release, release.parent / "set", size_px=SIZE_PX)
    return release.parent / "set"


@pytest.fixture
def own(release: Path, tmp_path: Path) -> Path:
    """A copy of the release to break."""
    return Path(shutil.copytree(release, tmp_path / "in"))


def opened(root: Path, **options: Any) -> ShapeNetRender:
    return ShapeNetRender(split="train", root=str(root), **options)


def views_of(dataset: ShapeNetRender) -> Views:
    assert dataset.pictures is not None
    return dataset.pictures.views


def on(background: int, pixels: np.ndarray) -> np.ndarray:
    """The picture on a background, in real numbers."""
    share = pixels[..., 3:] / 255
    return pixels[..., :3] * share + background * (1 - share)


# --- what is read back ------------------------------------------------------------------------------------------------


def test_clouds_and_pictures_of_the_same_objects_in_order(prepared: Path) -> None:
    dataset = opened(prepared)
    assert [dataset.sample_name(index) for index in range(len(dataset))] == names()
    assert views_of(dataset).names == tuple(names())
    for index, name in enumerate(names()):
        sample = dataset[SampleKey(index, 0, 0)]
        points = cloud_of(name).astype(np.float64)
        points -= points.mean(axis=0)
        np.testing.assert_allclose(sample["points"], points / np.linalg.norm(points, axis=1).max(), atol=1e-6)
        assert list(SYNSETS)[sample["label"]] == name.split("/")[0]
        for view in (0, NUM_VIEWS - 1):
            found = views_of(dataset).image(name, view)
            assert np.abs(found - on(0, view_of(name, view))).max() <= 0.5  # rounded to whole numbers
        drawn = int(SampleKey(index, 0, 0).generator().integers(NUM_VIEWS))
        assert np.array_equal(sample["image"], views_of(dataset).image(name, drawn))


def test_facts_fields_and_parts(prepared: Path) -> None:
    info = opened(prepared, num_points=16).info
    assert info.facts["class_names"] == tuple(name for name, _ in SYNSETS.values())
    assert info.facts["class_counts"] == (2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1)
    assert info.facts["up_axis"] == "y"
    assert info.split_sizes == {"train": 6}
    assert (info.fields["image"].dtype, info.fields["image"].low, info.fields["image"].high) == ("uint8", 0, 255)
    reader = BatchReader(opened(prepared, num_points=16))
    batch = reader([SampleKey(4, 0, 0), SampleKey(0, 0, 0)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "points": (2, 16, 3),
        "label": (2,),
        "sample_index": (2,),
        "image": (2, SIZE_PX, SIZE_PX, 3),
    }


def test_what_is_promised_before_the_set_is_there(prepared: Path) -> None:
    promised, found = ShapeNetRender.expected_info(), opened(prepared).info
    assert promised.facts == {name: value for name, value in found.facts.items() if name != "class_counts"}
    assert promised.fields == found.fields


def test_a_white_background_is_asked_for_twice(release: Path, tmp_path: Path) -> None:
    prepare(release, tmp_path / "white", size_px=SIZE_PX, background="white")
    found = views_of(opened(tmp_path / "white", background="white")).image(names()[2], 5)
    assert np.abs(found - on(255, view_of(names()[2], 5))).max() <= 0.5
    assert (found[: SIZE_PX // 3] == 255).all()
    with pytest.raises(DataError, match="stored on white, black is wanted; set background: white"):
        opened(tmp_path / "white")


def test_smaller_pictures_average_what_they_cover(tmp_path: Path) -> None:
    """Colours under what is transparent stay out: left red and opaque, right blue that nobody sees."""
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    pixels[:, 32:] = (0, 0, 255, 0)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    found = read_view(tmp_path / "a.png", size_px=16, background="black")
    assert found.shape == (16, 16, 3)
    assert (found[..., 2] == 0).all()
    assert (found[:, :7, 0] == 255).all()
    assert (found[:, 9:, 0] == 0).all()
    assert found[..., 0].mean() == pytest.approx(127.5, abs=1)


def test_counts_are_compared_with_the_published_ones(release: Path, tmp_path: Path) -> None:
    found = prepare(release, tmp_path / "set", size_px=SIZE_PX)
    assert sum(pairs for _, pairs in SYNSETS.values()) == 43_783
    assert "chair (03001627): 3 pairs, published 6778" in found["differences"]
    assert len(found["differences"]) == 14
    assert found["pairs"]["02958343 car"] == {"clouds": 0, "image_folders": 0, "pairs": 0}


def test_commands(release: Path, tmp_path: Path) -> None:
    words = ["data", "prepare", "shapenet_render", "--from", release, "--to", tmp_path / "set"]
    done = succeed(*words, "size_px=8")
    assert "look at this: 6 pairs, published 43783" in done.err
    assert "03001627 chair: clouds 3, image_folders 3, pairs 3" in done.out
    assert "pictures: 24 an object, 8 x 8 on black" in done.out
    assert "already there" in succeed(*words, "size_px=8").out
    succeed("data", "verify", tmp_path / "set")
    assert "chair 6778" in succeed("data", "info", "shapenet_render").out.replace("\u00a0", " ")
    assert "was prepared with size_px = 8, now it is 16" in run_here(*words, "size_px=16").err


# --- a half that is missing -------------------------------------------------------------------------------------------


refused = functools.partial(refuse, prepare, size_px=SIZE_PX)


def test_a_missing_half_is_named_with_what_the_other_holds(own: Path) -> None:
    shutil.move(own / "ShapeNet", own / "elsewhere")
    refused(own, r"in/ShapeNet: is missing, and .*/ShapeNetRendering has 6 image folders; a pair needs both: put the")
    (own / "ShapeNet").mkdir()
    refused(own, r"in/ShapeNet: holds nothing, no <synset>/<id>\.ply, and .* has 6 image folders")
    (own / "ShapeNet/02691156").mkdir()
    refused(own, r"in/ShapeNet: holds 02691156, no <synset>/<id>\.ply")


def test_missing_images_are_named_too(own: Path) -> None:
    shutil.rmtree(own / "ShapeNetRendering")
    refused(own, r"in/ShapeNetRendering: is missing, and .*in/ShapeNet has 6 clouds; a pair needs both: put the image")


def test_halves_may_be_links(own: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for half in ("ShapeNet", "ShapeNetRendering"):
        (tmp_path / "linked" / half).symlink_to(own / half)
    assert prepare(tmp_path / "linked", tmp_path / "set", size_px=8)["outcome"] == "prepared"


def test_halves_of_other_objects_are_no_pairs(own: Path) -> None:
    for synset in (own / "ShapeNet").iterdir():
        for path in synset.iterdir():
            path.rename(path.with_name(f"other_{path.name}"))
    refused(own, r"in: not one cloud has its images: 6 clouds have no images, left out: 02691156/other_10155, .*; 6 im")


def test_unmatched_objects_are_counted_and_the_first_ten_named(own: Path) -> None:
    for number in range(12):
        write_cloud(own / f"ShapeNet/02958343/x{number:02d}.ply", cloud_of("x"))
    shutil.rmtree(own / "ShapeNetRendering/03001627/0b7")
    (own / "ShapeNet/02691156/1a04.ply").unlink()
    (own / "ShapeNetRendering/04530566/a/rendering/07.png").unlink()
    (own / "ShapeNet/01234567").mkdir()
    found = prepare(own, own.parent / "set", size_px=SIZE_PX)
    ten = ", ".join(f"02958343/x{number:02d}" for number in range(10))
    assert found["left_out"] == [
        f"13 clouds have no images, left out: {ten}, ...",
        "1 image folders have no cloud, left out: 02691156/1a04",
        "1 image folders lack views, left out: 04530566/a (23 of 24)",
        "1 folders are none of the 13 synsets, left out: 01234567",
    ]
    assert found["differences"][:4] == found["left_out"]
    assert found["pairs"]["02958343 car"] == {"clouds": 12, "image_folders": 0, "pairs": 0}
    assert [opened(own.parent / "set").sample_name(index) for index in range(3)] == [
        "02691156/10155",
        "03001627/c2e9",
        "03001627/ffa1",
    ]


def test_places_without_the_release(release: Path, prepared: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", r"none: there is no such folder .* give the folder with ShapeNet and ShapeNetRendering")
    parts = write_parts(tmp_path / "parts")
    refused(parts, r"parts/ShapeNet: is missing, and .*ShapeNetRendering has 0 image folders")
    with pytest.raises(MissingDataError, match="data prepare shapenet_render --from PATH --to"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no split 'test'; it holds train \(6\)"):
        ShapeNetRender(split="test", root=str(prepared))


# --- broken files -----------------------------------------------------------------------------------------------------


IMAGE = "ShapeNetRendering/03001627/c2e9/rendering/11.png"
CLOUD = "ShapeNet/03001627/c2e9.ply"


def save(pixels: np.ndarray) -> Damage:
    return lambda path: Image.fromarray(pixels).save(path)


def store(points: np.ndarray) -> Damage:
    return lambda path: write_cloud(path, points)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (IMAGE, lambda path: path.write_bytes(b""), r"in: 1 files of 1 objects are broken: .*11\.png \(is empty\)"),
        (IMAGE, functools.partial(cut, by=200), r"broken: .*c2e9/rendering/11\.png \(is cut short at byte \d+\)"),
        (IMAGE, lambda path: path.write_bytes(b"GIF89a" * 9), r"broken: .*11\.png \(is not a PNG file\)"),
        (IMAGE, save(view_of("a", 0)[:8]), r"11\.png \(is 12 x 8 pixels, a square"),
        (
            IMAGE,
            functools.partial(flip_bit, place=300),
            r"^\S*11\.png: cannot be decoded \(.*\); the file is damaged or in another format",
        ),
        (IMAGE, save(view_of("a", 0)[..., :3]), r"^\S*11\.png: is RGB, RGBA is needed, whose transp"),
        (CLOUD, lambda path: path.write_bytes(b""), r"broken: .*c2e9\.ply \(is empty\)"),
        (CLOUD, lambda path: path.write_text("OFF\n"), r"broken: .*c2e9\.ply \(is not a PLY file\)"),
        (CLOUD, functools.partial(cut, by=100), r"^\S*c2e9\.ply: byte \d+: 32 x vertex need 384 bytes"),
        (CLOUD, store(cloud_of("b")[:20]), r"^\S*c2e9\.ply: has 20 points, the first cloud of the set has 32"),
        (
            CLOUD,
            store(np.where(np.eye(NUM_POINTS, 3, k=-4) > 0, np.nan, cloud_of("b"))),
            r"^\S*c2e9\.ply: vertex 4: x is nan; download the file again",
        ),
        (CLOUD, store(np.ones((NUM_POINTS, 3))), r"^\S*c2e9\.ply: all 32 points coincide"),
        (
            CLOUD,
            lambda path: path.write_text(
                "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nend_header\n0 0\n"
            ),
            r"^\S*c2e9\.ply: its vertices have no z, they have x, y",
        ),
    ],
)
def test_broken_files_are_named(own: Path, file: str, damage: Damage, message: str) -> None:
    damage(own / file)
    refused(own, message)


def test_all_broken_files_are_told_at_once_and_may_be_left_out(own: Path) -> None:
    for view in range(12):
        cut(own / f"ShapeNetRendering/02691156/1a04/rendering/{view:02d}.png", by=300)
    (own / CLOUD).write_bytes(b"")
    refused(own, r"in: 13 files of 2 objects are broken: .*1a04/rendering/00\.png .*09\.png \(.*\), \.\.\.; download")
    found = prepare(own, own.parent / "set", size_px=SIZE_PX, broken="leave_out")
    assert "2 objects have broken files, left out: 02691156/1a04, 03001627/c2e9" in found["left_out"]
    assert found["pairs"]["02691156 airplane"] == {"clouds": 2, "image_folders": 2, "pairs": 1}
    assert len(opened(own.parent / "set")) == 4
