"""A task with a teacher: its numbers by hand, what else is its parent's, and windows."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.binding import AvailableKeys
from sightline.contract.types import Batch
from sightline.engine.distributed import World
from sightline.engine.step import StepTimer, prepare_step, single_batch_step
from sightline.parts.losses.classification import CrossEntropy, Distillation
from sightline.parts.tasks.distillation import DistillationTask, add_teacher_keys, unwrap_distillation
from sightline.parts.tasks.segment import Segment
from sightline.parts.tasks.supervised import Supervised
from sightline.workbench.check.loss_subjects import FixedOutputs
from tests.contract.clouds import RaggedNet

CPU = torch.device("cpu")
CLASSES = 3
OUTPUTS = AvailableKeys("the model", ("logits",))
KEYS = AvailableKeys("the data", ("points", "offsets", "label"))
LOSSES = {
    "ce": CrossEntropy(num_classes=CLASSES, ignore_index=-1),
    "kl": Distillation(num_classes=CLASSES, ignore_index=-1, temperature=2.0),
}


def net(seed: int, *, width: int = 12) -> nn.Module:
    """A network of points with a dropout, drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = RaggedNet().double()
        made.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Dropout(0.5), nn.Linear(width, CLASSES)).double()
    return made


def scene(*sizes: int, seed: int = 0) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    points = torch.rand(sum(sizes), 3, generator=draws, dtype=torch.float64)
    label = torch.randint(-1, CLASSES, (sum(sizes),), generator=draws)
    return {"points": points, "offsets": torch.tensor([0, *np.cumsum(sizes)]), "label": label}


def distilled(student: nn.Module, teacher: nn.Module, **of_task: Any) -> DistillationTask:
    lessons = Segment(model=teacher, losses={}, batch_keys=KEYS, output_keys=OUTPUTS, **of_task)
    keys = add_teacher_keys(KEYS, OUTPUTS)
    parent = Segment(model=student, losses=LOSSES, batch_keys=keys, output_keys=OUTPUTS, **of_task)
    return DistillationTask(parent, teacher=teacher, teacher_task=lessons)


def kl_of(student: Tensor, teacher: Tensor, label: Tensor, *, temperature: float = 2.0) -> float:
    """T^2 times the mean divergence of the counted rows, by SciPy."""
    own, other = (softmax(each.detach().numpy() / temperature, axis=1) for each in (student, teacher))
    return temperature**2 * float(entropy(other, own, axis=1)[(label != -1).numpy()].mean())


def test_a_step_is_the_one_written_by_hand() -> None:
    """The gradient of 0.3 cross-entropy + 0.7 divergence of two micro-batches, against torch on all points."""
    student, teacher = net(0).eval(), net(1, width=30)
    by_hand = copy.deepcopy(student)
    parts = [scene(5, 9), scene(7, seed=1)]
    task = distilled(student, teacher)
    step = prepare_step(task, student.train(), parts, World())
    student.net[2].p = 0.0
    for index in range(2):
        means = step.loss_means(step.loss_sums(student, index))
        (0.3 * means["ce"] + 0.7 * means["kl"]).backward()

    label = torch.cat([part["label"] for part in parts])
    logits = torch.cat([by_hand(points=p["points"], offsets=p["offsets"])["logits"] for p in parts])[label != -1]
    target = torch.cat([teacher(points=p["points"], offsets=p["offsets"])["logits"] for p in parts])[label != -1]
    soft = F.softmax(target / 2.0, dim=1)
    divergence = (soft * (soft.log() - F.log_softmax(logits / 2.0, dim=1))).sum(dim=1).mean()
    (0.3 * F.cross_entropy(logits, label[label != -1]) + 0.7 * 4.0 * divergence).backward()
    for ours, theirs in zip(student.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_the_teacher_draws_nothing_and_learns_no_statistics() -> None:
    student, teacher = net(0).train(), net(1).train()
    teacher.norm = nn.BatchNorm1d(3).double()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task, batch = distilled(student, teacher), scene(8)
    state = torch.random.get_rng_state()
    first, second = (task.prepare(student, [batch], World())[1][0][0]["teacher_logits"] for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_all_else_is_the_parents() -> None:
    student = net(0)
    task = distilled(student, net(1))
    assert unwrap_distillation(task) is task.parent
    assert unwrap_distillation(task.parent) is task.parent
    assert task.predicts == Segment.predicts
    assert task.vote == task.parent.vote
    assert task.step_counts([({}, {})]) == {}
    assert task.step_metrics == task.parent.step_metrics
    assert copy.copy(task).parent is task.parent
    with pytest.raises(AttributeError):
        _ = task.nothing_of_this_name
    batch = scene(6)
    assert torch.equal(
        task.predict(student.eval(), batch)["probabilities"], task.parent.predict(student, batch)["probabilities"]
    )
    clock = StepTimer(task, remainder="interpret")
    single_batch_step(task, student, batch, CPU).loss_sums_and_predictions(student)
    assert {"forward", "loss"} <= clock.seconds.keys()


def test_tallies_are_of_the_parents_contexts() -> None:
    class Counting(Supervised):
        context_keys = frozenset({"size"})

        def context(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
            return {"size": len(batch["teacher_logits"])}

        def step_counts(self, contexts: Any) -> dict[str, Tensor]:
            return {"points": torch.tensor(sum(each["size"] for each in contexts))}

    student, teacher = net(0), net(1)
    lessons = Supervised(model=teacher, losses={}, batch_keys=KEYS, output_keys=OUTPUTS)
    parent = Counting(model=student, losses=LOSSES, batch_keys=add_teacher_keys(KEYS, OUTPUTS), output_keys=OUTPUTS)
    task = DistillationTask(parent, teacher=teacher, teacher_task=lessons)
    step = prepare_step(task, student, [scene(4), scene(5)], World())
    assert task.step_counts(step.contexts) == {"points": 9}
    assert step.loss_sums_and_predictions(student)[1]["size"] == 4


@pytest.mark.parametrize("of_task", [{"max_points": 6}, {"blocks": {"size_m": 0.5, "stride_m": 0.5, "num_points": 8}}])
def test_in_windows_the_teacher_sees_those_of_the_student(of_task: dict[str, Any]) -> None:
    student, teacher = net(0).eval(), net(1, width=20)
    if "blocks" in of_task:
        student, teacher = _OfBlocks(student), _OfBlocks(teacher)
    student.eval()
    task, batch = distilled(student, teacher, ignore_index=-1, **of_task), scene(20, 15)
    logits = [task.parent.evaluated_outputs(network, batch)["logits"] for network in (student, teacher)]
    step = single_batch_step(task, student, batch, CPU)
    sums, predictions = step.loss_sums_and_predictions(student)
    assert step.loss_means(sums)["kl"].item() == pytest.approx(kl_of(*logits, batch["label"]), rel=1e-12)
    torch.testing.assert_close(predictions["probabilities"], logits[0].softmax(1))
    if "max_points" in of_task:
        assert not torch.allclose(logits[1], teacher(points=batch["points"], offsets=batch["offsets"])["logits"])


class _OfBlocks(nn.Module):
    """Takes windows of one number of points (B, N, 3), or points one after another."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *, points: Tensor, offsets: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.net.net(torch.cat([points, points.amax(dim=-2, keepdim=True).expand_as(points)], -1))}


def test_a_step_in_another_format_has_a_teacher_in_it() -> None:
    """As `sightline compare` and `fit` run one; the teacher itself stays as it is."""
    teacher = net(1).float()
    task, batch = distilled(net(0), teacher), scene(6)
    narrow = {**batch, "points": batch["points"].float()}
    of_narrow, of_wide = (task.prepare(net(0), [each], World())[1][0][0]["teacher_logits"] for each in (narrow, batch))
    assert (of_narrow.dtype, of_wide.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(of_narrow.double(), of_wide, rtol=1e-5, atol=1e-6)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}


def test_a_stand_in_that_has_outputs_alone_is_taught() -> None:
    """Checks ask what losses make of outputs."""
    task, batch = distilled(net(0), net(1)), scene(6)
    logits = torch.zeros(6, CLASSES, dtype=torch.float64, requires_grad=True)
    sums = single_batch_step(task, FixedOutputs({"logits": logits}), batch, CPU).loss_sums(
        FixedOutputs({"logits": logits})
    )
    assert sums["kl"] > 0
