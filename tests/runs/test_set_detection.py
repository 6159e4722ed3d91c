"""Runs of detectors of transformers: from a hub to predictions, resumed to the same bits, and by two processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sightline.runs.lineage import read_lineage
from sightline.runs.trained_weights import load_trained_state
from tests.command import document_of, refuse, run_here, succeed
from tests.hub_server import Hub
from tests.models.set_networks import SETTINGS, make_small_words
from tests.processes import ROOT
from tests.published.test_transformers_files import write_theirs
from tests.runs.broken_off import Forked, differences, last_saved, last_step, wait_for
from tests.runs.test_hub import NOWHERE, hub

__all__ = ["hub"]

CONFIG = ROOT / "configs/detect/photos_dfine.yaml"
WORDS = (
    *("data={name: synthetic_crowds, train_size: 8, validation_size: 4, test_size: 4}",),
    *("transforms.train.0.canvas=[64, 96]", "transforms.evaluate.0.height=64", "transforms.evaluate.0.width=96"),
    *("train.batch_size=4", "train.epochs=2", "evaluate.every=1", "optimizer.lr=1e-3", "schedule={name: constant}"),
)
CALM = ("--no-check", "--device", "cpu", "--out")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client


def test_from_a_hub_to_predictions_killed_and_offline(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_theirs(tmp_path / "theirs")
    files = {name: (path.parent / name).read_bytes() for name in ("model.safetensors", "config.json")}
    hub.repos["ustc/dfine"] = {**files, "README.md": b"a card", "pytorch_model.bin": b"\x80"}
    words = [*WORDS, "init.from=hf://ustc/dfine"]
    said = refuse("train", CONFIG, *words, *CALM, tmp_path / "straight")
    assert "is of a network with other backbone_config, encoder_hidden_dim, " in said
    words.append(said.partition("its config: ")[2].strip())  # what it says to take does
    succeed("train", CONFIG, *words, *CALM, tmp_path / "straight")
    log = (tmp_path / "straight/train.log").read_text()
    assert "matched; 1 of 1 classes start with the file's weights of the class of the same name" in log
    name = f"hf://ustc/dfine/model.safetensors@{hub.commit('ustc/dfine')}"
    assert yaml.safe_load((tmp_path / "straight/config.yaml").read_text())["init"]["from"] == name
    lineage = read_lineage(tmp_path / "straight")
    assert lineage is not None
    assert lineage["lineage"] == {"file": name, "sha256": lineage["sha256"], "layout": "transformers"}

    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)  # from the cache, in two parts
    succeed("train", CONFIG, *words, "train.steps=3", *CALM, tmp_path / "parts")
    succeed("train", tmp_path / "parts", "train.steps=4", "--no-check", "--resume", tmp_path / "parts")
    assert_same(load_trained_state(tmp_path / "straight"), load_trained_state(tmp_path / "parts"))
    figures = [json.loads((tmp_path / run / "final.json").read_text())["metrics"] for run in ("straight", "parts")]
    assert figures[0] == figures[1] | {name: value for name, value in figures[0].items() if value is None}

    succeed("evaluate", tmp_path / "straight", "task.most=50", "--save-predictions", "--out", tmp_path / "evaluation")
    succeed("report", tmp_path / "straight")
    succeed("view", tmp_path / "straight", "--num", "1", "--out", tmp_path / "pictures")
    said = refuse("evaluate", tmp_path / "straight", "evaluate.votes=2", "transforms.vote=[{name: flip_image}]")
    assert "the task 'detect_set' does not merge the predictions of several passes; set evaluate.votes=1" in said
    picture = next((tmp_path / "pictures").glob("*.png"))
    documents = [tmp_path / f"{number}.json" for number in (1, 2)]
    for document in documents:
        succeed("predict", tmp_path / "straight", picture, "score=0.001", "--json", document)
    assert documents[0].read_bytes() == documents[1].read_bytes()
    assert json.loads(documents[0].read_text())["predictions"][0]["num_boxes"] > 0


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("family", SETTINGS)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(family: str, tmp_path: Path) -> None:
    """Weights, averages, states of the optimiser and of random generators, metrics and the best checkpoint."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = [*make_small_words(family), "train.batch_size=4", "train.epochs=10", "checkpoint.every_steps=1"]

    def train(out: Path, log: str, *more: str) -> Forked:
        return Forked(["train", str(CONFIG), *words, *CALM, str(out), *more], tmp_path / log)

    assert train(whole, "whole.log").wait(300)[0] == 0
    child = train(killed, "killed.log")
    wait_for(lambda: last_saved(killed) >= 3 or not child.is_alive(), otherwise=child.log.read_text)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait()[0] == -signal.SIGKILL
    assert last_step(killed) < last_step(whole) == 20
    code, said = train(killed, "resumed.log", "--resume", "auto").wait(300)
    assert code == 0, said
    assert "resumed at step" in said
    assert differences(killed, whole) == []


@pytest.mark.long
@pytest.mark.parametrize("family", SETTINGS)
def test_a_file_of_onnx_is_refused_before_anything_is_written(family: str, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "file.onnx"
    words = [*make_small_words(family), "train.batch_size=4", "train.epochs=1"]
    succeed("train", CONFIG, *words, *CALM, run)
    for more in ([], ["--int8"]):
        done = run_here("export", run, "--out", file, *more)
        assert done.code != 0
        assert "error: export: ONNX cannot hold this network: " in done.err
        assert "'sightline predict' and 'sightline serve' run it" in done.err
        assert done.err.count("\n") == 1
        assert not file.exists()


ANSWERS = [
    (
        ["model.from=hf://you/dfine"],
        "model.from: 'transformers_detector' has no such argument; did you mean 'init.from'",
    ),
    (["task={name: detect}"], "'detect' is no task of the model 'transformers_detector'; set task={name: detect_set}"),
    (["model.network.name=detr"], "network: found the name 'detr', allowed are d_fine and rt_detr_v2"),
    (["model.network={name: rt_detr_v2}"], "losses.set_corners needs 'corner_term'"),
]


@pytest.mark.parametrize(("words", "told"), ANSWERS)
def test_what_a_user_may_type_is_answered_by_what_to_type(words: list[str], told: str, tmp_path: Path) -> None:
    said = refuse("train", CONFIG, *WORDS, "init=null", *words, *CALM, tmp_path / "run")
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", SETTINGS)
@pytest.mark.parametrize("against", ["float64", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_rounding_explains_what_number_formats_change(family: str, against: str, tmp_path: Path) -> None:
    """A family by an override of the preset of D-FINE, whose values are dropped."""
    words = [*make_small_words(family), "--samples", "4", "--steps", "2", "--against", against]
    compared = document_of("compare", CONFIG, *words)
    assert compared["equal"], compared["first"]
    inside = {row["layer"] for row in compared["layers"]}
    assert {"network", "network.model", "network.model.decoder", "(loss)"} <= inside
    assert compared["steps"]["losses"][0] == pytest.approx(compared["steps"]["expected"][0], rel=1e-2)


def assert_same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "transformers" else find(name, *rest)
    )


def test_the_missing_extra_is_named_before_anything_is_written(without_transformers: None, tmp_path: Path) -> None:
    said = refuse("train", CONFIG, *WORDS, "init=null", *CALM, tmp_path / "run")
    assert "model transformers_detector needs the package 'transformers': pip install 'sightline[transformers]'" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_pickles_of_a_repository_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.repos["you/pickle"] = {"pytorch_model.bin": b"\x80", "config.json": b"{}"}
    said = refuse("train", CONFIG, *WORDS, "init.from=hf://you/pickle", *CALM, tmp_path / "run")
    assert "a pickle is a program" in said
    assert not (tmp_path / "run").exists()
