"""A contrastive training step, two clouds and a view of every object, against the textbook form of its point branch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.bench.case import BenchmarkCase, ExactComparison, Implementation, Run
from sightline.bench.models import close_in_float32, same_numbers, spread_norms
from sightline.bench.textbook_models import TextbookDGCNNEncoder
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.losses.contrast import CrossModal, IntraModal
from sightline.models.crosspoint import CrossPoint
from sightline.models.dgcnn import DGCNNEncoder
from sightline.models.resnet import ResNet18Encoder
from sightline.types import SampleKey

__all__ = ["cases"]

_TEMPERATURE = 0.1


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="models",
            label="contrast_step_{batch}x{points}_{pixels}px",
            size={"batch": 16, "points": 1024, "pixels": 64},
            quick={"batch": 4, "points": 256, "pixels": 32},
            make=_objects,
            baseline=Implementation("textbook", _step(_textbook, _textbook_losses), close_in_float32),
            variants=(Implementation("sightline", _step(copy.deepcopy, _losses), close_in_float32),),
            exactly=ExactComparison(_in_float64, same_numbers),
        )
    ]


def _objects(*, batch: int, points: int, pixels: int) -> dict[str, Any]:
    """Two halves of the points of solids, and noise for images: what they show costs nothing."""
    shapes = SyntheticShapes(split="train", train_size=batch, num_points=2 * points)
    first, second = shapes.get_batch([SampleKey(index, 0, 0) for index in range(batch)])["points"].split(points, dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = DGCNNEncoder(in_channels=3, num_neighbours=15)
        model = CrossPoint(points=encoder, images=ResNet18Encoder())
        spread_norms(model)
        image = torch.randn(batch, 3, pixels, pixels)
    return {"model": model, "points": first.contiguous(), "other_points": second.contiguous(), "image": image}


def _step(
    build: Callable[[Any], nn.Module], losses: Callable[[dict[str, Tensor]], Tensor]
) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    """Forward, both losses, backward and SGD; the answer holds the embeddings and the gradient of all weights."""

    @contextmanager
    def opened(inputs: dict[str, Any]) -> Iterator[Run]:
        model = build(inputs["model"]).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def run() -> dict[str, Any]:
            optimizer.zero_grad(set_to_none=True)
            outputs = model(**{name: inputs[name] for name in ("points", "other_points", "image")})
            losses(outputs).backward()
            optimizer.step()
            embedded = torch.cat([outputs["first"], outputs["second"], outputs["pictured"]]).detach()
            return {"logits": embedded, "gradients": [each.grad for each in model.parameters()]}

        yield run

    return opened


def _losses(outputs: dict[str, Tensor]) -> Tensor:
    intra = IntraModal(temperature=_TEMPERATURE)(first=outputs["first"], second=outputs["second"])
    return (intra + CrossModal(temperature=_TEMPERATURE)(**outputs)).mean()


def _textbook(ours: CrossPoint) -> CrossPoint:
    """The same network with the point branch that users know: every edge feature written out."""
    plain = copy.deepcopy(ours)
    plain.points = TextbookDGCNNEncoder(ours.points)
    return plain


def _textbook_losses(outputs: dict[str, Tensor]) -> Tensor:
    middle = (outputs["first"] + outputs["second"]) / 2
    return _textbook_nt_xent(outputs["first"], outputs["second"]) + _textbook_nt_xent(middle, outputs["pictured"])


def _textbook_nt_xent(first: Tensor, second: Tensor) -> Tensor:
    """As users write it: each side's logits against both, the own row masked. Source: Chen et al. 2020, eq. 1."""
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    count = len(first)
    own, label = torch.eye(count) * 1e9, torch.arange(count)
    sides = []
    for a, b in ((first, second), (second, first)):
        logits = torch.cat([a @ b.T / _TEMPERATURE, a @ a.T / _TEMPERATURE - own.to(a)], dim=1)
        sides.append(F.cross_entropy(logits, label))
    return torch.stack(sides).mean()


def _in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Four of the objects, and the same weights."""
    small = {name: inputs[name][:4].double() for name in ("points", "other_points", "image")}
    return {"model": copy.deepcopy(inputs["model"]).double(), **small}
