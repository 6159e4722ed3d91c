"""Odd but correct loops raise nothing; their broken twins, which a second blind exam asked for, are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.runtime import odd_healthy_loops as loops

_SLOW = (loops.slots_that_start_at_random, loops.a_mixture_of_probabilities_and_their_logarithm)


@pytest.mark.parametrize(
    "run", [pytest.param(run, marks=pytest.mark.long) if run in _SLOW else run for run in loops.LOOPS]
)
def test_an_odd_loop_raises_nothing(run: Callable[[], list[Any]]) -> None:
    torch.manual_seed(0)
    assert [str(finding) for finding in run()] == []


@pytest.mark.parametrize(
    ("run", "code", "cause"),
    [
        (lambda: loops.play(clears=False), "gradients-kept", "optim.grad_accumulation"),
        (lambda: loops.fine_tune(holds=False), "mode", "model.norm_mode"),
        (lambda: loops.schedule(is_factor=False), "schedule", "optim.scheduler"),
        (lambda: loops.compute_shortly(keeps_weights=False), "no-update", "model.numerics"),
    ],
    ids=["gradients of another loss", "statistics of a frozen part", "a rate as a factor", "weights in bfloat16"],
)
def test_a_broken_twin_of_a_loop_is_named(run: Callable[[], list[Any]], code: str, cause: str) -> None:
    torch.manual_seed(0)
    assert [(finding.code, finding.cause) for finding in run()] == [(code, cause)]
