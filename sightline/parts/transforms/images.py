"""Image transforms: resize, flip, colour jitter, and the final normalisation.

Pure and batched: `image` (B, H, W, 3), red, green and blue from 0 to 255, uint8 or float32, comes in and goes out;
`normalize_image` comes last and gives (B, 3, H, W). Each image draws from its own stream and is computed by itself or
element by element, so that it gets the same bits alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat, Probability
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.transform import Transform

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LUMA = (0.299, 0.587, 0.114)


@registry.transforms.add("resize_image")
class ResizeImage(Transform):
    """Resizing of each image to height and width `size_px`, with a triangle filter as wide as the larger pixel.

    uint8 is rounded and stays uint8.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.images import ResizeImage
    >>> image = torch.tensor([[0.0, 4.0], [8.0, 12.0]])[None, :, :, None].expand(1, 2, 2, 3)
    >>> ResizeImage(size_px=1)(Draws.from_seed(0), image=image)["image"]
    tensor([[[[6., 6., 6.]]]])

    Source: bilinear resizing of Pillow, which torchvision's recipes use.
    """

    moves_pixels = True

    def __init__(self, *, size_px: Count = 224) -> None:
        self.size_px = size_px

    @classmethod
    def size_arguments(cls, stated: Mapping[str, Any], *, height: int, width: int) -> dict[str, Any]:
        if height != width:
            raise ConfigError(f"resize_image makes squares, not {width}x{height}")
        return {"size_px": height}

    def __call__(self, draws: Draws, *, image: Tensor) -> dict[str, Tensor]:
        _assert_rows_of_colours(image)
        return {"image": torch.stack([resize_images(single, size=(self.size_px, self.size_px)) for single in image])}


@registry.transforms.add("flip_image")
class FlipImage(Transform):
    """Random horizontal flip of each image, with its boxes if there are any.

    It may follow `normalize_image`, for `transforms.vote`.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.images import FlipImage
    >>> batch = {"image": torch.tensor([[[[1.0, 1, 1], [2, 2, 2]]]]), "boxes": torch.tensor([[[0.0, 0, 1, 1]]])}
    >>> FlipImage(probability=1.0)(Draws.from_seed(0), **batch)
    {'image': tensor([[[[2., 2., 2.],
              [1., 1., 1.]]]]), 'boxes': tensor([[[1., 0., 2., 1.]]])}

    Source: Krizhevsky et al. 2012, section 4.1.
    """

    moves_pixels = True

    def __init__(self, *, probability: Probability = 0.5) -> None:
        self.probability = probability

    def __call__(
        self, draws: Draws, *, image: Tensor, boxes: Tensor | None = None, to_canvas: Tensor | None = None
    ) -> dict[str, Tensor]:
        across = 3 if is_normalized(image) else 2
        is_flipped = draws.uniform(1, 1, 1) < self.probability
        flipped = {"image": torch.where(is_flipped, image.flip(across), image)}
        width = image.shape[across]
        if boxes is not None:
            left, top, right, bottom = boxes.unbind(-1)
            mirrored = torch.stack([width - right, top, width - left, bottom], dim=-1)
            flipped["boxes"] = torch.where(is_flipped[..., 0], mirrored, boxes)
        if to_canvas is not None:
            mirrored = to_canvas.clone()
            mirrored[:, 0] = -mirrored[:, 0]
            mirrored[:, 0, 2] += width
            flipped["to_canvas"] = torch.where(is_flipped[..., 0], mirrored, to_canvas)
        return flipped


@registry.transforms.add("color_jitter")
class ColorJitter(Transform):
    """Colour jitter: brightness, contrast and saturation of each image changed by random factors in random order.

    A factor is uniform in [1 - amount, 1 + amount), at least 0. It blends the image with black, with the mean of its
    grey, or with its grey; values outside 0..255 are clipped after each. Becomes float32, not rounded in between.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.images import ColorJitter
    >>> jitter = ColorJitter(brightness=0.5, contrast=0.0, saturation=0.0)
    >>> bright = jitter(Draws.from_seed(0), image=torch.full((1, 2, 2, 3), 100.0))["image"]
    >>> bool((bright >= 50).all() and (bright < 150).all())  # times a factor from 0.5 to 1.5
    True

    Source: Howard 2013, section 2.2; the blends as torchvision's ColorJitter makes them, whose recipes take 0.4 each.
    """

    def __init__(
        self,
        *,
        brightness: NonNegativeFloat = 0.4,
        contrast: NonNegativeFloat = 0.4,
        saturation: NonNegativeFloat = 0.4,
    ) -> None:
        self.amounts = (brightness, contrast, saturation)

    def __call__(self, draws: Draws, *, image: Tensor) -> dict[str, Tensor]:
        _assert_rows_of_colours(image)
        low = torch.tensor([max(0.0, 1 - amount) for amount in self.amounts])
        high = torch.tensor([1 + amount for amount in self.amounts])
        factors_B3 = low + draws.uniform(3) * (high - low)
        order_B3 = draws.permutation(3)
        jittered = image.float()
        for turn in range(3):
            which_B1 = order_B3[:, turn : turn + 1]
            factor = factors_B3.gather(1, which_B1)[:, :, None, None]
            jittered = _blend(jittered, which_B1[:, :, None, None], factor)
        return {"image": jittered}


@registry.transforms.add("normalize_image")
class NormalizeImage(Transform):
    """Normalisation of images to float32 (B, 3, H, W).

    Colours over 255, less `mean`, over `std`: by default ImageNet's, in a config whose model has others those.
    It comes last: the others take rows of pixels with colours of 0..255.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.images import NormalizeImage
    >>> normalize = NormalizeImage(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> image = normalize(Draws.from_seed(0), image=torch.tensor([[[[0.0, 127.5, 255.0]]]]))["image"]
    >>> image.shape, image.flatten()
    (torch.Size([1, 3, 1, 1]), tensor([-1.,  0.,  1.]))

    Source: the mean and deviation of ImageNet's training images, as torchvision's weights were trained with.
    """

    def __init__(
        self,
        *,
        mean: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = _IMAGENET_MEAN,
        std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = _IMAGENET_STD,
    ) -> None:
        self.mean = mean
        self.std = std

    def __call__(self, draws: Draws, *, image: Tensor) -> dict[str, Tensor]:
        return self._normalize(**ChannelsFirst()(draws, image=image))

    def split_for_graph(self) -> tuple[ChannelsFirst, Callable[..., dict[str, Tensor]]]:
        """Split into the order of the axes, outside, and the arithmetic, inside: `image` (B, 3, H, W) of 0..255."""
        return ChannelsFirst(), self._normalize

    def _normalize(self, image: Tensor) -> dict[str, Tensor]:
        channels = image.to(torch.promote_types(image.dtype, torch.float32)) / 255
        mean = torch.tensor(self.mean, dtype=torch.float32)[:, None, None]
        std = torch.tensor(self.std, dtype=torch.float32)[:, None, None]
        return {"image": (channels - mean) / std}


class ChannelsFirst(Transform):
    """Permutation of images (B, H, W, 3) to (B, 3, H, W), what `normalize_image` leaves outside an exported file."""

    def __call__(self, draws: Draws, *, image: Tensor) -> dict[str, Tensor]:
        _assert_rows_of_colours(image)
        return {"image": image.permute(0, 3, 1, 2).contiguous()}


def resize_images(image: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Resize images (..., H, W, 3) to another height and width, in their dtype; a copy if they have it already.

    A triangle filter as wide as the larger pixel; uint8 is rounded.
    """
    if tuple(image.shape[-3:-1]) == size:
        return image.clone()
    channels = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2)
    # As pixels lie in files: other orders are a copy, and to a width of 1 torch 2.13 then gives wrong floats, or fails.
    channels = channels.contiguous(memory_format=torch.channels_last)
    resized = functional.interpolate(channels, size=size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).reshape(*image.shape[:-3], *size, 3).contiguous()


def _blend(image: Tensor, which: Tensor, factor: Tensor) -> Tensor:
    """Blend the image by `factor` with black (which = 0), the mean of its grey (1) or its grey (2)."""
    red, green, blue = image.split(1, dim=3)
    grey = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    mean = _sum_of_pixels(grey) / (grey.shape[1] * grey.shape[2])
    other = torch.where(which == 0, torch.zeros_like(grey), torch.where(which == 1, mean, grey))
    return (factor * image + (1 - factor) * other).clamp(0, 255)


def _sum_of_pixels(grey: Tensor) -> Tensor:
    """Sum pixels to (B, 1, 1, 1) in an order that depends on H and W alone: halves are added until one is left."""
    pixels = grey.flatten(1)
    while (length := pixels.shape[1]) > 1:
        half = length // 2
        folded = pixels[:, :half] + pixels[:, half : 2 * half]
        pixels = torch.cat((folded, pixels[:, 2 * half :]), dim=1) if length % 2 else folded
    return pixels[:, :, None, None]


def is_normalized(image: Tensor) -> bool:
    """Return True if images are (B, 3, H, W) as from `normalize_image`; raise ConfigError if they are not images."""
    is_made = image.ndim == 4 and image.shape[1] == 3 and image.is_floating_point()
    if not is_made:
        _assert_rows_of_colours(image)
    return is_made


def _assert_rows_of_colours(image: Tensor) -> None:
    """Raise ConfigError unless images are rows of pixels with three colours: `normalize_image` came before."""
    if image.ndim != 4 or image.shape[3] != 3:
        raise ConfigError(
            f"image: batches of (height, width, 3) are needed, found {tuple(image.shape)}; put normalize_image last"
        )
