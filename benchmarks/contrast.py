"""Benchmark of a contrastive training step (two clouds and one view per object) against its textbook form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.textbook_models import TextbookDGCNNEncoder
from sightline.bench.case import BenchmarkCase, ExactComparison, Implementation, Run
from sightline.bench.networks import close_in_float32, same_numbers, spread_norms
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.losses.contrast import CrossModal, IntraModal
from sightline.models.crosspoint import CrossPoint
from sightline.models.dgcnn import DGCNNEncoder
from sightline.models.resnet import ResNet18Encoder
from sightline.types import SampleKey

_TEMPERATURE = 0.1


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="models",
            label="contrast_step_{batch}x{points}_{pixels}px",
            size={"batch": 16, "points": 1024, "pixels": 64},
            quick={"batch": 4, "points": 256, "pixels": 32},
            make=_make_objects,
            baseline=Implementation("textbook", _make_step(_make_textbook, _textbook_losses), close_in_float32),
            variants=(Implementation("sightline", _make_step(copy.deepcopy, _compute_losses), close_in_float32),),
            exactly=ExactComparison(_in_float64, same_numbers),
        )
    ]


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


def _make_step(
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


def _make_textbook(ours: CrossPoint) -> CrossPoint:
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


def _in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return four of the objects, and the same weights, in float64."""
    small = {name: inputs[name][:4].double() for name in ("points", "other_points", "image")}
    return {"model": copy.deepcopy(inputs["model"]).double(), **small}
