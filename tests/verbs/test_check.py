"""`sightline check` of a finished run, and `--deep`: tables, JSON, and the exit code of a wrong layer."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from sightline.verbs import output
from tests.command import run_here, succeed
from tests.doctor.pairing import CONFIG as PAIRING
from tests.doctor.planting import CONFIG

# --- progress -------------------------------------------------------------------------------------------------------


def test_a_long_check_says_what_it_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As if two seconds were 20 ms: lines of a stream, or one line of a terminal that is removed at the end."""
    monkeypatch.setattr(output, "_QUIET_S", 0.02)
    monkeypatch.setattr(output, "_PLAIN_PAUSE_S", 60)
    monkeypatch.setattr(output, "_LIVE_PAUSE_S", 0.01)
    for is_live in (False, True):
        monkeypatch.setattr(output, "wants_live", lambda *_, is_live=is_live: is_live)
        asked = threading.Event()
        with output.show_progress("check", lambda asked=asked: asked.set() or "a\nb, 2 of 9 checks"):
            assert asked.wait(30)
        shown = capsys.readouterr()
        assert shown.out == ""
        if is_live:
            assert shown.err.startswith("\rcheck: a\\nb, 2 of 9 checks; 0 s so far\x1b[K")
            assert shown.err.endswith("\r\x1b[K")
            assert "\n" not in shown.err
        else:
            assert shown.err == "check: a\\nb, 2 of 9 checks; 0 s so far\n"


def test_a_short_check_says_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with output.show_progress("check", lambda: "a"):
        pass
    assert capsys.readouterr() == ("", "")


# --- a run, its record and its files ---------------------------------------------------------------------------------


def test_a_run_keeps_what_was_judged_at_its_start_and_is_checked_later(tmp_path: Path) -> None:
    config, run = tmp_path / "pairs.yaml", tmp_path / "run"
    config.write_text(PAIRING)
    succeed("train", config, "--out", run, "--device", "cpu", "train.steps=3")
    begun = json.loads((run / "checks.json").read_text())
    assert "label-range" in {*begun["judged"], *begun["not_judged"]}
    looked = succeed("check", run, "--device", "cpu", "--json", tmp_path / "found.json")
    assert "pairs: 0 errors, 0 warnings" in looked.err
    document = json.loads((tmp_path / "found.json").read_text())["examination"]
    assert all(f"{line}\n" in looked.err for line in document["verdict"])
    assert all(f"  {gap}\n" in looked.err for gap in document["not_covered"])
    succeed("train", config, "--out", tmp_path / "unchecked", "--device", "cpu", "--no-check", "train.steps=3")
    assert not (tmp_path / "unchecked" / "checks.json").exists()


# --- `sightline check --deep`: in JSON, and an exit code for a wrong layer -------------------------------------------


PLUGIN = '''
"""A classifier with a convolution of size 1 that forgets its bias."""
from __future__ import annotations
from typing import TypedDict
from torch import Tensor, nn
from torch.nn import functional as F
from sightline.contract import registry

class Forgetful(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)

class Out(TypedDict):
    logits: Tensor

@registry.models.add("forgetful")
class Classifier(nn.Module):
    """One map and a maximum."""
    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.map = Forgetful(in_channels, 16)
        nn.init.ones_(self.map.bias)
        self.head = nn.Linear(16, num_classes)
    def forward(self, *, points: Tensor) -> Out:
        return {"logits": self.head(self.map(points).relu().amax(dim=1))}
'''


def test_layers_are_judged_where_asked(tmp_path: Path) -> None:
    config, told = tmp_path / "small.yaml", tmp_path / "told.json"
    config.write_text(CONFIG)
    done = succeed("check", config, "--deep", "--device", "cpu", "--json", told)
    assert "small: 0 errors, 0 warnings" in done.err
    assert {"layer-forward", "layer-gradient"} <= set(json.loads(told.read_text())["examination"]["judged"])
    plain = run_here("check", config, "--device", "cpu")
    assert plain.out == ""


def test_a_wrong_layer_of_a_plugin(tmp_path: Path) -> None:
    config, plugin = tmp_path / "small.yaml", tmp_path / "forgetful.py"
    config.write_text(CONFIG.replace("{name: pointnet_plain, embedding: 32, dropout: 0.0}", "{name: forgetful}"))
    plugin.write_text(PLUGIN)
    done = run_here("check", config, "--deep", "--device", "cpu", "--plugin", plugin)
    assert done.code == 1
    assert "layer-forward" in done.out + done.err or "does not compute the definition of its type" in done.err
    assert f"{plugin}:9" in done.err
    assert "layer map" in done.err
