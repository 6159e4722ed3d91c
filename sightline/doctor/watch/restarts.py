"""Restarts inside of one loop: weights that are set back, and states of optimisers that are lost."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.rules import find_by
from sightline.doctor.rules.state import lost_state
from sightline.doctor.watch.loop import Found, Loop, Monitor, OptimizerTrack, has_slices, take_local

_NUM_VALUES = 64
_MAX_SAME = 0.5
"""Share of the numbers up to which weights have been set anew: some are ones and zeros in any case."""


@dataclass
class _Weights:
    """A trained weight, a view of its first numbers, and copies before the first update and after the last one."""

    weight: Tensor
    now: Any
    first: Any
    last: Any


class RestartMonitor(Monitor):
    """States that the last update left are there at the next, also after a resume, unless the loop has begun anew.

    So it does after a search for a learning rate, a fold, or a rewinding: it has written most weights since the last
    update, and the optimiser's state is empty or the weights are those of the start. A resume that loses the state
    alone leaves the weights as they are, or loads the same. `is_restarted` of the track is for later monitors.
    """

    def __init__(self) -> None:
        self._weights: dict[int, _Weights] = {}
        self._is_resumed: set[int] = set()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found] | None:
        state, was_written = track.optimizer.state, track.num_writes > 0
        is_lost = track.state_size > 0 and not state
        track.num_writes, track.is_restarted = track.count_writes(), False
        if track.num_updates == 0:
            self._begin(loop, track)
        if not is_lost and (was_written or not track.num_writes):
            return None
        return self._judge(track, is_lost)

    def _begin(self, loop: Loop, track: OptimizerTrack) -> None:
        if not track.optimizer.state and loop.step == loop.first_step > 0:
            self._is_resumed.add(id(track))
        some = [p for p in track.small if p.requires_grad and p.numel() and has_slices(p) and p.is_contiguous()]
        if some:
            weight = min(some, key=lambda p: p.ndim < 2)  # norms and biases begin as ones and zeros
            now = _take_few(weight)
            self._weights[id(track)] = _Weights(weight, now, copy.deepcopy(now), copy.deepcopy(now))

    def _judge(self, track: OptimizerTrack, is_lost: bool) -> Iterator[Found]:
        weights = self._weights.get(id(track))
        if weights is not None:
            weights.now = _take_few(weights.weight)  # it may have other memory now
            is_same = float(sum(weights.now == weights.last)) / len(weights.last) > _MAX_SAME
            track.is_restarted = not is_same and (is_lost or bool((weights.now == weights.first).all()))
        if is_lost and not track.is_restarted:
            numbers = {"num_before": track.state_size, "num_resumed": 0, "update": track.num_updates + 1}
            yield from find_by(lost_state, optimizer=track.name, **numbers)

    def after_update(self, loop: Loop, track: OptimizerTrack) -> list[Found] | None:
        if (weights := self._weights.get(id(track))) is not None:
            weights.last[:] = weights.now
        if track.num_updates or id(track) not in self._is_resumed:
            return None
        size = len(track.optimizer.state) if any(map(bool, track.optimizer.state.values())) else 0
        numbers = {"num_before": 0, "num_resumed": size, "update": loop.step + 1}
        return find_by(lost_state, optimizer=track.name, **numbers) if size else None


def _take_few(weight: Tensor) -> Any:
    """Return a view of some numbers; of the host for NumPy, if it knows their format: it is copied at each update."""
    few = take_local(weight.detach()).view(-1)[:_NUM_VALUES]
    return few.numpy() if few.is_cpu and few.dtype in (torch.float16, torch.float32, torch.float64) else few
