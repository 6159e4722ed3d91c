"""Units in the last place against NumPy's, and what moving by them leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sightline.compare.formats import FORMATS


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_a_value_moves_by_the_unit_that_numpy_tells(name: str) -> None:
    format_ = next(each for each in FORMATS.values() if each.name == name)
    values = torch.tensor([1.0, -1.0, 1.5, 3.999, 0.1, -700.0, 2.0**-10], dtype=torch.float64)
    exact = values.to(getattr(torch, name))
    moved = format_.nudged(exact.double(), generator(), units=3)
    np.testing.assert_array_equal((moved - exact.double()).abs().numpy(), 3 * np.spacing(np.abs(exact.numpy())))


def test_zero_stays_zero_and_signs_are_drawn() -> None:
    values = torch.cat([torch.zeros(50), torch.ones(50)]).double()
    moved = FORMATS[torch.float32].nudged(values, generator())
    assert not moved[:50].any()
    assert len(moved[50:].unique()) == 2


def test_the_unit_of_the_largest() -> None:
    assert FORMATS[torch.float32].unit_of_largest(torch.tensor([0.5, -6.0, torch.inf])) == np.spacing(np.float32(6.0))
    assert FORMATS[torch.bfloat16].unit_of_largest(torch.tensor([1.0])) == 2.0**-7
