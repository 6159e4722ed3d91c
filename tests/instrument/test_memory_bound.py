"""A bound of memory for what is built: the same tensors below it, and no larger one is ever made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sightline.contract.errors import UserError
from sightline.instrument.memory_bound import MemoryBound


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 8, 2), nn.BatchNorm1d(8), nn.Linear(100, 100), nn.Embedding(9, 4))


def test_what_is_built_within_the_bound_is_the_same() -> None:
    expected, bound = make(), MemoryBound(50_000)
    for _ in range(3):  # what is gone counts no more: each is 41 kB
        with bound:
            built = make().state_dict()
        assert all(torch.equal(tensor, built.pop(name)) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize(
    "make_much",
    [
        lambda: nn.Linear(10**9, 10**9),
        lambda: torch.zeros(10**12),
        lambda: torch.full((10**12,), 1.0),
        lambda: nn.Sequential(*(nn.Linear(100, 100) for _ in range(10))),
    ],
)
def test_one_tensor_too_much_is_refused_before_it_is_made(make_much: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=r"would take \S+ GB or more, this machine has 0\.0001 GB"), MemoryBound(10**5):
        make_much()
