"""Boxes of padded images: on the bands, or moved with what is between them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.workbench.watch.plain.padding import find_content, judge_padding

SIDE = 48


def draw(moves: bool, *, value: float = 0.5, padded: bool = True) -> tuple[Tensor, Tensor]:
    """Draw an image (3, SIDE, SIDE) of another shape between bands, and the corners of two boxes in pixels."""
    height, width = [(SIDE, SIDE // 2), (SIDE // 2, SIDE), (SIDE, SIDE)][int(torch.randint(3, ()))]
    if not padded:
        height = width = SIDE
    low = torch.rand(2, 2) * torch.tensor([width - 16, height - 16])
    boxes = torch.cat([low, low + 8 + 8 * torch.rand(2, 2)], dim=1)
    image = torch.rand(3, height, width)
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    image = F.pad(image, (left, SIDE - width - left, top, SIDE - height - top), value=value)
    return image, boxes + torch.tensor([left, top, left, top]) * moves


def to_centres(boxes: Tensor) -> Tensor:
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "corners": lambda boxes: boxes,
    "shares": lambda boxes: boxes / SIDE,
    "centres as shares": lambda boxes: to_centres(boxes) / SIDE,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
def test_boxes_on_bands_are_found(form: str, value: float, seed: int) -> None:
    torch.manual_seed(seed)
    for moves in (True, False):
        samples = [draw(moves, value=value) for _ in range(40)]
        found = list(judge_padding([(image, FORMS[form](boxes)) for image, boxes in samples]))
        assert bool(found) != moves
        assert all("not moved with their padded images" in fault.summary for _, fault in found)


def test_images_without_bands_say_nothing() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        assert not list(judge_padding([draw(True, padded=False) for _ in range(40)]))
        night = [(image * 0, boxes) for image, boxes in (draw(True) for _ in range(40))]  # nothing but one colour
        assert not list(judge_padding(night))


def test_the_content_is_between_the_bands() -> None:
    image = torch.full((3, 20, 30), 0.5)
    image[:, 4:18, 3:25] = torch.rand(3, 14, 22)
    assert find_content(image) == ((3, 4, 25, 18), 30, 20)
    assert find_content(torch.rand(3, 20, 30)) == ((0, 0, 30, 20), 30, 20)
