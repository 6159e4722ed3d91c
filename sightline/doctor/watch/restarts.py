"""Restarts inside of one loop: weights that are set back together with what the optimiser has gathered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.doctor.watch.loop import Found, Loop, Monitor, OptimizerTrack, has_slices, take_local

_NUM_VALUES = 64
_MAX_SAME = 0.5
"""Share of the numbers up to which weights have been set anew: some are ones and zeros in any case."""


@dataclass
class _Weights:
    """A trained weight, its first numbers before the first update and after the last, and the state's size then."""

    weight: Tensor
    first: Tensor
    last: Tensor
    last_version: int = 0
    is_often_written: bool = False
    state_size: int = 0

    def take_values(self) -> Tensor:
        return take_local(self.weight.detach()).flatten()[:_NUM_VALUES].clone()

    @property
    def version(self) -> int:
        return self.weight._version


class RestartMonitor(Monitor):
    """Updates before which the loop has begun anew, as after a search for a learning rate, a fold, or a rewinding.

    It has written most weights since the last update, and the optimiser's state is empty or the weights are those of
    the start. A resume that loses the state alone leaves the weights as they are, or loads the same. `is_restarted` of
    the optimiser's track is for the monitors that come later.
    """

    def __init__(self) -> None:
        self._weights: dict[int, _Weights] = {}

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        track.is_restarted = False
        weights = self._weights.get(id(track))
        if weights is None:
            some: list[Tensor] = [p for p in track.small if p.requires_grad and has_slices(p) and p.numel()]
            if some:
                weight = min(some, key=lambda p: p.ndim < 2)  # norms and biases begin as ones and zeros
                weights = self._weights[id(track)] = _Weights(weight, empty := torch.empty(0), empty)
                weights.first = weights.last = weights.take_values()
                weights.last_version = weights.version
            return
        is_lost = weights.state_size > 0 and not track.optimizer.state
        is_written = weights.last_version != weights.version
        if is_lost or (is_written and not weights.is_often_written):
            now = weights.take_values()
            is_same = float((now == weights.last).float().mean()) > _MAX_SAME
            track.is_restarted = not is_same and (is_lost or torch.equal(now, weights.first))
        weights.is_often_written = is_written
        yield from ()

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        weights = self._weights.get(id(track))
        if weights is not None:
            weights.last, weights.last_version = weights.take_values(), weights.version
            weights.state_size = len(track.optimizer.state)
        yield from ()
