"""Colours of clouds: their scale, and as augmentation contrast, shift, noise, hue and saturation.

Pure and batched: `colours` (B, N, 3), red, green and blue from 0 to 1, come in and go out. Each cloud draws from its
own stream. Source: Choy et al. 2019 (Minkowski networks), as the S3DIS training of
POSTECH-CVLab's Point Transformer, after Zhao et al. 2021, uses them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, Probability
from sightline.contract.draws import Draws
from sightline.contract.transform import Transform


@registry.transforms.add("center_colors")
class CenterColors(Transform):
    """Colours from -1 to 1 instead of 0 to 1, as networks of Pointcept before 1.6 were trained on; the last of colours.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.colours import CenterColors
    >>> CenterColors()(Draws.from_seed(0), colours=torch.tensor([[[0.0, 0.5, 1.0]]]))["colours"]
    tensor([[[-1., 0., 1.]]])

    Source: Pointcept 1.5.1, NormalizeColor.
    """

    def __call__(self, draws: Draws, *, colours: Tensor) -> dict[str, Tensor]:
        return {"colours": 2 * colours - 1}


@registry.transforms.add("chromatic_auto_contrast")
class ChromaticAutoContrast(Transform):
    """Auto-contrast with a probability: every channel of a cloud is stretched to 0..1 and blended with the original.

    The share of the stretched one is uniform in [0, 1).

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.colours import ChromaticAutoContrast
    >>> colours = torch.tensor([[[0.25, 0.0, 0.5], [0.75, 1.0, 0.5]]])  # red has little contrast, green all
    >>> changed = ChromaticAutoContrast(probability=1.0)(Draws.from_seed(0), colours=colours)["colours"]
    >>> (changed[0, 1] - changed[0, 0]) > (colours[0, 1] - colours[0, 0])
    tensor([ True, False, False])

    Source: Choy et al. 2019, training code (0.2).
    """

    def __init__(self, *, probability: Probability = 0.2) -> None:
        self.probability = probability

    def __call__(self, draws: Draws, *, colours: Tensor) -> dict[str, Tensor]:
        is_changed, blend = _gate(draws, self.probability), draws.uniform(1, 1).to(colours.dtype)
        return {"colours": torch.where(is_changed, stretch_contrast(colours, blend), colours)}


@registry.transforms.add("chromatic_translation")
class ChromaticTranslation(Transform):
    """Colour shift of a cloud with a probability, each channel uniformly within +-`max_shift`.

    Values outside 0..1 are clipped.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.colours import ChromaticTranslation
    >>> colours = torch.full((1, 2, 3), 0.5)
    >>> shift = ChromaticTranslation(probability=1.0)(Draws.from_seed(0), colours=colours)["colours"] - colours
    >>> shift.abs().max() <= 0.05, (shift[0, 0] == shift[0, 1]).all()  # one shift for all points
    (tensor(True), tensor(True))

    Source: Choy et al. 2019, training code (0.95, a shift of 0.05 of the range).
    """

    def __init__(self, *, max_shift: Probability = 0.05, probability: Probability = 0.95) -> None:
        self.max_shift = max_shift
        self.probability = probability

    def __call__(self, draws: Draws, *, colours: Tensor) -> dict[str, Tensor]:
        is_changed = _gate(draws, self.probability)
        shift_B13 = draws.uniform(1, 3, low=-self.max_shift, high=self.max_shift).to(colours.dtype)
        return {"colours": torch.where(is_changed, (colours + shift_B13).clamp(0, 1), colours)}


@registry.transforms.add("chromatic_jitter")
class ChromaticJitter(Transform):
    """Colour jitter with a probability: independent normal noise on every channel of every point, clipped to 0..1.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.colours import ChromaticJitter
    >>> jitter, colours = ChromaticJitter(std=0.1, probability=1.0), torch.tensor([[[0.0, 0.5, 1.0]]])
    >>> noisy = jitter(Draws.from_seed(0), colours=colours)["colours"]
    >>> (noisy >= 0) & (noisy <= 1), (noisy != colours).any()
    (tensor([[[True, True, True]]]), tensor(True))

    Source: Choy et al. 2019, training code (0.95; 0.005 of the range in the Point Transformer's).
    """

    def __init__(self, *, std: NonNegativeFloat = 0.005, probability: Probability = 0.95) -> None:
        self.std = std
        self.probability = probability

    def __call__(self, draws: Draws, *, colours: Tensor) -> dict[str, Tensor]:
        is_changed = _gate(draws, self.probability)
        noise_BN3 = draws.normal(*colours.shape[1:]).to(colours.dtype) * self.std
        return {"colours": torch.where(is_changed, (colours + noise_BN3).clamp(0, 1), colours)}


@registry.transforms.add("hue_saturation")
class HueSaturation(Transform):
    """Random hue and saturation of a cloud, within `max_hue` of the circle and 1 +- `max_saturation`.

    Both uniform. Colours stay exact; the reference rounds them down to 8 bits.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.colours import HueSaturation
    >>> colours = torch.tensor([[[0.8, 0.2, 0.2], [0.3, 0.3, 0.3]]])  # a red point and a grey one
    >>> changed = HueSaturation()(Draws.from_seed(0), colours=colours)["colours"]
    >>> changed.amax(dim=2), changed[0, 1]  # the largest channel stays, and grey has no hue
    (tensor([[0.8000, 0.3000]]), tensor([0.3000, 0.3000, 0.3000]))

    Source: Choy et al. 2019, training code (0.5 and 0.2).
    """

    def __init__(self, *, max_hue: Probability = 0.5, max_saturation: Probability = 0.2) -> None:
        self.max_hue = max_hue
        self.max_saturation = max_saturation

    def __call__(self, draws: Draws, *, colours: Tensor) -> dict[str, Tensor]:
        turn = draws.uniform(1, low=-self.max_hue, high=self.max_hue).to(colours.dtype)
        ratio = draws.uniform(1, low=1 - self.max_saturation, high=1 + self.max_saturation).to(colours.dtype)
        return {"colours": turn_hue(colours, turn, ratio)}


def stretch_contrast(colours: Tensor, blend: Tensor) -> Tensor:
    """Blend `colours` (B, N, 3) by `blend` (B, 1, 1) with themselves, each channel stretched to 0..1.

    A constant channel cannot be stretched, and is unchanged.
    """
    low, high = colours.amin(dim=1, keepdim=True), colours.amax(dim=1, keepdim=True)
    is_flat = high == low
    stretched = (colours - low) / torch.where(is_flat, torch.ones_like(high), high - low)
    return torch.where(is_flat, colours, (1 - blend) * colours + blend * stretched)


def turn_hue(colours: Tensor, turn: Tensor, ratio: Tensor) -> Tensor:
    """Shift the hue of `colours` (B, N, 3) by `turn` (B, 1) of the circle, and scale saturation by `ratio` (B, 1)."""
    hue, saturation, value = hsv_from_rgb(colours).unbind(-1)
    return rgb_from_hsv(torch.stack((torch.remainder(hue + turn, 1), (saturation * ratio).clamp(0, 1), value), -1))


def hsv_from_rgb(rgb: Tensor) -> Tensor:
    """Convert RGB (..., 3) to hue (a share of the circle from red), saturation and value (..., 3), 0 to 1 each.

    Source: Smith 1978.
    """
    red, green, blue = rgb.unbind(-1)
    value, low = rgb.amax(dim=-1), rgb.amin(dim=-1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = torch.where(chroma > 0, torch.remainder(sector / 6, 1), torch.zeros_like(chroma))
    saturation = torch.where(value > 0, chroma / torch.where(value > 0, value, torch.ones_like(value)), value)
    return torch.stack((hue, saturation, value), -1)


def rgb_from_hsv(hsv: Tensor) -> Tensor:
    """Convert HSV (..., 3) to RGB (..., 3), the inverse of `hsv_from_rgb`.

    Source: Smith 1978, in the form without cases.
    A channel falls from the value by value * saturation * w, w a trapezoid of the hue with a period of the circle.
    """
    hue, saturation, value = hsv.unbind(-1)
    channels = []
    for shift in (5.0, 3.0, 1.0):
        sector = torch.remainder(shift + 6 * hue, 6)
        weight = torch.minimum(sector, 4 - sector).clamp(0, 1)
        channels.append(value - value * saturation * weight)
    return torch.stack(channels, -1)


def _gate(draws: Draws, probability: float) -> Tensor:
    """Draw a mask (B, 1, 1) of the clouds to change."""
    return draws.uniform(1, 1) < probability
