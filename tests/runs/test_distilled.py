"""Runs with a teacher: figures of its outputs, no bit of it in the run, resumed, moved, refused, quantised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from sightline.contract.errors import ConfigError
from sightline.engine.build import build
from sightline.engine.distributed import World
from tests.command import Outcome, document_of, refuse, run_here, succeed
from tests.processes import ROOT
from tests.runs.small import SMALL, small_config
from tests.trained import break_off

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
THIN = ("model={name: pointnet_plain, embedding: 16}",)
THINNER = ("model={name: pointnet_plain, embedding: 8}",)
BOTH = "losses=[{name: cross_entropy, weight: 0.3}, {name: distillation, weight: 0.7, temperature: 3.0}]"
ALONE = "losses=[{name: cross_entropy, weight: 0.3}]"
WORDS = (*SMALL, "--device", "cpu")


def train(out: Path, *words: object) -> Outcome:
    done = run_here("train", CONFIG, *WORDS, *words, "--out", out)
    assert "Traceback" not in done.err
    return done


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("distilled") / "teacher"
    words = ("train.precision=float64", "train.ema_decay=0.5", *THIN, ALONE)
    assert train(run, *words, "--no-check", "seed=7").code == 0
    return run


@pytest.fixture(scope="module")
def run(teacher: Path) -> Path:
    """Trained after the checks of every training, without a finding above a note; another model than its teacher."""
    path = teacher.parent / "student"
    done = train(path, *THINNER, BOTH, f"teacher={{from: {teacher}}}", "checkpoint.keep_last=2")
    assert done.code == 0, done.err
    assert " error " not in done.err
    return path


def test_a_teacher_without_weight_changes_no_bit_and_is_in_no_checkpoint(teacher: Path, tmp_path: Path) -> None:
    without = "losses=[{name: cross_entropy, weight: 0.3}, {name: distillation, weight: 0}]"
    words = (*THIN, "--no-check", "train.ema_decay=0.9", "train.steps=5")
    assert train(tmp_path / "plain", ALONE, *words).code == 0
    assert train(tmp_path / "taught", without, f"teacher={{from: {teacher}}}", *words).code == 0
    for name in ("model", "optimizer", "ema"):
        one, other = (tmp_path / run / "checkpoints/last" / f"{name}.safetensors" for run in ("plain", "taught"))
        assert load_file(one).keys() == load_file(other).keys()
        assert one.read_bytes() == other.read_bytes()


def test_a_run_that_was_broken_off_ends_with_the_same_bits(teacher: Path, run: Path, tmp_path: Path) -> None:
    """Also where its teacher lies elsewhere by then; not where that has learned on."""
    broken, moved = tmp_path / "broken", tmp_path / "moved"
    shutil.copytree(run, broken, symlinks=True)
    shutil.copytree(teacher, moved, symlinks=True)
    last = max((broken / "checkpoints").glob("step_*"))
    expected = (last / "model.safetensors").read_bytes()
    break_off(broken)
    words = (*THINNER, BOTH, "checkpoint.keep_last=2", "--resume", "auto", "--no-check")
    refused = train(broken, f"teacher={{from: {run}}}", *words)
    assert refused.code == 2
    assert "holds other weights (SHA-256 " in refused.err
    done = train(broken, f"teacher={{from: {moved}}}", *words)
    assert done.code == 0, done.err
    assert (last / "model.safetensors").read_bytes() == expected


def test_a_run_is_evaluated_with_its_teacher_a_moved_one_or_none(teacher: Path, run: Path, tmp_path: Path) -> None:
    recorded = json.loads((run / "final.json").read_text())

    def evaluated(*words: object) -> dict:
        return document_of("evaluate", run, "--device", "cpu", *words)

    found = evaluated()
    assert (found["metrics"], found["losses"]) == (recorded["metrics"], recorded["losses"])
    away = teacher.rename(tmp_path / "away")
    try:
        gone = refuse("evaluate", run, "--device", "cpu")
        assert f"teacher.from: {teacher}: no checkpoint is here" in gone
        assert "name its place, teacher.from=PATH; teacher=null evaluates without it" in gone
        assert evaluated(f"teacher.from={away}")["losses"] == recorded["losses"]
        without = evaluated("teacher=null")
        assert without["metrics"] == recorded["metrics"]
        assert without["losses"] == {"cross_entropy": recorded["losses"]["cross_entropy"]}
        assert evaluated("--data", run / "config.yaml", "teacher=null")["losses"].keys() == {"cross_entropy"}
        cloud = tmp_path / "cloud.npy"
        np.save(cloud, np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))
        succeed("predict", run, cloud, "--device", "cpu")
    finally:
        away.rename(teacher)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("teacher={from: TEACHER}", ALONE), r"teacher.from: no loss reads a teacher's outputs; add {name: distill"),
        ((BOTH,), r"losses.distillation needs 'teacher_logits'; .*add a trained run as teacher: {from: RUN}"),
        (("teacher={from: TEACHER/nowhere}", BOTH), r"teacher.from: .*nowhere: no checkpoint is here; .*put the teach"),
        (("teacher={from: TEACHER, sha256: abc}", BOTH), r"holds other weights .*than this run was trained with \(abc"),
        (
            ("teacher={from: TEACHER}", BOTH, "data.target=parts", "task.name=segment", "model.name=dgcnn_parts"),
            r"TEACHER: was trained with num_classes = 12; this data set has \d+",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_advice(teacher: Path, words: tuple[str, ...], expected: str) -> None:
    placed = [word.replace("TEACHER", str(teacher)) for word in words]
    with pytest.raises(ConfigError, match=expected.replace("TEACHER", str(teacher))):
        build(small_config(*placed), World())
