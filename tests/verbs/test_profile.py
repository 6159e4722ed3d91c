"""`sightline profile` from the command line: tables, files, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cases import run_each
from tests.command import run_here, succeed
from tests.runs.broken_off import run_forked

CONFIG = Path(__file__).parents[2] / "configs" / "classify" / "synthetic_shapes_dgcnn.yaml"
TINY = ("data.train_size=48", "data.test_size=24", "data.num_points=32", "train.batch_size=8")


def test_tables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    trace, kept = tmp_path / "trace.json.gz", tmp_path / "kept.json"
    words = ["loader.workers=0", "--steps", "2", "--rounds", "1", "--try", "loader.workers=1,bf16"]
    printed = succeed("profile", CONFIG, *TINY, *words, "--trace", trace, "--json", kept).out
    assert trace.stat().st_size > 0
    document = json.loads(kept.read_text())
    assert sum(row["seconds"] for row in document["parts"]) == pytest.approx(document["untraced_step_s"], rel=0.1)
    assert [each["name"] for each in document["tried"]] == ["as configured", "loader.workers=1", "bf16"]
    assert document["tried"][0]["loss"] == document["tried"][1]["loss"] != document["tried"][2]["loss"]
    for text in ("optimise", "aten::mm", "no clear difference"):
        assert text in printed
    slowest = max(document["modules"], key=lambda row: row["seconds"])
    assert slowest["path"] or "(model)" in printed


@pytest.mark.processes
def test_of_two_processes_each_states_how_long_it_waited_for_gradients(tmp_path: Path) -> None:
    """The first one prints and writes alone; the part of the step is in its table."""
    words = ["profile", str(CONFIG), *TINY, "loader.workers=0", "--steps", "2", "--json", str(tmp_path / "p.json")]
    code, text = run_forked([*words, "--device", "cpu"], tmp_path / "log", num_processes=2)
    assert code == 0, text
    document = json.loads((tmp_path / "p.json").read_text())
    assert [row["rank"] for row in document["processes"]] == [0, 1]
    for row in document["processes"]:
        assert 0 < row["reduce_s"] < row["step_s"]
    parts = {row["part"]: row["seconds"] for row in document["parts"]}
    assert 0 < parts["reduce"] < document["untraced_step_s"]
    assert text.count("waited for gradients") == 1


@run_each(
    "words, expected",
    [
        (["--try", "bf61"], "did you mean 'bf16'?"),
        (["--try", "model.foo=1"], "model.foo: 'dgcnn' has no such argument"),
        (["--try", "channels_last"], "allowed are bf16, fp16, tf32, float32, float64, threads=N and KEY=VALUE"),
        (["--steps", "5"], "--steps 5: training has 6 steps, 2 of which warm up; give train.steps=7"),
        (["--steps", "0"], "--steps"),
        (["--try", "bf16+float32"], "--try bf16+float32: command line: train.precision: is given twice"),
        (["--trace", CONFIG.parent], "is a folder"),
        (["train.epochss=1"], "did you mean 'epochs'?"),
        (["--epochs", "1"], "write train.epochs=VALUE"),
    ],
)
def test_a_mistake_gets_one_line(words: list[object], expected: str) -> None:
    code, _, err = run_here("profile", CONFIG, *TINY, "train.steps=6", *words)
    assert code == 2
    assert err.count("\n") == 1, err
    assert expected in err


def test_samples_per_second_are_of_each_settings_own_batch(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    words = ["loader.workers=0", "train.epochs=4", "--steps", "1", "--rounds", "1", "--json", kept]
    printed = succeed("profile", CONFIG, *TINY, *words, "--try", "train.batch_size=16").out
    first, other = json.loads(kept.read_text())["tried"]
    assert (first["batch_size"], other["batch_size"]) == (8, 16)
    assert f"{16 / other['step_s']:.1f}" in printed
    assert other["ratio"] == pytest.approx(2 * first["step_s"] / other["step_s"])


def test_a_setting_that_cannot_be_built_is_refused_before_the_first_step(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    words = ["loader.workers=0", "train.epochs=4", "--steps", "1", "--rounds", "1", "--json", kept]
    code, printed, err = run_here("profile", CONFIG, *TINY, *words, "--try", "train.tail=drop+train.batch_size=1000")
    assert code == 2
    assert "--try train.tail=drop+train.batch_size=1000: " in err
    assert "drop leaves no step" in err
    assert not kept.exists()
    assert not printed


def test_a_model_that_fails_is_one_line_and_as_a_setting_keeps_the_profile(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from torch import Tensor, nn\n"
        "from typing import TypedDict\n"
        "from sightline.contract.registry import models\n"
        "class Out(TypedDict):\n    logits: Tensor\n"
        "@models.add('broken')\n"
        "class Broken(nn.Module):\n"
        "    '''Fails. Source: none.'''\n"
        "    def __init__(self, *, num_classes: int) -> None:\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(5, num_classes)\n"
        "    def forward(self, *, points: Tensor) -> Out:\n"
        "        return {'logits': self.layer(points.mean(dim=1))}\n"
    )
    code, _, err = run_here("profile", CONFIG, *TINY, "model={name: broken}", "--plugin", plugin)
    assert code == 1
    assert "error: a training step failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x3 and 5x" in err
    assert "Traceback" not in err
    kept = tmp_path / "kept.json"
    words = ["--steps", "1", "--rounds", "1", "--json", kept, "--plugin", plugin, "--try", "model={name: broken}"]
    code, _, err = run_here("profile", CONFIG, *TINY, "train.epochs=4", *words)
    assert code == 1
    assert "--try model={name: broken}: a training step failed" in err
    assert json.loads(kept.read_text())["modules"]  # the profile itself came before
