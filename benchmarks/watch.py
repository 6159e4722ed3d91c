"""Cost of `sightline.watch` around a training loop: processor time of blocks of steps, bare and watched in turn.

    .venv/bin/python benchmarks/watch.py [--pairs 20] [--steps 10] [--json FILE]

A pair is a block of bare steps and one of watched steps, of the same network, on one thread; which comes first
alternates; the median is of the pairs' ratios. `own` is the processor time inside of the hooks alone, as a share of all
watched steps: it includes the statistics that are taken in each fiftieth step, as by default. `between` is the median
of it in a step between those that are measured, in milliseconds. Five networks of ours, and eight small loops.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.areas.clouds.models.pointnet import PointNetEncoder
from sightline.areas.contrast.crosspoint import IntraPoint
from sightline.doctor.watch.watch import Watch
from sightline.parts.models.image_classifier import ImageClassifier
from sightline.parts.models.resnet import ResNet18Encoder

EVENTS = (
    *("_begin_forward", "_begin_part", "_end_forward", "_before_backward", "_after_backward"),
    *("_before_unscaling", "_before_update", "_after_update"),
)
Step = Callable[[], Any]


class Case(NamedTuple):
    """Network of one family of tasks, its inputs, and the loss of its outputs."""

    model: nn.Module
    inputs: dict[str, Tensor]
    loss: Callable[[Any], Tensor]


def make_cloud() -> Case:
    """Make PointNet, clouds (32, 1024, 3) and a cross entropy."""
    model = sightline.build_model("pointnet", num_classes=40, in_channels=3)
    return Case(model, {"points": torch.randn(32, 1024, 3)}, make_cross_entropy((32,), 40))


def make_image() -> Case:
    """Make ResNet-18, images (32, 3, 64, 64) and a cross entropy."""
    model = ImageClassifier(images=ResNet18Encoder(), num_classes=10)
    return Case(model, {"image": torch.randn(32, 3, 64, 64)}, make_cross_entropy((32,), 10))


def make_range_image() -> Case:
    """Make SalsaNext, range images (2, 5, 64, 256) and a cross entropy of their pixels."""
    model = sightline.build_model("salsanext", num_classes=20, in_channels=5)
    return Case(model, {"image": torch.randn(2, 5, 64, 256)}, make_cross_entropy((2, 64, 256), 20))


def make_volume() -> Case:
    """Make the small V2V-PoseNet, volumes (4, 1, 44, 44, 44) and a squared error of heat maps."""
    model = sightline.build_model("v2v_small", num_joints=14)
    maps = torch.rand(4, 14, 22, 22, 22)
    volume = (torch.rand(4, 1, 44, 44, 44) < 0.05).float()
    return Case(model, {"volume": volume}, lambda outputs: F.mse_loss(outputs["likelihood"], maps))


def make_contrast() -> Case:
    """Make IntraPoint on PointNet, two views (32, 512, 3) of each object, and the contrast between them."""
    cloud = torch.randn(32, 512, 3)
    views = {"points": cloud, "other_points": cloud + 0.01 * torch.randn_like(cloud)}

    def loss(outputs: Any) -> Tensor:
        first, second = (F.normalize(outputs[name], dim=1) for name in ("first", "second"))
        return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(first)))

    return Case(IntraPoint(points=PointNetEncoder(in_channels=3)), views, loss)


def make_cross_entropy(shape: tuple[int, ...], num_classes: int) -> Callable[[Any], Tensor]:
    """Make the cross entropy of logits, whose classes are last, with labels of this shape."""
    label = torch.randint(num_classes, shape)
    return lambda outputs: F.cross_entropy(outputs["logits"].flatten(0, -2), label.flatten())


class Sequence(nn.Module):
    """Layers of a sequence (B, T, C), of which the last step is classified."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.head = layers, nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.layers(inputs)
        features = features[0] if isinstance(features, tuple) else features
        return {"logits": self.head(features[:, -1])}


class Skip(nn.Module):
    """Layers whose inputs are added to, or joined with, their outputs."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, self.layers(inputs)], dim=1)


class Plain(nn.Module):
    """Layers in a row, whose outputs have a name."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(inputs)}


class Variational(nn.Module):
    """Variational autoencoder of rows; a plain one without a `spread`."""

    def __init__(self, *, spread: float = 1.0) -> None:
        super().__init__()
        self.spread = spread
        self.encoder, self.decoder = (
            nn.Linear(256, 64),
            nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256)),
        )

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        mean, log = self.encoder(inputs).chunk(2, dim=1)
        sample = mean + self.spread * torch.randn_like(mean) * (0.5 * log).exp()
        return {"rows": self.decoder(sample), "mean": mean, "log": log, "inputs": inputs}


def make_conv(inputs: int, outputs: int, *, stride: int = 1) -> list[nn.Module]:
    """Make a convolution of 3 x 3 with its norm and activation."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU()]


def make_small() -> dict[str, Callable[[], Case]]:
    """Make eight loops of 2 to 12 ms a step."""
    layer = partial(nn.TransformerEncoderLayer, 64, 4, 128, batch_first=True)
    up = nn.ConvTranspose2d(32, 16, 2, stride=2)
    flat = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    entropy, pixels = make_cross_entropy((32,), 10), make_cross_entropy((4, 32, 32), 4)
    images = torch.randn(32, 3, 16, 16)

    def bound(outputs: Any) -> Tensor:
        divergence = (outputs["mean"] ** 2 + outputs["log"].exp() - 1 - outputs["log"]).mean()
        return F.mse_loss(outputs["rows"], outputs["inputs"]) + divergence

    networks: dict[str, tuple[nn.Module, Tensor, Callable[[Any], Tensor]]] = {
        "mlp": (Plain(*make_mlp(64, 512, 512, 10)), torch.randn(32, 64), entropy),
        "cnn": (Plain(*make_conv(3, 16), *make_conv(16, 32, stride=2), *flat), images, entropy),
        "lstm": (Sequence(nn.LSTM(32, 64, batch_first=True)), torch.randn(32, 16, 32), entropy),
        "transformer": (Sequence(nn.Sequential(layer(), layer())), torch.randn(32, 8, 64), entropy),
        "u-net": (
            Plain(*make_conv(3, 16), Skip(*make_conv(16, 32, stride=2), up), nn.Conv2d(32, 4, 1)),
            torch.randn(4, 3, 32, 32),
            lambda outputs: pixels({"logits": outputs["logits"].movedim(1, -1)}),
        ),
        "vae": (Variational(), torch.randn(128, 256), bound),
        "autoencoder": (
            Variational(spread=0.0),
            torch.randn(128, 256),
            lambda outputs: F.mse_loss(outputs["rows"], outputs["inputs"]),
        ),
        "words": (Plain(nn.EmbeddingBag(5000, 64), *make_mlp(64, 256, 10)), torch.randint(5000, (32, 40)), entropy),
    }
    return {f"small: {name}": partial(_make_case, *parts) for name, parts in networks.items()}


def make_mlp(*widths: int) -> list[nn.Module]:
    """Make linear layers with activations between them."""
    layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in itertools.pairwise(widths)]
    return list(itertools.chain(*layers))[:-1]


def _make_case(model: nn.Module, inputs: Tensor, loss: Callable[[Any], Tensor]) -> Case:
    return Case(model, {"inputs": inputs}, loss)


CASES = {
    "cloud: pointnet 32 x 1024": make_cloud,
    "image: resnet18 32 x 64 x 64": make_image,
    "range image: salsanext 2 x 64 x 256": make_range_image,
    "volume: v2v_small 4 x 44^3": make_volume,
    "contrast: intrapoint 32 x 2 x 512": make_contrast,
    **make_small(),
}


def make_step(model: nn.Module, inputs: dict[str, Tensor], loss: Callable[[Any], Tensor]) -> Step:
    """Make a training step by Adam, the inputs drawn anew by a shift."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        moved = {name: value.roll(1, 0) for name, value in inputs.items()}
        loss(model(**moved)).backward()
        optimizer.step()
        inputs.update(moved)

    return step


def time_own(watch: Watch) -> list[float]:
    """Replace the events of a watch by timed ones; return the list to which their seconds are added."""
    spent = [0.0]

    def wrap(event: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.thread_time()
            result = event(*arguments)
            spent[0] += time.thread_time() - started
            return result

        return run

    for name in EVENTS:
        setattr(watch, name, wrap(getattr(watch, name)))
    return spent


def measure(name: str, *, pairs: int, steps: int) -> dict[str, Any]:
    """Measure a case; ratios are of watched and bare blocks, less 1."""
    torch.manual_seed(0)
    model, inputs, loss = CASES[name]()
    watched = copy.deepcopy(model)
    watch = sightline.watch(watched, declared=("same-order",))  # the batch of 32 is rolled: it comes back
    spent = time_own(watch)
    bare_step, watched_step = (make_step(m, dict(inputs), loss) for m in (model, watched))
    ratios, seconds, between, own, whole = [], [], list[float](), 0.0, 0.0

    def run_watched() -> None:
        is_measured, before = watch._loop.is_measured, spent[0]
        watched_step()
        between.extend([] if is_measured else [spent[0] - before])

    for pair in range(-1, pairs):  # the first pair warms up, and takes the statistics of the first steps
        times = {}
        for kind in ("bare", "watched") if pair % 2 else ("watched", "bare"):
            torch.manual_seed(pair + 1)  # dropout draws the same in both
            started = time.process_time()
            if kind == "bare":
                _repeat(bare_step, steps)
            else:
                spent[0] = 0.0
                with watch:
                    _repeat(run_watched, steps)
            times[kind] = time.process_time() - started
        if pair >= 0:
            ratios.append(times["watched"] / times["bare"] - 1)
            seconds.append(times["bare"] / steps)
            own, whole = own + spent[0], whole + times["watched"]
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), watched.parameters(), strict=True))
    assert same, f"{name}: the weights differ"
    alarms = [finding for finding in watch.findings if finding.severity != "note"]
    assert not alarms, f"{name}: {alarms}"
    times_s = {"step_s": statistics.median(seconds), "between_s": statistics.median(between)}
    return {**times_s, "ratios": ratios, "own": own / whole}


def _repeat(step: Step, count: int) -> None:
    for _ in range(count):
        step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("cases", nargs="*", help="beginnings of names; all without any")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        name: measure(name, pairs=options.pairs, steps=options.steps)
        for name in CASES
        if name.startswith(tuple(options.cases or [""]))
    }
    for name, row in results.items():
        ratios = [100 * value for value in row["ratios"]]
        print(  # noqa: T201
            f"{name}: {1000 * row['step_s']:.1f} ms a step; watched {statistics.median(ratios):+.2f} % "
            f"({min(ratios):+.2f} to {max(ratios):+.2f}), own {100 * row['own']:.2f} %, "
            f"{1000 * row['between_s']:.3f} ms between"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
