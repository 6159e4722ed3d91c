"""The trace of a forward pass: order, shapes, parameters, cost, what feeds what; and that nothing is left of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.contract.errors import RunError
from sightline.workbench.describe.trace import BATCH, Trace, trace
from tests.cases import run_each
from tests.marks import long_but
from tests.models.small_models import OURS, make_inputs, small_model


class Twice(nn.Module):
    """A residual, a shared layer, an idle one, a list without a forward, a dict of a dict, and functions between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])
        self.shared = nn.Linear(4, 4, bias=False)
        self.same = nn.Identity()
        self.idle = nn.Linear(2, 1)
        self.head = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, *, points: Tensor) -> dict[str, Any]:
        values = points
        for layer in self.layers:
            values = self.same(layer(values))
        values = values + points
        first = self.shared(values)
        second = self.shared(first.relu())
        joined = torch.cat([first, second * self.scale], dim=-1)
        return {"logits": self.head(joined.max(dim=1).values), "more": {"points": joined}}


def traced(model: nn.Module, **batch: Tensor) -> Trace:
    return trace(model, lambda copied: copied(**batch), num_samples=len(next(iter(batch.values()))))


@pytest.fixture
def two_calls() -> Trace:
    return traced(Twice(), points=torch.rand(2, 5, 4))


def test_modules_stand_in_order_with_shapes(two_calls: Trace) -> None:
    rows = [(n.path, n.class_name, n.call, n.depth, [s for _, s in n.inputs], n.outputs) for n in two_calls.calls]
    whole = [(2, 5, 4)]
    assert rows == [
        ("", "Twice", 1, 0, whole, [("logits", (2, 3)), ("more.points", (2, 5, 8))]),
        ("layers.0", "Linear", 1, 1, whole, [("", (2, 5, 4))]),
        ("same", "Identity", 1, 1, whole, [("", (2, 5, 4))]),
        ("layers.1", "ReLU", 1, 1, whole, [("", (2, 5, 4))]),
        ("same", "Identity", 2, 1, whole, [("", (2, 5, 4))]),
        ("shared", "Linear", 1, 1, whole, [("", (2, 5, 4))]),
        ("shared", "Linear", 2, 1, whole, [("", (2, 5, 4))]),
        ("head", "Linear", 1, 1, [(2, 8)], [("", (2, 3))]),
    ]


def test_parameters_count_once(two_calls: Trace) -> None:
    """What is never called counts with the call around it: 1 for `scale`, 3 for `idle`."""
    assert [(n.parameters, n.shared) for n in two_calls.calls if n.parameters or n.shared] == [
        (4, 0),
        (20, 0),
        (16, 0),
        (0, 16),
        (27, 0),
    ]
    assert (
        two_calls.parameters
        == sum(n.parameters for n in two_calls.calls)
        == sum(p.numel() for p in Twice().parameters())
    )


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    found = trace(model, lambda copied: copied(torch.rand(2, 3)), num_samples=2)
    assert [(n.parameters, n.shared) for n in found.calls] == [(0, 0), (12, 0), (3, 9)]
    assert found.parameters == 15


def test_products_count_with_the_innermost_module(two_calls: Trace) -> None:
    assert [n.macs for n in two_calls.calls] == [0, 160, 0, 0, 0, 160, 160, 48]


def test_the_plain_dgcnn_by_hand() -> None:
    """Wang et al. 2019, figure 3: every edge goes through 6 x 64, 128 x 64, 128 x 128 and 256 x 256 weights.

    What the search for neighbours multiplies counts with the model itself, which calls it: the layers are counted here.
    """
    model = sightline.build_model("dgcnn", num_classes=40, in_channels=3, num_neighbours=4, fused=False)
    per_edge = 6 * 64 + 128 * 64 + 128 * 128 + 256 * 256
    head = 2048 * 512 + 512 * 256 + 256 * 40
    by_hand = 2 * (16 * 4 * per_edge + 16 * 512 * 1024 + head)
    assert sum(node.macs for node in traced(model, points=torch.rand(2, 16, 3)).calls[1:]) == by_hand


def test_calls_name_what_feeds_them(two_calls: Trace) -> None:
    """An Identity gives its input back: nothing is made by it."""
    at = {index: f"{call.path}#{call.call}" for index, call in enumerate(two_calls.calls)} | {BATCH: "batch"}
    fed = {at[index]: {at[source] for source in call.sources} for index, call in enumerate(two_calls.calls)}
    assert fed == {
        "#1": {"batch"},
        "layers.0#1": {"batch"},
        "same#1": {"layers.0#1"},
        "layers.1#1": {"layers.0#1"},
        "same#2": {"layers.1#1"},
        "shared#1": {"layers.1#1", "batch"},
        "shared#2": {"shared#1"},
        "head#1": {"shared#1", "shared#2"},
    }
    assert {at[source] for source in two_calls.output_sources} == {"shared#1", "shared#2", "head#1"}


def test_writing_into_a_part_counts_as_a_source() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, *, points: Tensor) -> Tensor:
            board = torch.zeros(2, 6)
            board[:, 3:] = self.one(points)
            return self.two(board[:, 2:5])

    found = traced(Net(), points=torch.rand(2, 3))
    assert [found.calls[source].path for source in found.calls[2].sources] == ["one"]


@pytest.mark.parametrize("name", long_but({*OURS} - {"rangenet53"}, OURS))
def test_every_model(name: str) -> None:
    """Every parameter once, and every call fed by something, as are the outputs; torch's counter agrees."""
    model = small_model(name)
    found = traced(model, **make_inputs(model, 2))
    assert sum(n.parameters for n in found.calls) == found.parameters == sum(p.numel() for p in model.parameters())
    assert all(call.sources for call in found.calls)
    assert found.output_sources
    assert found.macs > 0


@run_each(
    "work, by_hand",
    [
        (lambda: ones(2, 3) @ ones(3, 5), 2 * 3 * 5),
        (lambda: torch.einsum("bij,bjk->bik", ones(4, 2, 3), ones(4, 3, 5)), 4 * 2 * 3 * 5),
        # 8 filters of 2 x 3 x 3 weights (4 channels in 2 groups), on 2 images of 5 x 5 outputs
        (lambda: F.conv2d(ones(2, 4, 7, 7), ones(8, 2, 3, 3), groups=2), 2 * 8 * 25 * 2 * 9),
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
def test_products_by_hand(work: Callable[[], Tensor], by_hand: int) -> None:
    class Net(nn.Module):
        def forward(self) -> Tensor:
            return work()

    assert trace(Net(), lambda copied: copied(), num_samples=1).macs == by_hand


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


def test_nothing_is_changed() -> None:
    """Weights, running averages, flags, hooks, gradients, and the random numbers that come next."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    trace(model, lambda copied: copied(torch.rand(5, 3)).sum().backward(), num_samples=5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert random.getstate() == states[0]
    assert str(np.random.get_state(legacy=False)) == str(states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failure_names_module_and_shapes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(RunError) as caught:
        trace(model, lambda copied: copied(torch.rand(2, 3)), num_samples=2)
    assert str(caught.value).startswith("the forward pass failed in 1.1 (Linear), given 0 (2, 4): RuntimeError: ")
    assert "\n" not in str(caught.value)


def test_a_task_that_calls_parts_of_a_model_is_traced_from_each_of_them() -> None:
    model = nn.ModuleDict({"left": nn.Linear(3, 2), "right": nn.Linear(3, 2), "idle": nn.Linear(1, 1)})
    values = torch.rand(2, 3)
    found = trace(model, lambda copied: copied["left"](values) @ copied["right"](values).T, num_samples=2)
    assert [(n.path, n.depth, n.parameters) for n in found.calls] == [("left", 0, 8), ("right", 0, 8)]
    assert found.parameters == 18
