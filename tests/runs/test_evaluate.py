"""`sightline evaluate RUN key=value`: what may be said anew about an evaluation, and what not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.verbs import evaluate as verb
from tests.command import run_here, succeed
from tests.runs.small import ROOT
from tests.trained import copy_run

CONFIG = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
VOTES = ("evaluate.votes=3", "transforms.vote=[{name: rotate}]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("classify", tmp_path_factory.mktemp("classify"))


def evaluated(run: Path, file: Path, *words: object) -> bytes:
    succeed("evaluate", run, *words, "--device", "cpu", "--json", file)
    return file.read_bytes()


def test_without_overrides_it_is_final_json_byte_for_byte(run: Path, tmp_path: Path) -> None:
    assert evaluated(run, tmp_path / "a.json") == (run / "final.json").read_bytes()


def test_overrides_are_followed_and_noted(run: Path, tmp_path: Path) -> None:
    voted = json.loads(evaluated(run, tmp_path / "a.json", *VOTES))
    assert voted["overrides"] == list(VOTES)
    assert voted["votes"] == 3
    assert "overall_accuracy_vote3" in voted["metrics"]


def test_with_other_data_overrides_are_laid_over_its_config(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(f"base: {CONFIG}\ndata: {{test_size: 12, num_points: 32}}\n")
    voted = json.loads(evaluated(run, tmp_path / "a.json", *VOTES, "--data", other))
    assert (voted["votes"], voted["data"]["num_samples"]) == (3, 12)
    assert "overall_accuracy_vote3" in voted["metrics"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=3", "found 'train.epochs=3', allowed is key=value with evaluate.*, transforms.evaluate*"),
        ("model.dropout=0.1", "model.dropout=0.1"),
        ("data.test_size=3", "data.root"),
        ("evaluate={votes: 3}", "evaluate.*"),
        ("seed=1", "seed=1"),
        ("evaluate.select=test", "evaluate.select chose the best weights of the run during training"),
        ("evaluate.vots=3", "did you mean 'votes'"),
    ],
)
def test_what_would_be_another_run_is_refused_in_one_line(run: Path, override: str, expected: str) -> None:
    code, out, err = run_here("evaluate", run, override)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert expected in err


def test_launched_processes_are_told_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr(verb, "launch", lambda words, num_processes: told.append(words) or 0)
    succeed("evaluate", run, *VOTES, "loader.workers=1", "--processes", "2")
    assert told[0][:5] == ["evaluate", str(run), *VOTES, "loader.workers=1"]
