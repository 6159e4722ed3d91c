"""Number formats: digits of the mantissa, unit in the last place (ulp), and perturbation by ulps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.pytree import tree_leaves, tree_map

__all__ = ["FORMATS", "Float32Draws", "Format", "coarser", "get_format"]


@dataclass(frozen=True)
class Format:
    """A binary number format with `digits` digits of mantissa, the leading one among them."""

    name: str
    digits: int

    def unit_of_largest(self, values: Tensor) -> float:
        """Return the ulp of the largest finite value; for zero, that of the smallest normal float32."""
        if not values.numel():
            return 0.0
        finite = values.nan_to_num(0.0, 0.0, 0.0) if values.is_floating_point() else values.double()
        return self.ulp(float(finite.abs().max()))

    def ulp(self, value: float) -> float:
        """Return the unit in the last place of a finite value; for zero, that of the smallest normal float32."""
        magnitude = max(abs(value), torch.finfo(torch.float32).tiny)
        return 2.0 ** (math.frexp(magnitude)[1] - self.digits)

    def perturb(self, values: Tensor, generator: torch.Generator, *, units: int = 1) -> Tensor:
        """Perturb each float64 value by `units` ulps, up or down at random; zero stays zero.

        Zero is exact in every format: masked, padded and rectified entries stay zero.
        """
        powers = (values.contiguous().view(torch.int64) & _EXPONENT).view(torch.float64)  # 2**exponent of each
        signs = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        return torch.addcmul(values, powers, signs.to(values), value=units * 2.0 ** (1 - self.digits))


_EXPONENT = 0x7FF0000000000000
"""The bits of a float64 that hold its exponent: alone, they are a power of two."""

FORMATS = {
    torch.float64: Format("float64", 53),
    torch.float32: Format("float32", 24),
    torch.float16: Format("float16", 11),
    torch.bfloat16: Format("bfloat16", 8),
}
TF32 = Format("TF32", 11)
"""Format to which an NVIDIA GPU may round the factors of float32 products."""


def get_format(dtype: torch.dtype) -> Format:
    """Return the format of a floating-point dtype."""
    return FORMATS[dtype]


def coarser(first: Format, second: Format) -> Format:
    """Return the format with fewer digits."""
    return first if first.digits <= second.digits else second


_RANDOM_OPERATIONS = frozenset(
    "bernoulli binomial cauchy exponential geometric log_normal multinomial native_dropout normal poisson rand "
    "rand_like randn randn_like random rrelu_with_noise uniform _sample_dirichlet _standard_gamma".split()
)
"""Operations of torch that draw random numbers, which differ from format to format."""


class Float32Draws(TorchDispatchMode):
    """Mode that draws float64 random numbers in float32, so that they equal those of a float32 model."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = args, kwargs or {}
        is_wide = inputs[1].get("dtype") == torch.float64 or any(
            t.dtype == torch.float64 for _, t in tree_leaves(inputs)
        )
        if func.overloadpacket.__name__.rstrip("_") not in _RANDOM_OPERATIONS or not is_wide:
            return func(*inputs[0], **inputs[1])
        narrow: list[tuple[Tensor, Tensor]] = []

        def lower(path: str, tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float64:
                return tensor
            narrow.append((tensor, tensor.float()))
            return narrow[-1][1]

        lowered_args, lowered = tree_map(inputs, lower)
        if lowered.get("dtype") == torch.float64:
            lowered["dtype"] = torch.float32
        result = func(*lowered_args, **lowered)
        for tensor, lowered_tensor in narrow if func._schema.is_mutable else ():
            tensor.copy_(lowered_tensor)
        wide_by_id = {id(lowered_tensor): tensor for tensor, lowered_tensor in narrow}
        return tree_map(result, lambda _, t: wide_by_id.get(id(t), t.double() if t.dtype == torch.float32 else t))
