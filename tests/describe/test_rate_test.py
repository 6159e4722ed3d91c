"""Range tests on planted losses: quadratics whose largest stable rate is known, curves that never fall, NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.errors import RunError, UserError
from sightline.contract.loss import Loss
from sightline.contract.types import ComponentConfig
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.batches.stream import BatchStream
from sightline.engine.device.numerics import Precision
from sightline.engine.distributed import World
from sightline.engine.learnt_losses import LearntLosses
from sightline.engine.train import TrainState
from sightline.workbench.describe.rate_test import NUM_STEPS, RateTest, make_rates, run_rate_test
from tests.cases import run_each
from tests.contract.toy import Made, Toy, field, supervised

NOISE = 0.05


class Values(TypedDict):
    values: Tensor


class Lines(nn.Module):
    """Two slopes, of which the second one's part may have another rate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, *, x: Tensor) -> Values:
        return {"values": torch.cat([self.first(x[:, :1]), self.second(x[:, 1:])], 1)}


class HalfSquares(Loss):
    def count(self, *, y: Tensor) -> Tensor:
        return torch.tensor(float(len(y)))

    def forward(self, *, values: Tensor, y: Tensor) -> Tensor:
        return ((values - y).square() / 2).sum()


def quadratic(curvature: float, *, micro_batches: int = 1, **optimizer: Any) -> TrainState:
    """Least squares with the Hessian `curvature` * identity in every batch, and noise that no weight explains."""

    def make(draw: np.random.Generator) -> dict[str, Any]:
        x = math.sqrt(curvature) * torch.from_numpy(draw.choice([-1.0, 1.0], size=2))
        noise = NOISE * torch.from_numpy(draw.normal(size=2))
        return {"x": x, "y": x / math.sqrt(curvature) + noise}

    toy = Toy(Lines, supervised({"half_squares": HalfSquares}), Made(make, x=field(), y=field()), {"half_squares": 1.0})
    model = toy.model().double()
    plan = BatchSampler(np.arange(40), 8, seed=1, micro_batches=micro_batches)
    recipe = registry.optimizers.build(ComponentConfig("sgd", {"lr": 0.1, "momentum": 0.0, **optimizer}), facts={})
    learnt = LearntLosses()
    return TrainState(
        model=model,
        task=toy.task(model, toy.reader.keys),
        optimizer=recipe.build(model, learnt),
        schedule=None,
        stream=BatchStream(plan, toy.reader),
        num_steps=1,
        loss_weights=toy.weights,
        precision=Precision("float64"),
        losses=learnt,
    )


@run_each("curvature", [2.0, 50.0, 1e4])
def test_a_quadratic_diverges_near_the_largest_stable_rate(curvature: float) -> None:
    """Gradient descent on it is stable up to 2 / curvature (Nesterov 2004, section 1.2.3)."""
    stable = 2 / curvature
    test = run_rate_test(quadratic(curvature), World(), make_rates(200), configured=0.1)
    assert test.diverged_at is not None
    assert stable < test.diverged_at < 3 * stable
    assert test.suggestion is not None
    assert stable / 100 < test.suggestion < stable
    assert len(test.losses) < 200, "the test ends where the loss has diverged"


def test_it_takes_the_steps_of_a_training() -> None:
    """Groups keep the ratio of their rates, and micro-batches are parts of the same step."""
    rates, seen = make_rates(NUM_STEPS), []
    job = quadratic(2.0, groups=({"modules": "second", "lr_factor": 0.25},))
    job.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups]))
    run_rate_test(job, World(), rates, configured=0.1)
    assert len(seen) > NUM_STEPS / 2
    for rate, groups in zip(rates, seen, strict=False):
        assert sorted(groups) == pytest.approx([0.25 * rate, rate])
    whole = run_rate_test(quadratic(2.0), World(), rates, configured=0.1)
    parts = run_rate_test(quadratic(2.0, micro_batches=4), World(), rates, configured=0.1)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-9)


def with_curve(curve: Callable[[float, np.random.Generator], float], seed: int = 0) -> RateTest:
    test, draw = RateTest(make_rates(NUM_STEPS)), np.random.default_rng(seed)
    for rate in test.rates:
        if test.add(curve(rate, draw)):
            break
    return test


@run_each(
    "name, curve",
    [
        ("constant", lambda rate, draw: 2.3),
        ("zero", lambda rate, draw: 0.0),
        ("noise", lambda rate, draw: 2.3 + draw.normal()),
        ("negative", lambda rate, draw: -5.0 + 0.1 * draw.normal()),
        ("rises", lambda rate, draw: 1.0 + 0.01 * draw.normal() + 100 * rate),
    ],
)
def test_a_curve_that_never_falls_suggests_nothing(name: str, curve: Callable[..., float]) -> None:
    tests = [with_curve(curve, seed) for seed in range(50)]
    assert sum(test.suggestion is not None for test in tests) <= 1
    diverged = [test.diverged_at for test in tests if test.diverged_at is not None]
    assert len(diverged) == (50 if name == "rises" else 0)
    assert "NaN" not in tests[0].draw()


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_lowest_loss_whatever_its_offset() -> None:
    """A valley about 1e-2: the smoothed loss follows at most a decade, ten of twelve steps, behind."""
    for offset in (-10.0, 0.0, 10.0):
        test = with_curve(lambda rate, _, offset=offset: offset + abs(math.log10(rate) + 2.0))
        assert 1e-3 <= (test.suggestion or 0) <= 1e-2


def test_nan_at_the_first_step_is_one_line_and_later_it_is_divergence() -> None:
    job = quadratic(2.0)
    nn.init.constant_(job.model.get_submodule("first").weight, math.nan)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="the first step fails, before a learning rate matters: step 0") as raised:
        run_rate_test(job, World(), make_rates(NUM_STEPS), configured=0.1)
    assert "\n" not in str(raised.value)
    far = run_rate_test(quadratic(1e200), World(), make_rates(NUM_STEPS), configured=0.1)  # one update overflows
    assert (far.diverged_at, far.suggestion, len(far.losses)) == (far.rates[1], None, 1), far.reason
    assert "step 1: " in far.reason


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(UserError, match=r"--steps 5: .*at least 20 steps"):
        make_rates(5)
