"""What the check of gradients finds of a dozen wrong backward passes, and that edges alone raise no alarm."""

from __future__ import annotations

from itertools import product

import pytest

from tests.cases import run_each
from tests.doctor.oracles.power import HEALTHY, NUM_SEEDS, PLANTED, alarms, found

_STEP = 1e-8  # that of layers; losses and layers of known types take a larger one, which is less sharp an exam


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_backward_pass_is_found_in_59_of_60_draws(name: str) -> None:
    """Of four rows, the first element is rightly the largest of each once in 256 draws."""
    planted = PLANTED[name]
    assert sum(found(planted, planted.shapes[0], seed, step=_STEP) for seed in range(NUM_SEEDS)) >= NUM_SEEDS - 1


@run_each("name", HEALTHY)
def test_a_right_backward_pass_raises_no_alarm(name: str) -> None:
    draws = product(range(NUM_SEEDS // 2), (1e-6, _STEP))
    assert not any(alarms(HEALTHY[name], (64,), seed, step=step) for seed, step in draws)
