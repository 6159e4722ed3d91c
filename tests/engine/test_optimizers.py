"""Optimiser recipes: groups, decay, freezing; the steps are torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.compression.parametrised import quantised_weights
from sightline.contract.errors import ConfigError
from sightline.engine.optimizers import SGD, Adam, AdamW, OptimizerSpec, RMSprop, apply_freezing, format_module_rates
from tests.cases import run_each
from tests.compression.policies import quantise


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_decay_spares_biases_and_norms() -> None:
    model = net()
    groups = AdamW(lr=0.1, weight_decay=0.5).build(model).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.5 for p in group["params"]}
    assert decayed == {id(model[0].weight), id(model[2].weight)}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("decay", ["all", "weights"])
def test_codebooks_never_decay(decay: Any) -> None:
    """Of one axis and, by channel, of two; what a linear quantiser rounds is a weight and does."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    codebook, kind = {"kind": "codebook", "bits": 2}, {"kind": "linear", "bits": 4}
    quantise(model, {"0.weight": codebook, "1.weight": {**codebook, "per_channel": True}, "2.weight": kind})
    held = {name: numbers for name, (_, numbers) in quantised_weights(model).items()}
    before = {name: numbers.detach().clone() for name, numbers in held.items()}
    recipe = SGD(lr=0.1, momentum=0.0, weight_decay=0.5, decay=decay)
    assert [rate.num_decayed for rate in recipe.module_rates(model)] == [
        8 * (decay == "all") + add for add in (0, 0, 64, 64)
    ]
    optimizer = recipe.build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(held["0.weight"], before["0.weight"])
    assert torch.equal(held["1.weight"], before["1.weight"])
    torch.testing.assert_close(held["2.weight"].detach(), before["2.weight"] * (1 - 0.1 * 0.5))


class Encoder(nn.Module):
    """A parameter of its own, two layers in a list, and a head: 2, 6 + 2, 4 + 2 and 4 + 2 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(2))
        self.layers = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 2)])
        self.head = nn.Linear(2, 2)


def rate_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    assert all(group["lr"] == group["base_lr"] for group in optimizer.param_groups)
    rate_of = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rate_of[id(p)] for name, p in model.named_parameters()}


def test_rates_fall_geometrically_towards_the_input() -> None:
    """Three layers, 0.8 x (0.25, 0.5, 1); what the model itself holds goes with the first."""
    model = Encoder()
    rates = rate_by_name(model, SGD(lr=0.8, layer_decay={"factor": 0.5}).build(model))
    assert rates == pytest.approx(
        {
            "token": 0.2,
            "layers.0.weight": 0.2,
            "layers.0.bias": 0.2,
            "layers.1.weight": 0.4,
            "layers.1.bias": 0.4,
            "head.weight": 0.8,
            "head.bias": 0.8,
        },
        rel=1e-15,
    )


def test_rates_follow_a_given_order_and_groups_multiply_them() -> None:
    model = Encoder()
    decay = {"factor": 0.1, "modules": ("token", "layers", "head")}
    recipe = SGD(lr=1.0, layer_decay=decay, groups=({"modules": "layers.1", "lr_factor": 3.0},))  # type: ignore[arg-type]
    rates = rate_by_name(model, recipe.build(model))
    assert rates["token"] == pytest.approx(0.01, rel=1e-15)
    assert rates["layers.0.weight"] == pytest.approx(0.1, rel=1e-15)
    assert rates["layers.1.weight"] == pytest.approx(0.3, rel=1e-15)
    assert rates["head.weight"] == 1.0


def _expanded() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(1, 4).expand(6, 4))
    return model


NAMED = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})


def ordered(*modules: str) -> dict[str, Any]:
    return {"layer_decay": {"factor": 0.5, **({"modules": modules} if modules else {})}}


@run_each(
    "given, model, told",
    [
        (ordered("layers", "haed"), Encoder(), r"layer_decay.modules.1: .*'haed'.*did you mean 'head'"),
        (ordered("layers", "layers.0", "head"), Encoder(), "'layers.0' is part of 'layers'"),
        (ordered("layers.0", "head"), Encoder(), "'layers.1.weight' is in none of them"),
        (ordered(), nn.Sequential(nn.Linear(1, 1)), "has one module, 0"),
        ({"frozen": ({"modules": "encodr"},)}, NAMED, r"optimizer.frozen.0.modules: .*'encodr'.*mean 'encoder'"),
        ({}, _expanded(), r"parameter 'weight' of shape \[6, 4\] is an expanded view"),
        ({}, nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4)), r"parameter '1\.weight' has no size yet"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(given: dict[str, Any], model: nn.Module, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SGD(lr=0.1, **given).build(model)


def test_the_table_says_what_each_module_gets() -> None:
    model = Encoder()
    recipe = AdamW(
        lr=0.8,
        weight_decay=0.5,
        layer_decay={"factor": 0.5},
        groups=({"modules": "head", "lr_factor": 2.0},),
        frozen=({"modules": "token"}, {"modules": "layers", "until_epoch": 3}),
    )
    recipe.build(model)
    assert recipe.module_rates(model) == (
        ("token", 1, 2, 0.2, 0.5, 0, "for ever"),
        ("layers.0", 2, 8, 0.2, 0.5, 6, "until epoch 3"),
        ("layers.1", 2, 6, 0.4, 0.5, 4, "until epoch 3"),
        ("head", 2, 6, 1.6, 0.5, 4, ""),
    )
    assert [line.split() for line in format_module_rates(recipe.module_rates(model))[1:3]] == [
        ["rates:", "token", "1", "2", "0.2", "0", "for", "ever"],
        ["rates:", "layers.0", "2", "8", "0.2", "0.5,", "2", "without", "until", "epoch", "3"],
    ]
    assert format_module_rates(()) == []


def test_frozen_until_an_epoch_holds_parameters_and_statistics() -> None:
    model = net().train()
    frozen = ({"modules": "1", "until_epoch": 2},)
    assert {id(p) for p in apply_freezing(model, frozen, 1)} == {id(p) for p in model[1].parameters()}
    assert not model[1].training
    assert model[2].training
    model.train()
    assert apply_freezing(model, frozen, 2) == []
    assert model[1].training


@pytest.mark.parametrize("recipe", [SGD(lr=0.1), Adam(lr=0.1, weight_decay=0.01), AdamW(lr=0.1, weight_decay=0.5)])
def test_fused_steps_are_the_plain_ones(recipe: OptimizerSpec) -> None:
    """Torch's own loop over tensors is the reference; three steps in float64."""
    torch.manual_seed(0)
    model = net().double()
    fused = recipe.build(model)
    assert all(group["fused"] for group in fused.param_groups)
    other = copy.deepcopy(model)
    other_of = dict(zip(model.parameters(), other.parameters(), strict=True))
    groups = [
        {**group, "fused": False, "params": [other_of[p] for p in group["params"]]} for group in fused.param_groups
    ]
    plain = type(fused)(groups, fused=False, foreach=False)
    for _ in range(3):
        for parameter, twin in other_of.items():
            parameter.grad = torch.randn_like(parameter)
            twin.grad = parameter.grad.clone()
        fused.step()
        plain.step()
    for parameter, twin in other_of.items():
        torch.testing.assert_close(parameter, twin, rtol=1e-12, atol=1e-14)


def test_an_optimiser_without_a_fused_step_has_its_own() -> None:
    assert not any(group.get("fused") for group in RMSprop(lr=0.1).build(net()).param_groups)


# --- order in memory --------------------------------------------------------------------------------------------------


def stepped(lay_out: Callable[[Tensor], Tensor], recipe: OptimizerSpec, *, hook: Any = None) -> Tensor:
    """A parameter of 6 x 4 after three steps; its values and its gradients do not depend on its order in memory."""
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Module()
    model.weight = nn.Parameter(lay_out(values))
    torch.testing.assert_close(model.weight.detach(), values, rtol=0, atol=0)
    if hook is not None:
        model.weight.register_post_accumulate_grad_hook(hook)
    optimizer = recipe.build(model)
    for _ in range(3):
        optimizer.zero_grad()
        (model.weight**2 * torch.arange(24.0).view(6, 4)).sum().backward()
        optimizer.step()
    return model.weight.detach()


RECIPES = {
    "sgd": SGD(lr=0.01, momentum=0.9),
    "adam": Adam(lr=0.01),
    "adamw": AdamW(lr=0.01),
    "rmsprop": RMSprop(lr=0.01),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.t().contiguous().t(),
    "every other column": lambda x: torch.stack([x, x + torch.nan], dim=2).view(6, 8)[:, ::2],
    "columns of a wider one": lambda x: torch.cat([x, x + torch.nan], dim=1)[:, :4],
}


@run_each("layout", LAYOUTS)
@run_each("name", RECIPES)
def test_a_step_does_not_depend_on_the_order_in_memory(name: str, layout: str) -> None:
    expected = stepped(lambda x: x, RECIPES[name])
    torch.testing.assert_close(stepped(LAYOUTS[layout], RECIPES[name]), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", RECIPES)
def test_a_gradient_that_a_hook_lays_out_otherwise_is_paired_by_index(name: str) -> None:
    def turn(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad = parameter.grad.t().contiguous().t()

    expected = stepped(lambda x: x, RECIPES[name])
    torch.testing.assert_close(stepped(lambda x: x, RECIPES[name], hook=turn), expected, rtol=1e-14, atol=1e-14)


def test_an_optimiser_of_ones_own_needs_no_weight_decay() -> None:
    model = nn.Linear(2, 1)
    spec = OptimizerSpec(torch.optim.Rprop, {"lr": 0.5}, decay="all", groups=(), frozen=())
    optimizer = spec.build(model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight.detach(), before - 0.5)  # Rprop's first step is `lr` against the gradient's sign
