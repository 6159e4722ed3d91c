"""Runs built from a config, opened from a directory and resumed: what is built, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.config import RunConfig, read_config, render_config
from sightline.contract.errors import CheckpointError, ConfigError, RunError, UserError
from sightline.engine import build as build_module
from sightline.engine import run_data
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.run_loading import OpenRun, open_run, open_trained
from sightline.runs import checkpoint
from sightline.runs.environment import collect_environment
from sightline.runs.run_directory import RunDirectory
from sightline.training.resume import RunLocation, assert_same_run, resolve_run_location
from sightline.training.session import TrainingSession
from sightline.training.stop_request import StopRequest
from tests.engine.snapshots import snapshot_of
from tests.runs.small import ROOT, small_config, small_run

# --- building a run: parts, facts, initial weights, and the errors that name both sides ------------------------------


def test_the_validation_tenth_never_trains() -> None:
    data = small_run().data
    assert data.selection.split == "validation"
    assert np.intersect1d(data.train.indices, data.selection.indices).size == 0
    assert len(data.train.indices) + len(data.selection.indices) == 60
    assert data.test.split == "test"


def test_test_selection_trains_on_everything_and_says_so() -> None:
    built = small_run("evaluate.select=test")
    assert len(built.data.train.indices) == 60
    assert built.data.selection.split == "test"


def test_weights_depend_on_the_seed_alone() -> None:
    first, second, other = small_run(), small_run("train.batch_size=6"), small_run("seed=5")
    name = "head.0.linear.weight"
    assert torch.equal(first.job.model.state_dict()[name], second.job.model.state_dict()[name])
    assert not torch.equal(first.job.model.state_dict()[name], other.job.model.state_dict()[name])


def saved(tmp_path: Path, model: torch.nn.Module) -> Path:
    snapshot = checkpoint.Snapshot(0, dict(model.state_dict()), {}, None, {"scaler": {}})
    checkpoint.save(tmp_path, snapshot, keep_last=1, is_best=False)
    return tmp_path


def test_init_takes_a_runs_weights(tmp_path: Path) -> None:
    source = saved(tmp_path, small_run("seed=9").job.model)
    built = build(small_config(f"init.from={source}"), World())
    assert built.init_report is not None
    assert (built.init_report.matched, built.init_report.missing) == (built.init_report.total, ())
    expected = small_run("seed=9").job.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in built.job.model.state_dict().items())


def test_init_below_a_full_match_is_refused_and_can_be_declared(tmp_path: Path) -> None:
    model = small_run().job.model
    model.head[-1] = torch.nn.Linear(256, 40)
    source = saved(tmp_path, model)
    with pytest.raises(CheckpointError, match=r"init.from: .*tensors, .*elements matched"):
        build(small_config(f"init.from={source}"), World())
    built = build(small_config(f"init.from={source}", "init.may_be_missing=['head.5']"), World())
    assert built.init_report is not None
    assert built.init_report.total - built.init_report.matched == 2


def test_a_model_whose_checkpoint_would_lose_a_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`module.` is what wrappers insert: a part of that name, with a part like another one's, has no name left."""
    build_model = build_module.build_unchanged_model

    def with_twin(*arguments: Any) -> torch.nn.Module:
        model = build_model(*arguments)
        model.module = torch.nn.ModuleDict({"head": model.head})
        return model

    monkeypatch.setattr(build_module, "build_unchanged_model", with_twin)
    with pytest.raises(ConfigError, match=r"model: head.*: the model contains it twice"):
        small_run()


# --- a run opened from its directory: only what is needed is built, and missing weights are named ---------------------


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

    monkeypatch.setattr(run_data, "build_data", refuse)
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
    assert opened.files is None
    assert (files := open_run(run).files) is not None
    assert files.path == run
    assert opened.facts == open_run(run).facts == opened.data.facts
    ours, theirs = opened.training_setup.job.model.state_dict(), open_run(run).training_setup.job.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    untrained = opened.untrained_model().state_dict()
    assert all(torch.equal(tensor, untrained[name]) for name, tensor in ours.items())


def _opened(folder: Path, which: str = "last") -> OpenRun:
    return open_run(folder, config=small_config(), checkpoint=which)


def test_a_run_without_a_best_checkpoint_says_why(tmp_path: Path) -> None:
    """Each figure was NaN, as no label of the evaluated part counts."""
    checkpoint.save(tmp_path, snapshot_of(1), keep_last=1, is_best=False)
    with pytest.raises(UserError) as error:
        _ = _opened(tmp_path, "best").checkpoint_path
    assert str(error.value) == (
        f"checkpoint best: there is no {tmp_path}/checkpoints/best, as no evaluation gave a figure to choose it by; "
        f"give a path; {tmp_path}/checkpoints holds last, step_00000001"
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


# --- rules of resuming: which folder, which checkpoint, what may differ, and what a folder may hold ------------------


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return small_config()


def place(config: RunConfig, out: Path | None, resume: str | None) -> RunLocation:
    return resolve_run_location(config, [], World(), out=out, resume=resume)


def begin(run: Path, config: RunConfig, *, num_checkpoints: int = 0) -> Path:
    """What a run writes first, and its checkpoints."""
    run.mkdir(parents=True)
    (run / "environment.json").write_text(json.dumps({"plugins": []}))
    (run / "config.yaml").write_text(render_config(config, origins=False))
    for step in range(1, num_checkpoints + 1):
        checkpoint.save(run, snapshot_of(step), keep_last=num_checkpoints, is_best=False)
    return run


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_new_run_has_no_place_or_an_empty_one(config: RunConfig, tmp_path: Path, resume: str | None) -> None:
    assert place(config, tmp_path, resume) == RunLocation(str(tmp_path))
    assert place(config, tmp_path / "absent", resume) == RunLocation(str(tmp_path / "absent"))
    assert place(config, None, None) == RunLocation(None)


def test_a_folder_that_holds_something_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    assert place(config, tmp_path, "auto") == RunLocation(str(tmp_path)), "a run killed before it wrote its config"
    with pytest.raises(UserError, match="is not empty; go on with it by --resume auto, or give another folder"):
        place(config, tmp_path, None)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run to resume; give another folder"):
        place(config, tmp_path, "auto")
    with pytest.raises(UserError, match="is a file; give a folder"):
        place(config, tmp_path / "thesis.tex", None)


def test_the_newest_of_the_runs_of_a_name_goes_on(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number: 10 comes after 9."""
    monkeypatch.chdir(tmp_path)
    for number in (9, 10):
        begin(Path("runs") / config.name / str(number), config)
    assert place(config, None, "auto").path == f"runs/{config.name}/10"


def test_the_newest_sound_checkpoint_goes_on_and_damaged_ones_are_named(config: RunConfig, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", config, num_checkpoints=2)
    newest, older = (run / "checkpoints" / f"step_0000000{step}" for step in (2, 1))
    held = ("config.yaml", "step_00000001", "step_00000002")
    found = place(config, run, "auto")
    assert (found.path, found.checkpoint, found.is_finished, found.notes) == (str(run), str(newest), False, ())
    assert sorted(found.existing_files) == sorted(held)

    (run / "final.json").write_text("{}")
    assert place(config, run, "auto").is_finished
    assert place(config, None, str(run)).is_finished
    named = place(config, None, str(older))
    assert (named.path, named.checkpoint, named.is_finished) == (str(run), str(older), False)

    damaged = newest / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match=rf"is finished, but .*damaged.*--resume {older}"):
        place(config, run, "auto")
    (run / "final.json").unlink()
    found = place(config, run, "auto")
    assert (found.checkpoint, found.is_finished) == (str(older), False)
    (line,) = found.notes
    assert line.startswith("damaged checkpoint passed over: ")
    assert str(newest) in line


def test_a_checkpoint_of_another_folder_is_refused(config: RunConfig, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", config, num_checkpoints=1)
    with pytest.raises(UserError, match="a run is resumed in its own folder"):
        place(config, tmp_path / "other", str(run / "checkpoints" / "last"))
    with pytest.raises(UserError, match="neither a run directory nor a checkpoint inside one"):
        place(config, None, str(tmp_path))


def test_only_what_changes_no_number_may_differ(config: RunConfig, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", config)
    assert_same_run(run, small_config("loader.workers=1", "log.every=7", "checkpoint.keep_last=3"), [])
    with pytest.raises(
        UserError, match=r"\(2 keys differ\): seed: 0 there, 5 here; train\.epochs: 2 there, 1 here; give"
    ):
        assert_same_run(run, small_config("seed=5", "train.epochs=1"), [])
    for override, difference in {
        "checks.skip=[indices]": r"\(1 key differs\): checks\.skip: \[\] there, \[\"indices\"\] here",
        "distributed.sync_batch_norm=true": r"distributed\.sync_batch_norm: false there, true here",
    }.items():
        with pytest.raises(UserError, match=difference):  # values are as a config has them, to be given
            assert_same_run(run, small_config(override), [])
    assert assert_same_run(run, small_config("train.epochs=3"), [])
    assert not assert_same_run(run, small_config(), [])
    with pytest.raises(UserError, match="2 keys differ"):  # it would end earlier
        assert_same_run(run, small_config("train.epochs=3", "train.steps=1"), [])
    early = "train.early_stopping={patience: 3}"
    assert assert_same_run(run, small_config("train.epochs=3", early), [])
    (run / "final.json").write_text("{}")
    with pytest.raises(UserError, match=r"early_stopping\.patience: absent there, 3 here"):
        assert_same_run(run, small_config(early), [])
    (run / "final.json").write_text('{"ended_early": {}}')
    assert assert_same_run(run, small_config(early), [])


def test_a_run_whose_data_were_moved_goes_on_where_they_are(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "configs" / "classify" / "modelnet40_pointnet_cpu.yaml"
    run = begin(tmp_path / "run", read_config(path, ["data.root=there"]))
    assert not assert_same_run(run, read_config(path, ["data.root=elsewhere"]), [])
    with pytest.raises(UserError, match=r"data\.num_points: 1024 there, 512 here"):
        assert_same_run(run, read_config(path, ["data.root=elsewhere", "data.num_points=512"]), [])


def test_a_folder_that_changed_meanwhile_is_refused(config: RunConfig, tmp_path: Path) -> None:
    found = place(config, tmp_path / "run", None)
    found.assert_unchanged(tmp_path / "run")
    begin(tmp_path / "run", config)
    with pytest.raises(UserError, match="another run wrote to this folder while this one was built; start again"):
        found.assert_unchanged(tmp_path / "run")
