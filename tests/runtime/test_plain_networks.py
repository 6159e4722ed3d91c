"""Plain networks: clouds by their names, frozen layers that were never loaded, and warm-ups that do not end."""

from __future__ import annotations

import gc
import io
import pickle
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sightline
from tests.marks import long_but
from tests.runtime.odd_healthy_loops import batches, classes, mlp

CLASSES, POINTS, WIDTH = 4, 32, 32


def list_codes(model: nn.Module, loss: Any, batch: Any, **options: Any) -> list[str]:
    return [f.code for f in sightline.check(model, loss, batch, **options).findings if f.severity != "note"]


# --- clouds ----------------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """Layers for each point, pooled over `axis`: 1 is that of the points."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.points = nn.Sequential(nn.Linear(3, WIDTH), nn.ReLU(), nn.Linear(WIDTH, POINTS))
        self.head = nn.Linear(POINTS, CLASSES)

    def pool(self, points: Tensor) -> Tensor:
        logits: Tensor = self.head(self.points(points).amax(dim=self.axis))
        return logits


class ByName(Pooled):
    def forward(self, pts: Tensor) -> Tensor:
        return self.pool(pts)


class Plain(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


class OfMapping(Pooled):
    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.pool(batch["points"])


class OfTwo(Pooled):
    def forward(self, scale: Tensor, cloud: Tensor) -> Tensor:
        return self.pool(cloud * scale[:, None])


class Reshaped(nn.Module):
    """Part labels; `bug` reads (B, N, C) as (B, C, N) and back."""

    def __init__(self, bug: bool) -> None:
        super().__init__()
        self.bug = bug
        self.first, self.last = nn.Conv1d(3, WIDTH, 1), nn.Conv1d(WIDTH, CLASSES, 1)

    def forward(self, points: Tensor) -> Tensor:
        channels = points.reshape(len(points), 3, -1) if self.bug else points.transpose(1, 2)
        logits: Tensor = self.last(F.relu(self.first(channels)))
        return logits


def clouds() -> tuple[Tensor, Tensor]:
    return torch.randn(16, POINTS, 3), torch.arange(16) % CLASSES


@pytest.mark.parametrize("seed", long_but([0], range(3)))
def test_a_cloud_is_pooled_over_its_points(seed: int) -> None:
    torch.manual_seed(seed)
    points, label = clouds()
    scale, loss = torch.rand(16, 1) + 0.5, nn.CrossEntropyLoss()
    of_mapping = {"points": points, "label": label}
    assert list_codes(ByName(1), loss, (points, label)) == []
    assert list_codes(OfMapping(1), lambda out, batch: loss(out, batch["label"]), of_mapping) == []
    assert list_codes(OfTwo(1), loss, ((scale, points), label)) == []


def test_an_order_that_is_not_known_is_none_of_its_business() -> None:
    assert list_codes(Plain(2), nn.CrossEntropyLoss(), clouds()) == []  # x may be a sequence


@pytest.mark.parametrize("seed", long_but([0], range(3)))
def test_channels_read_from_the_memory_of_points_are_found(seed: int) -> None:
    torch.manual_seed(seed)
    points, label = torch.randn(16, POINTS, 3), torch.randint(0, CLASSES, (16, POINTS))
    assert "exchanged-axes" in list_codes(Reshaped(bug=True), nn.CrossEntropyLoss(), (points, label))
    assert list_codes(Reshaped(bug=False), nn.CrossEntropyLoss(), (points, label)) == []


# --- frozen layers ---------------------------------------------------------------------------------------------------


def backbone(norm: str) -> nn.Sequential:
    norms = {"batch": nn.BatchNorm1d(WIDTH), "layer": nn.LayerNorm(WIDTH), "none": nn.Identity()}
    return nn.Sequential(nn.Linear(10, WIDTH), norms[norm], nn.ReLU(), nn.Linear(WIDTH, WIDTH))


def trained_state(norm: str) -> dict[str, Tensor]:
    model = nn.Sequential(backbone(norm), nn.Linear(WIDTH, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        x = torch.randn(32, 10)
        optimizer.zero_grad()
        F.mse_loss(model(x), x[:, :3] * x[:, 3:6]).backward()
        optimizer.step()
    state: dict[str, Tensor] = model[0].state_dict()
    return state


def frozen(norm: str, prefix: str) -> nn.Sequential:
    body, stored = backbone(norm), io.BytesIO()
    torch.save({f"{prefix}{key}": value for key, value in trained_state(norm).items()}, stored)
    stored.seek(0)
    body.load_state_dict(torch.load(stored, weights_only=True), strict=False)
    return nn.Sequential(body.eval().requires_grad_(requires_grad=False), nn.ReLU(), nn.Linear(WIDTH, 3))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_frozen_backbone_that_was_loaded_raises_nothing(norm: str) -> None:
    torch.manual_seed(0)
    model = frozen(norm, "")
    optimizer = torch.optim.Adam(model[2].parameters(), 1e-3)
    assert list_codes(model, nn.CrossEntropyLoss(), classes(), optimizer=optimizer) == []


def test_random_features_and_averages_are_frozen_on_purpose() -> None:
    torch.manual_seed(0)
    features = frozen("none", "module.")  # without norms they may be random features
    assert list_codes(features, F.cross_entropy, classes()) == []

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.online = backbone("batch")
            self.target = backbone("batch").requires_grad_(requires_grad=False)
            self.target.load_state_dict(self.online.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.online(x), dim=1) - F.normalize(self.target(x), dim=1)

    assert list_codes(Student(), lambda out, _: out.square().mean(), classes()) == []


# --- weights that are restored ---------------------------------------------------------------------------------------


def test_nothing_is_left_in_a_model_after_its_loop() -> None:
    """A saved model needs no sightline, and neither the watch nor the optimiser lives on with it."""
    torch.manual_seed(0)
    model, average = mlp(10, 16, 3), mlp(10, 16, 3)
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer, ema=average) as watch:
        for inputs, label in batches(*classes(), epochs=1):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), label).backward()
            optimizer.step()
    for module in (*model.modules(), *average.modules()):
        hooks = {name: value for name, value in vars(module).items() if "hooks" in name and value}
        assert hooks == {}
    assert b"sightline" not in pickle.dumps(model)
    left = [weakref.ref(watch), weakref.ref(optimizer)]
    del watch, optimizer
    gc.collect()
    assert [each() for each in left] == [None, None]


# --- warm-ups --------------------------------------------------------------------------------------------------------


def run_schedule(factor: Any, *, each_update: bool, epochs: int = 6) -> list[str]:
    torch.manual_seed(0)
    model = mlp(10, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with sightline.watch(model, optimizer=optimizer, scheduler=scheduler) as watch:
        for _ in range(epochs):
            for inputs, label in batches(*classes(640), epochs=1):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), label).backward()
                optimizer.step()
                if each_update:
                    scheduler.step()
            if not each_update:
                scheduler.step()
    return [f.summary for f in watch.findings if f.code == "schedule"]


def test_a_warm_up_that_is_stepped_once_an_epoch_is_found() -> None:
    (summary,) = run_schedule(lambda step: min(1.0, (step + 1) / 40), each_update=False)
    assert "warm-up of SGD does not end" in summary
    assert run_schedule(lambda step: min(1.0, (step + 1) / 40), each_update=True) == []


@pytest.mark.parametrize(
    ("factor", "each_update"),
    [
        (lambda epoch: min(1.0, (epoch + 1) / 5), False),  # epochs, as it says
        (lambda step: min(1.0, (step + 1) / 1000), True),  # a warm-up that is longer than what is watched
        (lambda epoch: 0.9**epoch, False),
        (lambda epoch: 0.2 * 1.1**epoch, False),
    ],
)
def test_other_schedules_are_what_they_say(factor: Any, each_update: bool) -> None:
    assert run_schedule(factor, each_update=each_update) == []
