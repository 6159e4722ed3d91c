"""Dead units: those that no sample gives a gradient."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.doctor.autograd_graph import get_node_name, skip_shape_operations
from sightline.doctor.rules import find_by
from sightline.doctor.rules.gradients import dead_units
from sightline.doctor.watch.loop import Found, Loop, Monitor, OptimizerTrack, stack_numbers, take_local
from sightline.doctor.watch.loss_graph import (
    UNBOUNDED,
    list_counted,
    list_parents,
    list_variables,
)

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_NUM_DEAD, _MAX_NODES = 5, 500
_RECTIFIERS = frozenset("Relu Threshold Clamp ClampMin ClampMax Hardtanh Hardswish Hardsigmoid".split())


class UnitMonitor(Monitor):
    """Units of linear layers and convolutions that no sample gives a gradient, over several sampled updates.

    Not those of outputs, of which a loss may take some: the value of an action, the box or the mask of a class. Updates
    at which all gradients are 0, as where a margin is kept by all samples, say nothing of units.
    """

    def __init__(self) -> None:
        self._last: set[int] = set()
        self._is_alive: dict[str, Tensor] = {}
        self._num_seen = 0
        self._counted: set[int] | None = None

    def before_backward_measured(self, loop: Loop, root: Tensor) -> None:
        if root.grad_fn is not None:
            self._counted = list_counted(root.grad_fn)
            self._last |= list_last(root.grad_fn)

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        gradients = [take_local(g).any() for g in track.gradients.values() if g.layout is torch.strided]
        is_nothing = ~stack_numbers(gradients).any() if len({each.device for each in gradients}) == 1 else None
        for name, module in loop.modules():
            weight = track.parameters.get(f"{name}.weight")  # an attribute may compute, as a spectral norm does
            gradient = None if weight is None or weight.grad is None else take_local(weight.grad)
            is_counted = (self._counted is None or id(weight) in self._counted) and id(weight) not in self._last
            if isinstance(module, _LAYERS) and gradient is not None and is_counted:
                by_unit = gradient.transpose(0, 1) if isinstance(module, nn.modules.conv._ConvTransposeNd) else gradient
                alive = by_unit.flatten(1).any(dim=1)
                alive = alive if is_nothing is None else alive | is_nothing.to(alive.device)
                self._is_alive[name] = alive | self._is_alive[name] if name in self._is_alive else alive
        self._num_seen += 1
        if self._num_seen % _NUM_DEAD == 0:
            judged, self._is_alive = self._is_alive, {}
            for name, alive in judged.items():
                yield from loop.reader.read(1 - alive.float().mean(), partial(_judge, name, len(alive)))


def list_last(root: Any) -> set[int]:
    """List the weights, by identity, of the last layers before a loss: no rectifier lies between."""
    waiting, known, layers = deque([root]), {root}, []
    while waiting and len(known) < _MAX_NODES:
        node = waiting.popleft()
        if get_node_name(node) in UNBOUNDED:
            layers.append(node)
        elif get_node_name(node) not in _RECTIFIERS:
            parents = [parent for parent in list_parents(node) if parent not in known]
            known.update(parents)
            waiting.extend(parents)
    return list_variables(skip_shape_operations(parent) for layer in layers for parent in list_parents(layer))


def _judge(layer: str, units: int, share: float) -> list[Found]:
    return find_by(dead_units, layer=layer, dead_units=round(share * units), num_units=units, num_updates=_NUM_DEAD)
