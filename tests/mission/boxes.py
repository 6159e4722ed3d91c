"""What notes on a detector of pedestrians ask for of boxes: their pictures, overlaps, priors and augmentation."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import sightline
from sightline.ops.boxes.priors import make_anchors, make_points
from sightline.parts.boxes.assigner import PriorPredictions
from sightline.view import output
from tests.command import succeed
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.mission.detectors import CROWDS
from tests.mission.labels import write_three
from tests.mission.rows import row
from tests.mission.small import CPU, said, step
from tests.recipe_steps import SmallStep
from tests.trained import DETECT

_BACKGROUND, _IGNORED = -1, -2

# --- pictures ---------------------------------------------------------------------------------------------------------


def coco_words(source: Path, to: Path) -> tuple[str, ...]:
    """Prepare a folder in COCO's form; return the words by which a config takes its people."""
    succeed("data", "prepare", "coco", "--from", source, "--to", to)
    data = f"data={{name: coco, root: '{to}', validation_share: 0.0, classes: [person]}}"
    return (data, "evaluate.select=test", *(word for word in DETECT if not word.startswith("data")))


def view(out: Path, *words: object) -> tuple[dict[str, np.ndarray], Any]:
    """View the first training image at all stages; return the exact pixels of the pictures, by name, and the document.

    The page that is written shows the same pictures, but for what a photo's encoding loses.
    """
    with mock.patch.object(output, "encode_page", wraps=output.encode_page) as encode_page:
        said("view", CROWDS, *words, "--samples", 0, "--all", *CPU, "--out", out, "--json", out.with_suffix(".json"))
    (subject,) = encode_page.call_args.args[0]
    exact = {panel.name: panel.pixels for stage in subject.stages for panel in stage.panels}
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', (out / "view.html").read_text(), re.S)
    assert data is not None
    clouds = json.loads(data[1])["subjects"][0]["clouds"]
    shown = {panel["name"]: panel["picture"] for cloud in clouds for panel in cloud["panels"]}
    assert shown.keys() == exact.keys()
    for name, picture in shown.items():
        image = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("RGB")
        expected = Image.fromarray(exact[name]).resize(image.size, Image.Resampling.BOX)
        difference = np.abs(np.asarray(image, np.float64) - np.asarray(expected, np.float64))
        assert difference.mean() < 30, name  # of noise, which photos lose most of; another picture is off by 80
    return exact, json.loads(out.with_suffix(".json").read_text())


def _is_color(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((pixels == color).all(axis=-1))


_TRUTH, _GREY = (0, 190, 140), (160, 166, 174)
"""Colours of a label, and of an ignored one."""


@row("S3.9", "see the ground truth drawn", "`sightline view CONFIG --out DIR`")
def _ground_truth(work: Path) -> None:
    text = said("view", CROWDS, *DETECT, "--num", 1, *CPU, "--out", work / "a")
    assert re.search(r"train/train_00000 │ raw │ 0 │ 256 x 192 pixels, \S+ to \S+, 8 boxes", text)
    (picture,) = (work / "a").glob("*.png")
    assert picture.stat().st_size > 20_000

    exact, _ = view(work / "b", *coco_words(write_three(work / "in"), work / "set"))
    drawn, plain = exact["raw"][:288], pattern(48, 64, 0).repeat(6, axis=0).repeat(6, axis=1)
    assert drawn.shape == plain.shape
    _assert_framed(drawn, 24, 36, 144, 216)  # of 4, 6, 24, 36, six times as large
    assert np.array_equal(drawn[40:212, 28:140], plain[40:212, 28:140])  # within it
    assert np.array_equal(drawn[240:, :170], plain[240:, :170])  # beside all boxes
    crowd, own = drawn[10:278, 214:374], plain[10:278, 214:374]
    is_hatched = _is_color(crowd, _GREY)
    assert 0.05 < is_hatched.mean() < 0.5
    is_plain = (crowd == own).all(axis=-1)
    assert is_plain.mean() > 0.4
    assert (is_plain | is_hatched | _is_color(crowd, (20, 20, 20))).all()  # each line beside a dark one
    _assert_framed(exact["evaluate 1: fit_image"], 32, 48, 192, 288)  # on a canvas of 256 x 192, drawn twice as large


def _assert_framed(drawn: np.ndarray, left: int, top: int, right: int, bottom: int) -> None:
    """Expect the sides of a label, two pixels thick, in its colour, and nothing of that colour within."""
    is_truth = _is_color(drawn, _TRUTH)
    assert is_truth[top:bottom, left : left + 2].all()
    assert is_truth[top:bottom, right - 2 : right].all()
    assert is_truth[top : top + 2, left:right].all()
    assert is_truth[bottom - 2 : bottom, left:right].all()
    assert not is_truth[top + 4 : bottom - 4, left + 4 : right - 4].any()


_LEVELS = ((240, 228, 66), (86, 180, 233))
"""Colours of the two finest levels."""
_ONE_ANCHOR = (
    *("task.anchors={scales: [1.0], ratios: [1.0], base_strides: 4.0}", "model.head.num_anchors=1"),
    "transforms.train=[{name: fit_image, height: 64, width: 64}, {name: normalize_image}]",
    "transforms.evaluate=[{name: fit_image, height: 64, width: 64}, {name: normalize_image}]",
)
_FOUND_BY = {(28, 28), (20, 28), (36, 28), (28, 20), (28, 36)}
"""Middles of the anchors of 32 pixels, 8 apart, whose IoU with the box 12, 12, 44, 44 is 0.5 or more: 1, and 0.6."""


def _write_square(root: Path) -> Path:
    """Write two photos of 64 pixels a side, with the box 12, 12, 44, 44."""
    for number, split in enumerate(("train", "val")):
        write_image(root / f"images/{number}.png", pattern(64, 64, number))
        box = {"image_id": number, "category_id": 3, "bbox": [12, 12, 32, 32], "area": 1024, "iscrowd": 0}
        write_coco(root / f"annotations/instances_{split}2017.json", [(number, f"{number}.png", 64, 64)], [box])
    return root


@row("S3.10", "see anchors, and what is assigned to them, at every level", "`sightline view CONFIG --all --out DIR`")
def _assignment(work: Path) -> None:
    text = said("view", CROWDS, *DETECT, "--num", 1, "--all", *CPU, "--out", work / "a")
    assert "stride 8: 24 x 32 cells; 9 anchors" in text
    assert re.search(r"stride 32: 6 x 8 cells", text)

    words = coco_words(_write_square(work / "in"), work / "set")
    exact, document = view(work / "b", *words, *_ONE_ANCHOR)
    assert [name for name in exact if name.startswith("stride")] == [f"stride {2**level}" for level in range(3, 8)]
    (name,) = (name for name in exact if name.startswith("max_iou"))
    first = document["assigners"][0]
    assert (first["assigner"], first["boxes"], first["unmatched"], first["positives"]) == (name, 1, 0, 5)
    assert first["per_level"] == [5, 0, 0, 0, 0]
    middles = [(x, y) for x in range(4, 64, 8) for y in range(4, 64, 8) if 12 not in (x, y)]  # where the box begins
    is_of_box = _is_color(exact[name], _LEVELS[0])  # the first colour of boxes, too
    assert {(x, y) for x, y in middles if is_of_box[6 * y, 6 * x]} == _FOUND_BY  # six times as large
    assert is_of_box[90:260, 72:74].all()  # the left side of the box
    assert is_of_box[90:260, 262:264].all()
    anchors = _is_color(exact["stride 8"], _LEVELS[0])  # 20, 20, 52, 52, of the cell in the middle
    assert anchors[130:300, 120:122].all()
    assert anchors[130:300, 310:312].all()
    anchors = _is_color(exact["stride 16"], _LEVELS[1])  # 8, 8, 72, 72: eight pixels of margin, five times as large
    assert exact["stride 16"].shape[1] == 360
    assert anchors[50:350, 40:42].all()
    assert not _is_color(exact["stride 16"][:350], _LEVELS[0]).any()


# --- overlaps, and who chooses among priors ---------------------------------------------------------------------------


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the IoU (N, M) of boxes (N, 4) and (M, 4), 0 where both are empty."""
    a, b = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    common = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (a, b)]
    union = areas[0] + areas[1] - common
    return np.asarray(np.where(union > 0, common / np.where(union > 0, union, 1), 0))


@row("S3.11", "compute IoU fast, without compiling kernels", "`sightline.ops.box_iou(boxes, others)`")
def _iou(work: Path) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 15.0, 15.0]])
    assert torch.allclose(sightline.ops.box_iou(boxes, boxes), torch.tensor([[1.0, 25 / 175], [25 / 175, 1.0]]))
    corners = np.random.default_rng(0).integers(-20, 60, (90, 2, 2))
    drawn = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)  # some are empty, some touch
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-12), (torch.int64, 1e-6)):
        first, last = torch.from_numpy(drawn[:50]).to(dtype), torch.from_numpy(drawn[40:]).to(dtype)
        found = sightline.ops.box_iou(first, last)
        assert np.abs(found.numpy() - overlap(drawn[:50], drawn[40:])).max() < bound
        assert torch.equal(found, sightline.ops.box_iou(last, first).T)
    assert sightline.ops.box_iou(first[:0], last).shape == (0, 50)
    assert sightline.ops.box_iou(boxes[:1], boxes[:1] + 1000).item() == 0


_BOXES = torch.tensor([[8.0, 8.0, 40.0, 40.0], [44.0, 44.0, 60.0, 60.0], [0.0, 44.0, 16.0, 64.0]])
_IS_REGION = torch.tensor([False, False, True])
"""Two people, in whose middles are the points 18, 19, 26, 27 and 54 of a grid 8 pixels apart; and an ignored region."""


@row("S3.12", "choose the assigner: maximum IoU, FCOS, OTA, FreeAnchor, SimOTA", "`task.assigner={name: simota}`")
def _assigners(work: Path) -> None:
    """Train a step with each; then it assigns three boxes as the papers say, worked out by hand."""
    bags = "losses=[{name: free_anchor_positive, bag_size: 5}, {name: free_anchor_negative, bag_size: 5}]"
    recipes: dict[str, tuple[str, tuple[str, ...]]] = {
        "max_iou": ("crowdhuman_retinanet", ("task.assigner={name: max_iou}",)),
        "fcos": ("crowdhuman_fcos", ()),
        "ota": ("crowdhuman_fcos", ("task.assigner={name: ota}",)),
        "free_anchor": ("crowdhuman_retinanet_freeanchor", ("task.assigner={name: free_anchor, bag_size: 5}", bags)),
        "simota": ("crowdhuman_yolox_simota", ("task.assigner={name: simota}",)),
    }
    for name, (recipe, words) in recipes.items():
        small = step(f"detect/{recipe}", work, *words)
        task: Any = small.job.task
        kind = type(task._assigner).__name__.lower()
        assert kind.replace("assigner", "") == name.replace("_", ""), kind
        assert _num_positive(small) > 0, name
        assign = {"fcos": _by_points, "ota": _by_predictions, "simota": _by_predictions}.get(name, _by_anchors)
        assign(name, task._assigner)


def _num_positive(small: SmallStep) -> int:
    batch = small.send()[0]
    target: Tensor = small.job.task.context(small.job.model, batch)["target"]  # type: ignore[attr-defined]
    return int((target >= 0).sum())


def _by_anchors(name: str, assigner: Any) -> None:
    """Anchors of 32 pixels, 8 apart; an ignored region holds more than half of the lowest two rows."""
    priors = make_anchors([(8, 8)], [8], [[(32.0, 32.0)]])
    boxes = torch.tensor([[12.0, 12.0, 44.0, 44.0], [-100.0, 46.0, 200.0, 100.0]])
    matched = assigner(priors, boxes, torch.tensor([False, True])).matched.view(8, 8)
    found = {(8 * column + 4, 8 * row + 4) for row, column in (matched == 0).nonzero().tolist()}
    assert found == _FOUND_BY, name
    assert (matched[6:] == _IGNORED).all(), name  # of 32 rows, 22 and 30 are in the region
    assert (matched[:6] == _BACKGROUND).sum() == 48 - len(_FOUND_BY), name  # 14 or less
    if name == "max_iou":
        between = torch.tensor([[12.0, 12.0, 44.0, 54.0]])  # IoUs of 0.44 and so on are ignored, of less background
        row = assigner(priors, between, torch.tensor([False])).matched
        best = overlap(between.numpy(), priors.coordinates.numpy())[0]
        assert torch.equal(row == 0, torch.from_numpy(best >= 0.5))
        assert torch.equal(row == _IGNORED, torch.from_numpy((best >= 0.4) & (best < 0.5)))
        assert (row == _IGNORED).any()


_MATCHES = {"ota": {18: 0, 19: 0, 54: 1}, "simota": {18: 0, 26: 0, 54: 1}}
"""Points and their boxes by predictions: 2 for the first, whose best IoUs sum to 2.1 and 2.3, those of the least cost.

Of SimOTA the score of another class makes 19 dear.
"""


def _by_predictions(name: str, assigner: Any) -> None:
    """Points 8 apart; the boxes that are predicted there overlap the two people by 1, 0.6, 0.5, 0.2 and 0.8."""
    predicted = torch.tensor([[1000.0, 1000.0, 1010.0, 1010.0]]).repeat(64, 1)
    for point, bottom in {18: 40.0, 19: 27.2, 26: 24.0, 27: 14.4}.items():
        predicted[point] = torch.tensor([8.0, 8.0, 40.0, bottom])
    predicted[54] = torch.tensor([44.0, 44.0, 60.0, 56.8])
    logits = torch.zeros(64, 2)
    if name == "simota":
        logits[19] = torch.tensor([-8.0, 8.0])
    else:
        predicted[27] = predicted[0]
        logits -= 4
        logits[[18, 19], 0], logits[54, 1] = 4.0, 4.0
    at_points = PriorPredictions(logits, predicted, torch.zeros(64))
    matched = assigner(make_points([(8, 8)], [8]), _BOXES, _IS_REGION, torch.tensor([0, 1, 0]), at_points).matched
    assert _matches(matched) == _MATCHES[name], name
    assert (matched == _IGNORED).nonzero().flatten().tolist() == [40, 41, 48, 49, 56, 57], name


def _matches(matched: Tensor) -> dict[int, int]:
    """Return the box of each prior that has one."""
    return {prior: int(matched[prior]) for prior in (matched >= 0).nonzero().flatten().tolist()}


def _by_points(name: str, assigner: Any) -> None:
    """Points 8 and 16 apart, within 1.5 strides of a box's middle, at most 64 pixels from its sides if they are fine.

    The smallest of several boxes wins: 27 is in three, and 54 is the one point that the second holds.
    """
    large = torch.tensor([[-60.0, -60.0, 124.0, 124.0], [24.0, 24.0, 32.0, 32.0]])
    boxes, is_region = torch.cat([_BOXES, large]), torch.tensor([False, False, True, False, False])
    matched = assigner(make_points([(8, 8), (4, 4)], [8, 16]), boxes, is_region).matched
    coarse = dict.fromkeys((69, 70, 73, 74), 3)
    assert _matches(matched) == {18: 0, 19: 0, 26: 0, 27: 4, 54: 1, **coarse}, name
    assert (matched == _IGNORED).nonzero().flatten().tolist() == [40, 41, 48, 49, 56, 57, 76], name


# --- augmentation -----------------------------------------------------------------------------------------------------

_PAINTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))


def _write_painted(root: Path) -> Path:
    """Write four black photos, in each of which the box is painted in a colour of its own."""
    for number in range(5):
        left, top = 4 + 6 * (number % 4), 6 + 3 * (number % 4)
        pixels = np.zeros((48, 64, 3), dtype=np.uint8)
        pixels[top : top + 24, left : left + 30] = _PAINTS[number % 4]
        write_image(root / f"images/{number}.png", pixels)
        box = {"image_id": number, "category_id": 3, "bbox": [left, top, 30, 24], "area": 720, "iscrowd": 0}
        (root / "boxes").mkdir(exist_ok=True)
        (root / "boxes" / f"{number}").write_text(json.dumps(box))
    for split, numbers in {"train": (0, 1, 2, 3), "val": (4,)}.items():
        boxes = [json.loads((root / "boxes" / f"{number}").read_text()) for number in numbers]
        images = [(number, f"{number}.png", 64, 48) for number in numbers]
        write_coco(root / f"annotations/instances_{split}2017.json", images, boxes)
    return root


@row(
    "S3.29", "augment as modern YOLO does: mosaic and mix-up", "`transforms: {train: [{name: mosaic}, {name: mix_up}]}`"
)
def _mosaic(work: Path) -> None:
    words = [word for word in DETECT if word.startswith("data")]
    plain = sightline.load_data(CROWDS, "train", overrides=words, transforms="none")
    most = max(len(plain[index]["boxes"]) for index in range(len(plain)))
    same = "{name: fit_image, height: 192, width: 256}"
    combined = f"[{{name: mosaic, height: 192, width: 256}}, {{name: mix_up, probability: 1.0}}, {same}]"
    mixed = f"transforms={{train: {combined}, evaluate: [{same}]}}"
    data = sightline.load_data(CROWDS, "train", overrides=[*words, mixed])
    assert max(len(data[index]["boxes"]) for index in range(4)) > most

    words = list(coco_words(_write_painted(work / "in"), work / "set"))[:2]
    small = "height: 48, width: 64"
    _assert_mosaic(words, f"{{name: mosaic, {small}}}", "{name: fit_image, height: 96, width: 128}")
    fitted = f"{{name: fit_image, {small}}}"
    _assert_mixed(words, fitted, "{name: mix_up, probability: 1.0}", fitted)


def _load_painted(words: list[str], *transforms: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Load the four photos through transforms: pixels (H, W, 3), and whole boxes (G, 4)."""
    chosen = f"transforms={{train: [{', '.join(transforms)}], evaluate: [{transforms[-1]}]}}"
    data = sightline.load_data(CROWDS, "train", overrides=[*words, chosen])
    samples = [data[index] for index in range(4)]
    for sample in samples:
        assert len(sample["boxes"]) == len(sample["label"]) == len(sample["is_ignored"])
    return [(sample["image"].float().numpy(), sample["boxes"].numpy()) for sample in samples]


def _cover(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the mask (H, W) of the pixels whose middles are in a box."""
    y, x = np.mgrid[:height, :width] + 0.5
    mask = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in boxes.tolist():
        mask |= (x > left) & (x < right) & (y > top) & (y < bottom)
    return mask


def _assert_mosaic(words: list[str], *transforms: str) -> None:
    """Expect the parts of four photos on grey, painted where the boxes say, and nowhere else."""
    seen = set()
    for image, boxes in _load_painted(words, *transforms):
        assert image.shape == (96, 128, 3)
        is_grey = (np.abs(image - 114) < 1).all(axis=-1)
        is_painted = (image.max(axis=-1) > 200) & ~is_grey
        mask = _cover(boxes, 96, 128)
        assert (mask & is_painted).sum() > 0.95 * (mask | is_painted).sum()
        assert (image.max(axis=-1) < 1).mean() > 0.1  # the black of the photos
        seen.add(len({tuple(row) for row in image[is_painted].round().astype(int).tolist()} & {*_PAINTS}))
    assert max(seen) >= 3  # colours of photos in one mosaic


def _assert_mixed(words: list[str], *transforms: str) -> None:
    """Expect the sum of two photos, whose shares are those of a Beta distribution around a half, and both boxes."""
    for index, (image, boxes) in enumerate(_load_painted(words, *transforms)):
        assert image.shape == (48, 64, 3)
        assert len(boxes) == 2
        mask = _cover(boxes, 48, 64)
        assert (image[mask].max(axis=-1) > 50).all()  # of 255, and a share of at least a fifth
        assert (image[~mask] < 1).all()
        own = np.array([[4 + 6 * index, 6 + 3 * index, 34 + 6 * index, 30 + 3 * index]])
        assert np.array_equal(boxes[:1], own)
        only = _cover(own, 48, 64) & ~_cover(boxes[1:], 48, 64)
        if only.any():
            assert (image[only].max(axis=-1) < 205).all()  # the other photo is black there
