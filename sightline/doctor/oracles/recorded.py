"""Layers without a reference, on what they were given in a real training step: their gradients, and float32.

Graphs, samples and neighbours that a layer is given are held; those that it chooses itself stay the same under steps
as small as ours in at least one of three draws, or else its gradients are not compared.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.compare.formats import Float32Draws
from sightline.doctor.core.sample_statistics import array_leaves
from sightline.doctor.oracles.derivatives import gradient_errors, uncompared, worst_error
from sightline.doctor.oracles.nests import clone_detached, float32, float64, tree_map, with_history
from sightline.doctor.oracles.own_references import own_reference
from sightline.doctor.oracles.references import relative_error, to_float64_array
from sightline.doctor.oracles.results import DRIFT, OracleResult
from sightline.numba_kernels import compute_seconds
from sightline.surrogates import find_surrogates, note_surrogates

__all__ = ["RecordedInput", "examine_recorded", "record_calls"]

_SMALL = 20_000  # elements; larger inputs with spatial axes are cut to a corner
_CORNERS = (8, 16, 32)
_MOST_SECONDS = 4.0  # of one layer
_STEP = 1e-8
_GUILTY = 16.0
_OF_MANY = 100.0  # layers in a row, each of which is judged by itself as well
_MOVE = 1e-2
_LAYERS = "its layers"


@dataclasses.dataclass(frozen=True)
class RecordedInput:
    """What a module was given; `depends` are the paths of the tensors that came from parameters, not of data alone."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    depends: frozenset[str]


def record_calls(
    model: nn.Module, wanted: Mapping[str, nn.Module], run: Callable[[], Any]
) -> tuple[dict[str, RecordedInput], set[str]]:
    """The first call of each wanted module while `run` runs the model, and the names of all that were called."""
    calls: dict[str, RecordedInput] = {}
    called: set[str] = set()
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda module, args, name=name: called.add(name)))
    for name, module in wanted.items():
        handles.append(module.register_forward_pre_hook(_recorder(name, calls), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls, called


def examine_recorded(
    module: nn.Module, call: RecordedInput, row: OracleResult, *, silent: set[str], seed: int = 0
) -> OracleResult:
    """The row with its gradients and its drift. `silent` are the modules below that it reads and does not call.

    Raises whatever the layer raises.
    """
    layer = _moved(copy.deepcopy(module).double().train(), seed)
    args, kwargs = _corner(layer, tree_map(call.args, float64), tree_map(call.kwargs, float64), seed)
    inputs = {path: tensor for path, tensor in array_leaves([args, kwargs]) if path in call.depends}
    for tensor in inputs.values():
        tensor.requires_grad_(True)
    parameters = _parameters(layer, silent)
    is_made_of_layers = _LAYERS in parameters
    groups = {f"input {path}": [tensor] for path, tensor in inputs.items()} | parameters
    evaluate = _evaluation(layer, args, kwargs, seed)
    with note_surrogates() as declared:
        outputs = evaluate()  # the first may have to compile
    declared |= find_surrogates(outputs, layer.modules())
    started = compute_seconds()
    again = evaluate()
    once = compute_seconds() - started
    if not outputs or not groups:
        return dataclasses.replace(row, note="nothing of it is differentiated")
    if once > _MOST_SECONDS / 4:
        return dataclasses.replace(row, note=f"one pass takes {once:.1f} s")
    if not all(torch.equal(one, two) for one, two in zip(outputs, again, strict=True)):
        return dataclasses.replace(row, note="outputs differ from call to call under one seed")
    if once * (2 * len(groups) + 1) > _MOST_SECONDS:
        groups = {"all that it reads": [tensor for tensors in groups.values() for tensor in tensors]}
    errors = {} if declared else gradient_errors(evaluate, groups, seed=seed, step=_STEP)
    weakest, slope = worst_error(errors)
    drift, limit = _drift(layer, args, kwargs, seed)
    return dataclasses.replace(
        row,
        forward=_forward(layer, args, kwargs, outputs),
        gradient_error=slope,
        weakest=weakest,
        drift=drift,
        drift_limit=max(limit, (_OF_MANY if is_made_of_layers else 1.0) * DRIFT),
        declared=tuple(sorted(declared)),
        note="" if declared else uncompared(groups, errors),
    )


def _moved(layer: nn.Module, seed: int) -> nn.Module:
    """With every parameter moved a little: where biases and inputs are 0, values lie on the very edge of a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            size = max(_MOVE, float(parameter.abs().max())) if parameter.numel() else 0.0
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=_MOVE * size)
    return layer


def _forward(layer: nn.Module, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> float | None:
    """By how much a layer of the package misses its reference; None for a layer that has none."""
    reference = own_reference(layer)
    if reference is None:
        return None
    expected = reference(layer, *(to_float64_array(value) for value in (*args, *kwargs.values())))
    return relative_error(outputs[0], expected)


def _recorder(name: str, calls: dict[str, RecordedInput]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        if name not in calls:
            depends = [path for path, tensor in array_leaves([args, kwargs]) if tensor.requires_grad]
            calls[name] = RecordedInput(
                tree_map(args, clone_detached), tree_map(kwargs, clone_detached), frozenset(depends)
            )

    return hook


def _parameters(layer: nn.Module, silent: set[str]) -> dict[str, Sequence[Tensor]]:
    """Its own parameters and those that it reads of others, one by one; those of layers that it calls, together."""
    alone: dict[str, Sequence[Tensor]] = {}
    together = []
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(True)
        owner = name.rpartition(".")[0]
        if not owner or owner in silent:
            alone[name] = [parameter]
        else:
            together.append(parameter)
    return alone | ({_LAYERS: together} if together else {})


def _evaluation(layer: nn.Module, args: Any, kwargs: Any, seed: int) -> Callable[[], list[Tensor]]:
    def evaluate() -> list[Tensor]:
        torch.manual_seed(seed)  # what is dropped at random is dropped again
        given, named = tree_map(args, with_history), tree_map(kwargs, with_history)
        found = [tensor for _, tensor in array_leaves(layer(*given, **named))]
        return [tensor for tensor in found if tensor.is_floating_point()]

    return evaluate


def _corner(layer: nn.Module, args: Any, kwargs: Any, seed: int) -> tuple[Any, Any]:
    """The inputs, or where they are images or volumes of some size the smallest corner of them that the layer takes."""
    sizes = [tensor.numel() for _, tensor in array_leaves([args, kwargs]) if _has_space(tensor)]
    if not sizes or max(sizes) <= _SMALL:
        return args, kwargs
    for size in _CORNERS:

        def corner(tensor: Tensor, size: int = size) -> Tensor:
            place: Any = (..., *(slice(size),) * (tensor.ndim - 2))
            return tensor[place].clone() if _has_space(tensor) else tensor

        small = tree_map(args, corner), tree_map(kwargs, corner)
        try:
            with torch.no_grad():
                _evaluation(layer, *small, seed)()
        except (RuntimeError, ValueError, IndexError, AssertionError):
            continue
        return small
    return args, kwargs


def _has_space(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 4


def _drift(layer: nn.Module, args: Any, kwargs: Any, seed: int) -> tuple[float, float]:
    """How far the middle value of the float32 output is from float64, and how far rounding may take it.

    Both relative to the largest value. Rounding is tried: in float64, all that goes in is moved by half a unit of
    float32's last place, as in the comparison of whole networks. What a layer draws is the same in both formats.
    """
    narrow = copy.deepcopy(layer).float()
    wide, nudged = copy.deepcopy(narrow).double(), copy.deepcopy(narrow).double()
    generator = torch.Generator().manual_seed(seed)

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
        return (tensor * (1 + signs * torch.finfo(torch.float32).eps / 2)).detach()

    with torch.no_grad():
        given, named = tree_map(args, float32), tree_map(kwargs, float32)
        exact, by_name = tree_map(given, float64), tree_map(named, float64)
        for parameter in nudged.parameters():
            parameter.copy_(nudge(parameter))
        small = _evaluation(narrow, given, named, seed)()
        with Float32Draws():
            large = _evaluation(wide, exact, by_name, seed)()
            moved = _evaluation(nudged, tree_map(exact, nudge), tree_map(by_name, nudge), seed)()
    return _middle(small, large), _GUILTY * _middle(moved, large)


def _middle(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The median difference, of the output where it is largest, relative to the largest value."""
    pairs = [(one.double(), two) for one, two in zip(found, expected, strict=True) if one.shape == two.shape]
    return max(
        (float((one - two).abs().median() / two.abs().max().clamp(min=1e-30)) for one, two in pairs if one.numel()),
        default=0.0,
    )
