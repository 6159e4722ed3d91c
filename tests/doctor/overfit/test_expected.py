"""A training that is held to what its config expects: met or not, at which step, and without a change to the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.workbench.fit.fit_one import FitOptions
from sightline.workbench.fit.layer_trace import trace_fit
from tests.command import Outcome, run_here
from tests.doctor.planting import make

CONFIG = Path(__file__).parents[3] / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
SMALL = ("data.train_size=24", "data.test_size=12", "data.num_points=32", "train.steps=3", "train.batch_size=8")
MET = "{quantity: loss, at_most: 100.0, step: 0}, {quantity: layer.head.std, at_least: 0.0, step: 2}"


def train(out: Path, entries: str, *words: str) -> Outcome:
    more = ("--device", "cpu", "--no-check", "--out", str(out))
    return run_here("train", CONFIG, *SMALL, f"expect=[{entries}]", *words, *more)


def test_a_run_that_is_as_expected_has_the_bits_of_one_that_expects_nothing(tmp_path: Path) -> None:
    assert train(tmp_path / "held", MET).code == 0
    assert train(tmp_path / "free", "").code == 0
    last = [next((tmp_path / name).glob("checkpoints/*/model.safetensors")).read_bytes() for name in ("held", "free")]
    assert last[0] == last[1]


@pytest.mark.parametrize(("step", "done"), [(0, None), (2, 2)])
def test_a_run_ends_at_the_first_entry_that_is_not_met(tmp_path: Path, step: int, done: int | None) -> None:
    code, _, err = train(tmp_path / "run", f"{MET}, {{quantity: output.max, at_least: 1000000.0, step: {step}}}")
    assert code == 1
    assert f"expect.2: output.max after {step} steps is " in err
    assert "expected at least 1e+06; the run ends" in err
    assert "Traceback" not in err
    assert (tmp_path / "run").exists() == (done is not None)
    assert not (tmp_path / "run" / "final.json").exists()


def test_what_training_passes_over_is_named(tmp_path: Path) -> None:
    entries = "{quantity: share, at_most: 0.0, step: 1}, {quantity: loss, at_most: 0.0, step: 1, only: fit_one}"
    code, _, err = train(tmp_path / "run", entries)
    assert code == 0, err
    assert "expect.0: ignored, share exists only in fit-one" in err
    assert "expect.1" not in err


def test_an_entry_past_the_last_step_is_named(tmp_path: Path) -> None:
    entries = "{quantity: loss, at_most: 100.0, step: 3}, {quantity: loss, at_most: 0.0, step: 900}"
    code, _, err = train(tmp_path / "run", entries)
    assert code == 0, err
    assert "expect.1: ignored, its step is 900 and training ends after step 3" in err
    assert "expect.0" not in err


def test_fit_one_passes_over_what_is_of_training(tmp_path: Path) -> None:
    entries = "expect=[{quantity: loss, at_most: 0.0, step: 1, only: train}, {quantity: loss, at_most: 9.0, step: 1}]"
    (met,) = trace_fit(make(tmp_path, entries), FitOptions(samples=2, steps=1)).met
    assert met.place == 1


def test_an_unknown_layer_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    code, _, err = train(tmp_path / "run", "{quantity: layer.haed.std, at_least: 0.0, step: 2}")
    assert code == 2
    assert "the run has no layer 'haed'; did you mean 'head'" in err
    assert not (tmp_path / "run").exists()
