"""Weights to start from that no training has moved."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sightline.config import read_config, render_config
from sightline.config.run_config import to_plain
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.runs import checkpoint
from sightline.workbench.check.checks.weights import untrained_init
from sightline.workbench.check.context import Context
from tests.doctor.planting import CONFIG, assert_complete, assert_healthy, caught, judge, make


def save_run(folder: Path, *, seed: int, moved: float = 0.0) -> Path:
    """A run directory whose weights are those of its seed, each drawn one then changed by a share of `moved`."""
    built = make(folder, f"seed={seed}")
    state = {name: value.clone() for name, value in built.job.model.state_dict().items()}
    for name, _ in built.job.model.named_parameters():
        state[name] *= 1 + moved
    snapshot = checkpoint.Snapshot(step=0, model=state, optimizer={}, ema=None, state={"unwritten": None})
    run = folder / "run"
    checkpoint.save(run, snapshot, keep_last=1, is_best=False)
    (run / "config.yaml").write_text(render_config(built.config, origins=False))
    (run / "facts.json").write_text(json.dumps(to_plain(dict(built.data.facts))))
    return run


def started(folder: Path, source: Path, *overrides: str) -> TrainingSetup:
    path = folder / "small.yaml"
    path.write_text(CONFIG + f"init: {{from: '{source}'}}\n")
    return build(read_config(path, overrides), World())


def found(built: TrainingSetup) -> list:
    return judge(untrained_init, Context(built, World()))


def test_a_trained_start_and_none_are_healthy(tmp_path: Path) -> None:
    assert_healthy(started(tmp_path, save_run(tmp_path, seed=9, moved=0.01)))
    assert found(started(tmp_path, save_run(tmp_path, seed=0, moved=0.01))) == []
    assert found(make(tmp_path)) == []


def test_weights_of_the_very_seed(tmp_path: Path) -> None:
    finding = caught(started(tmp_path, save_run(tmp_path, seed=0)), "untrained-init", "ckpt.key_mismatch")
    assert "init has changed nothing" in finding.summary
    assert finding.measured.startswith("0 of 8 drawn tensors differ")
    assert finding.where.config_path == "init.from"


def test_weights_of_another_seed_that_never_trained(tmp_path: Path) -> None:
    run = save_run(tmp_path, seed=9)
    (finding,) = found(started(tmp_path, run))
    assert finding.cause == "ckpt.stale"
    assert f"the seed of {run} makes the same" in finding.summary
    assert_complete(finding)


def test_one_moved_tensor_is_enough(tmp_path: Path) -> None:
    """As where most of a model is frozen: something was learnt."""
    run = save_run(tmp_path, seed=9)
    place = checkpoint.resolve(run) if hasattr(checkpoint, "resolve") else run
    snapshot = checkpoint.load(place)
    name = next(name for name, value in snapshot.model.items() if value.ndim == 2)
    moved = {**snapshot.model, name: snapshot.model[name] + 0.1}
    again = checkpoint.Snapshot(step=1, model=moved, optimizer={}, ema=None, state={"unwritten": None})
    checkpoint.save(run, again, keep_last=1, is_best=False)
    assert found(started(tmp_path, run)) == []


def test_a_source_that_cannot_be_told_is_passed_over(tmp_path: Path) -> None:
    run = save_run(tmp_path, seed=9)
    (run / "facts.json").unlink()
    assert found(started(tmp_path, run)) == []


def test_the_random_states_stay(tmp_path: Path) -> None:
    built = started(tmp_path, save_run(tmp_path, seed=9, moved=0.1))
    before = torch.get_rng_state()
    assert_healthy(built)
    assert torch.equal(torch.get_rng_state(), before)
