"""Evaluates the samples of every case in this process's world, as a run does; the test starts one per rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.types import SampleKey
from sightline.engine.device.numerics import Precision
from sightline.engine.distributed import World, start_world
from sightline.engine.evaluate import BoundMetric, Evaluator
from tests.limits import HANG_S
from tests.metrics.cases import CASES
from tests.metrics.exam import Batch, Case, bits

BATCH_SIZE = 3  # seven samples or more: some process has more batches than another, and the last batch is smaller


class Reading:
    """A task without losses, whose predictions are in its batches."""

    protocol = ""

    def prepare(self, model: nn.Module, batches: Sequence[Batch], world: World) -> tuple[dict[str, Tensor], list[None]]:
        return {}, [None]

    def losses_and_predictions(self, model: nn.Module, batch: Batch, context: None) -> tuple[dict, Mapping[str, Any]]:
        return {}, {}


def evaluated(case: Case, world: World) -> str:
    """All that the case's metric makes of its samples, to the last bit."""
    metric, samples = case.build(), case.samples()

    def read(keys: Sequence[SampleKey]) -> Batch:
        index = torch.tensor([key.index for key in keys])
        return {"sample_index": index, **case.batch(samples, (index // 2).tolist())}

    keys = frozenset(read([SampleKey(1, 0, 0)]))
    update = bind(metric.update, AvailableKeys("samples", keys), owner=case.metric, exclude=("state",))
    evaluator = Evaluator(
        Reading(),  # type: ignore[arg-type]
        [BoundMetric(metric, update)],
        read,
        2 * np.arange(len(samples)) + 1,
        batch_size=BATCH_SIZE,
        precision=Precision("float32"),
        exact_keys=case.exact & keys,
    )
    [result] = evaluator(nn.Identity(), world).results
    return bits(metric, result.state)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with start_world(device="cpu", timeout_s=HANG_S) as world:
        results = {str(case): evaluated(case, world) for case in CASES}
        if world.rank == 0:
            out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
