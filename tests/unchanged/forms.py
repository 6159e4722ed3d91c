"""Forms in which programs have their batches, each with a model that takes them and the loss that a loop computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, NUM_CLASSES = 6, 3
Rows = tuple[Tensor, Tensor]
"""Inputs (B, 6) and classes (B,)."""


class Net(nn.Module):
    """Small network of rows with a batch norm and dropout: all that a pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(12, NUM_CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.body(rows))


class OfLengths(Net):
    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(rows * (torch.arange(WIDTH) < lengths[:, None]))


class OfMapping(Net):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch["rows"])


class OfNested(Net):
    def forward(self, inputs: Any) -> Tensor:
        return super().forward(inputs["rows"] + inputs["shift"])


class OfTwo(Net):
    def forward(self, rows: Tensor, shift: Tensor) -> Tensor:
        return super().forward(rows + shift)


class OfList(Net):
    def forward(self, samples: Any) -> Tensor:
        return super().forward(torch.stack([sample["rows"] for sample in samples]))


class OfSparse(Net):
    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows.to_dense())


class OfGraph(Net):
    def forward(self, graph: Any) -> Tensor:
        first, second = graph.edges
        return super().forward(graph.rows.index_add(0, first, 0.1 * graph.rows[second]))


class Graph:
    """Batch of an object of the user's own, with rows, edges (2, E) and classes."""

    def __init__(self, rows: Tensor, label: Tensor) -> None:
        self.rows, self.label = rows, label
        self.edges = torch.stack([torch.arange(len(rows)), torch.arange(len(rows)).roll(1)])


class Pair(NamedTuple):
    rows: Tensor
    label: Tensor


@dataclasses.dataclass
class Record:
    rows: Tensor
    label: Tensor
    names: list[str]


def measure(logits: Tensor, label: Tensor) -> Tensor:
    """The loss of most forms."""
    return F.cross_entropy(logits, label)


def measure_weighted(logits: Tensor, target: Any) -> Tensor:
    label, weight = target
    return (F.cross_entropy(logits, label, reduction="none") * weight).mean()


def reconstruct(logits: Tensor, rows: Tensor) -> Tensor:
    return F.mse_loss(logits, rows[:, :NUM_CLASSES])


class BatchForm(NamedTuple):
    """How rows are packed to a batch, what the model is called with, and what the loss gets."""

    pack: Callable[[Tensor, Tensor], Any]
    arguments: Callable[[Any], tuple[Any, ...]]
    target: Callable[[Any], Any]
    model: Callable[[], nn.Module] = Net
    loss: Callable[[Any, Any], Tensor] = measure

    def collate(self, samples: Sequence[Rows]) -> Any:
        rows, label = (torch.stack([sample[place] for sample in samples]) for place in (0, 1))
        return self.pack(rows, label)

    def compute(self, model: Callable[..., Any], batch: Any) -> Tensor:
        return self.loss(model(*self.arguments(batch)), self.target(batch))


def _lengths(label: Tensor) -> Tensor:
    return label + 3


def _names(label: Tensor) -> list[str]:
    return [f"{place}.png" for place in range(len(label))]


FORMS: dict[str, BatchForm] = {
    "pair": BatchForm(lambda x, y: (x, y), lambda b: b[:1], lambda b: b[1]),
    "inputs alone": BatchForm(lambda x, y: x, lambda b: (b,), lambda b: b, Net, reconstruct),
    "tuple of one": BatchForm(lambda x, y: (x,), lambda b: b, lambda b: b[0], Net, reconstruct),
    "lengths": BatchForm(lambda x, y: (x, _lengths(y), y), lambda b: b[:2], lambda b: b[2], OfLengths),
    "weights": BatchForm(
        lambda x, y: (x, y, 1.0 / _lengths(y)), lambda b: b[:1], lambda b: b[1:], Net, measure_weighted
    ),
    "mapping": BatchForm(lambda x, y: {"rows": x, "label": y}, lambda b: (b,), lambda b: b["label"], OfMapping),
    "mapping of mappings": BatchForm(
        lambda x, y: {"inputs": {"rows": x, "shift": 0.1 * x.roll(1, 0)}, "target": {"label": y}},
        lambda b: (b["inputs"],),
        lambda b: b["target"]["label"],
        OfNested,
    ),
    "list": BatchForm(lambda x, y: [x, y], lambda b: (b[0],), lambda b: b[1]),
    "list of mappings": BatchForm(
        lambda x, y: [{"rows": row, "label": label} for row, label in zip(x, y, strict=True)],
        lambda b: (b,),
        lambda b: torch.stack([sample["label"] for sample in b]),
        OfList,
    ),
    "names": BatchForm(
        lambda x, y: {"rows": x, "label": y, "name": _names(y)}, lambda b: (b,), lambda b: b["label"], OfMapping
    ),
    "nested tuples": BatchForm(
        lambda x, y: ((x, 0.1 * x.roll(1, 0)), (y, 1.0 / _lengths(y))),
        lambda b: b[0],
        lambda b: b[1],
        OfTwo,
        measure_weighted,
    ),
    "named tuple": BatchForm(Pair, lambda b: (b.rows,), lambda b: b.label),
    "object": BatchForm(lambda x, y: Record(x, y, _names(y)), lambda b: (b.rows,), lambda b: b.label),
    "sparse": BatchForm(lambda x, y: (x.relu().to_sparse(), y), lambda b: b[:1], lambda b: b[1], OfSparse),
    "graph": BatchForm(Graph, lambda b: (b,), lambda b: b.label, OfGraph),
}
