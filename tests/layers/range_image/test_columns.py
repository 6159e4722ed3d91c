"""Layers whose columns are a full turn: padding by NumPy, doubled columns, pools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sightline.layers.images import ConvBlock
from sightline.layers.range_image import CircularPad, UpsampleColumns, build_pool, column_padding
from tests.cases import run_each

IMAGE = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("columns", [1, 6, 7, 15])
def test_columns_continue_on_the_other_side(columns: int) -> None:
    expected = np.pad(IMAGE.numpy(), [(0, 0)] * 3 + [(columns, columns)], mode="wrap")
    np.testing.assert_array_equal(CircularPad(columns)(IMAGE).numpy(), expected)


def test_nothing_stands_in_front_of_what_reaches_nowhere() -> None:
    assert column_padding(0, circular=True) == (None, (0, 0))
    assert column_padding(2, circular=False) == (None, (2, 2))


@run_each("size, dilation", [(1, 1), (2, 2), (3, 1), (3, 2), (3, 12), (7, 1)])
def test_a_convolution_is_that_of_the_padded_image(size: int, dilation: int) -> None:
    """Columns padded by NumPy, rows by zeros."""
    block = ConvBlock(in_channels=3, out_channels=5, kernel_size=size, dilation=dilation, circular=True)
    reach = dilation * (size - 1) // 2
    wide = torch.from_numpy(np.pad(IMAGE.numpy(), [(0, 0)] * 3 + [(reach, reach)], mode="wrap"))
    expected = nn.functional.conv2d(wide, block.conv.weight, block.conv.bias, padding=(reach, 0), dilation=dilation)
    torch.testing.assert_close(block(IMAGE), expected)
    assert set(block.state_dict()) == {"conv.weight", "conv.bias"}, "the names do not depend on the padding"


def test_a_kernel_without_a_middle_is_refused() -> None:
    with pytest.raises(AssertionError, match="a kernel of 2 has no middle"):
        ConvBlock(in_channels=1, out_channels=1, kernel_size=2)


@pytest.mark.parametrize("kind", [nn.MaxPool2d, nn.AvgPool2d])
def test_pools_turn_with_the_image(kind: type[nn.MaxPool2d | nn.AvgPool2d]) -> None:
    pool = build_pool(kind, size=3, stride=(1, 2), circular=True)
    torch.testing.assert_close(pool(IMAGE.roll(2, -1)), pool(IMAGE).roll(1, -1))
    plain = build_pool(kind, size=3, stride=(1, 2), circular=False)
    torch.testing.assert_close(plain(IMAGE)[..., 1:], pool(IMAGE)[..., 1:], msg="only the border differs")


def test_doubled_columns_turn_with_the_image() -> None:
    layer, plain = (UpsampleColumns(in_channels=3, out_channels=5, circular=circular) for circular in (True, False))
    plain.load_state_dict(layer.state_dict())
    found = layer(IMAGE)
    assert found.shape == (2, 5, 4, 12)
    torch.testing.assert_close(layer(IMAGE.roll(1, -1)), found.roll(2, -1))
    torch.testing.assert_close(plain(IMAGE)[..., 2:-2], found[..., 2:-2])
