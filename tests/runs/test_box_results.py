"""Files of results by the commands: anyone's are scored as pycocotools scores them, those of a run as the run was."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.config import read_config
from sightline.contract.types import SampleKey
from sightline.engine.build import build
from sightline.engine.distributed import World
from tests.command import Outcome, document_of, run_here, succeed
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.metrics.box_references import COCO_NAMES
from tests.processes import ROOT
from tests.trained import copy_run

CONFIG = ROOT / "configs" / "detect" / "synthetic_crowds_retinanet.yaml"
IDS = (3, 7, 90)


def boxes_of(draw: np.random.Generator, image: int, count: int) -> list[dict[str, Any]]:
    """Annotations with crowds, ignored boxes, and areas that are those of masks."""
    found = []
    for _ in range(count):
        left, top, width, height = draw.uniform([0, 0, 4, 4], [80, 60, 60, 50]).round(int(draw.integers(0, 3))).tolist()
        found.append(
            {
                "image_id": image,
                "category_id": int(draw.choice(IDS)),
                "bbox": [left, top, width, height],
                "area": width * height * float(draw.choice([1.0, 0.6])),
                "iscrowd": int(draw.random() < 0.2),
            }
        )
    return found


@pytest.fixture(scope="module")
def prepared_boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set: ids with gaps, images without boxes, the same id in both files; and a config of its data."""
    folder = tmp_path_factory.mktemp("results")
    for split, ids in (("train", (4, 9, 11)), ("val", (17, 9, 250, 33, 5, 8))):
        draw = np.random.default_rng(len(split))
        for number in ids:
            write_image(folder / "in" / split / f"{number}.png", pattern(100, 120))
        rows = [box for number in ids for box in boxes_of(draw, number, int(draw.integers(0, 9)) if number > 5 else 0)]
        images = [(number, f"{number}.png", 120, 100) for number in ids]
        write_coco(folder / "in" / "annotations" / f"instances_{split}.json", images, rows)
    succeed("data", "prepare", "coco", "--from", folder / "in", "--to", folder / "set")
    (folder / "data.yaml").write_text(f"data: {{name: coco, root: {folder / 'set'}}}\nmetrics: [{{name: box_ap}}]\n")
    return folder


def truth_of(made: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((made / "in" / "annotations" / "instances_val.json").read_text())
    return document


def results_of(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Detections near the boxes, in full float64, with equal scores among them; and some made up."""
    draw = np.random.default_rng(5)
    rows = []
    for box in truth["annotations"]:
        for _ in range(int(draw.integers(0, 4))):
            bbox = np.abs(np.array(box["bbox"]) + draw.normal(0, draw.choice([0.1, 2.0]), 4)).tolist()
            score = float(draw.choice([draw.random(), 0.5]))
            rows.append({**box, "bbox": bbox, "score": score, "category_id": int(draw.choice([box["category_id"], 7]))})
    return [{key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in rows]


def by_pycocotools(truth: dict[str, Any], rows: list[dict[str, Any]], categories: list[int]) -> list[float]:
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        labels = coco.COCO()
        labels.dataset = json.loads(json.dumps(truth))
        labels.createIndex()
        run = evaluation.COCOeval(labels, labels.loadRes(rows), "bbox")
        run.params.catIds = categories
        run.evaluate()
        run.accumulate()
        run.summarize()
    return list(run.stats)


def score(made: Path, rows: Any, *words: object, file: str = "found.json") -> tuple[Outcome, dict[str, Any]]:
    (made / file).write_text(rows if isinstance(rows, str) else json.dumps(rows))
    (made / "out.json").unlink(missing_ok=True)
    config = made / "data.yaml"
    done = run_here("score", made / file, "--data", config, *words, "--json", made / "out.json")
    return done, json.loads((made / "out.json").read_text()) if done.code == 0 else {}


@pytest.mark.parametrize("chosen", [(), (90, 3)])
def test_results_of_anyone_are_scored_as_pycocotools_does(prepared_boxes: Path, chosen: tuple[int, ...]) -> None:
    truth = truth_of(prepared_boxes)
    rows = results_of(truth)
    assert len(rows) > 20
    names = {each["id"]: each["name"] for each in truth["categories"]}
    words = [f"data.classes=[{', '.join(names[number] for number in chosen)}]"] if chosen else []
    done, document = score(prepared_boxes, rows, *words)
    assert done.code == 0, done.err
    for name, value in zip(COCO_NAMES, by_pycocotools(truth, rows, list(chosen or IDS)), strict=True):
        found = document["metrics"][name]
        assert found == pytest.approx(value, abs=1e-9) if value >= 0 else found is None, name
    others = sum(row["category_id"] not in (chosen or IDS) for row in rows)
    assert (f"not scored: {others} boxes of classes that the config does not choose" in done.err) == bool(chosen)


def test_the_report_names_what_was_scored_and_how(prepared_boxes: Path) -> None:
    """Trap T15."""
    truth = truth_of(prepared_boxes)
    ignored = sum(each["iscrowd"] for each in truth["annotations"])
    done, document = score(prepared_boxes, results_of(truth))
    counts = f"{len(truth['annotations']) - ignored} to find, {ignored} ignored"
    assert f"COCO, IoU 0.50 to 0.95, at most 100 an image and class; annotated boxes: {counts}" in done.out
    assert "on test, 6 samples" in done.out
    assert document["scored_boxes"]["num_ignored"] == ignored > 0
    assert document["scored_boxes"]["undefined"].keys() == {"ap_large", "ar_large"}
    assert "no figure (ap_large): no label of 9216 square pixels or more" in done.err
    assert document["data"] == {"name": "coco", "split": "test", "num_samples": 6, "box_type": "annotated"}


def test_rows_of_the_training_part_are_counted_and_unknown_ones_refused(prepared_boxes: Path) -> None:
    rows = results_of(truth_of(prepared_boxes))
    done, document = score(prepared_boxes, [*rows, rows[0] | {"image_id": 4}])
    assert "not scored: 1 boxes of images outside the test part" in done.err
    assert document["metrics"] == score(prepared_boxes, rows)[1]["metrics"]
    for changed, message in (
        ({"image_id": 6}, f"found.json: row {len(rows)}: the set has no image 6"),
        ({"category_id": 1}, f"found.json: row {len(rows)}: the set has no category 1, but 3, 7, 90"),
        ({"bbox": [0, 0, 5]}, f"found.json: row {len(rows)} is"),
    ):
        done, _ = score(prepared_boxes, [*rows, rows[0] | changed])
        assert done.code == 2
        assert message in done.err
        assert "Traceback" not in done.err


def test_joined_sets_are_scored_by_the_names_in_them(prepared_boxes: Path) -> None:
    """The number of a set and the name there; numbers that may be those of several images are refused."""
    rows = results_of(truth_of(prepared_boxes))
    joined = f"data={{name: concat, sets: [{{name: coco, root: {prepared_boxes / 'set'}}}]}}"
    named = [row | {"image_id": f"1/val/{row['image_id']}.png"} for row in rows]
    (alone, figures), (done, ours) = score(prepared_boxes, rows), score(prepared_boxes, named, joined)
    assert (alone.code, done.code) == (0, 0), done.err
    assert ours["metrics"] == figures["metrics"]
    wrong, _ = score(prepared_boxes, rows, joined)
    assert wrong.code == 2
    assert "the set has no image 17; its first is 1, '1/val/" in wrong.err


def test_lines_of_crowdhuman_are_scored_by_the_kind_of_box(tmp_path: Path) -> None:
    """Two people; one is found by the full box, the other by the visible one; the mask absorbs what lies in it."""
    people = [
        {"tag": "person", "fbox": [-5, 0, 20, 30], "vbox": [0, 0, 8, 30], "hbox": [0, 0, 4, 4]},
        {"tag": "person", "fbox": [40, 0, 20, 40], "vbox": [40, 0, 20, 18], "hbox": [40, 0, 4, 4]},
        {"tag": "mask", "fbox": [70, 0, 40, 40], "vbox": [70, 0, 40, 40]},
    ]
    for split, name in (("train", "a,1"), ("val", "b,2")):
        write_image(tmp_path / "in" / split / f"{name}.png", pattern(60, 120))
        line = json.dumps({"ID": name, "gtboxes": people})
        (tmp_path / "in" / f"annotation_{split}.odgt").write_text(line)
    succeed("data", "prepare", "crowdhuman", "--from", tmp_path / "in", "--to", tmp_path / "set")
    root = tmp_path / "set"
    (tmp_path / "data.yaml").write_text(f"data: {{name: crowdhuman, root: {root}}}\nmetrics: [{{name: box_ap}}]\n")
    found = [([-5, 0, 20, 30], 0.9), ([40, 0, 20, 18], 0.8), ([80, 5, 10, 20], 0.95)]
    boxes = [{"box": box, "score": value, "tag": 1} for box, value in found]
    lines = json.dumps({"ID": "b,2", "width": 120, "height": 60, "dtboxes": boxes})
    for kind, expected in (("full", 51 / 101), ("visible", 51 / 101 / 2)):
        done, document = score(tmp_path, lines, f"data.scored_box={kind}", file="found.odgt")
        assert done.code == 0, done.err
        assert f"{kind} boxes: 2 to find, 1 ignored" in done.out
        assert document["metrics"]["ap50"] == pytest.approx(expected, abs=1e-12)
        words = f"data.scored_box={kind}", "metrics=[{name: crowd_ap}, {name: miss_rate}]"
        done, document = score(tmp_path, lines, *words, file="found.odgt")
        assert done.code == 0, done.err
        assert f"CrowdHuman, IoU above 0.5, all detections; {kind} boxes: 2 to find, 1 ignored" in done.out
        # by hand: the first alone is found, or both, the first only once it is cut at the border
        assert document["metrics"]["crowd_ap"] == pytest.approx(0.0 if kind == "full" else 0.5)
        assert document["crowd_bins"]["visible 0.2 to 0.65"]["count"] == 2


def test_what_is_scored_against_is_not_rounded() -> None:
    """Trap T24: single precision holds 1/3 of a pixel to 1e-5 of it, COCO's evaluation to 1e-14."""
    built = build(read_config(CONFIG, ("data.train_size=8", "data.validation_size=1", "data.test_size=2")), World())
    seen: list[dict[str, Any]] = []
    built.test_evaluator(built.job.model, World(), on_batch=lambda batch, predictions: seen.append(dict(batch)))
    assert {batch["truth"].dtype for batch in seen} == {torch.float64}
    assert {batch["image"].dtype for batch in seen} == {torch.float32}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("detect", tmp_path_factory.mktemp("detect"))


def test_saved_detections_score_as_the_run_did(run: Path, tmp_path: Path) -> None:
    saved = ("--save-predictions", "--out", tmp_path / "kept", "--json", tmp_path / "run.json")
    succeed("evaluate", run, *saved, "--device", "cpu")
    rows = json.loads((tmp_path / "kept" / "detections.json").read_text())
    assert {row["image_id"] for row in rows} == {*range(1, 7)}
    assert {row["category_id"] for row in rows} == {1}
    manifest = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert (manifest["num_images"], manifest["num_detections"]) == (6, len(rows))
    succeed("score", tmp_path / "kept", "--data", run, "--json", tmp_path / "again.json")
    theirs, ours = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "again"))
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-12)
    assert ours["metrics"]["ap"] > 0
    assert ours["per_class"] == theirs["per_class"]
    assert ours["scored_boxes"] == theirs["scored_boxes"]


def test_errors_are_split_by_kind_and_the_worst_images_are_drawn(run: Path, tmp_path: Path) -> None:
    """The same from the run and from its file; `view` and `report` draw what was counted."""
    metric, on_cpu = "metrics=[{name: box_errors}]", ("--device", "cpu")
    saved = ("--save-predictions", "--out", tmp_path / "kept", "--json", tmp_path / "one.json")
    done = succeed("evaluate", run, metric, *saved, *on_cpu)
    one, manifest = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "kept/manifest.json"))
    file = document_of("score", tmp_path / "kept", "--data", run, metric)
    assert file["metrics"] == pytest.approx(one["metrics"], abs=1e-12)
    assert (file["box_errors"], file["worst_samples"]) == (one["box_errors"], one["worst_samples"])
    assert manifest["worst_samples"] == one["worst_samples"]
    assert "errors by kind" in done.out

    shown = document_of("view", run, metric, "--samples", "worst", *on_cpu, "--out", tmp_path / "seen")["samples"]
    worst = [sample["name"] for samples in one["worst_samples"]["kinds"].values() for sample in samples]
    assert {sample["name"].partition(":")[0] for sample in shown} == {f"test/{name}" for name in worst}
    for sample in shown:
        for text in sample["name"].partition(": worst in ")[2].split(", "):
            kind, count = text.rstrip(")").split(" (")
            assert f"{count} {kind}" in sample["stages"][-1]["description"]

    reported = copy_run("detect", tmp_path)
    (reported / "final.json").write_text((tmp_path / "one.json").read_text())
    succeed("report", reported, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "{name} ({count})".format_map(one["worst_samples"]["kinds"]["missed"][0]) in page


def test_boxes_written_as_corners_are_named(run: Path, tmp_path: Path) -> None:
    """The reading that finds more labels stands beside the figures, which are far less; more in evaluation/."""
    crowds = SyntheticCrowds(split="test", train_size=8, validation_size=4, test_size=6)
    corners = [
        (index, box) for index in range(6) for box in crowds[SampleKey(index, 0, 0)]["boxes"].clamp(min=0).tolist()
    ]
    rows = [{"image_id": index + 1, "category_id": 1, "bbox": box, "score": 0.5} for index, box in corners]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    done = succeed("score", tmp_path / "found.json", "--data", run)
    assert "found.json: boxes look like left, top, right, bottom: so read they find " in done.err


def test_a_run_is_scored_by_metrics_that_it_was_not_trained_with(run: Path, tmp_path: Path) -> None:
    """And on other data; `view`, which computes no metric, refuses them."""
    words = ("metrics=[{name: box_ap}, {name: crowd_ap}]", "--device", "cpu", "--json", tmp_path / "run.json")
    for data in ((), ("--data", run)):
        done = succeed("evaluate", run, *words, *data)
        found = json.loads((tmp_path / "run.json").read_text())["metrics"]
        trained = json.loads((run / "final.json").read_text())["metrics"]
        assert {**trained, **found} == found
        assert {"crowd_ap", "mr2", "ji"} <= {*found} - {*trained}
    done = run_here("view", run, words[0], "--out", tmp_path / "page")
    assert (done.code, "found 'metrics=" in done.err) == (2, True)


def test_category_ids_may_count_from_another_number(prepared_boxes: Path) -> None:
    rows = results_of(truth_of(prepared_boxes))
    moved = [row | {"category_id": row["category_id"] + 100} for row in rows]
    (_, figures), (done, ours) = score(prepared_boxes, rows), score(prepared_boxes, moved, "category_offset=100")
    assert done.code == 0, done.err
    assert ours["metrics"] == figures["metrics"]
    wrong, _ = score(prepared_boxes, moved, "category_offset=one")
    assert wrong.code == 2
    assert "category_offset=one: give a whole number" in wrong.err
    assert "category_offset=1, if their category ids count" in " ".join(run_here("score", "--help").out.split())
