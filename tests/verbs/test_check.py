"""What a training left is looked at when it ends, and by `sightline check RUN`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.doctor.checks import loss_progress
from tests.command import run_here, succeed
from tests.doctor.pairing import CONFIG


def test_a_run_is_looked_at_when_it_ends_and_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a run of 14 steps were long, and every loss at chance: one warning, and the exit code stays 0."""
    config, run = tmp_path / "pairs.yaml", tmp_path / "run"
    config.write_text(CONFIG)
    for name, value in (
        ("_MIN_STEPS", 1),
        ("_MIN_CHANCE_STEPS", 1),
        ("_MIN_SLOW_STEPS", 1),
        ("_MAX_SHARE_OF_CHANCE", -1.0),
        ("_MIN_DECREASE", 1e9),
    ):
        monkeypatch.setattr(loss_progress, name, value)
    done = succeed("train", config, "--out", run, "--device", "cpu")
    assert done.err.count("'intra_modal' ends at chance") == 1
    assert str(run / "metrics.jsonl") in done.err
    kept = json.loads((run / "findings.json").read_text())
    assert [finding["code"] for finding in kept if finding["severity"] != "note"] == ["loss-at-chance"]
    assert kept[0]["code"] == "missing-batch-keys"  # what was found before the run is still there

    looked = succeed("check", run, "--device", "cpu", "--json", tmp_path / "found.json")
    assert "pairs: 0 errors, 1 warning" in looked.err
    before = run_here("check", config, "--device", "cpu")
    assert "pairs: 0 errors, 0 warnings" in before.err


def test_a_healthy_run_says_nothing_and_unchecked_ones_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "pairs.yaml"
    config.write_text(CONFIG)
    done = succeed("train", config, "--out", tmp_path / "healthy", "--device", "cpu", "train.steps=3")
    assert "at chance" not in done.err
    for name, value in (
        ("_MIN_STEPS", 1),
        ("_MIN_CHANCE_STEPS", 1),
        ("_MIN_SLOW_STEPS", 1),
        ("_MAX_SHARE_OF_CHANCE", -1.0),
        ("_MIN_DECREASE", 1e9),
    ):
        monkeypatch.setattr(loss_progress, name, value)
    done = succeed("train", config, "--out", tmp_path / "unchecked", "--device", "cpu", "--no-check", "train.steps=3")
    assert "at chance" not in done.err
