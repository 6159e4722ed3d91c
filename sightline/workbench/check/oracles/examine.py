"""Comparison of every distinct layer of a run with finite differences, and with the type of torch's it derives from.

Layers are asked on inputs recorded in a real training step, in float64. Graphs, samples and neighbours among the inputs
are fixed. If a layer chooses them itself, they must stay the same under the small steps in at least one of three draws;
otherwise its gradients are not compared. Layers with torch's own code are taken as they are.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.types import Batch
from sightline.doctor.attempts import MissingError, attempt
from sightline.engine.device import seed_torch
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall, record
from sightline.instrument.replay import computes_as
from sightline.layers.surrogates import find_surrogates, note_surrogates
from sightline.ops.numba_kernels import compute_seconds
from sightline.workbench.check.core.dry_run import isolated_copy
from sightline.workbench.check.core.sample_statistics import array_leaves
from sightline.workbench.check.oracles.derivatives import describe_uncompared, gradient_errors, worst_error
from sightline.workbench.check.oracles.results import (
    OracleResult,
    class_location,
    clone_detached,
    float64,
    tree_map,
    with_history,
)

_MAX_SECONDS = 45.0  # CPU time of this thread
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLAIN = (bool, int, float, str, tuple, list, type(None), torch.dtype)
_WIDTH_ARGUMENTS = (
    *("in_features", "out_features", "in_channels", "out_channels", "num_features", "num_channels", "num_groups"),
    *("normalized_shape", "groups", "p"),
)
"""Arguments of torch's layers that change their size, but not their operation."""
_CPU = torch.device("cpu")
_SIZES = (64, 128, 256)
KNOWN = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.Softmax, nn.LogSoftmax),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity),
    nn.modules.dropout._DropoutNd,
)
"""Types of torch's, of which each is the definition of what derives from it."""


def find_kind(module: nn.Module) -> Any:
    """Return the nearest known type of a layer, or base class of it; None for an unknown layer."""
    return next((kind for kind in type(module).__mro__ if kind in KNOWN), None)


def is_known(module: nn.Module) -> bool:
    """Return True for a layer of a known type, or of a class derived from it."""
    return find_kind(module) is not None


def is_derived(module: nn.Module) -> bool:
    """Return True for a layer of a known type with code of its own, except dropout, which draws."""
    is_random = isinstance(module, nn.modules.dropout._DropoutNd)
    return is_known(module) and not is_random and not computes_as(module, list(KNOWN))


def examine(job: TrainState, batch: Batch) -> list[OracleResult]:
    """Compare each kind of layer, in the model's order; layers without time for a check have a note.

    `batch` is of a training step, on the CPU.
    """
    model = isolated_copy(job.model).to(_CPU)
    return examine_layers(model, batch, lambda inputs: compute_batch_losses(job.task, model, inputs, _CPU))


def examine_layers(model: nn.Module, batch: Batch, run: Callable[[Batch], Any]) -> list[OracleResult]:
    """Compare each kind of layer of a model on the CPU; `run` runs the model on a batch and may change statistics."""
    start_seconds = compute_seconds()
    step = _RecordedStep(model.train(), batch, run)
    results = []
    for names in step.kinds:
        module = step.modules[names[0]]
        row = OracleResult(
            _describe(module), names[0] or "(the whole model)", len(names), file=class_location(type(module))
        )
        if compute_seconds() - start_seconds > _MAX_SECONDS:
            results.append(dataclasses.replace(row, note="no time was left"))
        elif is_known(module) and not is_derived(module):
            results.append(dataclasses.replace(row, is_torch=True))
        elif not step.is_read(names[0]):
            results.append(_add_unlike(step, names, _examine_layer(step, names[0], row)))
    return results


def _add_unlike(step: _RecordedStep, names: Sequence[str], row: OracleResult) -> OracleResult:
    """Put the worst error of the calls of these layers against their known type into the row, with that call."""
    errors = [(error, call) for call, error in step.errors if call.path in names]
    if not errors:
        return row
    error, call = max(errors, key=lambda pair: pair[0])
    note = f"its call {call.call_index + 1} differs" if call.call_index and error > _MAX_DERIVED_ERROR else row.note
    return dataclasses.replace(row, place=call.path or row.place, forward=error, note=note)


def _with_fewer_points(batch: Batch, run: Callable[[Batch], Any]) -> Batch:
    """Crop clouds (B, N, ...) to as few first points as `run` accepts; return the batch unchanged if none works."""
    points = batch.get("points")
    if not isinstance(points, Tensor) or points.ndim != 3:
        return batch
    for size in _SIZES:
        if size >= points.shape[1]:
            break
        small = {name: _crop_points(value, points.shape[:2], size) for name, value in batch.items()}
        if not isinstance(attempt("model", torch.no_grad()(partial(run, small)), {}), MissingError):
            return small  # a model may reject small clouds
    return batch


def _crop_points(value: Any, rows: Any, size: int) -> Any:
    has_points = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == rows
    return value[:, :size].contiguous() if has_points else value


class _RecordedStep:
    """Step on few points, with the modules called and the recorded calls of unknown and of derived layers.

    A derived layer is of a known type, with code of its own; `errors` are those of its calls against that type.
    """

    def __init__(self, model: nn.Module, batch: Batch, run: Callable[[Batch], Any]) -> None:
        small = _with_fewer_points(batch, run)
        self.modules = dict(model.named_modules())
        with record(model) as tape:
            run(small)
        self.called = set(tape.num_calls)
        self.kinds = [sorted(names, key=lambda name: name not in self.called) for names in distinct_layers(model)]
        representatives = {names[0]: self.modules[names[0]] for names in self.kinds}
        derived = {name: module for name, module in self.modules.items() if is_derived(module)}
        unknown = {n: module for n, module in representatives.items() if not is_known(module) or is_derived(module)}
        self.calls, self.errors = record_calls(unknown, derived, lambda: run(small))

    def silent_below(self, name: str) -> set[str]:
        """Return the modules inside this one that were not called, by their relative names."""
        prefix = f"{name}." if name else ""
        return {
            module_name.removeprefix(prefix)
            for module_name in self.modules
            if module_name not in self.called and module_name.startswith(prefix)
        }

    def is_read(self, name: str) -> bool:
        """Return True if a module was not called, but a layer that contains it was: that layer reads its parameters."""
        parent = name
        while parent := parent.rpartition(".")[0]:
            if parent in self.called and type(self.modules[parent]) not in _CONTAINERS:
                return name not in self.called
        return False


def _examine_layer(step: _RecordedStep, name: str, row: OracleResult) -> OracleResult:
    """Compare one layer; if it raises an error in float64, or alone, it is not checked and the note has the error."""
    if name not in step.calls:
        return dataclasses.replace(row, note="it was not called in the step")
    found = attempt("layer", _examine_calls, {"step": step, "name": name, "row": row})
    return dataclasses.replace(row, note=found.reason) if isinstance(found, MissingError) else found


def _examine_calls(step: _RecordedStep, name: str, row: OracleResult) -> OracleResult:
    """Compare the first, second and last call of a layer; the first that is wrong counts."""
    module, silent = step.modules[name], step.silent_below(name)
    first, *later = step.calls[name]
    result = examine_recorded(module, first, row, silent=silent)
    for call in later[:1] + later[1:][-1:]:
        repeated = examine_recorded(module, call, row, silent=silent)
        if repeated.verdict == "wrong" and result.verdict != "wrong":
            note = f"call {call.call_index + 1}"
            result = dataclasses.replace(repeated, note=f"{note}; {repeated.note}" if repeated.note else note)
    return result


def distinct_layers(model: nn.Module) -> list[list[str]]:
    """Group the names of modules by type and arguments; containers such as Sequential are left out."""
    groups: dict[Any, list[str]] = {}
    for name, module in model.named_modules():
        has_forward = type(module).forward is not nn.Module.forward or "forward" in vars(module)
        if type(module) not in _CONTAINERS and has_forward:
            groups.setdefault(_make_signature(module), []).append(name)
    return list(groups.values())


def _make_signature(module: nn.Module) -> Any:
    """Return type, plain attributes, parameter shapes and signatures of children; a `forward` per instance is distinct.

    The width is left out for torch's own layers, whose operation does not depend on it.
    """
    plain = [
        (name, repr(value))
        for name, value in sorted(vars(module).items())
        if name != "training" and isinstance(value, _PLAIN) and not (name.startswith("_") and value is None)
    ]
    if is_known(module) and type(module).__module__.startswith("torch.nn.") and "forward" not in vars(module):
        parameter_names = [name for name, parameter in module.named_parameters(recurse=False)]
        groups = min(2, getattr(module, "groups", 1))
        return (
            type(module),
            tuple(attribute for attribute in plain if attribute[0] not in _WIDTH_ARGUMENTS),
            tuple(parameter_names),
            groups,
        )
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]
    instance_id = id(module) if "forward" in vars(module) else 0
    children = tuple((name, _make_signature(child)) for name, child in module.named_children())
    return type(module), tuple(plain), tuple(shapes), instance_id, children


def _describe(module: nn.Module) -> str:
    """Format the type and the arguments of a module, without its children."""
    return f"{type(module).__name__}({module.extra_repr()})"


_MAX_ELEMENTS = 20_000  # larger inputs with spatial axes are cropped
_CORNERS = (8, 16, 32)
_MAX_LAYER_SECONDS = 4.0
_MAX_DERIVED_ERROR = 1e-3  # of float32 outputs; sums in another order stay below 1e-5
_STEP = 1e-8
_PERTURBATION = 1e-2
_INNER_LAYERS = "its layers"


def record_calls(
    unknown: Mapping[str, nn.Module], derived: Mapping[str, nn.Module], run: Callable[[], Any]
) -> tuple[dict[str, list[ModuleCall]], list[tuple[ModuleCall, float]]]:
    """Record copies of the inputs of each module's calls during `run`, with `requires_grad` as they had it.

    The second result are the calls of derived layers, with their errors against their known type on the same inputs.
    """
    errors: list[tuple[ModuleCall, float]] = []

    def compare(call: ModuleCall, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if call.path in derived and isinstance(outputs, Tensor):
            error = _compute_derived_error(module, find_kind(module), call.inputs, outputs)
            errors.extend([] if error is None else [(call, error)])

    with record({**unknown, **derived}, keep=("inputs",), each=_copy_leaf, leave=compare) as tape:
        run()
    calls: dict[str, list[ModuleCall]] = {}
    for call in tape.calls:
        calls.setdefault(call.path, []).append(call)
    return calls, errors


def _compute_derived_error(module: nn.Module, kind: Any, inputs: Any, outputs: Tensor) -> float | None:
    """Compute the relative error of outputs against those of the type with the same weights; None if it refuses."""
    plain = object.__new__(type(module))  # copy.copy refuses layers with parametrisations
    plain.__dict__ = dict(module.__dict__)
    plain._buffers = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    forward = torch.no_grad()(kind.forward)
    expected = attempt("layer", lambda: forward(plain, *inputs[0], **inputs[1]), {})
    if isinstance(expected, MissingError):
        return None  # it takes other inputs than its known type
    if expected.shape != outputs.shape:
        return math.inf
    error = (outputs.detach() - expected).double().abs().max() / expected.double().abs().max().clamp(min=1.0)
    return float(error) if bool(outputs.isfinite().all()) else math.inf


def _copy_leaf(tensor: Tensor) -> Tensor:
    return clone_detached(tensor).requires_grad_(tensor.requires_grad)


def examine_recorded(
    module: nn.Module, call: ModuleCall, row: OracleResult, *, silent: set[str], seed: int = 0
) -> OracleResult:
    """Return the row with the gradient error; errors of the layer propagate.

    `silent` are the modules inside the layer whose parameters it reads without calling them.
    """
    layer = _perturb_parameters(copy.deepcopy(module).double().train(), seed)
    given_args, given_kwargs = call.inputs
    depends = {path for path, tensor in array_leaves([given_args, given_kwargs]) if tensor.requires_grad}
    args, kwargs = _crop_inputs(layer, tree_map(given_args, float64), tree_map(given_kwargs, float64), seed)
    inputs = {path: tensor for path, tensor in array_leaves([args, kwargs]) if path in depends}
    for tensor in inputs.values():
        tensor.requires_grad_(True)
    parameters = _group_parameters(layer, silent)
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
    if seconds_per_pass > _MAX_LAYER_SECONDS / 4:
        return dataclasses.replace(row, note=f"one pass takes {seconds_per_pass:.1f} s")
    if not all(
        torch.equal(first_output, second_output) for first_output, second_output in zip(outputs, repeated, strict=True)
    ):
        return dataclasses.replace(row, note="outputs differ from call to call under one seed")
    if seconds_per_pass * (2 * len(groups) + 1) > _MAX_LAYER_SECONDS:
        groups = {"all inputs and parameters": [tensor for tensors in groups.values() for tensor in tensors]}
    errors = {} if declared else gradient_errors(evaluate, groups, seed=seed, step=_STEP)
    weakest, gradient_error = worst_error(errors)
    return dataclasses.replace(
        row,
        gradient_error=gradient_error,
        weakest=weakest,
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
        seed_torch(seed)  # repeats the random dropout
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
