"""Dead units: those that no sample gives a gradient."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from sightline.doctor.autograd_graph import get_node_name, skip_shape_operations
from sightline.doctor.rules.events import report
from sightline.doctor.watch.loop import Found, Judge, Loop, Monitor, OptimizerTrack
from sightline.doctor.watch.loss_graph import (
    UNBOUNDED,
    get_saved,
    get_shape,
    list_counted,
    list_parents,
    list_variables,
)

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_MAX_DEAD, _MIN_UNITS, _NUM_DEAD = 0.75, 8, 5
_MAX_NODES = 500
_CHOICES = frozenset(
    "Gather Index IndexSelect Select MaskedSelect Take Where MaskedFill Max Amax Min Amin Topk Median".split()
)
"""Operations that take some of the numbers that they read."""
_RECTIFIERS = frozenset("Relu Threshold Clamp ClampMin ClampMax Hardtanh Hardswish Hardsigmoid".split())


class UnitMonitor(Monitor):
    """Units of linear layers and convolutions that no sample gives a gradient, over several sampled updates.

    Not those of outputs of which the loss takes some: the value of an action, the box or the mask of a class.
    """

    def __init__(self) -> None:
        self._chosen: set[int] = set()
        self._is_alive: dict[str, Tensor] = {}
        self._num_seen = 0
        self._counted: set[int] | None = None

    def before_backward_measured(self, loop: Loop, root: Tensor) -> None:
        if root.grad_fn is not None:
            self._counted = list_counted(root.grad_fn)
            self._chosen |= list_chosen(root.grad_fn)

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        for name, module in loop.modules():
            weight = track.parameters.get(f"{name}.weight")  # an attribute may compute, as a spectral norm does
            gradient = None if weight is None else weight.grad
            is_counted = (self._counted is None or id(weight) in self._counted) and id(weight) not in self._chosen
            if isinstance(module, _LAYERS) and gradient is not None and is_counted:
                by_unit = gradient.transpose(0, 1) if isinstance(module, nn.modules.conv._ConvTransposeNd) else gradient
                alive = by_unit.flatten(1).any(dim=1)
                self._is_alive[name] = alive | self._is_alive[name] if name in self._is_alive else alive
        self._num_seen += 1
        if self._num_seen % _NUM_DEAD == 0:
            judged, self._is_alive = self._is_alive, {}
            for name, alive in judged.items():
                if len(alive) >= _MIN_UNITS:
                    yield from loop.reader.read(1 - alive.float().mean(), _make_judge(name, len(alive)))


def list_chosen(root: Any) -> set[int]:
    """List the weights, by identity, of the last layers before a loss that takes some of their outputs.

    Between them lies no rectifier, which would be what stops the gradients of the others.
    """
    choices = [node for node in _iter_after_layers([root], ()) if _is_choice(node)]
    layers = {node for node in _iter_after_layers(choices, _RECTIFIERS) if get_node_name(node) in UNBOUNDED}
    return list_variables(skip_shape_operations(parent) for layer in layers for parent in list_parents(layer))


def _iter_after_layers(roots: Iterable[Any], stops: Container[str]) -> Iterator[Any]:
    """Iterate over nodes of a graph up to the first layer, or operation of `stops`, on each path from some on."""
    waiting = deque(roots)
    known = set(waiting)
    while waiting and len(known) < _MAX_NODES:
        node = waiting.popleft()
        yield node
        if get_node_name(node) not in UNBOUNDED and get_node_name(node) not in stops:
            parents = [parent for parent in list_parents(node) if parent not in known]
            known.update(parents)
            waiting.extend(parents)


def _is_choice(node: Any) -> bool:
    """Return True for an operation that takes some of its numbers, as a product with a mask of the same shape does."""
    if get_node_name(node) != "Mul" or len(list_parents(node)) != 1:
        return get_node_name(node) in _CHOICES
    shape = get_shape(node)
    return len(shape) > 1 and any(
        isinstance(mask := get_saved(node, name), Tensor) and not mask.requires_grad and mask.shape == shape
        for name in ("self", "other")
    )


def _make_judge(name: str, num_units: int) -> Judge:
    def judge(share: float) -> Iterator[Found]:
        if share > _MAX_DEAD:
            words = {"dead": round(share * num_units), "units": num_units, "bound": _MAX_DEAD, "updates": _NUM_DEAD}
            yield report("dead-units", "", layer=name, share=share, **words)

    return judge
