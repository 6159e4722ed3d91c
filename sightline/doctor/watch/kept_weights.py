"""Weights that a loop is to keep: teachers that follow a student, and zeros of pruned layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from sightline.doctor.rules.events import report
from sightline.doctor.watch.loop import (
    Found,
    Loop,
    Monitor,
    OptimizerTrack,
    has_slices,
    stack_numbers,
    take_local,
)
from sightline.doctor.watch.schedules import take_slices

_AVERAGES = ("ema", "teacher", "momentum", "mean", "avg", "average", "slow", "key")
"""Parts of the names of averages; others, such as a target network, are copied now and then."""
_NUM_COPY, _MIN_COPIED, _MIN_WEIGHTS = 300, 2, 64
"""Updates after which a copy must have moved; its least parameters; numbers of a weight that tells its start."""
_MIN_PEAK = 0.9
_FEW_ZEROS, _MANY_ZEROS, _MAX_PRUNED = 0.05, 0.3, 1024


class CopyMonitor(Monitor):
    """Frozen copies of untrained layers, as the teachers of a mean teacher: something writes to them in the end."""

    def __init__(self) -> None:
        self._copies: list[tuple[str, nn.Module, list[Tensor]]] = []

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if loop.step == loop.first_step and track.num_updates == 0:
            for model in loop.models.values():
                self._copies += [(name, copy, take_slices(copy)) for name, copy in _list_copies(model)]
        yield from ()

    def on_end(self, loop: Loop) -> Iterator[Found]:
        for name, copy, first in self._copies if loop.step >= _NUM_COPY else ():
            change = [(now != before).any() for now, before in zip(take_slices(copy), first, strict=True)]
            yield from loop.reader.read(stack_numbers(change).any().float(), partial(_judge_copy, name, loop.step))


def _list_copies(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the outermost frozen modules whose weights are those of a trained one, and as they were made."""
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
        if is_copy and weights and all(map(_is_uniform, weights)):
            found.append(name)
            yield name, module


def _is_uniform(weight: Tensor) -> bool:
    """Return True for numbers as torch draws them for a new layer: up to 1 / sqrt(fan_in), and no further."""
    largest = float(weight.detach().abs().max()) * math.sqrt(weight[0].numel())
    return _MIN_PEAK < largest < 1 + 1e-3


def _are_equal(weight: Tensor, other: Tensor) -> bool:
    return weight.device == other.device and torch.equal(weight, other)


def _judge_copy(name: str, num_updates: int, value: float) -> Iterator[Found]:
    if value == 0:
        yield report(
            "ema",
            f"'{name}', a frozen copy of layers that were not trained, never moves",
            severity="warning" if any(word in name.lower() for word in _AVERAGES) else "note",
            measured=f"no parameter of it has changed in {num_updates} updates",
            layer=name,
        )


class PruneMonitor(Monitor):
    """Weights that the loop sets to zero, as pruning does: they are zero again at the next updates, or at its end.

    Soft pruning (He et al. 2018) lets them grow again on purpose, and sets them to zero at last.
    """

    def __init__(self) -> None:
        self._largest: dict[int, Tensor | None] = {}
        self._share: dict[int, float] = {}
        self._pruned: set[int] = set()
        self._regrown: dict[int, Found] = {}

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if id(track) not in self._largest:
            weights = [p for p in track.parameters.values() if p.ndim > 1 and has_slices(p)]
            self._largest[id(track)] = max(weights, key=Tensor.numel, default=None)
        share = self._measure_zeros(id(track))
        if share is not None:
            self._compare(loop, track, share)
        yield from ()

    def on_end(self, loop: Loop) -> Iterator[Found]:
        for key, found in self._regrown.items():
            share = self._measure_zeros(key)
            if share is not None and share < _FEW_ZEROS:
                yield found

    def _measure_zeros(self, key: int) -> float | None:
        """Measure the share of zeros in the largest weight; None on a GPU, where one would have to wait for it."""
        largest = self._largest[key]
        if largest is None or largest.device.type != "cpu":
            return None
        some = _take_some(take_local(largest.detach()))
        return 1 - some.count_nonzero().item() / some.numel() if some.numel() else 0.0

    def _compare(self, loop: Loop, track: OptimizerTrack, share: float) -> None:
        key = id(track)
        before = self._share.get(key)
        self._share[key] = share
        if before is not None and before < _FEW_ZEROS and _MANY_ZEROS < share < 1:
            self._pruned.add(key)
        elif key in self._pruned:
            self._pruned.discard(key)  # zeros that outlast an update may be released on purpose
            if share < _FEW_ZEROS and key not in self._regrown:
                self._regrown[key] = report(
                    "regrown-weights",
                    f"weights that were set to zero are changed by the next update of {track.name}",
                    measured=f"{before:.0%} of a weight matrix were zero before an update, {share:.0%} before the next",
                    step=loop.step,
                )


def _take_some(weight: Tensor) -> Tensor:
    """Return a view of some 1024 numbers of a weight: leading rows, in any format of memory."""
    while weight.ndim > 1 and len(weight) and weight[0].numel() > _MAX_PRUNED:
        weight = weight[0]
    if not weight.numel():
        return weight
    return weight[: max(1, _MAX_PRUNED // weight[0].numel())]
