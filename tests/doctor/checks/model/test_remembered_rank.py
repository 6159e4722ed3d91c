"""A memoised helper that was asked for the rank too early is found; helpers that were not are left alone."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import Tensor
from torch.nn import functional as F

from sightline.contract.loss import Loss
from sightline.engine.distributed import World
from sightline.workbench.check.checks.processes import remembered_rank
from sightline.workbench.check.context import Context
from tests.doctor.own_losses import NAME, registered
from tests.doctor.planting import judge, make

process = SimpleNamespace(is_initialized=lambda: False, get_rank=lambda: 1)
"""Stands for torch.distributed in the second of two processes."""


@functools.lru_cache
def find_rank() -> int:
    return process.get_rank() if process.is_initialized() else 0


@functools.cache
def count_processes() -> int:
    return 2 if process.is_initialized() else 1


class OnRank(Loss):
    def __init__(self) -> None:
        super().__init__()

    def count(self, *, label: Tensor) -> Tensor:
        return (label >= 0).sum()

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label, reduction="sum") * min(1, 1 + find_rank() * count_processes())


@pytest.mark.parametrize("helper", [find_rank, count_processes])
@pytest.mark.parametrize("is_early", [True, False])
def test_a_rank_from_before_the_processes_were_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helper: functools._lru_cache_wrapper[int], is_early: bool
) -> None:
    for each in (find_rank, count_processes):
        each.cache_clear()
    if is_early:
        helper()
    monkeypatch.setattr(process, "is_initialized", lambda: True)
    with registered(OnRank):
        found = judge(remembered_rank, Context(make(tmp_path, f"losses=[{{name: {NAME}}}]"), World()))
    assert [finding.cause for finding in found] == ["dist.device"] * is_early
    if is_early:
        assert f"'{helper.__wrapped__.__name__}' remembers" in found[0].summary
        assert found[0].where.file == __file__
