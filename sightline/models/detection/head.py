"""Base of detection heads: towers shared by all levels, and predictions at priors in one order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, TypedDict

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from sightline.aliases import old_names
from sightline.errors import ConfigError
from sightline.geometry.boxes.priors import PriorKind
from sightline.layers.images import ConvBlock

__all__ = ["CentreOutput", "DenseHead", "HeadOutput", "PriorProbability", "flatten_to_priors", "init_prior_bias"]

PriorProbability = Annotated[float, Gt(0.0), Lt(1.0)]
"""Probability that is neither 0 nor 1."""
_STD = 0.01


class HeadOutput(TypedDict):
    """`logits` (B, P, num_classes), before the sigmoid, and `codes` (B, P, 4) of the boxes at P priors.

    Priors count levels from the finest, in each the cells of a row, in each the priors of a cell.
    """

    logits: Tensor
    codes: Tensor


class CentreOutput(HeadOutput):
    """HeadOutput with `centreness` (B, P), before the sigmoid."""

    centreness: Tensor


def flatten_to_priors(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """Flatten maps (B, A * numbers, H, W) of all levels to (B, P, numbers).

    By level, row, column and prior of a cell.
    """
    levels = [level_map.unflatten(1, (-1, numbers)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level_map in maps]
    return torch.cat(levels, dim=1)


def init_prior_bias(layer: ConvBlock, prior: float, channels: slice = slice(None)) -> None:
    """Set the biases of a layer to -ln((1 - prior) / prior), so that the initial probability is `prior`."""
    assert layer.conv.bias is not None
    with torch.no_grad():
        layer.conv.bias[channels] = -math.log((1 - prior) / prior)


class DenseHead(nn.Module):
    """Dense head: two towers of 3x3 convolutions that all levels share, one for classes, one for boxes.

    A head states its kind of `priors`, and their number per cell, `priors_per_cell`. Subclasses end
    their constructor with `_start`: all weights start with a deviation of 0.01, and each class has the probability
    `prior` at each prior.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.
    """

    priors: ClassVar[PriorKind]
    priors_per_cell: int
    predictions_per_prior: ClassVar[int] = 1

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        priors_per_cell: int,
        num_convs: int,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if len(set(channels)) > 1:
            raise ConfigError(
                f"channels: the levels share this head, but have {', '.join(map(str, channels))} channels; put a neck "
                "with one width in front"
            )
        self.num_classes, self.strides, self.priors_per_cell = num_classes, tuple(strides), priors_per_cell
        width = channels[0]

        def block() -> ConvBlock:
            own_norm = None if norm is None else norm(width)
            return ConvBlock(in_channels=width, out_channels=width, kernel_size=3, norm=own_norm, activation=nn.ReLU())

        self.class_tower, self.box_tower = (nn.Sequential(*(block() for _ in range(num_convs))) for _ in range(2))
        count = priors_per_cell * self.predictions_per_prior
        self.classes = ConvBlock(in_channels=width, out_channels=count * num_classes, kernel_size=3)
        self.boxes = ConvBlock(in_channels=width, out_channels=count * 4, kernel_size=3)

    def _start(self, prior: float) -> None:
        """Initialise the weights; called once all layers exist."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)
        init_prior_bias(self.classes, prior)


__getattr__ = old_names(__name__)
