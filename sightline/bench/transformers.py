"""Benchmarks of the Point Transformer: a training step against the textbook form, and a whole scene.

Three implementations: the textbook's, in which every layer searches its neighbours; ours with unfused layers (`plain`),
which search neighbours once; and ours.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from sightline.bench.case import BenchmarkCase, Implementation
from sightline.bench.models import IN_FLOAT64, close_in_float32, forward_form, spread_norms, step_form
from sightline.bench.textbook_transformer import TextbookPointTransformer
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.models.point_transformer import PointTransformer
from sightline.types import SampleKey

__all__ = ["cases"]

_QUICK = {"batch": 2, "points": 512}


def cases() -> list[BenchmarkCase]:
    step = BenchmarkCase(
        suite="models",
        label="point_transformer_step_{batch}x{points}",
        size={"batch": 16, "points": 1024},
        quick=_QUICK,
        make=_make_parts,
        baseline=Implementation("textbook", step_form(TextbookPointTransformer), close_in_float32),
        variants=(
            Implementation("plain", step_form(_build_plain), close_in_float32),
            Implementation("sightline", step_form(copy.deepcopy), close_in_float32),
        ),
        exactly=IN_FLOAT64,
    )
    # No textbook form for a scene: all distances among 80,000 points take 26 GB.
    scene = dataclasses.replace(
        step,
        label="point_transformer_scene_forward_{points}",
        size={"batch": 1, "points": 80_000},
        quick={"points": 2048},
        baseline=Implementation("plain", forward_form(_build_plain), close_in_float32),
        variants=(Implementation("sightline", forward_form(copy.deepcopy), close_in_float32),),
    )
    return [step, scene]


def _make_parts(*, batch: int, points: int) -> dict[str, Any]:
    """Make solids with part labels of their points, and a model with seeded weights."""
    shapes = SyntheticShapes(split="train", train_size=max(batch, 12), num_points=points, target="parts")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PointTransformer(num_classes=50, in_channels=3)
        spread_norms(model)
        for module in model.modules():
            # Where all points of a cloud are neighbours, the place of a point relative to itself is the mean of all:
            # with a bias of zero it would be exactly at the kink of the ReLU, and rounding would decide its gradient.
            if isinstance(module, nn.BatchNorm1d):
                nn.init.normal_(module.bias, std=0.1)
    clouds = shapes.get_batch([SampleKey(index, 0, 0) for index in range(batch)])
    return {"model": model, "points": clouds["points"], "label": clouds["label"]}


def _build_plain(ours: PointTransformer) -> PointTransformer:
    plain = PointTransformer(num_classes=ours.num_classes, in_channels=ours.in_channels, fused=False)
    plain.to(next(ours.parameters()).dtype).load_state_dict(ours.state_dict())
    return plain
