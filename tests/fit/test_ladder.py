"""Ladder: the first rung that fails ends the climb with its cause; scores stand beside those of the best constant."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sightline.config import read_config
from sightline.contract.errors import UserError
from sightline.contract.types import SampleKey
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.fit.constant import fit_constant
from sightline.workbench.fit.ladder import Rung, _find_shortness, _Outcome, climb, parse_rungs
from sightline.workbench.fit.samples import evaluation_reader
from tests.cases import run_each
from tests.fit import nets
from tests.fit.nets import run
from tests.limits import ENDLESS_S
from tests.runs.small import ROOT, small_config

TINY = ("data.train_size=120", "model={name: pointnet_plain, embedding: 8}", "losses=[{name: cross_entropy}]")


def climbed(
    built: TrainingSetup, rungs: Sequence[int | str], *, steps: int = 20, seconds: float = ENDLESS_S
) -> list[Rung]:
    return climb(built, rungs, lambda line: None, steps=steps, seconds=seconds)


def tiny(*overrides: str) -> TrainingSetup:
    return build(small_config(*TINY, "transforms.train=[]", *overrides), World())


def test_rungs_are_read() -> None:
    assert parse_rungs("1, 8,all") == [1, 8, "all"]


def test_the_climb_goes_up_and_scores_many_samples(tmp_path: Path) -> None:
    built, lines = tiny("optimizer={name: adam, lr: 1e-2}"), list[str]()
    state = torch.get_rng_state()
    rungs = climb(built, [1, 4, 32], lines.append, steps=25, seconds=ENDLESS_S)
    assert [(each.rung, each.verdict) for each in rungs] == [(1, "not judged"), (4, "passed"), (32, "passed")]
    assert torch.equal(state, torch.get_rng_state())
    assert "held_out" not in rungs[1].figures
    assert 0.0 <= rungs[2].figures["best_constant"] <= 0.2  # twelve classes, evenly
    assert any(line.startswith("rung 32: passed; fitted after") and "of the best constant" in line for line in lines)


def test_the_climb_ends_at_the_rung_that_fails_with_its_cause(tmp_path: Path) -> None:
    rungs = climbed(run(tmp_path, "optimizer.lr=1e-7", model=nets.Net()), [2, 8])
    assert [(each.rung, each.verdict) for each in rungs] == [(2, "failed")]
    assert [(each.severity, each.cause) for each in rungs[0].findings] == [("error", "optim.lr")]


def test_a_rung_that_needs_more_steps_ends_the_climb_undecided(tmp_path: Path) -> None:
    rungs = climbed(run(tmp_path, "optimizer.lr=1e-3", model=nets.Net()), [4, 8])
    assert [(each.rung, each.verdict) for each in rungs] == [(4, "not decided")]
    assert [each.severity for each in rungs[0].findings] == ["warning"]


def test_one_sample_of_a_task_that_compares_samples_is_not_judged() -> None:
    small = ("data.num_points=32", "data.train_size=40", "model.points={name: dgcnn, num_neighbours: 4, embedding: 16}")
    config = read_config(ROOT / "configs" / "contrast" / "synthetic_shapes_intrapoint_parts.yaml", small)
    (rung,) = climbed(build(config, World()), [1])
    assert rung.verdict == "not judged"


def test_more_samples_than_there_are() -> None:
    with pytest.raises(UserError, match=r"^--grow: rung 900: the training part has \d+ samples; give at most as many"):
        climbed(tiny(), [2, 900])


ALL: dict[str, tuple[str, str, float, tuple[str, ...]]] = {
    "learns": ("passed", "", ENDLESS_S, ("optimizer={name: adam, lr: 1e-2}", "train.epochs=6")),
    "learns nothing": ("failed", "optim.lr", ENDLESS_S, ("optimizer.lr=1e-8", "train.epochs=1")),
    "by time": ("not decided", "sys.resource", 0.0, ("optimizer.lr=1e-8", "train.epochs=50")),
}
"""Verdict, cause, seconds and overrides."""


@run_each("name", ALL)
def test_the_task_is_trained_and_leaves_no_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, cause, seconds, words = ALL[name]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (rung,) = climbed(tiny(*words), ["all"], seconds=seconds)
    assert rung.verdict == verdict, rung.describe()
    assert "".join(finding.cause for finding in rung.findings) == cause
    assert not list(tmp_path.glob("sightline_fit_*"))
    assert rung.figures["constant"] == pytest.approx(1 / 12, abs=0.05)
    if seconds == 0.0:
        assert rung.figures["steps"] <= 2.0  # the loop takes a step that has begun to its end


def test_a_recipe_of_fewer_steps_than_a_few_samples_take_is_not_decided() -> None:
    built = tiny("optimizer={name: adam, lr: 1e-2}", "train.epochs=1", "train.batch_size=60")
    first, task = climbed(built, [8, "all"], steps=100)
    assert first.verdict == "passed", first.describe()
    assert task.verdict == "not decided", task.describe()
    assert task.measured.startswith(f"a few samples alone were fitted after {first.figures['fitted_after']:.0f} steps")
    assert [(finding.cause, finding.severity) for finding in task.findings] == [("sys.resource", "warning")]


@pytest.mark.parametrize(("num_batches", "reason"), [(12, "0.28 of the running statistics"), (200, "")])
def test_running_statistics_of_a_few_steps_decide_nothing(num_batches: int, reason: str) -> None:
    norm = nn.BatchNorm1d(2)
    norm.num_batches_tracked += num_batches
    learnt = _Outcome(0.1, 0.1, 0.1, last_loss=0.1, constant_loss=2.0, is_higher_better=True)
    assert _find_shortness(nn.Sequential(norm), learnt, num_batches, 0.0).startswith(reason)
    assert bool(_find_shortness(nn.Sequential(norm), learnt, num_batches, 0.0)) == bool(reason)


def test_the_best_constant_of_classes_is_their_share() -> None:
    """The best constants of a cross entropy are the logarithms of the shares: its loss is their entropy."""
    built = tiny()
    indices = np.sort(built.data.train.indices[:30])
    constant, loss = fit_constant(built, indices)
    batch = evaluation_reader(built)(built.job.stream.plan.step_keys(0)[0][0][:3])
    labels = evaluation_reader(built)([SampleKey(int(index), 0, 0) for index in indices])["label"]
    shares = torch.bincount(labels, minlength=12).double() / 30
    found = F.softmax(constant(points=batch["points"])["logits"].double(), dim=1)
    assert torch.equal(found[0], found[-1])
    assert torch.allclose(found[0], shares, atol=1e-3)
    assert loss == pytest.approx(-math.fsum(float(p * p.log()) for p in shares if p > 0), abs=1e-3)
