"""Benchmarks of shipped recipes' training steps in bfloat16 and channels-last, against float32 as shipped.

A step is the engine's, on a batch in memory: preparation, forward, losses, backward, optimiser.
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

from sightline.bench.case import BenchmarkCase, Implementation, Run, allclose
from sightline.config import read_config
from sightline.config.shipped import copy_shipped
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.train import train_step

__all__ = ["cases"]

_HALF_TOLERANCE = 0.05
"""Tolerance as a share of the largest loss; the tests of each network bound the errors of single outputs."""


@dataclass(frozen=True)
class Recipe:
    """Shipped recipe with its batch size and overrides; `quick` is the batch size of a smoke test."""

    config: str
    batch: int
    overrides: tuple[str, ...] = ()
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
    return [_make_case(name, recipe) for name, recipe in RECIPES.items()]


def _make_case(name: str, recipe: Recipe) -> BenchmarkCase:
    channels_first, channels_last = (
        [f"model.channels_last={value}"] * recipe.has_channels_last for value in ("false", "true")
    )
    variants = [Implementation("sightline_bf16", _make_step(recipe, "bf16", *channels_last), allclose(_HALF_TOLERANCE))]
    if channels_last:
        variants.insert(
            0, Implementation("channels_last", _make_step(recipe, "float32", *channels_last), allclose(1e-3))
        )
    plain = Implementation("float32", _make_step(recipe, "float32", *channels_first), allclose(_HALF_TOLERANCE))
    sizes = {"batch": recipe.batch}, {"batch": recipe.quick}
    return BenchmarkCase("models", f"recipe_{name}_step_{{batch}}", *sizes, dict, plain, tuple(variants))


def _make_step(
    recipe: Recipe, precision: str, *overrides: str
) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    """Make successive steps of a recipe in a number format; each returns its losses, (num_losses,)."""

    @contextmanager
    def open_step(inputs: dict[str, Any]) -> Iterator[Run]:
        batch = inputs["batch"]
        small = [f"train.batch_size={batch}", f"data.train_size={max(16, batch)}", "data.test_size=16"]
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
            copy_shipped(recipe.config, Path(name))
            all_overrides = [
                *recipe.overrides,
                *overrides,
                *small,
                f"train.precision={precision}",
                "evaluate.select=test",
            ]
            config = read_config(Path(name) / "configs" / f"{recipe.config}.yaml", all_overrides)
            job = build(config, World()).job
        samples = job.stream.reader(job.stream.plan.step_keys(0)[0][0])

        def run() -> Tensor:
            totals = train_step(job, job.model, [samples], World(), _NoClock())
            return torch.tensor([totals.losses[loss] for loss in job.loss_weights])

        yield run

    return open_step


class _NoClock:
    def end_phase(self, name: str) -> None:
        pass
