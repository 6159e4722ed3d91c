"""Mosaic and mix-up of several images with their boxes; pure, as all transforms.

Both take `others`, which draws further images of the training part (data/loading/reading.py), the same for any number
of workers and after a resume. `to_canvas` is about the sample's own image, as `truth` and `file_px` are: a combined
image is trained on, never scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline import registry
from sightline.arguments import Count, FractionBelowOne, Index, NonNegativeFloat, PositiveFloat, Probability
from sightline.draws import Draws
from sightline.errors import ConfigError, DataError
from sightline.transforms.boxes import PAD_VALUE, BoxCroppingTransform, fit_size, resize_with_boxes, transform_boxes

__all__ = ["MixUp", "Mosaic"]

Others = Callable[[int], list[dict[str, Any]]] | None
_JOINED = ("boxes", "label", "is_ignored")


@registry.transforms.add("mosaic")
class Mosaic(BoxCroppingTransform):
    """Mosaic: four images on a grey canvas of twice `height` x `width`, meeting at a random point.

    The point is in the middle half of each side. Each image is fitted into `height` x `width` and has a corner at that
    point, the sample itself at the upper left; pixels outside the canvas are cut off. A box of which less than
    `min_visible` is left is ignored; `clip` cuts boxes at the visible border of their own image. Without a mosaic, as
    in the last `plain_epochs` of a run, the image is alone in the middle. `turn_image` with `canvas: [height, width]`
    follows.
    Source: Bochkovskiy et al. 2020, YOLOv4, section 3.4, as YOLOv5 draws it; plain epochs: Ge et al. 2021, YOLOX, 2.1.
    """

    def __init__(
        self,
        *,
        height: Count,
        width: Count,
        probability: Probability = 1.0,
        plain_epochs: Index = 15,
        min_visible: FractionBelowOne = 0.1,
        clip: bool = True,
        fill: NonNegativeFloat = PAD_VALUE,
        num_epochs: int | None = None,
    ) -> None:
        super().__init__(min_visible=min_visible, clip=clip)
        self.size = (height, width)
        self.probability = probability
        self.until_epoch = _until("mosaic", plain_epochs, num_epochs)
        self.fill = fill

    def __call__(
        self,
        draws: Draws,
        others: Others,
        *,
        image: Tensor,
        boxes: Tensor,
        to_canvas: Tensor,
        label: Tensor,
        is_ignored: Tensor,
    ) -> dict[str, Tensor]:
        sample_itself = {
            "image": image,
            "boxes": boxes,
            "to_canvas": to_canvas,
            "label": label,
            "is_ignored": is_ignored,
        }
        chance, *shares = draws.uniform(3)[0].double().tolist()
        height, width = self.size
        canvas = image.new_full((1, 2 * height, 2 * width, 3), self.fill)
        if others is None or chance >= self.probability:
            rows, columns = fit_size(image.shape[1], image.shape[2], self.size)
            return {**self._paste(canvas, sample_itself, height - rows // 2, width - columns // 2), "image": canvas}
        row, column = (int(side * (0.5 + share)) for side, share in zip(self.size, shares, strict=True))
        pasted = []
        for corner, sample in enumerate([sample_itself, *others(3)]):
            rows, columns = fit_size(sample["image"].shape[1], sample["image"].shape[2], self.size)
            top, left = row - (rows if corner < 2 else 0), column - (columns if corner % 2 == 0 else 0)
            pasted.append(self._paste(canvas, sample, top, left))
        return {"image": canvas, "to_canvas": pasted[0]["to_canvas"], **_concatenate_boxes(pasted)}

    def _paste(self, canvas: Tensor, sample: dict[str, Tensor], top: int, left: int) -> dict[str, Tensor]:
        """Paint the fitted image of a sample onto the canvas, from a row and column on, and return its boxes."""
        size = fit_size(sample["image"].shape[1], sample["image"].shape[2], self.size)
        fitted = resize_with_boxes(sample["image"], sample["boxes"], sample["to_canvas"], size)
        first_row, first_column = max(top, 0), max(left, 0)
        end_row, end_column = min(top + size[0], canvas.shape[1]), min(left + size[1], canvas.shape[2])
        canvas[:, first_row:end_row, first_column:end_column] = fitted["image"][
            :, first_row - top : end_row - top, first_column - left : end_column - left
        ]
        shift = torch.tensor([[1, 0, left], [0, 1, top]], dtype=torch.float64)
        pasted = transform_boxes(shift, fitted["boxes"], fitted["to_canvas"])
        window = {
            "height": end_row - first_row,
            "width": end_column - first_column,
            "top": first_row,
            "left": first_column,
        }
        return {**pasted, **self.clip_boxes(pasted["boxes"], sample["label"], sample["is_ignored"], **window)}


@registry.transforms.add("mix_up")
class MixUp:
    """Mix-up with a probability: an image is blended with another of the same size; the boxes of both are kept.

    The share of the first is drawn from Beta(`alpha`, `alpha`). The other went through the transforms before this one,
    a mosaic of its own among them. Off in the last `plain_epochs` of a run. Raises DataError for images of two sizes.
    Source: Zhang et al. 2018, mixup, section 2; with boxes as YOLOX (Ge et al. 2021) has it.
    """

    moves_pixels = True

    def __init__(
        self,
        *,
        probability: Probability = 0.243,
        alpha: PositiveFloat = 32.0,
        plain_epochs: Index = 15,
        num_epochs: int | None = None,
    ) -> None:
        self.probability, self.alpha = probability, alpha
        self.until_epoch = _until("mix_up", plain_epochs, num_epochs)

    def __call__(
        self,
        draws: Draws,
        others: Others,
        *,
        image: Tensor,
        boxes: Tensor,
        to_canvas: Tensor,
        label: Tensor,
        is_ignored: Tensor,
    ) -> dict[str, Tensor]:
        own_boxes = {"boxes": boxes, "label": label, "is_ignored": is_ignored}
        alone = {"image": image.float(), "to_canvas": to_canvas, **own_boxes}
        if others is None or float(draws.uniform()[0]) >= self.probability:
            return alone
        (other,) = others(1)
        if other["image"].shape != image.shape:
            sizes = " and ".join(
                " x ".join(map(str, sample_image.shape[1:3])) for sample_image in (image, other["image"])
            )
            raise DataError(f"mix_up: images have {sizes} pixels; put fit_image, or mosaic and turn_image, before it")
        share = np.random.Generator(np.random.PCG64(int(draws.bits()[0]))).beta(self.alpha, self.alpha)
        return {
            **alone,
            "image": torch.lerp(other["image"].float(), alone["image"], share),
            **_concatenate_boxes([own_boxes, other]),
        }


def _until(name: str, plain_epochs: int, num_epochs: int | None) -> int | None:
    """Return the epoch from which images are alone; None without the number of epochs.

    Raises ConfigError if it is 0.
    """
    if num_epochs is not None and plain_epochs >= num_epochs:
        raise ConfigError(
            f"{name}: plain_epochs {plain_epochs} leave none of {num_epochs} epochs; lower plain_epochs, or leave "
            f"{name} out"
        )
    return None if num_epochs is None else num_epochs - plain_epochs


def _concatenate_boxes(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the boxes, labels and flags of several samples."""
    return {name: torch.cat([sample[name] for sample in samples], dim=1) for name in _JOINED}
