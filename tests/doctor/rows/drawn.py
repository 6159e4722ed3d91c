"""Loops whose sets draw numbers of their own: in each epoch, or in their constructor and never again."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import sightline

_NUM_NODES = 40


class Edges(Dataset[Any]):
    """Edges of a graph, each with pairs of nodes that have none."""

    def __init__(self, edges: np.ndarray, num_nodes: int, share: int, *, how: str) -> None:
        self.edges, self.num_nodes, self.share, self.how = edges, num_nodes, share, how
        self.known = {tuple(edge) for edge in edges.tolist()}
        if how == "listed":
            self.apart = [self.draw_one() for _ in range(share * len(edges))]
        self.refresh()

    def draw_one(self) -> tuple[int, int]:
        while (pair := (random.randrange(self.num_nodes), random.randrange(self.num_nodes))) in self.known:
            pass
        return pair

    def refresh(self) -> None:
        """Draw the pairs without an edge."""
        if self.how == "array":
            drawn = np.random.randint(0, self.num_nodes, (self.share * len(self.edges), 2))
            self.apart = drawn

    def __len__(self) -> int:
        return (1 + self.share) * len(self.edges)

    def __getitem__(self, index: int) -> Any:
        number = index - len(self.edges)
        if number < 0:
            return torch.as_tensor(self.edges[index]), torch.tensor(1.0)
        pair = self.draw_one() if self.how == "read" else tuple(self.apart[number])
        return torch.tensor([int(one) for one in pair]), torch.tensor(0.0)


class Links(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nodes = nn.Embedding(_NUM_NODES, 8)

    def forward(self, pairs: Tensor) -> Tensor:
        one, other = self.nodes(pairs).unbind(1)
        return (one * other).sum(1)


def pairs_without_an_edge(bug: bool, *, how: str) -> None:
    """Train an embedding of nodes; the other pairs are drawn anew each epoch, in each read, or once."""
    ring = np.arange(_NUM_NODES)
    edges = np.concatenate([np.stack([ring, (ring + step) % _NUM_NODES], 1) for step in (1, 2, 3)])
    data = Edges(edges, _NUM_NODES, 2, how=how if bug or how == "array" else "read")
    model, loader = Links(), DataLoader(data, 32, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(4):
            if not bug:
                data.refresh()
            for pairs, wanted in loader:
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(model(pairs), wanted).backward()
                optimizer.step()


class Noisy(Dataset[Any]):
    """Tables beside noise, which a network is to take away: drawn in each read, or once."""

    def __init__(self, rows: Tensor, *, once: bool) -> None:
        self.rows = rows
        self.noise = 0.5 * torch.randn_like(rows) if once else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        noise = 0.5 * torch.randn_like(row) if self.noise is None else self.noise[index]
        return row + noise, row


class Made(Dataset[Any]):
    """Rows that the set makes itself, all of them."""

    def __init__(self, num: int) -> None:
        self.rows = torch.randn(num, 8)
        self.wanted = self.rows.cumsum(1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index], self.wanted[index]


class MadeOfClasses(Dataset[Any]):
    """Rows that the set makes for the classes that it is given."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.rows = F.one_hot(labels, 8) + 0.3 * torch.randn(len(labels), 8)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index], F.one_hot(self.labels[index], 8).float()


class Few(Dataset[Any]):
    """A part of the rows that is chosen once, in an order that is drawn once."""

    def __init__(self, rows: Tensor, num: int) -> None:
        chosen = np.random.choice(len(rows), num, replace=False)
        self.rows = rows[chosen][torch.randperm(num)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index], self.rows[index].flip(0)


_TABLE = np.linspace(-1.0, 1.0, 96 * 8, dtype=np.float32).reshape(96, 8)


class Shifted(Dataset[Any]):
    """Rows of a table that the module holds, each moved by a shift."""

    def __init__(self) -> None:
        self.rows = [row for row in _TABLE]
        self.move()

    def move(self) -> None:
        self.shifts = [random.uniform(-0.1, 0.1) for _ in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return torch.as_tensor(self.rows[index] + self.shifts[index]).float(), torch.as_tensor(self.rows[index])


def shifts_of_rows(bug: bool) -> None:
    data = Shifted()
    regress(data, begin=(lambda: None) if bug else data.move)


def regress(
    data: Dataset[Any], evaluation: Dataset[Any] | None = None, begin: Callable[[], None] = lambda: None
) -> None:
    model, loader = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), DataLoader(data, 16, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(4):
            begin()
            for values, wanted in loader:
                optimizer.zero_grad()
                F.mse_loss(model.train()(values), wanted).backward()
                optimizer.step()
            with torch.no_grad():
                for values, _ in DataLoader(evaluation, 16) if evaluation is not None else ():
                    model.eval()(values)


def noise_of_tables(bug: bool) -> None:
    regress(Noisy(torch.randn(96, 8), once=bug))


LOOPS: dict[str, tuple[str, Callable[[bool], None]]] = {
    **{
        f"pairs without an edge are drawn once, {how}": (
            "data.duplicate_randomness loss.negatives data.sampling",
            partial(pairs_without_an_edge, how=how),
        )
        for how in ("array", "listed")
    },
    "shifts are drawn once": ("data.duplicate_randomness", shifts_of_rows),
    "noise is drawn once": ("data.duplicate_randomness", noise_of_tables),
}
HEALTHY: dict[str, Callable[[], None]] = {
    "a set that makes all of its rows": lambda: regress(Made(96)),
    "a set that makes rows for its classes": lambda: regress(MadeOfClasses(torch.randint(0, 8, (96,)))),
    "a part of the rows that is chosen once": lambda: regress(Few(torch.randn(200, 8), 96)),
    "two parts of a set that makes its rows": lambda: regress(Subset(Made(120), range(96))),
    "noise of an evaluation that stays": lambda: regress(
        Noisy(torch.randn(96, 8), once=False), Noisy(torch.randn(32, 8), once=True)
    ),
    "tensors": lambda: regress(TensorDataset(torch.randn(96, 8), torch.randn(96, 8))),
}
