"""Our own training runs: findings at their step in train.log and findings.json, and not a bit changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sightline
from sightline.runs.run_documents import load_document
from sightline.training.train_result import TrainResult
from tests.runs.small import PLAIN

CONFIG = Path(__file__).resolve().parents[2] / "configs/classify/synthetic_shapes_pointnet.yaml"
SMALL = (
    "data.train_size=64",
    "data.test_size=24",
    "data.num_points=32",
    "train.batch_size=16",
    "train.epochs=2",
    *PLAIN,
)


def run(folder: Path, *overrides: str, checks: bool = True) -> TrainResult:
    return sightline.train_run(CONFIG, [*SMALL, *overrides], out=folder, checks=checks, device="cpu")


def codes(found: Any) -> list[tuple[str, int]]:
    return [(finding["code"], finding["where"]["step"]) for finding in found if finding["phase"] == "runtime"]


def test_a_finding_is_logged_and_kept_at_its_step(tmp_path: Path) -> None:
    result = run(tmp_path / "run", "optimizer.lr=30", "schedule.name=constant", "train.steps=4")
    kept = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert codes(kept) == [("large-update", 1)]
    assert ("large-update", 1) in [(finding.code, finding.where.step) for finding in result.findings]
    log = (tmp_path / "run" / "train.log").read_text()
    assert "[large-update warning optim.lr] an update changes half of the weight matrices" in log
    assert log.index("large-update") < log.index("end: ")


def test_a_code_can_be_skipped(tmp_path: Path) -> None:
    skipped = ("optimizer.lr=30", "schedule.name=constant", "train.steps=4", "checks.skip=[large-update]")
    assert codes(finding.to_dict() for finding in run(tmp_path / "run", *skipped).findings) == []


@pytest.mark.parametrize(
    "overrides",
    [pytest.param((), marks=pytest.mark.long), ("train.ema_decay=0.9", "train.clip_norm=0.1", "train.micro_batches=2")],
)
def test_a_watched_run_has_the_bits_of_a_run_without_checks(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    watched, bare = run(tmp_path / "watched", *overrides), run(tmp_path / "bare", *overrides, checks=False)
    assert codes(finding.to_dict() for finding in watched.findings) == []
    last = [load_document(result.path / "final.json")["metrics"] for result in (watched, bare)]  # type: ignore[operator]
    assert last[0] == last[1]
    weights = [(result.path / "checkpoints" / "last").resolve() for result in (watched, bare)]  # type: ignore[operator]
    files = [sorted(path for path in folder.rglob("*.safetensors")) for folder in weights]
    assert files[0]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
