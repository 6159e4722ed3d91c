"""Cost of `sightline.watch` around a training loop: processor time of blocks of steps, bare and watched in turn.

    .venv/bin/python benchmarks/watch.py [--pairs 20] [--steps 10] [--json FILE]

A pair is a block of bare steps and one of watched steps, of the same network, on one thread; which comes first
alternates; the median is of the pairs' ratios. `own` is the processor time inside of the hooks alone, as a share of all
watched steps: it includes the statistics that are taken in each fiftieth step, as by default.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.parts.models.resnet import ImageClassifier, ResNet18Encoder
from sightline.workbench.watch.watch import Watch

EVENTS = ("_begin_forward", "_end_forward", "_before_backward", "_after_backward", "_before_update", "_after_update")
Step = Callable[[], Any]


def make_pointnet() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """Make PointNet, and clouds (32, 1024, 3) with labels."""
    model = sightline.build_model("pointnet", num_classes=40, in_channels=3)
    return model, {"points": torch.randn(32, 1024, 3)}, torch.randint(40, (32,))


def make_resnet() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """Make ResNet-18, and images (32, 3, 64, 64) with labels."""
    model = ImageClassifier(images=ResNet18Encoder(), num_classes=10)
    return model, {"image": torch.randn(32, 3, 64, 64)}, torch.randint(10, (32,))


NETWORKS = {"pointnet 32 x 1024": make_pointnet, "resnet18 32 x 64 x 64": make_resnet}


def make_step(model: nn.Module, inputs: dict[str, Tensor], label: Tensor) -> Step:
    """Make a training step by Adam, the inputs drawn anew by a shift."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        moved = {name: value.roll(1, 0) for name, value in inputs.items()}
        F.cross_entropy(model(**moved)["logits"], label).backward()
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
    """Measure a network; ratios are of watched and bare blocks, less 1."""
    torch.manual_seed(0)
    model, inputs, label = NETWORKS[name]()
    watched = copy.deepcopy(model)
    watch = sightline.watch(watched)
    spent = time_own(watch)
    bare_step, watched_step = (make_step(m, dict(inputs), label) for m in (model, watched))
    ratios, seconds, own, whole = [], [], 0.0, 0.0
    for pair in range(-1, pairs):  # the first pair warms up, and takes the statistics of the first steps
        times = {}
        for kind in ("bare", "watched") if pair % 2 else ("watched", "bare"):
            spent[0] = 0.0
            torch.manual_seed(pair + 1)  # dropout draws the same in both
            started = time.process_time()
            if kind == "bare":
                _repeat(bare_step, steps)
            else:
                with watch:
                    _repeat(watched_step, steps)
            times[kind] = time.process_time() - started
        if pair >= 0:
            ratios.append(times["watched"] / times["bare"] - 1)
            seconds.append(times["bare"] / steps)
            own, whole = own + spent[0], whole + times["watched"]
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), watched.parameters(), strict=True))
    assert same, f"{name}: the weights differ"
    assert not watch.findings, watch.findings
    return {"step_s": statistics.median(seconds), "ratios": ratios, "own": own / whole}


def _repeat(step: Step, count: int) -> None:
    for _ in range(count):
        step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(name, pairs=options.pairs, steps=options.steps) for name in NETWORKS}
    for name, row in found.items():
        ratios = [100 * value for value in row["ratios"]]
        print(  # noqa: T201
            f"{name}: {1000 * row['step_s']:.0f} ms a step; watched {statistics.median(ratios):+.2f} % "
            f"({min(ratios):+.2f} to {max(ratios):+.2f}), own {100 * row['own']:.2f} %"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
