"""Unfused float32 forms of layers with sequential summation: the rounding error that any form may have.

Torch's batch norm on a CPU sums sequentially if channels come last, and so do loops of ours. Perturbed inputs do not
show this error: it grows with the length of a sum, all the more if values repeat. Every form of a layer may deviate
as far as the plain form does in the same format. A plain form belongs to exactly one class: a module of a derived class
may compute anything, and what it does differently would pass for rounding (`computes_as`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Set
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, from_numpy, nn
from torch.nn import functional as F

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.instrument.replay import CONVOLUTIONS, PRODUCTS, LayerUnit, ReferenceResult, computes_as, replay

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
    result = ReferenceResult({"out.": _unflatten_rows(norm.output_nC, values)})
    momentum, num = owner.momentum, norm.num
    for name, statistic in (("running_mean", norm.mean_C), ("running_var", norm.variance_C * (num / (num - 1)))):
        key = f"{unit.prefix}.{name}".lstrip(".")
        if key in unit.call.buffers and momentum is not None:
            initial = _to_numpy(unit.call.buffers[key][0])
            result.values[f"buffer.{key}"] = from_numpy(
                initial * np.float32(1 - momentum) + statistic * np.float32(momentum)
            )
    if "" in unit.call.output_gradients:
        grad_values, grad_weight, grad_bias = norm.gradients(_flatten_rows(unit.call.output_gradients[""]))
        result.gradients = {
            f"given.{path}": _unflatten_rows(grad_values, values),
            f"parameter.{unit.prefix}.weight": from_numpy(grad_weight),
            f"parameter.{unit.prefix}.bias": from_numpy(grad_bias),
        }
    return result


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
