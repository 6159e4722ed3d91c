"""Offsets of a ragged batch that are not its clouds' sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.batches import broken_offsets
from sightline.workbench.check.context import Context
from tests.doctor.planting import assert_healthy, caught, make
from tests.doctor.segmenting import Joined, make_parts, make_rooms


def spoiled(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda inner: Joined(inner, change)


def swapped(offsets: Tensor) -> Tensor:
    """The second and third numbers exchanged, where there are so many."""
    order = list(range(len(offsets)))
    order[1:3] = order[1:3][::-1]
    return offsets[order]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda o: o[1:], "'offsets' begins with"),
        (lambda o: o[:-1], "numbers for 4 samples"),
        (swapped, "'offsets' falls from"),
        (lambda o: o - (torch.arange(len(o)) == len(o) - 1).long(), "'offsets' ends with"),
        (lambda o: torch.cat([o[:1], o[1:] + 2]), "'offsets' ends with"),
        (lambda o: o.float(), "'offsets' is of type float32"),
        (lambda o: o.diff(), "'offsets' begins with"),
    ],
    ids=["no leading zero", "last lost", "not monotone", "below N", "beyond N", "float", "sizes"],
)
def test_offsets_that_cannot_be(tmp_path: Path, change: Callable[[Tensor], Tensor], told: str) -> None:
    """Whatever else a model makes of them, this is the cause that is told, with the values."""
    finding = caught(make_rooms(tmp_path, spoiled(change)), "broken-offsets", "data.layout")
    assert told in finding.summary
    assert "offsets = [" in finding.measured
    assert len(finding.evidence["offsets"]) >= 4


def test_offsets_that_could_be_but_are_not(tmp_path: Path) -> None:
    """From 0, rising, up to N: yet a point of the second cloud is given to the first."""

    def change(offsets: Tensor) -> Tensor:
        return offsets + (torch.arange(len(offsets)) == 1).long() if len(offsets) > 2 else offsets

    finding = caught(make_rooms(tmp_path, spoiled(change)), "broken-offsets", "data.layout")
    assert "points, read alone it has" in finding.summary
    assert finding.where.sample is not None


def test_only_the_evaluated_part_is_broken(tmp_path: Path) -> None:
    built = make_rooms(tmp_path, Joined, wrap_test=spoiled(lambda offsets: offsets[:-1]))
    (finding,) = broken_offsets(Context(built, World()))
    assert (finding.where.dataset or "").endswith("/test")


def test_healthy_runs(tmp_path: Path) -> None:
    assert_healthy(make_rooms(tmp_path, Joined))
    for built in (make_rooms(tmp_path), make_parts(tmp_path), make(tmp_path)):
        assert broken_offsets(Context(built, World())) == []
