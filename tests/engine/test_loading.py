"""A run opened from its directory: only what is asked for is built; weights that are missing or damaged are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sightline.engine import build
from sightline.engine.distributed import World
from sightline.engine.run_loading import OpenRun, open_run, open_trained
from sightline.engine.session import StopRequest, TrainingSession
from sightline.errors import CheckpointError, ConfigError, UserError
from sightline.runs import checkpoint
from sightline.runs.run_directory import RunDirectory, collect_environment
from tests.engine.snapshots import snapshot_of
from tests.runs.small import ROOT, small_config, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch on a few solids, with averaged weights."""
    path = tmp_path_factory.mktemp("loading") / "run"
    path.mkdir()
    built = small_run("train.ema_decay=0.5", "train.epochs=1")
    directory = RunDirectory(path, is_writer=True)
    session = TrainingSession(
        built, World(), directory, stop=StopRequest(), record=collect_environment(), is_quiet=True
    )
    session.start_files()
    assert session.run() is not None
    return path


def test_the_model_of_a_run_needs_no_data(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: object) -> None:
        raise AssertionError("the data were read")

    monkeypatch.setattr(build, "build_data", refuse)
    opened = open_run(run)
    expected = checkpoint.load(run / "checkpoints" / "last").evaluation_weights
    assert not opened.model.training
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.model.state_dict().items())
    assert opened.model is opened.model
    assert not all(torch.equal(tensor, expected[name]) for name, tensor in opened.untrained_model().named_parameters())
    with pytest.raises(AssertionError, match="the data were read"):
        opened.evaluator()


def test_the_evaluator_of_a_run_repeats_its_figures(run: Path) -> None:
    opened = open_run(run)
    document = json.loads((run / "final.json").read_text())
    assert dict(opened.evaluator()(opened.model, World()).metrics) == document["metrics"]
    trained = open_trained(run)
    assert (trained.checkpoint, trained.facts) == (opened.checkpoint_path.resolve(), opened.facts)


def test_a_config_file_is_opened_as_a_run_that_has_not_begun(run: Path) -> None:
    opened = open_run(ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml", config=small_config())
    assert (opened.directory, open_run(run).directory) == (None, run)
    assert opened.facts == open_run(run).facts == opened.data.facts
    ours, theirs = opened.training_setup.job.model.state_dict(), open_run(run).training_setup.job.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    untrained = opened.untrained_model().state_dict()
    assert all(torch.equal(tensor, untrained[name]) for name, tensor in ours.items())
    with pytest.raises(UserError, match="is not a run directory"):
        open_run(opened.path)


def test_data_of_another_kind_are_refused(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    facts = json.loads((run / "facts.json").read_text())
    (copied / "facts.json").write_text(json.dumps({**facts, "num_classes": facts["num_classes"] + 1}))
    with pytest.raises(ConfigError, match=r"was trained with num_classes = 13; this data set has 12"):
        _ = open_run(copied).data


def _opened(folder: Path, which: str = "last") -> OpenRun:
    return open_run(folder, config=small_config(), checkpoint=which)


def test_a_run_without_a_checkpoint_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError) as error:
        _ = _opened(tmp_path).checkpoint_path
    assert str(error.value) == (
        f"checkpoint last: the run {tmp_path} has no checkpoint yet (interrupted before the first one?); go on with: "
        f"sightline train {tmp_path} --resume auto --out {tmp_path}"
    )


def test_another_word_is_answered_by_what_there_is(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, snapshot_of(1), keep_last=1, is_best=True)
    with pytest.raises(UserError) as error:
        _ = _opened(tmp_path, "beste").checkpoint_path
    assert str(error.value) == (
        "checkpoint beste: there is no beste; give last, best or a path; "
        f"{tmp_path}/checkpoints holds best, last, step_00000001; did you mean 'best'?"
    )


def test_a_damaged_checkpoint_names_the_option_that_takes_a_sound_one(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, snapshot_of(step), keep_last=2, is_best=step == 1)
    damaged = tmp_path / "checkpoints/step_00000002/model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError) as error:
        _opened(tmp_path).load_into(torch.nn.Linear(1, 1))
    sound = damaged.parents[1] / "step_00000001"
    assert str(error.value).endswith(f"the newest sound one is {sound}; give it by --checkpoint")
    assert "resume" not in str(error.value)
