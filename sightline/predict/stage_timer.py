"""Timer of consecutive stages, in milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sightline.engine.distributed import World

__all__ = ["StageTimer", "median_times"]


class StageTimer:
    """Milliseconds of consecutive stages, including the GPU's work."""

    def __init__(self, world: World) -> None:
        self.ms: dict[str, float] = {}
        self._is_gpu = world.device.type == "cuda"
        self._at = time.perf_counter_ns()

    def end_stage(self, stage: str) -> None:
        """End the current stage now."""
        if self._is_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter_ns()
        self.ms[stage] = (now - self._at) / 1e6
        self._at = now


def median_times(documents: Sequence[Mapping[str, Any]], stages: Sequence[str], *, noun: str) -> str:
    """Format the median time of each stage over the documents that have it under `ms`, in one line."""
    medians = (f"{stage} {statistics.median(document['ms'][stage] for document in documents):.1f}" for stage in stages)
    times = ", ".join(medians)
    return f"ms a {noun}, the median of {len(documents)}: {times}; {noun}s that went together share their time"
