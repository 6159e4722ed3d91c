"""Programs whose targets do not move with the images and clouds that they mirror or pad."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.doctor.rows import Case
from tests.doctor.rows.data import Table
from tests.runtime import mirrored_loaders


def check_regression(check: Any, loader: Any, num_inputs: int, num_targets: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, 16), nn.ReLU(), nn.Linear(16, num_targets))
    check(network, nn.SmoothL1Loss(), loader)


def eyes_not_exchanged(has_bug: bool, watch: Any, check: Any) -> None:
    check_regression(check, mirrored_loaders.face(0, "torch", bug=has_bug), 3 * 20 * 20, 8)


def heading_not_mirrored(has_bug: bool, watch: Any, check: Any) -> None:
    loader = mirrored_loaders.heading(0, "own numpy", bug=has_bug)
    loader.dataset.samples = [(cloud.float(), target.float()) for cloud, target in loader.dataset.samples]  # type: ignore[attr-defined]
    check_regression(check, loader, 3 * 64, 3)


def boxes_not_padded(has_bug: bool, watch: Any, check: Any) -> None:
    """Wide images get a band above and below: their boxes are to be moved by its height."""
    generator = torch.Generator().manual_seed(0)
    scenes = torch.rand(40, 3, 12, 32, generator=generator) * 0.3 + 0.5
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([20.0, 5.0])
    boxes = torch.cat([corners, corners + 2 + 4 * torch.rand(40, 2, generator=generator)], dim=1)
    for scene, (left, top, right, bottom) in zip(scenes, boxes.long().tolist(), strict=True):
        scene[:, top:bottom, left:right] += 1

    def read(scene: Tensor, box: Tensor) -> Any:
        image = nn.functional.pad(scene, [0, 0, 10, 10])
        return image, box if has_bug else box + torch.tensor([0.0, 10, 0, 10])

    check_regression(check, DataLoader(Table(scenes, boxes, read), 8, shuffle=True), 3 * 32 * 32, 4)


CASES = [
    Case("eyes that are not exchanged", eyes_not_exchanged, "data.augment_target_mismatch"),
    Case("a heading that is not mirrored", heading_not_mirrored, "data.augment_target_mismatch"),
    Case("boxes that are not padded", boxes_not_padded, "data.augment_target_mismatch"),
]
