"""The first hour with clouds of one's own: sixty files under odd names lead to predictions, mistakes to a remedy."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from sightline.config.shipped import copy_shipped
from tests.command import Outcome, run_here, succeed
from tests.data.clouds.cloud_writers import write_folder
from tests.privileges import as_anybody
from tests.runs.mistakes import CONFIG, MISTAKES, PREPARE, SMALL, Mistake
from tests.runs.newcomer import CLASS_NAMES, NAMES, PASSED_OVER, write_sixty

CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def done(*words: object) -> Outcome:
    """A command that ends well, and writes no control character of the terminal."""
    outcome = succeed(*words)
    assert not CONTROLS.search(outcome.out + outcome.err)
    return outcome


def test_sixty_clouds_become_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In eleven formats; where some have normals and others none, the message names the way out."""
    monkeypatch.chdir(tmp_path)
    copy_shipped(CONFIG, tmp_path)
    write_sixty(tmp_path / "scans")
    prepare = ("data", "prepare", "cloud_folder", "--from", "scans", "--to", "prepared", "up_axis=z", "num_points=32")
    mixed = run_here(*prepare)
    assert (mixed.code, "take the points alone with 'columns=[x, y, z]'" in mixed.err) == (2, True), mixed.err
    printed = done(*prepare, "columns=[x, y, z]")
    assert f"2 files of other kinds passed over: {CLASS_NAMES[0]}/mesh.gltf" in printed.out + printed.err
    assert "train 42, validation 6, test 12" in done("data", "info", "prepared").out
    done("check", CONFIG, "data.root=prepared", *SMALL)
    done("train", CONFIG, "data.root=prepared", "train.epochs=1", *SMALL, "--no-check", "--out", "run")
    done("evaluate", "run")
    done("predict", "run", "scans", "--csv", "found.csv", "--json", "found.json")
    with open("found.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 61
    found = json.loads(Path("found.json").read_text())
    assert {Path(row["file"]).name for row in found["predictions"]} == {
        each.name for each in Path("scans").rglob("*") if each.is_file() and each.name not in PASSED_OVER
    }
    done("view", f"scans/{CLASS_NAMES[0]}/{NAMES[13]}.npy", "--out", "view")
    done("view", "run", "--num", "1", "--out", "view")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configs, clouds, a prepared set and a run, as a newcomer has it after an hour."""
    folder = tmp_path_factory.mktemp("newcomer")
    copy_shipped(CONFIG, folder)
    write_folder(folder / "scans", per_class=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("data", "prepare", "cloud_folder", "--from", "scans", "--to", "prepared", "up_axis=z", "num_points=64")
        done("train", CONFIG, "data.root=prepared", "train.epochs=1", *SMALL, "--no-check", "--out", "run")
    return folder


def test_a_run_goes_on_where_its_data_moved_and_warns_of_other_data(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("run", "scans", "prepared"):
        shutil.copytree(trained / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    os.rename("prepared", "moved")
    further = ("train", "run", "--resume", "auto", "--no-check")
    done(*further, "train.epochs=2", "data.root=moved")
    done("evaluate", "run")
    assert "data-changed" not in caplog.text
    done("data", "prepare", "cloud_folder", "--from", "scans", "--to", "other", "up_axis=y", "num_points=64")
    os.rename("moved", "before")
    os.rename("other", "moved")  # made again
    done("evaluate", "run")
    assert "data-changed: data.root holds another set" in caplog.text
    assert "the figures are of the data as they are now" in caplog.text
    caplog.clear()
    os.rename("moved", "other")
    assert "resume-other-threads" not in caplog.text
    record = json.loads(Path("run/environment.json").read_text())
    threads = record["num_threads"]
    Path("run/environment.json").write_text(json.dumps({**record, "num_threads": threads + 1}))
    done(*further, "train.epochs=3", "data.root=other")
    assert "data-changed: data.root holds another set" in caplog.text
    assert f"resume-other-threads: begun with OMP_NUM_THREADS={threads + 1}, resumed with {threads}: " in caplog.text


@pytest.mark.parametrize("mistake", MISTAKES, ids=[each.name for each in MISTAKES])
def test_a_mistake_gets_place_and_remedy(
    mistake: Mistake, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in trained.iterdir():
        if entry.is_dir():
            shutil.copytree(entry, tmp_path / entry.name, symlinks=True, copy_function=os.link)
    monkeypatch.chdir(tmp_path)
    mistake.spoil()
    outcome = run_here(*mistake.words)
    assert outcome.code == mistake.code, outcome
    printed = outcome.err
    assert "Traceback" not in printed
    assert not CONTROLS.search(printed)
    for pattern in mistake.said:
        assert re.search(pattern, printed), f"{pattern}\n{printed}"


def test_links_are_followed_and_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To a data folder, to a folder of sources and to a file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(trained / "prepared")
    shutil.copytree(trained / "scans", tmp_path / "scans")
    cloud = tmp_path / "scans/ball/ball_00.ply"
    shutil.move(cloud, tmp_path / "elsewhere.ply")
    cloud.symlink_to(tmp_path / "elsewhere.ply")
    (tmp_path / "sources").symlink_to("scans")
    prepare = ("data", "prepare", "cloud_folder", "--from", "sources", "--to", "new", "up_axis=z", "num_points=64")
    assert f"source: {tmp_path / 'scans'}" in done(*prepare).out
    done("evaluate", trained / "run", "data.root=linked")
    assert caplog.text.count(f"data-link: linked leads to {trained / 'prepared'}") == 1
    assert f"root: {trained / 'prepared'}" in done("data", "info", "linked").out


@pytest.mark.parametrize(
    ("words", "locked", "said"),
    [
        (PREPARE, "scans", r"scans/manifest\.json: Permission denied; check the path and its permissions"),
        (PREPARE, "scans/rod/rod_01.ply", r"rod_01\.ply: cannot be read \(Permission denied\); check"),
        (("predict", "run", "scans"), "scans", r"refused: scans: cannot be read \(Permission denied\); check its"),
        (("predict", "run", "scans"), "scans/rod/rod_01.ply", r"refused: scans/rod/rod_01\.ply: cannot be read"),
        (
            ("view", "scans", "--out", "view"),
            "scans",
            "scans/.*: Permission denied; check the path and its permissions",
        ),
        (("data", "info", "prepared"), "prepared", r"manifest\.json: Permission denied; check the path"),
        (("evaluate", "run"), "run", r"run/config\.yaml: Permission denied; check the path and its permissions"),
        (("train", CONFIG), CONFIG, r"pointnet\.yaml: cannot be read: Permission denied"),
    ],
)
def test_what_may_not_be_read_is_named(
    words: Sequence[str], locked: str, said: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    Path(locked).chmod(0)
    try:
        with as_anybody():
            outcome = run_here(*words)
    finally:
        Path(locked).chmod(0o700)
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    assert re.search(said, outcome.err), outcome.err


def test_the_clouds_have_every_name_and_form(tmp_path: Path) -> None:
    """Sixty, twenty ways to write a cloud in eleven formats, in each class once."""
    write_sixty(tmp_path)
    files = [each for each in tmp_path.rglob("*") if each.is_file() and each.name not in PASSED_OVER]
    assert len(files) == 3 * len(NAMES) == 60
    assert {each.suffix.lower() for each in files} == {
        *(".ply", ".off", ".xyz", ".txt", ".csv", ".pts", ".npy", ".npz", ".h5", ".pcd", ".las")
    }
