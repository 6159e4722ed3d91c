"""Benchmark of a training step of the dense Point Transformer (512 channels) against its unfused layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sightline.bench.case import BenchmarkCase, ExactComparison, Implementation, Run, allclose
from sightline.bench.networks import same_numbers
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.models.point_transformer_dense import DensePointTransformer
from sightline.types import SampleKey

__all__ = ["cases"]


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="models",
            label="point_transformer_dense_step_{batch}x{points}",
            size={"batch": 2, "points": 1024},
            quick={"batch": 2, "points": 64},
            make=_make_inputs,
            baseline=Implementation("plain", _make_step(_build_plain), _are_close),
            variants=(
                Implementation("sightline", _make_step(_copy_model), _are_close),
                Implementation("sightline_bf16", _make_step(_copy_model, is_half=True), _are_close_in_half),
            ),
            exactly=ExactComparison(_in_float64, same_numbers),
        )
    ]


def _make_inputs(*, batch: int, points: int) -> dict[str, Any]:
    """Make solids with part labels of their points, and a model with seeded weights."""
    shapes = SyntheticShapes(split="train", train_size=batch, num_points=points, target="parts")
    clouds = shapes.get_batch([SampleKey(index, 0, 0) for index in range(batch)])
    facts = {name: shapes.info.facts[name] for name in ("num_classes", "in_channels", "num_categories")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DensePointTransformer(**facts)
    return {"model": model, "facts": facts, **{name: clouds[name] for name in ("points", "category", "label")}}


def _copy_model(inputs: dict[str, Any]) -> nn.Module:
    return copy.deepcopy(inputs["model"])


def _build_plain(inputs: dict[str, Any]) -> nn.Module:
    """Build the model with unfused layers and the same weights."""
    plain = DensePointTransformer(**inputs["facts"], fused=False).to(inputs["points"].dtype)
    plain.load_state_dict(inputs["model"].state_dict())
    return plain


def _make_step(
    build: Callable[[dict[str, Any]], nn.Module], *, is_half: bool = False
) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    """Make successive steps; each returns the logits and the gradients of all weights."""

    @contextmanager
    def open_step(inputs: dict[str, Any]) -> Iterator[Run]:
        model = build(inputs).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        model_inputs = {name: inputs[name] for name in ("points", "category")}

        def run() -> dict[str, Any]:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
                logits = model(**model_inputs)["logits"]
                loss = F.cross_entropy(logits.flatten(0, 1), inputs["label"].flatten())
            loss.backward()
            optimizer.step()
            return {
                "logits": logits.detach().to(inputs["points"].dtype),
                "gradients": [parameter.grad for parameter in model.parameters()],
            }

        yield run

    return open_step


def _in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the first 64 points of every cloud, and the same weights, in float64."""
    return {
        "model": copy.deepcopy(inputs["model"]).double(),
        "facts": inputs["facts"],
        "points": inputs["points"][:, :64].double(),
        "category": inputs["category"],
        "label": inputs["label"][:, :64],
    }


def _are_close(inputs: Any, expected: dict[str, Any], actual: dict[str, Any]) -> str | None:
    """Compare logits to 1e-3 of the largest: no neighbour depends on features, so only rounding differs."""
    return allclose(1e-3)(inputs, expected["logits"], actual["logits"])


def _are_close_in_half(inputs: Any, expected: dict[str, Any], actual: dict[str, Any]) -> str | None:
    """Compare logits to 0.1 of the largest: numbers of 8 bits, and batch norms over few points at the last level."""
    return allclose(0.1)(inputs, expected["logits"], actual["logits"])
