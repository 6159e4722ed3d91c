"""Views of a graph that exchange axes, and those that a linear map of channels undoes, as ours on CPUs do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.doctor.evidence.graph import list_reshapes


def _map(values: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(values.permute(0, 3, 1, 2), weight[:, :, None, None]).permute(0, 2, 3, 1)


def _map_channels(values: Tensor, weight: Tensor) -> Tensor:
    """Map the channels of (32, 16, C) as pixels of 16 images."""
    return _map(values.reshape(16, 1, 32, -1), weight).reshape(32, 16, -1)


def _mix_rows(values: Tensor, weight: Tensor) -> Tensor:
    """As above, where each row of the images is averaged with its neighbours before it is undone."""
    images = values.reshape(16, 1, 32, -1)
    return _map(images + images.mean(2, keepdim=True), weight).reshape(32, 16, -1)


def _convolve(values: Tensor, weight: Tensor) -> Tensor:
    images = values.reshape(16, 1, 32, -1).permute(0, 3, 1, 2)
    wide = weight[:, :, None, None].expand(-1, -1, 1, 3)
    return F.conv2d(images, wide, padding=(0, 1)).permute(0, 2, 3, 1).reshape(32, 16, -1)


def _leave(values: Tensor, weight: Tensor) -> Tensor:
    return _map(values.reshape(16, 1, 32, -1), weight)


@pytest.mark.parametrize("run", [_mix_rows, _convolve, _leave])
def test_a_view_that_mixes_rows_is_listed(run: Callable[[Tensor, Tensor], Tensor]) -> None:
    values, weight = torch.randn(32, 16, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    assert list_reshapes((run(values * 2, weight) ** 2).sum())


def test_a_linear_map_of_channels_mixes_nothing() -> None:
    values, weight = torch.randn(32, 16, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    torch.testing.assert_close(_map_channels(values, weight), values @ weight.T)
    assert list_reshapes((_map_channels(values * 2, weight) ** 2).sum()) == []
