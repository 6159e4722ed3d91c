"""Programs whose state dicts lack what goes on depends on, and whose gradients or norms are not what they seem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.doctor.rows import Case


class _Centred(nn.Module):
    """Subtracts a running mean of table rows, which is a buffer or not."""

    def __init__(self, is_buffer: bool) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        if is_buffer:
            self.register_buffer("mean", torch.zeros(6))
        else:
            self.mean = torch.zeros(6)

    def forward(self, rows: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * rows.detach().mean(0)
        output: Tensor = self.head(rows - self.mean)
        return output


class _Memory(nn.Module):
    """Mixes a memory of past images into each answer; the memory is saved or not."""

    def __init__(self, is_saved: bool) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 3, stride=2), nn.Linear(16, 4)
        self.register_buffer("memory", torch.zeros(8), persistent=is_saved)

    def forward(self, images: Tensor) -> Tensor:
        found = self.body(images).relu().mean((2, 3))
        if self.training:
            with torch.no_grad():
                self.memory.lerp_(found.mean(0), 0.2)
        output: Tensor = self.head(torch.cat([found, found * self.memory], 1))
        return output


class _Momentum(torch.optim.Optimizer):
    """Momentum that lies in the optimiser's state, or beside it."""

    def __init__(self, parameters: Any, lr: float, *, is_saved: bool) -> None:
        super().__init__(parameters, {"lr": lr})
        self.is_saved = is_saved
        self.beside: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not self.is_saved and not self.beside:
                self.beside = [torch.zeros_like(parameter) for parameter in group["params"]]
            for place, parameter in enumerate(group["params"]):
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average = average if self.is_saved else self.beside[place]
                average.mul_(0.9).add_(parameter.grad)
                parameter.sub_(group["lr"] * average)


class _Warm(torch.optim.SGD):
    """Rate that rises with a count of steps; the count lies in a group, or beside it."""

    def __init__(self, parameters: Any, *, is_saved: bool) -> None:
        super().__init__(parameters, lr=0.01)
        self.is_saved, self.count = is_saved, 0
        self.param_groups[0]["count"] = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        group = self.param_groups[0]
        group["count"] += 1
        count = group["count"] if self.is_saved else self.count
        group["lr"] = 0.01 * min(count, 5)
        return super().step(closure)


def _read_rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    rows = torch.randn(32, 6) + 1
    return rows, rows[:, :3].argmax(1)


def _read_words() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 8), nn.Flatten(), nn.Linear(40, 4))
    words = torch.randint(0, 12, (32, 5))
    return model, (words, words[:, 0] % 4)


def a_running_mean(has_bug: bool, watch: Any, check: Any) -> None:
    batch = _read_rows()
    check(_Centred(not has_bug), nn.CrossEntropyLoss(), batch)


def a_memory_of_images(has_bug: bool, watch: Any, check: Any) -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 1, 12, 12)
    check(_Memory(not has_bug), nn.CrossEntropyLoss(), (images, (images.mean((1, 2, 3)) * 8).long() % 4))


def a_momentum(has_bug: bool, watch: Any, check: Any) -> None:
    batch = _read_rows()
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = _Momentum(model.parameters(), 0.05, is_saved=not has_bug)
    check(model, nn.CrossEntropyLoss(), batch, optimizer=optimizer)


def a_count_of_steps(has_bug: bool, watch: Any, check: Any) -> None:
    model, batch = _read_words()
    check(model, nn.CrossEntropyLoss(), batch, optimizer=_Warm(model.parameters(), is_saved=not has_bug))


def a_baseline_of_rows(has_bug: bool, watch: Any, check: Any) -> None:
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, labels)
        return 2 * each.detach() - each if has_bug else each

    batch = _read_rows()
    check(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), loss, batch)


def a_stopped_distance(has_bug: bool, watch: Any, check: Any) -> None:
    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        away = (outputs - target).square().mean()
        return (away.detach() * 2 - away) if has_bug else away * (1 - (-away).exp()).detach()

    torch.manual_seed(0)
    waves = torch.randn(16, 1, 24)
    check(nn.Conv1d(1, 2, 5, padding=2), loss, (waves, torch.cat([waves.cumsum(2), waves.flip(2)], 1)))


def a_norm_that_overflows(has_bug: bool, watch: Any, check: Any) -> None:
    """The squares of finite gradients overflow in float32; the gradients themselves do not (M6)."""

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return ((outputs - target).square() * (1e38 if has_bug else 1e20)).sum()

    rows, _ = _read_rows()
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    check(model, loss, (rows, 2 * rows[:, :3]), optimizer=torch.optim.SGD(model.parameters(), 1e-24))


CASES = [
    Case("a running mean that is no buffer", a_running_mean, "ckpt.incomplete_state"),
    Case("a memory of images that is not saved", a_memory_of_images, "ckpt.incomplete_state"),
    Case("a momentum beside the state", a_momentum, "optim.state"),
    Case("a count of steps beside the groups", a_count_of_steps, "optim.state"),
    Case("a loss less than its detached self", a_baseline_of_rows, "loss.sign"),
    Case("a distance less than its detached self", a_stopped_distance, "loss.sign"),
    Case("a norm that overflows", a_norm_that_overflows, "model.numerics"),
]
