"""Deviation of a variant from the reference, in units of explained rounding, tensor by tensor.

The unit is the larger of two: the change of the reference's result when its inputs are perturbed by one unit in the
last place of the variant's number format (the largest of some draws), and one unit in the last place of the result's
largest value. More than `MAX_ROUNDING_UNITS` units are not explained. If a tensor stays suspect, the results of the
operations inside are perturbed as well: for a sum that is zero except for rounding, the inputs show nothing. The error
of a plain form of a layer in the variant's format also counts, if there is one that sums sequentially.

A decision (which neighbour is nearer, which response is the largest) may change after the smallest rounding, and the
values that depend on it then jump. If a tensor is suspect, inputs are perturbed by `MAX_ROUNDING_UNITS` units as well,
and by one in the same directions, and in three draws of four every operation's result: a smooth value moves
`MAX_ROUNDING_UNITS` times as far. An entry that does not, by more than the bound itself, has no value that survives
rounding: it is not judged, and the others are.

Unfused float32 forms of layers with sequential summation: the rounding error that any form may have.

Torch's batch norm on a CPU sums sequentially if channels come last, and so do loops of ours. Perturbed inputs do not
show this error: it grows with the length of a sum, all the more if values repeat. Every form of a layer may deviate
as far as the plain form does in the same format.

A plain form belongs to exactly one class. A module of a derived class may compute anything, and what it does
differently would pass for rounding: it has no plain form (`computes_as`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, from_numpy, nn
from torch.nn import functional as F

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.instrument.formats import FORMATS, Format
from sightline.instrument.replay import (
    CONVOLUTIONS,
    PRODUCTS,
    LayerUnit,
    Perturbation,
    ReferenceResult,
    computes_as,
    replay,
)

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def run_plain_form(unit: LayerUnit, suspects: Set[str]) -> ReferenceResult | None:
    """Run the unfused layer in float32 with sequential summation on the recorded inputs and gradients.

    Returns everything for a batch norm; for a convolution the gradients of its parameters, if they are among the
    `suspects` (names as in `ReferenceResult.items`). None for other modules and formats, and for a module that computes
    something else than torch's class.
    """
    owner: Any = unit.owner
    if unit.call.format.name != "float32":
        return None
    if computes_as(owner, _BATCH_NORMS):
        return _run_plain_batch_norm(unit, owner) if owner.training else None
    parameters = {name: f"parameter.{unit.prefix}.{name}" for name in ("weight", "bias")}
    if computes_as(owner, CONVOLUTIONS) and suspects & {f"to {name}" for name in parameters.values()}:
        gradients = _compute_plain_gradients(unit, owner)
        return (
            None
            if gradients is None
            else ReferenceResult(gradients={parameters[name]: gradients[name] for name in gradients})
        )
    return None


def sum_magnitudes(unit: LayerUnit) -> dict[str, float]:
    """Compute, for each parameter gradient, the largest sum of the magnitudes of its terms, by name in the result.

    For linear layers and convolutions; empty for others. If terms cancel, a partial sum may be as large as this,
    however small the final sum is.
    """
    if not computes_as(unit.owner, PRODUCTS) or unit.inner:
        return {}
    call = unit.call
    positive = replace(
        call,
        inputs=tree_map(call.inputs, lambda _, tensor: tensor.abs()),
        output_gradients={path: gradient.abs() for path, gradient in call.output_gradients.items()},
    )
    gradients = replay(replace(unit, call=positive)).gradients
    return {
        f"to {name}": float(gradient.max()) for name, gradient in gradients.items() if name.startswith("parameter.")
    }


def run_unfused_twin(unit: LayerUnit) -> ReferenceResult | None:
    """Run the unfused twin of a layer of ours in float32, with its submodules; None if the layer has no twin."""
    twin = copy.deepcopy(unit.owner).float()
    forward = _find_plain_forward(twin)
    if forward is None or unit.call.format.name != "float32":
        return None
    return replay(replace(unit, run=forward, owner=twin, inner=(), modules=()), dtype=torch.float32)


def _find_plain_forward(module: Any) -> Callable[..., Any] | None:
    """Return the unfused forward of a layer of ours: its switch `fused` off, or its base class `Plain...`.

    None for any other layer, and if the layer or a submodule computes something else than a class of ours or torch's.
    """
    our_classes = [kind for kind in type(module).__mro__ if _top_package(kind) == "sightline"]
    if not our_classes or not all(_computes_as_base(submodule) for submodule in module.modules()):
        return None
    if isinstance(getattr(module, "fused", None), bool):
        module.fused = False
        return module
    plain_classes: list[Any] = [kind for kind in our_classes if kind.__name__.startswith("Plain")]
    return None if not plain_classes else lambda *args, **kwargs: plain_classes[0].forward(module, *args, **kwargs)


def _computes_as_base(module: nn.Module) -> bool:
    """Return True if a module computes exactly what its nearest base class of sightline or torch computes."""
    kind = next(kind for kind in type(module).__mro__ if _top_package(kind) in ("sightline", "torch"))
    return computes_as(module, (kind,))


def _top_package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def use_sequential_batch_norm(model: nn.Module) -> None:
    """Make the training batch norms of a float64 model compute in float32 with sequential sums, in place."""
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS) and computes_as(module, _BATCH_NORMS):
            module.forward = partial(_forward_sequentially, module)  # type: ignore[method-assign]


def _forward_sequentially(norm: nn.modules.batchnorm._BatchNorm, values: Tensor) -> Tensor:
    if not norm.training:
        evaluated: Tensor = type(norm).forward(norm, values)
        return evaluated
    normalized: Tensor = _SequentialBatchNorm.apply(values, norm.weight, norm.bias, norm.eps)
    return normalized


class _SequentialBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        ctx.norm, ctx.like = _PlainNorm(_flatten_rows(values), weight, bias, eps), (values, weight, bias)
        return _unflatten_rows(ctx.norm.output_nC, values).to(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        values, weight, bias = ctx.like
        grad_values, grad_weight, grad_bias = ctx.norm.gradients(_flatten_rows(gradient))
        parameters = [(weight, grad_weight), (bias, grad_bias)]
        parameter_gradients = [
            None if parameter is None else from_numpy(parameter_gradient).to(parameter)
            for parameter, parameter_gradient in parameters
        ]
        return _unflatten_rows(grad_values, values).to(values), *parameter_gradients, None


class _PlainNorm:
    """Float32 batch norm of rows (n, C) with sequential sums. Source: Ioffe and Szegedy 2015, algorithm 1."""

    def __init__(self, values_nC: np.ndarray, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        self.num = np.float32(len(values_nC))
        self.mean_C = values_nC.sum(axis=0) / self.num  # over the outer axis NumPy adds row by row
        centred_nC = values_nC - self.mean_C
        self.variance_C = np.square(centred_nC).sum(axis=0) / self.num
        self._inverse_C = 1 / np.sqrt(self.variance_C + np.float32(eps))
        self._standard_nC = centred_nC * self._inverse_C
        self._weight_C = np.float32(1) if weight is None else _to_numpy(weight)
        self.output_nC = self._standard_nC * self._weight_C + (np.float32(0) if bias is None else _to_numpy(bias))

    def gradients(self, gradient_nC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute the gradients of values (n, C), weight (C,) and bias (C,) from that of the output (n, C)."""
        grad_bias, grad_weight = gradient_nC.sum(axis=0), (gradient_nC * self._standard_nC).sum(axis=0)
        inner_nC = gradient_nC - grad_bias / self.num - self._standard_nC * (grad_weight / self.num)
        return self._weight_C * self._inverse_C * inner_nC, grad_weight, grad_bias


def _run_plain_batch_norm(unit: LayerUnit, owner: nn.modules.batchnorm._BatchNorm) -> ReferenceResult:
    path, values = next(tree_leaves(unit.call.inputs))
    norm = _PlainNorm(_flatten_rows(values), owner.weight, owner.bias, owner.eps)
    answer = ReferenceResult({"out.": _unflatten_rows(norm.output_nC, values)})
    momentum, num = owner.momentum, norm.num
    for name, statistic in (("running_mean", norm.mean_C), ("running_var", norm.variance_C * (num / (num - 1)))):
        key = f"{unit.prefix}.{name}".lstrip(".")
        if key in unit.call.buffers and momentum is not None:
            initial = _to_numpy(unit.call.buffers[key][0])
            answer.values[f"buffer.{key}"] = from_numpy(
                initial * np.float32(1 - momentum) + statistic * np.float32(momentum)
            )
    if "" in unit.call.output_gradients:
        grad_values, grad_weight, grad_bias = norm.gradients(_flatten_rows(unit.call.output_gradients[""]))
        answer.gradients = {
            f"given.{path}": _unflatten_rows(grad_values, values),
            f"parameter.{unit.prefix}.weight": from_numpy(grad_weight),
            f"parameter.{unit.prefix}.bias": from_numpy(grad_bias),
        }
    return answer


def _compute_plain_gradients(unit: LayerUnit, conv: Any) -> dict[str, Tensor] | None:
    """Compute the gradients of a convolution's weight and bias with sequential sums over the positions.

    None if the convolution has groups or does not pad with zeros.
    """
    grad_output = unit.call.output_gradients.get("")
    if grad_output is None or conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    _, values = next(tree_leaves(unit.call.inputs))
    if values.ndim != grad_output.ndim or values.ndim != conv.weight.ndim:
        return None  # one sample without an axis for it
    values, grad_output = values.detach().float(), grad_output.detach().float()
    volumes, positions = (
        (grad_output, values) if conv.transposed else (values, grad_output)
    )  # each entry of `single` sees a patch
    padded = F.pad(volumes, [p for pad in reversed(conv.padding) for p in (pad, pad)])
    weight = volumes.new_zeros(positions.shape[1], volumes.shape[1] * conv.weight.shape[2:].numel())
    for volume, entries in zip(padded, positions, strict=True):
        for slice_index in range(entries.shape[1]):
            patches = _extract_patches(volume, slice_index, conv, entries.shape[2:])
            for entry, patch in zip(
                entries[:, slice_index].reshape(len(entries), -1).T.contiguous(), patches, strict=True
            ):
                weight.addr_(entry, patch)
    gradients = {"weight": weight.view(conv.weight.shape)}
    if conv.bias is not None:
        gradients["bias"] = from_numpy(_flatten_rows(grad_output).sum(axis=0))
    return gradients


def _extract_patches(volume: Tensor, slice_index: int, conv: Any, sizes: torch.Size) -> Tensor:
    """Extract the patches (n, C * kernel) of one slice of the output (im2col)."""
    channel, *strides = volume.stride()
    kernel_strides = [step * spacing for step, spacing in zip(strides, conv.dilation, strict=True)]
    output_strides = [step * spacing for step, spacing in zip(strides, conv.stride, strict=True)]
    view = volume.as_strided(
        (*sizes, len(volume), *conv.weight.shape[2:]),
        (*output_strides[1:], channel, *kernel_strides),
        volume.storage_offset() + slice_index * output_strides[0],
    )
    return view.reshape(sizes.numel(), -1)


def _flatten_rows(values: Tensor) -> np.ndarray:
    """Reshape values (B, C, ...) to rows (n, C), in order."""
    return np.ascontiguousarray(_to_numpy(values.movedim(1, -1).reshape(-1, values.shape[1])))


def _unflatten_rows(rows_nC: np.ndarray, like: Tensor) -> Tensor:
    channels_last = like.movedim(1, -1)
    return from_numpy(rows_nC).reshape(channels_last.shape).movedim(-1, 1)


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


MAX_ROUNDING_UNITS = 16.0
"""Units of rounding beyond which a deviation is not explained."""
INFINITE_RATIO = 1e99
"""Ratio that marks an unbounded deviation: another shape, or a number compared with NaN."""
_NUM_DRAWS = 4
_MAX_SMOOTH_UNITS = 1000.0
"""Units of the result's largest value beyond which a draw may not be rounding: a decision may have changed."""
_MIN_JUMP_DRAWS, _MAX_JUMP_DRAWS = 8, 32
"""Number of draws after which a suspect without a jump is guilty, and after which every suspect is."""

Run = Callable[[Perturbation | None], ReferenceResult]


@dataclass
class Deviation:
    """Deviation of one tensor: largest error, unit of rounding, and largest value of the reference.

    `undefined` of the `entries` depend on decisions that rounding changes. `note` adds facts that numbers do not show.
    """

    error: float
    unit: float
    scale: float
    entries: int
    undefined: int = 0
    note: str = ""

    @property
    def ratio(self) -> float:
        """The error in units of rounding; above `MAX_ROUNDING_UNITS` it is not explained."""
        if self.error == 0.0:
            return 0.0
        return (
            min(self.error / self.unit, INFINITE_RATIO)
            if self.unit > 0 and math.isfinite(self.error)
            else INFINITE_RATIO
        )

    @property
    def is_guilty(self) -> bool:
        """True if rounding does not explain the error."""
        return self.ratio > MAX_ROUNDING_UNITS

    def widen_tolerance(self, moved: float, *, most: float) -> None:
        """Raise the unit to the change `moved` of one draw, unless that is above `most`: then it may be a jump."""
        if moved <= most:
            self.unit = max(self.unit, moved)

    @property
    def relative_error(self) -> float:
        """The error as a share of the largest value."""
        return (
            min(self.error / self.scale, INFINITE_RATIO) if self.scale > 0 else (INFINITE_RATIO if self.error else 0.0)
        )

    @property
    def relative_bound(self) -> float:
        """The largest error that rounding explains, as a share of the largest value."""
        return MAX_ROUNDING_UNITS * self.unit / self.scale if self.scale > 0 else 0.0


def judge(unit: LayerUnit, actual: Mapping[str, Tensor], clean: ReferenceResult, run: Run, *, seed: int) -> Judgement:
    """Judge each tensor that both sides have, and measure how far perturbations move the others.

    `run(perturbation)` recomputes the result with perturbed inputs. Draws stop as soon as no tensor is suspect: more
    of them would only raise the unit, so a ratio is an upper bound.
    """
    base, exact = unit.call.format, clean.items()
    answers = {name: value for name, value in exact.items() if name in actual}
    factors = {name: _sum_error_factor(unit.num_added(name)) for name in exact}
    deviations = {
        name: _compute_deviation(actual[name], value, base, factor=factors[name]) for name, value in answers.items()
    }
    max_changes = {
        name: math.inf if name in _parameter_gradients(deviations) else _MAX_SMOOTH_UNITS * d.unit
        for name, d in deviations.items()
    }
    moves = {name: 0.0 for name in exact if name not in actual}
    if _is_explained(deviations):
        return Judgement(deviations, moves)
    for name, largest in sum_magnitudes(unit).items() if _parameter_gradients(deviations) else ():
        if name in deviations:
            deviations[name].unit = max(deviations[name].unit, factors[name] * base.ulp(largest))
    if _is_explained(deviations):
        return Judgement(deviations, moves)
    possible_suspects = {name for name, deviation in deviations.items() if deviation.ratio > MAX_ROUNDING_UNITS / 2}
    for result, includes_rounding in _run_with_rounding(unit, possible_suspects, run, seed):
        for name, perturbed in result.items().items():
            factor = 1.0 if includes_rounding else factors.get(name, 1.0)
            if name in deviations:
                max_change = math.inf if includes_rounding else max_changes[name]
                deviations[name].widen_tolerance(factor * _largest_change(perturbed, answers[name]), most=max_change)
            elif name in moves:
                moves[name] = max(moves[name], factor * _largest_change(perturbed, exact[name]))
        if _is_explained(deviations):
            return Judgement(deviations, moves)
    suspects = [name for name, d in deviations.items() if d.is_guilty and actual[name].shape == answers[name].shape]
    if suspects:
        jumps = _exclude_jumps(deviations, suspects, actual, answers, run, base, seed)
        if any(deviations[name].is_guilty for name in suspects):
            _tolerate_twin_error(deviations, jumps, answers, run_unfused_twin(unit))
    return Judgement(deviations, moves)


def _is_explained(deviations: Mapping[str, Deviation]) -> bool:
    """Return True if no further draws are needed. Half the bound is required: few draws are not a maximum."""
    return all(deviation.ratio <= MAX_ROUNDING_UNITS / 2 for deviation in deviations.values())


def _parameter_gradients(names: Iterable[str]) -> set[str]:
    """Return the names of parameter gradients: sums over all positions, whose terms may cancel."""
    return {name for name in names if name.startswith("to parameter.")}


class Judgement(NamedTuple):
    """Deviations by name, and the largest change of each tensor that the variant does not have."""

    deviations: dict[str, Deviation]
    moves: dict[str, float]


def _sum_error_factor(num_added: int) -> float:
    """Return the error of a sequential sum of `num_added` values, in units of the effect of perturbing each value.

    Each addition is rounded by up to half a unit of the partial sum. The root mean square over n additions is
    sqrt(n / 12) * sqrt(1 / 3) = sqrt(n) / 6 units of the final sum, whether it grows or cancels.
    """
    return max(1.0, math.sqrt(num_added) / 6.0)


def _tolerate_twin_error(
    deviations: dict[str, Deviation],
    jumps: Mapping[str, Tensor],
    answers: Mapping[str, Tensor],
    twin: ReferenceResult | None,
) -> None:
    """Raise the units to the error of the layer's plain twin, except in entries that jump."""
    for name, value in ({} if twin is None else twin.items()).items():
        if name in jumps and value.shape == answers[name].shape:
            error = max_abs_difference(value[~jumps[name]], answers[name][~jumps[name]])
            deviations[name].unit = max(deviations[name].unit, error)


def _run_with_rounding(
    unit: LayerUnit, suspects: set[str], run: Run, seed: int
) -> Iterator[tuple[ReferenceResult, bool]]:
    """Yield results with rounding, the cheapest first: sequential sums, perturbed inputs, perturbed operations.

    Each comes with True if it already includes every rounding.
    """
    base = unit.call.format
    plainest = run_plain_form(unit, suspects)
    if plainest is not None:
        yield plainest, True
    for draw in range(_NUM_DRAWS):
        yield run(Perturbation(base, seed + draw)), False
    for draw in range(_NUM_DRAWS, 2 * _NUM_DRAWS):
        yield run(Perturbation(base, seed + draw, inside=True)), False


def sum_deviation(actual: Tensor, answer: Tensor, base: Format, *, moved: float, num_added: int) -> Deviation:
    """Compute the deviation of a sum of `num_added` values, which changes by `moved` if inputs change by one unit."""
    deviation = _compute_deviation(actual, answer, base, factor=_sum_error_factor(num_added))
    deviation.unit = max(deviation.unit, moved)
    return deviation


def _exclude_jumps(
    deviations: dict[str, Deviation],
    suspects: list[str],
    actual: Mapping[str, Tensor],
    answers: Mapping[str, Tensor],
    run: Run,
    base: Format,
    seed: int,
) -> dict[str, Tensor]:
    """Exclude the entries that jump, until every suspect is explained or further draws are pointless.

    Returns the mask of jumping entries of each suspect. The movement of other entries is rounding, however far.
    """
    jumps = {name: torch.zeros_like(answers[name], dtype=torch.bool) for name in suspects}
    smooth_changes = {name: deviations[name].unit for name in suspects}
    for draw in range(_MAX_JUMP_DRAWS):
        inside = draw % 4 > 0  # decisions by sums of equal terms show only there
        near = run(Perturbation(base, seed + 1000 + draw, inside=inside)).items()
        far = run(Perturbation(base, seed + 1000 + draw, units=int(MAX_ROUNDING_UNITS), inside=inside)).items()
        for name in suspects:
            jumps[name] |= _jump_mask(
                answers[name], near.get(name), far.get(name), MAX_ROUNDING_UNITS * smooth_changes[name]
            )
            if name in near and near[name].shape == answers[name].shape and answers[name].is_floating_point():
                smooth_changes[name] = max(
                    smooth_changes[name], _largest_change(near[name][~jumps[name]], answers[name][~jumps[name]])
                )
        for name in suspects:
            deviation = _compute_deviation(actual[name], answers[name], base, where=~jumps[name])
            deviation.unit = max(deviation.unit, smooth_changes[name])
            deviation.undefined = int(jumps[name].sum())
            deviations[name] = deviation
        guilty = [name for name in suspects if deviations[name].is_guilty]
        if not guilty or (draw + 1 >= _MIN_JUMP_DRAWS and not any(bool(jumps[name].any()) for name in guilty)):
            break
    return jumps


def _jump_mask(answer: Tensor, near: Tensor | None, far: Tensor | None, bound: float) -> Tensor:
    """Compute the mask of entries that do not move in a straight line from `answer` over `near` to `far`.

    Such an entry leaves the line by more than `bound` and by more than half of the line's own step: a mere bend is not
    a jump.
    """
    if near is None or far is None:
        return torch.zeros_like(answer, dtype=torch.bool)
    if not answer.shape == near.shape == far.shape:
        return torch.ones_like(answer, dtype=torch.bool)
    start = answer.double()
    step = near.double() - start
    bent = (far.double() - (start + MAX_ROUNDING_UNITS * step)).abs()
    return ~(bent <= bound + MAX_ROUNDING_UNITS / 2 * step.abs())  # a value that becomes NaN jumps, too


def _compute_deviation(
    actual: Tensor, answer: Tensor, base: Format, *, factor: float = 1.0, where: Tensor | None = None
) -> Deviation:
    """Compute the deviation over the entries `where` (all if None); the unit is that of the largest value.

    Integers are exact: their unit is float64's.
    """
    if actual.shape != answer.shape:
        note = f"shape {tuple(actual.shape)}, the reference's is {tuple(answer.shape)}"
        return Deviation(math.inf, 1.0, 1.0, answer.numel(), note=note)
    actual_values = actual.to(answer.device)
    scale = float(answer.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if answer.numel() else 0.0
    numbers = base if answer.is_floating_point() else FORMATS[torch.float64]
    unit = numbers.unit_of_largest(answer) * factor
    if where is not None:
        actual_values, answer = actual_values[where], answer[where]
    return Deviation(max_abs_difference(actual_values, answer), unit, scale, actual.numel())


def _largest_change(perturbed: Tensor, answer: Tensor) -> float:
    """Return the largest change of the entries that stay finite; 0 if the shape changes."""
    if perturbed.shape != answer.shape or not answer.numel():
        return 0.0
    change = perturbed.double() - answer.to(perturbed.device).double()
    return float(change.abs().nan_to_num(0.0, 0.0, 0.0).max())


def max_abs_difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference; infinite if shapes differ or only one side is NaN or infinite."""
    if first.shape != second.shape:
        return math.inf
    if not first.numel():
        return 0.0
    first, second = first.double(), second.double()
    same = (first == second) | (first.isnan() & second.isnan())
    difference = torch.where(same, torch.zeros_like(second), (first - second).abs())
    return float(difference.nan_to_num(nan=math.inf).max())
