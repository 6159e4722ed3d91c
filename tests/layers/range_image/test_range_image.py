"""Layers of range images: columns that are a full turn, by NumPy, and the CRF against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.areas.scans.models.squeezeseg import Compat, RangeImageCRF
from sightline.layers.images import ConvBlock
from sightline.layers.range_image import CircularPad, MeanPool2d, UpsampleColumns, build_pool
from tests.cases import run_each

IMAGE = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("columns", [1, 6, 7, 15])
def test_columns_continue_on_the_other_side(columns: int) -> None:
    expected = np.pad(IMAGE.numpy(), [(0, 0)] * 3 + [(columns, columns)], mode="wrap")
    np.testing.assert_array_equal(CircularPad(columns)(IMAGE).numpy(), expected)


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


@pytest.mark.parametrize("padding", [0, 1, (1, 0)])
def test_on_a_gpu_the_border_of_a_mean_is_added_beforehand(
    padding: int | tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own gradient is wrong there if channels come last; `tests/test_gpu.py` compares it on a GPU."""
    image = IMAGE.clone(memory_format=torch.channels_last).requires_grad_()
    expected = nn.AvgPool2d(3, 2, padding)(image)
    layer = MeanPool2d(3, 2, padding)
    assert torch.equal(layer(image), expected)
    monkeypatch.setattr(Tensor, "is_cuda", True, raising=False)
    pads = []
    pool = nn.functional.avg_pool2d
    monkeypatch.setattr(nn.functional, "avg_pool2d", lambda *given: pads.append(given[3:]) or pool(*given))
    pooled = layer(image)
    assert torch.equal(pooled, expected)
    assert pads == [()]
    ways = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((result * ways).sum(), image)[0] for result in (pooled, expected))
    torch.testing.assert_close(ours, theirs)


def test_doubled_columns_turn_with_the_image() -> None:
    layer, plain = (UpsampleColumns(in_channels=3, out_channels=5, circular=circular) for circular in (True, False))
    plain.load_state_dict(layer.state_dict())
    found = layer(IMAGE)
    assert found.shape == (2, 5, 4, 12)
    torch.testing.assert_close(layer(IMAGE.roll(1, -1)), found.roll(2, -1))
    torch.testing.assert_close(plain(IMAGE)[..., 2:-2], found[..., 2:-2])


# --- The CRF over range images against its definition pixel by pixel, and what users expect of it ---


def scene(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 6, generator=draw, dtype=torch.float64)
    xyz = torch.randn(2, 3, 4, 6, generator=draw, dtype=torch.float64) / 2
    return logits, xyz, torch.rand(2, 4, 6, generator=draw) > 0.2


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def by_definition(layer: RangeImageCRF, logits: Tensor, xyz: Tensor, mask: Tensor, *, wraps: bool) -> np.ndarray:
    """Q = softmax(U - mu sum_j k(i, j) Q_j), three times, over the fourteen other pixels of the window."""
    unary, place, there = logits.numpy(), xyz.numpy(), mask.numpy()
    weight, bias = layer.compat.weight.detach().numpy(), layer.compat.bias.detach().numpy()
    values, (height, width) = unary, unary.shape[2:]
    for _ in range(3):
        probabilities, message = softmax(values), np.zeros_like(unary)
        for n, row, column, up, side in np.ndindex(len(unary), height, width, 3, 5):
            r, c = row + up - 1, column + side - 2
            c = c % width if wraps else c
            if (up, side) != (1, 2) and 0 <= r < height and 0 <= c < width and there[n, r, c]:
                square = ((place[n, :, row, column] - place[n, :, r, c]) ** 2).sum()
                message[n, :, row, column] += math.exp(-square / (2 * 0.7**2)) * probabilities[n, :, r, c]
        values = unary - np.einsum("ck,nkhw->nchw", weight, message) - bias[:, None, None]
    return values


@pytest.mark.parametrize("circular", [False, True])
def test_it_is_what_its_definition_says(circular: bool) -> None:
    layer = RangeImageCRF(num_classes=3, circular=circular).double()
    torch.nn.init.normal_(layer.compat.bias)
    found, expected = layer(*scene()), by_definition(layer, *scene(), wraps=circular)
    torch.testing.assert_close(found.detach(), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def lonely(compat: Compat, distance: float) -> Tensor:
    """The probability of class 0 in the middle, which slightly prefers it; all around it is class 1, surely."""
    logits = torch.tensor([0.0, 8.0])[:, None, None].repeat(1, 3, 5)
    logits[:, 1, 2] = torch.tensor([0.3, 0.0])
    xyz = torch.zeros(1, 3, 3, 5)
    xyz[0, 0, 1, 2] = distance
    layer = RangeImageCRF(num_classes=2, compat=compat)
    return layer(logits[None], xyz, torch.ones(1, 3, 5, dtype=torch.bool)).softmax(dim=1)[0, :, 1, 2]


def test_a_lonely_label_takes_that_of_its_neighbours_unless_they_are_far() -> None:
    near, far = lonely("mean_field", 0.0), lonely("mean_field", 100.0)
    alone = torch.tensor([0.3, 0.0]).softmax(0)
    assert near[0] < 0.5 < far[0]
    torch.testing.assert_close(far, alone)
    published = lonely("as_published", 0.0)
    assert published[0] > alone[0], "the published form prefers the classes that the neighbours are not of"


def test_confidence_is_kept_where_the_published_form_bounds_it() -> None:
    """Probabilities as logits: of four classes at most e / (e + 3) = 0.475."""
    logits = torch.zeros(1, 4, 1, 1)
    logits[0, 2] = 9.0
    nobody = (torch.zeros(1, 3, 1, 1), torch.zeros(1, 1, 1, dtype=torch.bool))
    ours = RangeImageCRF(num_classes=4)(logits, *nobody).softmax(dim=1)
    theirs = RangeImageCRF(num_classes=4, compat="as_published")(logits, *nobody).softmax(dim=1)
    assert ours.max() > 0.999
    assert theirs.max() <= math.e / (math.e + 3)


def test_empty_pixels_count_nothing() -> None:
    logits, xyz, mask = scene()
    other = torch.where(mask[:, None], logits, torch.randn_like(logits))
    layer = RangeImageCRF(num_classes=3).double()
    kept = mask[:, None].expand_as(logits)
    torch.testing.assert_close(layer(logits, xyz, mask)[kept], layer(other, xyz, mask)[kept], rtol=0, atol=0)


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


def test_torch_func_passes_through_padding() -> None:
    image = torch.randn(1, 2, 3, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    def total(values: Tensor) -> Tensor:
        return (CircularPad(2)(torch.cat([values, 2 * values], dim=1)) ** 2).sum()

    leaf = image.clone().requires_grad_()
    total(leaf).backward()
    torch.testing.assert_close(torch.func.grad(total)(image), leaf.grad)
