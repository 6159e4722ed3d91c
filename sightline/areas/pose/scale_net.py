"""ScaleNet: the middle of a hand, refined from three crops about a guess. Source: Oberweger and Lepetit 2017."""

from __future__ import annotations

from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Probability

_SIZE = 128
_CHANNELS = 8
_POOLS = ((4, 2), (2, 2), (2, 1))
"""Pool sizes of the first two convolutions of each branch, the whole crop's first; the third has none."""
_FLAT = 968 + 968 + 512
_WIDTH = 1024


class ScaleNetOutput(TypedDict):
    """`offset` (B, 3): from the middle of the crop, in halves of its side."""

    offset: Tensor


@registry.models.add("scale_net")
class ScaleNet(nn.Module):
    """ScaleNet: refines a reference point from the crop, its middle half and its middle quarter, at one scale.

    Three branches of three valid convolutions, then layers of 1,024 values with `dropout` after each; 3,567,651
    parameters. The crop is one of 128 by 128, by the transform `crop_depth`.
    Source: Oberweger and Lepetit 2017, DeepPrior++, section 3.1; layers of the authors' scalenet.py.
    """

    def __init__(self, *, dropout: Probability = 0.3) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(*pools) for pools in _POOLS)
        self.head = nn.Sequential(
            nn.Linear(_FLAT, _WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(_WIDTH, _WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(_WIDTH, 3),
        )

    def forward(self, *, crop: Tensor) -> ScaleNetOutput:
        """Predict from `crop` (B, 1, 128, 128), from -1 at the front to 1 at the back."""
        if crop.shape[1:] != (1, _SIZE, _SIZE):
            raise ValueError(
                f"crop: found the shape {tuple(crop.shape)}, scale_net takes (B, 1, {_SIZE}, {_SIZE}); set size: "
                f"{_SIZE} in crop_depth"
            )
        branch_features = [branch(_middle(crop, _SIZE >> level)) for level, branch in enumerate(self.branches)]
        return {"offset": cast(Tensor, self.head(torch.cat(branch_features, dim=1)))}


def _branch(first_pool: int, second_pool: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, _CHANNELS, 5),
        nn.MaxPool2d(first_pool),
        nn.ReLU(),
        nn.Conv2d(_CHANNELS, _CHANNELS, 5),
        nn.MaxPool2d(second_pool),
        nn.ReLU(),
        nn.Conv2d(_CHANNELS, _CHANNELS, 3),
        nn.ReLU(),
        nn.Flatten(),
    )


def _middle(crop: Tensor, size: int) -> Tensor:
    """Return the `size` by `size` pixels in the middle."""
    start = (crop.shape[-1] - size) // 2
    return crop[..., start : start + size, start : start + size]
