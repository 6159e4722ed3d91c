"""The forward pass of a step, on numbers that are worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.engine.device import Precision
from sightline.engine.distributed import World
from sightline.engine.step import StepTimer, compute_batch_losses, prepare_step, single_batch_step, weighted_sum
from sightline.types import Batch

CPU = torch.device("cpu")


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Sizes:
    """The sum of the outputs and of their squares; notes whether autocast was on, and in which world it was asked."""

    def __init__(self) -> None:
        self.lowered: list[bool] = []
        self.worlds: list[World] = []

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: World
    ) -> tuple[Mapping[str, Tensor], Sequence[Any]]:
        self._note()
        self.worlds.append(world)
        count = torch.tensor(sum(len(batch["x"]) for batch in micro_batches))
        return {"size": count, "square": count}, [f"part {place}" for place in range(len(micro_batches))]

    def losses(self, model: nn.Module, batch: Batch, context: Any) -> Mapping[str, Tensor]:
        self._note()
        assert context == batch["context"]
        outputs = model(batch["x"])
        return {"size": outputs.sum(), "square": outputs.square().sum()}

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        return {"doubled": model(batch["x"])}

    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: Any
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return self.losses(model, batch, context), self.predict(model, batch)

    def _note(self) -> None:
        self.lowered.append(torch.is_autocast_enabled("cpu"))


def part(place: int, *numbers: float) -> Batch:
    return {"x": torch.tensor(numbers, dtype=torch.float64), "context": f"part {place}"}


def test_shares_of_the_micro_batches_add_up_to_the_mean_over_the_step() -> None:
    """Outputs 2, 4 and 6: a mean of 4, and of squares 56 / 3; a mean of both parts' means would be 4.5."""
    step = prepare_step(Sizes(), Doubled(), [part(0, 1.0, 2.0), part(1, 3.0)], World())
    shares = [step.loss_means(step.loss_sums(Doubled(), index)) for index in range(2)]
    assert [share["size"].item() for share in shares] == [2.0, 2.0]
    loss = sum(weighted_sum(share, {"size": 0.5, "square": 3.0}) for share in shares)
    assert float(loss) == pytest.approx(0.5 * 4 + 56, abs=1e-12)


def test_a_batch_is_a_step_of_its_own_on_one_process() -> None:
    task = Sizes()
    sums, counts = compute_batch_losses(task, Doubled(), part(0, 1.0, 2.0), CPU)
    assert {name: (float(sums[name]), float(counts[name])) for name in sums} == {"size": (6, 2), "square": (20, 2)}
    again, predictions = single_batch_step(task, Doubled(), part(0, 1.0, 2.0), CPU).loss_sums_and_predictions(Doubled())
    assert torch.equal(again["square"], sums["square"])
    assert predictions["doubled"].tolist() == [2.0, 4.0]
    assert [(world.size, world.device) for world in task.worlds] == [(1, CPU), (1, CPU)]


@pytest.mark.parametrize("name", ["float32", "float64", "bf16"])
def test_autocast_is_on_while_the_task_works_where_the_precision_lowers(name: str) -> None:
    task = Sizes()
    compute_batch_losses(task, Doubled(), part(0, 1.0), CPU, Precision(name))
    assert task.lowered == [name == "bf16"] * 2
    assert not torch.is_autocast_enabled("cpu")


class Timed:
    """A task that may report its parts."""

    def __init__(self) -> None:
        self.on_phase_end = lambda part: None


def test_the_clock_parts_the_forward_pass_where_the_task_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks once a look: two micro-batches, the second reported in parts as well."""
    ticks = iter(range(100))
    monkeypatch.setattr("sightline.engine.step.time.perf_counter", lambda: float(next(ticks)))
    task = Timed()
    clock = StepTimer(task, remainder="loss")  # type: ignore[arg-type]
    clock.end_phase("prepare")
    for _ in range(2):
        task.on_phase_end("forward")
        clock.end_phase("forward")
        clock.end_phase("backward")
    assert clock.seconds == {"prepare": 1.0, "forward": 2.0, "loss": 2.0, "backward": 2.0}
    evaluation = StepTimer(task, remainder="interpret")  # type: ignore[arg-type]
    for part in ("forward", "loss"):
        task.on_phase_end(part)
    evaluation.end_phase("forward")
    assert evaluation.seconds == {"forward": 1.0, "loss": 1.0, "interpret": 1.0}


def test_a_task_without_parts_has_its_losses_in_the_forward_pass() -> None:
    clock = StepTimer(Sizes(), remainder="loss")
    clock.end_phase("forward")
    assert set(clock.seconds) == {"forward"}
