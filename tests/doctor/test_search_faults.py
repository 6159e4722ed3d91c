"""Sizes of a packed model that a report states wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.compression.packed_file import packed_size, tensor_specs, write_packed
from sightline.compression.ratios import compression_ratios
from sightline.doctor.rules import find_by
from sightline.workbench.compress.rules import size_promise
from tests.compression.policies import quantise
from tests.doctor.planting import assert_complete

POLICY = {"0.weight": {"kind": "codebook", "bits": 3}}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    for _ in range(3):
        model(torch.randn(8, 16))
    return model.eval()


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A packed model, and what is told of it."""
    model = net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    quantise(model, POLICY)
    promised, file = packed_size(tensor_specs(model)[0], {"name": "net"}), tmp_path / "model.slq"
    size = write_packed(file, model, {"name": "net"})
    ratios = compression_ratios([(512, 3, 16)], file_bytes=size, state=state)._asdict()
    return file, {"layers": [(512, 3, 16)], "state": state, "promised": promised, "budget": None, "reported": ratios}


def test_an_honest_file_is_no_fault(packed: tuple[Path, dict[str, Any]]) -> None:
    file, given = packed
    assert find_by(size_promise, file=file, **given) == []
    assert find_by(size_promise, file=file, **{**given, "budget": given["promised"]}) == []


Reported = dict[str, Any]


def promise(extra: int) -> Callable[[Reported], Reported]:
    return lambda given: {"promised": given["promised"] + extra}


def leave_out(name: str) -> Callable[[Reported], Reported]:
    return lambda given: {"reported": {each: value for each, value in given["reported"].items() if each != name}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *((promise(extra), ["promised"]) for extra in (1, -1, 4096)),
        (lambda given: {"budget": given["promised"] - 1}, ["1 above the budget"]),
        *((leave_out(name), [f"ratio '{name}' is not reported"]) for name in ("weights", "codebook", "file")),
    ],
)
def test_a_report_that_the_file_does_not_keep(
    packed: tuple[Path, dict[str, Any]], change: Callable[[Reported], Reported], told: list[str]
) -> None:
    file, given = packed
    (finding,) = find_by(size_promise, file=file, **{**given, **change(given)})
    assert_complete(finding)
    assert finding.cause == "quant.accounting"
    assert all(text in finding.measured for text in told)
