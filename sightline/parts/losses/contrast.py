"""Contrastive losses (NT-Xent) over the pairs of the whole step. Source: Chen et al. 2020, SimCLR."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.loss import Loss

CHANCE_SUFFIX = "_of_chance"
"""Suffix of a loss's name for the loss as a share of the chance level."""
Temperature = Annotated[float, Ge(1e-3), Le(100.0)]
"""Divisor of similarities, which are -1 to 1; below a thousandth float32 cannot represent their exponentials."""


class PairLoss(Loss):
    """Loss in which rows depend on each other.

    `forward` gets the outputs of every pair of the whole step, in one order for all processes, and returns the loss of
    each (M,); the task `contrast` takes the parts that it needs.
    """

    def count(self, *, sample_index: Tensor) -> Tensor:
        """Count the pairs; `sample_index` (M,)."""
        return torch.tensor(len(sample_index))

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss (M,) of each pair."""


@registry.losses.add("intra_modal")
class IntraModal(PairLoss):
    """NT-Xent between two augmented clouds of every object (IMID).

    >>> import torch
    >>> from sightline.parts.losses.contrast import IntraModal
    >>> loss = IntraModal(temperature=1.0)
    >>> loss(first=torch.ones(2, 4), second=torch.ones(2, 4))  # of equal rows, ln 3: the pair is one of three
    tensor([1.0986, 1.0986])
    >>> loss(first=torch.eye(2), second=torch.eye(2))  # ln(1 + 2 / e): the other rows are at right angles
    tensor([0.5514, 0.5514])

    Source: Afham et al. 2022, eq. 1 and 2.
    """

    def __init__(self, *, temperature: Temperature = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
        """Compute the loss (M,) of each pair from `first` and `second` (M, D), in any scale."""
        return nt_xent(first, second, temperature=self.temperature)


@registry.losses.add("cross_modal")
class CrossModal(PairLoss):
    """NT-Xent between the mean of an object's two clouds, before normalisation, and an image of the object (CMID).

    >>> import torch
    >>> from sightline.parts.losses.contrast import CrossModal
    >>> rows = {"first": torch.tensor([[1.0, 1], [0, 1]]), "second": torch.tensor([[1.0, -1], [0, 1]])}
    >>> CrossModal(temperature=1.0)(**rows, pictured=torch.eye(2))  # ln(1 + 2 / e): the means are the images' rows
    tensor([0.5514, 0.5514])

    Source: Afham et al. 2022, eq. 3 to 5.
    """

    def __init__(self, *, temperature: Temperature = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, *, first: Tensor, second: Tensor, pictured: Tensor) -> Tensor:
        """Compute the loss (M,) of each pair from embeddings, all (M, D), in any scale."""
        return nt_xent((first + second) / 2, pictured, temperature=self.temperature)


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Compute NT-Xent (M,), the normalised temperature-scaled cross entropy of M pairs (M, D), the mean of two anchors.

    An anchor's own pair stands against all other 2M - 2 rows of both sides; its similarity to itself does not count.
    Rows are scaled to length 1 (a row of zeros stays what it is). Equal rows everywhere give ln(2M - 1), a single
    pair gives 0. Half-precision rows are compared in float32. Source: Chen et al. 2020, SimCLR, eq. 1.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"nt_xent: found rows of {tuple(first.shape)} and {tuple(second.shape)}, expected two (M, D)")
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    with torch.autocast(first.device.type, enabled=False):
        rows = torch.cat([F.normalize(first.to(dtype), dim=1), F.normalize(second.to(dtype), dim=1)])
        similarity = rows @ rows.T / temperature
        similarity = similarity.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), -math.inf)
        target = torch.arange(len(rows), device=rows.device).roll(len(first))
        return F.cross_entropy(similarity, target, reduction="none").view(2, -1).mean(dim=0)


def chance_level(num_pairs: int) -> float:
    """Return the loss of identical rows, ln(2M - 1): the level of a collapsed network."""
    return math.log(2 * num_pairs - 1)
