"""Move images and their boxes together: fit to a canvas, cut, turn; pure, as all transforms.

`image` (1, H, W, 3) of a sample, 0 to 255, `boxes` (1, G, 4) as left, top, right, bottom in its pixels (pixel i covers
[i, i + 1)), and `to_canvas` (1, 2, 3), which takes a place (x, y, 1) of the image's file to its present pixel. Boxes
that leave the image keep their place or are clipped; what little is left of one is ignored, never background.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sightline import registry
from sightline.arguments import Count, Factor, Fraction, Probability, Share, Size
from sightline.draws import Draws
from sightline.errors import ConfigError, DataError
from sightline.geometry.boxes.affine import chained, inverted, moved_boxes
from sightline.geometry.boxes.overlaps import box_areas
from sightline.transforms.images import is_normalized, resized

__all__ = ["CutImage", "FitImage", "ScaleSteps", "TurnImage"]

Fit = Literal["letterbox", "stretch", "short_side"]
_GREY = 114.0


@registry.transforms.add("fit_image")
class FitImage:
    """Every image is resized and put into the upper left corner of a canvas of `height` x `width` pixels.

    `letterbox` keeps the ratio of its sides and fills one of the canvas's; `stretch` fills both; `short_side` makes the
    shorter side `short_px` long, or the longer one `long_px` where it would be longer. The canvas is the config's and
    never the batch's: what a network predicts for an image must not depend on the others. The rest is `fill`, a grey or
    a red, green and blue.
    Raises DataError for an image that the canvas does not hold. Source: Lin et al. 2017, RetinaNet, section 4.1
    (short_side, 800 and 1333).
    """

    moves_pixels = True

    def __init__(
        self,
        *,
        height: Count,
        width: Count,
        mode: Fit = "letterbox",
        short_px: Count | None = None,
        long_px: Count | None = None,
        fill: Factor | tuple[Factor, Factor, Factor] = _GREY,
    ) -> None:
        if (mode == "short_side") != (short_px is not None and long_px is not None):
            raise ConfigError("fit_image: mode short_side takes short_px and long_px, the others take neither")
        self.canvas = (height, width)
        self.mode = mode
        self.short_px, self.long_px = short_px, long_px
        self.fill = fill
        self.facts = {"image_size_px": (width, height)}

    def __call__(self, draws: Draws, *, image: Tensor, boxes: Tensor, to_canvas: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[1:3]
        size = self._size(height, width)
        if size[0] > self.canvas[0] or size[1] > self.canvas[1]:
            raise DataError(
                f"fit_image: an image of {height} x {width} pixels becomes {size[0]} x {size[1]}, the canvas is "
                f"{self.canvas[0]} x {self.canvas[1]}; enlarge height and width, or use mode letterbox"
            )
        canvas = image.new_tensor(self.fill).expand(1, *self.canvas, image.shape[3]).contiguous()
        scaled = _scaled(image, boxes, to_canvas, size)
        canvas[:, : size[0], : size[1]] = scaled["image"]
        return {**scaled, "image": canvas}

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that an image is resized to."""
        if self.mode == "stretch":
            return self.canvas
        scale = min(self.canvas[0] / height, self.canvas[1] / width)
        if self.short_px is not None and self.long_px is not None:
            scale = min(self.short_px / min(height, width), self.long_px / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


@registry.transforms.add("scale_steps")
class ScaleSteps:
    """All images of a training step are scaled by one factor, uniform in [low, high], on a canvas scaled with them.

    The draw belongs to the step: its samples agree on it in every worker and on every process. The canvas's sides are
    rounded to multiples of `multiple`. It follows `fit_image`; it may follow `normalize_image`, for `transforms.vote`,
    where the draw belongs to the pass. Source: Redmon and Farhadi 2017, YOLO9000, section 2.
    """

    moves_pixels = True

    def __init__(self, *, low: Size = 0.75, high: Size = 1.25, multiple: Count = 32) -> None:
        if low > high:
            raise ConfigError(f"scale_steps: low {low:g} is above high {high:g}; exchange them")
        self.low, self.high = low, high
        self.multiple = multiple

    def __call__(self, draws: Draws, *, image: Tensor, boxes: Tensor, to_canvas: Tensor) -> dict[str, Tensor]:
        factor = self.low + float(draws.of_step.uniform()) * (self.high - self.low)
        is_made = is_normalized(image)
        rows = image.permute(0, 2, 3, 1) if is_made else image
        height, width = (max(1, round(side * factor / self.multiple)) * self.multiple for side in rows.shape[1:3])
        scaled = _scaled(rows, boxes, to_canvas, (height, width))
        return {**scaled, "image": scaled["image"].permute(0, 3, 1, 2).contiguous()} if is_made else scaled


class _Losing:
    """What transforms share that may cut boxes off: rows without anything left go, those with little are ignored."""

    moves_pixels = True

    def __init__(self, *, min_visible: Fraction, clip: bool) -> None:
        self.min_visible = min_visible
        self.clip = clip

    def kept(self, boxes: Tensor, label: Tensor, is_ignored: Tensor, *, height: int, width: int) -> dict[str, Tensor]:
        """The boxes (1, G, 4) that show in an image, clipped to it where `clip` says so, with their labels."""
        limit = boxes.new_tensor([width, height, width, height])
        inside = boxes.clamp(min=0).minimum(limit)
        whole, seen = box_areas(boxes), box_areas(inside)
        shows = seen[0] > 0
        is_ignored = is_ignored | (seen < self.min_visible * whole)
        boxes = inside if self.clip else boxes
        return {"boxes": boxes[:, shows], "label": label[:, shows], "is_ignored": is_ignored[:, shows]}


@registry.transforms.add("cut_image")
class CutImage(_Losing):
    """Every image becomes, with a probability, a random part of it: each side a share uniform in [low, 1] of its own.

    A box of which less than `min_visible` is left is ignored; `clip` cuts boxes at the border of the part. Parts differ
    in size, so that `fit_image` follows.
    Source: Liu et al. 2016, SSD, section 2.2.
    """

    def __init__(
        self, *, low: Share = 0.5, probability: Probability = 0.5, min_visible: Fraction = 0.1, clip: bool = True
    ) -> None:
        super().__init__(min_visible=min_visible, clip=clip)
        self.low = low
        self.probability = probability

    def __call__(
        self, draws: Draws, *, image: Tensor, boxes: Tensor, to_canvas: Tensor, label: Tensor, is_ignored: Tensor
    ) -> dict[str, Tensor]:
        chance, *drawn = draws.uniform(5)[0].double().tolist()
        if chance >= self.probability:
            return {"image": image, "boxes": boxes, "to_canvas": to_canvas, "label": label, "is_ignored": is_ignored}
        whole = image.shape[1:3]
        sides = [max(1, round(whole[k] * (self.low + drawn[k] * (1 - self.low)))) for k in range(2)]
        starts = [int(drawn[2 + k] * (whole[k] - sides[k] + 1)) for k in range(2)]
        (top, left), (height, width) = starts, sides
        part = image[:, top : top + height, left : left + width].clone()
        moved = _moved(torch.tensor([[1, 0, -left], [0, 1, -top]], dtype=torch.float64), boxes, to_canvas)
        return {"image": part, **moved, **self.kept(moved["boxes"], label, is_ignored, height=height, width=width)}


@registry.transforms.add("turn_image")
class TurnImage(_Losing):
    """Every image is turned, scaled, sheared and shifted about its middle; the canvas stays, the rest is `fill`.

    Angle and shears are uniform within +-`degrees` and +-`shear_degrees`, the factor within 1 +- `scale`, the shift
    within +-`shift` of each side. A box becomes the smallest box about its four corners.
    Source: the affine augmentation of YOLOv5 and YOLOv6 (Li et al. 2022, section 2.5).
    """

    def __init__(
        self,
        *,
        degrees: Factor = 0.0,
        shear_degrees: Factor = 0.0,
        scale: Fraction = 0.5,
        shift: Fraction = 0.1,
        min_visible: Fraction = 0.1,
        clip: bool = True,
        fill: Factor = _GREY,
    ) -> None:
        super().__init__(min_visible=min_visible, clip=clip)
        self.degrees, self.shear_degrees = degrees, shear_degrees
        self.scale, self.shift = scale, shift
        self.fill = fill

    def __call__(
        self, draws: Draws, *, image: Tensor, boxes: Tensor, to_canvas: Tensor, label: Tensor, is_ignored: Tensor
    ) -> dict[str, Tensor]:
        height, width = image.shape[1:3]
        matrix = self._matrix(draws, height, width)
        turned = _resampled(image, matrix, fill=self.fill)
        moved = _moved(matrix, boxes, to_canvas)
        return {"image": turned, **moved, **self.kept(moved["boxes"], label, is_ignored, height=height, width=width)}

    def _matrix(self, draws: Draws, height: int, width: int) -> Tensor:
        """From a pixel's place to its new one, (2, 3) float64."""
        angle, shear_x, shear_y, factor, right, down = (2 * draws.uniform(6)[0].double() - 1).tolist()
        turn, size = math.radians(self.degrees * angle), 1 + self.scale * factor
        along, across = (math.tan(math.radians(self.shear_degrees * each)) for each in (shear_x, shear_y))
        rotation = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
        shear = [[size, size * along], [size * across, size]]
        linear = torch.tensor(shear, dtype=torch.float64) @ torch.tensor(rotation, dtype=torch.float64)
        middle = torch.tensor([width / 2, height / 2], dtype=torch.float64)
        moved = middle + torch.tensor([right * self.shift * width, down * self.shift * height], dtype=torch.float64)
        return torch.cat([linear, (moved - linear @ middle)[:, None]], dim=1)


def _moved(matrix: Tensor, boxes: Tensor, to_canvas: Tensor) -> dict[str, Tensor]:
    """Boxes, and the map from the file's pixels, after a further map of pixels."""
    further = chained(matrix, to_canvas[0])
    return {"boxes": moved_boxes(boxes, matrix), "to_canvas": further[None].to(to_canvas.dtype)}


def _scaled(image: Tensor, boxes: Tensor, to_canvas: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """An image of so many rows and columns with its boxes."""
    across, down = size[1] / image.shape[2], size[0] / image.shape[1]
    matrix = torch.tensor([[across, 0, 0], [0, down, 0]], dtype=torch.float64)
    return {"image": resized(image, size=size), **_moved(matrix, boxes, to_canvas)}


def _resampled(image: Tensor, matrix: Tensor, *, fill: float) -> Tensor:
    """Images (1, H, W, 3) after an affine map of their pixels; float32, read by bilinear interpolation."""
    height, width = image.shape[1:3]
    to_unit = torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1]], dtype=torch.float64)
    to_pixels = torch.tensor([[width / 2, 0, width / 2], [0, height / 2, height / 2]], dtype=torch.float64)
    theta = chained(to_unit, chained(inverted(matrix), to_pixels))
    grid = functional.affine_grid(theta[None].float(), [1, 3, height, width], align_corners=False)
    channels = image.permute(0, 3, 1, 2).float() - fill
    read = functional.grid_sample(channels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (read + fill).permute(0, 2, 3, 1).contiguous()
