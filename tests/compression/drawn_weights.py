"""Weights of all kinds of layers, drawn from a seed: shapes of distributions, ties, constants, few elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["KINDS", "drawn", "random_layers"]

_Draw = Callable[[np.random.Generator, int], np.ndarray]
KINDS: dict[str, _Draw] = {
    "normal": lambda draw, count: draw.standard_normal(count),
    "laplace": lambda draw, count: draw.laplace(size=count),
    "uniform": lambda draw, count: draw.random(count),
    "heavy-tailed": lambda draw, count: draw.standard_cauchy(count),
    "lognormal": lambda draw, count: draw.lognormal(0, 2, count),
    "bimodal": lambda draw, count: 0.05 * draw.standard_normal(count) + draw.choice([-1, 1], count),
    "tight": lambda draw, count: 1e-5 * draw.standard_normal(count) + draw.choice([-1, 0.3, 1], count),
    "rounded": lambda draw, count: np.round(20 * draw.standard_normal(count)) / 20,
    "pruned": lambda draw, count: draw.standard_normal(count) * (draw.random(count) < 0.3),
    "two values": lambda draw, count: draw.choice([-0.5, 0.25], count),
    "constant": lambda draw, count: np.full(count, 0.37),
    "small": lambda draw, count: 1e-6 * draw.standard_normal(count),
    "large": lambda draw, count: 1e5 * draw.standard_normal(count),
}


def drawn(draw: np.random.Generator, kind: str, count: int) -> np.ndarray:
    return KINDS[kind](draw, count).astype(np.float32)


def random_layers(number: int, *, most: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """(kind, bits, weights) of so many layers; a quarter have fewer than 40 elements."""
    draw, names = np.random.default_rng(25), list(KINDS)
    for turn in range(number):
        kind, bits = names[turn % len(names)], 1 + turn // len(names) % 8
        count = int(draw.integers(1, 40 if draw.random() < 0.25 else most))
        yield kind, bits, drawn(draw, kind, count)
