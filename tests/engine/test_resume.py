"""Rules of resuming: which folder, which checkpoint, what may differ, and what a folder may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.config import RunConfig, read_config, render_config
from sightline.engine.distributed import World
from sightline.engine.resume import RunLocation, assert_same_run, resolve_run_location
from sightline.errors import UserError
from sightline.runs import checkpoint
from tests.engine.snapshots import snapshot_of
from tests.runs.small import small_config


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
    assert assert_same_run(run, small_config("train.epochs=3"), [])
    assert not assert_same_run(run, small_config(), [])
    with pytest.raises(
        UserError,
        match=r"train\.epochs: 2 there, 1 here; a run may go on for longer, by a later train\.epochs \(now 2\)",
    ):
        assert_same_run(run, small_config("train.epochs=1"), [])
    with pytest.raises(UserError, match="2 keys differ"):  # it would end earlier
        assert_same_run(run, small_config("train.epochs=3", "train.steps=1"), [])


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
