"""Pooling of regions: the mean of a feature map in each bin of a box, from bilinear samples on a regular grid.

Source: He et al. 2017, Mask R-CNN, section 3, as torchvision's `roi_align` computes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.boxes.overlaps import assert_boxes
from sightline.ops.dtypes import promote_to_float32
from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.operator import operator
from sightline.ops.waits import is_recording, require

_ENTRIES_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}
"""Samples times channels in memory at a time."""


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Pool each box of feature maps (N, C, H, W) to (K, C, height, width), the `output_size`: RoIAlign.

    `boxes` (K, 5) are the number of an image and x1, y1, x2, y2, or a list of (L, 4) for each image;
    `spatial_scale` maps their pixels to those of the map. A bin is the mean of `sampling_ratio` x `sampling_ratio`
    samples, or, with -1 or 0, of as many as it is pixels high and wide, rounded up. With `aligned`, the first pixel is
    at 0.5, where it belongs; without it at 0, and boxes are at least one pixel wide and high. Samples within a pixel
    outside count as on the border, those beyond as 0. Half precision is computed in float32, and returned as it came.
    Maps and boxes have gradients. Raises ValueError for other shapes, boxes that are not finite, and images that are
    not there. Source: He et al. 2017, as in torchvision.
    """
    if input.ndim != 4 or not input.is_floating_point():
        raise ValueError(f"input: found {tuple(input.shape)} {input.dtype}, expected maps (N, C, H, W) of floats")
    if 0 in input.shape[1:]:
        raise ValueError(f"input: found maps of the shape {tuple(input.shape)}, which have no pixel or no channel")
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if height < 1 or width < 1:
        raise ValueError(f"output_size: found {output_size}, allowed are whole numbers, at least 1")
    if not spatial_scale > 0:
        raise ValueError(f"spatial_scale: found {spatial_scale}, allowed is a number above 0")
    features = promote_to_float32(input)
    rois = _read_regions(boxes, features)
    ratio = max(sampling_ratio, 0)
    arguments = features, rois, height, width, float(spatial_scale), ratio, bool(aligned)
    if rois.requires_grad and torch.is_grad_enabled():
        _check_regions(*arguments)
        return _roi_align.plain(*arguments).to(input.dtype)
    return _roi_align(*arguments).to(input.dtype)


def _read_regions(boxes: Tensor | Sequence[Tensor], features: Tensor) -> Tensor:
    """Return regions (K, 5), numbers of images before corners, in the dtype of the maps."""
    if not isinstance(boxes, Tensor):
        if len(boxes) != features.shape[0]:
            raise ValueError(f"boxes: found a list of {len(boxes)}, expected one of {features.shape[0]}: one an image")
        for image, image_boxes in enumerate(boxes):
            assert_boxes(image_boxes, name=f"boxes[{image}]", form="(L, 4)")
        numbered = [
            torch.cat(
                [
                    image_boxes.new_full((image_boxes.shape[0], 1), image, dtype=features.dtype),
                    image_boxes.to(features.dtype),
                ],
                dim=1,
            )
            for image, image_boxes in enumerate(boxes)
        ]
        boxes = torch.cat([features.new_empty(0, 5), *numbered])
    if boxes.ndim != 2 or boxes.shape[1] != 5 or boxes.dtype == torch.bool or boxes.is_complex():
        found = f"{tuple(boxes.shape)} {boxes.dtype}"
        raise ValueError(f"boxes: found {found}, expected numbers (K, 5): image, x1, y1, x2, y2; or a list of (L, 4)")
    if boxes.device != features.device:
        raise ValueError(f"boxes: found on {boxes.device}, input on {features.device}; move one to the other's device")
    return boxes.to(features.dtype)


# --- the definition ---------------------------------------------------------------------------------------------------


def _check_regions(features: Tensor, rois: Tensor, *_: object) -> None:
    _check_rois(rois, features.shape[0])


def _check_rois(rois: Tensor, num_images: int) -> None:
    is_finite, image = rois.isfinite().all(dim=1), rois[:, 0]
    require(is_finite, lambda: ValueError(f"boxes: {int((~is_finite).sum())} of {len(rois)} are not finite"))
    is_there = (image >= 0) & (image < num_images) & (image == image.floor())
    require(
        is_there,
        lambda: ValueError(
            f"boxes: {int((~is_there).sum())} of {len(rois)} are of image {float(image[~is_there][0]):g}, there are "
            f"{num_images}, from 0 on"
        ),
    )


class _Samples(NamedTuple):
    """Samples along one axis: `places` (K, bins, G) in pixels of the map, and how many of the G count, `used` (K,)."""

    places: Tensor
    used: Tensor


def _place_samples(rois: Tensor, axis: int, num_bins: int, scale: float, ratio: int, aligned: bool) -> _Samples:
    """Place the samples of regions (K, 5) along x (axis 0) or y (1)."""
    first, last = (rois[:, column] * scale - (0.5 if aligned else 0.0) for column in (axis + 1, axis + 3))
    size = last - first if aligned else (last - first).clamp(min=1)
    step = (size / num_bins)[:, None, None]
    count = step[:, 0, 0].detach().ceil().clamp(min=0) if ratio == 0 else torch.full_like(first.detach(), ratio)
    most = ratio or _read_largest(count)
    number = torch.arange(most, device=rois.device).to(rois.dtype)
    bins = torch.arange(num_bins, device=rois.device).to(rois.dtype)[:, None]
    places = first[:, None, None] + bins * step + (number + 0.5) * step / count.clamp(min=1)[:, None, None]
    return _Samples(places, count)


def _read_largest(count: Tensor) -> int:
    """Return the largest of the numbers of samples (K,), at least 1; a graph has it as a size that values decide."""
    if is_recording():
        raise ValueError("sampling_ratio: found -1 or 0, of which a graph cannot record the sizes; give a number, as 2")
    return max(1, int(count.max())) if len(count) else 1


def _weigh_pixels(samples: _Samples, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the two pixels next to each sample: their indices (K, bins, G) and weights, which sum to 1 / count.

    A sample more than a pixel outside weighs nothing.
    """
    places, count = samples
    number = torch.arange(places.shape[2], device=places.device)
    is_counted = (places >= -1) & (places <= length) & (number < count[:, None, None])
    inside = places.clamp(0, length - 1)
    low = torch.where(is_counted, inside, 0).detach().floor()
    share = inside - low
    for pixel, weight in ((low, 1 - share), ((low + 1).clamp(max=length - 1), share)):
        yield pixel.long(), torch.where(is_counted, weight, 0) / count.clamp(min=1)[:, None, None]


@operator(check=_check_regions)
def _roi_align(
    features: Tensor, rois: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool
) -> Tensor:
    _, channels, num_rows, num_columns = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    pooled = []
    for part in _parts(rois, channels * height * width, ratio):
        samples = [_place_samples(part, axis, bins, scale, ratio, aligned) for axis, bins in ((1, height), (0, width))]
        total = features.new_zeros(part.shape[0], height, width, channels)
        for index, weight in _corners(samples, part, (num_rows, num_columns)):
            total = total + (rows[index] * weight[..., None]).sum(dim=(2, 4))
        pooled.append(total.permute(0, 3, 1, 2))
    return torch.cat(pooled).contiguous()


def _corners(samples: list[_Samples], rois: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the four pixels about each sample: rows (K, height, G, width, G) of all maps, and their weights."""
    image = rois[:, 0].long()[:, None, None, None, None]
    for row, down in _weigh_pixels(samples[0], size[0]):
        for column, across in _weigh_pixels(samples[1], size[1]):
            index = (image * size[0] + row[:, :, :, None, None]) * size[1] + column[:, None, None]
            yield index, down[:, :, :, None, None] * across[:, None, None]


def _parts(rois: Tensor, entries: int, ratio: int) -> Sequence[Tensor]:
    """Split regions, so that their samples fit into the memory; a graph has no parts, as they depend on the number."""
    if is_recording() or rois.shape[0] == 0:
        return [rois]
    limit = _ENTRIES_AT_ONCE.get(rois.device.type, _ENTRIES_AT_ONCE["cpu"])
    return rois.split(max(1, limit // (entries * (ratio or 8) ** 2)))


@_roi_align.fake
def _(features: Tensor, rois: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    return features.new_empty((rois.shape[0], features.shape[1], height, width))


def _check_gradients(gradients: Tensor, rois: Tensor, shape: Sequence[int], *_: object) -> None:
    _check_rois(rois, shape[0])


@operator(check=_check_gradients)
def _roi_align_gradient(
    gradients: Tensor, rois: Tensor, shape: list[int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """Add up the gradients (N, C, H, W) of maps from those of pooled regions (K, C, height, width)."""
    (num_images, channels, num_rows, num_columns), (height, width) = shape, gradients.shape[2:]
    total = gradients.new_zeros(num_images * num_rows * num_columns, channels)
    parts = _parts(rois, channels * height * width, ratio)
    for part, part_gradients in zip(parts, gradients.split([part.shape[0] for part in parts]), strict=True):
        samples = [_place_samples(part, axis, bins, scale, ratio, aligned) for axis, bins in ((1, height), (0, width))]
        each = part_gradients.permute(0, 2, 3, 1)[:, :, None, :, None]
        for index, weight in _corners(samples, part, (num_rows, num_columns)):
            total = total.index_put((index,), each * weight[..., None], accumulate=True)
    return total.view(num_images, num_rows, num_columns, channels).permute(0, 3, 1, 2).contiguous()


@_roi_align_gradient.fake
def _(gradients: Tensor, rois: Tensor, shape: list[int], scale: float, ratio: int, aligned: bool) -> Tensor:
    return gradients.new_empty(shape)


def _save_regions(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, *_, scale, ratio, aligned = inputs
    ctx.save_for_backward(rois)
    ctx.shape, ctx.form = features.shape, (scale, ratio, aligned)


@_roi_align.gradient(_save_regions)
def _(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    return _roi_align_gradient(gradient, rois, list(ctx.shape), *ctx.form), *[None] * 6


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradients, rois, _, *form = inputs
    ctx.save_for_backward(rois)
    ctx.form = (*gradients.shape[2:], *form)


@_roi_align_gradient.gradient(_save_gradients)
def _(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    return _roi_align(gradient, rois, *ctx.form), *[None] * 5


# --- CPU: weights of pixels along each axis, then all channels of a pixel at a time -----------------------------------


def _tabulate(rois: Tensor, axis: int, num_bins: int, length: int, form: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    """List for each bin its pixels along an axis: how many (K, bins), their indices and weights (K, bins, 2G)."""
    places, count = _place_samples(rois, axis, num_bins, *form)
    number = np.empty(places.shape[:2], dtype=np.int64)
    index = np.empty((*places.shape[:2], 2 * places.shape[2]), dtype=np.int64)
    weight = places.new_empty(index.shape).numpy()
    run_parallel(_list_pixels, len(rois), places.contiguous().numpy(), count.numpy(), length, number, index, weight)
    return number, index, weight


@_roi_align.cpu_kernel
def _(features: Tensor, rois: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    features, rois, form = features.detach().permute(0, 2, 3, 1).contiguous(), rois.detach(), (scale, ratio, aligned)
    pooled = features.new_zeros(len(rois), height, width, features.shape[3])
    tables = (*_tabulate(rois, 1, height, features.shape[1], form), *_tabulate(rois, 0, width, features.shape[2], form))
    run_parallel(_pool, len(rois), features.numpy(), rois[:, 0].long().numpy(), *tables, pooled.numpy())
    return pooled.permute(0, 3, 1, 2).contiguous()


@_roi_align_gradient.cpu_kernel
def _(gradients: Tensor, rois: Tensor, shape: list[int], scale: float, ratio: int, aligned: bool) -> Tensor:
    gradients, rois, form = gradients.detach().permute(0, 2, 3, 1).contiguous(), rois.detach(), (scale, ratio, aligned)
    num_images, channels, num_rows, num_columns = shape
    total = gradients.new_zeros(num_images, num_rows, num_columns, channels)
    (height, width), image = gradients.shape[1:3], rois[:, 0].long().numpy()
    tables = (*_tabulate(rois, 1, height, num_rows, form), *_tabulate(rois, 0, width, num_columns, form))
    run_parallel(_spread, num_images * -(-channels // _CHANNELS), gradients.numpy(), image, *tables, total.numpy())
    return total.permute(0, 3, 1, 2).contiguous()


@numba_kernel
def _list_pixels(
    first: int,
    last: int,
    places: np.ndarray,
    counts: np.ndarray,
    length: int,
    numbers: np.ndarray,
    index: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Write the pixels of each bin and their weights; samples follow one another, so that a pixel is often the last."""
    one = weights.dtype.type(1)
    for row in range(first, last):
        count = counts[row]
        for part in range(places.shape[1]):
            number = 0
            for sample in range(int(count)):
                pixel_slot = places[row, part, sample]
                if pixel_slot < -1 or pixel_slot > length:
                    continue
                inside = min(max(pixel_slot, weights.dtype.type(0)), weights.dtype.type(length - 1))
                low = int(inside)
                share = inside - weights.dtype.type(low)
                for pixel, weight in ((low, (one - share) / count), (min(low + 1, length - 1), share / count)):
                    if number and index[row, part, number - 1] == pixel:
                        weights[row, part, number - 1] += weight
                    else:
                        index[row, part, number], weights[row, part, number] = pixel, weight
                        number += 1
            numbers[row, part] = number


@numba_kernel
def _pool(
    first: int,
    last: int,
    features: np.ndarray,
    image: np.ndarray,
    rows: np.ndarray,
    row: np.ndarray,
    row_weight: np.ndarray,
    columns: np.ndarray,
    column: np.ndarray,
    column_weight: np.ndarray,
    pooled: np.ndarray,
) -> None:
    """Add up the pixels of each bin; channels are next to one another, many at a time."""
    for box in range(first, last):
        for down in range(pooled.shape[1]):
            for across in range(pooled.shape[2]):
                total = pooled[box, down, across]
                for y in range(rows[box, down]):
                    for x in range(columns[box, across]):
                        weight = row_weight[box, down, y] * column_weight[box, across, x]
                        pixel = features[image[box], row[box, down, y], column[box, across, x]]
                        for channel in range(len(total)):
                            total[channel] += weight * pixel[channel]


_CHANNELS = 64
"""Channels of a gradient that a thread adds up."""


@numba_kernel
def _spread(
    first: int,
    last: int,
    gradients: np.ndarray,
    image: np.ndarray,
    rows: np.ndarray,
    row: np.ndarray,
    row_weight: np.ndarray,
    columns: np.ndarray,
    column: np.ndarray,
    column_weight: np.ndarray,
    total: np.ndarray,
) -> None:
    """Add up the gradients of some channels of an image, of all boxes in their order."""
    parts = -(-total.shape[3] // _CHANNELS)
    for part in range(first, last):
        start, end = part % parts * _CHANNELS, min(part % parts * _CHANNELS + _CHANNELS, total.shape[3])
        for box in range(len(image)):
            if image[box] != part // parts:
                continue
            for down in range(gradients.shape[1]):
                for across in range(gradients.shape[2]):
                    box_gradient = gradients[box, down, across, start:end]
                    for y in range(rows[box, down]):
                        for x in range(columns[box, across]):
                            weight = row_weight[box, down, y] * column_weight[box, across, x]
                            pixel = total[image[box], row[box, down, y], column[box, across, x], start:end]
                            for channel in range(len(box_gradient)):
                                pixel[channel] += weight * box_gradient[channel]
