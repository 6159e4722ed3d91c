"""Multiply-accumulates (MACs) of operators, from the shapes of their arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CountMacs", "count_macs"]

Rule = Callable[[Sequence[Any], Any], int]
"""Rule that computes multiply-accumulates from an operator's arguments and result."""


def count_macs(operator: Any, arguments: Sequence[Any], result: Any) -> int:
    """Count the multiply-accumulates of a call of an ATen operator (`torch.ops.aten.mm`); 0 if not counted.

    Counted are matrix products (einsum arrives as `bmm`, a linear layer as `addmm`), convolutions with groups and
    their transposes, and fused attention: two products of (L, E) with (E, S) and (L, S) with (S, V) per head. A bias,
    normalisation, pooling, activations and searches among points are not.
    """
    rule = _RULES.get(getattr(operator, "overloadpacket", operator))
    return 0 if rule is None else rule(arguments, result)


class CountMacs(TorchDispatchMode):
    """Mode that calls `add(macs)` for every counted operator that runs inside, in any module or function.

    Kernels outside torch (numba, NumPy, an extension) are not counted: of a custom autograd function only the matrix
    products by torch are.
    """

    def __init__(self, add: Callable[[int], None]) -> None:
        super().__init__()
        self._add = add

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        macs = count_macs(func, args, result)
        if macs:
            self._add(macs)
        return result


def _product(first: int, second: int) -> Rule:
    """Make the rule of a product of two arguments, by index: entries of the first times columns of the second."""

    def rule(arguments: Sequence[Any], result: Any) -> int:
        left, right = arguments[first], arguments[second]
        return int(left.numel() * (right.shape[-1] if right.ndim > 1 else 1))

    return rule


def _convolution(arguments: Sequence[Any], result: Tensor) -> int:
    """Count a convolution: the weights of one filter per output entry or, if transposed, per input entry."""
    values, weight, is_transposed = arguments[0], arguments[1], bool(arguments[6])
    per_entry = math.prod(weight.shape[1:])  # the weight's second axis is channels / groups in both forms
    return int((values if is_transposed else result).numel() * per_entry)


def _attention(arguments: Sequence[Any], result: Any) -> int:
    """Count attention: products of (B, H, L, E) with (B, H, S, E), and of the weights with (B, H, S, V)."""
    query, key, value = arguments[:3]
    num_rows = math.prod(query.shape[:-1])
    return int(num_rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _linear(arguments: Sequence[Any], result: Tensor) -> int:
    return int(result.numel() * arguments[0].shape[-1])


_ATEN = torch.ops.aten
_RULES: dict[Any, Rule] = {
    **{operator: _product(0, 1) for operator in (_ATEN.mm, _ATEN.bmm, _ATEN.mv, _ATEN.dot, _ATEN.vdot)},
    **{
        operator: _product(1, 2)
        for operator in (_ATEN.addmm, _ATEN.baddbmm, _ATEN.addbmm, _ATEN.addmv, _ATEN._addmm_activation)
    },
    _ATEN.convolution: _convolution,
    _ATEN._convolution: _convolution,
    _ATEN.linear: _linear,
    **{
        operator: _attention
        for operator in (
            _ATEN._scaled_dot_product_flash_attention_for_cpu,
            _ATEN._scaled_dot_product_flash_attention,
            _ATEN._scaled_dot_product_efficient_attention,
            _ATEN._scaled_dot_product_cudnn_attention,
        )
    },
}
