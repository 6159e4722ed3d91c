"""Comparison of every distinct layer and every loss of a run with references and finite differences.

Layers without a reference, on inputs recorded in a real training step: gradients and float32 error.

Graphs, samples and neighbours among the inputs are fixed. If a layer chooses them itself, they must stay the same under
the small steps in at least one of three draws; otherwise its gradients are not compared.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.config import RunConfig
from sightline.contract.errors import summarise_error
from sightline.contract.types import Batch
from sightline.engine.device import seed_torch
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall, record
from sightline.instrument.float64 import Float32Draws
from sightline.instrument.replay import computes_as
from sightline.layers.surrogates import find_surrogates, note_surrogates
from sightline.ops.numba_kernels import compute_seconds
from sightline.workbench.check.core.dry_run import isolated_copy
from sightline.workbench.check.core.sample_statistics import array_leaves
from sightline.workbench.check.oracles.derivatives import describe_uncompared, gradient_errors, worst_error
from sightline.workbench.check.oracles.known_layers import examine_known, is_known, with_fewer_points
from sightline.workbench.check.oracles.losses import examine_losses
from sightline.workbench.check.oracles.references import (
    REFERENCES,
    find_own_reference,
    find_reference,
    relative_error,
    to_float64_array,
)
from sightline.workbench.check.oracles.results import (
    DRIFT,
    OracleResult,
    class_location,
    clone_detached,
    float32,
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


def examine(
    job: TrainState, config: RunConfig, facts: Mapping[str, Any], batch: Batch, outputs: Mapping[str, Any]
) -> list[OracleResult]:
    """Compare each kind of layer, in the model's order, and each loss; layers without time for a check have a note.

    `batch` and `outputs` are of a training step before any update, on the CPU.
    """
    model = isolated_copy(job.model).to(_CPU)
    rows = examine_layers(model, batch, lambda inputs: compute_batch_losses(job.task, model, inputs, _CPU))
    return [*rows, *examine_losses(job, config, facts, batch, outputs)]


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
        elif is_known(module) or not step.is_read(names[0]):
            results.append(_add_unlike(step, names, _examine_layer(step, names[0], row)))
    return results


def _add_unlike(step: _RecordedStep, names: Sequence[str], row: OracleResult) -> OracleResult:
    """Put the worst call of these layers that its known type does not agree with into the row."""
    unlike = [(error, call) for call, error in step.unlike if call.path in names]
    if not unlike or row.is_wrong_forward:
        return row
    error, call = max(unlike, key=lambda pair: pair[0])
    note = f"its call {call.call_index + 1} differs" if call.call_index else row.note
    return dataclasses.replace(row, place=call.path or row.place, forward=error, note=note)


class _RecordedStep:
    """Step on few points, with the modules called and the recorded calls of unknown and of derived layers.

    A derived layer is of a known type, with code of its own; `unlike` are those calls of it whose outputs are not those
    of that type, with the error.
    """

    def __init__(self, model: nn.Module, batch: Batch, run: Callable[[Batch], Any]) -> None:
        small = with_fewer_points(batch, run)
        self.modules = dict(model.named_modules())
        with record(model) as tape:
            run(small)
        self.called = set(tape.num_calls)
        self.kinds = [sorted(names, key=lambda name: name not in self.called) for names in distinct_layers(model)]
        representatives = {names[0]: self.modules[names[0]] for names in self.kinds}
        derived = {name: module for name, module in self.modules.items() if is_derived(module)}
        unknown = {name: module for name, module in representatives.items() if not is_known(module)}
        self.calls, self.unlike = record_calls(unknown, derived, lambda: run(small))

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
    module = step.modules[name]
    try:
        if is_known(module) and not is_derived(module):
            return examine_known(module, row)
        if is_derived(module):
            with contextlib.suppress(Exception):  # its code may need the width that it was made for
                return examine_known(module, row)
        if name not in step.calls:
            return dataclasses.replace(row, note="it was not called in the step")
        silent = step.silent_below(name)
        first, *later = step.calls[name]
        result = examine_recorded(module, first, row, silent=silent)
        for call in later[:1] + later[1:][-1:]:
            repeated = examine_recorded(module, call, row, silent=silent)
            if repeated.verdict == "wrong" and result.verdict != "wrong":
                note = f"call {call.call_index + 1}"
                result = dataclasses.replace(repeated, note=f"{note}; {repeated.note}" if repeated.note else note)
        return result
    except Exception as error:  # noqa: BLE001 - a plugin's layer may raise any error
        return dataclasses.replace(row, note=summarise_error(error, max_length=100))


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
_DRIFT_FACTOR = 16.0
_MODULE_DRIFT_FACTOR = 100.0  # for modules with sub-modules, which are also checked one by one
_PERTURBATION = 1e-2
_INNER_LAYERS = "its layers"


def is_derived(module: nn.Module) -> bool:
    """Return True for a layer of a known type with code of its own, except dropout, which draws."""
    is_random = isinstance(module, nn.modules.dropout._DropoutNd)
    return is_known(module) and not is_random and not computes_as(module, list(REFERENCES))


def record_calls(
    unknown: Mapping[str, nn.Module], derived: Mapping[str, nn.Module], run: Callable[[], Any]
) -> tuple[dict[str, list[ModuleCall]], list[tuple[ModuleCall, float]]]:
    """Record copies of the inputs of each module's calls during `run`, with `requires_grad` as they had it.

    The second result are the calls of derived layers that differ from their known type on the same inputs.
    """
    unlike: list[tuple[ModuleCall, float]] = []

    def compare(call: ModuleCall, module: nn.Module, inputs: Any, outputs: Any) -> None:
        match = find_reference(module)
        if call.path in derived and match is not None and isinstance(outputs, Tensor):
            error = _compute_derived_error(module, match[0], call.inputs, outputs)
            if error > _MAX_DERIVED_ERROR:
                unlike.append((call, error))

    with record({**unknown, **derived}, keep=("inputs",), each=_copy_leaf, leave=compare) as tape:
        run()
    calls: dict[str, list[ModuleCall]] = {}
    for call in tape.calls:
        calls.setdefault(call.path, []).append(call)
    return calls, unlike


def _compute_derived_error(module: nn.Module, kind: Any, inputs: Any, outputs: Tensor) -> float:
    """Compute the relative error of outputs against those of the known type with the same weights; 0 if it refuses."""
    plain = object.__new__(type(module))  # copy.copy refuses layers with parametrisations
    plain.__dict__ = dict(module.__dict__)
    plain._buffers = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    try:
        with torch.no_grad():
            expected = kind.forward(plain, *inputs[0], **inputs[1])
    except Exception:  # noqa: BLE001 - a layer may take other inputs than its known type
        return 0.0
    return relative_error(outputs.detach(), to_float64_array(expected))


def _copy_leaf(tensor: Tensor) -> Tensor:
    return clone_detached(tensor).requires_grad_(tensor.requires_grad)


def examine_recorded(
    module: nn.Module, call: ModuleCall, row: OracleResult, *, silent: set[str], seed: int = 0
) -> OracleResult:
    """Return the row with the gradient error and the float32 drift; errors of the layer propagate.

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
