"""Versions of libraries with wrong numbers: the numbers are wrong, who meets them is told, and nobody else."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sightline
from sightline.doctor.check import make_subject
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.models import libraries
from sightline.doctor.evidence.models.libraries import LIBRARY_FAULTS, MetFault

BATCH = (torch.ones(2, 3, 8), torch.ones(2, 3, 8))


class Attending(nn.Module):
    """Attention within a series, behind a layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8, dtype=dtype)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.to(self.first.weight.dtype))
        return self.attention(x, x, x)[0].float()


def find(model: nn.Module) -> list[MetFault]:
    subject = make_subject(model, nn.MSELoss(), [BATCH], None)
    return Evidence({"subject": subject}, math.inf).get("library_faults")  # type: ignore[no-any-return]


@pytest.fixture
def of_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def set_version(version: str) -> None:
        monkeypatch.setattr(libraries.importlib.metadata, "version", lambda name: version)

    return set_version


def test_the_attention_of_this_torch_is_wrong_as_the_table_says() -> None:
    """By the softmax written out: a mask in float64 is right, the same mask in float32 is not."""
    fault = LIBRARY_FAULTS[1]
    if not importlib.metadata.version("torch").startswith(fault.first):
        pytest.skip(f"the table's row is of torch {fault.first}")
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 16, 8, dtype=torch.float64)
    mask = torch.randn(16, 16)
    weights = (query @ key.mT / math.sqrt(8) + mask.double()).softmax(-1)
    right = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.double())
    wrong = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.allclose(right, weights @ value)
    assert float((wrong - weights @ value).abs().max()) > 0.1


@pytest.mark.parametrize("version", ["2.13.0", "2.13.1+cu130"])
def test_attention_in_float64_is_told(version: str, of_version: Callable[[str], None]) -> None:
    of_version(version)
    (met,) = find(Attending(torch.float64))
    assert (met.layer, met.version) == ("attention", version)
    report = sightline.check(Attending(torch.float64), nn.MSELoss(), [BATCH])
    (finding,) = [each for each in report.findings if each.code == "library-fault"]
    assert finding.severity == "note"
    assert finding.where.layer == "attention"
    assert f"torch {version}: attention on a CPU reads the bytes" in finding.summary
    assert "attn_mask.to(query.dtype)" in finding.action
    assert "has float64 weights on a CPU; its masks were not looked at" in finding.measured


def test_nobody_else_is_told(of_version: Callable[[str], None]) -> None:
    of_version("2.13.0")
    assert find(Attending(torch.float32)) == []
    assert find(nn.Linear(8, 8).double()) == []
    for version in ("2.12.1", "2.14.0", "3.0"):
        of_version(version)
        with pytest.raises(Exception, match="no library of a version with known wrong numbers"):
            find(Attending(torch.float64))


class OnGpu(nn.Parameter):
    """A weight that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("padding", "is_last", "is_cuda", "expected"),
    [
        (1, True, True, "pool"),
        ((0, 1), True, True, "pool"),
        (0, True, True, None),
        (1, False, True, None),
        (1, True, False, None),
    ],
)
def test_a_padded_mean_of_channels_last_is_found_on_a_gpu(
    padding: int | tuple[int, int], is_last: bool, is_cuda: bool, expected: str | None
) -> None:
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(4, 4, 3))
    model.add_module("pool", nn.AvgPool2d(2, padding=padding))
    weight = model.conv.weight.data
    weight = weight.contiguous(memory_format=torch.channels_last) if is_last else weight
    model.conv.weight = OnGpu(weight) if is_cuda else nn.Parameter(weight)  # type: ignore[union-attr]
    assert LIBRARY_FAULTS[0].find(model) == expected
