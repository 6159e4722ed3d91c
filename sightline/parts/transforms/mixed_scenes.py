"""Mixing of clouds: two labelled scenes, or LiDAR scans, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import Probability
from sightline.contract.draws import Draws
from sightline.contract.errors import DataError
from sightline.contract.transform import Transform

DrawSamples = Callable[[int], list[dict[str, Any]]] | None


@registry.transforms.add("mix_scenes")
class MixScenes(Transform):
    """Mix3D: with a probability, the points of another training scene are added to a scene, each with its own label.

    Both keep their coordinates, so that objects appear in places where they never stand; put the scenes about one
    origin before (`place_on_floor` with `plan: centre`). The other one is drawn by seed, epoch and sample, and has been
    through the transforms before this one with random numbers of its own: a step is the same in one batch, in
    micro-batches and on several processes. The published code merges the clouds of a batch in pairs, for all of a step
    at once, which leaves half as many; here there are as many clouds as samples, of twice the points. There a cell in
    which both scenes have a voxel is in the network twice; here networks make their voxels of all points, so that it is
    one, with the mean of both.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.mixed_scenes import MixScenes
    >>> scene = {"points": torch.zeros(1, 2, 3), "label": torch.tensor([[0, 1]])}
    >>> other = {"points": torch.ones(1, 1, 3), "label": torch.tensor([[7]])}
    >>> mixed = MixScenes(probability=1.0)(Draws.from_seed(0), lambda count: [other] * count, **scene)
    >>> mixed["points"].shape, mixed["label"]
    (torch.Size([1, 3, 3]), tensor([[0, 1, 7]]))

    Source: Nekrasov et al. 2021, Mix3D; the probability of 0.8 is Pointcept's.
    """

    chooses_points = True

    def __init__(self, *, probability: Probability = 0.8) -> None:
        self.probability = probability

    def __call__(
        self,
        draws: Draws,
        draw_samples: DrawSamples,
        *,
        points: Tensor,
        label: Tensor,
        normals: Tensor | None = None,
        colours: Tensor | None = None,
        channels: Tensor | None = None,
        features: Tensor | None = None,
        normalised_position: Tensor | None = None,
        remission: Tensor | None = None,
        ring: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if draw_samples is None or float(draws.uniform()[0]) >= self.probability:
            return {}
        if label.ndim != 2 or label.shape[1] != points.shape[1]:
            raise DataError(f"mix_scenes: takes a label for each of {points.shape[1]} points, got {[*label.shape]}")
        (other,) = draw_samples(1)
        given = {"points": points, "label": label, "normals": normals, "colours": colours, "channels": channels}
        given |= {"features": features, "normalised_position": normalised_position}
        given |= {"remission": remission, "ring": ring}
        return {name: torch.cat([own, other[name]], dim=1) for name, own in given.items() if own is not None}
