"""Training flags of models and of their batch norms, beside what a loop does with them."""

from __future__ import annotations

from typing import NamedTuple


class Evaluated(NamedTuple):
    """Passes in training mode without gradients between two updates, and the first layer that they are another for."""

    number: int
    is_intended: bool
    layer: str
    step: int


class Trained(NamedTuple):
    """Pass of an update in evaluation mode, its first layer of another mode, and True after passes in training mode."""

    layer: str
    has_trained: bool


class Norms(NamedTuple):
    """Batch norms by name: those in evaluation mode that train, and updates of the statistics of frozen ones."""

    held: list[str]
    moved: dict[str, int]
