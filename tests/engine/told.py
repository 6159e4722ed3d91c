"""Records as the loop would tell them, and what observers must leave alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sightline.draw.pictures import Picture
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.records import EvaluationRecord, StepRecord
from sightline.engine.train import TrainState


def step(
    number: int, *, steps_per_epoch: int = 10, num_steps: int = 100, data_s: float = 0.001, **changes: Any
) -> StepRecord:
    """A step of 0.1 s and of 8 samples, but for `changes`."""
    fields: dict[str, Any] = {
        "step": number,
        "num_steps": num_steps,
        "epoch": (number - 1) // steps_per_epoch,
        "num_epochs": -(-num_steps // steps_per_epoch),
        "num_samples": 8,
        "losses": {"cross_entropy": 1.0 / number, "total": 2.0 / number},
        "grad_norm": 0.5,
        "lr": 0.1 / number,
        "seconds": {"data": data_s, "forward": 0.04, "backward": 0.1 - 0.04 - data_s},
        "wall_s": 0.1 * number,
    }
    return StepRecord(**(fields | changes))


def evaluation(number: int, **changes: Any) -> EvaluationRecord:
    fields: dict[str, Any] = {
        "step": number,
        "epoch": (number - 1) // 10,
        "split": "validation",
        "metrics": {"accuracy": 0.75, "recall_of_none": math.nan},
        "losses": {"cross_entropy": 0.5, "total": 1.0},
        "seconds": 2.0,
        "num_samples": 40,
        "is_best": True,
        "pictures": (Picture("clouds", np.full((12, 20, 3), 200, dtype=np.uint8), "two of them"),),
    }
    return EvaluationRecord(**(fields | changes))


def records_of(job: TrainState, **named: Any) -> list[StepRecord]:
    """Train, and return what the loop tells of each step."""
    records: list[StepRecord] = []
    train(job, World(), lambda record, stop: bool(records.append(record)), **named)
    return records


class Lines:
    """A run directory's `append_line`, as text, so that what is not JSON is refused."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def append_line(self, name: str, line: Mapping[str, Any]) -> None:
        assert name == "metrics.jsonl"
        self.text.append(json.dumps(line, allow_nan=False))

    @property
    def parsed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text]


def random_states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return (
        random.getstate(),
        numpy_state["state"]["key"].tobytes(),
        numpy_state["state"]["pos"],
        torch.get_rng_state().numpy().tobytes(),
    )
