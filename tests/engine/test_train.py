"""The step on numbers worked out by hand, and the loop on a real model: precision, averages, clipping, freezing."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError
from sightline.contract.loss import Loss
from sightline.contract.task import Task
from sightline.contract.types import Batch
from sightline.engine.device.numerics import Precision, describe_nondeterminism, set_determinism
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.observers import MetricsLog
from sightline.engine.records import StepRecord
from sightline.engine.step import (
    StepTimer,
    compute_batch_losses,
    prepare_step,
    single_batch_step,
    weighted_sum,
    with_prepare,
)
from sightline.engine.train import NonFiniteGradientError, compute_ema_decay, update_ema
from sightline.runs.curves import encode_curves
from sightline.runs.run_directory import RunDirectory
from tests.cases import run_each
from tests.doctor.planting import with_losses
from tests.engine.told import records_of
from tests.runs.small import small_run
from tests.waits import device_form

# --- the forward pass of a step, on numbers that are worked out by hand ----------------------------------------------


CPU = torch.device("cpu")


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Sizes(Task):
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


# --- the loop on a real model: precision, averages, clipping, freezing, and non-finite gradients ----------------------


def run(*overrides: str, num_steps: int = 4) -> tuple[list[StepRecord], object]:
    built = small_run(*overrides, f"train.steps={num_steps}")
    return records_of(built.job), built.job


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lowered_precision_trains_close_to_float32(precision: str) -> None:
    """bf16 keeps 8 bits of mantissa: one step's loss is within a few times 2^-8 of float32's."""
    lowered, job = run(f"train.precision={precision}", "model.dropout=0.0", num_steps=3)
    exact, _ = run("model.dropout=0.0", num_steps=3)
    assert lowered[0].losses["cross_entropy"] == pytest.approx(exact[0].losses["cross_entropy"], rel=0.03)
    assert all(p.dtype == torch.float32 for p in job.model.parameters())
    assert lowered[0].losses != exact[0].losses


def test_the_average_takes_buffers_by_name_where_one_is_made_at_the_first_call() -> None:
    kept = torch.nn.BatchNorm1d(1)
    new = copy.deepcopy(kept)
    new.register_buffer("table", torch.ones(1))
    new.running_mean += 2.0
    update_ema(kept, new, 0.9)
    assert torch.equal(kept.running_mean, new.running_mean)
    kept.register_buffer("scratch", torch.zeros(1))  # made in an evaluation, which sees the average alone
    update_ema(kept, new, 0.9)
    assert torch.equal(kept.running_mean, new.running_mean)


def test_the_average_takes_buffers_of_any_size_over() -> None:
    """As of a cache of priors or positions, which the network makes anew for each size of its input."""
    model, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    for module, size in ((model, 5), (average, 3)):
        module.register_buffer("cache", torch.arange(size), persistent=False)
    update_ema(average, model, 0.9)
    assert torch.equal(average.cache, torch.arange(5))
    model.cache = torch.arange(2)[:, None]
    update_ema(average, model, 0.9)
    assert torch.equal(average.cache, torch.arange(2)[:, None])


def test_the_average_starts_from_the_first_weights_and_is_what_counts() -> None:
    """A tenth of them is left after one step, by hand: (1 + 0) / (10 + 0)."""
    _, job = run("train.ema_decay=0.9999999999", num_steps=1)
    fresh = small_run().job.model
    three = zip(job.evaluation_model.parameters(), fresh.parameters(), job.model.parameters(), strict=True)
    for kept, initial, trained in three:
        torch.testing.assert_close(kept, 0.1 * initial.detach() + 0.9 * trained.detach(), atol=1e-6, rtol=1e-5)
    assert not all(torch.equal(a, b) for a, b in zip(job.model.parameters(), fresh.parameters(), strict=True))


def test_the_average_of_a_short_training_has_no_initial_weights_left() -> None:
    """By hand: decays of 1/10, 2/11, 3/12, ...; 0.99 from step 890 on. 0.998 alone would leave 67 % after 200 steps."""
    assert [compute_ema_decay(0.99, step) for step in (0, 1, 2, 890, 5000)] == [1 / 10, 2 / 11, 3 / 12, 0.99, 0.99]
    assert compute_ema_decay(0.05, 0) == 0.05
    assert math.prod(compute_ema_decay(0.998, step) for step in range(200)) < 1e-12


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_clipping_bounds_the_step_and_not_the_record(precision: str) -> None:
    """Plain SGD without momentum moves the weights by lr * clipped norm exactly; the record keeps the norm before.

    Under fp16 both are of the gradients themselves, and not of those of the loss times its scale.
    """
    words = ("train.clip_norm=0.5", "train.steps=1", f"train.precision={precision}")
    built = small_run(*words, config="synthetic_shapes_dgcnn")
    if precision == "fp16":
        built.job.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # at 65536 the first step overflows
    before = copy.deepcopy(built.job.model)
    (record,) = records_of(built.job)
    pairs = zip(built.job.model.parameters(), before.parameters(), strict=True)
    moved = torch.cat([(after - start).flatten() for after, start in pairs])
    assert 0.5 < record.grad_norm < 100
    decay = 1e-4 * torch.cat([p.flatten() for p in before.parameters()]).norm()
    assert moved.norm().item() / record.lr == pytest.approx(0.5, abs=decay.item() + 1e-3)


def test_frozen_modules_do_not_move() -> None:
    frozen = "optimizer.frozen=[{modules: input_alignment}, {modules: head, until_epoch: 1}]"
    built = small_run(frozen, "train.steps=3")
    before = copy.deepcopy(built.job.model.state_dict())
    train(built.job, World(), lambda record, stop: False)
    after = built.job.model.state_dict()
    held = [name for name in before if name.startswith(("input_alignment.", "head."))]
    assert len(held) > 20
    assert all(torch.equal(before[name], after[name]) for name in held)
    assert not torch.equal(before["embed.linear.weight"], after["embed.linear.weight"])


def test_the_rate_of_a_record_is_the_highest_of_all_modules() -> None:
    """Modules nearer to the input learn at a tenth of the next one's rate; the head has the optimiser's."""
    records, _ = run(
        "optimizer.layer_decay={factor: 0.1}", "optimizer.lr=0.5", "schedule={name: constant}", num_steps=1
    )
    assert records[0].lr == 0.5


def test_a_non_finite_gradient_never_reaches_the_weights() -> None:
    built = small_run()
    before = copy.deepcopy(list(built.job.model.parameters()))
    built.job.model.embed.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    with pytest.raises(NonFiniteGradientError, match=r"step 0: the gradient's norm is nan .*cross_entropy nan"):
        train(built.job, World(), lambda record, stop: False)
    assert all(torch.equal(a, b) for a, b in zip(before, built.job.model.parameters(), strict=True))


class OwnLoss(Loss):
    """Cross entropy whose counts are given, and to whose sum a number is added, from the call `num_before` on."""

    def __init__(self, *counts: Tensor, added: float = 0.0, num_before: int = 0) -> None:
        super().__init__()
        self.counts, self.added, self.num_before = list(counts), added, num_before

    def count(self, *, label: Tensor) -> Tensor:
        return self.counts.pop(0) if self.counts else torch.tensor(len(label))

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        added, self.num_before = self.added if self.num_before <= 0 else 0.0, self.num_before - 1
        return nn.functional.cross_entropy(logits, label, reduction="sum") + added


@pytest.mark.parametrize("is_device", [False, True])
@run_each("added, weight", [(math.inf, 1.0), (math.nan, 1.0), (-math.inf, 0.0)])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    added: float, weight: float, is_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is finite: that of the cross entropy. A weight of 0 hides the value from no record."""
    precision = "fp16" if is_device else "float32"
    built = with_losses(small_run(f"train.precision={precision}"), {"cross_entropy": OwnLoss(added=added)})
    built.job.loss_weights = {"cross_entropy": weight}
    before = copy.deepcopy(list(built.job.model.parameters()))
    expected = pytest.raises(NonFiniteGradientError, match=rf"norm is \S+ \(losses: cross_entropy {added:g}\)")
    with device_form(monkeypatch) if is_device else contextlib.nullcontext(), expected:
        train(built.job, World(), lambda record, stop: False)
    assert all(torch.equal(a, b) for a, b in zip(before, built.job.model.parameters(), strict=True))


BAD_COUNTS = [(-3.0, "-3"), (math.nan, "nan"), (math.inf, "inf"), (-1, "-1")]


@run_each("bad, shown", BAD_COUNTS)
def test_a_count_that_no_sum_can_be_divided_by_is_named(bad: float, shown: str) -> None:
    """In one of two micro-batches, whose sum is a number like any other."""
    built = with_losses(small_run(), {"own": OwnLoss(torch.tensor(100.0), torch.tensor(bad))})
    batch = {"label": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(UserError, match=rf"losses.own: its count is {shown}, a finite number of at least 0 is needed"):
        built.job.task.prepare(built.job.model, [batch, batch], World())


@run_each(
    "returned, expected",
    [
        ([torch.tensor(True), torch.tensor(True)], 2),
        ([torch.tensor(200, dtype=torch.uint8), torch.tensor(100, dtype=torch.uint8)], 300),
        ([torch.tensor([[2.5]]), torch.tensor([1.0])], 3.5),
        ([torch.tensor(0), torch.tensor(0)], 0),
    ],
)
def test_counts_of_micro_batches_add_up_in_any_form(returned: list[Tensor], expected: float) -> None:
    built = with_losses(small_run(), {"own": OwnLoss(*returned)})
    batch = {"label": torch.zeros(4, dtype=torch.int64)}
    (count,) = built.job.task.prepare(built.job.model, [batch, batch], World())[0].values()
    assert (count.shape, count.item()) == ((), expected)


@pytest.mark.parametrize("precision", ["cpu", "float32", "fp16"])
@run_each("bad, shown", BAD_COUNTS)
def test_no_step_is_taken_with_such_a_count_of_any_task(
    bad: float, shown: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device, where nothing is read before the step's one transfer, as well."""
    built = small_run(f"train.precision={precision.replace('cpu', 'float32')}")
    counts = dict.fromkeys(built.job.loss_weights, torch.tensor(bad))
    built.job.task = with_prepare(built.job.task, lambda prepare, *words: (counts, prepare(*words)[1]))
    before = copy.deepcopy(list(built.job.model.parameters()))
    expected = pytest.raises(UserError, match=rf"losses.\w+: its count is {shown},")
    with device_form(monkeypatch) if precision != "cpu" else contextlib.nullcontext(), expected:
        train(built.job, World(), lambda record, stop: False)
    assert all(torch.equal(a, b) for a, b in zip(before, built.job.model.parameters(), strict=True))


def test_a_step_without_a_count_is_reported_once_with_its_samples(caplog: pytest.LogCaptureFixture) -> None:
    """Its loss is 0 there, which reads like a perfect one: all labels ignored, no boxes, no visible joints."""
    built = with_losses(small_run(), {"cross_entropy": OwnLoss(*map(torch.tensor, (4, 0, 0, 4)))})
    built.job.loss_weights = {"cross_entropy": 1.0}
    train(built.job, World(), lambda record, stop: record.step == 4)
    (message,) = [record.getMessage() for record in caplog.records if "nothing-counted" in record.getMessage()]
    samples = [key.index for key in built.job.stream.plan.step_keys(1)[0][0]]
    listed = ", ".join(map(str, samples[:6])) + (f" and {len(samples) - 6} more" if len(samples) > 6 else "")
    assert f"the count of cross_entropy is 0 at step 2 (samples {listed})" in message


def test_a_loss_that_counts_nothing_in_an_evaluation_has_no_figure(caplog: pytest.LogCaptureFixture) -> None:
    """Not 0, which would be the best; and not the warning of a loss that is not finite."""
    built = with_losses(small_run(), {"cross_entropy": OwnLoss(*[torch.tensor(0)] * 9)})
    evaluator = dataclasses.replace(built.test_evaluator, loss_names=("cross_entropy",))
    assert math.isnan(evaluator(built.job.model, World()).losses["cross_entropy"])
    assert not caplog.records


def test_an_evaluation_warns_of_a_loss_that_is_not_finite(caplog: pytest.LogCaptureFixture) -> None:
    built = with_losses(small_run(), {"cross_entropy": OwnLoss(added=math.inf, num_before=1)})
    evaluator = dataclasses.replace(built.test_evaluator, batch_size=5, loss_names=("cross_entropy",))
    assert evaluator(built.job.model, World()).losses == {"cross_entropy": math.inf}
    (message,) = [record.getMessage() for record in caplog.records if "non-finite-loss" in record.getMessage()]
    first, last = evaluator.indices[5], evaluator.indices[9]
    assert f"'cross_entropy' is inf in this evaluation, first in batch 1 (samples {first} to {last})" in message


def test_fp16_skips_while_its_scale_is_too_large_and_stops_where_that_is_not_the_reason() -> None:
    built = small_run("train.precision=fp16", "train.ema_decay=0.9", "train.epochs=20")
    before = copy.deepcopy(list(built.job.evaluation_model.parameters()))
    built.job.model.embed.linear.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteGradientError):
        train(built.job, World(), lambda record, stop: False)
    assert built.job.step == 16  # 65536 is halved sixteen times, to 1
    assert all(torch.equal(a, b) for a, b in zip(before, built.job.evaluation_model.parameters(), strict=True))


def test_fp16_stops_at_a_loss_that_is_not_a_number() -> None:
    built = small_run("train.precision=fp16")
    built.job.model.embed.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    with pytest.raises(NonFiniteGradientError):
        train(built.job, World(), lambda record, stop: False)
    assert built.job.step == 0


def test_strict_determinism_names_the_operation() -> None:
    try:
        set_determinism("strict")
        error = RuntimeError("index_add_cuda_ does not have a deterministic implementation, but you set ...")
        named = describe_nondeterminism(error)
        assert named is not None
        assert "'index_add_cuda_'" in str(named)
        assert describe_nondeterminism(RuntimeError("out of memory")) is None
    finally:
        set_determinism("seeded")
        torch.use_deterministic_algorithms(True)


def test_the_gradient_of_every_layer_is_reported_before_it_is_clipped() -> None:
    """Squares of the layers' norms add up to that of the whole gradient; asking for them changes no weight."""
    (with_them, job), (without, other) = (
        run(f"log.gradients={asked}", "train.clip_norm=0.001") for asked in ("true", "false")
    )
    named = {path for path, module in job.model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    for record, plain in zip(with_them, without, strict=True):
        norms = {name.removeprefix("gradient/"): value for name, value in record.extra_scalars.items()}
        assert norms.keys() == named
        assert math.hypot(*norms.values()) == pytest.approx(record.grad_norm, rel=1e-5)
        assert record.grad_norm > 0.001
        assert plain.extra_scalars == {}
    for name, tensor in job.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


def test_gradients_of_layers_are_drawn(tmp_path: Path) -> None:
    built = small_run("log.gradients=true", "log.every=1", "train.steps=3")
    path = next(name for name, _ in built.job.model.named_parameters()).rpartition(".")[0]
    directory = RunDirectory(tmp_path, is_writer=True)
    log = MetricsLog(directory, every=1)
    train(built.job, World(), lambda record, stop_requested: bool(log.on_step(record)))
    log.on_end("done")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line[f"gradient/{path}"] > 0 for line in lines] == [True] * 3
    assert f"gradient/{path}" in encode_curves({"": lines})


# --- nested batches ---------------------------------------------------------------------------------------------------


Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Boxes:
    corners: torch.Tensor
    names: tuple[str, ...]


def test_structures_keep_their_types() -> None:
    boxes = Boxes(torch.ones(4), ("y",))
    batch = {"a": [torch.zeros(2), (torch.ones(1), 3)], "b": Pair(torch.zeros(1), "x"), "c": boxes}
    moved = to_device(batch, torch.device("meta"), float_dtype=torch.float64)
    assert moved["a"][0].device.type == moved["c"].corners.device.type == "meta"
    assert isinstance(moved["b"], Pair)
    assert isinstance(moved["a"][1], tuple)
    assert moved["b"].right == "x"
    assert moved["c"].names == ("y",)
    assert moved["a"][0].dtype == torch.float64
    assert batch["a"][0].dtype == torch.float32


def test_integers_and_masks_keep_their_type() -> None:
    moved = to_device({"i": torch.arange(2), "m": torch.tensor([True])}, torch.device("cpu"), float_dtype=torch.float64)
    assert moved["i"].dtype == torch.int64
    assert moved["m"].dtype == torch.bool


def test_a_strange_leaf_is_named_by_its_path() -> None:
    with pytest.raises(TypeError, match=r"batch\['a'\]\[1\]: .*set"):
        to_device({"a": [1, {2}]}, torch.device("cpu"))
