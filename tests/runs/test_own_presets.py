"""The presets for files of one's own train a few steps on tiny folders, as a newcomer has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.config import read_config
from sightline.contract.types import SampleKey
from sightline.engine.run_data import build_data
from sightline.store.boxes.records import propose_canvas
from sightline.workbench.weights.recipe import make_expected_info
from tests.command import succeed
from tests.data.scans.lidar_writers import write_own
from tests.data.scenes.test_scene_density import box_room
from tests.runs.small import ROOT

CONFIGS = ROOT / "configs"
SMALL_CANVAS = ["imgsz=64"]


def _write_photos(root: Path, classes: tuple[str, ...], *, count: int = 12) -> Path:
    """Write photos of 200 x 150 with a bright square each, with labels as YOLO has them."""
    generator = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    for number in range(count):
        pixels = generator.integers(0, 90, (150, 200, 3), dtype=np.uint8)
        left, top = generator.integers(10, 100, 2)
        pixels[top : top + 40, left : left + 40, number % 3] = 250
        Image.fromarray(pixels).save(root / "images" / f"{number:02d}.png")
        label = number % len(classes)
        text = f"{label} {(left + 20) / 200:.6f} {(top + 20) / 150:.6f} {40 / 200:.6f} {40 / 150:.6f}\n"
        (root / "labels" / f"{number:02d}.txt").write_text(text)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    files = _write_photos(root / "files", ("red", "green", "blue"))
    told = succeed("data", "prepare", "yolo_txt", "--from", files, "--to", root / "prepared").out
    assert "proposed_canvas" in told
    assert "for_config: imgsz=224x160" in told
    return root / "prepared"


def _train(config: str, out: Path, *words: str) -> dict:
    succeed("train", CONFIGS / config, *words, "train.steps=2", "--no-check", "--out", out, "--device", "cpu")
    assert (out / "results.svg").stat().st_size > 5000
    return json.loads((out / "final.json").read_text())["metrics"]


def test_boxes_of_the_photos_presets_stay_on_what_they_are_about(photos: Path) -> None:
    """Through mosaic, scale, flip and colour a square keeps its label, and none is empty; the last epoch is plain."""
    words = [f"data.root={photos}", "data.name=yolo_txt", "train.epochs=5", *SMALL_CANVAS]
    reader = build_data(read_config(CONFIGS / "detect/photos_scratch.yaml", words)).train.reader
    counts = []
    for epoch in range(5):
        batch = reader([SampleKey(index, epoch, 0) for index in range(8)])
        counts.append(len(batch["boxes"]))
        image_of_box = np.repeat(np.arange(8), np.diff(batch["box_offsets"]))
        for image, box, label, ignored in zip(
            image_of_box, batch["boxes"], batch["label"], batch["is_ignored"], strict=True
        ):
            assert (box[2:] > box[:2]).all()
            left, top, right, bottom = (round(float(side)) for side in box)
            if not ignored and min(right - left, bottom - top) > 4:
                inside = batch["image"][image, :, top + 1 : bottom - 1, left + 1 : right - 1]
                assert int(inside.mean(dim=(1, 2)).argmax()) == int(label)
    assert counts[4] <= 8 < min(counts[:4])


def test_another_base_of_the_written_config_has_the_colours_of_its_network(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    words = ("--from", photos.parent / "files", "--to", photos, "--config", path, "--base", "photos_scratch")
    succeed("data", "prepare", "yolo_txt", *words)
    written = path.read_text()
    assert "base: detect/photos_scratch\n" in written
    imagenet, none = (
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    )
    for base, expected in {"scratch": imagenet, "imagenet": imagenet, "finetune": imagenet, "dfine": none}.items():
        path.write_text(written.replace("photos_scratch", f"photos_{base}"))
        transforms = read_config(path).transforms
        assert [block.arguments for block in (transforms.train[-1], transforms.evaluate[-1])] == [expected] * 2
        assert transforms.evaluate[0].arguments["height"] == 160
    mine = read_config(path, ["transforms.evaluate.1.mean=[0.5, 0.5, 0.5]"]).transforms
    assert mine.evaluate[-1].arguments == {**none, "mean": (0.5,) * 3}
    assert mine.train[-1].arguments == none


def test_a_published_detector_is_fine_tuned_on_other_classes(photos: Path, tmp_path: Path) -> None:
    """The published one has learnt from labels in Pascal VOC's form."""
    narrow = ["train.batch_size=2", *SMALL_CANVAS, "model.backbone.width=8", "model.neck.width=16"]
    others = tmp_path / "others"
    files = _write_photos(tmp_path / "files", ("cat", "dog"), count=8)
    succeed("data", "convert", "yolo_txt", "--from", files, "--as", "voc", "--to", tmp_path / "voc")
    succeed("data", "prepare", "voc", "--from", tmp_path / "voc", "--to", others)
    assert "files are as they were written" in succeed("data", "verify", others).out
    _train(
        "detect/photos_finetune.yaml",
        tmp_path / "published",
        *("data.name=voc", f"data.root={others}", *narrow, "init=null"),
    )
    words = ["data.name=yolo_txt", f"data.root={photos}", *narrow, f"init.from={tmp_path / 'published'}"]
    assert "ap50" in _train("detect/photos_finetune.yaml", tmp_path / "tuned", *words)


_NARROW_VOXELS = (
    *("model.stem_width=4", "model.encoder_widths=[4, 8]", "model.encoder_blocks=[1, 1]"),
    *("model.decoder_widths=[8, 4]", "model.decoder_blocks=[1, 1]", "train.batch_size=2"),
)


def test_rooms_and_scans_are_trained_on_in_voxels(tmp_path: Path) -> None:
    """By the configs that `data prepare` writes over the presets of networks on sparse voxels."""
    for name in ("train/a", "train/b", "test/c"):
        path = tmp_path / f"rooms/{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        points = box_room(60, size=(3, 3, 2.5))
        np.savez(path, points=points, label=(points[:, 2] > 1).astype(int))
    (tmp_path / "scans").mkdir()
    write_own(tmp_path / "scans", 4, num_columns=100)
    rows = {
        "rooms": ("scene_folder", "up_axis=z", "unit=m"),
        "scans": ("scan_folder", "columns=[x, y, z, intensity, ring]"),
    }
    for kind, (name, *options) in rows.items():
        config = tmp_path / f"{kind}.yaml"
        prepared = ("--from", tmp_path / kind, "--to", tmp_path / f"{kind}_prepared", *options)
        succeed("data", "prepare", name, *prepared, "--config", config, "--base", f"own_{kind}_voxels")
        words = (*_NARROW_VOXELS, "train.steps=2", "evaluate.select=test", "--no-check")
        told = succeed("train", config, *words, "--out", tmp_path / f"run_{kind}")
        assert "miou" in told.out


def test_the_canvas_is_as_small_as_the_boxes_allow() -> None:
    sizes = np.tile([1080, 1920], (5, 1))
    boxes = np.array([[0, 0, side, side] for side in [40] * 5 + [400] * 5], dtype=float)
    proposed = propose_canvas(sizes, boxes)
    assert (proposed["height"], proposed["width"]) == (448, 768), "40 px become 16: 1080 x 0.4 = 432, 1920 x 0.4 = 768"
    assert proposed["small_box_px"] == 16.0
    assert propose_canvas(sizes, boxes * 100)["width"] == 320, "large boxes: the least canvas"
    assert propose_canvas(sizes, boxes / 100)["width"] == 1344, "tiny boxes: the largest"
    assert propose_canvas(np.tile([100, 200], (5, 1)), boxes / 10)["width"] == 224, "images are not enlarged"
    assert propose_canvas(sizes, np.zeros((0, 4))) == {}


def test_weights_are_converted_for_the_classes_of_the_photos_that_a_config_names(tmp_path: Path) -> None:
    """COCO's 80 classes where no photos are named; a set of the form of COCO has classes of its own."""
    _write_photos(tmp_path / "files", ("person", "kiwi"), count=4)
    boxes = [
        {"id": n + 1, "image_id": n + 1, "category_id": n % 2 + 1, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
        for n in range(4)
    ]
    images = [{"id": n + 1, "file_name": f"{n:02d}.png", "height": 150, "width": 200} for n in range(4)]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "kiwi"}]
    labels = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "files" / "labels.json").write_text(json.dumps(labels))
    succeed("data", "prepare", "coco", "--from", tmp_path / "files", "--to", tmp_path / "mine")
    config = CONFIGS / "detect/photos_finetune.yaml"
    info, notes = make_expected_info(read_config(config, [f"data.root={tmp_path / 'mine'}"]))
    assert (info.facts["class_names"], notes) == (("person", "kiwi"), [])
    for words in ([], [f"data.root={tmp_path / 'none'}"]):
        info, notes = make_expected_info(read_config(config, words))
        assert len(info.facts["class_names"]) == 80
        assert "its facts are the published ones" in notes[0]
