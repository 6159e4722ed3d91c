"""Benchmarks of training steps and forward passes of networks against textbook or unfused forms with the same weights.

A step is forward, cross-entropy, backward and SGD; of CrossPoint (two clouds and one view per object) with its
contrastive losses. Dropout is off, so that both compute the same; its cost is small.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.case import BenchmarkCase, Comparator, ExactComparison, Implementation, Run, allclose
from benchmarks.textbook import (
    TextbookDGCNN,
    TextbookDGCNNEncoder,
    TextbookPCT,
    TextbookPointNet2,
    TextbookPointTransformer,
)
from sightline.areas.clouds.models.dgcnn import DGCNN, DGCNNEncoder
from sightline.areas.clouds.models.pct import PCT
from sightline.areas.clouds.models.pointnet2 import PointNet2
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.contrast.crosspoint import CrossPoint
from sightline.areas.scenes.point_transformer import PointTransformer
from sightline.contract.types import SampleKey
from sightline.parts.losses.contrast import CrossModal, IntraModal
from sightline.parts.models.resnet import ResNet18Encoder

_TEMPERATURE = 0.1
MODELS: dict[str, tuple[type[nn.Module], Callable[[Any], nn.Module]]] = {
    "dgcnn": (DGCNN, TextbookDGCNN),
    "pct": (PCT, TextbookPCT),
    "pointnet2": (PointNet2, TextbookPointNet2),
}
QUICK = {"batch": 4, "points": 512}
NUM_CLASSES = 40


def cases() -> list[BenchmarkCase]:
    dgcnn, *other_steps = [step_case(name, batch=32, points=1024) for name in MODELS]
    forwards = [_make_forward_case(name) for name in MODELS]
    return [
        dgcnn,
        _make_half_case(),
        *other_steps,
        *forwards,
        _make_transformer_case(),
        _make_contrast_case(),
        *_make_unfused_cases(),
    ]


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


def _make_transformer_case() -> BenchmarkCase:
    """Make a case of three implementations: the textbook's, ours with unfused layers (`plain`), and ours.

    In the textbook's every layer searches its neighbours; in `plain` they are searched once.
    """
    return BenchmarkCase(
        suite="models",
        label="point_transformer_step_{batch}x{points}",
        size={"batch": 16, "points": 1024},
        quick={"batch": 2, "points": 512},
        make=make_parts,
        baseline=Implementation("textbook", step_form(TextbookPointTransformer), close_in_float32),
        variants=(
            Implementation("plain", step_form(_build_plain), close_in_float32),
            Implementation("sightline", step_form(copy.deepcopy), close_in_float32),
        ),
        exactly=IN_FLOAT64,
    )


def _make_unfused_cases() -> list[BenchmarkCase]:
    """Make the case of a scene, whose distances among 80,000 points no textbook form can hold (26 GB)."""
    return [
        BenchmarkCase(
            suite="models",
            label="point_transformer_scene_forward_{points}",
            size={"batch": 1, "points": 80_000},
            quick={"points": 2048},
            make=make_parts,
            baseline=Implementation("plain", forward_form(_build_plain), close_in_float32),
            variants=(Implementation("sightline", forward_form(copy.deepcopy), close_in_float32),),
            exactly=IN_FLOAT64,
        ),
    ]


# --- inputs -----------------------------------------------------------------------------------------------------------


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


def _is_close_as_textbook(inputs: Any, expected: dict[str, Any], actual: dict[str, Any]) -> str | None:
    """Check that bfloat16 logits are at most 1.5 times as far from float32 as the textbook's in bfloat16.

    With untrained weights, eight bits decide about neighbours: two correct implementations do not agree in digits.
    """
    with step_form(TextbookDGCNN)(inputs) as exact, step_form(TextbookDGCNN, is_half=True)(inputs) as rounded:
        logits = exact()["logits"]
        allowed = 1.5 * float((rounded()["logits"] - logits).norm())
    distance = float((actual["logits"] - logits).norm())
    return None if distance <= allowed else f"logits are {distance:.3g} from float32, allowed is {allowed:.3g}"


def make_parts(*, batch: int, points: int) -> dict[str, Any]:
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


# --- forms -----------------------------------------------------------------------------------------------------------


def _build_plain(ours: PointTransformer) -> nn.Module:
    """Build the model with unfused layers and the same weights."""
    return _copy_weights(
        ours, PointTransformer(num_classes=ours.num_classes, in_channels=ours.in_channels, fused=False)
    )


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


# --- rules -----------------------------------------------------------------------------------------------------------


def same_numbers(inputs: Any, expected: dict[str, Any], actual: dict[str, Any]) -> str | None:
    """Compare logits to 1e-9 of the largest, and the gradient of all weights, if any, to 1e-9 of its norm."""
    fault = allclose(1e-9)(inputs, expected["logits"], actual["logits"])
    if fault is not None or "gradients" not in expected:
        return fault
    expected_gradient, actual_gradient = (
        torch.cat([g.flatten() for g in result["gradients"]]) for result in (expected, actual)
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
IN_FLOAT64 = ExactComparison(_in_float64, same_numbers)


# --- contrastive step ------------------------------------------------------------------------------------------------


def _make_contrast_case() -> BenchmarkCase:
    return BenchmarkCase(
        suite="models",
        label="contrast_step_{batch}x{points}_{pixels}px",
        size={"batch": 16, "points": 1024, "pixels": 64},
        quick={"batch": 4, "points": 256, "pixels": 32},
        make=_make_objects,
        baseline=Implementation(
            "textbook", _make_contrast_step(_build_textbook_branch, _textbook_losses), close_in_float32
        ),
        variants=(Implementation("sightline", _make_contrast_step(copy.deepcopy, _compute_losses), close_in_float32),),
        exactly=IN_FLOAT64,
    )


def _make_objects(*, batch: int, points: int, pixels: int) -> dict[str, Any]:
    """Make clouds from two halves of the points of solids, and noise images: their content does not affect time."""
    shapes = SyntheticShapes(split="train", train_size=batch, num_points=2 * points)
    first, second = shapes.get_batch([SampleKey(index, 0, 0) for index in range(batch)])["points"].split(points, dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = DGCNNEncoder(in_channels=3, num_neighbours=15)
        model = CrossPoint(points=encoder, images=ResNet18Encoder())
        spread_norms(model)
        image = torch.randn(batch, 3, pixels, pixels)
    return {"model": model, "points": first.contiguous(), "other_points": second.contiguous(), "image": image}


def _make_contrast_step(
    build: Callable[[Any], nn.Module], losses: Callable[[dict[str, Tensor]], Tensor]
) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    """Make a step: forward, both losses, backward and SGD; returns the embeddings and all gradients."""

    @contextmanager
    def open_step(inputs: dict[str, Any]) -> Iterator[Run]:
        model = build(inputs["model"]).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def run() -> dict[str, Any]:
            optimizer.zero_grad(set_to_none=True)
            outputs = model(**{name: inputs[name] for name in ("points", "other_points", "image")})
            losses(outputs).backward()
            optimizer.step()
            embedded = torch.cat([outputs["first"], outputs["second"], outputs["pictured"]]).detach()
            return {"logits": embedded, "gradients": [parameter.grad for parameter in model.parameters()]}

        yield run

    return open_step


def _compute_losses(outputs: dict[str, Tensor]) -> Tensor:
    intra = IntraModal(temperature=_TEMPERATURE)(first=outputs["first"], second=outputs["second"])
    return (intra + CrossModal(temperature=_TEMPERATURE)(**outputs)).mean()


def _build_textbook_branch(ours: CrossPoint) -> CrossPoint:
    """Copy the network with the textbook point branch, which materialises every edge feature."""
    plain = copy.deepcopy(ours)
    plain.points = TextbookDGCNNEncoder(ours.points)
    return plain


def _textbook_losses(outputs: dict[str, Tensor]) -> Tensor:
    middle = (outputs["first"] + outputs["second"]) / 2
    return _textbook_nt_xent(outputs["first"], outputs["second"]) + _textbook_nt_xent(middle, outputs["pictured"])


def _textbook_nt_xent(first: Tensor, second: Tensor) -> Tensor:
    """Compute NT-Xent in its usual form, with the own row masked. Source: Chen et al. 2020, eq. 1."""
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    count = len(first)
    diagonal, label = torch.eye(count) * 1e9, torch.arange(count)
    losses = []
    for a, b in ((first, second), (second, first)):
        logits = torch.cat([a @ b.T / _TEMPERATURE, a @ a.T / _TEMPERATURE - diagonal.to(a)], dim=1)
        losses.append(F.cross_entropy(logits, label))
    return torch.stack(losses).mean()
