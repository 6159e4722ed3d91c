"""Search problem: layers, choices, protected layers, and a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from sightline.aliases import keep_old_members
from sightline.compress.cost import LayerCost
from sightline.compress.policy import FP32, Policy, WeightFormat, lower_to_budget
from sightline.errors import ConfigError

__all__ = ["Curvature", "Levels", "Problem"]

Levels: TypeAlias = tuple[int, ...]
"""Index into `choices` for each searched layer, in order."""


class Curvature(NamedTuple):
    """Curvature for searches by the Hessian: differentiable loss, parameters, and squared error of a choice."""

    loss_of: Callable[[], Tensor]
    parameters: Mapping[str, Tensor]
    error_of: Callable[[str, WeightFormat], float]


@keep_old_members(enforced="lower_to_budget", free="searched_layers")
@dataclass(frozen=True)
class Problem:
    """Search problem: formats of layers (`choices`, fewest bits first) within `budget_bytes` by `bytes_of(policy)`.

    Policies contain every layer: `protected` layers with their given format, other `unused` layers with the first
    choice. Fewer bits must never need more bytes. `curvature` is called by searches that need it.
    """

    layers: tuple[LayerCost, ...]
    choices: tuple[WeightFormat, ...]
    bytes_of: Callable[[Policy], int]
    budget_bytes: int
    protected: Mapping[str, WeightFormat] = field(default_factory=dict)
    curvature: Callable[[], Curvature] | None = None
    unused: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        bits = self.bits
        if not bits or list(bits) != sorted(set(bits)):
            raise ConfigError(f"bits: found {', '.join(map(str, bits)) or 'none'}; give each once, fewest first")
        if not self.searched_layers:
            raise ConfigError("protect: protects every layer; leave at least one to the search")

    def assert_feasible(self, *, base_bytes: int) -> None:
        """Raise ConfigError, with the smallest size and ratio, if the budget is below them."""
        smallest = self.bytes(self.lowest)
        if smallest > self.budget_bytes:
            ratio = np.ceil(1e5 * smallest / base_bytes) / 1e5
            raise ConfigError(
                f"budget: {self.budget_bytes:,} bytes are too few; the smallest policy, {self.choices[0]} and "
                f"{len(self.protected)} protected layers, takes {smallest:,} bytes, a ratio of {ratio:.5f}; raise the "
                "budget, or allow fewer bits"
            )

    @property
    def bits(self) -> tuple[int, ...]:
        return tuple(choice.bits for choice in self.choices)

    @cached_property
    def searched_layers(self) -> tuple[LayerCost, ...]:
        """The layers whose format a search chooses."""
        return tuple(layer for layer in self.layers if layer.name not in {*self.protected, *self.unused})

    @property
    def lowest(self) -> Levels:
        return (0,) * len(self.searched_layers)

    @property
    def highest(self) -> Levels:
        return (len(self.choices) - 1,) * len(self.searched_layers)

    @cached_property
    def float_policy(self) -> Policy:
        """The policy of the float model: every layer in float32."""
        return {layer.name: FP32 for layer in self.layers}

    def policy(self, levels: Sequence[int]) -> Policy:
        chosen = dict.fromkeys(self.unused, self.choices[0])
        chosen |= {layer.name: self.choices[level] for layer, level in zip(self.searched_layers, levels, strict=True)}
        return {layer.name: self.protected.get(layer.name) or chosen[layer.name] for layer in self.layers}

    def levels(self, policy: Policy) -> Levels:
        return tuple(self.choices.index(policy[layer.name]) for layer in self.searched_layers)

    def bytes(self, levels: Sequence[int]) -> int:
        return self.bytes_of(self.policy(levels))

    def fits_budget(self, levels: Sequence[int]) -> bool:
        return self.bytes(levels) <= self.budget_bytes

    def lower_to_budget(self, levels: Sequence[int]) -> Levels:
        """Lower the levels, from the last layer to the first, until they fit the budget."""
        return lower_to_budget(levels, self.fits_budget)

    def single_raises(self, policy: Policy) -> Iterator[tuple[str, Policy]]:
        """Iterate over (layer, policy) with that layer raised by one choice, for each raise within the budget."""
        for layer, level in zip(self.searched_layers, self.levels(policy), strict=True):
            if level + 1 < len(self.choices):
                raised = {**policy, layer.name: self.choices[level + 1]}
                if self.bytes_of(raised) <= self.budget_bytes:
                    yield layer.name, raised

    @cached_property
    def sizes(self) -> np.ndarray:
        """Bytes (L, C) int64 that each choice of each searched layer adds to the lowest policy.

        A file's size is their sum, except for a few bytes of its header.
        """
        low, num = self.lowest, len(self.choices)
        rows = [[self.bytes((*low[:p], level, *low[p + 1 :])) for level in range(num)] for p in range(len(low))]
        return np.asarray(rows, dtype=np.int64) - self.bytes(low)

    @cached_property
    def uniform_level(self) -> int:
        """The highest level at which all searched layers together fit the budget; 0 if none does."""
        fitting = (
            level for level in range(len(self.choices)) if self.fits_budget((level,) * len(self.searched_layers))
        )
        return max(fitting, default=0)
