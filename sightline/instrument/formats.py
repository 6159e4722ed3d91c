"""Number formats: digits of the mantissa, unit in the last place (ulp), and perturbation by ulps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


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


def result_format(operator: Any, result: Any) -> Format | None:
    """Return the format of an operator's result, TF32 for a product that may round to it; None if not a number."""
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return None
    is_tf32 = result.is_cuda and result.dtype == torch.float32 and _may_be_tf32(operator.overloadpacket.__name__)
    return TF32 if is_tf32 else get_format(result.dtype)


def _may_be_tf32(name: str) -> bool:
    if "conv" in name:
        return is_tf32_allowed(torch.backends.cudnn, "conv")
    return name in ("mm", "addmm", "bmm", "baddbmm") and is_tf32_allowed(torch.backends.cuda, "matmul")


class Tf32Switch(NamedTuple):
    """Switch of torch: an attribute, its value where a GPU may round factors to TF32, and where it may not."""

    owner: Any
    name: str
    rounded: Any
    exact: Any


def get_tf32_switch(owner: Any) -> Tf32Switch:
    """Return the switch of `torch.backends.cuda.matmul`, or of another such owner.

    It is the one of torch 2.9 and later where there is one: once that is set, torch refuses to read the older.
    """
    if hasattr(owner, "fp32_precision"):
        return Tf32Switch(owner, "fp32_precision", "tf32", "ieee")
    return Tf32Switch(owner, "allow_tf32", True, False)


def is_tf32_allowed(backend: Any, operators: str) -> bool:
    """Return True if a GPU may round factors of these operators to TF32, by whichever switch the user chose."""
    switch = getattr(backend, operators, backend)
    precision = getattr(switch, "fp32_precision", None)  # None: torch before 2.9, which has the other switch alone
    return bool(switch.allow_tf32) if precision is None else precision == "tf32"
