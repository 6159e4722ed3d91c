"""Training engine: the step, the loop, evaluation, processes, optimisers and schedules."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "optimizers": {"optimizers": "adam adamw rmsprop sgd"},
    "schedules": {"schedules": "constant cosine exponential one_cycle step"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
