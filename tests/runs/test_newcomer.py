"""The first hour with clouds of one's own: sixty files under odd names lead to predictions, mistakes to a remedy."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from sightline.config.shipped import copy_shipped
from tests.command import Outcome, refuse, succeed
from tests.data.clouds.cloud_writers import write_folder
from tests.privileges import as_anybody
from tests.runs.mistakes import CONFIG, MISTAKES, PHOTOS, PREPARE, SMALL, Mistake, write_photos

CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def done(*words: object) -> Outcome:
    """A command that ends well, and writes no control character of the terminal."""
    outcome = succeed(*words)
    assert not CONTROLS.search(outcome.out + outcome.err)
    return outcome


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configs, clouds, a prepared set and a run, as a newcomer has it after an hour."""
    folder = tmp_path_factory.mktemp("newcomer")
    copy_shipped(CONFIG, folder)
    copy_shipped(PHOTOS, folder)
    write_folder(folder / "scans", per_class=5)
    write_photos(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("data", "prepare", "cloud_folder", "--from", "scans", "--to", "prepared", "up_axis=z", "num_points=64")
        done("data", "prepare", "yolo_txt", "--from", "photos", "--to", "photo_set")
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
    printed = refuse(*mistake.words)
    assert "Traceback" not in printed
    assert not CONTROLS.search(printed)
    for pattern in mistake.said:
        assert re.search(pattern, printed.strip()), f"{pattern}\n{printed}"
    mistake.follow(mistake.words, printed.strip())


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
            printed = refuse(*words)
    finally:
        Path(locked).chmod(0o700)
    assert "Traceback" not in printed
    assert re.search(said, printed), printed
