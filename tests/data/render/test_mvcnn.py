"""Renders of others: found by name in any camera set-up, paired with clouds, composited, and what lacks is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.areas.clouds.render.mvcnn import import_views, list_pictures, read_picture
from sightline.areas.clouds.sets.modelnet import ModelNet40
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.files.image_files import composite_over
from sightline.store.prepared.prepared_set import verify
from sightline.store.prepared.views import IMAGE, Views
from tests.command import run_here
from tests.data.clouds.modelnet_writers import prepare, write_npz
from tests.data.preparing import read_files, stop_at
from tests.data.scenes.scene_writers import no_progress

SIZE = 6


def pixels(name: str, view: int, size_px: int = SIZE) -> np.ndarray:
    """Colours and opacity of a picture, from its name and number."""
    return np.random.default_rng([*name.encode(), view]).integers(0, 256, (size_px, size_px, 4), dtype=np.uint8)


def write(folder: Path, name: str, views: range, *, tail: str = ".obj_whiteshaded_v{:04d}.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for view in views:
        Image.fromarray(pixels(name, view), mode=None).save(folder / f"{name}{tail.format(view)}")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Three shapes: one in two set-ups, one with too few pictures, one without a cloud."""
    root = tmp_path / "in"
    write(root / "loop/airplane/train", "airplane_0001", range(12))
    write(root / "neighbor/airplane/train", "airplane_0001", range(100, 103))
    write(root / "loop/bed/train", "bed_0001", range(5))
    write(root / "loop/airplane/test", "airplane_0627", range(12))
    write(root / "loop/chair/test", "chair_0900", range(12))
    (root / "README.md").write_text("not a picture")
    return root


@pytest.fixture
def clouds(tmp_path: Path) -> Path:
    prepare(write_npz(tmp_path / "clouds.npz"), tmp_path / "clouds")
    return tmp_path / "clouds"


def test_pictures_of_one_name_are_of_one_shape(release: Path) -> None:
    listed = list_pictures(release)
    assert [(each.name, each.split, len(each.files)) for each in listed] == [
        ("airplane_0001", "train", 15),
        ("bed_0001", "train", 5),
        ("airplane_0627", "test", 12),
        ("chair_0900", "test", 12),
    ]
    assert [path.parts[-4] for path in listed[0].files] == ["loop"] * 12 + ["neighbor"] * 3


def test_the_names_of_other_releases_are_read(tmp_path: Path) -> None:
    write(tmp_path / "cup/train", "cup_0003", range(1, 13), tail="_shaded_v{:03d}.png")
    (listed,) = list_pictures(tmp_path)
    assert (listed.name, len(listed.files)) == ("cup_0003", 12)
    assert listed.files[1].name == "cup_0003_shaded_v002.png"


def test_a_store_is_made_and_what_lacks_is_named(release: Path, clouds: Path, tmp_path: Path) -> None:
    manifest = import_views(release, tmp_path / "views", progress=no_progress, clouds=clouds, background="white")
    views = Views.open(tmp_path / "views")
    assert views.names == ("airplane_0001", "airplane_0627")
    assert views.counts(np.array([0, 1])).tolist() == [15, 12]
    assert np.array_equal(views.image("airplane_0001", 14), composite_over(pixels("airplane_0001", 102), "white"))
    few, unmatched, bare, loop = manifest["differences"]
    assert few == "1 shapes have fewer than 12 pictures and are left out: bed_0001 (5)"
    assert unmatched == f"1 shapes have no cloud of their name in {clouds}: chair_0900"
    assert bare.startswith(f"6 of 8 clouds in {clouds} have no pictures: airplane_0002, airplane_0010, bed_0001,")
    assert loop == "loop: 1 shapes have fewer than 12 pictures: bed_0001 (5)"
    assert verify(tmp_path / "views") == 4


def test_clouds_and_pictures_are_of_the_same_shape(release: Path, clouds: Path, tmp_path: Path) -> None:
    import_views(release, tmp_path / "views", progress=no_progress, clouds=clouds)
    shapes = ModelNet40(split="test", root=str(clouds), views=str(tmp_path / "views"), without_views="left_out")
    assert [shapes.sample_name(index) for index in range(len(shapes))] == ["airplane_0627"]
    key = SampleKey(0, 3, 1)
    expected = composite_over(pixels("airplane_0627", int(key.generator().integers(12))), "black")
    assert np.array_equal(shapes[key][IMAGE].numpy(), expected)


@pytest.mark.parametrize("background", ["black", "white"])
def test_pixels_are_composited_as_pillow_does(background: str) -> None:
    rgba = pixels("any", 0, 64)
    behind = Image.new("RGBA", (64, 64), background)
    expected = np.asarray(Image.alpha_composite(behind, Image.fromarray(rgba)).convert("RGB"))
    found = composite_over(rgba, background)  # type: ignore[arg-type]
    assert np.abs(found.astype(int) - expected).max() <= 1  # Pillow rounds twice
    assert np.array_equal(found[rgba[..., 3] == 255], rgba[rgba[..., 3] == 255][:, :3])
    clear = composite_over(np.zeros((1, 1, 4), dtype=np.uint8), background)  # type: ignore[arg-type]
    assert clear.tolist() == [[[255, 255, 255] if background == "white" else [0, 0, 0]]]


def test_pictures_without_opacity_are_as_they_are(tmp_path: Path) -> None:
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_picture(tmp_path / "grey.png", background="white"), np.stack([grey] * 3, axis=-1))


def test_pictures_become_as_large_as_asked(release: Path, tmp_path: Path) -> None:
    import_views(release, tmp_path / "views", progress=no_progress, size_px=3, min_views=5)
    views = Views.open(tmp_path / "views")
    assert views.size_px == 3
    picture = Image.fromarray(composite_over(pixels("bed_0001", 2), "black"))
    expected = np.asarray(picture.resize((3, 3), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(views.image("bed_0001", 2) - expected).max() <= 1


def test_what_is_stopped_is_continued(release: Path, tmp_path: Path) -> None:
    import_views(release, tmp_path / "whole", progress=no_progress)
    stop_at(2, import_views, release, tmp_path / "views")
    assert not (tmp_path / "views").exists()
    import_views(release, tmp_path / "views", progress=no_progress)
    assert read_files(tmp_path / "views") == read_files(tmp_path / "whole")


def test_what_is_no_release_is_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        list_pictures(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds nothing, no picture CLASS/train/NAME"):
        list_pictures(tmp_path / "empty")
    shutil.copytree(release / "loop/bed/train", release / "loop/bed/validation")
    with pytest.raises(DataError, match="is in 'validation', pictures must be in CLASS/train or CLASS/test"):
        list_pictures(release)
    (release / "loop/bed/validation").rename(release / "loop/bed/test")
    with pytest.raises(DataError, match="'bed_0001' has pictures in train and in test"):
        list_pictures(release)


def test_no_shape_left_is_refused_with_the_reasons(release: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none of the 4 shapes can be used: 4 shapes have fewer than 99 pictures .*bed_0001 \(5\)"
    ):
        import_views(release, tmp_path / "views", progress=no_progress, min_views=99)


def test_pictures_that_do_not_fit_are_named(release: Path, tmp_path: Path) -> None:
    path = release / "loop/airplane/test/airplane_0627.obj_whiteshaded_v0003.png"
    Image.fromarray(pixels("other", 0, 8)).save(path)
    with pytest.raises(DataError, match=r"v0003\.png: is 8 pixels wide, others 6; give one size for all: size_px"):
        import_views(release, tmp_path / "views", progress=no_progress)
    Image.fromarray(pixels("other", 0, 8)[:5]).save(path)
    with pytest.raises(DataError, match=r"v0003\.png: is 8 by 5 pixels, squares are needed"):
        import_views(release, tmp_path / "views", progress=no_progress)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"v0003\.png: does not read as a picture"):
        import_views(release, tmp_path / "views", progress=no_progress)


def test_options_of_the_views_are_checked_before_any_file_is_read(tmp_path: Path) -> None:
    words = ("data", "prepare", "views", "--from", tmp_path, "--to", tmp_path / "views")
    for option in ("size_px=4", "min_views=0", "background=red", "of=a"):
        done = run_here(*words, option)
        assert (done.code, option.partition("=")[0] in done.err, done.err.count("\n")) == (2, True, 1), done.err


# --- the real renders ------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_the_real_renders_are_paired_with_their_clouds(shared: Path, tmp_path: Path) -> None:
    prepare(shared / "data" / "modelnet40_1024.npz", tmp_path / "set")
    source, target = shared / "data" / "mvcnn_images", tmp_path / "views"
    options = (f"clouds={tmp_path / 'set'}", "size_px=48")
    done = run_here("data", "prepare", "views", "--from", source, "--to", target, *options)
    assert done.code == 0, done.err
    assert "12307 of 12311 clouds" in done.err
    assert "neighbor: 1 shapes have fewer than 30 pictures: airplane_0001 (22)" in done.err
    views = Views.open(target)
    counts = dict(zip(views.names, views.counts(np.arange(4)).tolist(), strict=True))
    assert counts == {"airplane_0001": 34, "bed_0001": 12, "airplane_0627": 42, "bed_0516": 12}
    for split, expected in (("train", ["airplane_0001", "bed_0001"]), ("test", ["airplane_0627", "bed_0516"])):
        shapes = ModelNet40(split=split, root=str(tmp_path / "set"), views=str(target), without_views="left_out")
        assert [shapes.sample_name(index) for index in range(len(shapes))] == expected
        assert shapes.get_batch([SampleKey(0, 0, 0), SampleKey(1, 0, 0)])[IMAGE].float().std() > 10


@pytest.mark.shared
def test_real_shapes_with_few_views_are_reported(shared: Path, tmp_path: Path) -> None:
    manifest = import_views(shared / "data" / "mvcnn_images", tmp_path / "views", progress=no_progress, min_views=20)
    assert manifest["differences"][0] == (
        "2 shapes have fewer than 20 pictures and are left out: bed_0001 (12), bed_0516 (12)"
    )
    assert Views.open(tmp_path / "views").size_px == 224
