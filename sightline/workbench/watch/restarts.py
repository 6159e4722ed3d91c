"""Restarts inside of one loop: weights that are set back together with what the optimiser has gathered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.workbench.watch.loop import Found, Loop, Monitor, OptimizerTrack, has_slices, take_local

_NUM_WEIGHTS, _NUM_VALUES = 4, 16
_MAX_SAME = 0.5
"""Share of the numbers up to which weights have been set anew: some are ones and zeros in any case."""


@dataclass
class _Weights:
    """A few trained weights, their numbers before the first update and after the last, and the state's size then."""

    some: list[Tensor]
    first: Tensor
    last: Tensor
    versions: list[int]
    is_often_written: bool = False
    state_size: int = 0

    def take_values(self) -> Tensor:
        values = [take_local(weight.detach()).flatten()[:_NUM_VALUES].float() for weight in self.some]
        return torch.cat([value.to(values[0].device) for value in values])

    def list_versions(self) -> list[int]:
        return [weight._version for weight in self.some]


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
            some = some[:_NUM_WEIGHTS]
            if some:
                weights = self._weights[id(track)] = _Weights(some, empty := torch.empty(0), empty, [])
                weights.first = weights.last = weights.take_values()
                weights.versions = weights.list_versions()
            return
        is_lost = weights.state_size > 0 and not track.optimizer.state
        is_written = weights.versions != weights.list_versions()
        if is_lost or (is_written and not weights.is_often_written):
            now = weights.take_values()
            is_same = float((now == weights.last).float().mean()) > _MAX_SAME
            track.is_restarted = not is_same and (is_lost or torch.equal(now, weights.first))
        weights.is_often_written = is_written
        yield from ()

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        weights = self._weights.get(id(track))
        if weights is not None:
            weights.last, weights.versions = weights.take_values(), weights.list_versions()
            weights.state_size = len(track.optimizer.state)
        yield from ()
