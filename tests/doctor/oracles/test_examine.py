"""Every kind of layer of a model once, and none of a healthy model found wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from sightline.contract import registry
from sightline.layers.mlp import LinearNorm
from sightline.layers.surrogates import note_surrogates, surrogate_gradient
from sightline.workbench.check.layer_rules import LayerResult, examine_layers, has_own_code
from tests.marks import long_but
from tests.models.small_models import OURS, make_inputs, small_model


class Scaled(nn.Module):
    """A layer of a user's own, with a backward pass of its own; `slip` is the factor that it is wrong by."""

    def __init__(self, slip: float = 1.0) -> None:
        super().__init__()
        self.slip = slip
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = _Times.apply(values, self.scale, self.slip)
        return out


class _Times(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, slip: float) -> Tensor:
        ctx.save_for_backward(values, scale)
        ctx.slip = slip
        return values * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        values, scale = ctx.saved_tensors
        return gradient * scale, ctx.slip * (gradient * values).sum(0), None


class Draws(nn.Module):
    """Noise from a generator that no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.weight + torch.randn(values.shape, generator=self.generator).to(values)


def rows_of(model: nn.Module, width: int = 3) -> dict[str, LayerResult]:
    values = torch.randn(6, width, generator=torch.Generator().manual_seed(1))
    return {row.place: row for row in examine_layers(model, {"x": values}, lambda batch: model(batch["x"]))}


def test_layers_of_one_kind_are_compared_once() -> None:
    patched = nn.Linear(3, 3)
    patched.forward = lambda values: 2 * values  # type: ignore[method-assign]
    model = nn.Sequential(
        *(nn.Linear(3, 3), nn.BatchNorm1d(3), LinearNorm(in_channels=3, out_channels=3), patched),
        *(LinearNorm(in_channels=3, out_channels=3), LinearNorm(in_channels=3, out_channels=5)),
    )
    assert {place: row.number for place, row in rows_of(model).items() if "norm" not in place} == {
        "2": 2,
        "3": 1,
        "5": 1,
    }


MODELS = (
    *("image_classifier", "pct_naive", "pointnet_plain", "rangenet21", "v2v_small", "salsanext", "point_transformer"),
    *("deeplabv3", "squeezesegv2", "point_bert_parts", "dgcnn", "scale_net", "pointnet_scenes", "pointnet2_parts"),
    *("pct", "dgcnn_parts", "point_transformer_dense", "detector", "pointpillars", "minkunet", "ptv3", "frnet"),
)
"""Hold every kind of layer of the package, in few seconds; the others: tests/long/test_networks.py."""


def test_the_models_hold_every_kind_of_layer() -> None:
    builders = {name: registry.models.get_entry(name).builder for name in OURS}
    of_package = [name for name, builder in builders.items() if builder.__module__.startswith("sightline.")]
    kinds = {name: kinds_of(small_model(name)) for name in of_package}
    assert set().union(*kinds.values()) == set().union(*(kinds[name] for name in MODELS))


def kinds_of(model: nn.Module) -> set[type[nn.Module]]:
    """Those of the layers that are examined, without the model itself."""
    return {type(module) for name, module in model.named_modules() if name and has_own_code(module)}


_SMALL = ("image_classifier", "pct_naive", "pointnet_plain", "rangenet21", "salsanext", "scale_net", "v2v_small")


@pytest.mark.parametrize("name", long_but(_SMALL, MODELS))
def test_nothing_of_the_models_of_the_package_is_wrong(name: str) -> None:
    assert_nothing_wrong(name)


def assert_nothing_wrong(name: str) -> None:
    model = small_model(name).float()
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in make_inputs(model, 4).items()}
    rows = examine_layers(model, inputs, lambda batch: model(**batch))
    assert not [row for row in rows if row.is_wrong_forward or row.is_wrong_backward]
    errors = [row.gradient for row in rows if "surrogate" not in row.note]
    assert None not in errors
    assert max(error for error in errors if error is not None) < 2e-4  # a fifth of what would be reported


def test_a_layer_with_a_wrong_backward_is_named_and_its_tensor() -> None:
    right, wrong = (
        rows_of(nn.Sequential(nn.Linear(3, 3), Scaled())),
        rows_of(nn.Sequential(nn.Linear(3, 3), Scaled(0.9))),
    )
    assert right.keys() == wrong.keys() == {"1"}, "layers of torch's are taken as they are"
    assert not right["1"].is_wrong_backward
    assert wrong["1"].is_wrong_backward
    assert wrong["1"].weakest == "scale"
    assert wrong["1"].file[0] == __file__


def test_what_cannot_be_checked_is_told() -> None:
    rows = rows_of(nn.Sequential(nn.Linear(3, 3), Draws()))
    assert rows["1"].gradient is None
    assert "differ from call to call" in rows["1"].note


class _Rounded(Function):
    """Straight-through."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return torch.round(4 * values) / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class _DeclaredRounded(_Rounded):
    surrogate_gradient = True


class _Reversed(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


def stopped(values: Tensor) -> Tensor:
    return values.detach()


class Layer(nn.Module):
    """A weight, and a function whose gradient is no derivative."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(3))

    def forward(self, values: Tensor) -> Tensor:
        scaled = values * self.weight
        return scaled.square() + self.function(scaled)


class Marked(Layer):
    surrogate_gradient = True


class RoundedLinear(nn.Linear):
    """Of a known type: in the definition forward, another gradient backward."""

    def forward(self, input: Tensor) -> Tensor:
        made: Tensor = _DeclaredReversed.apply(super().forward(input))
        return made


_DeclaredReversed = surrogate_gradient(type("_DeclaredReversed", (_Reversed,), {}))
SURROGATES: dict[str, tuple[Any, str]] = {
    "attribute of the function": (lambda: Layer(_DeclaredRounded.apply), "_DeclaredRounded"),
    "decorated function class": (lambda: Layer(_DeclaredReversed.apply), "_DeclaredReversed"),
    "decorated function": (lambda: Layer(surrogate_gradient(stopped)), "stopped"),
    "attribute of the module": (lambda: Marked(stopped), "Marked"),
    "decorated module": (lambda: surrogate_gradient(Layer(_Rounded.apply)), "Layer"),
    "in a layer of torch's": (lambda: RoundedLinear(3, 3), "_DeclaredReversed"),
}


@pytest.mark.parametrize("how", SURROGATES)
def test_declared_surrogate_gradients_are_reported_as_declared(how: str) -> None:
    """In the layer and in the model around it; what stands beside it is compared as ever."""
    make, name = SURROGATES[how]
    rows = rows_of(nn.Sequential(make(), Scaled(), Scaled(2.0)))
    assert (rows["0"].note, rows["0"].gradient) == (f"surrogate gradient of {name}", None)
    assert not rows["1"].is_wrong_backward
    assert rows["2"].is_wrong_backward


@pytest.mark.parametrize("function", [_Rounded.apply, _Reversed.apply, stopped])
def test_others_are_wrong(function: Any) -> None:
    assert rows_of(nn.Sequential(Layer(function), nn.Linear(3, 3)))["0"].is_wrong_backward


def test_a_declared_function_computes_what_it_did() -> None:
    declared = surrogate_gradient(stopped)
    values = torch.randn(3, requires_grad=True)
    assert torch.equal(declared(values), values)
    assert not declared(values).requires_grad
    assert (declared.__name__, declared.surrogate_gradient) == ("stopped", True)  # type: ignore[attr-defined]
    with note_surrogates() as noted:
        torch.compile(lambda given: declared(given) + 1, backend="eager", fullgraph=True)(values)
        assert noted == set()
        declared(values)
    assert noted == {"stopped"}
