"""What a loop has and nobody names: schedules, averages of its weights, and batches that are the whole set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

import sightline
from tests.cases import run_each


def make_loader(size: int = 16, number: int = 96) -> DataLoader[Any]:
    rows = torch.randn(number, 6)
    return DataLoader(TensorDataset(rows, rows[:, :3].argmax(1)), size, shuffle=True)


def draw(number: int) -> Iterator[Any]:
    for _ in range(number):
        rows = torch.randn(16, 6)
        yield rows, rows[:, :3].argmax(1)


def list_codes(
    *,
    model: nn.Module | None = None,
    data: Callable[[], Iterable[Any]] | None = None,
    epochs: int = 5,
    after_update: Callable[[torch.optim.Optimizer], object] = lambda optimizer: None,
    after_epoch: Callable[[], object] = lambda: None,
    prepare: Callable[[torch.optim.Optimizer], object] = lambda optimizer: None,
    compute: Callable[[nn.Module, Tensor, Tensor], Tensor] = lambda model, rows, label: F.cross_entropy(
        model(rows), label
    ),
) -> list[str]:
    """Train, watched by model and optimiser alone, and list the codes that are found."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    held = prepare(optimizer)
    loader = make_loader()
    with sightline.watch(model, optimizer=optimizer, check=False) as watch:
        for _ in range(epochs):
            model.train()
            for rows, label in loader if data is None else data():
                optimizer.zero_grad()
                compute(model, rows, label).backward()
                optimizer.step()
                after_update(optimizer)
            after_epoch()
    del held
    return [finding.code for finding in watch.findings]


# --- schedules --------------------------------------------------------------------------------------------------------


class Stepped:
    """Schedules of an optimiser, of which some are stepped, after each update or each epoch."""

    def __init__(self, *kinds: Callable[[Any], Any], steps: Iterable[int] = (), other: bool = False) -> None:
        self.kinds, self.steps, self.other = kinds, tuple(steps), other

    def make(self, optimizer: torch.optim.Optimizer) -> Any:
        target = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1) if self.other else optimizer
        self.made = [kind(target) for kind in self.kinds]
        return self.made

    def step(self, *_: Any) -> None:
        for number in self.steps:
            self.made[number].step(*([1.0] if isinstance(self.made[number], schedules.ReduceLROnPlateau) else []))


decay = partial(schedules.ExponentialLR, gamma=0.9)
late = partial(schedules.StepLR, step_size=1000)
constant = partial(schedules.LambdaLR, lr_lambda=lambda step: 1.0)
same_at_first = partial(schedules.ConstantLR, factor=1.0)
plateau = schedules.ReduceLROnPlateau


def sequence(optimizer: Any) -> Any:
    return schedules.SequentialLR(optimizer, [same_at_first(optimizer), decay(optimizer)], milestones=[100])


SCHEDULES: dict[str, tuple[Stepped, dict[str, Any], bool]] = {
    "never": (Stepped(decay), {}, True),
    "never, of many steps": (Stepped(late), {}, True),
    "never, two of them": (Stepped(constant, decay), {}, True),
    "never, without a loader": (Stepped(decay), {"data": lambda: draw(50)}, True),
    "each epoch": (Stepped(decay, steps=[0]), {}, False),
    "each epoch, of many steps": (Stepped(late, steps=[0]), {}, False),
    "each epoch, constant": (Stepped(constant, steps=[0]), {}, False),
    "the first of two": (Stepped(same_at_first, decay, steps=[0]), {}, False),
    "a sequence that begins at the same rate": (Stepped(sequence, steps=[0]), {}, False),
    "a plateau": (Stepped(plateau, steps=[0]), {}, False),
    "a plateau that never steps": (Stepped(plateau), {}, False),
    "of another optimiser": (Stepped(decay, other=True), {}, False),
    "of averages that begin later": (Stepped(partial(SWALR, swa_lr=0.01)), {}, False),
    "one epoch": (Stepped(decay), {"epochs": 1}, False),
}


@run_each("name, stepped, options, is_wrong", [(name, *case) for name, case in SCHEDULES.items()])
def test_a_schedule_is_found_where_it_never_steps(
    name: str, stepped: Stepped, options: dict[str, Any], is_wrong: bool
) -> None:
    assert list_codes(prepare=stepped.make, after_epoch=stepped.step, **options) == ["schedule"] * is_wrong


def test_an_epochs_schedule_that_steps_at_each_update_stays_low() -> None:
    """Two steps down to a hundredth, where most updates have that rate: by hand, they may be meant."""
    stepped = Stepped(partial(schedules.MultiStepLR, milestones=[12, 18], gamma=0.1), steps=[0])
    assert list_codes(prepare=stepped.make, after_update=stepped.step, epochs=20) == ["schedule"]
    assert list_codes(prepare=stepped.make, after_epoch=stepped.step, epochs=20) == []


def test_a_rate_that_is_set_by_hand_needs_no_schedule() -> None:
    def lower(optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] *= 0.99

    assert list_codes(prepare=Stepped(decay).make, after_update=lower) == []


# --- averages ---------------------------------------------------------------------------------------------------------


def make_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@torch.no_grad()
def blend(average: nn.Module, model: nn.Module, *, buffers: bool, share: float = 0.1) -> None:
    for kept, own in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(own, share)
    for kept, own in zip(average.buffers(), model.buffers(), strict=True) if buffers else ():
        kept.copy_(own)


def evaluate(network: nn.Module) -> None:
    with torch.no_grad():
        network.eval()(torch.randn(4, 6))


def average_by_hand(buffers: bool, *, share: float = 0.1, evaluates: bool = True) -> list[str]:
    model = make_normed()
    average = copy.deepcopy(model).requires_grad_(False)
    return list_codes(
        model=model,
        after_update=lambda _: blend(average, model, buffers=buffers, share=share),
        after_epoch=lambda: evaluate(average) if evaluates else None,
    )


def average_of_torch(buffers: bool, *, updates: bool = False) -> list[str]:
    model = make_normed()
    average = AveragedModel(model, use_buffers=buffers)

    def finish() -> None:
        if updates:
            update_bn(make_loader(), average)
        evaluate(average)

    return list_codes(model=model, after_update=lambda _: average.update_parameters(model), after_epoch=finish)


def teacher() -> list[str]:
    """A copy of the start, which never moves."""
    model = make_normed()
    kept = copy.deepcopy(model)
    return list_codes(model=model, after_epoch=lambda: evaluate(kept))


def target_network() -> list[str]:
    """A copy that gets the whole state now and then."""
    model = make_normed()
    kept = copy.deepcopy(model)

    def load() -> None:
        kept.load_state_dict(model.state_dict())
        evaluate(kept)

    return list_codes(model=model, after_epoch=load)


def rival() -> list[str]:
    """Another network of the class, which is trained by itself, its statistics held."""
    model, other = make_normed(), make_normed().eval()
    optimizer = torch.optim.SGD(other.parameters(), 0.05)

    def train_other(_: Any) -> None:
        optimizer.zero_grad()
        other(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()

    return list_codes(model=model, after_update=train_other, after_epoch=lambda: evaluate(other))


AVERAGES: dict[str, tuple[Callable[[], list[str]], bool]] = {
    "by hand, without statistics": (partial(average_by_hand, False), True),
    "a copy of parameters alone": (partial(average_by_hand, False, share=1.0), True),
    "of torch, which copies statistics": (partial(average_of_torch, False), False),
    "by hand": (partial(average_by_hand, True), False),
    "by hand, evaluated nowhere": (partial(average_by_hand, False, evaluates=False), False),
    "of torch": (partial(average_of_torch, True), False),
    "of torch, its statistics computed anew": (partial(average_of_torch, False, updates=True), False),
    "a teacher": (teacher, False),
    "a target network": (target_network, False),
    "a rival": (rival, False),
}


@run_each("name, train, is_wrong", [(name, *case) for name, case in AVERAGES.items()])
def test_an_average_is_found_where_it_has_the_statistics_of_its_start(
    name: str, train: Callable[[], list[str]], is_wrong: bool
) -> None:
    assert train() == ["ema"] * is_wrong


# --- batches that are the whole set -----------------------------------------------------------------------------------


def repeat(*, number: int = 12, copies: bool = False) -> Iterator[Any]:
    rows = torch.randn(30, 6)
    for _ in range(number):
        yield (rows.clone() if copies else rows), rows[:, :3].argmax(1)


def first_of_a_loader(*, copies: bool = False) -> list[str]:
    loader = make_loader()
    rows, label = next(iter(loader))
    return list_codes(data=lambda: ((rows.clone() if copies else rows, label) for _ in range(len(loader))))


class SameIndices:
    """Sampler whose generator is made anew in each epoch: of a loader that is left after its first batch."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(96, generator=torch.Generator().manual_seed(0)).tolist())

    def __len__(self) -> int:
        return 96


def first_of_each_epoch() -> list[str]:
    rows = torch.randn(96, 6)
    loader = DataLoader(TensorDataset(rows, rows[:, :3].argmax(1)), 16, sampler=SameIndices())
    return list_codes(data=lambda: [next(iter(loader))], epochs=12)


def fixed_points() -> list[str]:
    """Collocation points of a differential equation, with gradients of their own in each step."""
    points = torch.linspace(0, 1, 24)[:, None]

    def compute(model: nn.Module, rows: Tensor, label: Tensor) -> Tensor:
        own = points.clone().requires_grad_()
        value = model(own)
        (slope,) = torch.autograd.grad(value.sum(), own, create_graph=True)
        return (slope - value.sum(1, keepdim=True)).square().mean()

    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    return list_codes(model=network, compute=compute, epochs=2)


def whole_set_of_a_loader() -> list[str]:
    rows = torch.randn(40, 6)
    loader = DataLoader(TensorDataset(rows, rows[:, :3].argmax(1)), 40)
    return list_codes(data=lambda: loader, epochs=12)


SETS: dict[str, tuple[Callable[[], list[str]], bool]] = {
    "a batch that was read once": (first_of_a_loader, True),
    "a batch that was read once, and is copied": (partial(first_of_a_loader, copies=True), True),
    "the first batch of each epoch": (first_of_each_epoch, True),
    "copies of one batch": (lambda: list_codes(data=partial(repeat, copies=True), epochs=1), True),
    "all rows": (lambda: list_codes(data=repeat, epochs=1), False),
    "all rows of a loader": (whole_set_of_a_loader, False),
    "fixed points": (fixed_points, False),
}


@run_each("name, train, is_wrong", [(name, *case) for name, case in SETS.items()])
def test_a_batch_that_comes_again_is_found_where_there_are_others(
    name: str, train: Callable[[], list[str]], is_wrong: bool
) -> None:
    assert train() == ["same-batch"] * is_wrong
