"""Detection by the commands: train, evaluate with another suppression, predict photos of any kind, view."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.areas.detect.pictures import COLORS
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.contract.types import SampleKey
from sightline.engine.run_loading import open_trained
from tests.command import Outcome, document_of, refuse, succeed
from tests.marks import long_but
from tests.models.set_networks import SETTINGS, make_small_words
from tests.processes import ROOT
from tests.trained import DETECT, copy_run

CONFIG = ROOT / "configs" / "detect" / "synthetic_crowds_retinanet.yaml"

FLIPPED = "transforms.vote=[{name: flip_image, probability: 1.0}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("detect", tmp_path_factory.mktemp("detect"))


def evaluated(run: Path, *words: str) -> dict[str, Any]:
    document: dict[str, Any] = document_of("evaluate", run, *words, "--device", "cpu")
    return document


def test_a_finished_run_is_evaluated_with_another_suppression(run: Path) -> None:
    plain = evaluated(run)
    assert {"ap", "ap50", "ar", "ap_small"} <= plain["metrics"].keys()
    assert plain["per_class"]["person"]["count"] > 10
    again = evaluated(run, "evaluate.batch_size=1")
    assert again["metrics"]["ap"] == pytest.approx(plain["metrics"]["ap"], rel=1e-3)
    few = evaluated(run, "task.most=1")
    assert few["metrics"]["ar"] == pytest.approx(few["metrics"]["ar1"])
    soft = evaluated(run, "task.suppression.name=soft_linear", "task.most=1000")
    assert soft["metrics"] != plain["metrics"]
    votes = "transforms.vote=[{name: flip_image, probability: 1.0}, {name: scale_steps, low: 1.5, high: 1.5}]"
    voted = evaluated(run, "evaluate.votes=2", votes)["metrics"]
    assert voted["ap"] == pytest.approx(plain["metrics"]["ap"], rel=1e-3)
    assert voted["ap_vote2"] != voted["ap"]
    refused = refuse("evaluate", run, "task.assigner.name=atss")
    assert "task.suppression" in refused


def test_tensorboard_has_pictures_of_each_validation(run: Path) -> None:
    """Read back from the event file: one for each of the four images, of the size that was drawn, the labels in it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("validation/")]
    assert tags == [f"validation/detections_{place}" for place in range(4)]
    (image,) = events.Images(tags[0])
    assert image.step == 6
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert (image.width, image.height) == (512, len(pixels))
    assert len(pixels) > 2 * 192, "the legend stands below"
    kinds = [(pixels[: 2 * 192] == COLORS[kind]).all(axis=2).any() for kind in ("found", "missed")]
    assert any(kinds)


def test_images_written_as_files_get_the_boxes_that_were_scored(run: Path, tmp_path: Path) -> None:
    """The same pixels through either door: as the data set's test image, and as a file of it."""
    crowd = SyntheticCrowds(split="test", test_size=6)
    Image.fromarray(crowd[SampleKey(2, 0, 0)]["image"].numpy()).save(tmp_path / "crowd.png")
    (found,) = document_of("predict", run, tmp_path / "crowd.png", "score=0.02")["predictions"]
    trained = open_trained(run)
    batch = {name: torch.as_tensor(value)[None] for name, value in crowd[SampleKey(2, 0, 0)].items()}
    seen = trained.transform(batch)
    with torch.no_grad():
        outputs = trained.model(image=seen["image"])
    scores = outputs["logits"].sigmoid()
    assert found["num_boxes"] > 0
    assert found["boxes"][0]["score"] == pytest.approx(float(scores.max()), rel=1e-5)
    assert (found["height"], found["width"]) == (192, 256)


def test_photos_of_any_kind_are_predicted_and_drawn(run: Path, tmp_path: Path) -> None:
    """Grey, turned by EXIF, a damaged one, a folder: boxes lie in the upright image, and the damaged file is named."""
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels[..., 0]).save(photos / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels).save(photos / "turned.jpg", exif=exif)
    (photos / "broken.jpg").write_bytes((photos / "turned.jpg").read_bytes()[:300])
    done = refuse("predict", run, photos, "score=0.01", "--out", tmp_path / "drawn", "--json", tmp_path / "all.json")
    assert "broken.jpg" in done
    found = {Path(each["file"]).stem: each for each in json.loads((tmp_path / "all.json").read_text())["predictions"]}
    assert {name: (each["height"], each["width"]) for name, each in found.items()} == {
        "grey": (90, 160),
        "turned": (160, 90),
    }
    for each in found.values():
        for box in each["boxes"]:
            assert box["image_id"] == each["image_id"]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["grey.boxes.png", "turned.boxes.png"]
    with Image.open(tmp_path / "drawn" / "turned.boxes.png") as drawn:
        assert drawn.width / drawn.height == 90 / 160


def test_a_photo_is_three_pictures_and_its_detections_or_all_stages(run: Path, tmp_path: Path) -> None:
    told = tmp_path / "view.json"
    words = ("view", run, "--num", "1", "--device", "cpu", "--out", tmp_path / "view", "--json", told)

    def view(*more: str) -> tuple[Outcome, dict[str, Any]]:
        done = succeed(*words, *more)
        (stages,) = (sample["stages"] for sample in json.loads(told.read_text())["samples"])
        return done, {stage["stage"]: stage for stage in stages}

    done, short = view()
    assert "missed" in done.out
    assert "positives a box, by its size" in done.out
    assert "--all adds the stages between" in done.err
    assert [*short] == ["raw", "evaluate 2: normalize_image", "assignment", "prediction"]
    assert [*short["assignment"]["figures"]["assigners"]] == ["max_iou"]
    assert (tmp_path / "view" / "view.html").stat().st_size > 10_000
    done, stages = view("--all")
    assert "--all" not in done.err
    assert [*stages] == ["raw", "evaluate 1: fit_image", *[*short][1:2], "priors", *[*short][2:]]
    reports = stages["assignment"]["figures"]["assigners"]
    assert list(reports) == ["max_iou (this config's)", "atss", "free_anchor"]
    assert reports["max_iou (this config's)"] == short["assignment"]["figures"]["assigners"]["max_iou"]
    (sample,) = document_of("view", CONFIG, "data.train_size=8", "--num", "1", "--out", tmp_path / "seen")["samples"]
    assert [stage["stage"] for stage in sample["stages"]] == ["raw", "train 3: normalize_image", "assignment"]


_SMALL = (
    *("data={name: synthetic_crowds, train_size: 8, validation_size: 4, test_size: 4}",),
    *(
        f"transforms.{part}=[{{name: fit_image, height: 64, width: 96}}, {{name: normalize_image}}]"
        for part in ("train", "evaluate")
    ),
    *("train.batch_size=4", "evaluate.batch_size=4", "init=null", "model.channels_last=false"),
)
_NARROW = (*_SMALL, "model.backbone={name: resnet18, width: 8}", "model.neck.width=16")
FAMILIES: dict[str, tuple[str, ...]] = {
    "synthetic_crowds_retinanet": (*DETECT, "model.channels_last=false"),
    "synthetic_crowds_fcos": _NARROW,
    "synthetic_crowds_yolov3": _NARROW,
    "synthetic_crowds_yolox": (*_SMALL, "model.backbone.width=8"),
    "crowdhuman_yolox_simota": _SMALL,
    **dict.fromkeys(("crowdhuman_retinanet_emd", "crowdhuman_retinanet_freeanchor"), _NARROW),
    **dict.fromkeys(("crowdhuman_fcos_atss", "crowdhuman_retinanet_adaptive", "crowdhuman_retinanet_s3"), _NARROW),
    **{family: (*make_small_words(family), "train.batch_size=4") for family in SETTINGS},
}
"""Of each family of detectors its preset, and overrides that make it small."""


@pytest.mark.parametrize(
    ("family", "has_some"), long_but([("synthetic_crowds_retinanet", False)], product(FAMILIES, (False, True)))
)
def test_images_without_boxes_are_trained_on_and_scored(
    family: str, has_some: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a set, or most: losses are finite, and where nothing is there is no figure rather than 0 or 1."""
    scene = SyntheticCrowds.scene

    def draw(crowds: SyntheticCrowds, index: int) -> Any:
        keeps = has_some and index % 4 == 0
        return scene(crowds, index) if keeps else replace(scene(crowds, index), people=[], ignored=[])

    monkeypatch.setattr(SyntheticCrowds, "scene", draw)
    preset = CONFIG.with_name(f"{'photos_dfine' if family in SETTINGS else family}.yaml")
    words = ("train.epochs=1", "train.precision=float32", "log.tensorboard=false", "--no-check", "--device", "cpu")
    succeed("train", preset, *FAMILIES[family], *words, "--out", tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(line["loss/total"] is not None for line in lines if line["split"] == "train")
    assert (json.loads((tmp_path / "run/final.json").read_text())["metrics"]["ap"] is None) is not has_some


# --- large photos -----------------------------------------------------------------------------------------------------


def test_large_photos_are_predicted_and_evaluated_by_tiles(run: Path, tmp_path: Path) -> None:
    """The run's crowds have 192 x 256 pixels: in tiles of 128, beside tiles that a photo fits into, bit for bit."""
    crowd = SyntheticCrowds(split="test", test_size=1)[SampleKey(0, 0, 0)]["image"].numpy()
    Image.fromarray(crowd).save(tmp_path / "crowd.png")
    words = ("predict", run, tmp_path / "crowd.png", "score=0.02", "--device", "cpu")
    whole, fitting, tiled = (document_of(*words, *more) for more in ((), ("tile=256",), ("tile=128", "--batch-size=2")))
    assert "tile" not in whole
    assert fitting["predictions"] == whole["predictions"]
    assert tiled["tile"] == {"size_px": 128, "overlap": 0.4}
    assert tiled["predictions"][0]["num_boxes"] > 0
    assert tiled["predictions"] != whole["predictions"]
    assert document_of(*words, "tile=128", "--batch-size=64")["predictions"] == tiled["predictions"]
    scored = evaluated(run, "evaluate.tile=128")
    plain, suffix = evaluated(run)["metrics"], "_tile128"
    assert {name: scored["metrics"][name] for name in plain} == pytest.approx(plain, nan_ok=True)
    assert {name for name in scored["metrics"] if name.endswith(suffix)} == {f"{name}{suffix}" for name in plain}
    assert scored["tile"] == tiled["tile"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("evaluate", "tile=128"), "write evaluate.tile=128"),
        (("evaluate", "evaluate.tile=128", "evaluate.votes=2", FLIPPED), "set evaluate.votes=1, or tile=null"),
        (("evaluate", "evaluate.tile=128", "--ensemble"), "give only one of them"),
        (("predict", "a.png", "tile=0"), "tile: found 0"),
        (("export", "tile=128"), "write sightline predict RUN PATH tile=128"),
    ],
)
def test_tiles_that_cannot_be_are_refused_in_one_line(run: Path, words: tuple[str, ...], answer: str) -> None:
    command, *more = words
    assert answer in refuse(command, run, *more)
