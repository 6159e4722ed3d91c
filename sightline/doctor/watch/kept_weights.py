"""Weights that a loop is to keep: teachers that follow a student, and zeros of pruned layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.doctor.rules import find_by
from sightline.doctor.rules.state import FEW_ZEROS, regrown_weights, stale_average
from sightline.doctor.watch.loop import Found, Loop, Monitor, OptimizerTrack, stack_numbers, take_local
from sightline.doctor.watch.schedules import take_slices

_NUM_COPY, _MIN_COPIED, _MIN_WEIGHTS, _MIN_PEAK = 300, 2, 64, 0.9
"""Updates after which a copy must have moved; its least parameters; numbers of a weight that tells its start."""
_MANY_ZEROS, _MAX_PRUNED = 0.3, 128


class CopyMonitor(Monitor):
    """Frozen copies of untrained layers, as the teachers of a mean teacher: something writes to them in the end."""

    def __init__(self) -> None:
        self._copies: list[tuple[str, nn.Module, list[Tensor]]] = []

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> None:
        if loop.step == loop.first_step and track.num_updates == 0:
            for model in loop.models.values():
                self._copies += [(name, copy, take_slices(copy)) for name, copy in _list_copies(model)]

    def on_end(self, loop: Loop) -> Iterator[Found]:
        for name, copy, first in self._copies if loop.step >= _NUM_COPY else ():
            change = [(now != before).any() for now, before in zip(take_slices(copy), first, strict=True)]
            updates = loop.step - loop.first_step
            found = find_by(stale_average, average=name, stale_statistics=(), num_updates=updates)
            yield from loop.reader.read_if(stack_numbers(change).any().float(), *found, expected=False)


def _list_copies(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the outermost frozen modules whose weights are those of a trained one, and as torch made them."""
    modules = {name: module for name, module in model.named_modules() if name}
    trained = [m for m in modules.values() if all(p.requires_grad for p in m.parameters())]
    found: list[str] = []
    for name, module in modules.items():
        parameters = list(module.parameters())
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if is_inside or len(parameters) < _MIN_COPIED or any(p.requires_grad for p in parameters):
            continue
        twins = (list(m.parameters()) for m in trained if type(m) is type(module))
        is_copy = any(len(twin) == len(parameters) and all(map(_are_equal, twin, parameters)) for twin in twins)
        weights = [p for p in parameters if p.ndim > 1 and p.numel() >= _MIN_WEIGHTS]
        if is_copy and weights and all(map(_is_drawn, weights)):
            found.append(name)
            yield name, module


def _are_equal(weight: Tensor, other: Tensor) -> bool:
    return weight.device == other.device and torch.equal(weight, other)


def _is_drawn(weight: Tensor) -> bool:
    """Return True for numbers as torch draws them for a new layer: up to 1 / sqrt(fan_in), and no further."""
    largest = float(weight.detach().abs().max()) * math.sqrt(weight[0].numel())
    return _MIN_PEAK < largest < 1 + 1e-3


class PruneMonitor(Monitor):
    """Weights that the loop sets to zero, as pruning does: they are zero again at the next updates, or at its end.

    Soft pruning (He et al. 2018) lets them grow again on purpose, and sets them to zero at last. Zeros are counted
    before each update, in some numbers of the largest weight, on a CPU.
    """

    def __init__(self) -> None:
        self._few: dict[int, Any] = {}
        self._memory: dict[int, int] = {}
        self._share: dict[int, float] = {}
        self._pruned: set[int] = set()
        self._regrown: dict[int, tuple[str, list[float], int]] = {}

    def before_update(self, loop: Loop, track: OptimizerTrack) -> None:
        key, weight = id(track), track.weight
        if key not in self._few or (weight is not None and self._memory[key] != weight.data_ptr()):
            self._few[key], self._memory[key] = _take_few(weight), 0 if weight is None else weight.data_ptr()
        if not self._few[key].size:
            return
        before, share = self._share.get(key, 1.0), self._measure_zeros(key)
        self._share[key] = share
        if before < FEW_ZEROS and _MANY_ZEROS < share < 1:
            self._pruned.add(key)
        elif key in self._pruned:
            self._pruned.discard(key)  # zeros that outlast an update may be released on purpose
            if share < FEW_ZEROS:
                self._regrown.setdefault(key, (track.name, [before, share], loop.step))

    def on_end(self, loop: Loop) -> Iterator[Found]:
        for key, (name, shares, update) in self._regrown.items():
            shares = [*shares, self._measure_zeros(key)]
            yield from find_by(regrown_weights, optimizer=name, shares_of_zeros=shares, update=update)

    def _measure_zeros(self, key: int) -> float:
        return 1 - np.count_nonzero(self._few[key]) / self._few[key].size


def _take_few(weight: Tensor | None) -> Any:
    """Return a view of some numbers of a weight, for NumPy; none on a GPU, where one would have to wait for them."""
    is_read = weight is not None and weight.device.type == "cpu" and weight.is_contiguous()
    if weight is None or not is_read or weight.dtype not in (torch.float32, torch.float64, torch.float16):
        return np.empty(0)
    return take_local(weight.detach()).view(-1)[:_MAX_PRUNED].numpy()
