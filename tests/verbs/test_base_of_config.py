"""The base of a config that is written for files of one's own: of photos by their number, else the first."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import numpy as np
import pytest

from sightline.config import read_config
from sightline.published.known_weights import find_known
from sightline.store.boxes.photo_bases import BASES, SECONDS, WITHOUT_WEIGHTS
from sightline.store.prepared.config_bases import ConfigBase, choose_base
from sightline.verbs.base_of_config import describe_base, describe_weights
from tests.cases import run_each
from tests.command import refuse, succeed
from tests.data.boxes.box_writers import write_image
from tests.runs.small import ROOT


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of 64 x 48 with a box each in YOLO's text files: four to train on, one to test."""
    for split, count in {"train": 4, "val": 1}.items():
        for number in range(count):
            write_image(tmp_path / f"photos/images/{split}/{number}.png", np.zeros((48, 64, 3), np.uint8))
            label = tmp_path / f"photos/labels/{split}/{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "photos/data.yaml").write_text("train: images/train\nval: images/val\nnames: [crate]\n")
    return tmp_path / "photos"


def test_photos_that_are_tested_do_not_count(photos: Path) -> None:
    """Of five photos whose parts nothing states, one is tested."""
    flat = photos.parent / "flat"
    for kind in ("images", "labels"):
        (flat / kind).mkdir(parents=True)
        for number, path in enumerate(sorted((photos / kind).rglob("*.*"))):
            path.rename(flat / kind / f"{number}{path.suffix}")
    (flat / "classes.txt").write_text("crate\n")
    told, _ = _prepare(flat)
    assert "images: all 5" in succeed("data", "info", photos.parent / "p").out
    assert "builds on detect/photos_finetune: 4 photos to train on" in told


def _prepare(photos: Path, *words: str) -> tuple[str, str]:
    """Return the lines on standard error and the config that is written."""
    path = photos.parent / f"own{len(words)}.yaml"
    told = succeed(
        "data", "prepare", "yolo_txt", "--from", photos, "--to", photos.parent / "p", "--config", path, *words
    )
    return told.err, path.read_text()


@run_each("num_photos, base", [(1, 0), (56, 0), (9_999, 0), (10_000, 1), (10**6, 1)])
def test_the_number_of_photos_alone_names_the_base(num_photos: int, base: int) -> None:
    assert choose_base(BASES, num_photos) == BASES[base]


def test_every_base_of_the_table_is_a_config_whose_weights_are_known() -> None:
    for row in BASES:
        config = read_config(Path(row.name))
        assert row.name in SECONDS
        assert (config.init is None) == (row.name == WITHOUT_WEIGHTS)
        assert config.init is None or find_known(config.init.source) is not None


def test_what_is_said_before_anything_is_trained(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the network: the base and why, what random weights give, its file, its time, and both ways out."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    told, written = _prepare(photos)
    assert "base: detect/photos_finetune\n" in written
    for text in (
        "own0.yaml: builds on detect/photos_finetune: 4 photos to train on, fewer than 10,000; a detector of COCO",
        "own0.yaml: random weights find next to nothing after so few: AP50 0.0056 on 128 unseen photos of COCO after",
        "own0.yaml: its weights: torchvision://RetinaNet_ResNet50_FPN_Weights.COCO_V1, 136.6 MB, licence: ",
        "; needs no extra; not on this machine: fetched by the training, or beforehand: sightline weights fetch torch",
        "own0.yaml: its time: 20 epochs of 4 photos at 64x64 are some 0 minutes of one core (on an Intel Xeon: 1.5 s a",
        "own0.yaml: without these weights: --base photos_scratch, from random ones, or init.from=FILE, a run or",
    ):
        assert text in told
    scratch, other = _prepare(photos, "--base", "photos_scratch")
    assert f"base: {WITHOUT_WEIGHTS}\n" in other
    assert "its weights" not in scratch
    assert "without these weights" not in scratch
    assert "random weights find next to nothing" in scratch
    assert written.partition("data:")[2] == other.partition("data:")[2], (
        "what own.yaml states is the same over each base"
    )


def test_the_measured_time_grows_with_photos_epochs_and_pixels() -> None:
    words = ["data.name=yolo_txt", "imgsz=640x480"]
    (line,) = (line for line in _describe(BASES[0], words) if "its time" in line)
    assert line.startswith("its time: 20 epochs of 56 photos at 640x480 are some 84 minutes of one core")
    assert 1.5 * 56 * 20 * 3 / 60 == 84
    unknown = _describe(ConfigBase("detect/photos_dfine"), ["data.name=yolo_txt"])
    assert "its time: 30 epochs at 640x640; not measured" in unknown
    assert any("pip install 'sightline[transformers]'" in line for line in unknown)


def _describe(base: ConfigBase, words: list[str]) -> list[str]:
    return [*describe_base(base, words, bases=BASES, num_samples=56, is_named=True)]


def test_weights_that_are_on_this_machine_are_named_with_their_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.verbs.base_of_config.find_on_machine", lambda name: Path("/cache/w.pth"))
    assert describe_weights("torchvision://ResNet18_Weights.IMAGENET1K_V1").endswith("; on this machine: /cache/w.pth")
    assert describe_weights("mine.pth") == "its weights: mine.pth, which is not there"


def test_a_base_of_another_name_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    words = ("data", "prepare", "yolo_txt", "--from", tmp_path / "none", "--to", tmp_path / "to")
    told = refuse(*words, "--config", tmp_path / "own.yaml", "--base", "photos_scrach")
    assert "--base photos_scrach: is no shipped config; did you mean 'photos_scratch'?" in told
    assert "give its file: --config own.yaml" in refuse(*words, "--base", "photos_scratch")
    told = refuse(*words, "--config", tmp_path / "own.yaml", "--base", "own_rooms_voxels")
    assert "--base own_rooms_voxels: is for the task segment, and yolo_txt for detect; take detect/photos" in told


def test_a_set_without_photos_names_its_other_bases(tmp_path: Path) -> None:
    """Rooms: the config of the first base, or of the one that is named, with what is proposed for each."""
    for name in ("train/a", "test/b"):
        path = tmp_path / f"in/{name}.npz"
        path.parent.mkdir(parents=True)
        points = np.random.default_rng(0).uniform(0, 1, (9000, 3)) * (4, 4, 0)
        np.savez(path, points=points, label=np.arange(9000) % 3)
    words = (
        "data",
        "prepare",
        "scene_folder",
        "--from",
        tmp_path / "in",
        "--to",
        tmp_path / "set",
        "up_axis=z",
        "unit=m",
    )
    own, voxels = tmp_path / "own.yaml", tmp_path / "voxels.yaml"
    told = succeed(*words, "--config", own).err
    assert "own.yaml: builds on segment/own_rooms: a Point Transformer\n" in told
    assert "own.yaml: another base: --base own_rooms_voxels: SpUNet on sparse voxels" in told
    told = succeed(*words, "--config", voxels, "--base", "own_rooms_voxels").err
    assert "voxels.yaml: another base: --base own_rooms: a Point Transformer\n" in told
    assert read_config(own).model.name == "point_transformer"
    spacing = (16 / 9000) ** 0.5
    written = read_config(voxels)
    assert written.model.arguments["grid_m"] == pytest.approx(spacing, abs=0.003)
    (crop,) = (block for block in written.transforms.train if block.name == "crop_points")
    assert 20_000 <= crop.arguments["max_points"] <= 40_000
    assert "voxel_sample" not in voxels.read_text()


def test_the_manual_has_the_rows_of_the_table() -> None:
    page = (ROOT / "docs/manual/data_photos.md").read_text()
    rows = [re.escape(f"| `{row.name}` |") for row in BASES[:2]]
    borders = [f"fewer than {BASES[0].num_samples:,}", f"{BASES[0].num_samples:,} or more"]
    assert all(re.search(f"(?m)^\\| {border} {row}", page) for border, row in zip(borders, rows, strict=True))
