"""Outputs behind a ReLU or another bound at 0, of which a loss asks what they cannot be, or passes them no gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.autograd_graph import get_node_name, iter_nodes, skip_shape_operations
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.losses import value_of
from sightline.doctor.subject import Pass, Subject, replace_leaf
from sightline.instrument.random_state import seed_all

_MIN_PLACES, _MAX_CHAIN = 8, 8
_HIGH = 0.01
"""Share of the largest target above which a target is more than the tail of a Gaussian."""
ENOUGH = 1 / 3
"""Share of places that is enough; at random weights it is a half."""
_CHANGED, _UNCHANGED = 0.2, 0.01
"""Changes of a gradient, as shares of it, that count as one and as none."""
_FACTORS = (0.0, 0.5)
"""Factors of some targets: the first moves the gradient of any error, the second leaves counts of positives."""
_BELOW = 0.1
_MAX_LEFT, _MAX_LEFT_OF_NUMBERS = 0.8, 0.98
"""Largest share of the loss of zeros that constants leave where outputs of a channel that is raised come back: of maps,
whose places share one constant, and of numbers."""
_SHARES_OF_MEANS = (0.0, 1.0, 0.5, 0.25, 0.1)


class Rectified(NamedTuple):
    """Output that ends in an `operation` whose results are at least 0, behind the weights of a `layer`.

    `blocked` is the share of its `number` places with a target that is not 0 where it is exactly 0, passes no gradient,
    and does not come back with its channel; `below` the share of all where the loss falls as it goes below 0.
    """

    path: str
    operation: str
    layer: str
    blocked: float
    number: int
    below: float


class _Compared(NamedTuple):
    """Output with the target of its shape, by their paths, and the last operation before it that has a bound."""

    path: str
    name: str
    output: Tensor
    node: Any


@measure()
def rectified(subject: Subject, passed: Pass) -> list[Rectified]:
    """Find outputs that end in a bound at 0, and are compared with targets one by one.

    Only the loss is computed again; where outputs are blocked, so is the network, once.
    """
    found = []
    for compared in _list_compared(passed):
        blocked, number = _measure_blocked(subject, passed, compared)
        is_blocked = blocked >= ENOUGH and not _is_drawn(subject, passed, compared.path)
        below = _measure_below(subject, passed, compared)
        if (is_blocked or below >= ENOUGH) and _compares(subject, passed, compared):
            layer = _find_layer(passed, compared.node)
            shares = blocked if is_blocked else 0.0, number, below
            found.append(Rectified(compared.path, get_node_name(compared.node), layer, *shares))
    return found


def _list_compared(passed: Pass) -> list[_Compared]:
    found = []
    for path, output in dense_leaves(passed.outputs):
        if not output.requires_grad or output.numel() < _MIN_PLACES or not bool((output >= 0).all()):
            continue
        node = _find_bound(output)
        for name, target in dense_leaves(passed.batch.target) if node is not None else ():
            if output.numel() == target.numel() and output.squeeze().shape == target.squeeze().shape:
                found.append(_Compared(path, name, output, node))
    if not found or not passed.value.requires_grad:
        raise NotApplicableError("no outputs with a bound at 0")
    return found


def _find_bound(output: Tensor) -> Any:
    """Find the last operation of those that change numbers one by one that has a bound at 0 alone, such as a ReLU."""
    node = skip_shape_operations(output.grad_fn)
    for _ in range(_MAX_CHAIN):
        if node is None or _is_bound(node):
            return node
        parents = [(parent, place) for parent, place in node.next_functions if parent is not None]
        if len(parents) != 1 or math.prod(parents[0][0]._input_metadata[parents[0][1]].shape) != output.numel():
            return None
        node = skip_shape_operations(parents[0][0])
    return None


def _is_bound(node: Any) -> bool:
    """Return True for a bound on one side; those on both, as ReLU6 has, are ranges that were chosen."""
    name = get_node_name(node)
    is_one_sided = getattr(node, "_saved_max", None) is None or getattr(node, "_saved_min", None) is None
    return name in ("Relu", "Threshold", "ClampMin", "Maximum") or (name == "Clamp" and is_one_sided)


def _measure_blocked(subject: Subject, passed: Pass, compared: _Compared) -> tuple[float, int]:
    """Return the share of outputs at targets, and at high ones, that is 0 and passes no gradient, and their number.

    It is 0 where outputs that are not 0 are larger than the targets: these are then nearer to 0. Of rows of numbers
    those channels count that are 0 in all samples: as long as some samples reach its weights, a channel comes back.
    """
    output = compared.output
    target = dict(dense_leaves(passed.batch.target))[compared.name].reshape(output.shape)
    (slope,) = torch.autograd.grad(passed.value, [output], retain_graph=True, allow_unused=True)
    counted = (target != 0) & (slope != 0) if slope is not None else torch.zeros_like(target, dtype=torch.bool)
    high = counted & _is_high(target)
    still = counted & (output == 0) & ~_is_raised(subject, passed, compared)
    if target.ndim <= 2:
        still &= (output == 0).reshape(len(output), -1).all(0).reshape(output.shape[1:])
    alive = output[output > 0].double()
    size = float(alive.detach().square().mean().sqrt()) if alive.numel() else 0.0
    if not bool(still.any()) or size > float(target.detach().max()) or _passes(compared, still):
        return 0.0, int(counted.sum())
    return min(_divide(still & mask, mask) for mask in (counted, high)), int(counted.sum())


def _is_raised(subject: Subject, passed: Pass, compared: _Compared) -> Tensor:
    """Return which places come back: the loss raises their channel, and constants take a good part of it away.

    Sparse maps are raised at first, too, but little: all but their peaks stay at 0. Numbers of heavy tails have no mean
    that a robust loss asks for: the best of several constants counts.
    """
    target = dict(dense_leaves(passed.batch.target))[compared.name].reshape(compared.output.shape)
    means = _sum_channels(target.nan_to_num()) / _sum_channels(~target.isnan())
    zeros = torch.zeros_like(compared.output)
    with torch.no_grad():
        zero, *constants = (
            float(value_of(subject, passed, {compared.path: zeros + share * means})) for share in _SHARES_OF_MEANS
        )
    most = _MAX_LEFT if target.ndim > 2 else _MAX_LEFT_OF_NUMBERS
    (pull,) = torch.autograd.grad(passed.value, [_edge_before(compared)], retain_graph=True)
    channels = _sum_channels(pull) if pull.shape == target.shape else pull.sum()
    return (channels < 0).expand(target.shape) & (min(constants) < most * zero)


def _sum_channels(values: Tensor) -> Tensor:
    """Sum over all but the channels: the axis 1 of maps and volumes, else the last one."""
    axis = 1 if values.ndim > 3 else values.ndim - 1
    others = [each for each in range(values.ndim) if each != axis]
    return values.sum(others, keepdim=True) if others else values


def _is_high(target: Tensor) -> Tensor:
    size = target.double().abs()
    return (size > 0) & (size >= _HIGH * size.max())


def _passes(compared: _Compared, still: Tensor) -> bool:
    """Return True if a gradient at some places of an output arrives before its bound."""
    seed = still.to(compared.output)
    (gradient,) = torch.autograd.grad([compared.output], [_edge_before(compared)], [seed], retain_graph=True)
    return bool(gradient.any())


def _edge_before(compared: _Compared) -> GradientEdge:
    return GradientEdge(*next(parent for parent in compared.node.next_functions if parent[0] is not None))


def _divide(part: Tensor, whole: Tensor) -> float:
    return float(part.sum()) / max(int(whole.sum()), 1)


def _find_layer(passed: Pass, node: Any) -> str:
    """Find the nearest layer with parameters that an operation reads from."""
    names = {id(parameter): name for name, parameter in passed.parameters.items()}
    variables = (id(getattr(node, "variable", None)) for node in iter_nodes([node]))
    return next((names[key].rpartition(".")[0] for key in variables if key in names), "")


def _measure_below(subject: Subject, passed: Pass, compared: _Compared) -> float:
    """Return the share of places at which the loss rises at 0, if it is finite, and lower, below 0 there."""
    zeros = torch.zeros_like(compared.output)
    value, slope = _differentiate(subject, passed, compared.path, zeros, passed.batch.target)
    rises = slope > 0
    lower, _ = _differentiate(subject, passed, compared.path, zeros - _BELOW * rises, passed.batch.target)
    return float(rises.double().mean()) if math.isfinite(lower) and lower < value else 0.0


def _compares(subject: Subject, passed: Pass, compared: _Compared) -> bool:
    """Return True if the gradient at a place moves with its own target, and with no other."""
    target = dict(dense_leaves(passed.batch.target))[compared.name]
    zeros = torch.zeros_like(compared.output)
    counted = _is_high(target).reshape(zeros.shape)
    drawn = torch.rand(zeros.shape, generator=torch.Generator().manual_seed(0)).to(zeros.device)
    moved, others = counted & (drawn < 0.5), counted & (drawn >= 0.5)
    _, before = _differentiate(subject, passed, compared.path, zeros, passed.batch.target)
    for changed in _list_changed(target, moved.reshape(target.shape)):
        _, after = _differentiate(
            subject, passed, compared.path, zeros, replace_leaf(passed.batch.target, compared.name, changed)
        )
        change = (after - before).abs() / before.abs().clamp(min=1e-30)
        if _divide((change > _CHANGED) & moved, moved) > 0.9 and _divide((change > _UNCHANGED) & others, others) < 0.05:
            return True
    return False


def _list_changed(target: Tensor, moved: Tensor) -> Iterator[Tensor]:
    for factor in _FACTORS:
        yield torch.where(moved, (target * factor).to(target), target)


def _differentiate(subject: Subject, passed: Pass, path: str, output: Tensor, target: Any) -> tuple[float, Tensor]:
    """Compute the loss and its gradient with another output of a path."""
    leaf = output.detach().clone().requires_grad_()
    value = value_of(subject, passed, {path: leaf}, target)
    (gradient,) = torch.autograd.grad(value, [leaf], allow_unused=True) if value.requires_grad else (None,)
    return float(value.detach()), torch.zeros_like(leaf) if gradient is None else gradient


def _is_drawn(subject: Subject, passed: Pass, path: str) -> bool:
    """Return True if other random numbers set other outputs to 0, as dropout does."""
    seed_all(1)
    with torch.no_grad():
        other = dict(dense_leaves(subject.call(subject.copy("train"), passed.batch.inputs)))[path]
    still = dict(dense_leaves(passed.outputs))[path] == 0
    return _divide(still & (other != 0), still) > 0.1
