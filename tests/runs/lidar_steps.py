"""Evaluates and trains the shipped recipe over range images, made small, in this process's world; one per rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World, start_world
from sightline.engine.loop import train
from tests.limits import HANG_S
from tests.processes import ROOT

__all__ = ["run_steps"]

# 18 of 20 scans train, in steps of 7, 7 and 4: two processes have 4 and 3 of them, three 3, 2 and 2. Up to a half of
# the points of each scan is dropped, so scans differ in size; SqueezeSeg has no batch norm, whose sums are rounded.
WORDS = (
    "data.num_columns=32",
    "data.train_size=20",
    "data.test_size=5",
    "data.lost_share=0.3",
    "model={name: squeezeseg, circular: true, dropout: 0.0}",
    "transforms.train.1={name: drop_points, max_ratio: 0.5, fill: none}",
    "transforms.train.2.width=32",
    "transforms.evaluate.0.width=32",
    "train.batch_size=7",
    "train.epochs=2",
    "train.precision=float64",
    "evaluate.batch_size=2",
)


def run_steps(world: World, micro_batches: int = 1) -> dict[str, Any]:
    """The confusion of the first weights, and the trace and the weights of two epochs of three steps."""
    path = ROOT / "configs/segment/synthetic_lidar_salsanext.yaml"
    built = build(read_config(path, [*WORDS, f"train.micro_batches={micro_batches}"]), world)
    first = built.test_evaluator(built.job.evaluation_model, world)
    trace: list[dict[str, float]] = []

    def at_step(record: Any, stop_requested: bool) -> bool:
        trace.append(dict(record.losses) | {"grad_norm": record.grad_norm, "samples": record.num_samples})
        return False

    train(built.job, world, at_step)
    last = built.test_evaluator(built.job.evaluation_model, world)
    return {
        "confusion": first.results[0].state["confusion"].tolist(),
        "first": dict(first.metrics) | dict(first.losses),
        "trace": trace,
        "last": dict(last.metrics) | dict(last.losses),
        "weights": {name: tensor.flatten().tolist() for name, tensor in built.job.model.state_dict().items()},
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with start_world(device="cpu", timeout_s=HANG_S) as world:
        result = run_steps(world)
        if world.rank == 0:
            out.write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
