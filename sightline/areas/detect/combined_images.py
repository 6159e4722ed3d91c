"""Transforms that combine several images: mosaic and mix-up, pure functions of a sample's own stream.

They take `draw_samples`, which draws further images of the training part (store/loading/transform_pipeline.py), the
same for any number of workers and after a resume. `to_canvas` is about the sample's own image, as `truth` and `file_px`
are: a combined image is trained on, never scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.detect.transforms import (
    PAD_VALUE,
    BoxCroppingTransform,
    fit_size,
    resize_with_boxes,
    transform_boxes,
)
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, NonNegativeFloat, PositiveFloat, Probability
from sightline.contract.draws import Draws
from sightline.contract.errors import DataError
from sightline.contract.transform import Transform

DrawSamples = Callable[[int], list[dict[str, Any]]] | None
_JOINED = ("boxes", "label", "is_ignored")


@registry.transforms.add("mosaic")
class Mosaic(BoxCroppingTransform):
    """Mosaic: four images on a grey canvas of twice `height` x `width`, meeting at a random point.

    The point is in the middle half of each side. Each image is fitted into `height` x `width` and has a corner at that
    point, the sample itself at the upper left; pixels outside the canvas are cut off. A box of which less than
    `min_visible` is left is ignored; `clip` cuts boxes at the visible border of their own image. Without a mosaic, as
    in the last `plain_share` of a run's epochs, the image is alone in the middle. `turn_image` with `canvas: [height,
    width]` follows.

    >>> import torch
    >>> from sightline.areas.detect.combined_images import Mosaic
    >>> from sightline.contract.draws import Draws
    >>> batch = {"image": torch.zeros(1, 4, 4, 3), "label": torch.tensor([[0]]), "is_ignored": torch.tensor([[False]])}
    >>> batch |= {"boxes": torch.tensor([[[0.0, 0, 4, 4]]]), "to_canvas": torch.eye(2, 3)[None]}
    >>> others = lambda count: [{**batch, "label": torch.tensor([[1]])}] * count
    >>> joined = Mosaic(height=4, width=4)(Draws.from_seed(0), others, **batch)
    >>> joined["image"].shape, joined["label"]
    (torch.Size([1, 8, 8, 3]), tensor([[0, 1, 1, 1]]))

    Source: Bochkovskiy et al. 2020, YOLOv4, section 3.4, as YOLOv5 draws it; plain epochs: Ge et al. 2021, YOLOX, 2.1,
    the last 15 of 300.
    """

    def __init__(
        self,
        *,
        height: Count,
        width: Count,
        probability: Probability = 1.0,
        plain_share: FractionBelowOne = 0.05,
        min_visible: FractionBelowOne = 0.1,
        clip: bool = True,
        fill: NonNegativeFloat = PAD_VALUE,
        num_epochs: int | None = None,
    ) -> None:
        super().__init__(min_visible=min_visible, clip=clip)
        self.size = (height, width)
        self.probability = probability
        self.until_epoch = _until(plain_share, num_epochs)
        self.fill = fill

    @classmethod
    def size_arguments(cls, stated: Mapping[str, Any], *, height: int, width: int) -> dict[str, Any]:
        return {"height": height, "width": width}

    def __call__(
        self,
        draws: Draws,
        draw_samples: DrawSamples,
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
        if draw_samples is None or chance >= self.probability:
            rows, columns = fit_size(image.shape[1], image.shape[2], self.size)
            return {**self._paste(canvas, sample_itself, height - rows // 2, width - columns // 2), "image": canvas}
        row, column = (int(side * (0.5 + share)) for side, share in zip(self.size, shares, strict=True))
        pasted = []
        for corner, sample in enumerate([sample_itself, *draw_samples(3)]):
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
class MixUp(Transform):
    """Mix-up with a probability: an image is blended with another of the same size; the boxes of both are kept.

    The weight of the first image is drawn from Beta(`alpha`, `alpha`). The other has been through the transforms before
    this one, such as a mosaic, with random numbers of its own. Nothing is blended in the last `plain_share` of a
    run's epochs. Raises DataError for images of two sizes.

    >>> import torch
    >>> from sightline.areas.detect.combined_images import MixUp
    >>> from sightline.contract.draws import Draws
    >>> batch = {"image": torch.ones(1, 1, 1, 3), "label": torch.tensor([[0]]), "is_ignored": torch.tensor([[False]])}
    >>> batch |= {"boxes": torch.tensor([[[0.0, 0, 1, 1]]]), "to_canvas": torch.eye(2, 3)[None]}
    >>> others = lambda count: [{**batch, "label": torch.tensor([[1]])}] * count
    >>> mixed = MixUp(probability=1.0)(Draws.from_seed(0), others, **batch)
    >>> mixed["image"], mixed["label"]  # of two equal images
    (tensor([[[[1., 1., 1.]]]]), tensor([[0, 1]]))

    Source: Zhang et al. 2018, mixup, section 2; with boxes as YOLOX (Ge et al. 2021) has it.
    """

    moves_pixels = True

    def __init__(
        self,
        *,
        probability: Probability = 0.243,
        alpha: PositiveFloat = 32.0,
        plain_share: FractionBelowOne = 0.05,
        num_epochs: int | None = None,
    ) -> None:
        self.probability, self.alpha = probability, alpha
        self.until_epoch = _until(plain_share, num_epochs)

    def __call__(
        self,
        draws: Draws,
        draw_samples: DrawSamples,
        *,
        image: Tensor,
        boxes: Tensor,
        to_canvas: Tensor,
        label: Tensor,
        is_ignored: Tensor,
    ) -> dict[str, Tensor]:
        own_boxes = {"boxes": boxes, "label": label, "is_ignored": is_ignored}
        alone = {"image": image.float(), "to_canvas": to_canvas, **own_boxes}
        if draw_samples is None or float(draws.uniform()[0]) >= self.probability:
            return alone
        (other,) = draw_samples(1)
        if other["image"].shape != image.shape:
            sizes = " and ".join(
                " x ".join(map(str, sample_image.shape[1:3])) for sample_image in (image, other["image"])
            )
            raise DataError(
                f"mix_up: images have {sizes} pixels; put fit_image, or mosaic and turn_image, before it, for one size"
            )
        share = np.random.Generator(np.random.PCG64(int(draws.bits()[0]))).beta(self.alpha, self.alpha)
        return {
            **alone,
            "image": torch.lerp(other["image"].float(), alone["image"], share),
            **_concatenate_boxes([own_boxes, other]),
        }


def _until(plain_share: float, num_epochs: int | None) -> int | None:
    """Return the first epoch, from 1 on, in which images are no longer combined; None if `num_epochs` is None."""
    return None if num_epochs is None else max(1, num_epochs - round(plain_share * num_epochs))


def _concatenate_boxes(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the boxes, labels and flags of several samples."""
    return {name: torch.cat([sample[name] for sample in samples], dim=1) for name in _JOINED}
