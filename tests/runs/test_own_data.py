"""A folder of 30 PLY files in three classes, from nothing to predictions, by the very commands of the page."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.clouds.sets.cloud_folder import CloudFolder
from tests.command import run_here, succeed
from tests.conftest import ROOT
from tests.data.clouds.cloud_writers import CLASSES, write_folder

PAGE = ROOT / "docs" / "manual" / "data_clouds.md"
TINY = ("train.epochs=2", "model.dropout=0.0", "log.every=100", "--no-check")
"""The recipe is run whole by hand (the page says how long it takes); here it is enough that it runs."""


def commands() -> list[list[str]]:
    """The first commands of the page: info, prepare, view, check, train, evaluate, predict."""
    block = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[0]
    return [shlex.split(line)[1:] for line in block.strip().split("\n")]


@pytest.fixture(scope="module")
def work_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after all commands of the page."""
    folder = tmp_path_factory.mktemp("own")
    write_folder(folder / "scans")
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        info, prepare, view, check, train, evaluate, predict = commands()
        assert "up_axis: z" in succeed(*info).out
        succeed(*prepare)
        succeed(*view)
        succeed(*check)
        succeed(*train, *TINY)
        succeed(*evaluate, "--json", "scores.json")
        succeed(*predict)
    return folder


def test_every_file_has_an_answer_and_those_of_the_test_part_are_scored(work_folder: Path) -> None:
    with (work_folder / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"scans/{kind}/{kind}_{n:02d}.ply" for kind in CLASSES for n in range(10)]
    assert {row["class"] for row in rows} <= set(CLASSES)
    assert all(row["refused"] == "" and 0 < float(row["probability"]) <= 1 for row in rows)
    answers = {Path(row["file"]).name: row["class"] for row in rows}
    test = CloudFolder(split="test", root=str(work_folder / "prepared"))
    names = [test.sample_name(index) for index in range(len(test))]
    right = [answers[Path(name).name] == name.split("/")[0] for name in names]
    scores = json.loads((work_folder / "scores.json").read_text())
    assert scores["metrics"]["overall_accuracy"] == np.mean(right)
    assert scores["data"]["num_samples"] == len(names) == 6


def test_evaluating_on_clouds_that_lie_otherwise_is_refused(work_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work_folder)
    succeed("data", "prepare", "cloud_folder", "--from", "scans", "--to", "lying", "up_axis=y")
    told = run_here("evaluate", "runs/own", "data.root=lying", "--json", "lying.json")
    assert told.code == 1
    assert "cfg.axis_swap" in told.err
    assert "the up axis: y" in told.err
    assert not Path("lying.json").exists()
    other = "base: configs/classify/cloud_folder_pointnet.yaml\ndata: {root: lying}\n"
    Path("other.yaml").write_text(other)
    told = run_here("evaluate", "runs/own", "--data", "other.yaml")
    assert told.code == 1
    assert "other.yaml:2" in told.err
    succeed("evaluate", "runs/own", "data.root=lying", "checks.skip=[dataset-mismatch]", "--json", "lying.json")
    assert Path("lying.json").exists()


def test_a_run_whose_data_is_gone_is_compared_by_what_it_noted(
    work_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work_folder)
    succeed("data", "prepare", "cloud_folder", "--from", "scans", "--to", "copy", "up_axis=z")
    (work_folder / "prepared").rename(work_folder / "away")
    try:
        told = succeed("evaluate", "runs/own", "data.root=copy", "--json", "copy.json")
    finally:
        (work_folder / "away").rename(work_folder / "prepared")
    assert "cannot be read; the recorded statistics of the run are compared" in told.err
    assert (
        json.loads(Path("copy.json").read_text())["metrics"] == json.loads(Path("scores.json").read_text())["metrics"]
    )
