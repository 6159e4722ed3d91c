"""`sightline check` of a finished run, and `--deep`: progress, tables and JSON."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from sightline.draw import progress_line
from tests.command import run_here, succeed
from tests.doctor.pairing import CONFIG as PAIRING
from tests.doctor.planting import CONFIG
from tests.limits import HANG_S

# --- progress -------------------------------------------------------------------------------------------------------


def test_a_long_check_says_what_it_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As if two seconds were 20 ms: lines of a stream, or one line of a terminal that is removed at the end."""
    monkeypatch.setattr(progress_line, "QUIET_S", 0.02)
    monkeypatch.setattr(progress_line, "PLAIN_PAUSE_S", 60)
    monkeypatch.setattr(progress_line, "LIVE_PAUSE_S", 0.01)
    for is_live in (False, True):
        monkeypatch.setattr(progress_line, "wants_live", lambda *_, is_live=is_live: is_live)
        asked, begun = threading.Event(), iter([0.0])
        clock = SimpleNamespace(monotonic=lambda begun=begun: next(begun, 0.3))
        monkeypatch.setattr(progress_line, "time", clock)
        with progress_line.show_progress("check", lambda asked=asked: asked.set() or "a\nb, 2 of 9 checks"):
            assert asked.wait(HANG_S)
        shown = capsys.readouterr()
        assert shown.out == ""
        if is_live:
            assert shown.err.startswith("\rcheck: a\\nb, 2 of 9 checks; 0 s so far\x1b[K")
            assert shown.err.endswith("\r\x1b[K")
            assert "\n" not in shown.err
        else:
            assert shown.err == "check: a\\nb, 2 of 9 checks; 0 s so far\n"


def test_a_short_check_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_line, "QUIET_S", HANG_S)
    with progress_line.show_progress("check", lambda: "a"):
        pass
    assert capsys.readouterr() == ("", "")


# --- a run, its record and its files ---------------------------------------------------------------------------------


def test_a_run_keeps_what_was_judged_at_its_start_and_is_checked_later(tmp_path: Path) -> None:
    config, run = tmp_path / "pairs.yaml", tmp_path / "run"
    words = ("data.num_points=16", "data.train_size=40", "train.batch_size=8", "train.steps=3")
    network = "model={points: {num_neighbours: 4, embedding: 8}}"
    config.write_text(PAIRING)
    succeed("train", config, "--out", run, "--device", "cpu", *words, network)
    begun = json.loads((run / "checks.json").read_text())
    assert any(name.startswith("label-range: ") for name in (*begun["judged"], *begun["not_judged"]))
    looked = succeed("check", run, "--device", "cpu", "--json", tmp_path / "found.json")
    assert "pairs: 0 errors, 0 warnings" in looked.err
    document = json.loads((tmp_path / "found.json").read_text())["examination"]
    assert "\n".join(document["verdict"]) in looked.err
    whole = succeed("check", run, "--device", "cpu", "--verbose").err
    assert all(f"  {gap}\n" in whole for gap in document["not_covered"])
    succeed("train", config, "--out", tmp_path / "unchecked", "--device", "cpu", "--no-check", *words, network)
    assert not (tmp_path / "unchecked" / "checks.json").exists()


# --- `sightline check --deep` ----------------------------------------------------------------------------------------


def test_layers_are_judged_where_asked(tmp_path: Path) -> None:
    config, told = tmp_path / "small.yaml", tmp_path / "told.json"
    config.write_text(CONFIG)
    words = ("--device", "cpu", "data.train_size=48", "model.embedding=8")
    done = succeed("check", config, "--deep", *words, "--json", told)
    assert "small: 0 errors, 0 warnings" in done.err
    judged = {name.partition(":")[0] for name in json.loads(told.read_text())["examination"]["judged"]}
    assert {"layer-forward", "layer-gradient"} <= judged
    plain = run_here("check", config, *words)
    assert plain.out == ""
