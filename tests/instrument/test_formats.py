"""Units in the last place against NumPy's, and what moving by them leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.instrument.float64 import Float32Draws
from sightline.instrument.formats import FORMATS, is_tf32_allowed
from tests.compare.steps import compared, guilty
from tests.devices import rounded_to


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_a_value_moves_by_the_unit_that_numpy_tells(name: str) -> None:
    format_ = next(each for each in FORMATS.values() if each.name == name)
    values = torch.tensor([1.0, -1.0, 1.5, 3.999, 0.1, -700.0, 2.0**-10], dtype=torch.float64)
    exact = values.to(getattr(torch, name))
    moved = format_.perturb(exact.double(), generator(), units=3)
    np.testing.assert_array_equal((moved - exact.double()).abs().numpy(), 3 * np.spacing(np.abs(exact.numpy())))


def test_zero_stays_zero_and_signs_are_drawn() -> None:
    values = torch.cat([torch.zeros(50), torch.ones(50)]).double()
    moved = FORMATS[torch.float32].perturb(values, generator())
    assert not moved[:50].any()
    assert len(moved[50:].unique()) == 2


def test_the_unit_of_the_largest() -> None:
    assert FORMATS[torch.float32].unit_of_largest(torch.tensor([0.5, -6.0, torch.inf])) == np.spacing(np.float32(6.0))
    assert FORMATS[torch.bfloat16].unit_of_largest(torch.tensor([1.0])) == 2.0**-7


@pytest.mark.parametrize(("backend", "operators"), [(torch.backends.cudnn, "conv"), (torch.backends.cuda, "matmul")])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_tf32_is_known_by_the_newer_switch(backend: Any, operators: str, precision: str) -> None:
    """Once it is set, torch refuses to read the older one."""
    with rounded_to(precision, getattr(backend, operators, None)):
        assert is_tf32_allowed(backend, operators) is (precision == "tf32")


class Noisy(nn.Module):
    """Draws in training, in ways that dropout's switch does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.layer = 1.0, nn.Linear(3, 8)

    def forward(self, points: Tensor) -> Tensor:
        dropped = F.dropout(self.factor * self.layer(points), 0.5)
        return dropped + 0.1 * torch.randn_like(dropped) * torch.empty_like(dropped).uniform_()


def test_a_network_that_draws_equals_itself() -> None:
    """Over seeds; what it computes otherwise beside its noise is found."""
    for seed in range(5):
        torch.manual_seed(seed)
        model, broken = Noisy(), Noisy()
        broken.load_state_dict(model.state_dict())
        broken.factor = 1.001
        batch = {"points": torch.randn(4, 3)}
        assert guilty(compared(model, model, batch)) == []
        assert guilty(compared(model, broken, batch)) != []


def test_a_network_that_draws_on_a_gpu_equals_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generator is stood in for by a number, which every draw raises."""
    drawn = [0]
    stand_ins = {
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "get_rng_state": lambda *device: torch.tensor(drawn[0]),
        "set_rng_state": lambda state, *device: drawn.__setitem__(0, int(state)),
    }

    class Drawing(nn.Linear):
        def forward(self, points: Tensor) -> Tensor:
            drawn[0] += 1
            return super().forward(points) * drawn[0]

    for name, function in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, function)
    model = Drawing(3, 8)
    rows = compared(model, model, {"points": torch.randn(4, 3)})
    assert guilty(rows) == []
    assert [row.deviation.undefined for row in rows] == [0] * len(rows), "each draw is repeated, so all is judged"


def test_float64_draws_what_float32_draws() -> None:
    for draw in (torch.randn_like, torch.rand_like, lambda values: values.clone().normal_(), torch.bernoulli):
        given = torch.full((5, 40), 0.5)
        torch.manual_seed(3)
        expected = draw(given)
        torch.manual_seed(3)
        with Float32Draws():
            found = draw(given.double())
        assert found.dtype == torch.float64
        assert torch.equal(found.float(), expected)
