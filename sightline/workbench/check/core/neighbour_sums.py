"""Sums over neighbours in a forward pass: the weights (..., K) that features (..., K, C) are multiplied by before one.

Only sums of at most eight neighbours are noted: three are interpolated in networks of points, eight in voxels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

_PRODUCTS = frozenset({"mul", "multiply", "__mul__", "__rmul__"})
_MATRIX_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm"})
_MAX_NEIGHBOURS = 8


class NeighbourSum(NamedTuple):
    """Weighted sum in a layer: the least and the largest sum of its weights, and of the weights themselves."""

    layer: str
    num_neighbours: int
    lowest: float
    highest: float
    least: float
    most: float


class NeighbourSums:
    """Observer of torch's functions that notes the weighted sums over neighbours."""

    def __init__(self) -> None:
        self.noted: list[NeighbourSum] = []
        self._product: tuple[Tensor, Tensor] | None = None
        """The last product, and the weights in it."""

    def note(self, layer: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note a call of a function, if it is a product of weights and features, or the sum of the last one."""
        name = getattr(function, "__name__", "")
        if name in _PRODUCTS and isinstance(result, Tensor):
            weights = _find_weights(args, result)
            self._product = None if weights is None else (result, weights)
        elif name in _MATRIX_PRODUCTS and len(args) == 2 and args[0].ndim == args[1].ndim > 2:
            weights = args[0].movedim(-1, -2)
            if _is_of_neighbours(weights) and args[1].shape[-1] > 1:
                self._add(layer, weights)
        elif name == "sum" and self._product is not None and args and args[0] is self._product[0]:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-2, args[0].ndim - 2, (-2,), [-2]):
                self._add(layer, self._product[1])
            self._product = None

    def _add(self, layer: str, weights: Tensor) -> None:
        weights = weights.detach().double()
        bounds = [float(bound) for values in (weights.sum(dim=-2), weights) for bound in values.aminmax()]
        self.noted.append(NeighbourSum(layer, weights.shape[-2], *bounds))


def _find_weights(args: tuple[Any, ...], result: Tensor) -> Tensor | None:
    """Return the factor (..., K, 1) of a product (..., K, C); None without one."""
    if result.ndim < 3 or result.shape[-1] < 2:
        return None
    tensors = (value for value in args if isinstance(value, Tensor) and value.shape[:-1] == result.shape[:-1])
    return next((value for value in tensors if _is_of_neighbours(value)), None)


def _is_of_neighbours(weights: Tensor) -> bool:
    return weights.shape[-1] == 1 and 2 <= weights.shape[-2] <= _MAX_NEIGHBOURS and weights.is_floating_point()
