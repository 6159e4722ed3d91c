"""Comparison of every distinct layer of a run with finite differences, and with the type of torch's it derives from.

Layers are asked on inputs recorded in a real training step, in float64. Graphs, samples and neighbours among the inputs
are fixed. If a layer chooses them itself, they must stay the same under the small steps in at least one of three draws;
otherwise its gradients are not compared. Layers with torch's own code are taken as they are.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import tree_map
from sightline.contract.types import Batch
from sightline.doctor.attempts import LeftOutError, MissingError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.device.numerics import seed_torch
from sightline.engine.device.transfer import to_device
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall, record
from sightline.instrument.replay import computes_as
from sightline.layers.surrogates import find_surrogates, note_surrogates
from sightline.ops.numba_kernels import compute_seconds
from sightline.store.loading.leaves import array_leaves
from sightline.workbench.check.context import Context
from sightline.workbench.check.derivatives import describe_uncompared, gradient_errors, worst_error
from sightline.workbench.check.dry_run import isolated_copy

FORWARD = 1e-3
"""Maximum error of a float32 output against that of the known type, relative to the largest value or 1."""
GRADIENT = 1e-3
"""Maximum relative error of a gradient against finite differences; whole models stay below 1e-4."""
_MAX_SECONDS, _MAX_LAYER_SECONDS = 45.0, 4.0  # CPU time of this thread
_MAX_ELEMENTS = 20_000  # larger inputs with spatial axes are cropped
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLAIN = (bool, int, float, str, tuple, list, type(None), torch.dtype)
_CPU = torch.device("cpu")
_SIZES, _CORNERS = (64, 128, 256), (8, 16, 32)
_NUM_CALLS = 2
_STEP, _PERTURBATION = 1e-8, 1e-2
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


class LayerResult(NamedTuple):
    """Errors of a kind of layer; None for what was not compared, `note` says why gradients were not.

    `kind` is the type and arguments, `place` the first such module, `number` how many there are, `weakest` the tensor
    with the largest gradient error.
    """

    kind: str
    place: str
    number: int
    file: tuple[str | None, int | None]
    forward: float | None = None
    gradient: float | None = None
    weakest: str = ""
    note: str = ""

    @property
    def is_wrong_forward(self) -> bool:
        return self.forward is not None and not self.forward <= FORWARD

    @property
    def is_wrong_backward(self) -> bool:
        return self.gradient is not None and not self.gradient <= GRADIENT


def examine(job: TrainState, batch: Batch) -> list[LayerResult]:
    """Compare each kind of layer, in the model's order; `batch` is of a training step, on the CPU."""
    model = isolated_copy(job.model).to(_CPU)
    return examine_layers(model, batch, lambda inputs: compute_batch_losses(job.task, model, inputs, _CPU))


def examine_layers(model: nn.Module, batch: Batch, run: Callable[[Batch], Any]) -> list[LayerResult]:
    """Compare each kind of layer of a model on the CPU; `run` runs the model on a batch and may change statistics."""
    started_s, small = compute_seconds(), _with_fewer_points(batch, run)
    modules = {name: module for name, module in model.train().named_modules() if has_own_code(module)}
    forward: dict[str, list[float]] = {}

    def compare(call: ModuleCall, module: nn.Module, inputs: Any, outputs: Any) -> None:
        kind = find_kind(module)
        if kind is not None and isinstance(outputs, Tensor):
            forward.setdefault(call.path, []).append(_compute_derived_error(module, kind, call.inputs, outputs))

    with record(modules, keep=("inputs",), convert=_copy_leaf, leave=compare) as tape:
        run(small)
    groups: dict[Any, list[str]] = {}
    for name, module in modules.items():
        if name in tape.num_calls:
            groups.setdefault(_make_signature(module), []).append(name)
    results = []
    for names in groups.values():
        module, calls = modules[names[0]], [call for call in tape.calls if call.path == names[0]]
        kind = f"{type(module).__name__}({module.extra_repr()})"
        row = LayerResult(kind, names[0] or "(the whole model)", len(names), _locate_class(type(module)))
        errors = [(error, -number, name) for name in names for number, error in enumerate(forward.get(name, ()))]
        if errors:
            error, number, name = max(errors)
            differs = f"its call {1 - number} differs" if number and error > FORWARD else ""
            row = row._replace(forward=error, place=name or row.place, note=differs)
        is_late = compute_seconds() - started_s > _MAX_SECONDS
        results.append(row._replace(note="no time was left") if is_late else _compare_calls(module, calls, row))
    return results


def has_own_code(module: nn.Module) -> bool:
    """Return True for a layer that is no container, and not one of a known type with torch's own code.

    Dropout, which draws, is taken as it is.
    """
    has_forward = type(module).forward is not nn.Module.forward or "forward" in vars(module)
    if type(module) in _CONTAINERS or not has_forward or isinstance(module, nn.modules.dropout._DropoutNd):
        return False
    return find_kind(module) is None or not computes_as(module, list(KNOWN))


def find_kind(module: nn.Module) -> Any:
    """Return the nearest known type of a layer, or base class of it; None for an unknown layer."""
    return next((kind for kind in type(module).__mro__ if kind in KNOWN), None)


def _make_signature(module: nn.Module) -> Any:
    """Return type, plain attributes, parameter shapes and signatures of children; an own `forward` is distinct."""
    plain = [(name, repr(value)) for name, value in sorted(vars(module).items()) if isinstance(value, _PLAIN)]
    plain = [(name, text) for name, text in plain if name != "training" and (name[0] != "_" or text != "None")]
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]
    instance_id = id(module) if "forward" in vars(module) else 0
    children = tuple((name, _make_signature(child)) for name, child in module.named_children())
    return type(module), tuple(plain), tuple(shapes), instance_id, children


def _locate_class(cls: type) -> tuple[str | None, int | None]:
    """Return the file and first line of a class; None for classes of installed libraries."""
    try:
        file, line = inspect.getsourcefile(cls), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return None, None
    return (file, line) if file and "site-packages" not in Path(file).parts else (None, None)


def _with_fewer_points(batch: Batch, run: Callable[[Batch], Any]) -> Batch:
    """Crop clouds (B, N, ...) to as few first points as `run` accepts; return the batch unchanged if none works."""
    points = batch.get("points")
    if not isinstance(points, Tensor) or points.ndim != 3:
        return batch
    for size in (size for size in _SIZES if size < points.shape[1]):
        small = {name: _crop_points(value, points.shape[:2], size) for name, value in batch.items()}
        if not isinstance(attempt("model", torch.no_grad()(partial(run, small)), {}), MissingError):
            return small  # a model may reject small clouds
    return batch


def _crop_points(value: Any, rows: Any, size: int) -> Any:
    has_points = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == rows
    return value[:, :size].contiguous() if has_points else value


def _compute_derived_error(module: nn.Module, kind: Any, inputs: Any, outputs: Tensor) -> float:
    """Compute the relative error of outputs against those of the type with the same weights; 0 if it refuses."""
    plain = object.__new__(type(module))  # copy.copy refuses layers with parametrisations
    plain.__dict__ = dict(module.__dict__)
    plain._buffers = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    forward = torch.no_grad()(kind.forward)
    answer = attempt("layer", lambda: forward(plain, *inputs[0], **inputs[1]), {})
    if isinstance(answer, MissingError):
        return 0.0  # it takes other inputs than its known type
    expected: Tensor = answer
    if expected.shape != outputs.shape or not bool(outputs.isfinite().all()):
        return math.inf
    return float((outputs.detach() - expected).double().abs().max() / expected.double().abs().max().clamp(min=1.0))


def _copy_leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _compare_calls(module: nn.Module, calls: Sequence[ModuleCall], row: LayerResult) -> LayerResult:
    """Compare the first two calls of a layer; the first that is wrong counts."""
    results = []
    for call in calls[:_NUM_CALLS]:
        found = attempt("layer", compare_gradients, {"module": module, "call": call, "row": row})
        if isinstance(found, MissingError):
            found = row._replace(note="; ".join(filter(None, [row.note, str(found)])))
        results.append(found)
        if results[-1].is_wrong_backward:
            return results[-1]
    return results[0]


def compare_gradients(module: nn.Module, call: ModuleCall, row: LayerResult, seed: int = 0) -> LayerResult:
    """Return the row with the gradient error of a call, or why there is none; errors of the layer propagate."""
    layer = _perturb_parameters(copy.deepcopy(module).double().train(), seed)
    depends = {path for path, tensor in array_leaves(list(call.inputs)) if tensor.requires_grad}
    inputs = _crop_inputs(layer, _map_tensors(list(call.inputs), _to_float64), seed)
    groups: dict[str, Sequence[Tensor]] = {
        f"input {path}": [tensor.requires_grad_()] for path, tensor in array_leaves(inputs) if path in depends
    }
    for name, parameter in layer.named_parameters():
        group = "its layers" if "." in name else name
        groups[group] = [*groups.get(group, ()), parameter.requires_grad_()]
    evaluate = _make_evaluation(layer, inputs, seed)
    with note_surrogates() as declared:
        outputs = evaluate()  # the first call may compile
    declared |= find_surrogates(outputs, layer.modules())
    started_s = compute_seconds()
    repeated = evaluate()
    pass_s = compute_seconds() - started_s
    if declared:
        return row._replace(note=f"surrogate gradient of {', '.join(sorted(declared))}")
    if not outputs or not groups:
        return row._replace(note="it has no differentiable inputs or parameters")
    if pass_s > _MAX_LAYER_SECONDS / 4:
        return row._replace(note=f"one pass takes {pass_s:.1f} s")
    if not all(torch.equal(first, second) for first, second in zip(outputs, repeated, strict=True)):
        return row._replace(note="outputs differ from call to call under one seed")
    if pass_s * (2 * len(groups) + 1) > _MAX_LAYER_SECONDS:
        groups = {"all inputs and parameters": [tensor for tensors in groups.values() for tensor in tensors]}
    errors = gradient_errors(evaluate, groups, seed=seed, step=_STEP)
    weakest, error = worst_error(errors)
    notes = [row.note, f"call {call.call_index + 1}" if call.call_index else "", describe_uncompared(groups, errors)]
    return row._replace(gradient=error, weakest=weakest, note="; ".join(filter(None, notes)))


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tree_map(value, lambda _, tensor: change(tensor))


def _to_float64(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return copied.double() if copied.is_floating_point() else copied


def _perturb_parameters(layer: nn.Module, seed: int) -> nn.Module:
    """Perturb every parameter slightly, so that zero biases do not put activations exactly at a ReLU's kink."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            size = max(_PERTURBATION, float(parameter.abs().max())) if parameter.numel() else 0.0
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(drawn, alpha=_PERTURBATION * size)
    return layer


def _make_evaluation(layer: nn.Module, inputs: Any, seed: int) -> Callable[[], list[Tensor]]:
    """Make a function that calls the layer on clones, which it may modify in place; it draws the same each time."""

    def evaluate() -> list[Tensor]:
        seed_torch(seed)
        args, kwargs = _map_tensors(inputs, lambda tensor: tensor.clone() if tensor.is_floating_point() else tensor)
        tensors = [tensor for _, tensor in array_leaves(layer(*args, **kwargs))]
        return [tensor for tensor in tensors if tensor.is_floating_point()]

    return evaluate


def _crop_inputs(layer: nn.Module, inputs: Any, seed: int) -> Any:
    """Crop large images or volumes among the inputs to the smallest corner that the layer accepts."""
    sizes = [tensor.numel() for _, tensor in array_leaves(inputs) if _has_space(tensor)]
    for size in _CORNERS if sizes and max(sizes) > _MAX_ELEMENTS else ():

        def corner(tensor: Tensor, size: int = size) -> Tensor:
            window: Any = (..., *(slice(size),) * (tensor.ndim - 2))
            return tensor[window].clone() if _has_space(tensor) else tensor

        small = _map_tensors(inputs, corner)
        evaluate = torch.no_grad()(_make_evaluation(layer, small, seed))
        if not isinstance(attempt("layer", evaluate, {}), MissingError):
            return small
    return inputs


def _has_space(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 4


# --- rules ---


@measure()
def compared_layers(deep: Context) -> list[LayerResult]:
    """Compare every kind of layer with finite differences, and with the type it derives from: of a deep check."""
    if not deep.dry_run.is_sound:
        raise LeftOutError("the first step fails")
    results = examine(deep.built.job, to_device(deep.dry_run.batch, torch.device("cpu")))
    uncompared = [each for each in results if each.gradient is None and not each.is_wrong_forward]
    deep.examination.gaps += [f"the layer '{each.place}' alone: {each.note}" for each in uncompared]
    return results


@rule(
    "layer-forward",
    "error",
    "model.structure sys.backend",
    holds="outputs that are those of the type of torch's that a layer derives from",
    do="compare it with its definition; a layer that is meant to differ should derive from nn.Module",
)
def layer_forward(compared_layers: list[LayerResult]) -> Iterator[Fault]:
    """Compare the outputs of layers with those of the type that they derive from."""
    for row in compared_layers:
        if row.is_wrong_forward:
            yield Fault(
                f"the layer '{row.place}' does not compute the definition of its type"
                + (f" ({row.note})" if row.note else ""),
                where=_locate(row),
                measured=f"{row.kind}: off by {row.forward:.3g} of its largest value",
                expected=f"at most {FORWARD:g}",
                evidence={"layers": row.number, "off": row.forward},
            )


def _locate(row: LayerResult) -> FindingLocation:
    """Return the file and line of a layer's class; that of the model in the config for one of a library."""
    file, line = row.file
    return FindingLocation(file=file, line=line, layer=row.place, config_path="model" if file is None else None)


def _contains(row: LayerResult, other: LayerResult) -> bool:
    """Return True if the other layer is inside this one; the whole model contains all layers."""
    return row is not other and (row.place.startswith("(") or other.place.startswith(f"{row.place}."))


@rule(
    "layer-gradient",
    "error",
    "model.numerics loss.inplace",
    holds="gradients of a layer that are the derivative of what it computes",
    do="look for a custom backward, for .data, detach() and no_grad, and for in-place edits; an intended "
    "surrogate gradient is declared by @sightline.surrogate_gradient or surrogate_gradient = True",
)
def layer_gradient(compared_layers: list[LayerResult]) -> Iterator[Fault]:
    """Compare gradients in float64 with finite differences; only the innermost wrong layer is named."""
    wrong = [row for row in compared_layers if row.is_wrong_backward]
    for row in wrong:
        if any(_contains(row, other) for other in wrong):
            continue
        yield Fault(
            f"the gradient of '{row.weakest}' in '{row.place}' is not the derivative of what it computes",
            where=_locate(row),
            measured=f"{row.kind}: off by {row.gradient:.3g} of its size, in float64",
            expected=f"at most {GRADIENT:g}; correct gradients are a factor of ten below",
            evidence={"layers": row.number, "around": [other.place for other in wrong if _contains(other, row)]},
        )
