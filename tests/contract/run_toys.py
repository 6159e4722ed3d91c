"""Trains every toy in this process's world and writes traces, weights and metrics; the test starts one per rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.batches.stream import BatchStream
from sightline.engine.device.numerics import Precision
from sightline.engine.distributed import World, start_world
from sightline.engine.evaluate import Evaluation, Evaluator
from sightline.engine.learnt_losses import LearntLosses
from sightline.engine.loop import train
from sightline.engine.optimizers import AdamW
from sightline.engine.schedules import Constant
from sightline.engine.train import TrainState
from tests.contract.images import FEW_BOXES, IMAGES
from tests.contract.toy import Toy, meters
from tests.contract.toys import ALL, TOYS
from tests.limits import HANG_S
from tests.memory_order import ORDERS

NUM_TRAINED, NUM_EVALUATED = 27, 25
"""The first samples; they reach into the second set of those that are joined, and 25 in batches of 4 leave one over."""
NUM_STEPS = 6  # crosses the epoch's end: 27 samples in batches of 8 are four steps, the last of 3 samples
BATCH_SIZE = 8
PRECISION = Precision("float64")


def run(
    toy: Toy,
    world: World,
    micro_batches: int,
    *,
    order: str = "as_made",
    is_compiled: bool = False,
    is_evaluated: bool = False,
) -> dict:
    """The loss trace and the final weights of a short training, parameters in some order in memory; and its metrics."""
    torch.manual_seed(0)
    model = ORDERS[order](toy.model().double())
    reader = toy.reader
    task = toy.task(model, reader.keys)
    plan = BatchSampler(
        np.arange(NUM_TRAINED), BATCH_SIZE, seed=3, micro_batches=micro_batches, num_processes=world.size
    )
    learnt = getattr(task, "learnt", LearntLosses())
    optimizer = AdamW(lr=0.02, weight_decay=0.01, decay="all").build(model, learnt)
    job = TrainState(
        model=model,
        task=task,
        optimizer=optimizer,
        schedule=Constant(num_steps=NUM_STEPS, steps_per_epoch=plan.steps_per_epoch, warmup_epochs=0.5),
        stream=BatchStream(plan, reader, world.rank),
        num_steps=NUM_STEPS,
        loss_weights=toy.weights,
        precision=PRECISION,
        clip_norm=0.5,
        losses=learnt,
        compile=is_compiled,
    )
    trace: list[dict[str, float]] = []

    def at_step(record, stop_requested: bool) -> bool:
        numbers = {"grad_norm": record.grad_norm, "samples": record.num_samples}
        trace.append(dict(record.losses) | dict(record.extra_scalars) | numbers)
        return False

    train(job, world, at_step)
    weights, of_losses = (
        {name: tensor.flatten().tolist() for name, tensor in trained.state_dict().items()}
        for trained in (model, learnt.losses)
    )
    found = {"trace": trace, "weights": weights, "of_losses": of_losses}
    if not is_evaluated:
        return found
    result = evaluate(toy, model, task, world)
    return {**found, "metrics": dict(result.metrics), "losses": dict(result.losses)}


def evaluate(toy: Toy, model: nn.Module, task: Any, world: World) -> Evaluation:
    reader, names = toy.reader, tuple(toy.weights)
    evaluator = Evaluator(
        task, meters(toy, model, reader), reader, np.arange(NUM_EVALUATED), 4, loss_names=names, precision=PRECISION
    )
    return evaluator(model, world)


def cases_of(name: str, num_processes: int) -> list[tuple[str, int]]:
    """Orders of parameters in memory, and numbers of micro-batches, that a toy is trained with.

    Three processes, of the daily tests, take each toy once, and those that differ from one another by more than a
    detector's head in micro-batches too; detectors with few boxes stand for those with none.
    """
    if num_processes == 2:
        more = [("as_made", 2), ("turned", 1), ("gapped", 1)]
    else:
        more = [("as_made", 2)] if name not in IMAGES or name == "detector" else []
        if name in FEW_BOXES and name != "detector_few":
            return []
    return [("as_made", 1), *(more if name in TOYS else [])]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with start_world(device="cpu", timeout_s=HANG_S) as world:
        results = {
            name: {
                f"{order} {m}": run(toy, world, m, order=order, is_evaluated=(order, m) == ("as_made", 1))
                for order, m in cases_of(name, world.size)
            }
            for name, toy in ALL.items()
        }
        if world.rank == 0:
            out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
