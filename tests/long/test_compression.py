"""Compression: every row of the report, and HAQ's agent on a toy whose optimum is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command import succeed
from tests.compress.toys import closed_by_ddpg
from tests.runs.small import TINY

# --- `sightline compress report` --------------------------------------------------------------------------------------


MODEL = ("model.embedding=64", "data.train_size=120", "--device", "cpu", "--no-check")
WORDS = "--epochs 1 train.steps=2 --calibration 6 --method uniform --seeds 2 --device cpu".split()
TUNED = ("", " + fine-tuning", " + fine-tuning + distillation")
MIXED = [f"{before}mix{tuning}" for before in ("", "0.1 preserve, ") for tuning in TUNED]
NAMES = ["float", "float, trained as long", *MIXED[:3], "0.1 preserve", *MIXED[3:]]


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("floats") / "run"
    succeed("train", TINY, *MODEL, "--out", run)
    return run


def test_every_row_is_measured_on_its_own_file(floats: Path) -> None:
    out = floats.parent / "report"
    done = succeed("compress", "report", floats, *WORDS, "--out", out)
    document = json.loads((out / "compression.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == NAMES
    text = (out / "compression.md").read_text()
    assert done.out.endswith(text)
    assert text.startswith("A codebook makes the file small, not the arithmetic fast")
    for name in NAMES[2:]:
        folders = sorted((out / "rows").glob(f"{name.replace(' ', '_').replace(',', '').replace('+_', '')}_seed_*"))
        finals = [json.loads((folder / "final.json").read_text())["metrics"] for folder in folders]
        accuracy = [final["overall_accuracy"] for final in finals]
        assert len(accuracy) == 2
        assert rows[name]["overall_accuracy"] == pytest.approx(np.mean(accuracy))
        assert rows[name]["overall_accuracy_std"] == pytest.approx(np.std(accuracy, ddof=1))
        assert rows[name]["file_bytes"] == (folders[0] / "model.slq").stat().st_size
        config = (folders[0] / "work" / "finetune.yaml").read_text() if "fine-tuning" in name else ""
        assert ("distillation" in config) == ("distillation" in name)
    assert all(rows[name]["ratios"]["weights"] <= 0.1 for name in NAMES[5:])
    assert rows["mix"]["ratios"]["weights"] > 4 / 32
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.slq")}
    (out / "compression.json").unlink()
    succeed("compress", "report", floats, *WORDS, "--out", out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.slq")} == before
    again = json.loads((out / "compression.json").read_text())
    assert again["rows"] == document["rows"]


# --- HAQ's agent on a toy whose optimum is known, for three seeds: some 20 s of CPU time ---


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_closes_the_gap_between_uniform_and_the_optimum(seed: int) -> None:
    assert closed_by_ddpg(seed=seed, episodes=300) >= 0.95
