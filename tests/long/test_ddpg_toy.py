"""HAQ's agent on a toy whose optimum is known, for three seeds: some 20 s of CPU time."""

from __future__ import annotations

import pytest

from tests.compress.toys import closed_by_ddpg


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_closes_the_gap_between_uniform_and_the_optimum(seed: int) -> None:
    assert closed_by_ddpg(seed=seed, episodes=300) >= 0.95
