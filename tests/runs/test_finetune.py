"""Fine-tuning: an encoder taken into classifiers or frozen, its lineage, and a study beside scratch."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.runs import checkpoint
from sightline.runs.lineage import describe_lineage, read_lineage
from tests.command import Outcome, document_of, refuse, run_here, succeed
from tests.processes import ROOT

# --- fine-tuning as a user does it: a pre-trained encoder taken into classifiers, and its lineage ---------------------


DATA = "{name: synthetic_shapes, train_size: 96, test_size: 24, num_points: 32}"
PRETRAIN = f"""\
task: {{name: contrast}}
data: {DATA}
model: {{name: intrapoint, points: {{name: dgcnn, num_neighbours: 4, embedding: 16}}, embedding: 8}}
losses: [{{name: intra_modal}}]
metrics: [{{name: pairs}}]
transforms:
  train: [{{name: two_views, transforms: [{{name: rotate}}, {{name: jitter}}]}}]
  evaluate: [{{name: two_views, transforms: [{{name: rotate}}, {{name: jitter}}]}}]
optimizer: {{name: adam, lr: 1e-3}}
train: {{epochs: 1, batch_size: 32, steps: 2}}
evaluate: {{metric: uniformity}}
log: {{tensorboard: false}}
"""
FINETUNE = f"""\
init: {{from: '%s', modules: points, may_be_missing: [head]}}
data: {DATA}
model: {{name: dgcnn, num_neighbours: 4, embedding: 16}}
losses: [{{name: cross_entropy}}]
metrics: [{{name: accuracy}}]
optimizer: {{name: sgd, lr: 0.1, layer_decay: {{factor: 0.5}}, frozen: [{{modules: edges, until_epoch: 1}}]}}
train: {{epochs: 1, batch_size: 8, steps: 2}}
evaluate: {{metric: overall_accuracy}}
log: {{tensorboard: false}}
"""


@pytest.fixture(scope="module")
def work_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pre-trained encoder, and a config that fine-tunes it for classes."""
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "dgcnn.yaml").write_text(PRETRAIN)
    succeed("train", folder / "dgcnn.yaml", "--out", folder / "pre_dgcnn", "--no-check")
    (folder / "fine.yaml").write_text(FINETUNE % (folder / "pre_dgcnn"))
    return folder


@pytest.fixture(scope="module")
def fine_tuned(work_folder: Path) -> tuple[Path, Outcome]:
    """The encoder fine-tuned for classes, and what was said."""
    done = succeed("train", work_folder / "fine.yaml", "--out", work_folder / "fine", "--no-check")
    return work_folder / "fine", done


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_below_a_full_match_nothing_starts(work_folder: Path, tmp_path: Path) -> None:
    done = refuse("train", work_folder / "fine.yaml", "init.may_be_missing=[]", "--out", tmp_path / "run", "--no-check")
    assert "30 of 45 tensors" in done
    assert "missing: head" in done
    assert not (tmp_path / "run").exists()


# --- what is told and kept -------------------------------------------------------------------------------------------


def test_the_report_and_the_rates_are_told_logged_and_kept(work_folder: Path, fine_tuned: tuple[Path, Outcome]) -> None:
    run, done = fine_tuned
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
    source = work_folder / "pre_dgcnn"
    weights = (source / "checkpoints/last/model.safetensors").read_bytes()
    assert lineage["from"] == str(source.resolve())
    assert lineage["sha256"] == hashlib.sha256(weights).hexdigest()
    assert lineage["source"]["config_sha256"] == hashlib.sha256((source / "config.yaml").read_bytes()).hexdigest()
    assert lineage["source"]["data"]["name"] == "synthetic_shapes"
    assert (lineage["match"]["matched"], lineage["match"]["total"], lineage["differences"]) == (30, 45, [])
    assert lineage["lineage"] is None
    assert [each["name"] for each in lineage["source"]["training"]] == ["rotate", "jitter"]
    assert lineage["here"]["training"] == []


def test_clouds_of_another_form_are_told_logged_and_kept(work_folder: Path, tmp_path: Path) -> None:
    words = ["data.num_points=16", "--out", tmp_path / "run", "--no-check"]
    succeed("train", work_folder / "fine.yaml", *words)
    expected = "the number of points of a cloud: 32 in dgcnn (synthetic_shapes), 16 in fine (synthetic_shapes)"
    lineage = read_lineage(tmp_path / "run")
    assert lineage is not None
    assert lineage["differences"][0] == expected
    assert f"stages differ: {expected}" in (tmp_path / "run/train.log").read_text()


def test_a_chain_is_kept_whole(work_folder: Path, fine_tuned: tuple[Path, Outcome], tmp_path: Path) -> None:
    run, _ = fine_tuned
    words = [f"init.from={run}", "init.modules=null", "init.may_be_missing=[]"]
    succeed("train", work_folder / "fine.yaml", *words, "--out", tmp_path / "again", "--no-check")
    lineage = read_lineage(tmp_path / "again")
    assert lineage is not None
    assert lineage["lineage"] == read_lineage(run)
    told = describe_lineage(lineage)
    assert told.index(str(run)) < told.index(str(work_folder / "pre_dgcnn"))
    shown = run_here("show", tmp_path / "again", "--json", tmp_path / "show.json")
    assert told in shown.err
    assert json.loads((tmp_path / "show.json").read_text())["lineage"] == lineage


def test_show_tells_the_rates_of_a_config_and_of_a_run(
    work_folder: Path, fine_tuned: tuple[Path, Outcome], tmp_path: Path
) -> None:
    """Six modules, 0.1 x 0.5^5 for the first: 0.003125."""
    for what in (work_folder / "fine.yaml", fine_tuned[0]):
        shown = succeed("show", what, "--json", tmp_path / "show.json")
        rates = {rate["module"]: rate for rate in json.loads((tmp_path / "show.json").read_text())["rates"]}
        assert list(rates) == ["edges.0", "edges.1", "edges.2", "edges.3", "embed", "head"]
        assert rates["edges.0"]["lr"] == pytest.approx(0.003125, rel=1e-12)
        assert (rates["edges.3"]["frozen"], rates["head"]["frozen"]) == ("until epoch 1", "")
        assert "rates: edges.0" in shown.err
    again = tmp_path / "again.yaml"
    again.write_text(shown.out)
    config, run = read_config(again), read_config(fine_tuned[0] / "config.yaml")
    assert (config.optimizer, config.init) == (run.optimizer, run.init)


def test_a_resumed_run_keeps_its_lineage(work_folder: Path, fine_tuned: tuple[Path, Outcome], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fine_tuned[0], run, symlinks=True)
    (run / "final.json").unlink()
    before = (run / "lineage.json").read_bytes()
    succeed("train", work_folder / "fine.yaml", "--out", run, "--resume", "auto", "--no-check")
    assert (run / "lineage.json").read_bytes() == before


# --- from scratch against pre-trained -------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_a_study_compares_scratch_with_pre_trained_at_shares_of_the_labels(work_folder: Path) -> None:
    """Runs of one seed differ by their start alone; every cell has the bits of a run of its own, scored once."""
    (work_folder / "scratch.yaml").write_text(
        "base: fine.yaml\ninit: null\noptimizer: {frozen: [], layer_decay: null}\n"
    )
    configs, out = (work_folder / "fine.yaml", work_folder / "scratch.yaml"), work_folder / "labels"
    words = ("evaluate.select=test", "--vary", "data.fraction=0.1,1", "--seeds", "2", "--out", out)
    succeed("study", *configs, *words)
    document = json.loads((out / "study.json").read_text())
    assert document["factors"] == {"config": ["fine", "scratch"], "data.fraction": ["0.1", "1"]}
    assert [len(row["values"]) for row in document["rows"]] == [2] * 4
    pairs = [difference for difference in document["differences"] if difference["factor"] == "config"]
    assert [(each["level"], each["first"], each["others"]) for each in pairs] == [
        ("scratch", "fine", {"data.fraction": share}) for share in ("0.1", "1")
    ]
    given, scratch = (
        read_config(out / f"config_{name}" / "fraction_0.1" / "seed_1" / "config.yaml") for name in ("fine", "scratch")
    )
    assert (given.init is None, scratch.init) == (False, None)
    assert (scratch.seed, scratch.data, scratch.train) == (given.seed, given.data, given.train) != (0, None, None)
    cell = out / "config_fine" / "fraction_0.1" / "seed_1"
    alone = ["data.fraction=0.1", "seed=1", "evaluate.select=test", "--out", work_folder / "alone"]
    succeed("train", work_folder / "fine.yaml", *alone)
    weights = [(run / "checkpoints/last/model.safetensors").read_bytes() for run in (work_folder / "alone", cell)]
    assert weights[0] == weights[1]
    lineage = json.loads((cell / "lineage.json").read_text())
    (cell / "lineage.json").write_text(json.dumps(lineage | {"sha256": "0" * 64}))
    assert "started from other weights (0000" in refuse("study", *configs, *words)


# --- a frozen extractor -----------------------------------------------------------------------------------------------


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


def test_nothing_but_the_head_moves(tmp_path: Path) -> None:
    """Parameters and batch statistics of the extractor have the bits of the run's start, made from its seed."""
    succeed("train", RECIPE, *SMALL, "--no-check", "--device", "cpu", "--out", tmp_path / "run")
    ended = checkpoint.load(tmp_path / "run").model
    started = build(read_config(RECIPE, SMALL), World()).job.model.state_dict()
    changed = {name for name, value in ended.items() if not torch.equal(value, started[name])}
    assert changed == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}


def test_checks_are_silent() -> None:
    found = document_of("check", RECIPE, *SMALL)["findings"]
    assert [each["code"] for each in found if each["severity"] != "note"] == []
