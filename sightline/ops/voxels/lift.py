"""Labels of points from the labels of range-image pixels: nearest pixel or kNN vote.

Images `label` (S, H, W) int64 and `range_image` (S, H, W) metres, negative where empty; packed points of the scans
with `offsets` (S+1,), their `pixel` (P,), row * W + column of their own image, and `point_range` (P,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sightline.ops.dtypes import widen_labels
from sightline.ops.numba_kernels import can_use_numba, numba_kernel, run_parallel
from sightline.ops.views.projection import scan_index

_BLOCK = 64
"""Points that the CPU kernel takes at a time, which fill the wide registers."""
_NEVER = 2**63 - 1


@numba_kernel
def knn_vote_kernel(
    first: int,
    last: int,
    point_range: np.ndarray,
    ranges: np.ndarray,
    label: np.ndarray,
    middle: np.ndarray,
    steps: np.ndarray,
    weights: np.ndarray,
    num_neighbours: int,
    limit_bits: int,
    void: int,
    elected: np.ndarray,
) -> None:
    """CPU kernel of `lift.lift_knn`: writes the label of the points first to last to `elected` (P,).

    All float32 or int64.
    A neighbour is one number, the bits of its distance above the index of its pixel in the window: the lowest few of
    them are kept in order by minima and maxima, without a branch. Bits of floats that are not negative rise with them.
    """
    distance = np.zeros(_BLOCK, dtype=np.float32)
    bits = distance.view(np.int32)
    coming = np.empty(_BLOCK, dtype=np.int64)
    lowest = np.empty((num_neighbours, _BLOCK), dtype=np.int64)
    labels = np.empty(num_neighbours, dtype=np.int64)
    for start in range(first, last, _BLOCK):
        count = min(_BLOCK, last - start)
        own_range, pixels = point_range[start : start + count], middle[start : start + count]
        lowest[:] = _NEVER
        for step in range(len(steps)):
            if step == len(steps) // 2:
                distance[:] = 0
            else:
                _measure(distance, own_range, pixels, ranges, steps[step], weights[step])
            for point in range(_BLOCK):
                coming[point] = (np.int64(bits[point]) << 32) | step
            for rank in range(num_neighbours):
                _exchange(lowest[rank], coming)
        for point in range(count):
            num_near = 0
            while num_near < num_neighbours and lowest[num_near, point] >> 32 <= limit_bits:
                labels[num_near] = label[pixels[point] + steps[lowest[num_near, point] & 0xFFFFFFFF]]
                num_near += 1
            elected[start + point] = _elect(labels[:num_near], void, label[pixels[point]])


@numba_kernel
def _measure(
    distance: np.ndarray, own_range: np.ndarray, pixels: np.ndarray, ranges: np.ndarray, step: int, weight: float
) -> None:
    for point in range(len(own_range)):
        distance[point] = abs(ranges[pixels[point] + step] - own_range[point]) * weight


@numba_kernel
def _exchange(lowest: np.ndarray, coming: np.ndarray) -> None:
    """Keep the smaller of each two numbers, and pass the larger on to the next rank."""
    for point in range(_BLOCK):
        one, other = lowest[point], coming[point]
        lowest[point] = min(one, other)
        coming[point] = max(one, other)


@numba_kernel
def _elect(labels: np.ndarray, void: int, otherwise: int) -> int:
    """Return the most frequent label except `void`, the lowest of a tie; `otherwise` if there is none."""
    elected, most = otherwise, 0
    for rank in range(len(labels)):
        if labels[rank] == void:
            continue
        votes = 0
        for other in range(len(labels)):
            votes += labels[other] == labels[rank]
        if votes > most or (votes == most and labels[rank] < elected):
            elected, most = labels[rank], votes
        if 2 * votes > len(labels):
            break
    return elected


@dataclass(frozen=True, slots=True)
class KNNVote:
    """kNN vote for a point's label: `num_neighbours` of the `window` x `window` pixels around its own pixel.

    The pixels with the smallest |range - point range| * (1 - g) vote, g a normalised Gaussian of `sigma` pixels, but
    none with more than `cutoff_m` of it (0: no limit), and none of the class `void`. `is_circular`: the last column is
    next to the first. Pixels outside the image are not neighbours or, with border "zero", have range 0 and the class
    `void`, as in the published code. Raises ValueError for a window that is even or smaller than the number of
    neighbours.
    """

    window: int = 5
    num_neighbours: int = 5
    sigma: float = 1.0
    cutoff_m: float = 1.0
    is_circular: bool = True
    border: Literal["invalid", "zero"] = "invalid"
    void: int = 0

    def __post_init__(self) -> None:
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"window {self.window}: it needs a middle pixel; take an odd number")
        if not 1 <= self.num_neighbours <= self.window**2:
            raise ValueError(
                f"num_neighbours {self.num_neighbours}: a window of {self.window} x {self.window} has 1 to "
                f"{self.window**2}"
            )
        if self.sigma <= 0 or self.cutoff_m < 0:
            raise ValueError(f"sigma {self.sigma:g} must be positive, cutoff_m {self.cutoff_m:g} not negative")

    @property
    def limit(self) -> float:
        """Largest distance that votes, finite if there is no limit: pixels without range never vote."""
        return self.cutoff_m if self.cutoff_m > 0 else float(np.finfo(np.float32).max)

    @property
    def limit_bits(self) -> int:
        return int(np.float32(self.limit).view(np.int32))


def lift_nearest(image: Tensor, *, pixel: Tensor, offsets: Tensor) -> Tensor:
    """Gather the value (P, ...) of `image` (S, H, W, ...) at the pixel (P,) of every point."""
    return image.flatten(0, 2)[_flat_pixels(image, pixel, offsets)]


@torch.no_grad()
def lift_knn(
    label: Tensor,
    *,
    range_image: Tensor,
    pixel: Tensor,
    point_range: Tensor,
    offsets: Tensor,
    vote: KNNVote,
) -> Tensor:
    """Return the label (P,) int64 of most neighbours of a point, the lowest of a tie.

    Its pixel's label if none may vote.
    A point's own pixel has the point's range. Of neighbours at equal distances the first of the window is taken, row by
    row. Source: Milioto et al. 2019 (RangeNet++), section III-D; the published code assigns class 1 if none may vote,
    and takes any of equal distances.
    """
    label = widen_labels(label)
    if not can_use_numba(range_image, point_range) or range_image.dtype != torch.float32 or len(point_range) == 0:
        return lift_knn_reference(
            label, range_image=range_image, pixel=pixel, point_range=point_range, offsets=offsets, vote=vote
        )
    windows = _Windows.around(pixel, label, range_image, offsets, vote)
    labels = torch.empty_like(pixel)
    run_parallel(
        knn_vote_kernel,
        len(pixel),
        *(tensor.contiguous().numpy() for tensor in (point_range, *windows)),
        vote.num_neighbours,
        vote.limit_bits,
        vote.void,
        labels.numpy(),
    )
    return labels


@torch.no_grad()
def lift_knn_reference(
    label: Tensor,
    *,
    range_image: Tensor,
    pixel: Tensor,
    point_range: Tensor,
    offsets: Tensor,
    vote: KNNVote,
) -> Tensor:
    """Compute the reference of `lift_knn`, labels (S, H, W) -> (P,) int64, from whole sorted windows."""
    windows = _Windows.around(pixel, label, range_image, offsets, vote)
    window_pixels = windows.middle[:, None] + windows.steps
    window_ranges = windows.ranges[window_pixels]
    window_ranges[:, vote.window**2 // 2] = point_range
    distance = (window_ranges - point_range[:, None]).abs_() * windows.weights
    distance, order = distance.sort(dim=1, stable=True)
    distance, order = distance[:, : vote.num_neighbours], order[:, : vote.num_neighbours]
    neighbour_labels = windows.label[window_pixels.gather(1, order)]

    may_vote = (distance <= vote.limit) & (neighbour_labels != vote.void)
    votes = ((neighbour_labels[:, :, None] == neighbour_labels[:, None, :]) & may_vote[:, None, :]).sum(
        dim=2
    ) * may_vote
    max_votes = votes.amax(dim=1)
    elected = torch.where(
        may_vote & (votes == max_votes[:, None]), neighbour_labels, torch.iinfo(neighbour_labels.dtype).max
    ).amin(dim=1)
    return torch.where(max_votes > 0, elected, lift_nearest(label, pixel=pixel, offsets=offsets))


class _Windows(NamedTuple):
    """Window of each point in images that are padded by half a window.

    `ranges` and `label` are those images, flat; a pixel without range has an infinite one. `middle` (P,) is the index
    of a point's pixel in them, `steps` are added to it for the pixels of its window, row by row, with these `weights`.
    """

    ranges: Tensor
    label: Tensor
    middle: Tensor
    steps: Tensor
    weights: Tensor

    @classmethod
    def around(cls, pixel: Tensor, label: Tensor, range_image: Tensor, offsets: Tensor, vote: KNNVote) -> _Windows:
        _, height, width = label.shape
        reach, wide = vote.window // 2, width + vote.window - 1
        outside = 0.0 if vote.border == "zero" else torch.inf
        scan = scan_index(offsets) * (height + vote.window - 1)
        row, column = pixel // width, pixel % width
        sides = torch.arange(-reach, reach + 1, device=pixel.device)
        return cls(
            ranges=_pad_border(range_image.masked_fill(range_image < 0, torch.inf), vote, outside).flatten(),
            label=_pad_border(label, vote, vote.void).flatten(),
            middle=(scan + row + reach) * wide + column + reach,
            steps=(sides[:, None] * wide + sides).flatten(),
            weights=(1 - gaussian_window(vote.window, vote.sigma).to(range_image)).flatten(),
        )


def _pad_border(image: Tensor, vote: KNNVote, outside: float) -> Tensor:
    """Pad `image` (S, H, W) by half a window on every side."""
    reach, width = vote.window // 2, image.shape[2]
    if not vote.is_circular:
        return functional.pad(image, (reach,) * 4, value=outside)
    columns = torch.arange(-reach, width + reach, device=image.device) % width
    return functional.pad(image[:, :, columns], (0, 0, reach, reach), value=outside)


def gaussian_window(search: int, sigma: float) -> Tensor:
    """Return a Gaussian of `sigma` pixels on (search, search) pixels, with sum 1: float64."""
    steps = torch.arange(search, dtype=torch.float64) - search // 2
    bell = torch.exp(-steps.square() / (2 * sigma**2))
    return torch.outer(bell, bell) / bell.sum() ** 2


def _flat_pixels(image: Tensor, pixel: Tensor, offsets: Tensor) -> Tensor:
    """Return the index (P,) of each point's pixel among those of all images."""
    return pixel + scan_index(offsets) * (image.shape[1] * image.shape[2])
