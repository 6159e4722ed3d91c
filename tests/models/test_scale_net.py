"""ScaleNet against the published size and layers, the crops it makes itself, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.models.v2v import ScaleNet


def test_branches_have_the_published_widths() -> None:
    model = ScaleNet().eval()
    widths = []
    for branch in model.branches:
        branch.register_forward_hook(lambda module, given, value: widths.append((given[0].shape[-1], value.shape[1])))
    model(crop=torch.ones(1, 1, 128, 128))
    assert widths == [(128, 968), (64, 968), (32, 512)]


def convolved(picture: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """A valid convolution by windows: channels first, no library's convolution."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    windows = np.lib.stride_tricks.sliding_window_view(picture, weight.shape[2:], axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows, weight) + bias[:, None, None]


def pooled(picture: np.ndarray, size: int) -> np.ndarray:
    height, width = (extent // size for extent in picture.shape[1:])
    cut = picture[:, : height * size, : width * size]
    return cut.reshape(len(picture), height, size, width, size).max(axis=(2, 4))


def test_the_answer_is_that_of_a_numpy_reading() -> None:
    """Crops of the middle, not resized; convolution, pooling, rectification, thrice; two wide layers; a linear one."""
    model = ScaleNet().double().eval()
    crop = torch.rand(1, 1, 128, 128, dtype=torch.float64) * 2 - 1
    seen = []
    for branch, margin, pools in zip(model.branches, (0, 32, 48), ((4, 2, 1), (2, 2, 1), (2, 1, 1)), strict=True):
        picture = crop[0].numpy()[:, margin : 128 - margin, margin : 128 - margin]
        for layer, size in zip([each for each in branch if isinstance(each, nn.Conv2d)], pools, strict=True):
            picture = np.maximum(pooled(convolved(picture, layer), size), 0)
        seen.append(picture.ravel())
    values = np.concatenate(seen)
    layers = [layer for layer in model.head if isinstance(layer, nn.Linear)]
    for place, layer in enumerate(layers):
        values = layer.weight.detach().numpy() @ values + layer.bias.detach().numpy()
        values = np.maximum(values, 0) if place < 2 else values
    found: Tensor = model(crop=crop)["offset"]
    np.testing.assert_allclose(found[0].detach().numpy(), values, rtol=0, atol=1e-12)


def test_values_are_dropped_while_training_alone() -> None:
    model, crop = ScaleNet(dropout=0.5), torch.rand(1, 1, 128, 128)
    assert not torch.equal(model(crop=crop)["offset"], model(crop=crop)["offset"])
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 2


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop: found the shape \(2, 1, 96, 96\), scale_net takes \(B, 1, 128, 128\)"):
        ScaleNet()(crop=torch.zeros(2, 1, 96, 96))
