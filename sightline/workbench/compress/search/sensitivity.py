"""Sensitivity table of additive searches: the loss increase of each layer alone, for each choice."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from sightline.compression.policy import FP32
from sightline.contract.errors import ConfigError
from sightline.workbench.compress.problem import SearchProblem
from sightline.workbench.compress.search.base import PolicyEvaluator

TableEvaluations = Annotated[int, Ge(2), Le(100_000)]
"""Largest number of evaluations for a sensitivity table."""
_MIN_INCREASE = 1e-12
"""Smallest loss increase, as a share of the loss, in the logarithmic interpolation."""


def num_measured(problem: SearchProblem, table_evaluations: int) -> int:
    """Return the number of choices evaluated per layer. Raises ConfigError if there is not even one."""
    num = min(len(problem.choices), table_evaluations // len(problem.searched_layers))
    if num == 0:
        raise ConfigError(
            f"table_evaluations: {table_evaluations} are fewer than the {len(problem.searched_layers)} "
            "layers; give one for each"
        )
    return num


def sensitivity(problem: SearchProblem, evaluator: PolicyEvaluator, *, table_evaluations: int) -> np.ndarray:
    """Measure the loss increase (L, C), at least 0, of one searched layer with a choice and all others in float.

    If `table_evaluations` do not suffice for all choices, those nearest to the uniform choice of the budget are
    evaluated. Between them the logarithm is interpolated over the bits; beyond them one bit is a factor of 4, as for
    the squared error of rounding. Source: Yao et al. 2021 (HAWQ-V3), section 3, for the sum over layers.
    """
    order = sorted(range(len(problem.choices)), key=lambda level: (abs(level - problem.uniform_level), level))
    measured_levels = sorted(order[: num_measured(problem, table_evaluations)])
    rises = np.zeros((len(problem.searched_layers), len(measured_levels)))
    for row, layer in enumerate(problem.searched_layers):
        for column, level in enumerate(measured_levels):
            policy = {**problem.float_policy, layer.name: problem.choices[level]}
            rises[row, column] = max(0.0, evaluator.loss(policy) - evaluator.float_loss)
    if len(measured_levels) == len(problem.choices):
        return rises
    bits, all_bits = np.asarray(problem.bits)[measured_levels], np.asarray(problem.bits)
    logs = np.log2(np.maximum(rises, _MIN_INCREASE * max(1.0, abs(evaluator.float_loss))))
    extrapolation = -2.0 * (np.minimum(all_bits - bits[0], 0) + np.maximum(all_bits - bits[-1], 0))
    table = np.exp2(np.stack([np.interp(all_bits, bits, row) for row in logs]) + extrapolation)
    table[:, measured_levels] = rises
    table[:, [choice == FP32 for choice in problem.choices]] = 0.0
    return table
