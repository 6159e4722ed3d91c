"""Fine-tuning: an encoder taken into classifiers or frozen, its lineage, and label efficiency."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import sightline
from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.runs import checkpoint
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.workbench.study.label_efficiency import STARTS, LabelRow, LabelRun, label_panel, label_rows, table_cells
from sightline.workbench.study.study_runs import StudyRun
from tests.command import Outcome, refuse, run_here, succeed
from tests.processes import ROOT

# --- fine-tuning as a user does it: a pre-trained encoder taken into classifiers, its lineage, and label -------------


DATA = "{name: synthetic_shapes, train_size: 240, test_size: 24, num_points: 32%s}"
PRETRAIN = f"""\
task: {{name: contrast}}
data: {DATA % ""}
model: {{name: intrapoint, points: {{name: %s, num_neighbours: 4, embedding: 16}}, embedding: 8}}
losses: [{{name: intra_modal}}]
metrics: [{{name: pairs}}]
transforms:
  train: [{{name: two_views, each: [{{name: rotate}}, {{name: jitter}}]}}]
  evaluate: [{{name: two_views, each: [{{name: rotate}}, {{name: jitter}}]}}]
optimizer: {{name: adam, lr: 1e-3}}
train: {{epochs: 1, batch_size: 32, steps: 2}}
evaluate: {{metric: uniformity}}
log: {{tensorboard: false}}
"""
FINETUNE = f"""\
init: {{from: '%s', modules: points, may_be_missing: [head]}}
data: {DATA % ""}
model: {{name: dgcnn, num_neighbours: 4, embedding: 16}}
losses: [{{name: cross_entropy}}]
metrics: [{{name: accuracy}}]
optimizer: {{name: sgd, lr: 0.1, layer_decay: {{factor: 0.5}}, frozen: [{{modules: edges, until_epoch: 1}}]}}
train: {{epochs: 1, batch_size: 8, steps: 2}}
evaluate: {{metric: overall_accuracy}}
log: {{tensorboard: false}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pre-trained encoder of each kind, and a config that fine-tunes the one that classifies."""
    folder = tmp_path_factory.mktemp("finetune")
    for name in ("dgcnn", "dgcnn_parts"):
        (folder / f"{name}.yaml").write_text(PRETRAIN % name)
        succeed("train", folder / f"{name}.yaml", "--out", folder / f"pre_{name}", "--no-check")
    (folder / "fine.yaml").write_text(FINETUNE % (folder / "pre_dgcnn"))
    return folder


@pytest.fixture(scope="module")
def tuned(place: Path) -> tuple[Path, Outcome]:
    """The encoder fine-tuned for classes, and what was said."""
    done = succeed("train", place / "fine.yaml", "--out", place / "fine", "--no-check")
    return place / "fine", done


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_the_segmentation_encoder_lacks_the_head_alone(place: Path) -> None:
    """25 tensors as in the authors' fine-tuning: their conv7 to conv11 are category, join and head here."""
    text = (FINETUNE % (place / "pre_dgcnn_parts")).replace("name: dgcnn,", "name: dgcnn_parts,")
    text = text.replace("num_points: 32", "num_points: 32, target: parts").replace("accuracy}]", "part_iou}]")
    text = text.replace("overall_accuracy", "instance_miou").replace(
        "frozen: [{modules: edges", "frozen: [{modules: levels"
    )
    path = place / "parts.yaml"
    path.write_text("task: {name: segment}\n" + text.replace("[head]", "[category, join, head]"))
    report = build(read_config(path), World()).init_report
    assert report is not None
    assert (report.matched, len(report.missing)) == (68, 25)
    assert str(report).endswith("25 tensors (category 6, join 6, head 13)")
    assert {name.split(".")[0] for name in report.missing} == {"category", "join", "head"}


def test_below_a_full_match_nothing_starts(place: Path, tmp_path: Path) -> None:
    done = refuse("train", place / "fine.yaml", "init.may_be_missing=[]", "--out", tmp_path / "run", "--no-check")
    assert "30 of 45 tensors" in done
    assert "missing: head" in done
    assert not (tmp_path / "run").exists()


# --- what is told and kept -------------------------------------------------------------------------------------------


def test_the_report_and_the_rates_are_told_logged_and_kept(place: Path, tuned: tuple[Path, Outcome]) -> None:
    run, done = tuned
    log = (run / "train.log").read_text()
    for line in (
        "task: classify on synthetic_shapes · model: dgcnn (",
        "intrapoint of contrast on synthetic_shapes): points into the whole model, 30 of 45 tensors",
        "pre_dgcnn: 30 of 45 tensors",
        "rates: edges.0",
        "until epoch 1",
    ):
        assert line in done.err, line
        assert line in log, line
    lineage = read_lineage(run)
    assert lineage is not None
    source = place / "pre_dgcnn"
    weights = (source / "checkpoints/last/model.safetensors").read_bytes()
    assert lineage["from"] == str(source.resolve())
    assert lineage["sha256"] == hashlib.sha256(weights).hexdigest()
    assert lineage["source"]["config_sha256"] == hashlib.sha256((source / "config.yaml").read_bytes()).hexdigest()
    assert lineage["source"]["data"]["name"] == "synthetic_shapes"
    assert (lineage["match"]["matched"], lineage["match"]["total"], lineage["differences"]) == (30, 45, [])
    assert lineage["lineage"] is None
    assert [each["name"] for each in lineage["source"]["training"]] == ["rotate", "jitter"]
    assert lineage["here"]["training"] == []


def test_clouds_of_another_form_are_told_logged_and_kept(place: Path, tmp_path: Path) -> None:
    words = ["data.num_points=16", "--out", tmp_path / "run", "--no-check"]
    succeed("train", place / "fine.yaml", *words)
    expected = "the number of points of a cloud: 32 in dgcnn (synthetic_shapes), 16 in fine (synthetic_shapes)"
    lineage = read_lineage(tmp_path / "run")
    assert lineage is not None
    assert lineage["differences"][0] == expected
    assert f"stages differ: {expected}" in (tmp_path / "run/train.log").read_text()


def test_a_chain_is_kept_whole(place: Path, tuned: tuple[Path, Outcome], tmp_path: Path) -> None:
    run, _ = tuned
    words = [f"init.from={run}", "init.modules=null", "init.may_be_missing=[]"]
    succeed("train", place / "fine.yaml", *words, "--out", tmp_path / "again", "--no-check")
    lineage = read_lineage(tmp_path / "again")
    assert lineage is not None
    assert lineage["lineage"] == read_lineage(run)
    told = describe_lineage(lineage)
    assert told.index(str(run)) < told.index(str(place / "pre_dgcnn"))
    shown = run_here("show", tmp_path / "again", "--json", tmp_path / "show.json")
    assert told in shown.err
    assert json.loads((tmp_path / "show.json").read_text())["lineage"] == lineage


def test_show_tells_the_rates_of_a_config_and_of_a_run(
    place: Path, tuned: tuple[Path, Outcome], tmp_path: Path
) -> None:
    """Six modules, 0.1 x 0.5^5 for the first: 0.003125."""
    for what in (place / "fine.yaml", tuned[0]):
        shown = succeed("show", what, "--json", tmp_path / "show.json")
        rates = {rate["module"]: rate for rate in json.loads((tmp_path / "show.json").read_text())["rates"]}
        assert list(rates) == ["edges.0", "edges.1", "edges.2", "edges.3", "embed", "head"]
        assert rates["edges.0"]["lr"] == pytest.approx(0.003125, rel=1e-12)
        assert (rates["edges.3"]["frozen"], rates["head"]["frozen"]) == ("until epoch 1", "")
        assert "rates: edges.0" in shown.err
    again = tmp_path / "again.yaml"
    again.write_text(shown.out)
    config, run = read_config(again), read_config(tuned[0] / "config.yaml")
    assert (config.optimizer, config.init) == (run.optimizer, run.init)


def test_a_resumed_run_keeps_its_lineage(place: Path, tuned: tuple[Path, Outcome], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned[0], run, symlinks=True)
    (run / "final.json").unlink()
    before = (run / "lineage.json").read_bytes()
    succeed("train", place / "fine.yaml", "--out", run, "--resume", "auto", "--no-check")
    assert (run / "lineage.json").read_bytes() == before


# --- label efficiency ------------------------------------------------------------------------------------------------


def compare(place: Path, out: Path, *words: object) -> Outcome:
    preset = ("--preset", "labels", "fractions=0.1,1", "seeds=2,1")
    return run_here("study", place / "fine.yaml", *preset, "--out", out, *words)


@pytest.fixture(scope="module")
def compared(place: Path) -> tuple[Path, Outcome]:
    done = compare(place, place / "labels", "--json", place / "labels.json")
    assert done.code == 0, done.err
    return place / "labels", done


def test_every_cell_is_run_once_and_told(place: Path, compared: tuple[Path, Outcome]) -> None:
    out, done = compared
    document = json.loads((place / "labels.json").read_text())
    assert document == json.loads((out / "label_efficiency.json").read_text())
    assert [(row["fraction"], row["num_samples"]) for row in document["rows"]] == [(0.1, 24), (1.0, 240)]
    assert [(run["fraction"], run["start"], run["seed"]) for run in document["runs"]] == [
        *((0.1, start, seed) for seed in (0, 1) for start in ("pretrained", "scratch")),
        *((1.0, start, 0) for start in ("pretrained", "scratch")),
    ]
    for run in document["runs"]:
        final = json.loads((Path(run["run"]) / "final.json").read_text())
        assert run["value"] == final["metrics"]["overall_accuracy"]
        lines = [json.loads(line) for line in (Path(run["run"]) / "metrics.jsonl").read_text().splitlines()]
        assert [line["split"] for line in lines if line["split"] != "train"] == ["test-selected"], "scored once"
    first = document["rows"][0]
    for start in STARTS:
        values = [run["value"] for run in document["runs"] if (run["fraction"], run["start"]) == (0.1, start)]
        assert first[start]["values"] == values
        assert first[start]["mean"] == pytest.approx(statistics.fmean(values))
        assert first[start]["spread"] == pytest.approx(max(values) - min(values))
    assert "10 %" in done.out
    svg = (out / "label_efficiency.svg").read_text()
    assert "from scratch" in svg
    assert "pre-trained" in svg


def test_scratch_is_the_same_run_without_what_serves_given_weights(compared: tuple[Path, Outcome]) -> None:
    folder = compared[0] / "fraction_0.1"
    scratch, given = (read_config(folder / f"{start}_seed_1/config.yaml") for start in STARTS)
    assert scratch.init is None
    assert given.init is not None
    assert (scratch.optimizer.arguments["frozen"], scratch.optimizer.arguments["layer_decay"]) == ((), None)
    assert given.optimizer.arguments["layer_decay"] == {"factor": 0.5}
    assert (scratch.seed, scratch.data, scratch.train) == (given.seed, given.data, given.train) != (0, None, None)
    assert not (folder / "scratch_seed_1/lineage.json").exists()


def test_a_cell_has_the_bits_of_a_run_of_its_own(place: Path, compared: tuple[Path, Outcome], tmp_path: Path) -> None:
    words = ["data.fraction=0.1", "seed=1", "evaluate.select=test", "--out", tmp_path / "run"]
    succeed("train", place / "fine.yaml", *words)
    cell = compared[0] / "fraction_0.1/pretrained_seed_1"
    weights = [(run / "checkpoints/last/model.safetensors").read_bytes() for run in (tmp_path / "run", cell)]
    assert weights[0] == weights[1]


def test_done_cells_are_not_repeated_and_a_lost_one_is(place: Path, compared: tuple[Path, Outcome]) -> None:
    out, _ = compared
    lost = out / "fraction_0.1/pretrained_seed_1"
    kept = out / "fraction_0.1/scratch_seed_1/checkpoints/last/model.safetensors"
    before, document = kept.stat().st_mtime_ns, json.loads((out / "label_efficiency.json").read_text())
    shutil.rmtree(lost)
    done = compare(place, out)
    assert done.code == 0, done.err
    assert done.err.count("this run is finished; nothing to do") == 5
    assert (kept.stat().st_mtime_ns, (lost / "final.json").exists()) == (before, True)
    assert json.loads((out / "label_efficiency.json").read_text()) == document, "the lost run has its figure again"


def test_other_pretrained_weights_are_refused(place: Path, compared: tuple[Path, Outcome], tmp_path: Path) -> None:
    other = tmp_path / "pre"
    words = ["seed=5", "--out", other, "--no-check"]
    succeed("train", place / "dgcnn.yaml", *words)
    shutil.copytree(compared[0], tmp_path / "labels", symlinks=True)
    path = tmp_path / "labels/fraction_0.1/pretrained_seed_0/lineage.json"
    lineage = json.loads(path.read_text())
    path.write_text(json.dumps(lineage | {"sha256": "0" * 64}))
    done = compare(place, tmp_path / "labels")
    assert done.code == 2
    assert "started from other weights (0000" in done.err
    done = compare(place, tmp_path / "labels", f"from={other}")
    assert done.code == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fractions=0.5,0.1"], "fractions=0.5,0.1: give fractions"),
        (["fractions=a"], "fractions=a: give numbers"),
        (["seeds=1,2,3"], "seeds=1,2,3: give one whole number from 1, or one for each of 2 fractions"),
        (["epochs=0"], "epochs=0"),
        (["init=null"], "has no init; give the run to start from with from=RUN"),
        (["model.name=dgcn"], "dgcn"),
        (["from=nowhere"], "init.from: nowhere: no checkpoint is here"),
        (["seed=5"], "found 'seed=5'; seed is set for every run: give seeds=N"),
        (["evaluate.select=test"], "evaluate.select is set for every run: with so few labels, nothing is held out"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_run(
    place: Path, tmp_path: Path, words: list[Any], told: str
) -> None:
    options = {"fractions": "0.1,1", "seeds": "1"} | dict(word.split("=") for word in words)
    given = (f"{key}={value}" for key, value in options.items())
    done = refuse("study", place / "fine.yaml", "--preset", "labels", "--out", tmp_path / "out", *given)
    assert told in done
    assert not (tmp_path / "out").exists()


def cell(fraction: float, start: Any, seed: int, value: float) -> LabelRun:
    return LabelRun(fraction, start, seed, StudyRun(Path(), ()), value)


def test_where_a_low_figure_is_the_better_one() -> None:
    """Errors of 0.5 and 0.6 from scratch, 0.3 and 0.2 pre-trained: 0.3 less, beyond the spread of 0.1."""
    cells = [cell(0.1, "scratch", 0, 0.5), cell(0.1, "scratch", 1, 0.6)]
    cells += [cell(0.1, "pretrained", 0, 0.3), cell(0.1, "pretrained", 1, 0.2)]
    (low,), (high,) = label_rows(cells, {0.1: 72}, mode="min"), label_rows(cells, {0.1: 72}, mode="max")
    assert low.difference == high.difference == pytest.approx(-0.3)
    assert (low.is_beyond, high.is_beyond) == (True, False)
    assert (low.num_ahead, high.num_ahead, low.num_pairs) == (2, 0, 2)


def test_rows_by_hand() -> None:
    """0.5 and 0.6 against 0.8 and 0.7: means 0.55 and 0.75, spreads 0.1, so 0.2 is beyond; one seed says nothing."""
    cells = [cell(0.1, "scratch", 0, 0.5), cell(0.1, "pretrained", 0, 0.8)]
    cells += [cell(0.1, "scratch", 1, 0.6), cell(0.1, "pretrained", 1, 0.7)]
    cells += [cell(1.0, "scratch", 0, 0.9), cell(1.0, "pretrained", 0, 0.95)]
    first, last = label_rows(cells, {0.1: 10, 1.0: 100})
    assert (first.num_samples, last.num_samples) == (10, 100)
    assert first.difference == pytest.approx(0.2)
    assert first.spread == pytest.approx(0.1)
    assert (first.is_beyond, last.is_beyond) == (True, None)
    assert math.isnan(last.spread)
    assert LabelRow(0.1, 10, (0.5, 0.75), (0.6, 0.8)).is_beyond is False


def test_pairs_of_a_seed_by_hand() -> None:
    """One better, one the same, one worse; a broken off comparison counts its whole pairs alone."""
    row = LabelRow(0.1, 10, (0.5, 0.6, 0.7), (0.55, 0.6, 0.65))
    assert (row.num_ahead, row.num_pairs, row.to_dict()["num_ahead"]) == (1, 3, 1)
    begun = LabelRow(0.1, 10, (0.5,), (0.6, 0.8))
    assert (begun.num_ahead, begun.num_pairs) == (1, 1)
    assert table_cells(begun)[-1] == "1 of 1"
    assert LabelRow(0.1, 10, (), (0.6,)).num_pairs == 0


def test_a_run_without_a_figure_counts_in_nothing_and_its_seed_is_no_pair() -> None:
    """Of three seeds, the first has no figure from scratch: means 0.5 and 0.6, and two pairs, both better by seed."""
    values = {"scratch": (math.nan, 0.4, 0.6), "pretrained": (0.3, 0.7, 0.8)}
    cells = [cell(0.1, start, seed, value) for start in STARTS for seed, value in enumerate(values[start])]
    (row,) = label_rows(cells, {0.1: 10})
    assert (row.num_ahead, row.num_pairs) == (2, 2)
    assert row.difference == pytest.approx(0.6 - 0.5)
    assert row.spread == pytest.approx(0.5)
    assert row.to_dict()["scratch"]["std"] == pytest.approx(statistics.stdev((0.4, 0.6)))
    assert label_panel([row], title="").series[0].ranges == ((0.4, 0.6),)
    (nothing,) = label_rows([cell(0.1, "scratch", 0, math.nan)], {0.1: 10})
    assert not any(series.points for series in label_panel([nothing], title="").series)
    assert table_cells(nothing)[3:] == [None, None, None, None, None, "nothing to compare", "0 of 0"]


# --- the recipe of a frozen extractor: only its head learns, nothing else moves, and the checks are silen ------------


RECIPE = ROOT / "configs/classify/modelnet40_point_bert_frozen_cpu.yaml"
SMALL = (
    "data={name: synthetic_shapes, train_size: 96, test_size: 24, num_points: 64}",
    "transforms.train.0.num_points=48",
    "transforms.evaluate.0.num_points=48",
    "model.width=24",
    "model.depth=3",
    "model.num_groups=8",
    "model.group_size=6",
    "train.batch_size=8",
    "train.epochs=2",
    "log.tensorboard=false",
)
"""What brings the recipe down to a set that needs no files."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "run"
    succeed("train", RECIPE, *SMALL, "--device", "cpu", "--out", path)
    return path


def test_nothing_but_the_head_moves(run: Path) -> None:
    """Parameters and batch statistics of the extractor have the bits of the run's start, made from its seed."""
    ended = checkpoint.load(run).model
    again = run.parent / "again"
    words = ("--no-check", "--device", "cpu", "--out", again)
    succeed("train", RECIPE, *SMALL, "optimizer.lr=1e-12", *words)
    started = checkpoint.load(again).model
    changed = {name for name, value in ended.items() if (value - started[name]).abs().max() > 1e-6}
    assert changed == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}
    assert all(torch.equal(ended[name], started[name]) for name in ended.keys() - changed)


def test_the_run_is_an_extractor(run: Path) -> None:
    """`encode` gives the same feature whatever company a cloud is in: batch statistics are those stored."""
    model = sightline.load_run(run).model
    points = torch.randn(4, 48, 3)
    with torch.no_grad():
        together = model.encode(points=points)
        torch.testing.assert_close(model.encode(points=points[:1]), together[:1], rtol=1e-5, atol=1e-5)
    assert together.shape == (4, 48)


def test_checks_are_silent(tmp_path: Path) -> None:
    succeed("check", RECIPE, *SMALL, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert [each["code"] for each in found if each["severity"] != "note"] == []
