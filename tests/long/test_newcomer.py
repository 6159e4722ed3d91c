"""The first hour in full: sixty clouds as the pages have it, folders of real scans and photos among broken files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sightline.config.shipped import copy_shipped
from tests.command import run_here
from tests.runs.mistakes import CONFIG
from tests.runs.newcomer import write_sixty
from tests.runs.test_newcomer import CONTROLS, done

ODD = ("two words", "line\nend", "\x1b[31mred", "-leading")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    copy_shipped("configs", tmp_path)
    return tmp_path


def refused(*words: object) -> list[str]:
    """The lines of a command that refuses some or all of its files: each names one, and no control is printed."""
    outcome = run_here(*words)
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    assert not CONTROLS.search(outcome.out + outcome.err)
    return [line for line in outcome.err.splitlines() if line.startswith(("refused: ", "error: "))]


def test_sixty_clouds_as_the_pages_have_it(folder: Path) -> None:
    write_sixty(folder / "scans")
    done("data", "prepare", "cloud_folder", "--from", "scans", "--to", "prepared", "up_axis=z", "columns=[x, y, z]")
    done("data", "info", "prepared")
    done("check", CONFIG, "data.root=prepared")
    done("train", CONFIG, "data.root=prepared", "train.epochs=1", "--out", "runs/own")
    done("evaluate", "runs/own")
    done("predict", "runs/own", "scans", "--csv", "answers.csv")
    done("view", "scans", "--out", "view")
    assert len(list((folder / "view").glob("*.png"))) == 60
    done("view", "runs/own", "--out", "view")
    done("describe", "runs/own")


def test_a_folder_of_scans(folder: Path, shared: Path) -> None:
    """Of KITTI, with four columns, for a run on scans with five."""
    source = shared / "data/kitti_object_mini/velodyne"
    (folder / "scans").mkdir()
    for name, number in zip(ODD, range(4), strict=True):
        shutil.copy(source / f"{number:06}.bin", folder / f"scans/{name}.BIN")
    street = "configs/segment/synthetic_lidar_squeezeseg.yaml"
    done("train", street, "--no-check", "--out", "run", "train.steps=2", "data.train_size=4", "data.test_size=2")
    lines = refused("predict", "run", "scans", "--out", "answers")
    assert len(lines) == 4
    assert all("columns" in line for line in lines)
    columns = ("--columns", "x,y,z,remission")
    assert all("no column ring" in line for line in refused("predict", "run", "scans", *columns, "--out", "answers"))
    assert "name them with --columns" in refused("view", "scans", "--out", "view")[0]
    done("view", "scans", *columns, "--out", "view")
    for name, content in {"cut": b"123", "empty": b"", "noise": bytes(range(256)) * 5}.items():
        (folder / f"scans/{name}.bin").write_bytes(content)
    broken = [line for line in refused("predict", "run", "scans", *columns) if "no column ring" not in line]
    assert [line.partition(": ")[2].partition(":")[0] for line in broken] == [
        "scans/cut.bin",
        "scans/empty.bin",
        "scans/noise.bin",
    ]
    assert "give a YAML file" in refused("check", "scans")[0]
    assert "give a YAML file" in refused("describe", "scans")[0]


def test_a_folder_of_photos(folder: Path, shared: Path) -> None:
    photos = sorted((shared / "data/coco128/images/train2017").glob("*.jpg"))
    (folder / "photos").mkdir()
    for name, path in zip(ODD, photos, strict=False):
        shutil.copy(path, folder / f"photos/{name}.JPG")
    for mode, name in {"L": "grey.png", "RGBA": "alpha.png", "P": "palette.gif", "F": "float.tif"}.items():
        Image.new(mode, (50, 40)).save(folder / "photos" / name)
    (folder / "photos/cut.jpg").write_bytes(photos[9].read_bytes()[:5000])
    (folder / "photos/empty.png").write_bytes(b"")
    (folder / "photos/notes.txt").write_text("notes")
    crowds = "configs/detect/synthetic_crowds_fcos.yaml"
    done("train", crowds, "--no-check", "--out", "run", "train.steps=2", "data.train_size=8", "data.test_size=2")
    lines = refused("predict", "run", "photos", "--out", "drawn", "--json", "found.json")
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == [
        "photos/cut.jpg",
        "photos/empty.png",
        "photos/float.tif",
    ]
    assert len(json.loads(Path("found.json").read_text())["predictions"]) == 7
    assert "photos/notes.txt: " in refused("view", "photos", "--out", "view")[0]
    assert "give a YAML file" in refused("check", "photos")[0]
    assert "no JSON file" in refused("data", "prepare", "coco", "--from", "photos", "--to", "new")[0]
