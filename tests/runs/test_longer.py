"""A run that goes on past the end of its config: as if planned so, where the schedule allows it, else with a note."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sightline.config import read_config
from tests.command import Outcome, run_here
from tests.runs.broken_off import CONFIG, differences

PLUGIN = '''\
"""A transform that takes the number of epochs, as mosaic does."""

import sightline


@sightline.register.transform("plain_at_last")
class PlainAtLast(sightline.Transform):
    """Leaves the points as they are. Source: ours."""

    def __init__(self, *, num_epochs: int | None = None) -> None:
        self.until_epoch = num_epochs

    def __call__(self, draws, *, points):
        return {"points": points}
'''
CONSTANT = CONFIG.replace("{name: cosine}", "{name: constant}").replace(", {name: slowed}", "")


def train(source: Path, *words: object) -> Outcome:
    return run_here("train", source, "--device", "cpu", "--no-check", "log.tensorboard=false", *words)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, a run of two epochs with a constant rate, one with a cosine."""
    folder = tmp_path_factory.mktemp("longer")
    for name, text in (("constant", CONSTANT), ("cosine", CONSTANT.replace("constant", "cosine"))):
        (folder / f"{name}.yaml").write_text(text.replace("epochs: 3", "epochs: 2"))
        done = train(folder / f"{name}.yaml", "--out", folder / name)
        assert done.code == 0, done.err
    return folder


def test_the_command_that_a_finished_run_names_trains_it_to_the_bits_of_the_longer_run(runs: Path) -> None:
    finished = train(runs / "constant", "--resume", "auto")
    assert finished.code == 0
    named = re.search(r"sightline train (\S+) --resume auto (train\.epochs=4) \(now 2\)", finished.err)
    assert named is not None, finished.err
    longer = train(Path(named[1]), "--resume", "auto", named[2])
    assert longer.code == 0, longer.err
    assert (
        "trains longer: to step 20 instead of 10; the schedule 'constant' of the finished steps is that" in longer.err
    )
    assert "resumed at step 10" in longer.err
    assert read_config(runs / "constant" / "config.yaml").train.epochs == 4
    unbroken = train(runs / "constant.yaml", "train.epochs=4", "--out", runs / "unbroken")
    assert unbroken.code == 0, unbroken.err
    # The best checkpoint is from before: its state names the end that was planned then.
    assert differences(runs / "constant", runs / "unbroken") == ["best/state.json"]
    assert "this run is finished" in train(runs / "constant", "--resume", "auto").err


def test_a_schedule_over_the_whole_run_is_named_with_its_jump(runs: Path) -> None:
    longer = train(runs / "cosine.yaml", "--out", runs / "cosine", "--resume", runs / "cosine", "train.epochs=3")
    assert longer.code == 0, longer.err
    assert "'cosine' depends on the length of the run: its factor goes on from 0.0245 at 0.25, and" in longer.err
    assert (runs / "cosine" / "final.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (runs / "cosine").iterdir()}
    shorter = train(runs / "cosine.yaml", "--out", runs / "cosine", "--resume", "auto", "train.epochs=2")
    assert shorter.code == 2
    assert "train.epochs: 3 there, 2 here; a run may go on for longer, by a later train.epochs (now 3)" in shorter.err
    assert {path.name: path.stat().st_mtime_ns for path in (runs / "cosine").iterdir()} == before


def test_an_end_in_steps_is_extended_in_steps(runs: Path) -> None:
    out = runs / "steps"
    assert train(runs / "constant.yaml", "train.steps=4", "--out", out).code == 0
    assert "--resume auto train.steps=8 (now 4)" in train(out, "--resume", "auto").err
    assert "to step 8 instead of 4" in train(out, "--resume", "auto", "train.steps=8").err
    epochs = read_config(out / "config.yaml").train.epochs
    same = train(out, "--resume", "auto", f"train.epochs={2 * epochs}")
    assert "trains no longer: train.steps=8 ends the run at step 8, before train.epochs does" in same.err
    assert "instead of" not in same.err
    cut = train(runs / "cosine", "--resume", "auto", "train.steps=40")
    assert cut.code == 2
    assert "train.steps: null there, 40 here; a run may go on for longer, by a later train.epochs (now " in cut.err
    out = runs / "both"
    assert train(runs / "constant.yaml", "train.steps=10", "--out", out).code == 0
    assert "--resume auto train.epochs=4 train.steps=20 (now 2, 10)" in train(out, "--resume", "auto").err
    out = runs / "epochs"
    assert train(runs / "constant.yaml", "train.epochs=1", "train.steps=1000", "--out", out).code == 0
    assert "--resume auto train.epochs=2 (now 1)" in train(out, "--resume", "auto").err


def test_a_run_that_ended_early_says_so_and_goes_on_by_what_it_names(runs: Path) -> None:
    """Longer alone trains no step more, and says that; the named key trains to the bits of a run that began with it."""
    source, out = runs / "constant.yaml", runs / "early"
    stale = ("optimizer.lr=1e-30", "train.epochs=4")
    done = train(source, *stale, "train.early_stopping={patience: 1}", "--out", out)
    early = "the last evaluation did not improve overall_accuracy; by train.early_stopping the training ends after step"
    assert f"early-stopping: {early} 10 of 20" in done.err
    assert "--resume auto train.early_stopping=null (now patience 1)" in train(out, "--resume", "auto").err
    same = train(out, "--resume", "auto", "train.epochs=5")
    assert f"trains no longer: {early} 10 of 25; to go on, give train.early_stopping=null or a larger" in same.err
    more = train(out, "--resume", "auto", "train.early_stopping={patience: 2}")
    assert "early-stopping: the last 2 evaluations did not" in more.err
    done = train(out, "--resume", "auto", "train.early_stopping=null")
    assert "goes on from step 15: train.epochs=5 ends the run at step 25, as planned" in done.err
    assert (done.code, read_config(out / "config.yaml").train.early_stopping) == (0, None)
    unbroken = train(source, "optimizer.lr=1e-30", "train.epochs=5", "--out", runs / "never_stale")
    assert unbroken.code == 0, unbroken.err
    assert [name for name in differences(out, runs / "never_stale") if "best" not in name] == []
    refused = train(out, "--resume", "auto", "train.early_stopping={patience: 1}")
    assert (refused.code, "keys differ" in refused.err) == (2, True)


def test_transforms_that_take_the_number_of_epochs_are_named(runs: Path) -> None:
    plugin = runs / "plain_at_last.py"
    plugin.write_text(PLUGIN)
    words = (runs / "constant.yaml", "transforms.train=[{name: jitter}, {name: plain_at_last}]", "--plugin", plugin)
    out = ("--out", runs / "by_epochs")
    assert train(*words, "train.steps=4", *out).code == 0
    depends = "; transforms.train that depend on train.epochs (plain_at_last) had 2 in the finished steps, so the"
    assert depends not in train(*words, "train.steps=6", *out, "--resume", "auto").err
    assert depends in train(*words, "train.steps=11", "train.epochs=3", *out, "--resume", "auto").err
    advice = train(*words, "train.steps=11", "train.epochs=3", *out, "--resume", "auto").err
    assert f"sightline train {out[1]} --plugin {plugin} --resume auto train." in advice
