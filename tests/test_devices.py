"""Functions of tensors on any device: the numbers of the host, there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from sightline.ops import operator
from sightline.ops.boxes.suppression import batched_nms, soft_nms
from sightline.ops.points.ball_query import points_in_balls
from sightline.ops.views.depth_crops import CropPlacement, crop_depth
from sightline.ops.voxels.cubes import CubePlacement, occupancy
from sightline.ops.voxels.heat_maps import gaussian_heatmaps
from tests.devices import OTHER, other_device

CAMERA = torch.tensor([[50.0, 50, 8, 6]])
JOINTS = torch.tensor([[[1.2, 3.4, 2.5], [0.3, -1.0, 4.0]]])
DEPTH = torch.linspace(380, 420, 16 * 12).view(1, 12, 16)
CENTRE = torch.tensor([[3.0, -2.0, 400.0]])
BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 12], [20, 20, 24, 30], [0, 0, 11, 10]])
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])
LABELS = torch.tensor([0, 0, 1, 1])
SIZES = torch.tensor([[10.0, 20], [12, 20], [30, 30], [33, 30], [5, 9], [6, 8]])
CLOUD = torch.linspace(-1, 1, 60).view(1, 20, 3)


def crop(depth: Tensor, reference: Tensor, camera: Tensor) -> Tensor:
    side, angle = torch.full_like(reference[:, 0], 60.0), torch.full_like(reference[:, 0], 0.3)
    return crop_depth(depth, CropPlacement(reference.double(), camera.double(), side.double(), angle.double()), size=8)


def occupy(depth: Tensor, camera: Tensor, reference: Tensor) -> Tensor:
    return occupancy(depth, camera, CubePlacement.identity(reference, cube_mm=60, size=8))


def weaken(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    return soft_nms(boxes, scores, labels).scores


CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "batched_nms": (partial(batched_nms, iou_threshold=0.5), (BOXES, SCORES, LABELS)),
    "crop_depth": (crop, (DEPTH, CENTRE, CAMERA)),
    "gaussian_heatmaps": (partial(gaussian_heatmaps, size=6), (JOINTS,)),
    "occupancy": (occupy, (DEPTH, CAMERA, CENTRE)),
    "soft_nms": (weaken, (BOXES, SCORES, LABELS)),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_numbers_on_another_device_are_those_of_the_host(name: str) -> None:
    function, inputs = CALLS[name]
    expected = function(*inputs)
    with other_device():
        found = function(*(tensor.to(OTHER) for tensor in inputs))
        assert found.device == OTHER
        torch.testing.assert_close(found.cpu(), expected)


def test_a_recorded_graph_of_balls_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    query = partial(points_in_balls, centres=CLOUD[:, :4], radius=0.3, num_neighbours=6)
    expected = query(CLOUD)
    monkeypatch.setattr(operator, "is_recording", lambda: True)
    with other_device():
        found = query(CLOUD.to(OTHER), centres=CLOUD[:, :4].to(OTHER))
        assert torch.equal(found.cpu(), expected)


def test_devices_do_not_mix() -> None:
    with other_device():
        values = torch.arange(3.0, device=OTHER)
        assert (values + 1).tolist() == [1, 2, 3]
        assert values[[2, 0]].cpu().tolist() == [2, 0]
        with pytest.raises(RuntimeError, match="add: found tensors of the host"):
            values + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator of the host"):
            values.multinomial(1, generator=torch.Generator())
        with pytest.raises(TypeError, match="no array"):
            values.numpy()
