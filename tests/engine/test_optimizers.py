"""Optimiser recipes: groups, decay, freezing; the steps are torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sightline.engine.optimizers import SGD, Adam, AdamW, RMSprop, hold_still
from sightline.errors import ConfigError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_decay_spares_biases_and_norms() -> None:
    model = net()
    groups = AdamW(lr=0.1, weight_decay=0.5).build(model).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.5 for p in group["params"]}
    assert decayed == {id(model[0].weight), id(model[2].weight)}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_decay_all_decays_all() -> None:
    (group,) = SGD(lr=0.1, weight_decay=0.5).build(net()).param_groups
    assert group["weight_decay"] == 0.5


def test_groups_multiply_the_rate_of_their_modules() -> None:
    model = net()
    groups = Adam(lr=0.1, groups=({"modules": "2", "lr_factor": 0.5},)).build(model).param_groups
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate_of[id(model[2].weight)] == pytest.approx(0.05)
    assert rate_of[id(model[0].weight)] == pytest.approx(0.1)


def test_frozen_for_ever_leaves_the_optimizer_and_asks_no_gradient() -> None:
    model = net()
    optimizer = RMSprop(lr=0.1, frozen=({"modules": "0"},)).build(model)
    assert not any(p.requires_grad for p in model[0].parameters())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held.isdisjoint({id(p) for p in model[0].parameters()})


def test_frozen_until_an_epoch_holds_parameters_and_statistics() -> None:
    model = net().train()
    frozen = ({"modules": "1", "until_epoch": 2},)
    assert {id(p) for p in hold_still(model, frozen, 1)} == {id(p) for p in model[1].parameters()}
    assert not model[1].training
    assert model[2].training
    model.train()
    assert hold_still(model, frozen, 2) == []
    assert model[1].training


def test_unknown_module_is_named_with_the_nearest() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"optimizer.frozen.0.modules: .*'encodr'.*did you mean 'encoder'"):
        SGD(lr=0.1, frozen=({"modules": "encodr"},)).build(model)


def test_nothing_left_to_train() -> None:
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        SGD(lr=0.1, frozen=({"modules": "0"},)).build(nn.Sequential(nn.Linear(1, 1)))


def test_sgd_steps_as_worked_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = SGD(lr=0.1, momentum=0.5).build(model)
    for expected in (0.8, 0.5):  # gradient 2 each time: velocity 2, then 0.5 * 2 + 2 = 3
        model.weight.grad = torch.full((1, 1), 2.0)
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected)
