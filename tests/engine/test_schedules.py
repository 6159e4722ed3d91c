"""Schedules of the rate and of weights of losses, against their formulas, by hand or by torch's schedulers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sightline.contract.errors import ConfigError
from sightline.contract.types import LinearRamp
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.optimizers import AdamW
from sightline.engine.records import StepRecord
from sightline.engine.schedules import Constant, Cosine, Exponential, OneCycle, Polynomial, Steps
from sightline.engine.train import TrainState, _set_rates
from tests.command import succeed
from tests.golden_parity import load_golden
from tests.runs.small import SMALL, small_run

# --- schedules against their formulas, worked by hand or by torch's own schedulers -----------------------------------


def torch_factors(make: object, num_steps: int) -> list[float]:
    """The learning rates that one of torch's schedulers gives to a rate of 1."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    factors = []
    for _ in range(num_steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_cosine_is_torchs() -> None:
    ours = Cosine(num_steps=30, steps_per_epoch=5, final_factor=0.01)
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=30, eta_min=0.01), 30)
    assert [ours(step) for step in range(30)] == pytest.approx(expected, rel=1e-12)


def test_step_is_torchs() -> None:
    ours = Steps(num_steps=60, steps_per_epoch=5, every_epochs=3, gamma=0.7)
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=15, gamma=0.7), 60)
    assert [ours(step) for step in range(60)] == pytest.approx(expected, rel=1e-12)


def test_milestones_are_torchs() -> None:
    ours = Steps(num_steps=60, steps_per_epoch=5, milestones=(2, 7), gamma=0.1)
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 35], gamma=0.1), 60)
    assert [ours(step) for step in range(60)] == pytest.approx(expected, rel=1e-12)


def test_floor_stops_the_fall() -> None:
    ours = Steps(num_steps=60, steps_per_epoch=1, every_epochs=10, gamma=0.5, floor=0.2)
    assert [ours(step) for step in (0, 10, 20, 30, 59)] == [1.0, 0.5, 0.25, 0.2, 0.2]


def test_one_cycle_is_torchs() -> None:
    """At every step: torch places its peak at pct_start * total - 1, here as ours at step 0.25 * 40 = 10."""
    ours = OneCycle(num_steps=41, rise=0.25, start_divisor=25.0, final_divisor=1e4)
    expected = torch_factors(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=41, pct_start=11 / 41, cycle_momentum=False),
        41,
    )
    assert [ours(step) for step in range(41)] == pytest.approx(expected, rel=1e-9)
    assert ours(10) == 1.0
    assert ours(5) == pytest.approx((1 + 1 / 25) / 2)  # half-way up a half cosine


@pytest.mark.parametrize("case", ["scannet", "nuscenes", "spunet"])
def test_rates_and_betas_of_groups_are_those_of_pointcept(shared: Path, case: str) -> None:
    """At every step: two groups, of which the second is found by its name, and Adam's first beta."""
    golden = load_golden(shared, "fn_train_protocol", area="voxels")
    num_steps, rate, block_rate, share, *divisors = golden.arrays[f"onecycle.{case}.args"].tolist()
    model = torch.nn.ModuleDict({"rest": torch.nn.Linear(2, 2), "block": torch.nn.Linear(2, 2)})
    groups = ({"modules": "block", "lr_factor": block_rate / rate},)
    optimizer = AdamW(lr=rate, groups=groups).build(model)  # type: ignore[arg-type]
    schedule = OneCycle(
        num_steps=int(num_steps),
        rise=(share * num_steps - 1) / (num_steps - 1),
        start_divisor=divisors[0],
        final_divisor=divisors[1],
        momentum=(0.95, 0.85),
    )
    job = SimpleNamespace(optimizer=optimizer, schedule=schedule, step=0, num_skipped=0, gate=None)
    rates, betas = [], []
    for job.step in range(int(num_steps)):
        _set_rates(job)  # type: ignore[arg-type]
        by_module = {id(group["params"][0]): group for group in optimizer.param_groups}
        rates.append([by_module.get(id(model[name].weight), optimizer.param_groups[0])["lr"] for name in model])
        betas.append({group["betas"] for group in optimizer.param_groups})
    assert np.abs(np.array(rates) - golden.arrays[f"onecycle.{case}.lr"]).max() <= 1e-12 * rate
    assert all(len(found) == 1 for found in betas)
    firsts, seconds = zip(*(found for step in betas for found in step), strict=True)
    assert np.abs(np.array(firsts) - golden.arrays[f"onecycle.{case}.beta1"]).max() <= 1e-12
    assert set(seconds) == {0.999}


def test_momentum_is_the_optimizers_own_without_one_and_that_of_sgd_with_one() -> None:
    schedule = "schedule={name: one_cycle, rise: 0.5, momentum: [0.95, 0.85]}"
    for overrides, ends, lowest in ((("schedule={name: one_cycle}",), 0.7, 0.7), ((schedule,), 0.95, 0.85)):
        job = small_run("optimizer={name: sgd, lr: 0.01, momentum: 0.7}", "train.epochs=3", *overrides).job
        found: list[float] = []

        def note(record: StepRecord, stop: bool, job: TrainState = job, found: list[float] = found) -> bool:
            found.append(job.optimizer.param_groups[0]["momentum"])
            return False

        train(job, World(), note)
        assert found[0] == max(found) == found[-1] == ends
        assert lowest <= min(found) < lowest + 0.01  # an even number of steps has no middle one


def test_polynomial_is_torchs() -> None:
    ours = Polynomial(num_steps=30, steps_per_epoch=5)
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=30, power=0.9), 30)
    assert [ours(step) for step in range(30)] == pytest.approx(expected, rel=1e-12)


def test_a_skipped_step_does_not_advance_the_schedule(tmp_path: Path) -> None:
    """Two steps with gradients that overflow at fp16's first scale: the third has the rate of the first."""
    built = small_run("train.precision=fp16", "train.epochs=4", "schedule={name: cosine}", "optimizer.lr=1e-3")
    num_left = [2]

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        num_left[0] -= 1
        return gradient * (float("inf") if num_left[0] >= 0 else 1.0)

    built.job.model.embed.linear.weight.register_hook(overflow)
    rates: list[float] = []
    train(built.job, World(), lambda record, stop: rates.append(record.lr))
    assert built.job.num_skipped == 2
    assert rates == [1e-3 * built.job.schedule(max(0, step - 2)) for step in range(built.job.num_steps)]


@pytest.mark.parametrize("make", [Constant, Cosine])
def test_warm_up_rises_linearly_and_never_starts_at_zero(make: type) -> None:
    schedule = make(num_steps=40, steps_per_epoch=10, warmup_epochs=0.4)
    assert [schedule(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert schedule(4) == 1.0


def test_cosine_after_warm_up_spans_what_remains() -> None:
    schedule = Cosine(num_steps=24, steps_per_epoch=4, warmup_epochs=1.0)
    assert schedule(4 + 10) == pytest.approx(0.5)  # half of the 20 remaining steps
    assert schedule(23) == pytest.approx(0.5 * (1 + math.cos(math.pi * 19 / 20)))


def test_a_share_of_the_run_warms_up_a_run_of_any_length() -> None:
    """A tenth of 100 steps, and of 10: the rise has ten steps, and one; by default a hundred, or a fifth of few."""
    for num_steps, floor, expected in (
        *((100, 0, 10), (10, 0, 1), (4, 0, 0)),
        *((100, 100, 20), (10, 100, 2), (4, 100, 0), (400, 100, 80), (800, 100, 100), (2000, 100, 200), (100, 15, 15)),
    ):
        factor = Cosine(num_steps=num_steps, steps_per_epoch=num_steps, warmup_share=0.1, warmup_min_steps=floor)
        assert factor.warmup_steps == expected
        assert [factor(step) for step in range(expected)] == [(s + 1) / (expected + 1) for s in range(expected)]
        assert factor(expected) == 1.0
    for schedule in (Cosine, Constant, Exponential):
        given = {"num_steps": 200, "steps_per_epoch": 10}
        assert schedule(**given, warmup_share=0.02).warmup_steps == 40
        assert schedule(**given).warmup_steps == 0, "no warm-up is none"
        assert schedule(**given, warmup_epochs=0.4).warmup_steps == 4, "epochs are as they are stated"
    with pytest.raises(ConfigError, match=r"warmup_share: found 0\.9, which is every step of a run of 1; .*=0$"):
        Cosine(num_steps=1, steps_per_epoch=10, warmup_share=0.9)
    with pytest.raises(ConfigError, match="warmup_share: warmup_epochs is given as well"):
        Cosine(num_steps=10, steps_per_epoch=10, warmup_share=0.1, warmup_epochs=1)


@pytest.mark.parametrize("case", range(4))
def test_exponential_is_that_of_the_reference(shared: Path, case: int) -> None:
    folder = shared / "golden" / "lidar"
    info = json.loads((folder / "warmup_schedule.json").read_text())["cases"][case]
    with np.load(folder / "warmup_schedule.npz", allow_pickle=False) as golden:
        expected = golden[f"case{case}/lr"] / info["lr"]
    ours = Exponential(
        num_steps=100, steps_per_epoch=1, decay=info["decay_per_step"], warmup_epochs=float(info["warmup_steps"])
    )
    assert [ours(step) for step in range(len(expected))] == pytest.approx(expected.tolist(), rel=1e-12)


def test_exponential_decays_by_its_factor_in_an_epoch() -> None:
    ours = Exponential(num_steps=1000, steps_per_epoch=50, decay=0.9, warmup_epochs=1.0)
    assert ours(150) / ours(100) == pytest.approx(0.9, rel=1e-12)
    with pytest.raises(
        ConfigError, match=r"found 20 epochs of warm-up, but the whole run has 20; .*schedule\.warmup_epochs=0$"
    ):
        Exponential(num_steps=1000, steps_per_epoch=50, warmup_epochs=20.0)


# --- weights of losses that move: values worked by hand, what a step makes of them, and its records -------------------


RAMP = "losses.1.weight={start: 0.0, end: 3.0, epochs: 1}"
PENALTY = "feature_transform_penalty"
CONFIG = "configs/classify/synthetic_shapes_pointnet.yaml"


def records_of(*overrides: str) -> list[StepRecord]:
    built = small_run(*overrides)
    records: list[StepRecord] = []
    train(built.job, World(), lambda record, stop: bool(records.append(record)))
    return records


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (LinearRamp(0.0, 3.0, 2.0), [0.0, 0.75, 1.5, 2.25, 3.0, 3.0]),  # two epochs of two steps: 3/4 a step
        (LinearRamp(2.0, 1.0, 1.0), [2.0, 1.5, 1.0, 1.0, 1.0, 1.0]),
        (LinearRamp(1.0, 2.0, 0.1), [2.0] * 6),  # a fifth of a step is no step
    ],
)
def test_values_by_hand(ramp: LinearRamp, expected: list[float]) -> None:
    assert [ramp.value_at(step, steps_per_epoch=2) for step in range(6)] == expected


def test_the_total_of_every_step_uses_the_weight_of_that_step() -> None:
    """60 shapes of 12 classes, one of each held out: 48, so 6 steps of 8 an epoch, and half a unit of weight a step."""
    records = records_of(RAMP)
    expected = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5] + [3.0] * 6
    assert [record.extra_scalars[f"weight/{PENALTY}"] for record in records] == expected
    for record, weight in zip(records, expected, strict=True):
        total = record.losses["cross_entropy"] + weight * record.losses[PENALTY]
        assert record.losses["total"] == pytest.approx(total, rel=1e-12)


def test_a_step_is_that_of_the_fixed_weight() -> None:
    """The first step weighs the penalty 0: it is the step of a run without it; the second is not."""
    without = records_of("losses.1.weight=0.0", "train.steps=3")
    ramped = records_of(RAMP, "train.steps=3")
    assert [ramped[step].grad_norm == without[step].grad_norm for step in range(3)] == [True, False, False]
    fixed = records_of("losses.1.weight=2.5", "train.steps=1")
    started = records_of("losses.1.weight={start: 2.5, end: 0.0, epochs: 1}", "train.steps=1")
    assert fixed[0].grad_norm == started[0].grad_norm


def test_fixed_weights_are_not_logged() -> None:
    assert not any(name.startswith("weight/") for name in records_of("train.steps=1")[0].extra_scalars)


@pytest.mark.long
def test_a_resumed_run_has_the_bits_of_the_unbroken_one(tmp_path: Path) -> None:
    """Broken off at step 3, in the middle of the ramp."""
    words = [*SMALL, RAMP, "log.every=1", "checkpoint.every_steps=3", "checkpoint.keep_last=9"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    succeed("train", CONFIG, *words, "--out", whole, "--no-check")
    shutil.copytree(whole, part, symlinks=True)
    (part / "final.json").unlink()
    third = part / "checkpoints" / "step_00000003"
    succeed("train", CONFIG, *words, "--out", part, "--resume", third, "--no-check")
    weights = [(run / "checkpoints/last/model.safetensors").read_bytes() for run in (whole, part)]
    assert weights[0] == weights[1]
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, part)]
    totals = [[line["loss/total"] for line in each if line["split"] == "train"] for each in lines]
    assert totals[0] == totals[1]
    told = [line[f"weight/{PENALTY}"] for line in lines[1] if line["split"] == "train"]
    assert told == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5] + [3.0] * 6


def test_checks_pass_over_a_term_that_weighs_nothing_at_first() -> None:
    from sightline.workbench.check.suite import run_quick

    torch.use_deterministic_algorithms(False)
    assert [f.code for f in run_quick(small_run(RAMP), World()) if f.severity == "error"] == []
