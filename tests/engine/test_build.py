"""Building a run: parts, facts, initial weights, and the errors that name both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.errors import CheckpointError, ConfigError
from sightline.runs import checkpoint
from tests.runs.small import small_config, small_run


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


def test_facts_reach_the_model() -> None:
    assert small_run().job.model.head[-1].out_features == 12


def saved(tmp_path: Path, model: torch.nn.Module, ema: torch.nn.Module | None = None) -> Path:
    average = None if ema is None else dict(ema.state_dict())
    snapshot = checkpoint.Snapshot(0, dict(model.state_dict()), {}, average, {"scaler": {}})
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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=pointnet_plain"], r"losses.feature_transform_penalty needs 'feature_transform'; .*offers logits"),
        (["evaluate.metric=overal_accuracy"], "did you mean 'overall_accuracy'"),
        (["train.batch_size=61", "train.tail=drop"], "fewer than train.batch_size"),
        (["data.train_size=1"], "held out for validation is empty"),
    ],
)
def test_what_does_not_fit_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_run(*overrides)
