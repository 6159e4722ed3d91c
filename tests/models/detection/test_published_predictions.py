"""A published detector of torchvision predicts on a photo by the commands, as a literal reading of its rules does.

torchvision itself is not at hand: its network, anchors, decoding and suppression are read anew here and in
`test_published_detectors`, with weights made by rule. It clips boxes to the photo before it suppresses, ours and this
reading after it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sightline.contract.types import DataInfo
from sightline.engine.run_loading import open_trained
from sightline.workbench.weights.conversion import select_classes as _select_classes
from tests.command import succeed
from tests.golden_parity import rule_made_state
from tests.models.detection.test_published_detectors import FCOS, NUM_CLASSES, RETINA, entries, evaluate
from tests.ops.boxes.test_priors import STRIDES, maps_of, torchvisions
from tests.processes import ROOT
from tests.published_layouts import MODELS

CANVAS = (96, 160)
RESIZED = (80, 107)
"""Of a photo of 480 x 640 pixels, short side 80; the rest of the canvas is filled."""
NAME_OF = {
    int(place): name
    for place, name in json.loads((ROOT / "sightline/areas/detect/sets/coco.json").read_text())["classes"].items()
}
SCORE, IOU, MOST = {RETINA: 0.05, FCOS: 0.2}, {RETINA: 0.5, FCOS: 0.6}, {RETINA: 300, FCOS: 100}


def weights(layout: str) -> dict[str, Tensor]:
    """Made by rule; most probabilities are low, as those of a trained detector are."""
    state = {name: value.float() for name, value in rule_made_state(entries(layout)).items()}
    state["head.classification_head.cls_logits.bias"] -= 4
    return state


def decoded(layout: str, codes: np.ndarray) -> list[np.ndarray]:
    """The boxes of each level: deltas of RetinaNet's anchors, or distances in sides of FCOS' squares."""
    maps = maps_of(*CANVAS)
    ends = np.cumsum([height * width * (9 if layout == RETINA else 1) for height, width in maps])
    parts = np.split(codes, ends[:-1])
    if layout == RETINA:
        found = []
        for anchors, own in zip(torchvisions(maps, CANVAS), parts, strict=True):
            x1, y1, x2, y2 = anchors.reshape(-1, 4).astype(np.float64).T
            width, height = x2 - x1, y2 - y1
            x, y = x1 + width / 2 + own[:, 0] * width, y1 + height / 2 + own[:, 1] * height
            width, height = (
                side * np.exp(np.minimum(code, np.log(1000 / 16)))
                for side, code in ((width, own[:, 2]), (height, own[:, 3]))
            )
            found.append(np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1))
        return found
    found = []
    for (rows, columns), stride, own in zip(maps, STRIDES, parts, strict=True):
        y, x = np.mgrid[:rows, :columns].reshape(2, -1)
        x, y = x * (CANVAS[1] // columns), y * (CANVAS[0] // rows)
        left, top, right, bottom = stride * own.T
        found.append(np.stack([x - left, y - top, x + right, y + bottom], axis=1))
    return found


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - sides.prod()
    return float(sides.prod() / union) if union > 0 else 0.0


def expected_rows(layout: str, state: dict[str, Tensor], image: Tensor) -> list[tuple[float, int, np.ndarray]]:
    """Score, COCO's id and box on the canvas of every detection, the surest first."""
    found = {name: each[0].numpy() for name, each in evaluate(state, image, layout).items()}
    scores = 1 / (1 + np.exp(-found["logits"]))
    if layout == FCOS:
        scores = np.sqrt(scores / (1 + np.exp(-found["centreness"])))
    boxes, start, rows = decoded(layout, found["codes"]), 0, []
    for level in boxes:
        own = scores[start : start + len(level)]
        start += len(level)
        candidates = [(own[i, k], k, level[i]) for i, k in np.argwhere(own > SCORE[layout]) if k in NAME_OF]
        rows += sorted(candidates, key=lambda row: -row[0])[:1000]
    kept: list[tuple[float, int, np.ndarray]] = []
    for row in sorted(rows, key=lambda row: -row[0]):
        if all(row[1] != other[1] or overlap(row[2], other[2]) <= IOU[layout] for other in kept):
            kept.append(row)
    return kept[: MOST[layout]]


@pytest.mark.shared
@pytest.mark.parametrize("layout", [RETINA, pytest.param(FCOS, marks=pytest.mark.long)])
def test_a_photo_is_predicted_as_torchvision_would(tmp_path: Path, shared: Path, layout: str) -> None:
    state = weights(layout)
    assert state["head.classification_head.cls_logits.weight"].shape[0] % NUM_CLASSES == 0
    torch.save(state, tmp_path / "detector.pth")
    photo = shared / "data" / "coco128" / "images" / "train2017" / "000000000009.jpg"
    small = [f"transforms.evaluate.0.{key}={value}" for key, value in (("short_px", 80), ("long_px", 160))]
    small += [f"transforms.evaluate.0.{key}={value}" for key, value in zip(("height", "width"), CANVAS, strict=True)]
    run = tmp_path / "run"
    done = succeed("weights", "convert", tmp_path / "detector.pth", "--layout", layout, "--to", run, *small)
    assert "of the file's 91 classes the 80 of 'coco' are kept, by their names" in done.err
    succeed(
        "predict", run, photo, f"score={SCORE[layout]}", "--json", tmp_path / "all.json", "--out", tmp_path / "drawn"
    )
    document = json.loads((tmp_path / "all.json").read_text())
    (found,) = document["predictions"]
    assert (tmp_path / "drawn" / "000000000009.boxes.png").stat().st_size > 10_000

    with Image.open(photo) as opened:
        pixels = torch.from_numpy(np.asarray(opened.convert("RGB")).copy())
    assert pixels.shape == (480, 640, 3)
    sample = {"image": pixels, "boxes": torch.zeros(0, 4), "to_canvas": torch.eye(3, dtype=torch.float64)[:2]}
    seen = open_trained(run).transform({name: value[None] for name, value in sample.items()})
    wide = {name: value.double() for name, value in state.items()}
    rows = expected_rows(layout, wide, seen["image"].double())
    assert len(rows) == found["num_boxes"] > 20
    to_file = np.tile([640 / RESIZED[1], 480 / RESIZED[0]], 2)
    for (score, place, box), ours in zip(rows, found["boxes"], strict=True):
        assert ours["score"] == pytest.approx(score, abs=1e-5)
        assert document["class_names"][ours["category_id"]] == NAME_OF[place]
        left, top, right, bottom = (box * to_file).clip(0, [640, 480, 640, 480])
        assert ours["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.01)


@pytest.mark.parametrize(
    ("count", "names", "places"),
    [
        (91, tuple(NAME_OF.values()), list(NAME_OF)),
        (91, ("dog", "person"), [18, 1]),
        (91, ("dog", "hedgehog"), list(range(91))),
        (3, ("person", "bicycle"), [0, 1, 2]),
    ],
)
def test_classes_are_found_by_their_names(count: int, names: tuple[str, ...], places: list[int]) -> None:
    """Of COCO's 91 places those of the data set's classes; a file without, or for others, stays as it is."""
    size = MODELS[RETINA].num_classes
    assert size is not None
    rows = torch.arange(9 * count).view(9 * count, 1, 1, 1)
    given = {size.name: rows, size.name.replace("weight", "bias"): rows.flatten(), "else": torch.ones(1)}
    info = DataInfo({"class_names": names}, {})
    found = _select_classes(given, MODELS[RETINA], info)
    expected = [anchor * count + place for anchor in range(9) for place in places]
    for value in (found[size.name].flatten(), found[size.name.replace("weight", "bias")]):
        assert value.tolist() == expected
    assert _select_classes({"else": given["else"]}, MODELS[RETINA], info) == {"else": given["else"]}, (
        "a file without a head"
    )
