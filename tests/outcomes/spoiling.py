"""Small trainings, and one number that enters one step of them: by an input, an activation, a buffer, or a state.

A training is a plain loop under `sightline.watch`, with batch norm (`norm`) or without (`plain`), or a run of a config
(`run`). The step, the number's position and the layer are drawn by the seed.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

import sightline
from sightline.doctor.finding import Finding
from sightline.training import train_run

RECIPES = ("norm", "plain", "run")
ENTRIES = ("input", "activation", "buffer", "state")
SIZES = (1e3, 1e6, 1e9, 1e12, 1e18)
_STEPS, _EVERY, _BATCH, _CLASSES, _WIDTH, _FEATURES = 240, 60, 16, 6, 32, 8
CONFIG: dict[str, Any] = {
    "name": "spoilt",
    "data": {"name": "synthetic_shapes", "train_size": 120, "test_size": 48, "num_points": 32},
    "model": {"name": "pointnet_plain", "embedding": 64, "dropout": 0.2},
    "losses": [{"name": "cross_entropy"}],
    "metrics": [{"name": "accuracy"}],
    "transforms": {"train": [{"name": "jitter"}]},
    "optimizer": {"name": "adam", "lr": 3e-3},
    "train": {"epochs": 15, "batch_size": 12},
    "evaluate": {"metric": "overall_accuracy", "batch_size": 48, "every": 3},
    "checkpoint": {"every": 15},
    "log": {"every": 10, "tensorboard": False},
}
_RUN_STEPS = 150


class Trained(NamedTuple):
    """Figure of a training on its test part, its alarms, and the step of the number."""

    figure: float
    alarms: Sequence[Finding]
    step: int


@dataclasses.dataclass
class Spoiler:
    """A number of a size that enters at one step by one way; None enters by none."""

    entry: str | None
    size: float
    step: int
    draw: random.Random
    count: int = 0

    def is_now(self) -> bool:
        self.count += 1
        return self.count == self.step

    def spoil(self, tensor: Tensor) -> None:
        """Set one number of a tensor, in its memory."""
        flat = tensor.detach().view(-1)
        flat[self.draw.randrange(len(flat))] = self.size

    def spoil_batch(self, inputs: Tensor) -> Tensor:
        if self.entry == "input" and self.is_now():
            inputs = inputs.clone()
            self.spoil(inputs)
        return inputs

    def hang(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Hang what changes an activation, a buffer or a state at the step."""
        if self.entry == "activation":
            leaves = [m for m in model.modules() if not [*m.children()] and [*m.parameters()]]
            self.draw.choice(leaves[:-1]).register_forward_hook(self._change_output)
        elif self.entry == "buffer":
            model.register_forward_pre_hook(self._change_buffer)
        elif self.entry == "state":
            optimizer.register_step_pre_hook(self._change_state)

    def _change_output(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not module.training or not self.is_now():
            return None
        changed = output.clone()
        self.spoil(changed)
        return changed

    def _change_buffer(self, model: nn.Module, inputs: Any) -> None:
        if model.training and self.is_now():
            self.spoil(self.draw.choice([b for b in model.buffers() if b.is_floating_point() and b.ndim]))

    def _change_state(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.is_now():
            slots = [t for state in optimizer.state.values() for t in state.values()]
            self.spoil(self.draw.choice([t for t in slots if isinstance(t, Tensor) and t.ndim]))


class Standardise(nn.Module):
    """Inputs by a mean and a scale that are buffers."""

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(_FEATURES))
        self.register_buffer("scale", torch.ones(_FEATURES))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) * self.scale


def make_network(*, has_norms: bool, features: int = _FEATURES) -> nn.Sequential:
    """Make a perceptron of two hidden layers, with batch norm and dropout or with neither."""
    layers: list[nn.Module] = [] if has_norms else [Standardise()] if features == _FEATURES else []
    for width in (features, _WIDTH):
        layers += [nn.Linear(width, _WIDTH), *([nn.BatchNorm1d(_WIDTH)] if has_norms else []), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.Dropout(0.3)] if has_norms else []), nn.Linear(_WIDTH, _CLASSES))


@functools.cache
def train(recipe: str, seed: int, entry: str | None = None, size: float = 0.0) -> Trained:
    """Train a recipe, with a number of a size that enters one of its steps, or without."""
    draw = random.Random(f"{recipe} {seed} {entry} {size}")
    most = _RUN_STEPS if recipe == "run" else _STEPS
    spoiler = Spoiler(entry, size, draw.randint(most // 20, most - most // 40), draw)
    return _train_run(seed, spoiler) if recipe == "run" else _train_loop(recipe, seed, spoiler)


def _train_loop(recipe: str, seed: int, spoiler: Spoiler) -> Trained:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(_CLASSES, _FEATURES, generator=generator)

    def read(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, _CLASSES, (number,), generator=generator)
        return centres[labels] + 0.7 * torch.randn(number, _FEATURES, generator=generator), labels

    test_inputs, test_labels = read(512)
    model = make_network(has_norms=recipe == "norm")
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(model.parameters(), 3e-3)
        if recipe == "norm"
        else torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    )
    spoiler.hang(model, optimizer)

    def evaluate() -> float:
        model.eval()
        with torch.no_grad():
            return float((model(test_inputs).argmax(1) == test_labels).float().mean())

    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(1, _STEPS + 1):
            inputs, labels = read(_BATCH)
            model.train()
            loss = nn.functional.cross_entropy(model(spoiler.spoil_batch(inputs)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % _EVERY == 0:
                evaluate()
    return Trained(evaluate(), [f for f in watch.findings if f.severity != "note"], spoiler.step)


def _train_run(seed: int, spoiler: Spoiler) -> Trained:
    build: Callable[..., Any] = train_run.build

    def build_spoilt(*arguments: Any, **options: Any) -> Any:
        built = build(*arguments, **options)
        job, read = built.job, built.job.stream.reader

        def read_spoilt(keys: Any) -> Any:
            batch = read(keys)
            return {**batch, "points": spoiler.spoil_batch(batch["points"])}

        spoiler.hang(job.model, job.optimizer)
        job.stream = dataclasses.replace(job.stream, reader=read_spoilt)
        return built

    with tempfile.TemporaryDirectory() as folder, patch.object(train_run, "build", build_spoilt):
        config = {**CONFIG, "seed": seed}
        try:
            result = sightline.train_run(config, out=Path(folder) / "run", checks=False, device="cpu")
        except sightline.RunError as error:
            found = [*getattr(error, "findings", ())]
            return Trained(float("nan"), found or [error], spoiler.step)  # type: ignore[list-item]
    assert result.document is not None
    figure = result.document["metrics"]["overall_accuracy"]
    return Trained(figure, [f for f in result.findings if f.severity != "note"], spoiler.step)
