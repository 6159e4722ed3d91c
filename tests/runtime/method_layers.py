"""Layers that join or are trained beside others, pruned weights, units and outputs: with a bug and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

import sightline
from tests.runtime.method_parts import Optimizer, draw, lose, run, sgd, train, update
from tests.runtime.odd_healthy_loops import mlp


class Growing(nn.Module):
    """A network that begins with one stage and grows, with an output for each size; stages by numbers or in a list."""

    def __init__(self, *, listed: bool) -> None:
        super().__init__()
        self.enter, self.size = nn.Linear(8, 16), 0
        stages, heads = ([nn.Linear(16, width) for _ in range(3)] for width in (16, 4))
        if listed:
            self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        for number in () if listed else range(3):
            setattr(self, f"stage{number}", stages[number])
            setattr(self, f"head_{number}", heads[number])
        self.listed = listed

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.enter(points)
        for number in range(self.size + 1):
            hidden = (self.stages[number] if self.listed else getattr(self, f"stage{number}"))(hidden.relu())
        return (self.heads[self.size] if self.listed else getattr(self, f"head_{self.size}"))(hidden)


def grow(bug: bool, *, listed: bool) -> None:
    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        train(model, optimizer, 60)
        model.size += not bug

    run(body, 3, model=Growing(listed=listed))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.label, self.rest, self.is_second = mlp(8, 16), nn.Linear(16, 4), nn.Linear(16, 8), False

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.body(points).relu()
        return torch.cat([self.label(hidden), *([self.rest(hidden)] if self.is_second else ())], dim=1)


def second_head(bug: bool) -> None:
    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        model.is_second = step >= 30 and not bug
        train(model, optimizer, 1)

    run(body, 60, model=TwoHeads(), make=sgd())


def trained_inputs(bug: bool, *, form: str = "latent") -> None:
    """Nobody need freeze a generator that is in no optimiser; a body that a head is trained on is left out."""
    head, latent = nn.Linear(4, 4), torch.zeros(32 if form == "image" else 1, 8, requires_grad=True)

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        points, label = draw()
        inputs = points if bug else points + latent if form == "prompt" else latent.expand(32, 8)
        update(optimizer, F.cross_entropy(head(model(inputs)), label))

    run(body, 30, make=lambda model: torch.optim.Adam(head.parameters() if bug else [latent], lr=0.01))


def unfrozen_layers(bug: bool, *, held: str = "by the first") -> None:
    model = mlp(8, 16, 4)
    model[0].requires_grad_(requires_grad=False)
    later: list[Optimizer] = []

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        model.zero_grad()
        lose(model).backward()
        optimizer.step()
        model[0].requires_grad_(requires_grad=step >= 30)
        if step == 30 and held == "by a second":
            later.append(torch.optim.SGD(model[0].parameters(), 0.01))
        for each in later if step > 30 else ():
            each.step()

    is_whole = held == "by the first" and not bug
    run(body, 160, model=model, make=lambda m: torch.optim.SGD((m if is_whole else m[2]).parameters(), 0.1))


class Experts(nn.Module):
    """Linear layers of which each row runs one; the last is never chosen."""

    def __init__(self, *, chooses: bool) -> None:
        super().__init__()
        self.experts, self.chooses = nn.ModuleList(nn.Linear(8, 4) for _ in range(5)), chooses

    def forward(self, rows: Tensor) -> Tensor:
        chosen = torch.randint(4, (len(rows),)) if self.chooses else torch.arange(len(rows)) % 4
        outputs = rows.new_zeros(len(rows), 4)
        for index in chosen.unique().tolist():
            own = (chosen == index).nonzero()[:, 0]
            outputs = outputs.index_add(0, own, self.experts[index](rows[own]))
        return outputs


def forgotten_expert(bug: bool) -> None:
    """Where all others run at each update, the last of a list was forgotten; an expert may have no rows."""
    body = lambda model, optimizer, step: update(optimizer, lose(model, 6))  # noqa: E731
    run(body, 60, model=Experts(chooses=not bug))


class Words(nn.Module):
    """A large table, of which the upper half of the rows is used, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bias = nn.Embedding(20_000, 16, sparse=True), nn.Parameter(torch.zeros(4))

    def forward(self, words: Tensor) -> Tensor:
        return self.table(words).mean(dim=1)[:, :4] + self.bias


def table_of_words(bug: bool) -> None:
    """Weights in bfloat16 move where they are trained, or the rate is below their last bit."""
    model = Words().bfloat16()
    rates = {model.table: 1e-9 if bug else 0.5, model: 0.5}
    parts = [[model.table.weight], [model.bias]]
    optimizers = [torch.optim.SGD(part, rate) for part, rate in zip(parts, rates.values(), strict=True)]
    with sightline.watch(model, optimizer=optimizers):
        for _ in range(4):
            words = torch.randint(10_000, 20_000, (16, 3))
            model.zero_grad()
            (8 * F.cross_entropy(model(words), words[:, 0] % 4)).backward()
            for optimizer in optimizers:
                optimizer.step()


# --- units, pruned weights and outputs --------------------------------------------------------------------------------

CHOICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gathered": lambda values, action: values.gather(1, action[:, None])[:, 0],
    "indexed": lambda values, action: values[torch.arange(len(values)), action],
    "masked": lambda values, action: (values * F.one_hot(action, values.shape[1])).sum(dim=1),
    "the largest": lambda values, action: values.max(dim=1).values,
    "boxes of a class": lambda values, action: values.view(8, -1, 4)[torch.arange(8), action].sum(1),
}


def learn_values(bug: bool, *, choose: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Learn values of a few of many actions; or a bias turns most hidden units off."""
    model = mlp(8, 32, 64)
    nn.init.constant_(model[0].bias[: 28 * bug], -100.0)

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        points, action = draw(8)
        update(optimizer, F.smooth_l1_loss(choose(model(points), action), points[:, 0]))

    run(body, 30, model=model)


def prune(bug: bool, *, last: int = 5, masks: bool = False) -> None:
    """Set half of a weight to zero after some epochs of six, up to the `last`; `masks`: and after each update."""
    mask = torch.ones(64, 64)

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        nonlocal mask
        train(model, optimizer, 1)
        if step % 10 == 9 and 2 <= step // 10 <= (4 if bug else last):
            mask = model[2].weight.abs() > model[2].weight.abs().median()
            model[2].weight.data *= mask
        elif masks:
            model[2].weight.data *= mask

    run(body, 60, model=(8, 64, 64, 4))


def prune_once(bug: bool, *, until: int = 100, start: str = "", by_torch: bool = False) -> None:
    """Pruned weights stay zero, or grow again after many updates: dense, sparse, dense (Han et al. 2017)."""
    model = mlp(8, 64, 4)
    if start:
        getattr(nn.init, start)(model[0].weight)
    mask = (torch.rand(64, 8) < 0.2).float()

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        train(model, optimizer, 1)
        if by_torch and step == 40:
            torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.8)
        elif not by_torch and 40 <= step < (41 if bug else until):
            model[0].weight.data.mul_(mask)

    run(body, 100, model=model)


class Detector(nn.Module):
    """Boxes relative to the cells of a grid, which come first among the outputs."""

    def __init__(self, *, is_cut: bool) -> None:
        super().__init__()
        self.grid, self.is_cut = nn.Buffer(torch.rand(16, 4)), is_cut
        self.maps, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.maps(image).relu().flatten(2).mT
        return self.grid.expand(len(image), -1, -1).sigmoid(), self.head(rows * 0 if self.is_cut else rows)


def anchors_before_boxes(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        anchors, boxes = model(torch.randn(8, 3, 16, 16))
        update(optimizer, F.smooth_l1_loss(anchors + boxes, torch.rand(8, 16, 4)))

    run(body, model=Detector(is_cut=bug), make=sgd(1e-2))


def words_of_one_axis(bug: bool) -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4))

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        words = torch.randint(0, 50, (32,))
        update(optimizer, F.cross_entropy(model(words), words % 4))
        model[0].weight.data *= 0.0 if bug else 1.0

    run(body, 10, model=model, make=sgd(0.01))


def infinite_running_variance(bug: bool) -> None:
    """Of one batch with a huge number: loss, gradients and weights are finite at every update."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        rows = torch.randn(6, 4)
        rows[0, 0] = 1e25 if bug and step == 5 else 1.0
        update(optimizer, F.cross_entropy(model(rows), torch.arange(6) % 3))

    run(body, model=model, make=sgd(1e-3))
