"""Names of files and classes with escape codes, line ends and bytes that are no text, in what every verb prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import succeed

CONFIG = Path(__file__).parents[2] / "configs" / "classify" / "cloud_folder_pointnet.yaml"
CLASSES = ("<b>round", "\x1b[31mred\x07", "line\nend")
FILES = ("u.xyz", "e\x1b[2J.xyz", "n\nl.xyz", "<img src=x>.xyz", os.fsdecode(b"\xff.xyz"))
SMALL = ("train.epochs=1", "train.batch_size=4", "train.tail=drop", "log.tensorboard=false", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a prepared set and its source; the last two files of a class are the same cloud."""
    draws = np.random.default_rng(0)
    for place, name in enumerate(CLASSES):
        (tmp_path / "source" / name).mkdir(parents=True)
        for file in FILES:
            points = draws.normal(size=(300, 3)) * np.roll([1.0, 1.0, 0.1], place)
            if file != FILES[-1]:
                last = points
            np.savetxt(tmp_path / "source" / name / file, last)
    return tmp_path


def test_every_verb_prints_them_escaped(folder: Path) -> None:
    prepared, run = folder / "prepared", folder / "run"
    words = (CONFIG, f"data.root={prepared}", *SMALL)
    for command in (
        (
            "data",
            "prepare",
            "cloud_folder",
            "--from",
            folder / "source",
            "--to",
            prepared,
            "up_axis=z",
            "num_points=256",
        ),
        ("data", "info", prepared),
        ("check", *words),
        ("train", *words, "--out", run),
        ("evaluate", run, "--device", "cpu"),
        ("predict", run, folder / "source", "--device", "cpu"),
        ("view", run, "--out", folder / "view"),
        ("probe", run, "--device", "cpu", "--cache", folder / "cache"),
    ):
        _, out, err = succeed(*command)
        printed = (out + err).replace("\n", "")
        odd = sorted({each for each in printed if not each.isprintable()})
        assert not odd, (command[0], odd)
        # Where a name holds a line end, what follows it does not begin a line.
        assert not [line for line in (out + err).split("\n") if line.startswith(("end", "l.xyz"))], command[0]


def test_labels_of_images_whose_names_are_not_utf_8_are_converted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    (source / "labels").mkdir()
    name = os.fsdecode(b"\xff")
    Image.new("RGB", (8, 8)).save(source / "images" / f"{name}.png")
    (source / "labels" / f"{name}.txt").write_text("0 .5 .5 .5 .5\n")
    (source / "classes.txt").write_text("thing\n")
    words = ("--from", source, "--layout", "yolo_txt", "--to", tmp_path / "coco", "--as", "coco")
    succeed("data", "convert", *words)
    (labels,) = [path for path in (tmp_path / "coco").rglob("*.json") if path.name != "conversion.json"]
    (image,) = json.loads(labels.read_text())["images"]
    assert os.fsencode(image["file_name"]).endswith(b"\xff.png")
