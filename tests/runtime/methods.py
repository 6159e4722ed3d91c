"""Methods of training that look like a bug, beside the bug that they look like: each loop with it and without."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

import sightline
from tests.runtime.odd_healthy_loops import batches, mlp
from tests.runtime.robust_loops import Graph, adjacency

Optimizer = torch.optim.Optimizer
Body = Callable[[Any, Any, int], object]
"""What a loop does at each step, with its model and optimiser."""


def draw(size: int = 32, turn: int = 0) -> tuple[Tensor, Tensor]:
    """Draw a batch whose label is the largest of four numbers; `turn` shifts the labels, for another task."""
    points = torch.randn(size, 8)
    return points, (points[:, :4].argmax(dim=1) + turn) % 4


def lose(model: nn.Module, size: int = 32, turn: int = 0) -> Tensor:
    points, label = draw(size, turn)
    return F.cross_entropy(model(points), label)


def read(model: nn.Module, optimizer: Optimizer, size: int = 32, turn: int = 0) -> list[Tensor]:
    """Compute the gradients of a batch anew, and return a copy."""
    optimizer.zero_grad()
    lose(model, size, turn).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def update(optimizer: Any, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(model: nn.Module, optimizer: Optimizer, updates: int, rate: float | None = None) -> None:
    """Train; with `rate`, the learning rate rises to it by equal factors from a millionth of it."""
    for step in range(updates):
        for group in optimizer.param_groups if rate else ():
            group["lr"] = rate * 1e-6 ** (1 - step / updates)
        update(optimizer, lose(model))


def run(body: Body, steps: int = 8, *, model: Any = (8, 16, 4), make: Any = None, **options: Any) -> None:
    """Run a loop with a small network, an optimiser that `make` makes (Adam), and what is said to `watch`."""
    model = mlp(*model) if isinstance(model, tuple) else model
    optimizer = make(model) if make else torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer, **options):
        for step in range(steps):
            body(model, optimizer, step)


def sgd(rate: float = 0.05) -> Callable[[nn.Module], Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), rate)


# --- gradients that the loop reads, clears or writes itself -----------------------------------------------------------


def project_gradients(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Gradients of tasks that conflict are projected, and their sum is written back (PCGrad)."""
    stored = [torch.cat([each.flatten() for each in read(model, optimizer, turn=turn)]) for turn in range(3)]
    for one in (total := [each.clone() for each in stored]):
        for other in stored:
            one -= (one @ other).clamp(max=0) / (other @ other) * other
    parts = torch.stack(total).sum(dim=0).split([p.numel() for p in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.grad.copy_(part.view_as(parameter))
    optimizer.step()


def compare_with_a_memory(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """A-GEM, in which the gradient of the memory has been read, and then changes nothing."""
    reference, gradients = read(model, optimizer), read(model, optimizer)
    product = sum((a * b).sum() for a, b in zip(reference, gradients, strict=True))
    for parameter, other in zip(model.parameters(), reference, strict=True) if product < -100 else ():
        parameter.grad = parameter.grad - product * other
    optimizer.step()


def clip_each_sample(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Each sample's gradient is clipped; their sum, with noise, is the gradient (DP-SGD)."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(28):
        optimizer.zero_grad()
        lose(model, 1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each, parameter in zip(total, model.parameters(), strict=True):
            each += parameter.grad
    for parameter, each in zip(model.parameters(), total, strict=True):
        parameter.grad = (each + 0.1 * torch.randn_like(each)) / 28
    optimizer.step()


def measure_information(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """The Fisher information of the weights about a task is measured after it (EWC)."""
    train(model, optimizer, 20)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(60):
        for each, gradient in zip(total, read(model, optimizer, 1), strict=True):
            each += gradient.square() / 60
    optimizer.zero_grad()


def attack(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Inputs are moved by forty steps before each update (PGD)."""
    points, label = draw()
    move = torch.zeros_like(points, requires_grad=True)
    for _ in range(40):
        F.cross_entropy(model(points + move), label).backward()
        move.data += 0.01 * move.grad.sign()
        move.grad.zero_()
        optimizer.zero_grad()
    update(optimizer, F.cross_entropy(model((points + move).detach()), label))


def draw_maps_of_saliency(model: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """The hidden layer is weighed by its gradients (Grad-CAM)."""
    train(model, optimizer, 12)
    for _ in range(30):
        points, label = draw(1)
        optimizer.zero_grad()
        hidden = model[:2](points)
        hidden.retain_grad()
        model[2](hidden).gather(1, label[:, None]).sum().backward()
        assert (hidden.grad * hidden).isfinite().all()


def measure_noise() -> None:
    """A small batch is measured, and a large one is trained on."""
    model = mlp(8, 16, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def measure(size: int) -> float:
        optimizer.zero_grad()
        lose(model, size).backward()
        return float(sum(p.grad.square().sum() for p in model.parameters()))

    with sightline.watch(model, optimizer=optimizer):
        for _ in range(8):
            assert measure(8) + measure(64) > 0
            optimizer.step()


def imitate_a_copy(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Reptile, and MAML of the first order: a copy of the model is trained, and its moves are the gradients."""
    other = copy.deepcopy(model)
    train(other, torch.optim.SGD(other.parameters(), 0.05), 3)
    for parameter, moved in zip(model.parameters(), other.parameters(), strict=True):
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad.copy_(parameter.data - moved.data)
    optimizer.step()


def cancel_at_first(model: nn.Sequential, optimizer: Optimizer, step: int) -> None:
    """DINO cancels the gradients of its last layer in the first epoch."""
    read(model, optimizer)
    if step < 10:
        model[2].weight.grad = None
    optimizer.step()


def clear_what_is_not_finite(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        optimizer.zero_grad()
        (lose(model) * (float("nan") if step == 7 else 1.0)).backward()
        if not bug and not nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            optimizer.zero_grad()
        optimizer.step()

    run(body, 20)


def clear_from_some_update_on(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        read(model, optimizer)
        if bug and step > 10:
            optimizer.zero_grad()
        optimizer.step()

    run(body, 20)


def oppose(bug: bool) -> None:
    """Train a generator and its critic; with the bug, the gradients of true samples are cleared."""
    parts = nn.ModuleDict({"generator": mlp(4, 16, 8), "critic": mlp(8, 16, 1)})
    first, second = (torch.optim.Adam(part.parameters(), 1e-3) for part in parts.values())
    with sightline.watch(parts, optimizer=[first, second]):
        for _ in range(8):
            second.zero_grad()
            F.softplus(-parts["critic"](torch.randn(16, 8))).mean().backward()
            if bug:
                second.zero_grad()
            F.softplus(parts["critic"](parts["generator"](torch.randn(16, 4)).detach())).mean().backward()
            second.step()
            update(first, F.softplus(-parts["critic"](parts["generator"](torch.randn(16, 4)))).mean())


def accumulate_for_two(bug: bool) -> None:
    parts = mlp(8, 16, 4)
    optimizers = [torch.optim.SGD(part.parameters(), 0.05) for part in (parts[0], parts[2])]
    with sightline.watch(parts, optimizer=optimizers):
        for step in range(24):
            if bug or step % 3 == 0:
                parts.zero_grad()
            lose(parts).backward()
            for optimizer in optimizers if step % 3 == 2 else ():
                optimizer.step()


def updates_end(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        read(model, optimizer)
        if not bug or step < 20:
            optimizer.step()

    run(body, 80)


def before_a_first_pass() -> None:
    """Gradients by hand: parts of the model are watched from then on, until it is called as a whole."""
    head = nn.Linear(8, 4)
    model = nn.ModuleDict({"head": head, "body": nn.Sequential(nn.Linear(8, 8), nn.ReLU(), head)})

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        for parameter in model.parameters() if step == 0 else ():
            parameter.grad = torch.randn_like(parameter)
        if step == 0:
            optimizer.step()
        train(model["body"], optimizer, 10)

    run(body, 2, model=model, make=sgd())


def in_another_thread(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        def work() -> None:
            for _ in range(12):
                if not bug:
                    optimizer.zero_grad()
                lose(model).backward()
                optimizer.step()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    run(body, 1, make=sgd(0.01))


# --- restarts, schedules and averages ---------------------------------------------------------------------------------


def search_for_a_rate(*, sets_back: bool) -> None:
    model = mlp(8, 16, 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with sightline.watch(model, optimizer=optimizer):
        train(model, optimizer, 80, rate=1.0)
        if sets_back:
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        optimizer.param_groups[0]["lr"] = 1e-3
        train(model, optimizer, 100)


def search_before_a_schedule() -> None:
    model = mlp(8, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 70, eta_min=1e-3)
    with sightline.watch(model, optimizer=optimizer, scheduler=scheduler):
        train(model, optimizer, 60, rate=3.0)
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        for _ in range(70):
            train(model, optimizer, 1)
            scheduler.step()


def folds(bug: bool) -> None:
    """Each fold begins with other weights, or with those of the last one."""

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        for layer in () if bug else model.children():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        optimizer.state.clear()
        train(model, optimizer, 20)

    run(body, 3)


def state_lost_at_a_resume(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        train(model, optimizer, 20)
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        kept = optimizer.state_dict()
        optimizer.load_state_dict({**kept, "state": {}} if bug else kept)

    run(body, 3)


def rewind_weights() -> None:
    """The lottery ticket: what is not pruned goes back to its first values, by `data`."""
    model = mlp(8, 32, 4)
    first = copy.deepcopy(model.state_dict())

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        train(model, optimizer, 20)
        mask = model[0].weight.abs() > model[0].weight.abs().quantile(0.2)
        for name, parameter in model.named_parameters():
            parameter.data = first[name].clone()
        model[0].weight.data *= mask
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})

    run(body, 3, model=model)


def rate_falls_after_a_restart(bug: bool) -> None:
    model = mlp(8, 16, 4)
    first = copy.deepcopy(model.state_dict())

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        if step == 2:
            model.load_state_dict(first)
            optimizer.state.clear()
        train(model, optimizer, 10)
        optimizer.param_groups[0]["lr"] *= 0.3 if bug and step >= 2 else 1

    run(body, 14, model=model)


def warm_up_then_plateau(bug: bool, *, warms: int = 40, updates: int = 120) -> None:
    """Warm up, and lower the rate after epochs whose loss has not fallen; or forget the second scheduler."""
    model, schedulers = mlp(8, 16, 4), torch.optim.lr_scheduler
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    warm_up = schedulers.LinearLR(optimizer, 0.01, total_iters=warms)
    plateau = schedulers.ReduceLROnPlateau(optimizer, patience=1)
    with sightline.watch(model, optimizer=optimizer, scheduler=[warm_up, plateau]):
        for step in range(updates):
            train(model, optimizer, 1)
            if step < warms:
                warm_up.step()
            elif step % 20 == 19 and not bug:
                plateau.step(1.0)


def schedule(factor: Callable[[int], float], every: int, updates: int = 120) -> None:
    """Train with a schedule that is stepped after so many updates."""
    model = mlp(8, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with sightline.watch(model, optimizer=optimizer, scheduler=scheduler):
        for step in range(updates):
            train(model, optimizer, 1)
            if step % every == every - 1:
                scheduler.step()


def average(bug: bool, *, begins: int = 60, updates: int = 100) -> None:
    """Average weights from an update on, by hand, and evaluate the average, without its buffers or with them."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    mean = copy.deepcopy(model)

    @torch.no_grad()
    def follow(step: int) -> None:
        for own, value in zip(mean.parameters(), model.parameters(), strict=True) if step >= begins else ():
            own.lerp_(value, 0.1)
        for own, value in zip(mean.buffers(), model.buffers(), strict=True) if step >= begins else ():
            own.copy_(own if bug else value)
        if step % 20 == 19:
            mean.eval()(draw()[0])

    body = lambda model, optimizer, step: (train(model, optimizer, 1), follow(step))  # noqa: E731
    run(body, updates, model=model, make=sgd(), ema=mean)


def load_an_edited_state(bug: bool) -> None:
    """Load a state that the loop has just taken and edited in its place, or one that it took too early, uncopied."""
    state: dict[str, Tensor] = {}

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        nonlocal state
        train(model, optimizer, 10)
        state = state if bug and state else model.state_dict()
        if not bug:
            state["2.weight"] *= 0.9
        model.load_state_dict(state)

    run(body, 3)


class Taught(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.student = mlp(8, 16, 4)
        self.teacher = copy.deepcopy(self.student).requires_grad_(requires_grad=False)
        for own, other in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
            other.data.copy_(own.data.mul_(factor))

    def forward(self, rows: Tensor) -> Tensor:
        return self.student(rows) + 0.1 * self.teacher(rows)


def teacher_that_follows(bug: bool, *, at: int | None = None, factor: float = 1.0, updates: int = 320) -> None:
    """A teacher follows at each update, once, or (as an anchor, of a trained model) never; or its mean is lost."""

    @torch.no_grad()
    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        with torch.enable_grad():
            train(model, optimizer, 1)
        for mean, weight in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            if bug:
                mean = 0.9 * mean + 0.1 * weight
            elif at in (None, step):
                mean.lerp_(weight, 0.1)

    make = lambda model: torch.optim.SGD(model.student.parameters(), 0.05)  # noqa: E731
    run(body, updates, model=Taught(factor), make=make)


# --- layers that join, and what is trained beside them ----------------------------------------------------------------


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


# --- samples and labels that come again -------------------------------------------------------------------------------


class Ratings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Linear(20, 8), nn.Embedding(60, 8)

    def forward(self, features: Tensor, item: Tensor) -> Tensor:
        return (self.user(features) * self.item(item)).sum(-1)


def features_of_users(bug: bool) -> None:
    """Pairs of known users with other items, and of new users, are evaluated; or pairs that were trained on."""
    features, pairs = torch.randn(60, 20), torch.cartesian_prod(torch.arange(60), torch.arange(60))
    pairs = pairs[torch.randperm(len(pairs))]
    known, new = pairs[pairs[:, 0] < 40][:1000], pairs[pairs[:, 0] >= 40][:200]
    trained, others = known[:600], known[200 if bug else 600 :]
    evaluated = torch.cat([others, new])[torch.randperm(len(others) + 200)]

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        for rows in torch.randperm(600).split(50):
            user, item = trained[rows].T
            update(optimizer, F.mse_loss(model.train()(features[user], item), torch.rand(50)))
        with torch.no_grad():
            for part in evaluated.split(50):
                model.eval()(features[part[:, 0]], part[:, 1])

    run(body, 2, model=Ratings())


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 8)

    def forward(self, time: Tensor, rows: Tensor) -> Tensor:
        return self.layer(torch.cat([rows, time[:, None] / 10], dim=1))


def times_that_repeat(bug: bool) -> None:
    stored = torch.randn(10, 16, 8)

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        rows = stored[step % 10] if bug else torch.randn(16, 8)
        update(optimizer, F.mse_loss(model(torch.arange(16.0) + step % 10, rows), rows))

    run(body, 30, model=Timed())


def one_class_a_batch(bug: bool) -> None:
    order = [0, 1, 2, 0, 3, 1, 2]

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        label = torch.full((16,), order[step]) if bug else torch.randint(4, (16,))
        update(optimizer, F.cross_entropy(model(torch.randn(16, 8)), label))

    run(body, 7)


def real_and_generated_in_turns(*, in_one_loss: bool) -> None:
    """A discriminator of two classes gets a batch of each."""
    generator, judge = nn.Linear(4, 8), mlp(8, 16, 2)
    optimizers = [torch.optim.Adam(each.parameters()) for each in (generator, judge)]
    labels = torch.ones(16, dtype=torch.long), torch.zeros(16, dtype=torch.long)
    with sightline.watch({"generator": generator, "judge": judge}, optimizer=optimizers):
        for _ in range(60):
            drawn = generator(torch.randn(16, 4))
            optimizers[1].zero_grad()
            pairs = zip((torch.randn(16, 8), drawn.detach()), labels, strict=True)
            losses = [lambda rows=rows, label=label: F.cross_entropy(judge(rows), label) for rows, label in pairs]
            for loss in [lambda losses=losses: losses[0]() + losses[1]()] if in_one_loss else losses:
                loss().backward()
            optimizers[1].step()
            update(optimizers[0], F.cross_entropy(judge(drawn), labels[0]))


class Reranker(nn.Module):
    """Scores of a list of candidates for a query, of which the right one is the first; or of classes."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.body = form, nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        last = {"classes": nn.Sequential(nn.Flatten(), nn.Linear(80, 5)), "a number each": nn.Linear(16, 1)}
        self.last = last.get(form, nn.Identity())

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.body(rows)
        if self.form == "products":
            return (hidden[:, :1] * hidden).sum(-1)
        if self.form == "cosines":
            return 20 * F.cosine_similarity(hidden[:, :1], hidden, dim=-1)
        return self.last(hidden).view(len(rows), 5)


def first_candidates(bug: bool, *, form: str = "a number each") -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        update(optimizer, F.cross_entropy(model(torch.randn(16, 5, 12)), torch.zeros(16, dtype=torch.long)))

    run(body, model=Reranker("classes" if bug else form))


def few_defects() -> None:
    """Few images show a defect, and some places are ignored."""

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        label = torch.zeros(2, 16, 16, dtype=torch.long)
        label[:, :2] = 255
        label[0, 5:8, 5:8] = int(step % 8 == 7)
        update(optimizer, F.cross_entropy(model(torch.randn(2, 3, 16, 16)), label, ignore_index=255))

    run(body, 40, model=nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)))


def heads_as_wide_as_a_batch() -> None:
    """Eight samples, and heads of eight numbers."""

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        inputs = torch.randn(12, 8, 32)
        update(optimizer, F.cross_entropy(model(inputs)[0], inputs[0, :, :3].argmax(1)))

    run(body, 4, model=nn.Sequential(nn.TransformerEncoderLayer(32, 4, 32, dropout=0.0), nn.Linear(32, 3)))


# --- modes ------------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def rows_needed_first(bug: bool) -> None:
    """As a contrastive loss needs them: each part of a step passes once without gradients, then once with them."""

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        first = [torch.randn(8, 8) for _ in range(3)]
        with torch.no_grad():
            rows = [model(part) for part in first]
        optimizer.zero_grad()
        for index, part in enumerate([torch.randn(8, 8) for _ in range(3)] if bug else first):
            others = torch.cat(rows[:index] + rows[index + 1 :])
            (model(part) @ others.T).logsumexp(dim=1).mean().backward()
        optimizer.step()

    run(body, 4, model=nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)), make=sgd(1e-2))


def adapt(model: nn.Module) -> None:
    """Statistics of the target domain (AdaBN, Li et al. 2017)."""
    for _ in range(6):
        model(1 + torch.randn(32, 8))
    model.eval()(1 + torch.randn(32, 8))


def repeat_draws(model: nn.Module) -> None:
    for _ in range(4):
        rows = torch.randn(32, 8)
        torch.stack([model(rows) for _ in range(8)]).mean(0)


def evaluate_in_training_mode(bug: bool, *, passes: Callable[[nn.Module], None] = adapt) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        train(model.train(), optimizer, 5)
        with torch.no_grad():
            for _ in range(6 if bug else 0):
                model(torch.randn(32, 8))
            if not bug:
                passes(model)

    run(body, 2, model=network())


def hold_statistics(bug: bool) -> None:
    """A batch norm is held in evaluation mode before it has learned anything, or after."""
    model = network()
    if not bug:
        model(torch.randn(64, 8))

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        model.train()
        model[1].eval()
        train(model, optimizer, 1)

    run(body, model=model)


def frozen_critic() -> None:
    """The critic is frozen while its maker is trained through it."""
    maker, critic = mlp(4, 16, 10), mlp(10, 16, 1)
    of_maker, of_critic = (torch.optim.Adam(model.parameters(), 1e-3) for model in (maker, critic))
    with sightline.watch(critic, optimizer=of_critic):
        for (real,) in batches(torch.randn(256, 10)):
            update(of_critic, critic(maker(torch.randn(32, 4)).detach()).mean() - critic(real).mean())
            critic.requires_grad_(False)
            update(of_maker, -critic(maker(torch.randn(32, 4))).mean())
            critic.requires_grad_(True)


def compare_all(lose: Callable[[Tensor, Tensor], Tensor]) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        rows = torch.randn(16, 8)
        update(optimizer, lose(model(rows), rows[:, :1]))

    run(body, 4, model=(8, 16, 1))


def outputs_of_a_graph(change: Callable[[Tensor], Tensor]) -> None:
    """Train a graph network of a sparse adjacency; `change` plants a bug where the outputs are."""
    edges = adjacency(torch.sparse_csr)

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        nodes = torch.randn(30, 8)
        update(optimizer, F.cross_entropy(change(model(edges, nodes)), nodes[:, :4].argmax(1)))

    run(body, 20, model=Graph())


PAIRS: dict[str, tuple[str, Callable[[bool], object]]] = {
    "not finite, and cleared": ("optim.nonfinite loss.form model.numerics", clear_what_is_not_finite),
    "cleared from some update on": ("optim.step_order optim.grad_accumulation", clear_from_some_update_on),
    "gradients of true samples cleared": ("optim.grad_accumulation optim.step_order", oppose),
    "two optimisers accumulate": ("optim.grad_accumulation", accumulate_for_two),
    "updates end": ("optim.step_order optim.amp", updates_end),
    "another thread": ("optim.grad_accumulation", in_another_thread),
    "folds": ("ckpt.incomplete_state optim.state", folds),
    "a state that is lost at a resume": ("ckpt.incomplete_state", state_lost_at_a_resume),
    "a rate that falls after a restart": ("optim.scheduler", rate_falls_after_a_restart),
    "a warm-up, then a plateau": ("optim.scheduler", warm_up_then_plateau),
    "a warm-up by updates": (
        "optim.scheduler",
        lambda bug: schedule(lambda step: min(1.0, (step + 1) / 40), 20 if bug else 1),
    ),
    "an average that begins later": ("model.norm_mode optim.state", average),
    "a state that is edited": ("ckpt.alias", load_an_edited_state),
    "a teacher that follows": ("optim.state", teacher_that_follows),
    **{
        f"a network that grows, {'in a list' if listed else 'by numbers'}": (
            "model.structure",
            partial(grow, listed=listed),
        )
        for listed in (True, False)
    },
    "a second head": ("model.structure", second_head),
    "an input that is trained": ("optim.param_coverage", trained_inputs),
    "layers that are unfrozen": ("optim.param_coverage", unfrozen_layers),
    "an expert": ("model.structure", forgotten_expert),
    "a table of words": ("optim.lr model.numerics", table_of_words),
    "values of actions": ("model.activation", partial(learn_values, choose=CHOICES["gathered"])),
    "softly pruned weights": ("quant.no_effect optim.step_order", prune),
    "pruned weights": ("quant.no_effect optim.step_order", prune_once),
    "anchors before boxes": ("model.constant_output", anchors_before_boxes),
    "words of one axis": ("model.constant_output", words_of_one_axis),
    "a running variance": ("model.numerics data.corrupt_sample optim.nonfinite", infinite_running_variance),
    "features of users": ("data.split", features_of_users),
    "times that repeat": ("data.ordering", times_that_repeat),
    "a class a batch": ("data.ordering data.label_mapping data.sampling", one_class_a_batch),
    "the first candidate": ("data.label_mapping data.ordering", first_candidates),
    "rows that are needed first": ("eval.mode model.norm_mode", rows_needed_first),
    "training mode without gradients": ("eval.mode", evaluate_in_training_mode),
    "statistics that are held": ("model.norm_mode", hold_statistics),
    "outputs of a graph": (
        "loss.double_softmax",
        lambda bug: outputs_of_a_graph(lambda outputs: outputs.softmax(1) if bug else outputs),
    ),
    "infinite outputs of a graph": (
        "model.numerics loss.form",
        lambda bug: outputs_of_a_graph(lambda outputs: outputs / (0 if bug else 1)),
    ),
}
"""Causes and loop by name."""

READING = {
    project_gradients: 8,
    compare_with_a_memory: 12,
    clip_each_sample: 6,
    measure_information: 3,
    attack: 6,
    draw_maps_of_saliency: 2,
    imitate_a_copy: 8,
    cancel_at_first: 30,
}
HEALTHY: dict[str, Callable[[], object]] = {
    **{body.__name__: partial(run, body, steps) for body, steps in READING.items()},
    "measure_noise": measure_noise,
    "before a first pass": before_a_first_pass,
    "a search for a rate": partial(search_for_a_rate, sets_back=True),
    "a search that sets nothing back": partial(search_for_a_rate, sets_back=False),
    "a search before a schedule": search_before_a_schedule,
    "weights that are rewound": rewind_weights,
    "a long warm-up, then a plateau": partial(warm_up_then_plateau, False, warms=100, updates=80),
    "a warm-up by epochs": partial(schedule, lambda epoch: min(1.0, (epoch + 1) / 5), 20),
    "a warm-up that is longer than the loop": partial(schedule, lambda step: min(1.0, (step + 1) / 1000), 1),
    "a decay": partial(schedule, lambda epoch: 0.9**epoch, 20),
    "a rise": partial(schedule, lambda epoch: 0.2 * 1.1**epoch, 20),
    "an average that begins much later": partial(average, False, begins=210, updates=230),
    "a teacher that follows once": partial(teacher_that_follows, False, at=200),
    "a teacher of a trained model": partial(teacher_that_follows, False, at=-1, factor=5.0),
    "a teacher in a short loop": partial(teacher_that_follows, False, at=-1, updates=100),
    "a prompt": partial(trained_inputs, False, form="prompt"),
    "an image": partial(trained_inputs, False, form="image"),
    "layers in a second optimiser": partial(unfrozen_layers, False, held="by a second"),
    **{f"values, {name}": partial(learn_values, False, choose=choose) for name, choose in CHOICES.items()},
    "masks after each update": partial(prune, False, last=2, masks=True),
    "dense, sparse, dense": partial(prune_once, False, until=70),
    "pruned by torch": partial(prune_once, False, by_torch=True),
    "from zero": partial(prune_once, False, until=0, start="zeros_"),
    "from an identity": partial(prune_once, False, until=0, start="eye_"),
    "real and generated in turns": partial(real_and_generated_in_turns, in_one_loss=False),
    "real and generated in one loss": partial(real_and_generated_in_turns, in_one_loss=True),
    "products with the first candidate": partial(first_candidates, False, form="products"),
    "cosines with the first candidate": partial(first_candidates, False, form="cosines"),
    "few defects": few_defects,
    "heads as wide as a batch": heads_as_wide_as_a_batch,
    "draws of dropout": partial(evaluate_in_training_mode, False, passes=repeat_draws),
    "a frozen critic": frozen_critic,
    "a hinge of all pairs": partial(compare_all, lambda o, t: F.relu(1 - (o - t.T)).mean()),
    "a logistic loss of all pairs": partial(compare_all, lambda o, t: F.softplus(t.T - o).mean()),
    "an energy distance": partial(compare_all, lambda o, t: 2 * (o - t.T).abs().mean() - (o - o.T).abs().mean()),
}
