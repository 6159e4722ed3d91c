"""Rendering a set: the same bits however many processes, all or nothing, goes on where it was stopped, names faults."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.clouds.render import rendering
from sightline.areas.clouds.render.rendering import (
    FileObjects,
    PreparedObjects,
    RenderSettings,
    RenderSource,
    SyntheticObjects,
    render_set,
)
from sightline.areas.clouds.sets.modelnet import ModelNet40
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.ops.pinhole import ring_cameras
from sightline.ops.rendering import on_background, render_cloud, render_mesh
from sightline.store.prepared.prepared_set import verify
from sightline.store.prepared.prepared_writer import normalize_to_unit_sphere
from sightline.store.prepared.views import Views
from tests.command import run_here
from tests.data.clouds.modelnet_writers import SHAPES, prepare, write_npz, write_off
from tests.data.preparing import read_files, record_messages, stop_at
from tests.data.scenes.scene_writers import no_progress

LOOK = RenderSettings(num_views=3, size_px=16)


def shapes_of(train: int = 12, test: int = 12) -> SyntheticObjects:
    return SyntheticObjects(train_size=train, test_size=test, num_points=40)


def render(
    objects: RenderSource, target: Path, *, look: RenderSettings = LOOK, num_jobs: int = 1, progress: Any = no_progress
) -> Any:
    return render_set(objects, target, look=look, num_jobs=num_jobs, progress=progress)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare(write_npz(tmp_path / "in.npz"), tmp_path / "set")
    return tmp_path / "set"


# --- what is rendered ------------------------------------------------------------------------------------------------


def test_views_are_those_of_the_clouds_of_their_names(prepared: Path, tmp_path: Path) -> None:
    manifest = render(PreparedObjects(prepared), tmp_path / "views")
    assert manifest["outcome"] == "prepared"
    views = Views.open(tmp_path / "views")
    assert views.names == (*SHAPES["train"], *SHAPES["test"])
    cameras = ring_cameras(3, size_px=16)
    for split in ("train", "test"):
        clouds = ModelNet40(split=split, root=str(prepared), views=str(tmp_path / "views"))
        for index in range(len(clouds)):
            points = clouds[SampleKey(index, 0, 0)]["points"].numpy()
            expected = render_cloud(normalize_to_unit_sphere(points, where="here"), cameras)
            for view in range(3):
                drawn = views.image(clouds.sample_name(index), view)
                assert np.array_equal(drawn, on_background(expected[view], "black"))
    assert np.allclose(manifest["rotations"], cameras.rotations)
    assert manifest["up_axis"] == "z"
    assert verify(tmp_path / "views") == 4


def test_the_embedded_shapes_are_rendered_by_their_arguments(tmp_path: Path) -> None:
    render(
        shapes_of(),
        tmp_path / "views",
        look=RenderSettings(num_views=4, size_px=16, style="depth", elevations_deg=(0, 45)),
    )
    views = Views.open(tmp_path / "views")
    shapes = SyntheticShapes(split="test", train_size=12, test_size=12, num_points=40)
    cloud = shapes[SampleKey(5, 0, 0)]["points"].numpy()
    cameras = ring_cameras(4, size_px=16, elevations_deg=(0, 45))
    expected = render_cloud(cloud, cameras, style="depth")
    assert np.array_equal(views.image(shapes.sample_name(5), 3)[..., 0], expected[3])


def test_files_are_rendered_as_what_they_hold(tmp_path: Path) -> None:
    """A mesh as a surface, moved by its box; a cloud as points, about its mean; hidden files are not meant."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    (folder / "box.off").write_text("OFF\n4 2 0\n1 0 0\n1 4 0\n1 4 2\n1 0 2\n3 0 1 2\n3 0 2 3\n")
    cloud = np.random.default_rng(0).normal(size=(30, 3)) * 7 + 100
    np.savetxt(folder / "more/cloud.xyz", cloud)
    (folder / ".hidden.xyz").write_text("no numbers")
    objects = FileObjects(folder, up_axis="z")
    assert objects.names == {"all": ["box", "cloud"]}
    render(objects, tmp_path / "views")
    views, cameras = Views.open(tmp_path / "views"), ring_cameras(3, size_px=16)
    square = np.array([[0, -2, -1], [0, 2, -1], [0, 2, 1], [0, -2, 1]]) / 5**0.5
    mesh = render_mesh(square, np.array([[0, 1, 2], [0, 2, 3]]), cameras)
    assert np.array_equal(views.image("box", 0)[..., 0], mesh[0])
    points = render_cloud(normalize_to_unit_sphere(np.loadtxt(folder / "more/cloud.xyz"), where="here"), cameras)
    assert np.array_equal(views.image("cloud", 2)[..., 0], points[2])


def test_files_of_one_name_have_their_folders_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cup/train/a", "jug/train/a", "jug/train/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"{name}.npy", np.eye(3))
    expected = {"all": ["cup/train/a", "jug/train/a", "jug/train/b"]}
    assert FileObjects(tmp_path, up_axis="y").names == expected
    (tmp_path.parent / "link").unlink(missing_ok=True)
    (tmp_path.parent / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert FileObjects(Path("link"), up_axis="y").names == expected


# --- the same bits, all or nothing -----------------------------------------------------------------------------------


@pytest.mark.processes
def test_the_number_of_processes_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_OBJECTS_PER_SHARD", 7)
    monkeypatch.setattr(rendering, "_CHUNK", 2)
    for num_jobs in (1, 2):
        render(shapes_of(), tmp_path / str(num_jobs), num_jobs=num_jobs)
    assert read_files(tmp_path / "2") == read_files(tmp_path / "1")


@pytest.mark.parametrize("last", [1, 5, 6, 13, 20])
def test_what_was_stopped_is_continued_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    monkeypatch.setattr(rendering, "_OBJECTS_PER_SHARD", 5)
    render(shapes_of(), tmp_path / "whole")
    stop_at(last, render, shapes_of(), tmp_path / "views")
    assert not (tmp_path / "views").exists()
    messages = record_messages(render, shapes_of(), tmp_path / "views")
    num_whole = sum(last > end for end in (5, 10, 12, 17, 22))
    assert sum("kept" in message for message in messages) == num_whole
    assert read_files(tmp_path / "views") == read_files(tmp_path / "whole")
    assert not (tmp_path / "views.partial").exists()


PROGRAM = """
import os, signal, sys
from pathlib import Path
from sightline.areas.clouds.render import rendering
from tests.data.render.test_rendering import render, shapes_of
if __name__ == "__main__":
    rendering._OBJECTS_PER_SHARD, rendering._CHUNK = 5, 1
    {before}
    render(shapes_of(), Path(sys.argv[1]), num_jobs={jobs}, progress={progress})
"""


def run(program: str, target: Path) -> subprocess.CompletedProcess[str]:
    path = target.with_name("program.py")
    path.write_text(program)
    command = [sys.executable, str(path), str(target)]
    root = Path(__file__).resolve().parents[3]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, timeout=120, capture_output=True, text=True, env=environment)


def renderers_alive(mark: str) -> list[str]:
    """The command lines of processes with this text in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
    return found


@pytest.mark.processes
def test_a_kill_leaves_no_process_and_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = "lambda done, total, what: os.kill(os.getpid(), signal.SIGKILL) if done == 8 else None"
    mark = f"RENDERED_INTO={tmp_path}"
    before = f"os.environ['RENDERED_INTO'] = {str(tmp_path)!r}"
    assert run(PROGRAM.format(before=before, jobs=2, progress=kill), tmp_path / "views").returncode == -9
    end = time.monotonic() + 30
    while renderers_alive(mark) and time.monotonic() < end:
        time.sleep(0.05)
    assert renderers_alive(mark) == []
    assert not (tmp_path / "views").exists()
    monkeypatch.setattr(rendering, "_OBJECTS_PER_SHARD", 5)
    render(shapes_of(), tmp_path / "whole")
    messages = record_messages(render, shapes_of(), tmp_path / "views")
    assert "kept" in messages[0]
    assert read_files(tmp_path / "views") == read_files(tmp_path / "whole")


def test_views_that_are_there_are_left_alone(tmp_path: Path, prepared: Path) -> None:
    objects = PreparedObjects(prepared)
    render(objects, tmp_path / "views")
    before = read_files(tmp_path / "views")
    assert render(objects, tmp_path / "views")["outcome"] == "already there"
    assert read_files(tmp_path / "views") == before
    with pytest.raises(DataError, match="was prepared with style = shaded, now it is depth"):
        render(objects, tmp_path / "views", look=RenderSettings(num_views=3, size_px=16, style="depth"))
    with pytest.raises(DataError, match="was prepared with num_points = None, now it is 3"):
        render(PreparedObjects(prepared, num_points=3), tmp_path / "views")


def test_views_of_a_set_that_changed_are_refused(tmp_path: Path, prepared: Path) -> None:
    render(PreparedObjects(prepared), tmp_path / "views")
    shutil.rmtree(prepared)
    prepare(write_off(tmp_path / "meshes"), prepared)
    with pytest.raises(DataError, match=r"was prepared with source_digest = .*, now it is"):
        render(PreparedObjects(prepared), tmp_path / "views")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_file_that_does_not_read_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "good.npy", np.eye(3))
    (folder / "sliced.off").write_text("OFF\n4 2 0\n1 0 0\n")
    with pytest.raises(DataError, match=r"sliced\.off: announces 4 vertices, the file ends after 1"):
        render(FileObjects(folder, up_axis="z"), tmp_path / "views")
    assert not (tmp_path / "views").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("OFF\n3 1 0\n1 1 1\n1 1 1\n1 1 1\n3 0 1 2\n", r"point\.off: its faces have no extent"),
        ("OFF\n3 1 0\n1 1 1\n1 1 inf\n1 1 1\n3 0 1 2\n", r"point\.off"),
    ],
)
def test_a_mesh_without_extent_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/point.off").write_text(text)
    with pytest.raises(DataError, match=told):
        render(FileObjects(tmp_path / "in", up_axis="z"), tmp_path / "views")


def test_two_objects_of_one_name_are_refused(tmp_path: Path, prepared: Path) -> None:
    objects = PreparedObjects(prepared)
    objects.names["test"][0] = "bed_0001"
    with pytest.raises(DataError, match="1 names belong to several objects each, the first is 'bed_0001'"):
        render(objects, tmp_path / "views")
    assert not (tmp_path / "views.partial").exists()


def test_a_set_without_clouds_is_refused(tmp_path: Path) -> None:
    render(shapes_of(), tmp_path / "views")
    with pytest.raises(DataError, match="holds 'views', which has no clouds with an up axis to render"):
        PreparedObjects(tmp_path / "views")


def test_more_points_than_are_stored_are_refused(prepared: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_points is 7, .* holds 6 points a shape"):
        PreparedObjects(prepared, num_points=7)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_renders_tells_and_verifies(tmp_path: Path) -> None:
    words = ["data", "render", "synthetic_shapes", "--to", tmp_path / "views", "train_size=12", "test_size=12"]
    given = ["num_points=32", "--views", 2, "--size", 16, "--jobs", 1, "--json", tmp_path / "report.json"]
    done = run_here(*words, *given)
    assert done.code == 0, done.err
    assert "views_per_object: 2" in done.out
    assert json.loads((tmp_path / "report.json").read_text())["options"]["train_size"] == 12
    told = run_here("data", "info", tmp_path / "views")
    assert "size_px: 16" in told.out
    assert "rotations" not in told.out
    assert "all 4 files are as they were written" in run_here("data", "verify", tmp_path / "views").out
    assert "already there" in run_here(*words, *given).out


def test_views_that_show_nothing_are_told(tmp_path: Path) -> None:
    """A flat square in the plane x = 1, seen from its edge by two of four cameras at its height."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "flat.off").write_text("OFF\n4 2 0\n1 0 0\n1 4 0\n1 4 2\n1 0 2\n3 0 1 2\n3 0 2 3\n")
    given = ["--views", 4, "--elevations", "0", "--size", 16, "--jobs", 1, "--up", "z"]
    done = run_here("data", "render", tmp_path / "in", "--to", tmp_path / "views", *given)
    assert done.code == 0, done.err
    assert "look at this: all: 2 of 4 views are blank, the first is one of 'flat'" in done.err
    aside = run_here("data", "render", tmp_path / "in", "--to", tmp_path / "aside", "--views", 3, *given[2:])
    assert (aside.code, "blank" in aside.err) == (0, False)


def test_the_command_renders_a_set_by_name(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.rename(tmp_path / "modelnet40")
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path))
    done = run_here("data", "render", "modelnet40", "--to", tmp_path / "views", "--views", 1, "--size", 8, "--jobs", 1)
    assert done.code == 0, done.err
    assert "sizes: train\u00a06, test\u00a02" in done.out or "sizes: train 6, test 2" in done.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["modelnet4"], "'modelnet4' is neither a folder nor a data set of clouds; did you mean 'modelnet40'?"),
        (["modelnet40"], "or prepare one: sightline data prepare modelnet40 --from PATH --to"),
        (["synthetic_shapes", "--views", "7", "--elevations", "0,30"], "7 views on 2 elevations"),
        (["synthetic_shapes", "--elevations", "low"], "--elevations low: degrees are needed, such as 30 or 10,30,50"),
        (["synthetic_shapes", "--up", "y"], "--up y, but z is up in synthetic_shapes"),
        (["synthetic_shapes", "train_sise=3"], "train_sise: is not an option; did you mean 'train_size'?"),
        (["synthetic_shapes", "num_points=none"], "num_points: found the text 'none', allowed is a whole number"),
        (["FOLDER"], "holds files, which do not state their up axis; give --up x, y or z"),
        (["FOLDER", "--up", "z", "num_points=5"], "num_points is for prepared sets"),
        (["EMPTY", "--up", "z"], "holds nothing, no mesh or cloud"),
        (["SET", "--up", "y"], " z is up; leave it out"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path / "data"))
    for name in ("folder", "empty"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "folder/a.npy", np.eye(3))
    places = {"FOLDER": tmp_path / "folder", "EMPTY": tmp_path / "empty", "SET": prepared}
    done = run_here("data", "render", *(places.get(word, word) for word in words), "--to", tmp_path / "views")
    assert done.code == 2
    assert told in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "views").exists()
