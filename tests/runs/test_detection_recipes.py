"""The published recipes of detection on small sets in the true layouts: checked, trained for an epoch, evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightline.config import read_config
from sightline.config.run_config import to_plain
from sightline.data.synthetic.synthetic_crowds import SyntheticCrowds
from sightline.types import SampleKey
from tests.command import run_here, succeed
from tests.marks import long_but
from tests.processes import ROOT
from tests.published_layouts import MODELS
from tests.published_layouts import make_config_of as _make_config

FOLDER = ROOT / "configs" / "detect"
NUM_IMAGES = {"train": 4, "val": 2}
SMALL = (
    *("init=null", "loader.workers=0", "log.tensorboard=false", "train.epochs=1", "train.batch_size=2"),
    *("model.backbone.width=8", "model.head.num_convs=1", "schedule.warmup_share=0.0"),
)


def canvas(config: str) -> list[str]:
    """Less than a tenth of the sizes of the recipe, and a narrow neck where it has a width of its own."""
    if config == "crowdhuman_yolox_simota":
        mosaic, turned = ("transforms.train.0.plain_epochs=0", "transforms.train.2.plain_epochs=0"), "canvas=[64, 96]"
        sizes = [f"{place}.{side}" for place in ("train.0", "evaluate.0") for side in ("height=64", "width=96")]
        return [*mosaic, f"transforms.train.1.{turned}", *(f"transforms.{size}" for size in sizes)]
    sizes = {"height": 64, "width": 96}
    if not config.endswith("_s3"):
        sizes |= {"short_px": 64, "long_px": 96}
    places = ("transforms.train.1", "transforms.evaluate.0")
    neck = ["model.neck.width=16"]
    if config.endswith("_emd"):  # boxes of such sizes have no anchor of IoU 0.5, and two boxes one anchor
        neck.append("task.assigner.low_quality=guarantee")
    return neck + [f"{place}.{name}={value}" for place in places for name, value in sizes.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("photos"))


def prepared(folder: Path) -> Path:
    """Drawn crowds as CrowdHuman and as COCO, and both prepared."""
    crowds = SyntheticCrowds(split="train", train_size=6)
    numbers = iter(range(6))
    for split, count in NUM_IMAGES.items():
        lines, images, annotations = [], [], []
        for index in (next(numbers) for _ in range(count)):
            sample = crowds[SampleKey(index, 0, 0)]
            name = f"{index:06}"
            for place in (f"crowdhuman/CrowdHuman_{split}/Images", f"coco/{split}2017"):
                (folder / place).mkdir(parents=True, exist_ok=True)
                Image.fromarray(sample["image"].numpy()).save(folder / place / f"{name}.jpg")
            people = []
            for (x1, y1, x2, y2), is_out in zip(sample["boxes"].tolist(), sample["is_ignored"].tolist(), strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                people.append(
                    {"tag": "person", "fbox": box, "vbox": box, "hbox": box, "extra": {"ignore": int(is_out)}}
                )
                row: dict[str, Any] = {"id": 100 * index + len(people), "image_id": index + 1, "bbox": box}
                annotations.append({**row, "category_id": 1, "area": box[2] * box[3], "iscrowd": int(is_out)})
            lines.append(json.dumps({"ID": name, "gtboxes": people}))
            height, width = sample["image"].shape[:2]
            images.append({"id": index + 1, "file_name": f"{name}.jpg", "width": width, "height": height})
        (folder / "crowdhuman" / f"annotation_{split}.odgt").write_text("\n".join(lines))
        document = {"images": images, "annotations": annotations, "categories": categories()}
        (folder / "coco" / "annotations").mkdir(exist_ok=True)
        (folder / "coco" / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    for name in ("crowdhuman", "coco"):
        succeed("data", "prepare", name, "--from", folder / name, "--to", folder / "prepared" / name)
    return folder / "prepared"


def categories() -> list[dict[str, Any]]:
    names = json.loads((ROOT / "sightline" / "data" / "boxes" / "coco.json").read_text())["classes"]
    return [{"id": int(number), "name": name} for number, name in names.items()]


@pytest.mark.parametrize(
    "config", long_but(["coco_retinanet"], ["coco_retinanet", "crowdhuman_fcos_atss", "crowdhuman_retinanet_emd"])
)
def test_a_published_recipe_is_checked_and_trained(folder: Path, tmp_path: Path, config: str) -> None:
    """The others: tests/long/test_published_recipes.py."""
    assert_checked_and_trained(folder, tmp_path, config)


def assert_checked_and_trained(folder: Path, tmp_path: Path, config: str) -> None:
    words = [*SMALL, *canvas(config), f"data.root={folder / config.partition('_')[0]}"]
    checked = run_here("check", FOLDER / f"{config}.yaml", *words, "--device", "cpu")
    assert checked.code == 0, checked.out + checked.err
    places = ("--device", "cpu", "--no-check", "--out", tmp_path / "run")
    succeed("train", FOLDER / f"{config}.yaml", *words, *places)
    metrics = json.loads((tmp_path / "run" / "final.json").read_text())["metrics"]
    assert 0 <= metrics["ap50"] <= 1


def test_weights_of_torchvision_are_evaluated_by_its_recipe() -> None:
    """What the layout states for a file without a config is what coco_retinanet states."""
    layout = "torchvision_retinanet_resnet50_fpn"
    shipped = read_config(FOLDER / "coco_retinanet.yaml")
    stated = _make_config(layout, MODELS[layout], {}, None, None, ())
    for part in ("task", "losses", "metrics", "transforms"):
        assert to_plain(getattr(stated, part)) == to_plain(getattr(shipped, part)), part
    assert stated.data.name == shipped.data.name
