"""The first hour in full: sixty clouds as the pages have it, folders of real scans and photos among broken files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.config.shipped import copy_shipped
from tests.command import run_here
from tests.long.page_data import write_room
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
    assert "--columns x,y,z,intensity" in refused("view", "scans", "--out", "view")[0]
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


def test_a_folder_of_rooms(folder: Path) -> None:
    """As the page of rooms has it, with a smaller network; rooms to predict have no labels yet."""
    generator = np.random.default_rng(0)
    for split, names in {"train": ODD, "test": ("kitchen é", "hall")}.items():
        (folder / "scans" / split).mkdir(parents=True)
        for name in names:
            write_room(folder / f"scans/{split}/{name}.txt", generator, is_labelled=True)
    (folder / "scans/classes.txt").write_bytes(b"floor\r\nwall\r\nbox\r\n")
    assert "classes.txt" in done("data", "info", "scene_folder").out
    told = refused("data", "info", "scene_folder", "--from", "scans")[0]
    assert "7 columns and no name" in told
    assert "'columns=[x, y, z, ...]' when preparing" in told
    columns = "columns=[x, y, z, r, g, b, label]"
    done("data", "prepare", "scene_folder", "--from", "scans", "--to", "prepared", "up_axis=z", "unit=m", columns)
    told = done("data", "info", "prepared").out
    assert "scenes: train 4, test 2" in told
    assert "train: floor 2000, wall 1200, box 800" in told
    config = ("configs/segment/own_rooms.yaml", "data.root=prepared", "data.colours=true", "evaluate.select=test")
    small = ("model.widths=[8, 16, 16, 16]", "model.num_neighbours=[4, 4, 4, 4]", "transforms.train.3.max_points=256")
    done("check", *config, *small)
    done("train", *config, *small, "train.steps=2", "--no-check", "--out", "runs/own")
    assert "floor" in done("evaluate", "runs/own").out
    (folder / "more_scans").mkdir()
    write_room(folder / "more_scans/office.txt", generator, is_labelled=False)
    write_room(folder / "more_scans/labelled.txt", generator, is_labelled=True)
    (folder / "more_scans/cut.txt").write_text("1 2 3 4 5 6\n1 2 3\n")
    (line,) = refused("predict", "runs/own", "more_scans", "--out", "answers")
    assert line.startswith("refused: more_scans/cut.txt:2: 3 columns, 6 are needed")
    for name in ("office", "labelled"):
        labels = np.load(folder / f"answers/{name}.labels.npy")
        assert labels.shape == (1000,)
        assert set(labels) <= {0, 1, 2}
        assert (folder / f"answers/{name}.ply").is_file()
    done("report", "runs/own")
    assert "own_rooms" in (folder / "runs/own/report.html").read_text()
    done("view", "runs/own", "--num", "1", "--out", "seen")
    assert "own_rooms" in done("runs", "runs").out


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
