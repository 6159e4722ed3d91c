"""Benchmarks of the Point Transformers against their unfused layers, and forms and rules for cases of any network.

A step is forward, cross-entropy, backward and SGD.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.types import SampleKey
from sightline.workbench.bench.case import BenchmarkCase, Comparator, ExactComparison, Implementation, Run, allclose

_PARTS: dict[str, Any] = {"num_classes": 30, "in_channels": 3, "num_categories": 12}
"""Facts of `synthetic_shapes` with `target: parts`."""


def cases() -> list[BenchmarkCase]:
    """Make the cases of a scene, whose distances among 80,000 points no textbook form can hold (26 GB), and of a step.

    The step is that of the dense Point Transformer, 512 channels wide.
    """
    return [
        BenchmarkCase(
            suite="models",
            label="point_transformer_scene_forward_{points}",
            size={"batch": 1, "points": 80_000},
            quick={"points": 2048},
            make=make_parts,
            baseline=Implementation("plain", forward_form(build_plain), close_in_float32),
            variants=(Implementation("sightline", forward_form(copy.deepcopy), close_in_float32),),
            exactly=IN_FLOAT64,
        ),
        BenchmarkCase(
            suite="models",
            label="point_transformer_dense_step_{batch}x{points}",
            size={"batch": 2, "points": 1024},
            quick={"batch": 2, "points": 64},
            make=_make_categorised_parts,
            baseline=Implementation("plain", step_form(_build_plain_dense), _close_dense),
            variants=(
                Implementation("sightline", step_form(copy.deepcopy), _close_dense),
                Implementation("sightline_bf16", step_form(copy.deepcopy, is_half=True), _close_dense_in_half),
            ),
            exactly=ExactComparison(_first_points_in_float64, same_numbers),
        ),
    ]


def make_shapes(**arguments: Any) -> Any:
    """Make the training split of the procedural solids."""
    return registry.data.get_entry("synthetic_shapes").builder(split="train", **arguments)


def _build_model(name: str, **arguments: Any) -> nn.Module:
    model: nn.Module = registry.models.get_entry(name).builder(**arguments)
    return model


# --- inputs ----------------------------------------------------------------------------------------------------------


def make_parts(*, batch: int, points: int) -> dict[str, Any]:
    """Make solids with part labels of their points, and a model with seeded weights."""
    shapes = make_shapes(train_size=max(batch, 12), num_points=points, target="parts")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build_model("point_transformer", num_classes=50, in_channels=3)
        spread_norms(model)
        for module in model.modules():
            # Where all points of a cloud are neighbours, the place of a point relative to itself is the mean of all:
            # with a bias of zero it would be exactly at the kink of the ReLU, and rounding would decide its gradient.
            if isinstance(module, nn.BatchNorm1d):
                nn.init.normal_(module.bias, std=0.1)
    clouds = shapes.get_batch([SampleKey(index, 0, 0) for index in range(batch)])
    return {"model": model, "points": clouds["points"], "label": clouds["label"]}


def _make_categorised_parts(*, batch: int, points: int) -> dict[str, Any]:
    """Make solids with their category and part labels of their points, and a dense model with seeded weights."""
    shapes = make_shapes(train_size=batch, num_points=points, target="parts")
    clouds = shapes.get_batch([SampleKey(index, 0, 0) for index in range(batch)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build_model("point_transformer_dense", **_PARTS)
    return {"model": model, **{name: clouds[name] for name in ("points", "category", "label")}}


def spread_norms(model: nn.Module) -> None:
    """Draw the weights of batch norms, some negative, so that an implementation that assumes positive ones fails."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, mean=0.8, std=0.4)


def _in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return four of the samples, and the same weights, in float64."""
    samples = {name: values[:4] for name, values in inputs.items() if name != "model"}
    samples = {name: values.double() if values.is_floating_point() else values for name, values in samples.items()}
    return {"model": copy.deepcopy(inputs["model"]).double(), **samples}


def _first_points_in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the first 64 points of every cloud, and the same weights, in float64."""
    return inputs | {
        "model": copy.deepcopy(inputs["model"]).double(),
        "points": inputs["points"][:, :64].double(),
        "label": inputs["label"][:, :64],
    }


# --- forms -----------------------------------------------------------------------------------------------------------


def build_plain(ours: nn.Module) -> nn.Module:
    """Build the model with unfused layers and the same weights."""
    return _copy_weights(
        ours, _build_model("point_transformer", num_classes=ours.num_classes, in_channels=ours.in_channels, fused=False)
    )


def _build_plain_dense(ours: nn.Module) -> nn.Module:
    return _copy_weights(ours, _build_model("point_transformer_dense", **_PARTS, fused=False))


def _copy_weights(ours: nn.Module, plain: nn.Module) -> nn.Module:
    plain.to(next(ours.parameters()).dtype).load_state_dict(ours.state_dict())
    return plain


def step_form(
    build: Callable[[Any], nn.Module], *, is_half: bool = False
) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    """Make successive training steps; each returns the logits and the gradients of all weights."""

    @contextmanager
    def open_step(inputs: dict[str, Any]) -> Iterator[Run]:
        model = build(inputs["model"]).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        arguments = {name: inputs[name] for name in ("points", "category") if name in inputs}

        def run() -> dict[str, Any]:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
                logits = model(**arguments)["logits"]
                loss = F.cross_entropy(logits.flatten(0, -2), inputs["label"].flatten())  # autocast takes it in float32
            loss.backward()
            optimizer.step()
            return {
                "logits": logits.detach().to(inputs["points"].dtype),
                "gradients": [parameter.grad for parameter in model.parameters()],
            }

        yield run

    return open_step


def forward_form(build: Callable[[Any], nn.Module]) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    @contextmanager
    def open_forward(inputs: dict[str, Any]) -> Iterator[Run]:
        model = build(inputs["model"]).eval()

        def run() -> dict[str, Any]:
            with torch.no_grad():
                return {"logits": model(points=inputs["points"])["logits"]}

        yield run

    return open_forward


# --- rules -----------------------------------------------------------------------------------------------------------


def same_numbers(inputs: Any, expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Compare logits to 1e-9 of the largest, and the gradient of all weights, if any, to 1e-9 of its norm."""
    fault = allclose(1e-9)(inputs, expected["logits"], found["logits"])
    if fault is not None or "gradients" not in expected:
        return fault
    expected_gradient, actual_gradient = (
        torch.cat([g.flatten() for g in result["gradients"]]) for result in (expected, found)
    )
    error = float((actual_gradient - expected_gradient).norm() / expected_gradient.norm())
    return None if error <= 1e-9 else f"the gradient is off by {error:.2e} of its length; allowed is 1e-9"


def _make_rule(tolerance: float) -> Comparator:
    return lambda inputs, expected, actual: allclose(tolerance)(inputs, expected["logits"], actual["logits"])


close_in_float32 = _make_rule(0.1)
"""Rule: float32 logits to 0.1 of the largest; equality is established in float64.

Feature graphs differ in the few neighbours that almost tie, a maximum passes the difference on, and the batch norms of
the head amplify it.
"""
_close_dense = _make_rule(1e-3)
"""Rule: logits to 1e-3 of the largest: no neighbour depends on features, so only rounding differs."""
_close_dense_in_half = _make_rule(0.1)
"""Rule: logits to 0.1 of the largest: numbers of 8 bits, and batch norms over few points at the last level."""
IN_FLOAT64 = ExactComparison(_in_float64, same_numbers)
