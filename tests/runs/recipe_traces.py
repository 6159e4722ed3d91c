"""Trains shipped recipes of procedural data for a few steps in this process's world; one is started per rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World, start_world
from sightline.engine.loop import train
from sightline.layers.curve_levels import list_permutations
from tests.limits import HANG_S
from tests.processes import ROOT
from tests.recipes import SMALLER, recipes

__all__ = ["RECIPES", "trace"]

RECIPES = recipes()
NUM_STEPS = 2
_FEW = (
    "data.train_size=24",
    "data.test_size=8",
    "train.batch_size=5",
    "train.tail=drop",
    f"train.steps={NUM_STEPS}",
    "train.precision=float64",
    "distributed.sync_batch_norm=true",
)


def trace(recipe: str, world: World) -> dict[str, dict[str, float]]:
    """What each step logged, and a number for each tensor of the model after the last one; nothing in it is drawn."""
    config = read_config(ROOT / "configs" / f"{recipe}.yaml", (*_FEW, *SMALLER.get(recipe, ())))
    built = build(config, world)
    for module in built.job.model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # every process draws masks of its own, and orders of curves
    steps: dict[str, dict[str, float]] = {}

    def at_step(record, stop_requested: bool) -> bool:
        steps[f"step {record.step}"] = dict(record.losses) | {"grad_norm": record.grad_norm}
        return False

    with mock.patch("sightline.parts.models.ptv3.list_permutations", _list_in_order):
        train(built.job, world, at_step)
    return steps | {"weights": {name: _number(tensor) for name, tensor in built.job.model.state_dict().items()}}


def _list_in_order(num_levels: int, *, is_shuffled: bool) -> list[list[int]]:
    return list_permutations(num_levels, is_shuffled=False)


def _number(tensor: Tensor) -> float:
    """The tensor's product with fixed random numbers, whatever its order in memory."""
    factors = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return float((tensor.double() * factors).sum())


def main(out: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    with start_world(device="cpu", timeout_s=HANG_S) as world:
        results = {recipe: trace(recipe, world) for recipe in names}
        if world.rank == 0:
            out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
