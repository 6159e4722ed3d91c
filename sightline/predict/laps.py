"""The milliseconds that stages take which follow one another."""

from __future__ import annotations

import time

import torch

from sightline.engine.distributed import World

__all__ = ["Laps"]


class Laps:
    """Milliseconds of stages, the GPU's work in them included."""

    def __init__(self, world: World) -> None:
        self.ms: dict[str, float] = {}
        self._is_gpu = world.device.type == "cuda"
        self._at = time.perf_counter_ns()

    def end(self, stage: str) -> None:
        """End a stage now."""
        if self._is_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter_ns()
        self.ms[stage] = (now - self._at) / 1e6
        self._at = now
