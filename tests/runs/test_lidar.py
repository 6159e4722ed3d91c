"""Range images in whole runs: any split of a step, scans without points or labels, commands."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.contract.types import Sample, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.loop import train
from tests.command import run_here, succeed
from tests.data.scans.lidar_writers import write_own
from tests.marks import long_but
from tests.processes import ROOT, run_ranks
from tests.runs.lidar_steps import run_steps
from tests.runs.scanning import make_scans

# As of the contract's toys: sums of float64 terms in another order, through six steps of AdamW.
BOUND = 1e-9


@pytest.fixture(scope="module")
def steps_of_one_process() -> dict[str, Any]:
    return run_steps(World())


def assert_same(found: dict[str, Any], whole: dict[str, Any]) -> None:
    """The same counts of every point before the first step; every loss, gradient norm and weight thereafter."""
    assert found["confusion"] == whole["confusion"]
    assert found["first"] == pytest.approx(whole["first"], rel=BOUND)
    assert [step["samples"] for step in found["trace"]] == [7, 7, 4] * 2
    for ours, theirs in zip(found["trace"], whole["trace"], strict=True):
        assert ours == pytest.approx(theirs, rel=BOUND, abs=BOUND)
    for name, values in whole["weights"].items():
        np.testing.assert_allclose(found["weights"][name], values, rtol=0, atol=BOUND)
    assert found["last"] == pytest.approx(whole["last"], rel=1e-6)


@pytest.mark.processes
def test_processes_with_uneven_scans_are_one(steps_of_one_process: dict[str, Any], tmp_path: Path) -> None:
    """Three; two: tests/long/test_launched_processes.py."""
    assert_processes_are_one(3, steps_of_one_process, tmp_path / "found.json")


def assert_processes_are_one(num_processes: int, whole: dict[str, Any], found: Path) -> None:
    run_ranks(["-m", "tests.runs.lidar_steps", str(found)], num_processes)
    assert_same(json.loads(found.read_text()), whole)


# --- scans with nothing in them ---------------------------------------------------------------------------------------

MODELS = ("model={name: squeezeseg}", "model={name: salsanext, width: 2}", "model={name: rangenet21, width: 2}")
FEW = ("data.train_size=8", "train.batch_size=2", "train.epochs=1", "optimizer={name: adam, lr: 0.01}")


def trained_weights(built: TrainingSetup, *, has_labels: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters before and after an epoch; every loss on the way is finite, and after it where labels count."""
    before = {name: value.detach().clone() for name, value in built.job.model.named_parameters()}
    losses: list[float] = []

    def at_step(record: Any, stop_requested: bool) -> bool:
        losses.extend([*record.losses.values(), record.grad_norm])
        return False

    train(built.job, World(), at_step)
    result = built.test_evaluator(built.job.evaluation_model, World())
    assert np.isfinite(losses).all()
    assert all(math.isfinite(value) == has_labels for value in result.losses.values())
    return before, dict(built.job.model.named_parameters())


@pytest.mark.parametrize("model", MODELS)
def test_empty_one_class_and_unlabelled_scans_are_trained_on(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    def edit(dataset: Any, sample: Sample, key: SampleKey) -> Sample:
        kept = {name: value[: 0 if key.index % 4 == 0 else None] for name, value in sample.items()}
        label = kept["label"]
        return {**kept, "label": (label, label.clamp(max=1), label * 0, label)[key.index % 4]}

    before, after = trained_weights(make_scans(monkeypatch, model, *FEW, edit=edit))
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    ("model", "is_empty"),
    long_but([(MODELS[0], False), (MODELS[1], True), (MODELS[2], False)], itertools.product(MODELS, [False, True])),
)
def test_scans_without_any_label_change_no_parameter(
    monkeypatch: pytest.MonkeyPatch, model: str, is_empty: bool
) -> None:
    def edit(dataset: Any, sample: Sample, key: SampleKey) -> Sample:
        kept = {name: value[: 0 if is_empty else None] for name, value in sample.items()}
        return {**kept, "label": kept["label"] * 0}

    before, after = trained_weights(make_scans(monkeypatch, model, *FEW, edit=edit), has_labels=False)
    for name, value in after.items():
        assert torch.equal(value, before[name]), name


# --- a sensor of one's own --------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "topics" / "lidar.md").read_text()
COLUMNS = "columns=[x, y, z, intensity, ring]"
COMMANDS = (
    ("data", "info", "scan_folder", "--from", "scans", COLUMNS),
    ("data", "prepare", "scan_folder", "--from", "scans", "--to", "data/own", COLUMNS, "num_beams=16"),
    ("describe", "own.yaml", "--depth", "1"),
    ("view", "own.yaml", "--num", "1", "--out", "view"),
    ("check", "own.yaml"),
    ("train", "own.yaml", "--out", "runs/own"),
    ("evaluate", "runs/own", "task.lift=knn"),
)
TINY = {
    "train": ("train.epochs=1", "model.width=2", "log.tensorboard=false", "--device", "cpu"),
    "check": ("model.width=2", "--device", "cpu"),
    "describe": ("model.width=2", "--device", "cpu"),
    "evaluate": ("--device", "cpu"),
}


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve scans and the page's config, the set prepared."""
    folder = tmp_path_factory.mktemp("own")
    write_own(folder / "scans", 12, num_columns=200)
    (folder / "own.yaml").write_text(re.findall(r"```yaml\n(task:.*?)```", PAGE, flags=re.DOTALL)[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run_here(*COMMANDS[1])
    assert done.code == 0, done.err
    return folder


def test_the_config_of_the_page(prepared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared_folder)
    told = {}
    for words in COMMANDS:
        done = succeed(*words, *TINY.get(words[0], ()))
        told[words[1] if words[0] == "data" else words[0]] = done.out + done.err
    assert "azimuth_deg: [50.0, -50.0], num_beams: 16, remission_max: 255" in " ".join(told["info"].split())
    assert "100.0% of the points shown" in told["describe"]
    assert "0 errors, 0 warnings" in told["check"]
    assert "on test, 2 samples" in told["evaluate"]
    assert (prepared_folder / "view/view.html").is_file()  # and a picture a sample
    assert list((prepared_folder / "view").glob("*.png"))


WRONG = {
    "class weights": (("losses.0.class_weights=[1, 2, 3]",), "found 3 for 8 classes"),
    "key": (("data.sensor.fov=[12, -18]",), "did you mean 'fov_deg'"),
    "no project": (
        ("transforms.train=[]", "transforms.evaluate=[]"),
        "add 'project', which makes it, to transforms.train",
    ),
    "no project to evaluate": (("transforms.evaluate=[]",), "give both the same transform"),
    "fewer rows than rings": (
        ("transforms.train.1.height=8", "transforms.evaluate.0.height=8"),
        "height to the number of",
    ),
    "more rows than rings": (("transforms.train.1.height=64",), "48 of 64 rows of the image are always empty"),
    "the other way round": (("transforms.train.0.axes=[x]",), "left or right of the image"),
    "a full turn": (("data.sensor.azimuth_deg=[180, -180]",), "columns of the image, side by side, are always empty"),
}


SEEN_ALIKE = {"more rows than rings", "the other way round"}
"""Named by whole checks of images without points at some places, as `a full turn` is."""


@pytest.mark.parametrize("mistake", long_but(WRONG.keys() - SEEN_ALIKE, WRONG))
def test_a_newcomers_mistakes_are_named(prepared_folder: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    monkeypatch.chdir(prepared_folder)
    overrides, words = WRONG[mistake]
    done = run_here("check", "own.yaml", *overrides, *TINY["check"])
    assert words in " ".join((done.out + done.err).split())
