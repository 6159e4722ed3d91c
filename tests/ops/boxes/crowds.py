"""Seeded crowds of boxes, with doubled ones, ignore regions and boxes on whole pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def crowd(
    seed: int, *, count: int = 12, height: int = 96, width: int = 128, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Standing people (count, 4); a third of them stand twice, in a random order."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.rand(count, 1, generator=generator, dtype=torch.float64) ** 2 * 30 + 2
    sizes = half * torch.tensor([0.5, 1.0]) * (0.8 + 0.4 * torch.rand(count, 2, generator=generator))
    centres = torch.rand(count, 2, generator=generator, dtype=torch.float64) * torch.tensor([width, height])
    boxes = torch.cat([centres - sizes, centres + sizes], dim=1)
    if seed % 2:
        boxes = boxes.round()
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    boxes[count - count // 3 :] = boxes[: count // 3]
    return boxes[torch.randperm(count, generator=generator)].to(dtype)


def aligned_pairs(count: int = 40) -> tuple[Tensor, Tensor]:
    """Boxes (count, 4) of which most pairs overlap, without a tie: float64."""
    generator = torch.Generator().manual_seed(3)
    first = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 10
    a = torch.cat([first, first + 4 + 8 * torch.rand(count, 2, generator=generator)], dim=1)
    return a, a + 3 * torch.rand(count, 4, generator=generator, dtype=torch.float64) - 1
