"""Where a gradient that is not finite began."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.pointnet import PointNetPlain, PointNetPlainOutput
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.step import StepTimer
from sightline.engine.train import NonFiniteGradientError, train_step
from sightline.parts.losses.classification import CrossEntropy
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.non_finite import diagnose_non_finite, explain_fault
from tests.doctor.planting import Wrapped, assert_complete, make, with_data, with_losses, with_model


class Roots(nn.Module):
    """The root of numbers, some of which are below zero."""

    def forward(self, values: Tensor) -> Tensor:
        return values.sqrt()


class Distance(nn.Module):
    """Adds each point's distance to the first point: 0 for that point itself, where the root has no slope."""

    def forward(self, values: Tensor) -> Tensor:
        squares = (values - values[:, :1]).square().sum(dim=-1, keepdim=True)
        return values + squares.sqrt()


class WithModule(PointNetPlain):
    """A PointNet with something odd after its first layer."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__(num_classes=12, in_channels=3, embedding=32, dropout=0.0)
        self.encode.insert(1, odd)


class Between(PointNetPlain):
    """Divides by zero between two modules, in its own forward."""

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        pooled = self.encode(points)
        return {"logits": self.head(pooled / (pooled - pooled))}


class OwnRoot(PointNetPlain):
    """Adds a length of 0 in its own forward, where the root has no slope."""

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        pooled = self.encode(points)
        length = (pooled - pooled).square().sum(dim=1, keepdim=True).sqrt()
        return {"logits": self.head(pooled) + length}


class LogOfZero(CrossEntropy):
    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        chosen = (logits - 1000).softmax(dim=-1).gather(1, (logits.argmin(1))[:, None])
        return -(chosen * 0).log().sum()


class RootOfZero(CrossEntropy):
    """Finite, and zero at zero, but without slope there."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return super().forward(logits=logits, label=label) + (logits * 0).sum().sqrt()


def failed(built: TrainingSetup, *, step: int = 3) -> NonFiniteGradientError:
    """The error that the loop raises at a step."""
    job = built.job
    job.step = step
    keys = [micro[0] for micro in job.stream.plan.step_keys(step)]
    batches = [to_device(job.stream.reader(part), torch.device("cpu")) for part in keys]
    with pytest.raises(NonFiniteGradientError) as caught_error:
        train_step(job, job.model, batches, World(), StepTimer(job.task, remainder="loss"))
    return caught_error.value


def explained(built: TrainingSetup, stage: str, cause: str) -> Finding:
    """The finding, after asserting that explaining leaves model and random state as they are."""
    error = failed(built)
    before = copy.deepcopy(error.job.model.state_dict())
    gradients = {name: p.grad.clone() for name, p in error.job.model.named_parameters() if p.grad is not None}
    state = torch.get_rng_state()
    finding = diagnose_non_finite(error, World())
    assert torch.equal(torch.get_rng_state(), state)
    after = error.job.model.state_dict()
    assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)
    for name, parameter in error.job.model.named_parameters():
        assert name not in gradients or torch.equal(gradients[name].nan_to_num(), parameter.grad.nan_to_num())
    assert (finding.evidence["stage"], finding.cause) == (stage, cause), str(finding)
    assert finding.where.step == 3
    assert finding.phase == "runtime"
    assert_complete(finding)
    return finding


def spoil(index: int) -> Any:
    def edit(batch: dict, keys: Any) -> dict:
        points = batch["points"].clone()
        points[batch["sample_index"] == index, 6, 2] = torch.nan
        return {**batch, "points": points}

    return lambda inner: Wrapped(inner, edit)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_in_the_data(tmp_path: Path, micro_batches: int) -> None:
    built = make(tmp_path, f"train.micro_batches={micro_batches}")
    index = built.job.stream.plan.step_keys(3)[-1][0][-1].index
    finding = explained(with_data(built, spoil(index)), "data", "data.corrupt_sample")
    assert finding.where.sample == index
    assert "points[" in finding.measured


def test_in_a_parameter(tmp_path: Path) -> None:
    built = make(tmp_path)
    with torch.no_grad():
        built.job.model.encode[2].linear.weight[3, 1] = torch.inf
    finding = explained(built, "parameter", "optim.nonfinite")
    assert finding.where.param == "encode.2.linear.weight"
    assert "1 of 4096 values" in finding.measured


def test_in_the_forward_pass_of_a_module(tmp_path: Path) -> None:
    built = with_model(make(tmp_path), WithModule(nn.Sequential(nn.Linear(64, 64), Roots())))
    finding = explained(built, "forward", "model.numerics")
    assert finding.where.layer == "encode.1.1"
    assert finding.where.sample in built.data.train.indices
    assert ".. " in finding.measured.split("its inputs: ")[1]


def test_in_the_forward_pass_between_modules(tmp_path: Path) -> None:
    built = with_model(make(tmp_path), Between(num_classes=12, in_channels=3, embedding=32))
    finding = explained(built, "forward", "model.numerics")
    assert "the model's own forward, after 'encode'" in finding.summary


def test_in_a_loss(tmp_path: Path) -> None:
    built = with_losses(make(tmp_path), {"cross_entropy": LogOfZero(num_classes=12)})
    finding = explained(built, "loss", "loss.form")
    assert finding.evidence["loss"] == "cross_entropy"
    keys = [key for micro in built.job.stream.step_keys(3) for key in micro]
    assert finding.where.sample == keys[0].index, "all samples of the step are at fault"


class LogOfClass(CrossEntropy):
    """Infinite for the samples of one class alone."""

    number = -1

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return super().forward(logits=logits, label=label) - (label - self.number).abs().log().sum()


def test_a_loss_of_some_samples_names_them(tmp_path: Path) -> None:
    loss = LogOfClass(num_classes=12)
    built = with_losses(make(tmp_path), {"cross_entropy": loss})
    dataset = built.data.train.dataset
    keys = [key for micro in built.job.stream.step_keys(3) for key in micro]
    loss.number = int(dataset[keys[1]]["label"])
    spoilt = [key.index for key in keys if int(dataset[key]["label"]) == loss.number]
    finding = explained(built, "loss", "loss.form")
    assert 0 < len(spoilt) < len(keys)
    assert finding.where.sample == spoilt[0]
    assert f"it is of sample {spoilt[0]}" in finding.measured


def test_in_the_backward_pass_of_a_module(tmp_path: Path) -> None:
    built = with_model(make(tmp_path), WithModule(Distance()))
    finding = explained(built, "backward", "model.numerics")
    assert finding.where.layer == "encode.1"
    assert finding.evidence["operation"] == "SqrtBackward0"


def test_in_the_backward_pass_of_the_models_own_forward(tmp_path: Path) -> None:
    """The model itself is a module of no name, and no loss."""
    built = with_model(make(tmp_path), OwnRoot(num_classes=12, in_channels=3, embedding=32))
    finding = explained(built, "backward", "model.numerics")
    assert finding.summary == "only the backward pass is not finite: SqrtBackward0 in the model's own forward"
    assert (finding.where.layer, finding.evidence["loss"]) == (None, None)


def test_in_the_backward_pass_of_a_loss(tmp_path: Path) -> None:
    built = with_losses(make(tmp_path), {"cross_entropy": RootOfZero(num_classes=12)})
    finding = explained(built, "backward", "loss.form")
    assert finding.evidence["loss"] == "cross_entropy"
    assert finding.evidence["operation"] == "SqrtBackward0"


def test_in_the_norm(tmp_path: Path) -> None:
    """Gradients of 1e30 are finite in float32, their squares are not."""
    built = make(tmp_path)
    job = dataclasses.replace(built.job, loss_weights={"cross_entropy": 1e30})
    finding = explained(dataclasses.replace(built, job=job), "norm", "optim.nonfinite")
    assert finding.where.param in dict(job.model.named_parameters())


@pytest.mark.parametrize("lr", ["1e3", "1e6"])
def test_a_rate_that_diverges_is_the_cause_and_the_place_only_shows_it(tmp_path: Path, lr: str) -> None:
    built = make(tmp_path, f"optimizer={{name: sgd, lr: {lr}}}", "train.epochs=5")
    with pytest.raises(NonFiniteGradientError) as caught_error:
        train(built.job, World(), lambda record, stop_requested: False)
    finding = diagnose_non_finite(caught_error.value, World())
    assert finding.cause == "optim.lr"
    assert f"diverges at a learning rate of {float(lr):.3g}" in finding.summary
    assert finding.evidence["largest_weight"] > 1e3
    assert_complete(finding)


def test_a_fault_is_due_to_the_rate_where_weights_are_out_of_proportion(tmp_path: Path) -> None:
    job = make(tmp_path).job
    error = ValueError("probabilities: 3 rows are NaN; find where with `sightline check`")
    job.step = 7
    assert explain_fault(error, job) is None
    with torch.no_grad():
        job.model.encode[2].linear.weight[0, 0] = 5e4
    finding = explain_fault(error, job)
    assert finding is not None
    assert (finding.cause, finding.where.param, finding.phase) == ("optim.lr", "encode.2.linear.weight", "runtime")
    words = "the training diverges at a learning rate of 0.1: after 7 steps weights reach 5e+04"
    assert finding.summary == f"{words}; probabilities: 3 rows are NaN"
    assert_complete(finding)
    job.step = 0
    assert explain_fault(error, job) is None, "no rate was used yet"


def test_a_fault_that_does_not_come_again(tmp_path: Path) -> None:
    built = make(tmp_path)
    job = built.job
    batch = to_device(job.stream.reader(job.stream.plan.step_keys(0)[0][0]), torch.device("cpu"))
    error = NonFiniteGradientError(job, [batch], {"cross_entropy": 1.0}, math.nan)
    finding = diagnose_non_finite(error, World())
    assert finding.cause == "sys.nondeterminism"
    assert_complete(finding)
    error = NonFiniteGradientError(job, [batch], {"cross_entropy": math.inf}, 0.5)
    finding = diagnose_non_finite(error, World())
    assert finding.measured.endswith("; in the run the loss 'cross_entropy' was inf")
    assert_complete(finding)


def test_ragged_rows_lead_to_their_sample(tmp_path: Path) -> None:
    from tests.contract.clouds import RaggedNet
    from tests.contract.toys import TOYS

    class Rooted(RaggedNet):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(1, Roots())

    toy = TOYS["segment"]
    model = Rooted().double()
    reader = BatchReader(toy.dataset)
    built = make(tmp_path)
    stream = dataclasses.replace(built.job.stream, reader=reader)
    job = dataclasses.replace(
        built.job, model=model, stream=stream, task=toy.task(model, reader.keys), loss_weights=toy.weights
    )
    keys = job.stream.plan.step_keys(0)[0][0][:5]
    finding = diagnose_non_finite(
        NonFiniteGradientError(job, [reader(keys)], dict.fromkeys(toy.weights, 1.0), math.nan), World()
    )
    assert finding.where.layer == "net.1"
    assert finding.where.sample in {key.index for key in keys}
