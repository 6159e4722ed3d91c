"""Faults of a user's own model, from the command line: what is no number, and scripts that reproduce what was named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command import Outcome, run_here
from tests.compare.test_command import CONFIG, SMALL

SMALLEST = tuple(word for word in SMALL if not word.startswith("model="))
PLUGIN = Path(__file__).parent / "faulty.py"


def compare(tmp_path: Path, model: str, *words: object) -> tuple[Outcome, dict[str, Any]]:
    """Run the verb on a model of the plugin; its outcome, and what it wrote as JSON."""
    result = tmp_path / "result.json"
    chosen = (*SMALLEST, f"model={{name: {model}}}", "--plugin", PLUGIN)
    outcome = run_here("compare", CONFIG, *chosen, *words, "--json", result)
    return outcome, json.loads(result.read_text()) if result.exists() else {}


def test_an_overflow_is_told_where_it_begins(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome, found = compare(tmp_path, "overflowing_small", "--against", "float64", "--steps", 2, "--html", page)
    assert outcome.code == 1
    assert "what head is given" in found["first"]["what"]
    assert found["steps"]["losses"] == [None, None]
    assert None not in found["steps"]["expected"]
    assert page.stat().st_size > 0


def test_losses_that_are_no_numbers_in_both_are_not_called_equal(tmp_path: Path) -> None:
    outcome, found = compare(tmp_path, "dividing_small", "--against", "float64", "--steps", 2)
    assert outcome.code == 1
    assert not found["equal"]
    assert "both have losses or gradients that are NaN or infinite" in outcome.err


def test_the_matrix_goes_on_after_a_cell_that_overflows(tmp_path: Path) -> None:
    outcome, found = compare(tmp_path, "overflowing_small", "--matrix")
    assert outcome.code == 0, outcome.err
    losses = {cell["precision"]: cell["losses"] for cell in found["matrix"] if cell["device"] == "cpu"}
    assert None not in losses["float64"].values()
    assert set(losses["float32"].values()) == {None}


def test_a_record_of_an_overflow_can_be_read(tmp_path: Path) -> None:
    words = ("compare", "record", CONFIG, *SMALLEST, "model={name: overflowing_small}", "--plugin", PLUGIN)
    assert run_here(*words, "--out", tmp_path / "record", "--steps", 2).code == 0
    assert json.loads((tmp_path / "record" / "record.json").read_text())["trace"] == [None, None]
    outcome, found = compare(tmp_path, "overflowing_small", "--against", tmp_path / "record")
    assert outcome.code == 1, outcome.err
    assert not found["equal"]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("wrong_gradient_small", "second: deviates, most in gradient of weight"),
        pytest.param(
            *("code_between_small", "second: deviates, most in result what head is given"), marks=pytest.mark.long
        ),
    ],
)
def test_a_script_reproduces_what_was_named(tmp_path: Path, model: str, named: str) -> None:
    folder = tmp_path / "repro"
    outcome, _ = compare(tmp_path, model, "--against", "float64", "--steps", 0, "--repro", folder)
    assert outcome.code == 1, outcome.err
    ran = subprocess.run([sys.executable, folder / "repro.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert named in ran.stdout


@pytest.mark.parametrize("against", ["float64", "bfloat16"])
def test_arguments_of_a_layer_that_are_words(tmp_path: Path, against: str) -> None:
    outcome, found = compare(tmp_path, "same_padding_small", "--against", against, "--steps", 0)
    assert outcome.code == 0, outcome.err
    assert found["equal"]


def test_a_folder_that_is_not_empty_is_refused_before_anything_runs(tmp_path: Path) -> None:
    outcome, found = compare(tmp_path, "healthy_small", "--against", "float64", "--repro", PLUGIN.parent)
    assert outcome.code != 0
    assert "is not an empty folder" in outcome.err
    assert not found


def test_frozen_modules_are_not_looked_for_in_a_file(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.py"
    theirs.write_text("from torch import nn\n\ndef build():\n    return nn.Linear(3, 12)\n")
    outcome, _ = compare(tmp_path, "healthy_small", "optimizer.frozen=[{modules: first}]", "--against", theirs)
    assert outcome.code != 0
    assert "optimizer.frozen=[]" in outcome.err
