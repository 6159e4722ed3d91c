"""A user's own model, from the command line: what is no number, and layers called by words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.command import Outcome
from tests.compare import test_command
from tests.compare.test_command import SMALL

PLUGIN = Path(__file__).parent / "faulty.py"


def compare(tmp_path: Path, model: str, *words: object) -> tuple[Outcome, dict[str, Any]]:
    """Run the verb on a model of the plugin; its outcome, and what it wrote as JSON."""
    others = [word for word in SMALL if not word.startswith("model=")]
    return test_command.compare(tmp_path, *others, f"model={{name: {model}}}", "--plugin", PLUGIN, *words)


def test_an_overflow_is_told_where_it_begins(tmp_path: Path) -> None:
    outcome, found = compare(tmp_path, "overflowing_small", "--against", "float64", "--steps", 2)
    assert outcome.code == 1
    assert "what head is given" in found["first"]["what"]
    assert found["steps"]["losses"] == [None, None]
    assert None not in found["steps"]["expected"]


def test_losses_that_are_no_numbers_in_both_are_not_called_equal(tmp_path: Path) -> None:
    outcome, found = compare(tmp_path, "dividing_small", "--against", "float64", "--steps", 2)
    assert outcome.code == 1
    assert not found["equal"]
    assert "both have losses or gradients that are NaN or infinite" in outcome.err


@pytest.mark.parametrize("against", ["float64", "bfloat16"])
def test_arguments_of_a_layer_that_are_words(tmp_path: Path, against: str) -> None:
    outcome, found = compare(tmp_path, "same_padding_small", "--against", against, "--steps", 0)
    assert outcome.code == 0, outcome.err
    assert found["equal"]


def test_frozen_modules_are_not_looked_for_in_a_file(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.py"
    theirs.write_text("from torch import nn\n\ndef build():\n    return nn.Linear(3, 12)\n")
    outcome, _ = compare(tmp_path, "healthy_small", "optimizer.frozen=[{modules: first}]", "--against", theirs)
    assert outcome.code != 0
    assert "optimizer.frozen=[]" in outcome.err
