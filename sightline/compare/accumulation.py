"""What a layer makes in the variant's own format where it is written as plainly as it can be.

Torch's batch norm on a CPU adds values one after another where channels come last, and so do loops of ours; moving the
inputs does not show it: the error of a long sum grows with its length, all the more where values repeat. What a
plain form in the same format is off by, any form may be off by.

A plain form stands for exactly one class. A module of another class that derives from it may compute anything, and what
it does otherwise would pass for rounding: it has none (`computes_as`).
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

from sightline.compare.float64_reference import (
    CONVOLUTIONS,
    PRODUCTS,
    LayerUnit,
    ReferenceResult,
    computes_as,
    run_reference,
)
from sightline.pytree import tree_leaves, tree_map

__all__ = ["magnitudes", "plain_answer", "sum_in_order", "twin_answer"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def plain_answer(unit: LayerUnit, suspects: Set[str]) -> ReferenceResult | None:
    """What a plain form makes in float32 of the unit's input and gradients, with sums one after another.

    Of a batch norm everything; of a convolution the gradients of its parameters, if they are among the suspects, named
    as in an answer. None for another module or format, and for a module that computes otherwise than torch's class.
    """
    owner: Any = unit.owner
    if unit.call.format.name != "float32":
        return None
    if computes_as(owner, _BATCH_NORMS):
        return _plain_batch_norm(unit, owner) if owner.training else None
    parameters = {name: f"parameter.{unit.prefix}.{name}" for name in ("weight", "bias")}
    if computes_as(owner, CONVOLUTIONS) and suspects & {f"to {name}" for name in parameters.values()}:
        gradients = _plain_gradients(unit, owner)
        return (
            None
            if gradients is None
            else ReferenceResult(gradients={parameters[name]: gradients[name] for name in gradients})
        )
    return None


def magnitudes(unit: LayerUnit) -> dict[str, float]:
    """The sums of the magnitudes of all that is added up for a parameter's gradient, the largest, by name in an answer.

    Of linear layers and convolutions. Where terms cancel, a sum on its way may be as large, however small it ends.
    """
    if not computes_as(unit.owner, PRODUCTS) or unit.inner:
        return {}
    call = unit.call
    positive = replace(
        call,
        given=tree_map(call.given, lambda _, tensor: tensor.abs()),
        to_made={place: gradient.abs() for place, gradient in call.to_made.items()},
    )
    found = run_reference(replace(unit, call=positive)).gradients
    return {f"to {name}": float(each.max()) for name, each in found.items() if name.startswith("parameter.")}


def twin_answer(unit: LayerUnit) -> ReferenceResult | None:
    """What the plain twin of a layer of ours makes in float32, with all that is inside; None where it has no twin."""
    twin = copy.deepcopy(unit.owner).float()
    forward = _plain_forward(twin)
    if forward is None or unit.call.format.name != "float32":
        return None
    return run_reference(replace(unit, run=forward, owner=twin, inner=(), modules=()), dtype=torch.float32)


def _plain_forward(module: Any) -> Callable[..., Any] | None:
    """The plain form of a layer of ours that comes in two: by its argument `fused`, or by a base class `Plain...`.

    None for any other, and where it, or a module inside, computes otherwise than a class of ours or of torch's.
    """
    ours = [kind for kind in type(module).__mro__ if _package(kind) == "sightline"]
    if not ours or not all(_is_known(each) for each in module.modules()):
        return None
    if isinstance(getattr(module, "fused", None), bool):
        module.fused = False
        return module
    kinds: list[Any] = [kind for kind in ours if kind.__name__.startswith("Plain")]
    return None if not kinds else lambda *args, **kwargs: kinds[0].forward(module, *args, **kwargs)


def _is_known(module: nn.Module) -> bool:
    """Whether a module computes exactly as the nearest of its classes that is ours or torch's."""
    kind = next(kind for kind in type(module).__mro__ if _package(kind) in ("sightline", "torch"))
    return computes_as(module, (kind,))


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def sum_in_order(model: nn.Module) -> None:
    """Let the batch norms of a float64 model compute in float32, with sums one after another, where they train."""
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS) and computes_as(module, _BATCH_NORMS):
            module.forward = partial(_forward_in_order, module)  # type: ignore[method-assign]


def _forward_in_order(norm: nn.modules.batchnorm._BatchNorm, values: Tensor) -> Tensor:
    if not norm.training:
        whole: Tensor = type(norm).forward(norm, values)
        return whole
    made: Tensor = _InOrder.apply(values, norm.weight, norm.bias, norm.eps)
    return made


class _InOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        ctx.norm, ctx.like = _PlainNorm(_rows(values), weight, bias, eps), (values, weight, bias)
        return _back(ctx.norm.made_nC, values).to(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        values, weight, bias = ctx.like
        to_values, to_weight, to_bias = ctx.norm.gradients(_rows(gradient))
        parameters = [(weight, to_weight), (bias, to_bias)]
        given = [None if parameter is None else from_numpy(found).to(parameter) for parameter, found in parameters]
        return _back(to_values, values).to(values), *given, None


class _PlainNorm:
    """Batch norm of rows in float32, sums one after another. Source: Ioffe and Szegedy 2015, algorithm 1."""

    def __init__(self, values_nC: np.ndarray, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        self.num = np.float32(len(values_nC))
        self.mean_C = values_nC.sum(axis=0) / self.num  # over the outer axis NumPy adds row by row
        centred_nC = values_nC - self.mean_C
        self.variance_C = np.square(centred_nC).sum(axis=0) / self.num
        self._inverse_C = 1 / np.sqrt(self.variance_C + np.float32(eps))
        self._standard_nC = centred_nC * self._inverse_C
        self._weight_C = np.float32(1) if weight is None else _numbers(weight)
        self.made_nC = self._standard_nC * self._weight_C + (np.float32(0) if bias is None else _numbers(bias))

    def gradients(self, gradient_nC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the values, the weight and the bias, from that of the result."""
        to_bias, to_weight = gradient_nC.sum(axis=0), (gradient_nC * self._standard_nC).sum(axis=0)
        inner_nC = gradient_nC - to_bias / self.num - self._standard_nC * (to_weight / self.num)
        return self._weight_C * self._inverse_C * inner_nC, to_weight, to_bias


def _plain_batch_norm(unit: LayerUnit, owner: nn.modules.batchnorm._BatchNorm) -> ReferenceResult:
    place, given = next(tree_leaves(unit.call.given))
    norm = _PlainNorm(_rows(given), owner.weight, owner.bias, owner.eps)
    answer = ReferenceResult({"out.": _back(norm.made_nC, given)})
    share, num = owner.momentum, norm.num
    for name, found in (("running_mean", norm.mean_C), ("running_var", norm.variance_C * (num / (num - 1)))):
        key = f"{unit.prefix}.{name}".lstrip(".")
        if key in unit.call.buffers and share is not None:
            before = _numbers(unit.call.buffers[key][0])
            answer.values[f"buffer.{key}"] = from_numpy(before * np.float32(1 - share) + found * np.float32(share))
    if "" in unit.call.to_made:
        to_values, to_weight, to_bias = norm.gradients(_rows(unit.call.to_made[""]))
        answer.gradients = {
            f"given.{place}": _back(to_values, given),
            f"parameter.{unit.prefix}.weight": from_numpy(to_weight),
            f"parameter.{unit.prefix}.bias": from_numpy(to_bias),
        }
    return answer


def _plain_gradients(unit: LayerUnit, conv: Any) -> dict[str, Tensor] | None:
    """Of a convolution's weight and bias: what each position adds is added, one position after another.

    None where the convolution has groups, or pads otherwise than with zeros.
    """
    arriving = unit.call.to_made.get("")
    if arriving is None or conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    _, given = next(tree_leaves(unit.call.given))
    if given.ndim != arriving.ndim or given.ndim != conv.weight.ndim:
        return None  # one sample without an axis for it
    given, arriving = given.detach().float(), arriving.detach().float()
    whole, single = (arriving, given) if conv.transposed else (given, arriving)  # each entry of `single` sees a patch
    padded = F.pad(whole, [p for pad in reversed(conv.padding) for p in (pad, pad)])
    weight = whole.new_zeros(single.shape[1], whole.shape[1] * conv.weight.shape[2:].numel())
    for volume, entries in zip(padded, single, strict=True):
        for place in range(entries.shape[1]):
            patches = _patches(volume, place, conv, entries.shape[2:])
            for entry, patch in zip(entries[:, place].reshape(len(entries), -1).T.contiguous(), patches, strict=True):
                weight.addr_(entry, patch)
    gradients = {"weight": weight.view(conv.weight.shape)}
    if conv.bias is not None:
        gradients["bias"] = from_numpy(_rows(arriving).sum(axis=0))
    return gradients


def _patches(volume: Tensor, place: int, conv: Any, sizes: torch.Size) -> Tensor:
    """What the entries of one slice see, (n, C * kernel)."""
    channel, *strides = volume.stride()
    kernel = [step * apart for step, apart in zip(strides, conv.dilation, strict=True)]
    moved = [step * apart for step, apart in zip(strides, conv.stride, strict=True)]
    view = volume.as_strided(
        (*sizes, len(volume), *conv.weight.shape[2:]),
        (*moved[1:], channel, *kernel),
        volume.storage_offset() + place * moved[0],
    )
    return view.reshape(sizes.numel(), -1)


def _rows(values: Tensor) -> np.ndarray:
    """(B, C, ...) -> (n, C), in order."""
    return np.ascontiguousarray(_numbers(values.movedim(1, -1).reshape(-1, values.shape[1])))


def _back(rows_nC: np.ndarray, like: Tensor) -> Tensor:
    moved = like.movedim(1, -1)
    return from_numpy(rows_nC).reshape(moved.shape).movedim(-1, 1)


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
