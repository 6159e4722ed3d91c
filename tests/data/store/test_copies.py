"""The same sample in training and test: found by preparation in any layout, in whatever form, and left out."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sightline.config import read_config
from sightline.contract.registry import data as data_sets
from sightline.engine.run_data import build_data
from sightline.store.loading.divided_copies import find_shared
from tests.command import run_here, succeed
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.clouds.cloud_writers import solid, write_folder, write_ply
from tests.data.preparing import prepare_set
from tests.data.scans.lidar_writers import own_scan, write_bin, write_labels
from tests.mission.small import skip_but

CONFIG = Path("configs/classify/cloud_folder_pointnet.yaml")


def write_clouds(root: Path, *, is_shared: bool) -> Path:
    """Clouds of which one of the test part is one of training, in another file format and under another name."""
    write_folder(root / "train", per_class=4)
    write_folder(root / "test", per_class=2, make=lambda kind, number: solid(kind, number + 50))
    cloud = solid("ball", 1 if is_shared else 77)
    np.save(root / "test" / "ball" / "other.npy", cloud)
    return root


def write_scenes(root: Path, *, is_shared: bool) -> Path:
    for split, seed in (("train", 0), ("train", 1), ("test", 2), ("test", 1 if is_shared else 3)):
        rows = np.random.default_rng(seed).integers(0, 5000, (60, 4)) / 1000
        rows[:, 3] = np.arange(60) % 2
        (root / split).mkdir(parents=True, exist_ok=True)
        text = "x y z label\n" if split == "train" else "// x, y, z, label\n"
        (root / split / f"{split}_{seed}.txt").write_text(text + "\n".join(" ".join(map(str, row)) for row in rows))
    return root


def write_scans(root: Path, *, is_shared: bool) -> Path:
    for split, seed in (("train", 0), ("train", 1), ("test", 2), ("test", 1 if is_shared else 3)):
        scan = own_scan(seed)
        write_bin(root / split / f"{split}_{seed}.bin", scan, scan.ring)
        write_labels(root / split / f"{split}_{seed}.label", scan.ids, scan.thing + 1)
    return root


def write_photos(root: Path, *, is_shared: bool) -> Path:
    """Photos as JPEG and PNG; the copy of the one has other bytes: a comment, and another level of compression."""
    for split, seeds in (("train", (0, 1)), ("val", (2, 1 if is_shared else 3))):
        rows = []
        for number, seed in enumerate(seeds):
            path = write_image(root / split / f"{split}_{number}.png", pattern(24, 32, seed))
            if split == "val":
                comment = PngImagePlugin.PngInfo()
                comment.add_text("Comment", "from elsewhere")
                Image.open(path).save(path, pnginfo=comment, compress_level=1)
            rows.append((number, path.name, 32, 24))
        boxes = [{"image_id": number, "category_id": 3, "bbox": [2, 2, 9, 9]} for number in range(2)]
        write_coco(root / f"instances_{split}.json", rows, boxes)
    return root


LAYOUTS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "cloud_folder": (write_clouds, {"up_axis": "z", "num_points": 64}),
    "scene_folder": (write_scenes, {"up_axis": "z", "unit": "m"}),
    "scan_folder": (write_scans, {"num_beams": 16, "columns": ("x", "y", "z", "remission", "ring")}),
    "coco": (write_photos, {}),
}


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_copy_in_the_test_part_is_found(tmp_path: Path, name: str, is_shared: bool) -> None:
    write, options = LAYOUTS[name]
    manifest = prepare_set(
        name, write(tmp_path / "in", is_shared=is_shared), tmp_path / "set", lambda *_: None, **options
    )
    assert len(manifest["duplicates"]) == is_shared
    told = [note for note in manifest["differences"] if "are in train, too" in note]
    assert len(told) == is_shared
    builder = data_sets.get_entry(name).builder
    sensor = {"fov_deg": (12.0, -18.0), "azimuth_deg": (50.0, -50.0), "num_beams": 16, "remission_max": 255}
    extra = {"sensor": sensor, "validation_share": 0.0} if name == "scan_folder" else {}
    train, test = (builder(split=split, root=str(tmp_path / "set"), **extra) for split in ("train", "test"))
    shared = find_shared(train, np.arange(len(train)), test, np.arange(len(test)))
    assert (shared is not None) == is_shared
    if shared is not None:
        assert shared.total == 1
        assert train.copies.is_error


def test_check_and_train_refuse_a_copy_and_their_command_leaves_it_out(tmp_path: Path) -> None:
    source = write_clouds(tmp_path / "in", is_shared=True)
    words = (
        "data",
        "prepare",
        "cloud_folder",
        "--from",
        source,
        "--to",
        tmp_path / "set",
        "up_axis=z",
        "num_points=300",
    )
    assert "1 of 7 samples of test (14.3%) are in train, too" in succeed(*words).err
    given = [f"data.root={tmp_path / 'set'}", "evaluate.select=test", "train.batch_size=6", skip_but("split-overlap")]
    judged = run_here("check", CONFIG, *given, "--budget", 0.5)
    assert judged.code == 1
    assert "[split-overlap error data.split] 1 of 7 samples of the test part (14.3%) are trained on" in judged.err
    trained = run_here("train", CONFIG, *given, "--out", tmp_path / "run")
    assert trained.code == 1
    assert "split-overlap" in trained.out + trained.err
    command = judged.err.partition("leave them out of training: sightline ")[2].partition(", and set data.root")[0]
    assert command.endswith("up_axis=z num_points=300 shared=leave_out_of_train")
    succeed(*shlex.split(command))
    left_out = [f"data.root={tmp_path / 'set_unshared'}", *given[1:]]
    assert "split-overlap" not in run_here("check", CONFIG, *left_out, "--budget", 0.5).err
    data = build_data(read_config(CONFIG, left_out))
    names = {data.train.sample_name(index) for index in data.train.indices}
    assert "ball/ball_01.ply" not in names
    assert (len(names), len(data.test.indices)) == (11, 7)


def test_a_drawn_validation_part_has_no_copies_of_training(tmp_path: Path) -> None:
    """Every cloud of training is there twice: with one of a pair in each part, validation would be training."""
    for kind in ("ball", "plate"):
        for split, count in (("train", 10), ("test", 2)):
            (tmp_path / "in" / split / kind).mkdir(parents=True)
            for number in range(count):
                cloud = solid(kind, number // 2 if split == "train" else number + 50)
                write_ply(tmp_path / "in" / split / kind / f"{number}.ply", dict(zip("xyz", cloud.T, strict=True)))
    single = solid("ball", 90)  # what may be held out without a copy
    write_ply(tmp_path / "in" / "train" / "ball" / "single.ply", dict(zip("xyz", single.T, strict=True)))
    prepare_set("cloud_folder", tmp_path / "in", tmp_path / "set", lambda *_: None, up_axis="z", num_points=64)
    for seed in range(12):
        data = build_data(read_config(CONFIG, [f"data.root={tmp_path / 'set'}", f"seed={seed}"]))
        shared = find_shared(data.train.dataset, data.train.indices, data.selection.dataset, data.selection.indices)
        assert shared is None
        assert len(data.selection.indices)
        assert len({*data.train.indices, *data.selection.indices}) == 21


def test_a_note_on_many_copies_names_some(tmp_path: Path) -> None:
    """Four hundred equal photos made a line of 11,000 characters."""
    cloud = dict(zip("xyz", solid("ball", 1).T, strict=True))
    for kind, split in itertools.product(("ball", "plate"), ("train", "test")):
        (tmp_path / "in" / split / kind).mkdir(parents=True)
        for number in range(30):
            write_ply(tmp_path / "in" / split / kind / f"{number}.ply", cloud)
    report = prepare_set("cloud_folder", tmp_path / "in", tmp_path / "set", lambda *_: None, up_axis="z", num_points=64)
    notes = [note for note in report["differences"] if "same sample" in note or "train, too" in note]
    assert len(notes) == 2
    assert all(len(note) < 300 for note in notes)
    assert all(" and 117 more)" in note for note in notes)
