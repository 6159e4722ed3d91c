"""Optimizer slots by name and random states as text: training and drawing go on as if nothing had happened."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from sightline.contract.errors import CheckpointError
from sightline.runs.checkpoint import Snapshot, load, save
from sightline.runs.optimizer_state import optimizer_tensors, restore_optimizer
from sightline.runs.random_states import get_rng_state, set_rng_state
from tests.cases import run_each


class Net(nn.Module):
    """A convolution in channels-last layout, a shared and a frozen parameter, and one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(self.conv(images).mean((2, 3))))


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "sgd momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: Adam(p, lr=0.1),
    "adam amsgrad": lambda p: Adam(p, lr=0.1, amsgrad=True, foreach=True),
    "adam fused": lambda p: Adam(p, lr=0.1, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.1),
    "rmsprop momentum": lambda p: RMSprop(p, lr=0.1, momentum=0.9, centered=True),
}


def start(name: str) -> tuple[Net, Optimizer]:
    torch.manual_seed(1)
    model = Net()
    return model, OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])


def advance(model: Net, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        model(images).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("num_before", [0, 1, 4])
def test_training_goes_on_to_the_bit(tmp_path: Path, name: str, num_before: int) -> None:
    model, optimizer = start(name)
    advance(model, optimizer, range(num_before))
    tensors = optimizer_tensors(model, optimizer)
    path = save(tmp_path, Snapshot(0, model.state_dict(), tensors, None, {}), keep_last=1, is_best=False)
    advance(model, optimizer, range(num_before, 9))

    snapshot = load(path)
    resumed, fresh = start(name)
    advance(resumed, fresh, range(50, 53))  # whatever it holds must go
    resumed.load_state_dict(snapshot.model)
    restore_optimizer(resumed, fresh, snapshot.optimizer)
    advance(resumed, fresh, range(num_before, 9))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True))
    ours, torchs = fresh.state_dict()["state"], optimizer.state_dict()["state"]
    assert {(i, slot) for i in ours for slot in ours[i] if ours[i][slot] is not None} == {
        (i, slot) for i in torchs for slot in torchs[i] if torchs[i][slot] is not None
    }


def test_slots_go_by_name_and_layout_is_kept() -> None:
    model, optimizer = start("adam")
    advance(model, optimizer, range(2))
    tensors = optimizer_tensors(model, optimizer)
    names = ("conv.weight", "conv.bias", "first.weight", "first.bias", "second.bias")
    assert set(tensors) == {f"{name}/{slot}" for name in names for slot in ("step", "exp_avg", "exp_avg_sq")}
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    restore_optimizer(model, optimizer, contiguous)
    restored = optimizer.state[model.conv.weight]["exp_avg"]
    assert restored.stride() == model.conv.weight.stride()
    assert restored.data_ptr() != contiguous["conv.weight/exp_avg"].data_ptr()


@pytest.mark.parametrize(("options", "device"), [({}, "cpu"), ({"capturable": True}, "meta")])
def test_steps_are_counted_where_torch_counts_them(options: dict[str, bool], device: str) -> None:
    """The meta device stands for a GPU: slots go there, and the count of steps only if the optimizer says so."""
    model, optimizer = start("adam")
    advance(model, optimizer, range(1))
    elsewhere = Net().to("meta")
    other = Adam([p for p in elsewhere.parameters() if p.requires_grad], lr=0.1, **options)
    restore_optimizer(elsewhere, other, optimizer_tensors(model, optimizer))
    slots = other.state[elsewhere.conv.weight]
    assert (slots["exp_avg"].device.type, slots["step"].device.type) == ("meta", device)


def test_order_of_groups_does_not_matter() -> None:
    model, optimizer = start("sgd momentum")
    advance(model, optimizer, range(2))
    tensors = optimizer_tensors(model, optimizer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    other = SGD([{"params": parameters[3:]}, {"params": parameters[:3]}], lr=0.1, momentum=0.9)
    restore_optimizer(model, other, {name.replace("first.weight/", "second.weight/"): t for name, t in tensors.items()})
    assert torch.equal(other.state[model.first.weight]["momentum_buffer"], tensors["first.weight/momentum_buffer"])


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("conv.wieght/exp_avg", torch.zeros(4, 3, 3, 3), "did you mean 'conv.weight'"),
        ("frozen/exp_avg", torch.zeros(3), "trains no such parameter"),
        ("exp_avg", torch.zeros(3), "trains no such parameter"),
        ("conv.bias/exp_avg", torch.zeros(5), r"\[5\], the parameter's \[4\]"),
        ("conv.bias/exp_avg", torch.zeros(2, 4), r"\[2, 4\], the parameter's \[4\]"),
    ],
)
def test_foreign_slots_are_refused_and_nothing_changes(key: str, value: Tensor, says: str) -> None:
    model, optimizer = start("adam")
    advance(model, optimizer, range(1))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(CheckpointError, match=says):
        restore_optimizer(model, optimizer, optimizer_tensors(model, optimizer) | {key: value})
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][slot], before[i][slot]) for i in before for slot in before[i])


def test_a_parameter_that_the_model_lacks_is_a_broken_promise() -> None:
    with pytest.raises(AssertionError, match=r"shape \[7\] that the model lacks"):
        optimizer_tensors(Net(), SGD([nn.Parameter(torch.ones(7))], lr=0.1))


# --- random states ---------------------------------------------------------------------------------------------------


def draw() -> list[Any]:
    """Numbers of every kind of every global generator; odd counts of normals leave one cached."""
    return [
        torch.rand(3).tolist(),
        torch.randn(17).tolist(),
        random.random(),
        random.gauss(0, 1),
        random.getrandbits(100),
        np.random.random(3).tolist(),
        np.random.standard_normal(5).tolist(),
    ]


@pytest.fixture
def _own_random_state() -> Any:
    state = get_rng_state()
    yield
    set_rng_state(state)


@pytest.mark.usefixtures("_own_random_state")
def test_the_same_draws_come_again() -> None:
    draw()
    state = json.loads(json.dumps(get_rng_state()))
    first = draw()
    assert draw() != first
    assert set_rng_state(state) == ()
    assert draw() == first


def test_devices_that_are_not_here_are_named() -> None:
    assert set_rng_state(get_rng_state() | {"cuda:99": "AAAA"}) == ("cuda:99",)


@run_each(
    "name, text",
    [
        ("torch", "not base64!"),
        ("torch", base64.b64encode(b"short").decode()),
        ("python", "[3, [1, 2], null]"),
        ("python", "cos\nsystem"),
        ("numpy", '["MT19937", [1, 2], 0, 0, 0.0]'),
        ("numpy", json.dumps(["MT19937", [1] * 624, 1_000_000, 0, 0.0])),
        ("numpy", '["PCG64"]'),
        ("numpy", "[" * 100_000),
        ("julia", "AAAA"),
    ],
)
def test_a_malformed_state_is_refused_and_nothing_changes(name: str, text: str) -> None:
    before = get_rng_state()
    with pytest.raises(CheckpointError, match=f"random state: '{name}' is invalid"):
        set_rng_state(before | {name: text})
    assert get_rng_state() == before


def test_a_missing_state_is_refused() -> None:
    state = get_rng_state()
    del state["numpy"]
    with pytest.raises(CheckpointError, match="'numpy' is missing"):
        set_rng_state(state)
