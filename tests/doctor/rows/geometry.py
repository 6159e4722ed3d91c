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


def noisy_scans_upside_down(has_bug: bool, watch: Any, check: Any) -> None:
    """Scans that get noise after they are turned upside down, and depths that stay: no two reads have equal bits."""
    torch.manual_seed(0)
    scans = torch.randn(24, 2, 9, 9)

    def read(scan: Tensor, depth: Tensor) -> Any:
        if torch.rand(()) < 0.5:
            scan, depth = scan.flip(-2), depth if has_bug else depth.flip(-2)
        return scan + 0.01 * torch.randn(2, 9, 9), depth

    data = Table(scans, scans[:, :1].exp(), read)
    check(nn.Conv2d(2, 1, 3, padding=1), nn.L1Loss(), DataLoader(data, 8, shuffle=True))


def sizes_upside_down(has_bug: bool, watch: Any, check: Any) -> None:
    """Boxes (left, top, width, height) of images turned upside down: taken for corners, or for what they are."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, 1, 20, 20, generator=generator) * 0.3
    boxes = torch.randint(2, 10, (60, 4), generator=generator)
    for image, (left, top, width, height) in zip(images, boxes.tolist(), strict=True):
        image[0, top : top + height, left : left + width] += 0.6

    def read(image: Tensor, box: Tensor) -> Any:
        if torch.rand(()) < 0.5:
            left, top, width, height = box
            image = image.flip(-2)
            other = (left, 20 - height, width, 20 - top) if has_bug else (left, 20 - top - height, width, height)
            box = torch.stack([torch.as_tensor(each) for each in other])
        return image, box.float() / 20

    check_regression(check, DataLoader(Table(images, boxes, read), 8, shuffle=True), 20 * 20, 4)


CASES = [
    Case("boxes of a left, a top and sizes that are mirrored as corners", sizes_upside_down, "assign.box_format"),
    Case("depths of noisy scans that are not mirrored", noisy_scans_upside_down, "data.augment_target_mismatch"),
    Case("eyes that are not exchanged", eyes_not_exchanged, "data.augment_target_mismatch"),
    Case("a heading that is not mirrored", heading_not_mirrored, "data.augment_target_mismatch"),
    Case("boxes that are not padded", boxes_not_padded, "data.augment_target_mismatch"),
]
