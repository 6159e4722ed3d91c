"""What a layer makes in the variant's own format where it is written as plainly as it can be.

Torch's batch norm on a CPU adds values one after another where channels come last, and so do loops of ours; moving the
inputs does not tell of it: the error of a long sum grows with its length, all the more where values repeat. What a
plain form in the same format is off by, any form may be off by.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, from_numpy, nn

from sightline.compare.rerun import Answer, Unit, answer
from sightline.layers.batch_norm import SynchronisedBatchNorm

__all__ = ["plain_answer", "twin_answer"]


def plain_answer(unit: Unit) -> Answer | None:
    """What a plain batch norm makes in float32 of the unit's input and gradients, or a plain sum of a bias's gradient.

    None for another module or format.
    """
    norm: Any = unit.owner
    if isinstance(norm, nn.Linear | nn.modules.conv._ConvNd) and unit.call.format.name == "float32":
        arriving = unit.call.to_made.get("")
        if norm.bias is None or arriving is None:
            return None
        rows_nC = _rows(arriving if isinstance(norm, nn.modules.conv._ConvNd) else arriving.movedim(-1, 1))
        return Answer(gradients={f"parameter.{unit.prefix}.bias": from_numpy(rows_nC.sum(axis=0))})
    is_plain = isinstance(norm, nn.modules.batchnorm._BatchNorm) and not isinstance(norm, SynchronisedBatchNorm)
    if not is_plain or not norm.training or unit.call.format.name != "float32":
        return None
    return _plain_batch_norm(unit, norm)


def twin_answer(unit: Unit) -> Answer | None:
    """What the plain twin of a layer of ours makes in float32, with all that is inside; None where it has no twin."""
    twin = copy.deepcopy(unit.owner).float()
    forward = _plain_forward(twin)
    if forward is None or unit.call.format.name != "float32":
        return None
    return answer(replace(unit, run=forward, owner=twin, inner=(), modules=()), dtype=torch.float32)


def _plain_forward(module: Any) -> Callable[..., Any] | None:
    """The plain form of a layer that comes in two: by its argument `fused`, or by a base class `Plain...`."""
    if isinstance(getattr(module, "fused", None), bool):
        module.fused = False
        return module
    kinds: list[Any] = [kind for kind in type(module).__mro__ if kind.__name__.startswith("Plain")]
    return None if not kinds else lambda *args, **kwargs: kinds[0].forward(module, *args, **kwargs)


def _plain_batch_norm(unit: Unit, norm: nn.modules.batchnorm._BatchNorm) -> Answer:
    """Batch norm and its gradients with sums one after another. Source: Ioffe and Szegedy 2015, algorithm 1."""
    given: Tensor = unit.call.given[0][0]
    values_nC = _rows(given)
    num = np.float32(len(values_nC))
    mean_C = values_nC.sum(axis=0) / num  # over the outer axis NumPy adds row by row
    centred_nC = values_nC - mean_C
    variance_C = np.square(centred_nC).sum(axis=0) / num
    inverse_C = 1 / np.sqrt(variance_C + np.float32(norm.eps))
    standard_nC = centred_nC * inverse_C
    weight_C = np.float32(1) if norm.weight is None else _numbers(norm.weight)
    made_nC = standard_nC * weight_C + (np.float32(0) if norm.bias is None else _numbers(norm.bias))
    answer = Answer({"out.": _back(made_nC, given)})
    share = norm.momentum
    for name, found in (("running_mean", mean_C), ("running_var", variance_C * (num / (num - 1)))):
        key = f"{unit.prefix}.{name}".lstrip(".")
        if key in unit.call.buffers and share is not None:
            before = _numbers(unit.call.buffers[key][0])
            answer.values[f"buffer.{key}"] = from_numpy(before * np.float32(1 - share) + found * np.float32(share))
    if "" in unit.call.to_made:
        gradient_nC = _rows(unit.call.to_made[""])
        to_bias, to_weight = gradient_nC.sum(axis=0), (gradient_nC * standard_nC).sum(axis=0)
        to_values = weight_C * inverse_C * (gradient_nC - to_bias / num - standard_nC * (to_weight / num))
        answer.gradients = {
            "given.0.0": _back(to_values, given),
            f"parameter.{unit.prefix}.weight": from_numpy(to_weight),
            f"parameter.{unit.prefix}.bias": from_numpy(to_bias),
        }
    return answer


def _rows(values: Tensor) -> np.ndarray:
    """(B, C, ...) -> (n, C), in order."""
    return np.ascontiguousarray(_numbers(values.movedim(1, -1).reshape(-1, values.shape[1])))


def _back(rows_nC: np.ndarray, like: Tensor) -> Tensor:
    moved = like.movedim(1, -1)
    return from_numpy(rows_nC).reshape(moved.shape).movedim(-1, 1)


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
