"""Benchmarks of training steps and forward passes of networks against textbook forms with the same weights.

A step is forward, cross-entropy, backward and SGD. Dropout is off, so that both compute the same; its cost is small.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sightline.bench.case import BenchmarkCase, ExactComparison, Implementation, Run, allclose
from sightline.bench.textbook_models import TextbookDGCNN, TextbookPCT, TextbookPointNet2
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.models.dgcnn import DGCNN
from sightline.models.pct import PCT
from sightline.models.pointnet2 import PointNet2
from sightline.types import SampleKey

__all__ = [
    "IN_FLOAT64",
    "cases",
    "close_in_float32",
    "dgcnn_case",
    "forward_form",
    "same_numbers",
    "spread_norms",
    "step_case",
    "step_form",
]

MODELS: dict[str, tuple[type[nn.Module], Callable[[Any], nn.Module]]] = {
    "dgcnn": (DGCNN, TextbookDGCNN),
    "pct": (PCT, TextbookPCT),
    "pointnet2": (PointNet2, TextbookPointNet2),
}
QUICK = {"batch": 4, "points": 512}
NUM_CLASSES = 40


def cases() -> list[BenchmarkCase]:
    dgcnn, *other_steps = [step_case(name, batch=32, points=1024) for name in MODELS]
    return [dgcnn, _make_half_case(), *other_steps, *(_make_forward_case(name) for name in MODELS)]


def step_case(name: str, *, batch: int, points: int) -> BenchmarkCase:
    """Make a case of one float32 training step; DGCNN, whose fused form supports it, also has a bfloat16 row."""
    ours, textbook = MODELS[name]
    halves = (Implementation("sightline_bf16", step_form(copy.deepcopy, is_half=True), _is_close_as_textbook),)
    return BenchmarkCase(
        suite="models",
        label=name + "_step_{batch}x{points}",
        size={"batch": batch, "points": points},
        quick=QUICK,
        make=make_inputs(ours),
        baseline=Implementation("textbook", step_form(textbook), close_in_float32),
        variants=(
            Implementation("sightline", step_form(copy.deepcopy), close_in_float32),
            *(halves if name == "dgcnn" else ()),
        ),
        exactly=IN_FLOAT64,
    )


def dgcnn_case(*, batch: int, points: int, neighbours: int) -> BenchmarkCase:
    """Make a case of one float32 training step of DGCNN with a given number of neighbours."""
    return dataclasses.replace(
        step_case("dgcnn", batch=batch, points=points),
        label="dgcnn_step_{batch}x{points}_k{neighbours}",
        size={"batch": batch, "points": points, "neighbours": neighbours},
    )


def _make_half_case() -> BenchmarkCase:
    """Make a case of a bfloat16 step against the textbook's in bfloat16."""
    return BenchmarkCase(
        suite="models",
        label="dgcnn_step_bf16_{batch}x{points}",
        size={"batch": 32, "points": 1024},
        quick=QUICK,
        make=make_inputs(DGCNN),
        baseline=Implementation("textbook_bf16", step_form(TextbookDGCNN, is_half=True), _is_close_as_textbook),
        variants=(Implementation("sightline_bf16", step_form(copy.deepcopy, is_half=True), _is_close_as_textbook),),
        exactly=IN_FLOAT64,
    )


def _make_forward_case(name: str) -> BenchmarkCase:
    """Make a case of a batch's logits in evaluation mode."""
    ours, textbook = MODELS[name]
    return BenchmarkCase(
        suite="models",
        label=name + "_forward_{batch}x{points}",
        size={"batch": 32, "points": 1024},
        quick=QUICK,
        make=make_inputs(ours),
        baseline=Implementation("textbook", forward_form(textbook), close_in_float32),
        variants=(Implementation("sightline", forward_form(copy.deepcopy), close_in_float32),),
        exactly=IN_FLOAT64,
    )


# --- inputs ----------------------------------------------------------------------------------------------------------


def make_inputs(kind: type[nn.Module]) -> Callable[..., dict[str, Any]]:
    """Return a function that makes solids of every class, and a model with seeded weights.

    Similar clouds would not do: batch norm in the head divides by their standard deviation.
    """

    def make(*, batch: int, points: int, neighbours: int | None = None) -> dict[str, Any]:
        arguments = {} if neighbours is None else {"num_neighbours": neighbours}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(num_classes=NUM_CLASSES, in_channels=3, dropout=0.0, **arguments)
            spread_norms(model)
        shapes = SyntheticShapes(split="train", train_size=batch, num_points=points)
        batch_of_shapes = shapes.get_batch([SampleKey(index, 0, 0) for index in range(batch)])
        return {
            "model": model,
            "points": batch_of_shapes["points"],
            "label": batch_of_shapes["label"],
        }

    return make


def spread_norms(model: nn.Module) -> None:
    """Draw the weights of batch norms, some negative, so that an implementation that assumes positive ones fails."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, mean=0.8, std=0.4)


# --- forms -----------------------------------------------------------------------------------------------------------


def step_form(
    build: Callable[[Any], nn.Module], *, is_half: bool = False
) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    """Make successive training steps; each returns the logits and the gradients of all weights."""

    @contextmanager
    def open_step(inputs: dict[str, Any]) -> Iterator[Run]:
        model = build(inputs["model"]).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def run() -> dict[str, Any]:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
                logits = model(points=inputs["points"])["logits"]
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


# --- agreement -------------------------------------------------------------------------------------------------------


def _in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return four of the clouds, and the same weights, in float64."""
    return {
        "model": copy.deepcopy(inputs["model"]).double(),
        "points": inputs["points"][:4].double(),
        "label": inputs["label"][:4],
    }


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


def close_in_float32(inputs: Any, expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Compare float32 logits to 0.1 of the largest; equality is established in float64.

    Feature graphs differ in the few neighbours that almost tie, a maximum passes the difference on, and the batch norms
    of the head amplify it.
    """
    return allclose(0.1)(inputs, expected["logits"], found["logits"])


def _is_close_as_textbook(inputs: Any, expected: dict[str, Any], actual: dict[str, Any]) -> str | None:
    """Check that bfloat16 logits are at most 1.5 times as far from float32 as the textbook's in bfloat16.

    With untrained weights, eight bits decide about neighbours: two correct implementations do not agree in digits.
    """
    with step_form(TextbookDGCNN)(inputs) as exact, step_form(TextbookDGCNN, is_half=True)(inputs) as rounded:
        logits = exact()["logits"]
        allowed = 1.5 * float((rounded()["logits"] - logits).norm())
    distance = float((actual["logits"] - logits).norm())
    return None if distance <= allowed else f"logits are {distance:.3g} from float32, allowed is {allowed:.3g}"


IN_FLOAT64 = ExactComparison(_in_float64, same_numbers)
