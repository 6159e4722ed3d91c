"""Problems with a known loss: sizes of packed weights and codebooks, and a separable or a coupled loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sightline.compression.policy import FP32, Policy, WeightFormat
from sightline.workbench.compress.evaluations import EvaluationCache
from sightline.workbench.compress.layer_costs import LayerCost
from sightline.workbench.compress.problem import SearchProblem
from sightline.workbench.compress.search.base import PolicyEvaluator
from sightline.workbench.compress.search.ddpg import DDPG
from sightline.workbench.compress.search.knapsack import best_levels

HEADER_BYTES = 12


def file_bytes(layers: tuple[LayerCost, ...]) -> Callable[[Policy], int]:
    """A file as the specification's: indices, codebooks, and a header that states where each tensor begins."""

    def size(policy: Policy) -> int:
        total, header = 0, HEADER_BYTES
        for layer in layers:
            choice = policy[layer.name]
            header += len(layer.name) + len(f"{choice.kind}{choice.bits}{total}")
            packed = -(-choice.bits * layer.num_weights // 8) + 2 * 2**choice.bits if choice.bits <= 8 else 10**9
            total += min(packed, 2 * layer.num_weights) if choice.bits <= 16 else 4 * layer.num_weights
        return total + header

    return size


def made(
    seed: int, *, num_layers: int = 6, bits: tuple[int, ...] = tuple(range(1, 9)), coupled: bool = False
) -> tuple[SearchProblem, Callable[[Policy], float]]:
    """A problem at about 2.5 bits, and its loss: layers of random sizes, coupled in pairs if asked."""
    draws = np.random.default_rng(seed)
    sizes = (10 ** draws.uniform(2, 4.5, num_layers)).astype(int)
    layers = tuple(
        LayerCost(f"layer{place}.weight", int(size), in_channels=8 * (place + 1), out_channels=int(size))
        for place, size in enumerate(sizes)
    )
    weight = 10 ** draws.uniform(-1.5, 0.5, num_layers)
    decay = draws.uniform(1.5, 4, num_layers)

    def loss_of(policy: Policy) -> float:
        terms = np.asarray(
            [
                0.0 if policy[layer.name].bits == 32 else w * d ** -policy[layer.name].bits
                for layer, w, d in zip(layers, weight, decay, strict=True)
            ]
        )
        return float(0.2 + terms.sum() + (40 * (terms[1:] * terms[:-1]).sum() if coupled else 0.0))

    choices = tuple(WeightFormat("codebook", each) for each in bits)
    problem = SearchProblem(layers, choices, file_bytes(layers), budget_bytes=0)
    budget = max(problem.bytes(problem.lowest), int(2.5 / 8 * sizes.sum()))
    return replace(problem, budget_bytes=budget), loss_of


def counted(loss_of: Callable[[Policy], float]) -> tuple[EvaluationCache, list[Policy]]:
    """Evaluations, and every policy that was really evaluated."""
    asked: list[Policy] = []

    def count(policy: Policy) -> float:
        asked.append(policy)
        return loss_of(policy)

    return EvaluationCache(count), asked


def closed_by_ddpg(*, seed: int, episodes: int) -> float:
    """The share of the gap between uniform bits and the optimum that DDPG closes, before the driver fills the budget.

    Of five equally large layers, with a separable loss that falls by 4 for each bit, and 3.2 bits on average.
    """
    layers = tuple(LayerCost(f"layer{place}", 1000, 8 * (place + 1), 8 * (place + 2)) for place in range(5))
    weights = dict(zip((layer.name for layer in layers), (8.0, 0.1, 1.0, 0.02, 4.0), strict=True))

    def size(policy: Policy) -> int:
        return sum(1000 * choice.bits for choice in policy.values()) // 8

    def loss_of(policy: Policy) -> float:
        return sum(weights[name] * 4.0**-choice.bits for name, choice in policy.items() if choice != FP32)

    problem = SearchProblem(
        layers, tuple(WeightFormat("codebook", bits) for bits in range(1, 9)), size, budget_bytes=2000
    )
    costs = np.asarray([[weights[layer.name] * 4.0**-bits for bits in problem.bits] for layer in layers])
    optimum, uniform = (
        loss_of(problem.policy(levels)) for levels in (best_levels(problem, costs), [problem.uniform_level] * 5)
    )
    evaluator = PolicyEvaluator(problem, EvaluationCache(loss_of), at_most=1000)
    found = loss_of(DDPG(episodes=episodes, max_evaluations=1000, seed=seed).run(problem, evaluator))
    return (uniform - found) / (uniform - optimum)
