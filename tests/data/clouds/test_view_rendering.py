"""Rendering a prepared set: views are those of its clouds, a stopped run is continued, mistakes are one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.clouds.rendering import render_views
from sightline.areas.clouds.sets.cloud_folder import CloudFolder
from sightline.areas.clouds.sets.modelnet import ModelNet40
from sightline.commands.data import RenderOptions
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.ops.views.cameras import ring_cameras
from sightline.ops.views.rendering import on_background, render_cloud
from sightline.store.prepared.prepared_set import PreparedSet, verify
from sightline.store.prepared.prepared_writer import normalize_to_unit_sphere
from sightline.store.prepared.views import Views
from tests.command import refuse, succeed
from tests.data.clouds.cloud_writers import prepare_folder, solid, write_ply
from tests.data.clouds.modelnet_writers import SHAPES, prepare, write_npz, write_off
from tests.data.preparing import read_files
from tests.data.scenes.scene_writers import no_progress


def render(source: Path, target: Path, *, progress: Any = no_progress, **options: Any) -> Any:
    given = {"num_views": 3, "size_px": 16, **options}
    return render_views(RenderOptions(source=str(source), target=target, **given), progress=progress)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare(write_npz(tmp_path / "in.npz"), tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("elevations_deg", [(30.0,), (0.0, 10.0, 45.0)])
@pytest.mark.parametrize("style", ["shaded", "depth"])
def test_views_are_those_of_the_clouds_of_their_names(
    prepared: Path, tmp_path: Path, style: Any, elevations_deg: tuple[float, ...]
) -> None:
    elevations = ",".join(map(str, elevations_deg))
    manifest = render(prepared, tmp_path / "views", style=style, elevations=elevations)
    assert manifest["outcome"] == "prepared"
    views = Views.open(tmp_path / "views")
    assert views.names == (*SHAPES["train"], *SHAPES["test"])
    cameras = ring_cameras(3, size_px=16, elevations_deg=elevations_deg)
    for split in ("train", "test"):
        clouds = ModelNet40(split=split, root=str(prepared), views=str(tmp_path / "views"))
        for index in range(len(clouds)):
            points = clouds[SampleKey(index, 0, 0)]["points"].numpy()
            expected = render_cloud(normalize_to_unit_sphere(points, where="here"), cameras, style=style)
            for view in range(3):
                drawn = views.image(clouds.sample_name(index), view)
                assert np.array_equal(drawn, on_background(expected[view], "black"))
    assert np.allclose(manifest["rotations"], cameras.rotations)
    assert manifest["up_axis"] == "z"
    assert verify(tmp_path / "views") == 4


def test_views_that_are_there_are_left_alone(tmp_path: Path, prepared: Path) -> None:
    render(prepared, tmp_path / "views")
    before = read_files(tmp_path / "views")
    assert render(prepared, tmp_path / "views")["outcome"] == "already there"
    assert read_files(tmp_path / "views") == before
    with pytest.raises(DataError, match="was prepared with style = shaded, now it is depth"):
        render(prepared, tmp_path / "views", style="depth")
    with pytest.raises(DataError, match="was prepared with num_points = None, now it is 3"):
        render(prepared, tmp_path / "views", options=("num_points=3",))
    shutil.rmtree(prepared)
    prepare(write_off(tmp_path / "meshes"), prepared)
    with pytest.raises(DataError, match=r"was prepared with source_digest = .*, now it is"):
        render(prepared, tmp_path / "views")


def test_clouds_of_one_name_are_refused(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreparedSet, "names", lambda prepared, split: ["bed_0001"] * 6)
    with pytest.raises(DataError, match="1 names belong to several clouds each, the first is 'bed_0001'"):
        render(prepared, tmp_path / "views")
    assert not (tmp_path / "views.partial").exists()


def test_clouds_of_one_name_in_two_parts_have_views_of_their_own(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        for kind in ("ball", "rod"):
            for number in range(2):
                path = tmp_path / "in" / split / kind / f"{number}.ply"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_ply(path, dict(zip("xyz", solid(kind, 2 * seed + number).T, strict=True)))
    prepare_folder(tmp_path / "in", tmp_path / "set", num_points=100)
    render(tmp_path / "set", tmp_path / "views")
    views = Views.open(tmp_path / "views")
    cameras = ring_cameras(3, size_px=16, elevations_deg=(30.0,))
    drawn = {}
    for split in ("train", "test"):
        clouds = CloudFolder(split=split, root=str(tmp_path / "set"), views=str(tmp_path / "views"))
        for index in range(len(clouds)):
            name, points = clouds.sample_name(index), clouds[SampleKey(index, 0, 0)]["points"].numpy()
            expected = render_cloud(normalize_to_unit_sphere(points, where="here"), cameras, style="shaded")
            assert np.array_equal(views.image(name, 0), on_background(expected[0], "black"))
            drawn[name] = expected[0].tobytes()
    assert {*drawn} == {
        f"{split}/{kind}/{n}.ply" for split in ("train", "test") for kind in ("ball", "rod") for n in (0, 1)
    }
    assert drawn["train/ball/0.ply"] != drawn["test/ball/0.ply"]


def test_what_cannot_be_rendered_is_refused(tmp_path: Path, prepared: Path) -> None:
    render(prepared, tmp_path / "views")
    with pytest.raises(DataError, match="holds 'views', which has no clouds with an up axis to render"):
        render(tmp_path / "views", tmp_path / "others")
    with pytest.raises(ConfigError, match=r"num_points is 7, .* holds 6 points a shape"):
        render(prepared, tmp_path / "others", options=("num_points=7",))


def test_the_command_renders_a_set_by_name(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.rename(tmp_path / "modelnet40")
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path))
    words = ["data", "render", "modelnet40", "--to", tmp_path / "views", "--views", 2, "--size", 8]
    done = succeed(*words, "num_points=5", "--json", tmp_path / "report.json")
    assert "sizes: train\u00a06, test\u00a02" in done.out or "sizes: train 6, test 2" in done.out
    assert "views_per_object: 2" in done.out
    assert json.loads((tmp_path / "report.json").read_text())["options"]["num_points"] == 5
    told = succeed("data", "info", tmp_path / "views").out
    assert "size_px: 8" in told
    assert "rotations" not in told
    assert "all 4 files are as they were written" in succeed("data", "verify", tmp_path / "views").out
    assert "already there" in succeed(*words, "num_points=5").out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["modelnet4"], "is not a prepared set of clouds; did you mean 'modelnet40'?"),
        (["modelnet40"], "or prepare one: sightline data prepare modelnet40 --from PATH --to"),
        (["EMPTY"], "is not a prepared set of clouds; prepare one: sightline data prepare SET --from PATH --to DIR"),
        (["SET", "--views", "7", "--elevations", "0,30"], "7 views on 2 elevations"),
        (["SET", "--elevations", "low"], "--elevations low: degrees are needed, such as 30 or 10,30,50"),
        (["SET", "num_point=3"], "num_point: is not an option; did you mean 'num_points'?"),
        (["SET", "num_points=none"], "num_points: found the text 'none', allowed is a whole number"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path / "data"))
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "SET": prepared}
    said = refuse("data", "render", *(places.get(word, word) for word in words), "--to", tmp_path / "views")
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "views").exists()
