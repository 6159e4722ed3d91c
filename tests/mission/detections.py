"""What notes on a detector of pedestrians ask for of detections: losses, suppression, scores, files of results."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import sightline
from sightline.areas.detect import task as detect
from sightline.areas.detect.output import Adaptive
from sightline.contract import registry
from sightline.engine.step import compute_batch_losses
from tests.command import document_of, succeed
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.mission.boxes import overlap
from tests.mission.detectors import CROWDS, assert_near
from tests.mission.rows import part, row
from tests.mission.small import CPU, document, figures, learn, step
from tests.trained import DETECT, trained_run

# --- a case whose numbers are known -----------------------------------------------------------------------------------

_LABELS = [
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0},
    {"image_id": 1, "category_id": 3, "bbox": [20, 6, 40, 40], "area": 1600, "iscrowd": 0},
    {"image_id": 2, "category_id": 3, "bbox": [4, 4, 20, 30], "area": 600, "iscrowd": 0},
    {"image_id": 2, "category_id": 3, "bbox": [4, 36, 10, 10], "area": 100, "iscrowd": 0},
    {"image_id": 2, "category_id": 3, "bbox": [30, 0, 34, 48], "area": 1632, "iscrowd": 1},
]
_FOUND: list[tuple[int, list[float], float]] = [
    (1, [0, 0, 20, 20], 0.95),  # the first label
    (1, [20, 6, 40, 24.8], 0.9),  # the second, with an IoU of 0.62
    (1, [0, 0, 20, 18], 0.8),  # the first once more
    (2, [4, 4, 20, 9], 0.75),  # the third, with an IoU of 0.3
    (2, [16, 40, 8, 8], 0.7),  # nothing
    (2, [40, 10, 10, 10], 0.85),  # in the crowd, which does not count
]
"""Four people, of whom the last is missed, and detections of them: left, top, width, height, and score."""


def score_known(work: Path) -> Any:
    """Score the known detections of two photos by a config's metrics; return the document."""
    for number in range(3):
        write_image(work / f"in/images/{number}.png", pattern(48, 64, number))
    for split, numbers, labels in (("train", (0,), []), ("val", (1, 2), _LABELS)):
        images = [(number, f"{number}.png", 64, 48) for number in numbers]
        write_coco(work / f"in/annotations/instances_{split}2017.json", images, labels)
    succeed("data", "prepare", "coco", "--from", work / "in", "--to", work / "set")
    rows = [{"image_id": i, "category_id": 3, "bbox": box, "score": score} for i, box, score in _FOUND]
    (work / "found.json").write_text(json.dumps(rows))
    data = f"data={{name: coco, root: '{work / 'set'}', classes: [person]}}"
    metrics = "metrics=[{name: box_ap}, {name: box_errors}]"
    return document_of("score", work / "found.json", "--data", CROWDS, data, metrics)


@row("S3.22", "evaluate by COCO's metrics, with objects sized in pixels of the file", "`sightline evaluate RUN`")
def _coco_metrics(work: Path) -> None:
    found = document_of("evaluate", trained_run("detect"), *CPU)
    assert found["metrics"] == figures(trained_run("detect"))
    assert {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10"} <= found["metrics"].keys()
    overrides = [word for word in DETECT if word.startswith("data")]
    fitted = "[{name: fit_image, height: 384, width: 512}]"
    larger = sightline.load_data(
        CROWDS, "test", overrides=[*overrides, f"transforms={{train: {fitted}, evaluate: {fitted}}}"]
    )[0]
    raw = sightline.load_data(CROWDS, "test", overrides=overrides, transforms="none")[0]
    assert torch.allclose(larger["boxes"], 2 * raw["boxes"], atol=1e-3)
    assert torch.equal(larger["truth"], raw["truth"])  # boxes and areas that are scored
    stage = "[{name: fit_image, height: 384, width: 512}, {name: normalize_image}]"
    text = f"base: {CROWDS}\ntransforms: {{train: {stage}, evaluate: {stage}}}\ndata: {{test_size: 2}}\n"
    (work / "large.yaml").write_text(text)
    on_canvas = _save(work / "large", "--data", work / "large.yaml")
    assert len(on_canvas) > 50
    assert np.abs(_corners(_read_rows(work / "large")) - on_canvas / 2).max() < 1e-3  # of files 256 pixels wide


def _save(folder: Path, *words: object) -> np.ndarray:
    """Evaluate the run `detect`, and save what it predicts; return the corners (N, 4) on the network's canvas."""
    with mock.patch.object(detect, "to_file_pixels", wraps=detect.to_file_pixels) as mapped:
        succeed("evaluate", trained_run("detect"), *words, "--save-predictions", "--out", folder, *CPU)
    return torch.cat([call.args[0][:, :4].double() for call in mapped.call_args_list]).numpy()


@part("S3.22")
def _known_metrics(work: Path) -> None:
    """Precision over recall: of four people half are found up to an IoU of 0.6, then a quarter."""
    metrics = score_known(work)["metrics"]
    expected = {
        "ap": (3 * 51 + 7 * 26) / 1010,
        "ap50": 51 / 101,
        "ap75": 26 / 101,
        "ap_small": 34 / 101,  # one of three
        "ap_medium": 0.3,  # the one of 1600 pixels, at 3 of 10 thresholds
        "ar": 0.325,
        "ar_small": 1 / 3,
        "ar_medium": 0.3,
        "ar1": 0.25,  # of each image the highest, of which one is in the crowd
        "ar10": 0.325,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert metrics["ap_large"] is None


@row(
    "S3.30",
    "learn why predictions are wrong: confusions, and AP lost by each kind of error",
    "`sightline evaluate RUN 'metrics=[{name: box_errors}]'`",
)
def _why(work: Path) -> None:
    table = document(trained_run("detect"))["confusion"]
    assert table["classes"] == ["person", "background"]
    assert sum(table["counts"][0]) == 69  # labels, of which some are background
    assert table["counts"][1][0] > 0  # detections of nothing


@part("S3.30", "U")
def _box_errors(work: Path) -> None:
    found = document_of("evaluate", trained_run("detect"), "metrics=[{name: box_errors}]", *CPU)["metrics"]
    gains = {name: value for name, value in found.items() if name.startswith("gain_")}
    assert {"gain_localisation", "gain_background", "gain_missed"} <= gains.keys()
    assert max(value for value in gains.values() if value is not None) > 0.1


@part("S3.30", "U")
def _known_errors(work: Path) -> None:
    """One error of each of four kinds, and what mending it gains: worked out by hand."""
    found = score_known(work)
    expected = {
        "error_ap50": 51 / 101,
        "gain_localisation": 25 * 0.75 / 101,  # three of four, the third behind one wrong detection
        "gain_class": 0.0,
        "gain_both": 0.0,
        "gain_duplicate": 0.0,
        "gain_background": 0.0,
        "gain_missed": 16 / 101,  # two of three
        "gain_false_positive": 0.0,
        "gain_false_negative": 50 / 101,
    }
    assert {name: found["metrics"][name] for name in expected} == pytest.approx(expected, abs=1e-9)
    counts = {kind: each["count"] - each["ignored"] for kind, each in found["box_errors"].items()}
    once = dict.fromkeys(("localisation", "duplicate", "background", "missed"), 1)
    assert counts == {**once, "class": 0, "both": 0}
    assert found["confusion"]["counts"] == [[2, 2], [3, 0]]


# --- suppression ------------------------------------------------------------------------------------------------------


def _read_rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "detections.json").read_text())
    return rows


def _corners(rows: list[dict[str, Any]]) -> np.ndarray:
    """Return the corners (N, 4) of boxes that are stored as left, top, width and height."""
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _suppress_linearly(boxes: np.ndarray, scores: np.ndarray, threshold: float, lowest: float) -> list[float]:
    """Return the scores of soft NMS: the best lowers those that overlap it by more than a threshold. Bodla 2017."""
    left, kept = scores.astype(np.float64).copy(), []
    while len(left) and left.max() >= lowest:
        best = int(left.argmax())
        kept.append(float(left[best]))
        shared = overlap(boxes[best : best + 1], boxes)[0]
        left = np.where(shared > threshold, left * (1 - shared), left)
        boxes, left = np.delete(boxes, best, axis=0), np.delete(left, best)
    return kept


@row("S3.24", "suppress softly", "`sightline evaluate RUN task.suppression.name=soft_linear`")
def _softly(work: Path) -> None:
    found = document_of("evaluate", trained_run("detect"), "task.suppression.name=soft_linear", *CPU)["metrics"]
    assert found["ap50"] > figures(trained_run("detect"))["ap50"]  # neighbours that greedy suppression would drop


@part("S3.24")
def _softly_by_formula(work: Path) -> None:
    """Scores of an image are those of the formula, from all detections that are there before suppression."""
    for name, suppression in {"all": "{name: greedy, iou_threshold: 1.0}", "soft": "{name: soft_linear}"}.items():
        words = (f"task.suppression={suppression}", "task.most=3000", "--save-predictions", "--out", work / name)
        succeed("evaluate", trained_run("detect"), *words, *CPU)
    for image in (1, 2):
        rows, soft = ([row for row in _read_rows(work / name) if row["image_id"] == image] for name in ("all", "soft"))
        scores = np.array([row["score"] for row in rows])
        expected = sorted(_suppress_linearly(_corners(rows), scores, 0.3, 1e-3), reverse=True)
        assert len(rows) > 100
        assert abs(len(soft) - len(expected)) <= 0.02 * len(expected)  # scores about the lowest
        count = min(len(soft), len(expected), 60)
        assert [row["score"] for row in soft[:count]] == pytest.approx(expected[:count], abs=2e-3)


@row(
    "S3.25",
    "suppress adaptively, by the density that is predicted",
    "`sightline evaluate RUN task.suppression.name=adaptive`, of a run with a density head",
    letter="S",
)
def _adaptively(work: Path) -> None:
    run = learn("detect/crowdhuman_retinanet_adaptive", work / "run", *own_crowds(work), *small_canvas())
    kept = {}
    calls: list[tuple[tuple[Any, ...], Tensor, Any]] = []
    keep = Adaptive.keep

    def watched(own: Adaptive, *detections: Any, density: Tensor) -> Any:
        calls.append((detections, density, keep(own, *detections, density=density)))
        return calls[-1][-1]

    for name in ("adaptive", "greedy"):
        words = (f"task.suppression={{name: {name}}}", "task.score=0.0", "--save-predictions", "--out", work / name)
        with mock.patch.object(Adaptive, "keep", watched):
            succeed("evaluate", run, *words, *CPU)
        kept[name] = len(_read_rows(work / name))
    assert kept["adaptive"] != kept["greedy"], kept
    assert len(calls) == 4  # images
    assert all(float(density.std()) > 0 for _, density, _ in calls)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 6.5], [50, 0, 60, 10], [50, 0, 60, 6]])
    scores, density = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([0.72, 0.0, 0.0, 0.3, 0.0])
    adaptive = registry.suppressions.get_entry("adaptive").builder()
    found = adaptive(boxes, scores, torch.zeros(5, dtype=torch.int64), density=density)
    assert found.indices.tolist() == [0, 1, 3]  # the third is suppressed by the second, whose density is lower
    assert found.scores.tolist() == scores[[0, 1, 3]].tolist()


@part("S3.25", "S")
def _density_is_learnt(work: Path) -> None:
    """Its target at a prior is the highest IoU that the prior's box has with another person of the image."""
    small = step("detect/crowdhuman_retinanet_adaptive", work)
    batch, task = small.send()[0], small.job.task
    context: Any = task.context(small.job.model, batch)  # type: ignore[attr-defined]
    assert "box_density" in small.job.loss_weights
    for image, (first, last) in enumerate(zip(batch["box_offsets"][:-1], batch["box_offsets"][1:], strict=True)):
        boxes = batch["boxes"][first:last][~batch["is_ignored"][first:last]].numpy()
        shared = overlap(boxes, boxes)
        np.fill_diagonal(shared, 0)
        is_positive = context["target"][image] >= 0
        matched, density = (context[name][image][is_positive].numpy() for name in ("matched_boxes", "matched_density"))
        owner = np.abs(matched[:, None] - boxes).max(axis=2).argmin(axis=1)
        assert np.abs(density - shared.max(axis=1)[owner]).max() < 1e-5
        assert density.max() > 0


def own_crowds(work: Path) -> tuple[str, ...]:
    """Return the words of few drawn crowds and a narrow network."""
    words = "data={name: synthetic_crowds, train_size: 8, validation_size: 4, test_size: 4}"
    return (words, "model.backbone.width=8", "model.neck.width=16", "model.head.num_convs=1", "train.batch_size=4")


def small_canvas() -> tuple[str, ...]:
    """Return the words of a canvas of 64 pixels a side, and of new weights."""
    fitted = "[{name: fit_image, height: 64, width: 64}, {name: normalize_image}]"
    return (f"transforms.train={fitted}", f"transforms.evaluate={fitted}", "init=null", "train.precision=float32")


# --- losses -----------------------------------------------------------------------------------------------------------


def _giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the GIoU (N,) of aligned boxes (N, 4)."""
    sides = (torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])).clamp(min=0)
    hull = torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])
    common, around = sides.prod(1), hull.prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1) - common
    return common / union - (around - union) / around


@row("S3.27", "swap losses", "`losses=[{name: sigmoid_focal}, {name: box_overlap}]`")
def _losses(work: Path) -> None:
    """Each loss has the value of its formula, of the network's outputs at the anchors that have a person."""
    values = {}
    for boxes in ("{name: box_smooth_l1}", "{name: box_overlap, overlap: giou}"):
        small = step("detect/synthetic_crowds_retinanet", work, f"losses=[{{name: sigmoid_focal}}, {boxes}]")
        values[boxes] = set(small.job.loss_weights)
        assert values[boxes] == {"sigmoid_focal", boxes.partition(",")[0].strip("{}").removeprefix("name: ")}
        task: Any = small.job.task
        batch = small.send()[0]
        with torch.no_grad():
            context, outputs = task.context(small.job.model, batch), dict(task.outputs(small.job.model, batch))
            for name, size in (("codes", 0.5), ("logits", 2.0)):  # predictions that are off by more than new ones are
                outputs[name] = outputs[name].float() + size * torch.randn(outputs[name].shape)
            sums = task.losses_of(batch, outputs, context)
        counts = compute_batch_losses(task, small.job.model, batch, torch.device("cpu"))[1]
        assert {int(count) for count in counts.values()} == {int((context["target"] >= 0).sum())}
        target, priors, codes = context["target"], context["priors"], outputs["codes"].float()
        image, prior = (target >= 0).nonzero(as_tuple=True)
        anchors, truth, deltas = priors[prior], context["matched_boxes"][image, prior], codes[image, prior]
        sides = anchors[:, 2:] - anchors[:, :2]
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        p = outputs["logits"].float().sigmoid()[..., 0]
        focal = torch.where(target >= 0, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
        expected = {"sigmoid_focal": focal[target != -2].sum()}
        true_middles, true_sides = (truth[:, :2] + truth[:, 2:]) / 2, truth[:, 2:] - truth[:, :2]
        wanted = torch.cat([(true_middles - middles) / sides, (true_sides / sides).log()], dim=1)
        error = (deltas - wanted).abs()
        expected["box_smooth_l1"] = torch.where(error < 1 / 9, error.square() * 4.5, error - 1 / 18).sum()
        new_middles, new_sides = middles + deltas[:, :2] * sides, deltas[:, 2:].exp() * sides
        decoded = torch.cat([new_middles - new_sides / 2, new_middles + new_sides / 2], dim=1)
        expected["box_overlap"] = (1 - _giou(decoded, truth)).sum()
        for name, value in sums.items():
            assert_near(value.float(), expected[name], name, 1e-3)
    assert len({frozenset(each) for each in values.values()}) == 2


# --- pictures while it trains, and files of results -------------------------------------------------------------------


@row("S3.31", "show test pictures and figures while it trains", "`sightline train CONFIG log.tensorboard=true`")
def _tensorboard(work: Path) -> None:
    run = trained_run("detect")
    events = EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    assert "validation/ap" in tags["scalars"]
    pictures = [name for name in tags["images"] if name.startswith("validation/detections")]
    assert pictures
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for split, name in (("validation", "ap50"), ("train", "loss/sigmoid_focal")):
        logged = [(event.step, event.value) for event in events.Scalars(f"{split}/{name}")]
        written = [(line["step"], line[name]) for line in lines if line["split"] == split and line[name] is not None]
        assert logged, name
        assert len({value for _, value in logged}) == len(logged), name
        for place, value in logged:
            assert dict(written)[place] == pytest.approx(value, rel=1e-5), name
    for name in pictures:
        last = np.asarray(Image.open(io.BytesIO(events.Images(name)[-1].encoded_image_string)).convert("RGB"))
        last = last[:384, :512]  # twice the 192 x 256 pixels of the photo, without the legend below
        missed_or_found = [(last == color).all(axis=-1).sum() for color in ((240, 228, 66), (86, 180, 233))]
        assert sum(missed_or_found) > 200, name  # lines about people
        assert len(np.unique(last.reshape(-1, 3), axis=0)) > 1000, name  # on the photo


@row(
    "S3.36",
    "convert predicted boxes to the form that the evaluation reads",
    "`sightline evaluate RUN --save-predictions`, `sightline score FILE --data RUN`; finding `box-corners`",
)
def _saved(work: Path) -> None:
    run = trained_run("detect")
    on_canvas = _save(work / "saved")  # of the size of the files
    assert np.abs(_corners(_read_rows(work / "saved")) - on_canvas).max() < 1e-3
    found = document_of("score", work / "saved/detections.json", "--data", run)
    assert found["metrics"]["ap"] == pytest.approx(figures(run)["ap"], rel=1e-3)
    boxes = json.loads((work / "saved/detections.json").read_text())
    assert np.array([box["bbox"] for box in boxes])[:, 2:].min() > 0
    assert {each["image_id"] for each in boxes} == {*range(1, 7)}
    assert _average_precision(boxes, run) == pytest.approx(figures(run)["ap50"], abs=1e-6)


def _average_precision(rows: list[dict[str, Any]], run: Path) -> float:
    """Compute the AP at an IoU of 0.5 of left, top, width, height and score of the test images, as COCO does."""
    data, num_people, marks = sightline.load_data(run, "test", transforms="none"), 0, []
    for index in range(len(data)):
        truth = data[index]["truth"].numpy()
        is_ignored = truth[:, 6] > 0
        own = sorted((row for row in rows if row["image_id"] == index + 1), key=lambda row: -row["score"])[:100]
        shared, is_free = overlap(_corners(own), truth[:, :4]), ~is_ignored
        areas = np.prod(np.array([row["bbox"] for row in own]).reshape(-1, 4)[:, 2:], axis=1)
        whole = overlap(_corners(own), truth[:, :4]) * 0
        for place, (left, top, right, bottom) in enumerate(_corners(own).tolist()):
            sides = np.minimum(truth[:, 2:4], [right, bottom]) - np.maximum(truth[:, :2], [left, top])
            whole[place] = np.clip(sides, 0, None).prod(axis=1) / areas[place]
        num_people += int(is_free.sum())
        for place, detection in enumerate(own):
            candidates = np.where(is_free, shared[place], 0)
            if candidates.max() >= 0.5:
                is_free[int(candidates.argmax())] = False
                marks.append((detection["score"], True))
            elif not (whole[place][is_ignored] >= 0.5).any():
                marks.append((detection["score"], False))
    marks.sort(key=lambda mark: -mark[0])
    right = np.cumsum([mark[1] for mark in marks])
    precision, recall = right / np.arange(1, len(marks) + 1), right / num_people
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101))
    return float(np.where(places < len(marks), precision[np.minimum(places, len(marks) - 1)], 0).mean())


class _Regressor(nn.Module):
    """Network that predicts corners of 12 boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 48))

    def forward(self, values: Tensor) -> Tensor:
        first, last = self.layers(values).view(-1, 12, 4).split(2, dim=2)
        return torch.cat([first, first + last.exp()], dim=2)


def _iou_loss(outputs: Tensor, boxes: Tensor) -> Tensor:
    first, last = torch.maximum(outputs[..., :2], boxes[..., :2]), torch.minimum(outputs[..., 2:], boxes[..., 2:])
    common = (last - first).clamp(min=0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (outputs, boxes)]
    return (1 - common / (areas[0] + areas[1].abs() - common + 1e-3)).mean()


@part("S3.36")
def _corners_are_asked_for(work: Path) -> None:
    """An IoU that is given widths and heights in place of corners is found, and one of corners is not."""
    first, sides = 4 * torch.rand(8, 12, 2), 0.5 + torch.rand(8, 12, 2)
    codes = {}
    for name, boxes in {"sides": torch.cat([first, sides], 2), "corners": torch.cat([first, first + sides], 2)}.items():
        report = sightline.check(_Regressor(), _iou_loss, (torch.randn(8, 6), boxes))
        codes[name] = [finding.code for finding in report.findings]
    assert "box-corners" in codes["sides"]
    assert "box-corners" not in codes["corners"]
