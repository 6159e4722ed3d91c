"""Benchmarks of training steps and forward passes of networks against textbook forms with the same weights.

A step is forward, cross-entropy, backward and SGD. Dropout is off, so that both compute the same; its cost is small.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.textbook_models import TextbookDGCNN, TextbookPCT, TextbookPointNet2
from sightline.bench.case import BenchmarkCase, Implementation
from sightline.bench.networks import IN_FLOAT64, close_in_float32, forward_form, spread_norms, step_form
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.models.dgcnn import DGCNN
from sightline.models.pct import PCT
from sightline.models.pointnet2 import PointNet2
from sightline.types import SampleKey

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


# --- forms -----------------------------------------------------------------------------------------------------------


# --- agreement -------------------------------------------------------------------------------------------------------


def _is_close_as_textbook(inputs: Any, expected: dict[str, Any], actual: dict[str, Any]) -> str | None:
    """Check that bfloat16 logits are at most 1.5 times as far from float32 as the textbook's in bfloat16.

    With untrained weights, eight bits decide about neighbours: two correct implementations do not agree in digits.
    """
    with step_form(TextbookDGCNN)(inputs) as exact, step_form(TextbookDGCNN, is_half=True)(inputs) as rounded:
        logits = exact()["logits"]
        allowed = 1.5 * float((rounded()["logits"] - logits).norm())
    distance = float((actual["logits"] - logits).norm())
    return None if distance <= allowed else f"logits are {distance:.3g} from float32, allowed is {allowed:.3g}"
