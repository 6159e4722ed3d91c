"""Multiply-accumulates against hand-worked numbers and against torch's own counter of operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import sightline
from sightline.instrument import record
from sightline.workbench.describe.trace import count_macs
from tests.cases import run_each


def counted(work: Callable[[], Any]) -> int:
    macs: list[int] = []
    with record({}, operators=lambda _, op, args, kwargs, result: macs.append(count_macs(op, args, result))):
        work()
    return sum(macs)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


@run_each(
    "work, by_hand",
    [
        (lambda: ones(2, 3) @ ones(3, 5), 2 * 3 * 5),
        (lambda: ones(2, 3) @ ones(3), 2 * 3),
        (lambda: torch.dot(ones(7), ones(7)), 7),
        (lambda: torch.addmm(ones(5), ones(2, 3), ones(3, 5)), 2 * 3 * 5),
        (lambda: torch.bmm(ones(4, 2, 3), ones(4, 3, 5)), 4 * 2 * 3 * 5),
        (lambda: torch.baddbmm(ones(4, 2, 5), ones(4, 2, 3), ones(4, 3, 5)), 4 * 2 * 3 * 5),
        (lambda: torch.einsum("bij,bjk->bik", ones(4, 2, 3), ones(4, 3, 5)), 4 * 2 * 3 * 5),
        (lambda: F.linear(ones(4, 6, 3), ones(5, 3), ones(5)), 4 * 6 * 3 * 5),
        # 8 filters of 2 x 3 x 3 weights (4 channels in 2 groups), on 2 images of 5 x 5 outputs
        (lambda: F.conv2d(ones(2, 4, 7, 7), ones(8, 2, 3, 3), groups=2), 2 * 8 * 25 * 2 * 9),
        (lambda: F.conv1d(ones(2, 4, 10), ones(6, 4, 1), ones(6)), 2 * 6 * 10 * 4),
        # every one of the 2 x 4 x 25 inputs meets a kernel of 3 channels x 2 x 2
        (lambda: F.conv_transpose2d(ones(2, 4, 5, 5), ones(4, 3, 2, 2), stride=2), 2 * 4 * 25 * 3 * 4),
        # scores: 2 x 4 heads, 5 x 6 pairs of 8 numbers; then the same pairs with values of 8
        (
            lambda: F.scaled_dot_product_attention(ones(2, 4, 5, 8), ones(2, 4, 6, 8), ones(2, 4, 6, 8)),
            2 * 4 * 5 * 6 * (8 + 8),
        ),
        (lambda: (ones(3, 4) * ones(3, 4)).softmax(0).sum() + ones(3).norm(), 0),
    ],
)
def test_by_hand(work: Callable[[], Any], by_hand: int) -> None:
    assert counted(work) == by_hand


def test_attention_that_is_no_module_call_counts() -> None:
    """64 tokens of width 32: the three maps in, scores and sums of 4 heads, and the map out."""
    attend = nn.MultiheadAttention(32, 4, batch_first=True)
    tokens = torch.rand(1, 64, 32)
    by_hand = 64 * 32 * 96 + 2 * 64 * 64 * 32 + 64 * 32 * 32
    assert counted(lambda: attend(tokens, tokens, tokens)) == by_hand


def test_a_function_of_ones_own_counts_by_its_products() -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Tensor) -> Tensor:
            hidden = torch.from_numpy(values.numpy() @ values.numpy().T)  # outside of torch: invisible
            return hidden @ values

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> None:
            raise NotImplementedError

    assert counted(lambda: Own.apply(torch.ones(3, 2, requires_grad=True))) == 3 * 3 * 2


class OnlyTorchs(TorchDispatchMode):
    """Our count of the operators that torch's counter has a rule for."""

    macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.macs += count_macs(func, args, result)
        return result


@pytest.mark.parametrize("name", ["pointnet", "dgcnn", "pct"])
def test_models_agree_with_torchs_counter(name: str) -> None:
    """It counts two operations for a multiply-accumulate, and no products with a vector: those are left out of ours.

    Source: torch.utils.flop_counter.
    """
    model = sightline.build_model(name, num_classes=10, in_channels=3)
    if name == "pct":
        model = sightline.build_model(name, num_classes=10, in_channels=3, num_centres=(32, 16), num_neighbours=8)
    points = torch.rand(3, 64, 3)
    with FlopCounterMode(display=False) as flops:
        model(points=points)
    with OnlyTorchs() as ours:
        model(points=points)
    assert ours.macs * 2 == flops.get_total_flops() > 0
