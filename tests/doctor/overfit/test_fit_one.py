"""Over-fitting: healthy runs are fitted, beside what constants reach; of planted faults the cause is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.config import read_config
from sightline.config.overrides import parse_variants
from sightline.contract.errors import UserError
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.fit.attempt import OWN
from sightline.workbench.fit.fit_one import FitOptions, FitResult, fit_one, fit_variants, make_setup
from sightline.workbench.fit.loss_bounds import LossBounds, measure_bounds
from tests.cases import run_each
from tests.doctor.overfit import nets
from tests.doctor.overfit.nets import edited, regression, run, with_loss
from tests.doctor.planting import assert_complete
from tests.runs.small import ROOT

QUICK = FitOptions(samples=2, steps=30)


def fitted(built: TrainingSetup, asked: FitOptions = QUICK) -> FitResult:
    return fit_one(built, asked, lambda line: None)


# --- healthy ---------------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_fitted_by_its_own_optimiser_and_no_other_is_tried(tmp_path: Path) -> None:
    result = fitted(run(tmp_path, model=nets.Net()))
    assert result.is_fitted
    assert (result.findings, result.verdict) == ((), ())
    assert {curve.optimizer for curve in result.attempts} == {OWN}
    assert result.attempts[-1].score == 1.0


def test_twice_the_same_numbers_and_nothing_of_the_run_is_changed(tmp_path: Path) -> None:
    built = run(tmp_path, "model.dropout=0.5", "model.embedding=8")
    asked = FitOptions(samples=2, steps=6)
    before = {name: value.clone() for name, value in built.job.model.state_dict().items()}
    state = torch.get_rng_state()
    first = fitted(built, asked).to_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert fitted(built, asked).to_dict() == first
    assert all(torch.equal(before[name], value) for name, value in built.job.model.state_dict().items())
    assert not built.job.optimizer.state


def test_the_first_loss_and_the_losses_are_those_of_plain_steps(tmp_path: Path) -> None:
    """Against a loop written out by hand: SGD without momentum on the same cloud."""
    net = nets.Net()
    result = fitted(run(tmp_path, "optimizer.momentum=0", model=net), FitOptions(steps=6))
    batch = result.samples.batch
    plain = nets.Net()
    plain.load_state_dict(net.state_dict())
    seen = []
    for _ in range(7):
        loss = nn.functional.cross_entropy(plain(points=batch["points"])["logits"], batch["label"])
        seen.append(loss.item())
        plain.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
    own = result.attempts[0]
    assert own.rate == 0.1
    assert own.losses == pytest.approx(seen[: len(own.losses)], rel=1e-5)


def test_batch_norm_over_vectors_gets_more_samples_or_says_what_one_means(tmp_path: Path) -> None:
    built = run(tmp_path)
    few = fitted(built, FitOptions(steps=1)).samples
    assert (len(few.keys), few.repeats) == (4, 1)
    alone = fitted(built, FitOptions(samples=1, steps=1)).samples
    assert (len(alone.keys), alone.repeats, len(alone.batch["label"])) == (1, 2, 2)
    assert "batch norm" in alone.note


def test_augmentation_is_off_and_named_unless_it_is_kept(tmp_path: Path) -> None:
    built = run(tmp_path, "transforms.train=[{name: jitter}, {name: shuffle_points}]")
    samples = make_setup(built, FitOptions(samples=2))[1]
    assert samples.left_out == ("jitter",)
    kept = make_setup(built, FitOptions(samples=2, keep=frozenset({"augmentation"})))[1]
    assert kept.left_out == ()
    assert not torch.equal(kept.batch["points"], samples.batch["points"])
    with pytest.raises(UserError, match="the training part has 216 samples"):
        make_setup(built, FitOptions(samples=1000))


def test_the_time_is_bounded(tmp_path: Path) -> None:
    result = fitted(run(tmp_path, "optimizer.lr=1e-7", model=nets.Net()), FitOptions(samples=2, seconds=0.0))
    assert {(curve.stop, len(curve.losses)) for curve in result.attempts} == {("time", 1)}
    assert not result.is_fitted


# --- the losses that need no network ---------------------------------------------------------------------------------


def bounded(built: TrainingSetup, samples: int = 3) -> LossBounds:
    return measure_bounds(make_setup(built, FitOptions(samples=samples))[0])


def test_the_floor_of_smoothed_labels_and_the_best_constant_are_entropies(tmp_path: Path) -> None:
    """Label smoothing 0.3 over the others of 12 classes; the best constant is the mean of the targets."""
    built = run(tmp_path, "losses=[{name: cross_entropy, label_smoothing: 0.3}]", model=nets.Net())
    bounds = bounded(built)
    targets = torch.full((3, 12), 0.3 / 11, dtype=torch.float64)
    targets[range(3), make_setup(built, FitOptions(samples=3))[0].batch["label"]] = 0.7
    entropies = -(targets * targets.log()).sum(1)
    assert bounds.floor == pytest.approx(float(entropies.mean()), abs=1e-8)
    assert bounds.constant == pytest.approx(float(-(targets.mean(0) * targets.mean(0).log()).sum()), abs=1e-6)
    assert bounds.floor is not None
    assert bounds.goal == pytest.approx(0.9 * bounds.floor + 0.1 * min(bounds.start, bounds.constant))


def test_the_best_constant_of_squares_is_the_mean(tmp_path: Path) -> None:
    built = regression(tmp_path, nets.Regressor(rectified=False))
    bounds = bounded(built)
    target = make_setup(built, FitOptions(samples=3))[0].batch["target"]
    assert bounds.floor == pytest.approx(0.0, abs=1e-12)
    assert bounds.constant == pytest.approx(float((target - target.mean(0)).square().mean()), rel=1e-5)
    assert bounds.read == ("heat",)


def test_the_floor_of_rows_that_are_told_apart() -> None:
    """NT-Xent of M pairs, temperature t: M directions as far apart as they can be have cosines -1 / (M - 1)."""
    small = ("data.num_points=32", "data.train_size=40", "model.points={name: dgcnn, num_neighbours: 4, embedding: 16}")
    config = ROOT / "configs" / "contrast" / "synthetic_shapes_intrapoint_parts.yaml"
    hot = "losses.0.temperature=1.0"
    bounds = bounded(build(read_config(config, [*small, "data.target=class", hot]), World()), samples=4)
    assert bounds.floor == pytest.approx(math.log(1 + 6 * math.exp(-1 / 3 - 1)), abs=1e-4)
    assert bounds.constant == pytest.approx(math.log(7), abs=1e-6)


def test_a_loss_that_falls_for_ever_has_no_floor(tmp_path: Path) -> None:
    assert bounded(with_loss(run(tmp_path, model=nets.Net()), nets.Entropy(-1.0))).floor is None


def test_one_target_proves_nothing(tmp_path: Path) -> None:
    alone = edited(run(tmp_path, model=nets.Net()), lambda batch, keys: {**batch, "label": 0 * batch["label"]})
    assert [finding.cause for finding in fitted(alone).findings] == ["data.target_encoding"]


# --- planted ---------------------------------------------------------------------------------------------------------


def _without_rate(built: TrainingSetup) -> TrainingSetup:
    for group in built.job.optimizer.param_groups:
        group["base_lr"] = 0.0
    return built


def _without_head(built: TrainingSetup) -> TrainingSetup:
    net: Any = built.job.model
    built.job.optimizer.param_groups[0]["params"] = [net.each.bias]
    with torch.no_grad():
        net.head.weight.zero_()
    return built


def _with_wide_head(built: TrainingSetup) -> TrainingSetup:
    net: Any = built.job.model
    net.head = nn.Linear(23, nets.NUM_CLASSES)
    return built


def _contradict(batch: dict[str, Any], keys: Any) -> dict[str, Any]:
    points = torch.as_tensor(batch["points"])
    return {**batch, "points": torch.ones_like(points)}


PLANTED: dict[str, tuple[str, Callable[[Path], TrainingSetup]]] = {
    "sign": ("loss.sign", lambda p: with_loss(run(p, model=nets.Net()), nets.Entropy(-1.0))),
    "detached": ("loss.detached", lambda p: with_loss(run(p, model=nets.Net()), nets.Detached())),
    "not finite": ("model.numerics", lambda p: run(p, model=nets.Divided())),
    "constant": ("model.constant_output", lambda p: run(p, model=nets.Constant())),
    "softmax": ("loss.double_softmax", lambda p: run(p, model=nets.SoftmaxEnd())),
    "frozen": ("model.frozen_unintended", lambda p: run(p, model=nets.FrozenHead())),
    "low rate": ("optim.lr", lambda p: run(p, "optimizer.lr=1e-8", model=nets.Net())),
    "no rate": ("optim.lr", lambda p: _without_rate(run(p, model=nets.Net()))),
    "clip": ("optim.lr", lambda p: run(p, "train.clip_norm=1e-6", model=nets.Net())),
    "coverage": ("optim.param_coverage", lambda p: _without_head(run(p, model=nets.Net()))),
    "shape": ("cfg.contract", lambda p: _with_wide_head(run(p, model=nets.Net()))),
    "equal inputs": ("data.duplicate_randomness", lambda p: edited(run(p, model=nets.Net()), _contradict)),
}
"""Cause that is named first, and the run."""


@run_each("name", PLANTED)
def test_the_cause_of_a_planted_fault_is_named(name: str, tmp_path: Path) -> None:
    cause, make = PLANTED[name]
    result = fitted(make(tmp_path), FitOptions(samples=3, steps=30))
    told = "\n".join(map(str, result.findings))
    assert not result.is_fitted
    assert result.findings, result.verdict
    assert cause in result.findings[0].causes, told
    assert result.verdict
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_weight_decay_that_undoes_what_is_learnt(tmp_path: Path) -> None:
    decaying = "optimizer={name: adam, lr: 0.03, weight_decay: 10.0}"
    result = fitted(run(tmp_path, decaying, model=nets.Net()))
    assert result.is_fitted
    assert [finding.cause for finding in result.findings] == ["optim.hyper"]
    assert_complete(result.findings[0])


# --- variants --------------------------------------------------------------------------------------------------------


def test_variants_are_a_cross_product_and_lists_stay_whole() -> None:
    assert parse_variants(["model.shortcuts=true,false", "model.widths=[1,2],[3]"]) == [
        ("model.shortcuts=true", "model.widths=[1,2]"),
        ("model.shortcuts=true", "model.widths=[3]"),
        ("model.shortcuts=false", "model.widths=[1,2]"),
        ("model.shortcuts=false", "model.widths=[3]"),
    ]
    for text in ("model.shortcuts", "=1,2", "model.width=1,"):
        with pytest.raises(UserError, match="--vary"):
            parse_variants([text])


def test_variants_see_the_same_samples(tmp_path: Path) -> None:
    def variant(*words: str) -> tuple[str, Callable[[], TrainingSetup]]:
        return " ".join(words), lambda: run(tmp_path, *words)

    asked = FitOptions(samples=2, steps=10, only_own_rate=True)
    rates = [variant("optimizer.lr=0.1", "seed=3"), variant("optimizer.lr=1e-6", "seed=3")]
    found = [result for _, result in fit_variants(rates, asked, lambda line: None)]
    assert found[0].samples.indices == found[1].samples.indices
    assert found[0].attempts[0].losses[0] == found[1].attempts[0].losses[0]
    assert [each.is_fitted for each in found] == [True, False]
    with pytest.raises(UserError, match="changes which samples"):
        list(fit_variants([variant("seed=0"), variant("seed=1")], FitOptions(samples=2, steps=1), lambda line: None))
