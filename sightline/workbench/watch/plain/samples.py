"""Reads of a user's data set with chosen random numbers, and the arrays and numbers of what they return."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from sightline.contract.pytree import tree_leaves

SEEDS = (11, 12)
"""Seeds of reads whose random numbers are to be the same, or others."""


_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


class OutOfReadingTimeError(Exception):
    """The samples of a data set have been read for as long as they may be."""


@contextmanager
def limit_reading(seconds: float) -> Iterator[None]:
    """Context in which `read` raises OutOfReadingTimeError after so many seconds, waiting included."""
    token = _deadline.set(time.perf_counter() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


class Item(NamedTuple):
    """Sample of a data set, with its inputs and target."""

    inputs: Any
    target: Any


def seed_globally(seed: int) -> None:
    """Seed the global random generators of Python, NumPy and torch's CPU; those of GPUs are the loop's."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def read(loader: DataLoader[Any], index: int, seed: int) -> Any:
    """Read a sample of the loader's data set after the global random generators have been seeded."""
    if time.perf_counter() > _deadline.get():
        raise OutOfReadingTimeError
    seed_globally(seed)
    return loader.dataset[index]


def list_indices(loader: DataLoader[Any], count: int) -> list[int]:
    """List up to `count` indices that lie evenly over the data set."""
    size = len(loader.dataset)  # type: ignore[arg-type]
    return sorted({round(i * (size - 1) / max(1, count - 1)) for i in range(min(count, size))})


def list_leaves(tree: Any) -> list[Any]:
    """List the tensors, arrays and numbers of a nested sample, in their order."""
    if isinstance(tree, np.ndarray | int | float | np.generic):
        return [tree]
    if isinstance(tree, list | tuple | Mapping):
        parts = tree.values() if isinstance(tree, Mapping) else tree
        return [leaf for part in parts for leaf in list_leaves(part)]
    return [tensor for _, tensor in tree_leaves(tree)]


def to_bytes(tree: Any) -> list[bytes]:
    """Return the bits of each leaf of a nested sample."""
    leaves = [torch.as_tensor(leaf) for leaf in list_leaves(tree)]
    return [leaf.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() for leaf in leaves]
