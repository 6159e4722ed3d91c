"""How outputs end is read off the graph, through views, and in whatever way the function was called."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.workbench.fit.network import WithoutActivation, find_output_activation
from tests.cases import run_each


class Ends(nn.Module):
    """A linear layer, a function in the middle, and one at the end."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.end = nn.Linear(4, 6), nn.Linear(6, 6), end

    def forward(self, *, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.end(self.last(torch.relu(self.first(x)))).view(-1, 2, 3).transpose(1, 2)}


def forward(model: Any) -> dict[str, Tensor]:
    given: dict[str, Tensor] = model(x=torch.linspace(-1, 1, 20).view(5, 4))
    return given


ENDS = {
    "relu": (torch.relu, (0.0, math.inf)),
    "functional": (F.relu, (0.0, math.inf)),
    "module": (nn.ReLU(), (0.0, math.inf)),
    "method": (lambda x: x.relu(), (0.0, math.inf)),
    "in place": (nn.ReLU(inplace=True), (0.0, math.inf)),
    "sigmoid": (torch.sigmoid, (0.0, 1.0)),
    "tanh": (nn.Tanh(), (-1.0, 1.0)),
    "softmax": (lambda x: x.softmax(-1), (0.0, 1.0)),
    "softplus": (F.softplus, (0.0, math.inf)),
}


@run_each("name", ENDS)
def test_the_end_is_named_and_can_be_left_out(name: str) -> None:
    end, bounds = ENDS[name]
    model = Ends(end)
    ending = find_output_activation(model, forward, ("out",))
    assert ending is not None
    assert (ending.output, ending.bounds, ending.call) == ("out", bounds, 1)
    plain = Ends(nn.Identity())
    plain.load_state_dict({name: value for name, value in model.state_dict().items()})
    assert torch.equal(forward(WithoutActivation(model, ending.call))["out"], forward(plain)["out"])


@pytest.mark.parametrize(
    "end", [nn.Identity(), nn.LeakyReLU(), lambda x: 2 * x.relu() - 1], ids=["none", "leaky", "affine"]
)
def test_what_does_not_end_in_a_bound_is_left_alone(end: Callable[[Tensor], Tensor]) -> None:
    assert find_output_activation(Ends(end), forward, ("out",)) is None
