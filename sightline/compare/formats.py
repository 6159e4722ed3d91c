"""Number formats: how fine each is, one unit in the last place of a value, and values moved by some of these units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FORMATS", "Format", "coarser", "format_of"]


@dataclass(frozen=True)
class Format:
    """A binary number format with `digits` digits of mantissa, the leading one among them."""

    name: str
    digits: int

    def unit(self, values: Tensor) -> Tensor:
        """One unit in the last place of each value, in float64; of zero, that of the smallest normal float32."""
        magnitude = values.double().abs().clamp(min=torch.finfo(torch.float32).tiny)
        _, exponent = torch.frexp(magnitude)
        return torch.ldexp(torch.ones_like(magnitude), exponent - self.digits)

    def unit_of_largest(self, values: Tensor) -> float:
        """One unit in the last place of the largest finite value; 0 where there is none."""
        finite = values[values.isfinite()] if values.is_floating_point() else values
        return float(self.unit(finite.double().abs().max())) if finite.numel() else 0.0

    def nudged(self, values: Tensor, generator: torch.Generator, *, units: int = 1) -> Tensor:
        """Every value moved by so many units in its last place, up or down by chance; zero stays zero.

        Zero is exact in every format: what is masked, padded or rectified away stays so.
        """
        sign = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        moved = values + self.unit(values) * (units * sign.to(values.device))
        return torch.where(values == 0, values, moved).to(values.dtype)


FORMATS = {
    torch.float64: Format("float64", 53),
    torch.float32: Format("float32", 24),
    torch.float16: Format("float16", 11),
    torch.bfloat16: Format("bfloat16", 8),
}
TF32 = Format("TF32", 11)
"""What an NVIDIA GPU rounds the factors of float32 products to where it is allowed to."""


def format_of(dtype: torch.dtype) -> Format:
    """The format of a floating type."""
    return FORMATS[dtype]


def coarser(first: Format, second: Format) -> Format:
    """The one with fewer digits."""
    return first if first.digits <= second.digits else second
