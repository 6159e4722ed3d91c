"""Steps whose numbers a device keeps until the host asks: the same run, and a failure is named by its step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from sightline.contract.errors import RunError
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.queued_step import Gate
from sightline.engine.train import NonFiniteGradientError, TrainState
from sightline.ops.waits import require
from tests.engine.told import records_of
from tests.runs.small import PLAIN, small_run
from tests.waits import counted_waits, device_form

EVERY = 4
NUM_STEPS = 10


def is_fourth(step: int) -> bool:
    return step % EVERY == 0


def make_job(*overrides: str) -> TrainState:
    job = small_run(f"train.steps={NUM_STEPS}", "train.ema_decay=0.9", *PLAIN, *overrides).job
    torch.manual_seed(1)
    return job


def numbers(job: TrainState) -> dict[str, Tensor]:
    assert job.ema is not None
    return {**job.model.state_dict(), **{f"ema of {name}": value for name, value in job.ema.state_dict().items()}}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_steps_that_are_read_later_are_the_same(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [make_job(f"optimizer={{name: {optimizer}, lr: 0.01}}") for _ in range(2)]
    with device_form(monkeypatch):
        at_once = records_of(jobs[0])
        torch.manual_seed(1)
        later = records_of(jobs[1], is_read_after=is_fourth)
    for one, other in zip(at_once, later, strict=True):
        assert dataclasses.replace(one, seconds={}, wall_s=0.0) == dataclasses.replace(other, seconds={}, wall_s=0.0)
    assert [record.step for record in later] == [*range(1, NUM_STEPS + 1)]
    for (name, ours), theirs in zip(numbers(jobs[1]).items(), numbers(jobs[0]).values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_only_steps_that_are_read_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps, of which the fourth, the eighth and the last are read."""
    job = make_job()
    with counted_waits(monkeypatch) as waits:
        records_of(job, is_read_after=is_fourth)
    of_batches = ("batch_reader.py", "batches/sampler.py", "synthetic_shapes.py")
    assert {place: number for place, number in waits.items() if not place.endswith(of_batches)} == {
        "tolist at engine/queued_step.py": 3
    }


@pytest.mark.parametrize(("kind", "optimizer"), [("number", "adam"), ("check", "sgd"), ("number", "rmsprop")])
@pytest.mark.parametrize("step", [0, 3, 5, 9])
def test_a_step_that_failed_leaves_the_weights_before_it(
    step: int, kind: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle and at the end of an interval: weights, averages and step are those of a run that ended before."""
    before, failed = (make_job(f"optimizer={{name: {optimizer}, lr: 0.01}}") for _ in range(2))

    def plant(module: object, inputs: object, output: Tensor) -> Tensor:
        is_failing = failed.step == step
        if kind == "number":
            return output * math.inf if is_failing else output
        require(torch.tensor(not is_failing), lambda: ValueError("a planted check"))
        return output

    failed.model.encode[0].register_forward_hook(plant)
    expected = pytest.raises(NonFiniteGradientError, match=f"step {step}: the gradient's norm is nan")
    with device_form(monkeypatch):
        if step:
            train(before, World(), lambda record, stop: record.step == step)
        torch.manual_seed(1)
        with expected if kind == "number" else pytest.raises(ValueError, match="a planted check"):
            records_of(failed, is_read_after=is_fourth)
    assert failed.step == step
    wanted = numbers(before)
    for name, ours in numbers(failed).items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(ours, wanted[name]), name


def test_a_failure_that_does_not_repeat_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    job, calls = make_job(), iter(range(100))
    job.model.encode[0].register_forward_hook(lambda module, inputs, out: out * math.nan if next(calls) == 1 else out)
    with device_form(monkeypatch), pytest.raises(RunError, match=r"step 1: .* computed again, the step has neither"):
        records_of(job, is_read_after=is_fourth)


def test_a_gate_stays_closed_until_it_is_opened() -> None:
    gate = Gate(torch.device("cpu"), 1)
    for values, is_closed in (([1.0, 2.0], 0.0), ([1.0, math.nan], 1.0), ([0.0], 1.0)):
        gate.close_unless_finite(torch.tensor(values, dtype=torch.float64))
        assert gate.is_closed.item() == is_closed
    gate.open()
    gate.close_unless_finite(torch.tensor([-math.inf], dtype=torch.float64))
    assert gate.is_closed.item() == 1.0
