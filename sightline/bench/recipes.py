"""Training steps of shipped recipes in 16 bits, with channels together in memory, against float32 as shipped.

A step is the engine's, on a batch that is there already: preparation, forward, losses, backward, optimiser.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.bench.agreement import allclose
from sightline.bench.case import BenchmarkCase, Implementation, Run
from sightline.config import read_config
from sightline.config.shipped import copy_shipped
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.train import train_step

__all__ = ["cases"]

_NEAR_IN_16_BITS = 0.05
"""Of the largest loss. What single outputs are off by, the tests of each network bound."""


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe, its samples a step, what is changed of it; `quick` samples in a smoke test."""

    config: str
    batch: int
    words: tuple[str, ...] = ()
    has_channels_last: bool = False
    quick: int = 2


_PUBLISHED_WIDTH = ("model.width=32", "model.dropout=0")
_POINTS = ("data.num_points=1024",)
_CLOUDS = (*_POINTS, "model.dropout=0")  # 16 bits draw other numbers for dropout
RECIPES: Mapping[str, Recipe] = {
    "pointnet": Recipe("classify/synthetic_shapes_pointnet", 32, _CLOUDS, quick=16),
    "dgcnn": Recipe("classify/synthetic_shapes_dgcnn", 32, _CLOUDS, quick=16),
    "pct": Recipe("classify/synthetic_shapes_pct", 32, _CLOUDS, quick=16),
    "pointnet2": Recipe("classify/synthetic_shapes_pointnet2", 32, _CLOUDS, quick=16),
    "point_transformer": Recipe("segment/synthetic_shapes_point_transformer", 16, _POINTS, quick=16),
    "salsanext": Recipe(
        "segment/synthetic_lidar_salsanext", 1, ("model.width=32", "model.dropout=0"), has_channels_last=True
    ),
    "retinanet": Recipe("detect/synthetic_crowds_retinanet", 8, has_channels_last=True),
    "fcos": Recipe("detect/synthetic_crowds_fcos", 8, has_channels_last=True),
    "v2v": Recipe("pose/synthetic_hands_v2v", 1, has_channels_last=True, quick=1),
}


def cases() -> list[BenchmarkCase]:
    return [_case(name, recipe) for name, recipe in RECIPES.items()]


def _case(name: str, recipe: Recipe) -> BenchmarkCase:
    apart, together = ([f"model.channels_last={value}"] * recipe.has_channels_last for value in ("false", "true"))
    variants = [Implementation("sightline_bf16", _step(recipe, "bf16", *together), allclose(_NEAR_IN_16_BITS))]
    if together:
        variants.insert(0, Implementation("channels_last", _step(recipe, "float32", *together), allclose(1e-3)))
    plain = Implementation("float32", _step(recipe, "float32", *apart), allclose(_NEAR_IN_16_BITS))
    sizes = {"batch": recipe.batch}, {"batch": recipe.quick}
    return BenchmarkCase("models", f"recipe_{name}_step_{{batch}}", *sizes, dict, plain, tuple(variants))


def _step(recipe: Recipe, precision: str, *words: str) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    """Steps that go on from one another; the answer is the sum of the weighted losses of the first."""

    @contextmanager
    def opened(inputs: dict[str, Any]) -> Iterator[Run]:
        batch = inputs["batch"]
        small = [f"train.batch_size={batch}", f"data.train_size={max(16, batch)}", "data.test_size=16"]
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
            copy_shipped(recipe.config, Path(name))
            overrides = [*recipe.words, *words, *small, f"train.precision={precision}", "evaluate.select=test"]
            config = read_config(Path(name) / "configs" / f"{recipe.config}.yaml", overrides)
            job = build(config, World()).job
        samples = job.stream.reader(job.stream.plan.step_keys(0)[0][0])

        def run() -> Tensor:
            totals = train_step(job, job.model, [samples], World(), _NoLaps())
            return torch.tensor([totals.losses[loss] for loss in job.loss_weights])

        yield run

    return opened


class _NoLaps:
    def end_phase(self, name: str) -> None:
        pass
