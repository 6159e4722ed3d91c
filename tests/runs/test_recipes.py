"""Published recipes of detection, parts and scenes on small sets in the true layouts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.config import read_config
from sightline.config.plain_values import to_plain
from sightline.contract.types import SampleKey
from tests.command import document_of, run_here, succeed
from tests.data.clouds.shapenet_part_writers import LAYOUTS, prepare, write_layout
from tests.data.scenes.scene_writers import write_s3dis
from tests.engine.published_weights import saved, small_state
from tests.marks import long_but
from tests.processes import ROOT
from tests.published_layouts import MODELS
from tests.published_layouts import make_config_of as _make_config

# --- recipes of detection ---------------------------------------------------------------------------------------------


FOLDER = ROOT / "configs" / "detect"
NUM_IMAGES = {"train": 4, "val": 2}
SMALL = (
    *("init=null", "loader.workers=0", "log.tensorboard=false", "train.epochs=1", "train.batch_size=2"),
    *("model.backbone.width=8", "model.head.num_convs=1", "schedule.warmup_share=0.0"),
)


def canvas(config: str) -> list[str]:
    """Less than a tenth of the sizes of the recipe, and a narrow neck where it has a width of its own."""
    if config == "crowdhuman_yolox_simota":
        sizes = [f"{place}.{side}" for place in ("train.0", "evaluate.0") for side in ("height=64", "width=96")]
        return ["transforms.train.1.canvas=[64, 96]", *(f"transforms.{size}" for size in sizes)]
    sizes = {"height": 64, "width": 96}
    if not config.endswith("_s3"):
        sizes |= {"short_px": 64, "long_px": 96}
    places = ("transforms.train.1", "transforms.evaluate.0")
    neck = ["model.neck.width=16"]
    if config.endswith("_emd"):  # boxes of such sizes have no anchor of IoU 0.5, and two boxes one anchor
        neck.append("task.assigner.low_quality=guarantee")
    return neck + [f"{place}.{name}={value}" for place in places for name, value in sizes.items()]


@pytest.fixture(scope="module")
def detection_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_detection(tmp_path_factory.mktemp("photos"))


def prepare_detection(detection_folder: Path) -> Path:
    """Drawn crowds as CrowdHuman and as COCO, and both prepared."""
    crowds = SyntheticCrowds(split="train", train_size=6)
    numbers = iter(range(6))
    for split, count in NUM_IMAGES.items():
        lines, images, annotations = [], [], []
        for index in (next(numbers) for _ in range(count)):
            sample = crowds[SampleKey(index, 0, 0)]
            name = f"{index:06}"
            for place in (f"crowdhuman/CrowdHuman_{split}/Images", f"coco/{split}2017"):
                (detection_folder / place).mkdir(parents=True, exist_ok=True)
                Image.fromarray(sample["image"].numpy()).save(detection_folder / place / f"{name}.jpg")
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
        (detection_folder / "crowdhuman" / f"annotation_{split}.odgt").write_text("\n".join(lines))
        document = {"images": images, "annotations": annotations, "categories": categories()}
        (detection_folder / "coco" / "annotations").mkdir(exist_ok=True)
        (detection_folder / "coco" / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    for name in ("crowdhuman", "coco"):
        succeed(
            "data", "prepare", name, "--from", detection_folder / name, "--to", detection_folder / "prepared" / name
        )
    return detection_folder / "prepared"


def categories() -> list[dict[str, Any]]:
    names = json.loads((ROOT / "sightline" / "areas" / "detect" / "sets" / "coco.json").read_text())["classes"]
    return [{"id": int(number), "name": name} for number, name in names.items()]


@pytest.mark.parametrize(
    "config", long_but(["coco_retinanet"], ["coco_retinanet", "crowdhuman_fcos_atss", "crowdhuman_retinanet_emd"])
)
def test_a_published_recipe_is_checked_and_trained(detection_folder: Path, tmp_path: Path, config: str) -> None:
    """The others: tests/long/test_recipes.py."""
    assert_checked_and_trained(detection_folder, tmp_path, config)


def assert_checked_and_trained(detection_folder: Path, tmp_path: Path, config: str) -> None:
    words = [*SMALL, *canvas(config), f"data.root={detection_folder / config.partition('_')[0]}"]
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


# --- recipes of parts and scenes --------------------------------------------------------------------------------------


PARTS = {
    "shapenet_part_dgcnn": ("model.num_neighbours=4", "model.embedding=16"),
    "shapenet_part_pct": ("evaluate.votes=2",),
    "shapenet_part_point_bert": (
        "model.width=12",
        "model.num_groups=6",
        "model.group_size=4",
        "model.num_centres=[8, 6]",
        "schedule.warmup_epochs=0",
    ),
    "shapenet_part_point_transformer": (
        "model.widths=[16, 32]",
        "model.strides=[1, 4]",
        "model.num_blocks=[1, 1]",
        "model.num_neighbours=[4, 4]",
    ),
    "shapenet_part_point_transformer_dense": ("model.num_blocks=[1, 1]", "model.width=16", "model.num_neighbours=4"),
    "shapenet_part_pointnet": (),
    "shapenet_part_pointnet2": ("model.num_centres=[8, 4]", "model.radii=[0.5, 1.0]"),
}
"""What brings each recipe down to shapes of some 20 points."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("recipes"))


def prepared(folder: Path) -> Path:
    """ShapeNetPart prepared from each layout, and S3DIS."""
    for layout in LAYOUTS:
        prepare(write_layout(layout, folder / "in" / layout), folder / layout)
    source = write_s3dis(folder / "in" / "rooms")
    succeed("data", "prepare", "s3dis", "--from", source, "--to", folder / "rooms")
    return folder


def assert_trains_and_repeats(config: str, run: Path, *overrides: str, figure: str) -> None:
    """One epoch; evaluated again, the run says the same of its last checkpoint."""
    small = ("train.epochs=1", "train.batch_size=8", "log.tensorboard=false", *overrides)
    places = ("--device", "cpu", "--no-check", "--out", run)
    succeed("train", ROOT / f"configs/segment/{config}.yaml", *small, *places)
    metrics = json.loads((run / "final.json").read_text())["metrics"]
    assert 0 <= metrics[figure] <= 1
    repeated = document_of("evaluate", run, "--device", "cpu")["metrics"]
    assert {name: value for name, value in repeated.items() if name in metrics} == metrics
    assert not math.isnan(repeated[figure])


WITH_NORMALS = {"shapenet_part_pointnet2", "shapenet_part_point_transformer", "shapenet_part_point_transformer_dense"}
"""The HDF5 release has none; its refusal is tested with the set."""


PAIRS = [(one, other) for one in LAYOUTS for other in PARTS if one != "hdf5" or other not in WITH_NORMALS]
IN_THE_SUITE = list({config: (layout, config) for layout, config in (*PAIRS, ("text", "shapenet_part_pct"))}.values())


KEPT = [pair for pair in IN_THE_SUITE if pair[1] in ("shapenet_part_pct", "shapenet_part_pointnet")]


@pytest.mark.parametrize(("layout", "config"), long_but(KEPT, IN_THE_SUITE))
def test_recipes_for_parts(folder: Path, layout: str, config: str) -> None:
    """Each in one layout; in all of them: tests/long/test_recipes.py."""
    assert_parts_are_trained(folder, layout, config)


def assert_parts_are_trained(folder: Path, layout: str, config: str) -> None:
    """Shapes of 20 to 26 points, thinned to 16 or, where every shape has 24, to 24; scored on all of them."""
    count = 16 if layout == "text" else 24
    thinned = [f"transforms.{part}.0.num_points={count}" for part in ("train", "evaluate")]
    overrides = (f"data.root={folder / layout}", *thinned, *PARTS[config])
    assert_trains_and_repeats(config, folder / f"{layout}_{config}", *overrides, figure="instance_miou")


def test_a_model_for_one_size_says_what_to_do_with_ragged_shapes(folder: Path, tmp_path: Path) -> None:
    whole = (f"data.root={folder / 'text'}", "transforms.train=[]", "transforms.evaluate=[]", "--device", "cpu")
    recipe = ROOT / "configs/segment/shapenet_part_pointnet.yaml"
    done = run_here("train", recipe, *whole, "--no-check", "--out", tmp_path / "run")
    assert done.code != 0
    assert "let a transform choose as many of each (sample_points)" in done.err


def test_recipe_for_scenes(folder: Path) -> None:
    """Rooms of 65 m with some 30 points: blocks of 40 m, 12 points at a time."""
    overrides = (
        f"data.root={folder / 'rooms'}",
        "data.repeats=3",
        "model.num_neighbours=4",
        "model.embedding=16",
        "transforms.train.0.size_m=40.0",
        "transforms.train.0.num_points=12",
        "transforms.train.0.fewest=8",
        "task.blocks={size_m: 40.0, stride_m: 20.0, num_points: 12}",
    )
    assert_trains_and_repeats("s3dis_dgcnn", folder / "scenes", *overrides, figure="miou")


@pytest.mark.parametrize(
    ("layout", "facts", "data", "overrides", "figure"),
    [
        (
            "yanx27_pointnet_parts",
            {"num_classes": 50, "in_channels": 6, "num_categories": 16},
            "text",
            ("transforms.evaluate.0.num_points=32",),
            "instance_miou",
        ),
        (
            "yanx27_pointnet_scenes",
            {"num_classes": 13, "in_channels": 9},
            "rooms",
            ("task.blocks={size_m: 40.0, stride_m: 20.0, num_points: 12}", "evaluate.select=test"),
            "miou",
        ),
    ],
)
def test_published_weights_are_evaluated_by_their_own_recipe(
    folder: Path, tmp_path: Path, layout: str, facts: dict[str, int], data: str, overrides: tuple[str, ...], figure: str
) -> None:
    """Random weights in the shapes of the published ones: converted for the set that is there, scored on all of it."""
    file, run = saved(tmp_path / "a.pth", small_state(layout, **facts)), tmp_path / "run"
    given = (f"data.root={folder / data}", "log.tensorboard=false", *overrides)
    succeed("weights", "convert", file, "--layout", layout, "--to", run, *given)
    assert 0 <= document_of("evaluate", run, "--device", "cpu")["metrics"][figure] < 0.5
