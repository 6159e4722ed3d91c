"""Loops whose fault shows in the run: what moves, what enters the model, what the rates and losses do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sightline
from tests.doctor.rows.model import adapted

Batches = list[tuple[Tensor, Tensor]]


def tables(number: int = 12, epochs: int = 1) -> Batches:
    """Draw tables of eight columns and their classes, which come again in another order in each epoch."""
    weight = torch.randn(8, 3)
    inputs = [torch.randn(16, 8) for _ in range(number)]
    batches = [(values, (values @ weight).argmax(1)) for values in inputs]
    return [batches[place] for _ in range(epochs) for place in torch.randperm(number)]


def table_model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def steps_by_hand(bug: bool) -> None:
    """Parameters are moved without an optimiser, or nothing moves them."""
    model, batches = table_model(), tables()
    with sightline.watch(model):
        for values, labels in batches:
            F.cross_entropy(model(values), labels).backward()
            for parameter in () if bug else model.parameters():
                parameter.data -= 0.05 * parameter.grad
            model.zero_grad()
        model.eval()(batches[0][0])


def rate_restarts(bug: bool) -> None:
    """A schedule of few steps, which `watch` is not told of."""
    model = table_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 if bug else 48)
    with sightline.watch(model, optimizer=optimizer):
        for values, labels in tables(epochs=4):
            optimizer.zero_grad()
            F.cross_entropy(model(values), labels).backward()
            optimizer.step()
            schedule.step()


def train_points(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, lose: Callable[..., Tensor]
) -> None:
    with sightline.watch(model, optimizer=optimizer):
        for values, labels in batches:
            optimizer.zero_grad()
            lose(model(values), labels).backward()
            optimizer.step()


def push_apart_without_bound(bug: bool) -> None:
    def lose(points: Tensor, labels: Tensor) -> Tensor:
        distance = (points[labels == 0].mean(0) - points[labels == 1].mean(0)).square().sum()
        return -distance if bug else F.relu(1 - distance) + 1e-3 * points.square().mean()

    model = table_model()
    train_points(model, torch.optim.Adam(model.parameters(), 0.02), tables(epochs=25), lose)


def collapse(bug: bool) -> None:
    """Train distances with a margin; weights decay so fast that all points become one."""

    def lose(points: Tensor, labels: Tensor) -> Tensor:
        distance, alike = torch.cdist(points, points), (labels[:, None] == labels[None]).float()
        near, far = ((distance * each).sum(1) / each.sum(1).clamp(min=1) for each in (alike, 1 - alike))
        return F.softplus(1 + near - far).mean()

    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3 if bug else 0.01, weight_decay=300 if bug else 0)
    train_points(model, optimizer, tables(epochs=25), lose)


def means_of_unlike_counts(bug: bool) -> None:
    model = nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 11))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sightline.watch(model, optimizer=optimizer):
        for number in range(8):
            tokens = torch.randint(0, 11, (4, 4, 20))
            targets = (tokens * 3 + 1) % 11
            for part, length in enumerate([20, 3, 9, 5 + number % 3]):
                targets[part, :, length:] = -100
            total = int((targets != -100).sum())
            for words, target in zip(tokens, targets, strict=True):
                summed = F.cross_entropy(model(words).flatten(0, 1), target.flatten(), reduction="sum")
                (summed / (4 * int((target != -100).sum()) if bug else total)).backward()
            optimizer.step()
            optimizer.zero_grad()


def detached_adversary(bug: bool) -> None:
    maker, judge = nn.Linear(8, 8), nn.Linear(8, 1)
    optimizers = [torch.optim.Adam(each.parameters(), 1e-3) for each in (maker, judge)]
    with sightline.watch({"maker": maker, "judge": judge}, optimizer=optimizers):
        for values, _ in tables(24):
            made = maker(values)
            optimizers[0].zero_grad()
            (10 * F.l1_loss(made, values) + F.softplus(-judge(made.detach() if bug else made)).mean()).backward()
            optimizers[0].step()
            optimizers[1].zero_grad()
            (F.softplus(-judge(values)) + F.softplus(judge(made.detach()))).mean().backward()
            optimizers[1].step()


class Codes(nn.Module):
    """Classifier by nearness to unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.codes = nn.Linear(8, 8), nn.Buffer(F.normalize(torch.randn(5, 8), dim=1))

    def forward(self, values: Tensor) -> Tensor:
        return self.body(values) @ self.codes.T


def average_of_unit_vectors(bug: bool) -> None:
    model = Codes()
    average, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.02)
    with sightline.watch(model, optimizer=optimizer, ema=average):
        for values, labels in tables(epochs=3):
            optimizer.zero_grad()
            F.cross_entropy(model(values), labels).backward()
            optimizer.step()
            with torch.no_grad():
                model.codes.copy_(F.normalize(model.codes + 0.5 * torch.randn(5, 8), dim=1))
                for own, mine in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    own.lerp_(mine, 0.1)
                average.codes.copy_(average.codes if bug else F.normalize(average.codes, dim=1))


def one_view_of_images(bug: bool) -> None:
    """Two views of an image are to be alike, and unlike those of others; or one view is taken twice."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 8))
    optimizer, images = torch.optim.Adam(model.parameters(), 1e-3), torch.randn(12, 16, 1, 8, 8)
    with sightline.watch(model, optimizer=optimizer):
        for batch in images:
            views = [batch + 0.3 * torch.randn_like(batch) for _ in range(2)]
            first, second = (F.normalize(model(views[0 if bug else number]), dim=1) for number in range(2))
            optimizer.zero_grad()
            F.cross_entropy(first @ second.T / 0.2, torch.arange(16)).backward()
            optimizer.step()


def checked_before_the_loop(bug: bool) -> None:
    model, batches = table_model(), tables()
    loss = (lambda outputs, labels: F.nll_loss(outputs, labels)) if bug else F.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sightline.watch(model, optimizer=optimizer, loss=loss, loader=batches, evaluation=tables(2)):
        pass


def two_models(bug: bool, *, is_first: bool = False, replaces: bool = False) -> None:
    """Part of a critic is in no optimiser; each of the two has its gradients in the other's turn."""
    maker = table_model()
    judge = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    held = judge[0] if bug and not replaces else judge
    optimizers = [torch.optim.Adam(each.parameters(), 1e-3) for each in (maker, held)]
    if bug and replaces:
        judge[2] = nn.Linear(8, 1)
    values, labels = tables(1)[0]
    with sightline.watch({"maker": maker, "judge": judge}, optimizer=optimizers):
        for values, labels in tables(24):
            real = F.one_hot(labels, 3).float()
            for turn in (1, 0) if is_first else (0, 1):
                optimizers[turn].zero_grad()
                made = maker(values).softmax(1)
                if turn:
                    value = F.softplus(-judge(real)).mean() + F.softplus(judge(made.detach())).mean()
                else:
                    value = F.cross_entropy(maker(values), labels)
                value.backward()
                optimizers[turn].step()


def decaying(bug: bool) -> None:
    model, loader = table_model(), make_loader()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(5):
            for values, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(values), labels).backward()
                optimizer.step()
            if not bug:
                schedule.step()


def make_loader(size: int = 16) -> DataLoader[tuple[Tensor, ...]]:
    values, labels = (torch.cat(parts) for parts in zip(*tables(), strict=True))
    return DataLoader(TensorDataset(values, labels), size, shuffle=True)


def average_of_a_normed_model(bug: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    average, loader = copy.deepcopy(model).eval(), make_loader()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(3):
            for values, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(values), labels).backward()
                optimizer.step()
                with torch.no_grad():
                    for kept, own in zip(average.parameters(), model.parameters(), strict=True):
                        kept.lerp_(own, 0.1)
                    for kept, own in zip(average.buffers(), () if bug else model.buffers(), strict=False):
                        kept.copy_(own)
                    average(values)


def one_batch_of_a_loader(bug: bool) -> None:
    model, loader = table_model(), make_loader(16 if bug else 192)
    optimizer, batch = torch.optim.Adam(model.parameters(), 1e-3), next(iter(loader))
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(12):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()


class Gated(nn.Module):
    """Scores of tables, whose columns are weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = table_model()

    def forward(self, values: Tensor, weights: Tensor) -> Tensor:
        return self.body(values * weights)


def three_values(bug: bool) -> None:
    """Batches of inputs, their weights and labels; the loss is a line of the loop, and nothing of it is named."""
    model = Gated()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with sightline.watch(model, optimizer=optimizer):
        for values, labels in tables(12):
            weights = torch.rand(len(values), 8).round()
            optimizer.zero_grad()
            scores = model(values, weights)
            value = F.nll_loss(scores if bug else scores.log_softmax(1), labels)
            value.backward()
            optimizer.step()


def adapters_of_two_zeros(bug: bool) -> None:
    model = adapted(bug)
    batches = [(values[:, :6], labels) for values, labels in tables()]
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], 1e-2)
    train_points(model, optimizer, batches, F.cross_entropy)


LOOPS: dict[str, tuple[str, Callable[[bool], None]]] = {
    "a loss that is checked before the loop": ("loss.form", checked_before_the_loop),
    "adapters of two zeros": ("model.init", adapters_of_two_zeros),
    "one view of two": ("data.duplicate_randomness", one_view_of_images),
    "no step by hand": ("optim.step_order", steps_by_hand),
    "rate restarts": ("optim.scheduler", rate_restarts),
    "distance rewarded": ("loss.sign", push_apart_without_bound),
    "means of unlike counts": ("optim.grad_accumulation", means_of_unlike_counts),
    "collapse": ("loss.collapse", collapse),
    "detached adversary": ("loss.detached", detached_adversary),
    "average of unit vectors": ("ckpt.stale", average_of_unit_vectors),
    "a critic's head left out": ("optim.param_coverage", two_models),
    "a critic's head left out, the critic first": ("optim.param_coverage", partial(two_models, is_first=True)),
    "a critic's head replaced": ("optim.param_coverage", partial(two_models, replaces=True)),
    "a schedule that nobody names": ("optim.scheduler", decaying),
    "an average that nobody names": ("model.norm_mode", average_of_a_normed_model),
    "one batch of a loader": ("data.ordering", one_batch_of_a_loader),
    "batches of three values": ("loss.form", three_values),
}
