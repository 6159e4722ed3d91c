"""How a watched loop calls its model and its loss, as its first step shows it: repeated with other batches, it is the
program's own loss; what cannot be repeated is said, and nothing of the loop changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline
from sightline.doctor.watch import watch as watch_room
from sightline.doctor.watch.observed import examine_step
from sightline.doctor.watch.watch import Watch
from tests.cases import run_each

Batch = tuple[Tensor, Tensor, Tensor]
Program = Callable[[nn.Module, Batch], Tensor]


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of the process compile, and functions are then not observed."""
    monkeypatch.setattr("torch._dynamo.eval_frame.cached_backends", {})


class Network(nn.Module):
    """Scores of rows, with a gate, which keeps the size of its hidden values."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, rows: Tensor, gate: Tensor | None = None) -> Tensor:
        hidden = self.body(rows).tanh()
        self.size = hidden.square().mean()
        return self.head(hidden if gate is None else hidden * gate[:, None])


class Named(Network):
    def forward(self, rows: Tensor, gate: Tensor | None = None) -> Any:
        return {"scores": super().forward(rows, gate), "rows": rows}


def draw(count: int, size: int = 16) -> Iterator[Batch]:
    """Draw batches of rows, classes and weights."""
    for _ in range(count):
        rows = torch.randn(size, 6)
        yield rows, rows[:, :3].argmax(1), torch.rand(size)


def follow(program: Program, *, model: nn.Module | None = None, steps: int = 4, **options: Any) -> Watch:
    torch.manual_seed(0)
    model = model or Network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sightline.watch(model, optimizer=optimizer, **options) as watch:
        for batch in draw(steps):
            optimizer.zero_grad()
            program(model, batch).backward()
            optimizer.step()
    return watch


def smooth(scores: Tensor, classes: Tensor, share: float = 0.1) -> Tensor:
    """Cross entropy by hand, sample by sample: its tape would count them."""
    logs = scores.log_softmax(1)
    own = torch.stack([-row[label] for row, label in zip(logs, classes, strict=True)])
    return ((1 - share) * own - share * logs.mean(1)).mean()


def add_in_place(model: nn.Module, batch: Batch) -> Tensor:
    rows, classes, _ = batch
    scores = model(rows)
    value = F.cross_entropy(scores, classes)
    (scores.argmax(1) == classes).float().mean().item()
    value += 0.01 * scores.square().mean()
    return value / 2


def weigh(model: nn.Module, batch: Batch) -> Tensor:
    rows, classes, weights = batch
    scores, counted = model(rows), (weights > 0.3).float()
    total = counted.sum().item()
    return (F.cross_entropy(scores, classes, reduction="none") * counted).sum() / total


def scale(model: nn.Module, batch: Batch) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.cross_entropy(model(batch[0]), batch[1])


CRITERION = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))


@dataclass
class Case:
    """Program, and what its inputs and its target are in words of a batch."""

    program: Program
    split: Callable[[Batch], tuple[Any, Any]]
    model: type[nn.Module] = Network
    loss: Any = None


CASES = {
    "a function": Case(lambda m, b: F.cross_entropy(m(b[0]), b[1]), lambda b: (b[0], b[1])),
    "a module": Case(lambda m, b: CRITERION(m(b[0]), b[1]), lambda b: (b[0], b[1])),
    "a named module": Case(lambda m, b: CRITERION(m(b[0]), b[1]) / 4, lambda b: (b[0], b[1]), loss=CRITERION),
    "a named function": Case(lambda m, b: smooth(m(b[0]), b[1], share=0.2), lambda b: (b[0], b[1]), loss=smooth),
    "two inputs": Case(lambda m, b: F.cross_entropy(m(b[0], b[2]), b[1]), lambda b: ((b[0], b[2]), b[1])),
    "inputs by name": Case(
        lambda m, b: F.cross_entropy(m(rows=b[0], gate=b[2]), b[1]), lambda b: ({"rows": b[0], "gate": b[2]}, b[1])
    ),
    "a mapping": Case(lambda m, b: F.cross_entropy(m(b[0])["scores"], b[1]), lambda b: (b[0], b[1]), Named),
    "in place": Case(add_in_place, lambda b: (b[0], b[1])),
    "a number that is read": Case(weigh, lambda b: (b[0], ((b[2] > 0.3).float(), b[1]))),
    "what the model keeps": Case(lambda m, b: F.cross_entropy(m(b[0]), b[1]) + m.size, lambda b: (b[0], b[1])),
    "a penalty of weights": Case(
        lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 0.1 * sum(p.square().sum() for p in m.parameters()),
        lambda b: (b[0], b[1]),
    ),
    "a call that the loss does not read": Case(
        lambda m, b: F.cross_entropy((m(b[0]), m(b[0]))[1], b[1]), lambda b: (b[0], b[1])
    ),
    "two calls": Case(lambda m, b: F.mse_loss(m(b[0]), m(b[0], b[2])), lambda b: ((b[0], (b[0], b[2])), ())),
}


@run_each("name, case", list(CASES.items()))
def test_the_form_is_the_programs_own_loss_of_other_batches(name: str, case: Case) -> None:
    watch = follow(case.program, model=case.model(), loss=case.loss)
    assert watch.observation is not None
    assert watch.observation.examined is not None, watch.report.verdict
    assert not [line for line in watch.report.verdict if "the first step" in line]
    form, model = watch.observation.examined.form, case.model()
    for batch in draw(2):
        inputs, target = case.split(batch)
        again = form.evaluate(model, form.call(model, inputs), target)
        assert torch.allclose(again, case.program(model, batch), rtol=1e-5)


def match_by_numpy(model: nn.Module, batch: Batch) -> Tensor:
    scores = model(batch[0])
    order = torch.from_numpy(scores.detach().numpy().argsort(0)[:, 0].copy())
    return F.cross_entropy(scores, batch[1][order])


def change_a_list(seen: list[float]) -> Program:
    def program(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(1.0 + len(seen))
        return seen[-1] * F.cross_entropy(model(batch[0]), batch[1])

    return program


def read_slopes(model: nn.Module, batch: Batch) -> Tensor:
    rows = batch[0].requires_grad_()
    scores = model(rows)
    (slope,) = torch.autograd.grad(scores.sum(), rows, create_graph=True)
    return F.cross_entropy(scores, batch[1]) + slope.square().mean()


def write_outside(model: nn.Module, batch: Batch) -> Tensor:
    scores = model(batch[0])
    scores[:, 0] = 0
    return F.cross_entropy(scores, batch[1])


def go_on(model: nn.Module, batch: Batch) -> Tensor:
    scores = model(batch[0])
    return F.cross_entropy(model(torch.cat((scores, scores), 1)), batch[1])


def draw_again(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(F.dropout(model(batch[0]), 0.5), batch[1])


REFUSED = {
    "reads numbers from outside": match_by_numpy,
    "other constants": change_a_list([]),
    "has not made": write_outside,
    "its loss, repeated, is": draw_again,
}


@run_each("reason, program", list(REFUSED.items()))
def test_what_cannot_be_repeated_is_said(reason: str, program: Program) -> None:
    watch = follow(program)
    assert watch.findings == []
    (line,) = [line for line in watch.report.verdict if "not judged" in line]
    assert reason in line


@run_each("program", [read_slopes, go_on])
def test_a_step_that_does_not_divide_is_repeated_as_a_whole(program: Program) -> None:
    """Its loss and its gradients are those of the program, for the weights of a copy."""
    watch, model = follow(program), Network()
    assert watch.findings == []
    assert watch.observation is not None
    assert watch.observation.examined is not None, watch.report.verdict
    form, (inputs, _) = watch.observation.examined.form, watch.observation.examined.batch
    assert not form.is_divided
    rows, classes = sorted(inputs, key=lambda tensor: -tensor.ndim)
    values = form.evaluate(model, form.call(model, inputs), ()), program(model, (rows.clone(), classes, rows))
    own, expected = (torch.autograd.grad(value, list(model.parameters())) for value in values)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(own, expected)


def test_a_memory_that_steps_write_to_is_that_of_before_the_step_each_time() -> None:
    """What copies are asked leaves it as it is; each step is compared with what it found in the memory."""

    def train(watches: bool) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        memory, place, model = torch.randn(40, 3), torch.tensor(0), Network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        watch = sightline.watch(model, optimizer=optimizer) if watches else nullcontext()
        with watch:
            for rows, classes, _ in draw(5):
                scores = model(rows)
                memory[(place + torch.arange(4)) % 40] = scores[:4].detach()
                place += 4
                loss = F.cross_entropy(scores, classes) + 0.01 * (scores @ memory.clone().T).logsumexp(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return memory, watch

    (plain, _), (memory, watch) = train(False), train(True)
    assert torch.equal(memory, plain)
    assert watch.observation.examined is not None, watch.report.verdict
    assert not [line for line in watch.report.verdict if "the first step" in line]
    examined = watch.observation.examined
    outputs = examined.form.call(Network(), examined.batch.inputs)
    values = {float(examined.form.evaluate(examined.model, outputs, examined.batch.target)) for _ in range(2)}
    assert len(values) == 1


@pytest.mark.parametrize("is_first", [False, True])
def test_each_of_several_models_is_examined_by_its_own_loss(is_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A maker's loss is computed by its critic; the critic's reads what the maker has made before, or is held."""
    torch.manual_seed(0)
    maker, critic = Network(), nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizers = [torch.optim.SGD(each.parameters(), 0.05) for each in (maker, critic)]
    kept: list[Any] = []

    def keep(examined: Any, **words: Any) -> Any:
        kept.append(examined)
        return examine_step(examined, **words)

    monkeypatch.setattr(watch_room, "examine_step", keep)
    with sightline.watch({"maker": maker, "critic": critic}, optimizer=optimizers) as watch:
        for rows, classes, _ in draw(8):
            for turn in (0, 1) if is_first else (1, 0):
                made = maker(rows)
                if turn:
                    real = F.one_hot(classes, 3).float()
                    value = F.softplus(critic(made.detach())).mean() + F.softplus(-critic(real)).mean()
                else:
                    value = F.softplus(-critic(made)).mean()
                optimizers[turn].zero_grad()
                value.backward()
                optimizers[turn].step()
    assert watch.findings == []
    assert not [line for line in watch.report.verdict if "the first step" in line]
    assert [type(each.model) for each in kept] == [Network, nn.Sequential][:: 1 if is_first else -1]
    for examined in kept:
        form, batch, model = examined.form, examined.batch, examined.model
        value = form.evaluate(model, form.call(model, batch.inputs), batch.target)
        if model is maker:
            torch.testing.assert_close(value, F.softplus(-critic(maker(batch.inputs))).mean())
        else:
            made, real = batch.inputs
            torch.testing.assert_close(value, F.softplus(critic(made)).mean() + F.softplus(-critic(real)).mean())


def test_scaled_and_rounded_losses_are_observed() -> None:
    torch.manual_seed(0)
    model, scaler = Network(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for batch in draw(3):
            optimizer.zero_grad()
            scaler.scale(scale(model, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watch.observation is not None
    assert watch.observation.examined is not None, watch.report.verdict
    rows, classes, _ = next(draw(1))
    form = watch.observation.examined.form
    torch.testing.assert_close(form.evaluate(model, model(rows), classes), F.cross_entropy(model(rows), classes))


def test_modes_of_the_loop_end_where_they_ended_without_a_watch() -> None:
    """A device around the forward pass, or around the loss, and none left after any of these steps."""
    stack = torch.overrides._get_current_function_mode_stack

    def around(model: nn.Module, batch: Batch) -> Tensor:
        with torch.device("cpu"):
            scores = model(batch[0])
        with torch.device("cpu"):
            return F.cross_entropy(scores, batch[1])

    def between(model: nn.Module, batch: Batch) -> Tensor:
        scores = model(batch[0])
        with torch.device("cpu"):
            return F.cross_entropy(scores, batch[1])

    for program in (around, between):
        watch = follow(program)
        assert stack() == []
        assert watch.findings == []


def test_a_mean_that_counts_its_samples_is_no_sum() -> None:
    """The number of samples is a constant on the tape: asked with twice as many, the loss would look like a sum."""
    own = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum") / len(b[0])  # noqa: E731
    assert follow(own).findings == []


def test_a_watch_without_the_examination_asks_no_copy() -> None:
    wrong: Program = lambda m, b: F.nll_loss(m(b[0]), b[1])  # noqa: E731
    assert [finding.code for finding in follow(wrong).findings] == ["loss-form"]
    assert follow(wrong, check=False).findings == []
