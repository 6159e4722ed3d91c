"""Modules whose loss looks at other places of the outputs than those of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, WIDTH, STRIDE, NUM = 24, 32, 4, 16
Case = Callable[[bool], tuple[nn.Module, Any, Any]]


# --- outputs and targets of images -----------------------------------------------------------------------------------


def draw_objects(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw images (B, 1, H, W) of one bright rectangle each, and their boxes."""
    size = torch.randint(7, 12, (NUM, 2))
    low = (torch.rand(NUM, 2) * (torch.tensor([width, height]) - size)).long()
    images = 0.2 * torch.randn(NUM, 1, height, width)
    for image, (left, top), (w, h) in zip(images, low.tolist(), size.tolist(), strict=True):
        image[:, top : top + h, left : left + w] += 1
    return images, torch.cat([low, low + size], dim=1).float()


class Dense(nn.Module):
    """Convolutions with a stride of 4; `order` brings their maps into the form of the outputs."""

    def __init__(self, channels: int, order: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.order = order
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, channels, 1))
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.order(self.layers(image))


def dense_boxes(bug: bool, *, by_columns: bool = False) -> tuple[nn.Module, Any, Any]:
    """Boxes from each place (FCOS); outputs and places by rows, or both by columns."""
    images, boxes = draw_objects(SIDE, WIDTH)
    x, y = (torch.arange(size // STRIDE) * STRIDE + STRIDE // 2 for size in (WIDTH, SIDE))
    if bug != by_columns:
        columns, rows = torch.meshgrid(x, y, indexing="ij")
    else:
        rows, columns = torch.meshgrid(y, x, indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=1).float()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        sides = torch.cat([places - target[:, None, :2], target[:, None, 2:] - places], dim=-1)
        is_inside = sides.amin(dim=-1) > 0
        score = F.binary_cross_entropy_with_logits(output[..., 4], is_inside.float())
        return score + F.smooth_l1_loss(output[..., :4][is_inside], sides[is_inside] / STRIDE)

    def order(maps: Tensor) -> Tensor:
        return (maps.transpose(2, 3) if by_columns else maps).flatten(2).transpose(1, 2)

    return Dense(5, order), loss, (images, boxes)


def masks_of_another_origin(bug: bool) -> tuple[nn.Module, Any, Any]:
    images, boxes = draw_objects(SIDE, WIDTH)
    grid_y, grid_x = torch.arange(SIDE)[:, None], torch.arange(WIDTH)
    left, top, right, bottom = boxes.T[:, :, None, None]
    masks = ((grid_x >= left) & (grid_x < right) & (grid_y >= top) & (grid_y < bottom)).long()
    layers = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    return layers, nn.CrossEntropyLoss(), (images, masks.flip(1) if bug else masks)


def peaks_of_exchanged_axes(bug: bool) -> tuple[nn.Module, Any, Any]:
    images, boxes = draw_objects(SIDE, SIDE)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE
    x, y = (centres.flip(1) if bug else centres).T[:, :, None, None]
    grid = torch.arange(SIDE // STRIDE)
    peaks = (-((grid - x).square() + (grid[:, None] - y).square()) / 2).exp()
    return Dense(1, lambda maps: maps.squeeze(1)), nn.MSELoss(), (images, peaks)


ORDERS: dict[str, Case] = {
    "places of boxes": dense_boxes,
    "another origin": masks_of_another_origin,
    "x for y": peaks_of_exchanged_axes,
}
