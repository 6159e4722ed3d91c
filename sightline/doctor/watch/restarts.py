"""Restarts inside of one loop: weights that are set back together with what the optimiser has gathered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.doctor.watch.loop import Loop, Monitor, OptimizerTrack, has_slices, take_local

_NUM_VALUES = 64
_MAX_SAME = 0.5
"""Share of the numbers up to which weights have been set anew: some are ones and zeros in any case."""


@dataclass
class _Weights:
    """A trained weight, a view of its first numbers, and copies before the first update and after the last one."""

    weight: Tensor
    now: Tensor
    first: Tensor
    last: Tensor
    last_version: int = 0
    is_often_written: bool = False
    state_size: int = 0


class RestartMonitor(Monitor):
    """Updates before which the loop has begun anew, as after a search for a learning rate, a fold, or a rewinding.

    It has written most weights since the last update, and the optimiser's state is empty or the weights are those of
    the start. A resume that loses the state alone leaves the weights as they are, or loads the same. `is_restarted` of
    the optimiser's track is for the monitors that come later.
    """

    def __init__(self) -> None:
        self._weights: dict[int, _Weights | None] = {}

    def before_update(self, loop: Loop, track: OptimizerTrack) -> None:
        track.is_restarted = False
        if id(track) not in self._weights:
            some = [p for p in track.small if p.requires_grad and p.numel() and has_slices(p) and p.is_contiguous()]
            self._weights[id(track)] = None
            if some:
                weight = min(some, key=lambda p: p.ndim < 2)  # norms and biases begin as ones and zeros
                now = _take_few(weight)
                self._weights[id(track)] = _Weights(weight, now, now.clone(), now.clone())
            return
        weights = self._weights[id(track)]
        if weights is None:
            return
        is_lost = weights.state_size > 0 and not track.optimizer.state
        is_written = weights.last_version != weights.weight._version
        if is_lost or (is_written and not weights.is_often_written):
            weights.now = _take_few(weights.weight)  # it may have other memory now
            is_same = float((weights.now == weights.last).float().mean()) > _MAX_SAME
            track.is_restarted = not is_same and (is_lost or torch.equal(weights.now, weights.first))
        weights.is_often_written = is_written

    def after_update(self, loop: Loop, track: OptimizerTrack) -> None:
        weights = self._weights.get(id(track))
        if weights is not None:
            weights.last.copy_(weights.now)
            weights.last_version, weights.state_size = weights.weight._version, len(track.optimizer.state)


def _take_few(weight: Tensor) -> Tensor:
    return take_local(weight.detach()).view(-1)[:_NUM_VALUES]
