"""Geometric transforms of images with their boxes: fit to a canvas, crop, affine; all are pure.

`image` (1, H, W, 3) of a sample, 0 to 255, `boxes` (1, G, 4) as left, top, right, bottom in its pixels (pixel i covers
[i, i + 1)), and `to_canvas` (1, 2, 3), which takes a place (x, y, 1) of the image's file to its present pixel. Boxes
that leave the image keep their place or are clipped; what little is left of one is ignored, never background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from sightline.contract import registry
from sightline.contract.arguments import (
    Count,
    FractionBelowOne,
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    Probability,
)
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.transform import Transform
from sightline.ops.boxes.overlaps import box_area
from sightline.ops.points.affine_maps import compose_affine, invert_affine, warp_boxes
from sightline.parts.transforms.images import is_normalized, resize_images

Fit = Literal["letterbox", "stretch", "short_side"]
PAD_VALUE = 114.0
"""Grey of pixels that no image covers. Source: YOLOv5."""


@registry.transforms.add("fit_image")
class FitImage(Transform):
    """Letterboxing (or stretching) of images into the upper left corner of a canvas of `height` x `width` pixels.

    `letterbox` keeps the ratio of its sides and fills one of the canvas's; `stretch` fills both; `short_side` makes the
    shorter side `short_px` long, or the longer one `long_px` if it would be longer. The canvas is the config's and
    never the batch's: a network's prediction for an image must not depend on the others. The rest is `fill`, a grey or
    a red, green and blue.
    Raises DataError for an image larger than the canvas.

    >>> import torch
    >>> from sightline.areas.detect.transforms import FitImage
    >>> from sightline.contract.draws import Draws
    >>> batch = {"image": torch.full((1, 1, 2, 3), 10.0), "boxes": torch.tensor([[[0.0, 0, 1, 1]]])}
    >>> fitted = FitImage(height=4, width=4)(Draws.from_seed(0), **batch, to_canvas=torch.eye(2, 3)[None])
    >>> fitted["image"][0, :, 0, 0], fitted["boxes"]  # two rows of the image, twice as large, and two of grey
    (tensor([ 10.,  10., 114., 114.]), tensor([[[0., 0., 2., 2.]]]))

    Source: Lin et al. 2017, RetinaNet, section 4.1 (short_side, 800 and 1333).
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
        fill: NonNegativeFloat | tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = PAD_VALUE,
    ) -> None:
        if (mode == "short_side") != (short_px is not None and long_px is not None):
            raise ConfigError("fit_image: mode short_side takes short_px and long_px, the others take neither")
        self.canvas = (height, width)
        self.mode = mode
        self.short_px, self.long_px = short_px, long_px
        self.fill = fill
        self.facts = {"image_size_px": (width, height)}

    @classmethod
    def size_arguments(cls, stated: Mapping[str, Any], *, height: int, width: int) -> dict[str, Any]:
        if stated.get("mode") == "short_side":
            raise ConfigError(
                "fit_image of mode short_side has sizes of each side: set short_px, long_px and the canvas"
            )
        return {"height": height, "width": width}

    def __call__(self, draws: Draws, *, image: Tensor, boxes: Tensor, to_canvas: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[1:3]
        size = self._size(height, width)
        if size[0] > self.canvas[0] or size[1] > self.canvas[1]:
            raise DataError(
                f"fit_image: an image of {height} x {width} pixels becomes {size[0]} x {size[1]}, the canvas is "
                f"{self.canvas[0]} x {self.canvas[1]}; enlarge height and width, or use mode letterbox"
            )
        canvas = image.new_tensor(self.fill).expand(1, *self.canvas, image.shape[3]).contiguous()
        fitted = resize_with_boxes(image, boxes, to_canvas, size)
        canvas[:, : size[0], : size[1]] = fitted["image"]
        return {**fitted, "image": canvas}

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns after resizing."""
        if self.mode == "stretch":
            return self.canvas
        if self.mode == "letterbox":
            return fit_size(height, width, self.canvas)
        assert self.short_px is not None
        assert self.long_px is not None
        return _times(height, width, min(self.short_px / min(height, width), self.long_px / max(height, width)))


@registry.transforms.add("scale_steps")
class ScaleSteps(Transform):
    """Multi-scale training: all images of a step and their canvas scaled by one factor, uniform in [low, high].

    The draw belongs to the step: its samples agree on it in every worker and on every process. The canvas's sides are
    rounded to multiples of `multiple`. It follows `fit_image`; it may follow `normalize_image`, for `transforms.vote`,
    where the draw belongs to the pass.

    >>> import torch
    >>> from sightline.areas.detect.transforms import ScaleSteps
    >>> from sightline.contract.draws import Draws
    >>> batch = {"image": torch.zeros(1, 2, 4, 3), "boxes": torch.tensor([[[0.0, 0, 1, 1]]])}
    >>> scale_steps = ScaleSteps(low=2.0, high=2.0, multiple=1)
    >>> scaled = scale_steps(Draws.from_seed(0), **batch, to_canvas=torch.eye(2, 3)[None])
    >>> scaled["image"].shape, scaled["boxes"]
    (torch.Size([1, 4, 8, 3]), tensor([[[0., 0., 2., 2.]]]))

    Source: Redmon and Farhadi 2017, YOLO9000, section 2.
    """

    moves_pixels = True

    def __init__(self, *, low: PositiveFloat = 0.75, high: PositiveFloat = 1.25, multiple: Count = 32) -> None:
        if low > high:
            raise ConfigError(f"scale_steps: low {low:g} is above high {high:g}; exchange them")
        self.low, self.high = low, high
        self.multiple = multiple

    def __call__(self, draws: Draws, *, image: Tensor, boxes: Tensor, to_canvas: Tensor) -> dict[str, Tensor]:
        factor = self.low + float(draws.shared_by_step.uniform()) * (self.high - self.low)
        was_normalized = is_normalized(image)
        rows = image.permute(0, 2, 3, 1) if was_normalized else image
        height, width = (max(1, round(side * factor / self.multiple)) * self.multiple for side in rows.shape[1:3])
        resized = resize_with_boxes(rows, boxes, to_canvas, (height, width))
        return {**resized, "image": resized["image"].permute(0, 3, 1, 2).contiguous()} if was_normalized else resized


class BoxCroppingTransform(Transform):
    """Base of transforms that may crop boxes: boxes outside are dropped, those with little left are ignored.

    Little is less than `min_visible` of the area, a side of at most `min_side_px`, or one `max_aspect` times the other.
    """

    moves_pixels = True

    def __init__(
        self, *, min_visible: float, clip: bool, min_side_px: float = 0.0, max_aspect: float | None = None
    ) -> None:
        self.min_visible = min_visible
        self.clip = clip
        self.min_side_px, self.max_aspect = min_side_px, max_aspect

    def clip_boxes(
        self, boxes: Tensor, label: Tensor, is_ignored: Tensor, *, height: int, width: int, top: int = 0, left: int = 0
    ) -> dict[str, Tensor]:
        """Select the boxes (1, G, 4) visible in a window of an image, clipped to it with `clip`, and their labels."""
        window = boxes.new_tensor([left, top, left + width, top + height])
        inside = boxes.maximum(window[[0, 1, 0, 1]]).minimum(window[[2, 3, 2, 3]])
        areas, visible_areas = box_area(boxes), box_area(inside)
        is_visible = visible_areas[0] > 0
        is_ignored = is_ignored | (visible_areas < self.min_visible * areas)
        sides = inside[..., 2:] - inside[..., :2]
        is_ignored = is_ignored | (sides.amin(-1) <= self.min_side_px)
        if self.max_aspect is not None:
            is_ignored = is_ignored | (sides.amax(-1) >= self.max_aspect * sides.amin(-1))
        boxes = inside if self.clip else boxes
        return {"boxes": boxes[:, is_visible], "label": label[:, is_visible], "is_ignored": is_ignored[:, is_visible]}


@registry.transforms.add("cut_image")
class CutImage(BoxCroppingTransform):
    """Random crop with a probability: each side is a share of the image's, uniform in [low, 1].

    A box of which less than `min_visible` is left is ignored; `clip` cuts boxes at the border of the crop. Crops differ
    in size, so that `fit_image` follows.

    >>> import torch
    >>> from sightline.areas.detect.transforms import CutImage
    >>> from sightline.contract.draws import Draws
    >>> batch = {"image": torch.zeros(1, 8, 8, 3), "label": torch.tensor([[0]]), "is_ignored": torch.tensor([[False]])}
    >>> batch |= {"boxes": torch.tensor([[[0.0, 0, 8, 8]]]), "to_canvas": torch.eye(2, 3)[None]}
    >>> cut = CutImage(low=0.5, probability=1.0)(Draws.from_seed(0), **batch)
    >>> height, width = cut["image"].shape[1:3]  # from 4 to 8 each
    >>> cut["boxes"].tolist() == [[[0, 0, width, height]]]  # the box was the image, and is the crop
    True

    Source: Liu et al. 2016, SSD, section 2.2.
    """

    def __init__(
        self,
        *,
        low: PositiveFraction = 0.5,
        probability: Probability = 0.5,
        min_visible: FractionBelowOne = 0.1,
        clip: bool = True,
    ) -> None:
        super().__init__(min_visible=min_visible, clip=clip)
        self.low = low
        self.probability = probability

    def __call__(
        self, draws: Draws, *, image: Tensor, boxes: Tensor, to_canvas: Tensor, label: Tensor, is_ignored: Tensor
    ) -> dict[str, Tensor]:
        chance, *shares = draws.uniform(5)[0].double().tolist()
        if chance >= self.probability:
            return {"image": image, "boxes": boxes, "to_canvas": to_canvas, "label": label, "is_ignored": is_ignored}
        image_size = image.shape[1:3]
        sides = [max(1, round(image_size[k] * (self.low + shares[k] * (1 - self.low)))) for k in range(2)]
        starts = [int(shares[2 + k] * (image_size[k] - sides[k] + 1)) for k in range(2)]
        (top, left), (height, width) = starts, sides
        part = image[:, top : top + height, left : left + width].clone()
        cut = transform_boxes(torch.tensor([[1, 0, -left], [0, 1, -top]], dtype=torch.float64), boxes, to_canvas)
        return {"image": part, **cut, **self.clip_boxes(cut["boxes"], label, is_ignored, height=height, width=width)}


@registry.transforms.add("turn_image")
class TurnImage(BoxCroppingTransform):
    """Random affine: rotate, scale, shear and shift each image about its middle; uncovered pixels are `fill`.

    Angle and shears are uniform within +-`degrees` and +-`shear_degrees`, the factor within 1 +- `scale`, the shift
    within +-`shift` of each side. A box becomes the bounding box of its four corners. The canvas is unchanged, or gets
    the height and width `canvas`, with the middle of the image in its own, as after `mosaic`. A box is ignored of which
    less than `min_visible` is left, or a side of at most `min_side_px`, or one `max_aspect` times the other.

    >>> import torch
    >>> from sightline.areas.detect.transforms import TurnImage
    >>> from sightline.contract.draws import Draws
    >>> batch = {"image": torch.zeros(1, 4, 4, 3), "label": torch.tensor([[0]]), "is_ignored": torch.tensor([[False]])}
    >>> batch |= {"boxes": torch.tensor([[[0.0, 0, 4, 4]]]), "to_canvas": torch.eye(2, 3)[None]}
    >>> turned = TurnImage(scale=0.0, shift=0.0, canvas=(8, 8))(Draws.from_seed(0), **batch)
    >>> turned["image"].shape, turned["boxes"]  # in the middle of the canvas
    (torch.Size([1, 8, 8, 3]), tensor([[[2., 2., 6., 6.]]]))

    Source: the affine augmentation of YOLOv5 and YOLOv6 (Li et al. 2022, section 2.5).
    """

    def __init__(
        self,
        *,
        degrees: NonNegativeFloat = 0.0,
        shear_degrees: NonNegativeFloat = 0.0,
        scale: FractionBelowOne = 0.5,
        shift: FractionBelowOne = 0.1,
        min_visible: FractionBelowOne = 0.1,
        min_side_px: NonNegativeFloat = 0.0,
        max_aspect: PositiveFloat | None = None,
        clip: bool = True,
        canvas: tuple[Count, Count] | None = None,
        fill: NonNegativeFloat = PAD_VALUE,
    ) -> None:
        super().__init__(min_visible=min_visible, clip=clip, min_side_px=min_side_px, max_aspect=max_aspect)
        self.canvas = canvas
        self.facts = {} if canvas is None else {"image_size_px": (canvas[1], canvas[0])}
        self.degrees, self.shear_degrees = degrees, shear_degrees
        self.scale, self.shift = scale, shift
        self.fill = fill

    @classmethod
    def size_arguments(cls, stated: Mapping[str, Any], *, height: int, width: int) -> dict[str, Any]:
        return {"canvas": [height, width]} if stated.get("canvas") is not None else {}

    def __call__(
        self, draws: Draws, *, image: Tensor, boxes: Tensor, to_canvas: Tensor, label: Tensor, is_ignored: Tensor
    ) -> dict[str, Tensor]:
        height, width = self.canvas or image.shape[1:3]
        matrix = self._matrix(draws, image.shape[1], image.shape[2], height, width)
        turned = _warp(image, matrix, (height, width), fill=self.fill)
        placed = transform_boxes(matrix, boxes, to_canvas)
        return {
            "image": turned,
            **placed,
            **self.clip_boxes(placed["boxes"], label, is_ignored, height=height, width=width),
        }

    def _matrix(self, draws: Draws, rows: int, columns: int, height: int, width: int) -> Tensor:
        """Return the affine map (2, 3) float64 from image pixels to canvas pixels."""
        angle, shear_x, shear_y, factor, right, down = (2 * draws.uniform(6)[0].double() - 1).tolist()
        turn, size = math.radians(self.degrees * angle), 1 + self.scale * factor
        along, across = (math.tan(math.radians(self.shear_degrees * share)) for share in (shear_x, shear_y))
        rotation = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
        shear = [[size, size * along], [size * across, size]]
        linear = torch.tensor(shear, dtype=torch.float64) @ torch.tensor(rotation, dtype=torch.float64)
        middle = torch.tensor([columns / 2, rows / 2], dtype=torch.float64)
        shares = torch.tensor([0.5 + right * self.shift, 0.5 + down * self.shift], dtype=torch.float64)
        target = shares * torch.tensor([width, height])
        return torch.cat([linear, (target - linear @ middle)[:, None]], dim=1)


def fit_size(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the largest image of this ratio that fits a canvas of (height, width)."""
    return _times(height, width, min(canvas[0] / height, canvas[1] / width))


def _times(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, round(height * scale)), max(1, round(width * scale))


def transform_boxes(matrix: Tensor, boxes: Tensor, to_canvas: Tensor) -> dict[str, Tensor]:
    """Apply a further map of pixels to boxes (1, G, 4), and compose it with `to_canvas` (1, 2, 3)."""
    further = compose_affine(matrix, to_canvas[0])
    return {"boxes": warp_boxes(boxes, matrix), "to_canvas": further[None].to(to_canvas.dtype)}


def resize_with_boxes(image: Tensor, boxes: Tensor, to_canvas: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Resize an image (1, H, W, 3) with its boxes (1, G, 4) to `size` (rows, columns)."""
    across, down = size[1] / image.shape[2], size[0] / image.shape[1]
    matrix = torch.tensor([[across, 0, 0], [0, down, 0]], dtype=torch.float64)
    return {"image": resize_images(image, size=size), **transform_boxes(matrix, boxes, to_canvas)}


def _warp(image: Tensor, matrix: Tensor, size: tuple[int, int], *, fill: float) -> Tensor:
    """Warp images (1, H, W, 3) by an affine map of pixels to another size; float32, bilinear."""
    rows, columns = image.shape[1:3]
    height, width = size
    to_unit = torch.tensor([[2 / columns, 0, -1], [0, 2 / rows, -1]], dtype=torch.float64)
    to_pixels = torch.tensor([[width / 2, 0, width / 2], [0, height / 2, height / 2]], dtype=torch.float64)
    theta = compose_affine(to_unit, compose_affine(invert_affine(matrix), to_pixels))
    grid = functional.affine_grid(theta[None].float(), [1, 3, height, width], align_corners=False)
    channels = image.permute(0, 3, 1, 2).float() - fill
    read = functional.grid_sample(channels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (read + fill).permute(0, 2, 3, 1).contiguous()
