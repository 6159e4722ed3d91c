"""Weights that hold one another at zero, modules that mix samples, passes that change what they should not."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sightline.doctor.attempts import MissingError, observe
from sightline.doctor.check import make_subject
from sightline.doctor.evidence import Evidence
from sightline.doctor.rules.model import evaluation_state, factors_of_zero
from sightline.doctor.subject import take_rows


def measure(name: str, model: nn.Module, inputs: Any) -> Any:
    """Measure a classifier with two batches whose labels the inputs tell; None for what does not apply."""
    rows = inputs[0] if isinstance(inputs, tuple) else inputs
    batch = (inputs, rows.flatten(1)[:, :3].argmax(1))
    halves = [take_rows(batch, range(start, len(rows), 2)) for start in (0, 1)]
    evidence = Evidence({"subject": make_subject(model, F.cross_entropy, halves, None)}, math.inf)
    measured = observe(name, evidence.get, name)
    assert not isinstance(measured, MissingError) or measured.kind == "apply", measured
    return None if isinstance(measured, MissingError) else measured


class Adapted(nn.Module):
    """A frozen layer with an adapter, and a head that is trained."""

    def __init__(self, zeros: str) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(6, 8).requires_grad_(False), nn.Linear(8, 3)
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(8, 4))
        for name in zeros:
            nn.init.zeros_(self.get_parameter(name))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.base(x) + x @ self.a.T @ self.b.T).relu())


class Gated(nn.Module):
    """Blocks behind gates that begin at zero, with biases of zero; `is_empty`: their last layers are zero, too."""

    def __init__(self, is_empty: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.gates, self.head = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(2)), nn.Linear(6, 3)
        for block in self.blocks:
            nn.init.zeros_(block.bias)
            if is_empty:
                nn.init.zeros_(block.weight)

    def forward(self, x: Tensor) -> Tensor:
        for gate, block in zip(self.gates, self.blocks, strict=True):
            x = x + gate * block(x)
        return self.head(x)


class Unchosen(nn.Module):
    """Two experts, of which the first batch chooses one; all biases are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[int(x.mean() > 100)](x)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lambda: Adapted("ab"), "a b"),
        (lambda: Gated(True), "blocks.0.weight blocks.0.bias blocks.1.weight blocks.1.bias gates.0 gates.1"),
        (lambda: Adapted("b"), ""),
        (lambda: Adapted("a"), ""),
        (lambda: Gated(False), ""),
        (Unchosen, ""),
    ],
)
def test_factors_of_zero_are_named_where_they_keep_one_another_from_learning(model: Any, names: str) -> None:
    torch.manual_seed(0)
    found = measure("saddles", model(), torch.randn(48, 6))
    assert found == names.split()
    assert [fault.where.param for fault in factors_of_zero(found)] == found[:1]


class Mixing(nn.Module):
    """Layers of which one may mix samples."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Sequential(nn.Tanh(), middle), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class OfRows(nn.Module):
    """A number for each row, a softmax over rows, the mean of all rows taken off, or nothing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "number":
            return x + torch.sin(torch.arange(len(x)))[:, None]
        if self.kind == "softmax":
            return x.softmax(0) * len(x)
        return x - x.mean(0) if self.kind == "mean" else x * 2


@pytest.mark.parametrize("kind", ["number", "softmax", "mean", "none"])
def test_the_innermost_module_that_mixes_samples_is_named(kind: str) -> None:
    torch.manual_seed(0)
    reached = measure("neighbours", Mixing(OfRows(kind)), torch.randn(32, 6))
    assert {reach.module for reach in reached} <= {"middle.1", ""}
    assert [reach.module for reach in reached[:1]] == (["middle.1"] if kind != "none" else [])


class Following(nn.Module):
    """A layer, and one that follows it by a tenth in each pass; `is_buffer`: a mean of outputs does."""

    def __init__(self, is_buffer: bool) -> None:
        super().__init__()
        self.trained, self.slow = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(3))
        self.is_buffer = is_buffer

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.trained(x)
        with torch.no_grad():
            if self.is_buffer:
                self.mean.lerp_(outputs.mean(0), 0.1)
            else:
                self.slow.weight.lerp_(self.trained.weight, 0.1)
        return outputs + self.slow(x)


@pytest.mark.parametrize("is_buffer", [True, False])
def test_statistics_that_evaluation_changes_are_an_error_and_averages_of_weights_are_not(is_buffer: bool) -> None:
    torch.manual_seed(0)
    model = Following(is_buffer)
    passed, repeats = (measure(name, model, torch.randn(32, 6)) for name in ("passed", "repeats"))
    faults = list(evaluation_state(SimpleNamespace(model=model), passed, repeats))
    assert [fault.severity for fault in faults] == ([None] if is_buffer else ["note"])


class Frames(nn.Module):
    """Mean, or last one, of the states of sequences; `is_true`: of the true ones."""

    def __init__(self, is_true: bool, mixes: bool = False) -> None:
        super().__init__()
        self.gru, self.head, self.is_true, self.mixes = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3), is_true, mixes

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
        states = pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0]
        last = states[torch.arange(len(lengths)), lengths - 1] if self.is_true else states.mean(1)
        return self.head(last - last.mean(0) if self.mixes else last)


@pytest.mark.parametrize(
    ("model", "is_padding", "is_mixing"),
    [
        (lambda: Frames(False), True, None),
        (lambda: Frames(True), False, False),
        (lambda: Frames(True, mixes=True), False, True),
    ],
)
def test_lengths_of_others_that_reach_a_sample_are_named_as_padding(
    model: Any, is_padding: bool, is_mixing: bool | None
) -> None:
    torch.manual_seed(0)
    lengths = torch.arange(32) // 5 + 4
    frames = torch.randn(32, 10, 4) * (torch.arange(10) < lengths[:, None])[..., None]
    padding, mixing = (measure(name, model(), (frames, lengths)) for name in ("longer_padding", "neighbours"))
    assert (bool(padding), None if mixing is None else bool(mixing)) == (is_padding, is_mixing)
