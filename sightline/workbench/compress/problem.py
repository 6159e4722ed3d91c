"""Search problem: layers, choices, protected layers, and a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np

from sightline.compression.policy import FP32, Policy, WeightFormat
from sightline.contract.errors import ConfigError
from sightline.workbench.compress.curvature import Curvature
from sightline.workbench.compress.layer_costs import LayerCost

Levels: TypeAlias = tuple[int, ...]
"""Index into `choices` for each searched layer, in order."""


@dataclass(frozen=True)
class SearchProblem:
    """Search problem: formats of layers (`choices`, fewest bits first) within `budget_bytes` by `bytes_of(policy)`.

    Policies contain every layer: `protected` layers with their given format, other `unused` layers with the first
    choice. Fewer bits must never need more bytes. `curvature` is called by searches that need it. `subject` identifies
    the weights and samples of the losses.
    """

    layers: tuple[LayerCost, ...]
    choices: tuple[WeightFormat, ...]
    bytes_of: Callable[[Policy], int]
    budget_bytes: int
    protected: Mapping[str, WeightFormat] = field(default_factory=dict)
    curvature: Callable[[], Curvature] | None = None
    unused: frozenset[str] = frozenset()
    subject: str = ""

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
        """The bits of each choice."""
        return tuple(choice.bits for choice in self.choices)

    @cached_property
    def searched_layers(self) -> tuple[LayerCost, ...]:
        """The layers whose format a search chooses."""
        return tuple(layer for layer in self.layers if layer.name not in {*self.protected, *self.unused})

    @property
    def lowest(self) -> Levels:
        """The levels with the fewest bits for every searched layer."""
        return (0,) * len(self.searched_layers)

    @property
    def highest(self) -> Levels:
        """The levels with the most bits for every searched layer."""
        return (len(self.choices) - 1,) * len(self.searched_layers)

    @cached_property
    def float_policy(self) -> Policy:
        """The policy of the float model: every layer in float32."""
        return {layer.name: FP32 for layer in self.layers}

    def policy(self, levels: Sequence[int]) -> Policy:
        """Convert levels to the policy of all layers."""
        chosen = dict.fromkeys(self.unused, self.choices[0])
        chosen |= {layer.name: self.choices[level] for layer, level in zip(self.searched_layers, levels, strict=True)}
        return {layer.name: self.protected.get(layer.name) or chosen[layer.name] for layer in self.layers}

    def levels(self, policy: Policy) -> Levels:
        """Convert a policy to the levels of the searched layers."""
        return tuple(self.choices.index(policy[layer.name]) for layer in self.searched_layers)

    def bytes(self, levels: Sequence[int]) -> int:
        """Return the bytes of the policy of these levels, by `bytes_of`."""
        return self.bytes_of(self.policy(levels))

    def fits_budget(self, levels: Sequence[int]) -> bool:
        """Return True if the policy of these levels is within the budget."""
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

    @property
    def uniform_policy(self) -> Policy:
        """The policy of a feasible problem with the most bits that all searched layers can have alike."""
        return self.policy([self.uniform_level] * len(self.searched_layers))


def lower_to_budget(
    levels: Sequence[int], holds: Callable[[tuple[int, ...]], bool], *, floors: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Lower levels by one, from the last to the first, in sweeps, until `holds(levels)`; floors are respected.

    `holds` must be monotonic, since the end is found by bisection. If it is never true, the lowest levels are
    returned. Source: Wang et al. 2019 (HAQ), section 3, and the authors' code.
    """
    start, ends = np.asarray(levels), np.zeros(len(levels), np.int64) if floors is None else np.asarray(floors)
    num_lowerings = np.maximum(start - ends, 0)
    steps = [
        layer
        for sweep in range(int(num_lowerings.max(initial=0)))
        for layer in np.flatnonzero(num_lowerings > sweep)[::-1]
    ]

    def levels_after(count: int) -> tuple[int, ...]:
        return tuple((start - np.bincount(steps[:count], minlength=len(start))).tolist())

    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(levels_after(middle)) else (middle + 1, high)
    return levels_after(low)


def actions_to_levels(actions: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """Convert actions (L,) in [0, 1] to indices (L,) int64 into the ascending `bits`, by equal intervals.

    Source: Wang et al. 2019 (HAQ), section 3, and the authors' code, whose rounding, half to even, is kept for ranges
    without gaps. Their result is not clipped: an action of 0 is 0 bits there if the range begins at 1.
    """
    num, first = len(bits), bits[0]
    has_gaps = bits[-1] - first + 1 != num
    indices = np.floor(num * actions) if has_gaps else np.round(num * actions + first - 0.5) - first
    return np.clip(indices, 0, num - 1).astype(np.int64)
