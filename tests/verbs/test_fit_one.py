"""`sightline fit-one` as a user meets it: exit codes, files, variants, the trace, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import run_here, succeed

CONFIG = Path(__file__).resolve().parents[1] / "broken_configs" / "_healthy.yaml"
SMALL = ("model.embedding=8", "--steps", "12", "--samples", "2")


def test_a_fit_is_told_written_and_drawn_and_the_same_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second.json"
    _, out, err = succeed("fit-one", CONFIG, *SMALL, "--out", first)
    assert "recipe" in out
    assert "_healthy: fitted" in err
    document = json.loads((first / "fit_one.json").read_text())
    assert document["fitted"] is True
    assert document["cause"] is None
    assert document["loss"]["floor"] < document["loss"]["constant"]
    assert "the best constants" in err
    assert (first / "fit_one.svg").read_text().startswith("<svg")
    succeed("fit-one", CONFIG, *SMALL, "--json", second)
    assert json.loads(second.read_text()) == document


def test_what_is_not_fitted_ends_in_one_and_names_the_cause_first(tmp_path: Path) -> None:
    code, out, err = run_here("fit-one", CONFIG, *SMALL, "optimizer.lr=1e-8", "--json", tmp_path / "made.json")
    assert code == 1
    findings = [line for line in err.splitlines() if line.startswith("[")]
    assert findings[0].startswith("[fit-one warning optim.lr]")
    assert "adam" in out
    assert "relations that could be asked" in err
    assert json.loads((tmp_path / "made.json").read_text())["cause"] == "optim.lr"


def test_the_trace_and_what_is_expected(tmp_path: Path) -> None:
    entries = "expect=[{quantity: loss, at_most: 100.0, step: 0}, {quantity: output.max, at_least: 1e9, step: 3}]"
    code, out, err = run_here("fit-one", CONFIG, *SMALL, entries, "--trace", "--json", tmp_path / "made.json")
    assert code == 1
    assert "head.2" in out
    assert "NOT MET: expect.1: output.max after 3 steps is" in err
    document = json.loads((tmp_path / "made.json").read_text())
    assert [each["met"] for each in document["expect"]] == [True, False]
    assert [look["step"] for look in document["trace"]] == [0, 12]


def test_variants(tmp_path: Path) -> None:
    varied = ("--vary", "model.embedding=4,8", "--out", tmp_path)
    out = succeed("fit-one", CONFIG, "--steps", "12", "--samples", "2", *varied).out
    assert "model.embedding=4" in out
    document = json.loads((tmp_path / "fit_one.json").read_text())
    assert [each["overrides"] for each in document["vary"]] == [["model.embedding=4"], ["model.embedding=8"]]
    assert "model.embedding=8" in (tmp_path / "fit_one.svg").read_text()


PLUGIN = """\
from typing import TypedDict
from torch import Tensor, nn
from sightline.contract import registry

class Out(TypedDict):
    logits: Tensor

@registry.models.add("of_a_plugin")
class Classifier(nn.Module):
    def __init__(self, *, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.map, self.head = nn.Linear(in_channels, width), nn.Linear(width, num_classes)
    def forward(self, *, points: Tensor) -> Out:
        return {"logits": self.head(self.map(points).relu().amax(dim=1))}
"""


def test_variants_of_a_run_that_was_made_with_a_plugin(tmp_path: Path) -> None:
    plugin, made = tmp_path / "plugin.py", tmp_path / "run"
    plugin.write_text(PLUGIN)
    words = ("model={name: of_a_plugin, width: 64}", "train.epochs=1", "--device", "cpu", "--plugin", plugin)
    succeed("train", CONFIG, *words, "--out", made)
    varied = ("--samples", "2", "--steps", "20", "--vary", "model.width=48,64", "--device", "cpu")
    _, out, err = succeed("fit-one", made, *varied, "--plugin", plugin)
    assert "model.width=48" in out
    assert "warning" not in err
    assert run_here("fit-one", made, *varied).code == 2


EXPECTED = "expect=[{quantity: loss, at_most: 100.0, step: 0}, {quantity: output.max, at_least: 1e9, step: 3}]"


def test_every_variant_is_held_to_what_is_expected(tmp_path: Path) -> None:
    varied = ("--vary", "model.embedding=4,8", "--json", tmp_path / "made.json")
    code, _, err = run_here("fit-one", CONFIG, "--steps", "12", "--samples", "2", EXPECTED, *varied)
    assert code == 1
    for variant in ("model.embedding=4", "model.embedding=8"):
        assert f"{variant}: met: expect.0: loss" in err
        assert f"{variant}: NOT MET: expect.1: output.max after 3 steps is" in err
    document = json.loads((tmp_path / "made.json").read_text())["vary"]
    assert [each["fitted"] for each in document] == [True, True]
    assert [[entry["met"] for entry in each["expect"]] for each in document] == [[True, False]] * 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--samples", "5000"), "the training part has 48 samples"),
        (("--keep", "dropuot"), "did you mean 'dropout'"),
        (("--vary", "model.embedding"), "give key=value,value"),
        (("--vary", "model.embeding=4,8"), "did you mean 'embedding'"),
        (("expect=[{quantity: loss, step: 3}]",), "has no bound"),
        (("expect=[{quantity: layer.nothing.max, at_least: 0.0, step: 0}]", "--steps", "1"), "no layer 'nothing'"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_mistakes_are_one_line_and_two(words: tuple[str, ...], told: str) -> None:
    code, _, err = run_here("fit-one", CONFIG, *words)
    assert code == 2, err
    assert told in err
    assert "Traceback" not in err
