"""Layers without a reference, on inputs recorded in a real training step: gradients and float32 error.

Graphs, samples and neighbours among the inputs are fixed. If a layer chooses them itself, they must stay the same under
the small steps in at least one of three draws; otherwise its gradients are not compared.
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
from sightline.doctor.oracles.derivatives import describe_uncompared, gradient_errors, worst_error
from sightline.doctor.oracles.references import find_own_reference, relative_error, to_float64_array
from sightline.doctor.oracles.results import (
    DRIFT,
    OracleResult,
    clone_detached,
    float32,
    float64,
    tree_map,
    with_history,
)
from sightline.numba_kernels import compute_seconds
from sightline.surrogates import find_surrogates, note_surrogates

_MAX_ELEMENTS = 20_000  # larger inputs with spatial axes are cropped
_CORNERS = (8, 16, 32)
_MAX_SECONDS = 4.0  # for one layer
_STEP = 1e-8
_DRIFT_FACTOR = 16.0
_MODULE_DRIFT_FACTOR = 100.0  # for modules with sub-modules, which are also checked one by one
_PERTURBATION = 1e-2
_INNER_LAYERS = "its layers"


@dataclasses.dataclass(frozen=True)
class RecordedInput:
    """Inputs of a module's call; `depends` are the paths of tensors that depend on parameters."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    depends: frozenset[str]


def record_calls(
    model: nn.Module, wanted: Mapping[str, nn.Module], run: Callable[[], Any]
) -> tuple[dict[str, RecordedInput], set[str]]:
    """Record the inputs of the first call of each wanted module during `run`, and the names of all modules called."""
    calls: dict[str, RecordedInput] = {}
    called: set[str] = set()
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda module, args, name=name: called.add(name)))
    for name, module in wanted.items():
        handles.append(module.register_forward_pre_hook(_make_recorder(name, calls), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls, called


def examine_recorded(
    module: nn.Module, call: RecordedInput, row: OracleResult, *, silent: set[str], seed: int = 0
) -> OracleResult:
    """Return the row with the gradient error and the float32 drift; errors of the layer propagate.

    `silent` are the modules inside the layer whose parameters it reads without calling them.
    """
    layer = _perturb_parameters(copy.deepcopy(module).double().train(), seed)
    args, kwargs = _crop_inputs(layer, tree_map(call.args, float64), tree_map(call.kwargs, float64), seed)
    inputs = {path: tensor for path, tensor in array_leaves([args, kwargs]) if path in call.depends}
    for tensor in inputs.values():
        tensor.requires_grad_(True)
    parameters = _group_parameters(layer, silent)
    is_made_of_layers = _INNER_LAYERS in parameters
    groups = {f"input {path}": [tensor] for path, tensor in inputs.items()} | parameters
    evaluate = _make_evaluation(layer, args, kwargs, seed)
    with note_surrogates() as declared:
        outputs = evaluate()  # the first call may compile
    declared |= find_surrogates(outputs, layer.modules())
    start_seconds = compute_seconds()
    repeated = evaluate()
    seconds_per_pass = compute_seconds() - start_seconds
    if not outputs or not groups:
        return dataclasses.replace(row, note="it has no differentiable inputs or parameters")
    if seconds_per_pass > _MAX_SECONDS / 4:
        return dataclasses.replace(row, note=f"one pass takes {seconds_per_pass:.1f} s")
    if not all(
        torch.equal(first_output, second_output) for first_output, second_output in zip(outputs, repeated, strict=True)
    ):
        return dataclasses.replace(row, note="outputs differ from call to call under one seed")
    if seconds_per_pass * (2 * len(groups) + 1) > _MAX_SECONDS:
        groups = {"all inputs and parameters": [tensor for tensors in groups.values() for tensor in tensors]}
    errors = {} if declared else gradient_errors(evaluate, groups, seed=seed, step=_STEP)
    weakest, gradient_error = worst_error(errors)
    drift, limit = _measure_drift(layer, args, kwargs, seed)
    return dataclasses.replace(
        row,
        forward=_compute_forward_error(layer, args, kwargs, outputs),
        gradient_error=gradient_error,
        weakest=weakest,
        drift=drift,
        drift_limit=max(limit, (_MODULE_DRIFT_FACTOR if is_made_of_layers else 1.0) * DRIFT),
        declared=tuple(sorted(declared)),
        note="" if declared else describe_uncompared(groups, errors),
    )


def _perturb_parameters(layer: nn.Module, seed: int) -> nn.Module:
    """Perturb every parameter slightly, so that zero biases do not put activations exactly at a ReLU's kink."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            size = max(_PERTURBATION, float(parameter.abs().max())) if parameter.numel() else 0.0
            parameter.add_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=_PERTURBATION * size
            )
    return layer


def _compute_forward_error(layer: nn.Module, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> float | None:
    """Compute the relative error of a layer of the package against its reference; None without one."""
    reference = find_own_reference(layer)
    if reference is None:
        return None
    expected = reference(layer, *(to_float64_array(value) for value in (*args, *kwargs.values())))
    return relative_error(outputs[0], expected)


def _make_recorder(name: str, calls: dict[str, RecordedInput]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        if name not in calls:
            depends = [path for path, tensor in array_leaves([args, kwargs]) if tensor.requires_grad]
            calls[name] = RecordedInput(
                tree_map(args, clone_detached), tree_map(kwargs, clone_detached), frozenset(depends)
            )

    return hook


def _group_parameters(layer: nn.Module, silent: set[str]) -> dict[str, Sequence[Tensor]]:
    """Group parameters: one group each for direct parameters and those of silent modules, one for all other layers."""
    groups: dict[str, Sequence[Tensor]] = {}
    inner_parameters = []
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(True)
        owner = name.rpartition(".")[0]
        if not owner or owner in silent:
            groups[name] = [parameter]
        else:
            inner_parameters.append(parameter)
    return groups | ({_INNER_LAYERS: inner_parameters} if inner_parameters else {})


def _make_evaluation(layer: nn.Module, args: Any, kwargs: Any, seed: int) -> Callable[[], list[Tensor]]:
    def evaluate() -> list[Tensor]:
        torch.manual_seed(seed)  # repeats the random dropout
        call_args, call_kwargs = tree_map(args, with_history), tree_map(kwargs, with_history)
        tensors = [tensor for _, tensor in array_leaves(layer(*call_args, **call_kwargs))]
        return [tensor for tensor in tensors if tensor.is_floating_point()]

    return evaluate


def _crop_inputs(layer: nn.Module, args: Any, kwargs: Any, seed: int) -> tuple[Any, Any]:
    """Crop large images or volumes among the inputs to the smallest corner that the layer accepts."""
    sizes = [tensor.numel() for _, tensor in array_leaves([args, kwargs]) if _has_space(tensor)]
    if not sizes or max(sizes) <= _MAX_ELEMENTS:
        return args, kwargs
    for size in _CORNERS:

        def corner(tensor: Tensor, size: int = size) -> Tensor:
            window: Any = (..., *(slice(size),) * (tensor.ndim - 2))
            return tensor[window].clone() if _has_space(tensor) else tensor

        small = tree_map(args, corner), tree_map(kwargs, corner)
        try:
            with torch.no_grad():
                _make_evaluation(layer, *small, seed)()
        except (RuntimeError, ValueError, IndexError, AssertionError):
            continue
        return small
    return args, kwargs


def _has_space(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 4


def _measure_drift(layer: nn.Module, args: Any, kwargs: Any, seed: int) -> tuple[float, float]:
    """Return the median float32 error of the outputs and its limit by rounding, both relative to the largest value.

    The limit is measured: in float64, all inputs and parameters are perturbed by half a unit in the last place of
    float32, as in the comparison of whole networks. Random draws of a layer are the same in both formats.
    """
    float32_layer = copy.deepcopy(layer).float()
    float64_layer, perturbed_layer = copy.deepcopy(float32_layer).double(), copy.deepcopy(float32_layer).double()
    generator = torch.Generator().manual_seed(seed)

    def perturb(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
        return (tensor * (1 + signs * torch.finfo(torch.float32).eps / 2)).detach()

    with torch.no_grad():
        float32_args, float32_kwargs = tree_map(args, float32), tree_map(kwargs, float32)
        float64_args, float64_kwargs = tree_map(float32_args, float64), tree_map(float32_kwargs, float64)
        for parameter in perturbed_layer.parameters():
            parameter.copy_(perturb(parameter))
        float32_outputs = _make_evaluation(float32_layer, float32_args, float32_kwargs, seed)()
        with Float32Draws():
            float64_outputs = _make_evaluation(float64_layer, float64_args, float64_kwargs, seed)()
            perturbed_outputs = _make_evaluation(
                perturbed_layer, tree_map(float64_args, perturb), tree_map(float64_kwargs, perturb), seed
            )()
    return _median_error(float32_outputs, float64_outputs), _DRIFT_FACTOR * _median_error(
        perturbed_outputs, float64_outputs
    )


def _median_error(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest median difference of all outputs, relative to each output's largest value."""
    pairs = [
        (output.double(), reference)
        for output, reference in zip(outputs, expected, strict=True)
        if output.shape == reference.shape
    ]
    return max(
        (
            float((output - reference).abs().median() / reference.abs().max().clamp(min=1e-30))
            for output, reference in pairs
            if output.numel()
        ),
        default=0.0,
    )
