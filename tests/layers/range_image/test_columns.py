"""Layers whose columns are a full turn: padding by NumPy, doubled columns, pools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sightline.layers.images import ConvBlock, join_channels
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


@run_each(
    "columns, dtype, layout",
    [
        (2, torch.float32, torch.contiguous_format),
        (2, torch.float32, torch.channels_last),
        (6, torch.float64, torch.contiguous_format),
        (5, torch.bfloat16, torch.channels_last),
    ],
)
def test_gradients_have_the_bits_of_concatenated_slices(
    columns: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    image = IMAGE.to(dtype).contiguous(memory_format=layout).requires_grad_()
    joined = torch.cat([image[..., 6 - columns :], image, image[..., :columns]], dim=-1)
    gradient = torch.randn(joined.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradient = gradient.contiguous(memory_format=layout)
    plain, ours = (torch.autograd.grad(form, image, gradient)[0] for form in (joined, CircularPad(columns)(image)))
    assert torch.equal(plain, ours)
    assert ours.is_contiguous(memory_format=layout)
    small = IMAGE[:1, :2, :1].double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda values: CircularPad(2)(values) ** 2, small)


@run_each("layout, own", [(torch.contiguous_format, False), (torch.channels_last, True)])
def test_joined_channels_have_the_bits_of_a_concatenation(layout: torch.memory_format, own: bool) -> None:
    """Gradients of parts in channels_last are contiguous, which those of a concatenation are not."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, size, 3, 4, generator=generator, dtype=torch.float64) for size in (2, 3)]
    parts = [part.contiguous(memory_format=layout).requires_grad_() for part in parts]
    gradient = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    plain, ours = torch.cat(parts, dim=1), join_channels(parts)
    assert torch.equal(plain, ours)
    expected, found = (torch.autograd.grad(form, parts, gradient) for form in (plain, ours))
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    assert all(part.is_contiguous(memory_format=layout) for part in found) == own
    assert torch.autograd.gradgradcheck(lambda *values: join_channels(values) ** 2, parts)
