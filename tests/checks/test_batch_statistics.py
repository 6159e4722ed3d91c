"""Guard G34: batch norms over the few samples that one process has of a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.checks.batch_statistics import batch_statistics
from sightline.checks.suite import Context
from sightline.engine.distributed import World
from tests.checks.pairing import make_pairs
from tests.checks.planting import assert_complete, make


def test_two_pairs_a_process(tmp_path: Path) -> None:
    """The notes' own port: 12 pairs over 6 processes."""
    built = make_pairs(tmp_path, "train.batch_size=12")
    (finding,) = batch_statistics(Context(built, World(size=6)))
    assert (finding.severity, finding.cause) == ("warning", "dist.sync")
    assert "see 2 of a step's 12 samples" in finding.summary
    assert "12 samples over 6 processes" in finding.measured
    assert_complete(finding)


def test_micro_batches_make_it_fewer(tmp_path: Path) -> None:
    built = make(tmp_path, "train.batch_size=32", "train.micro_batches=2")
    (finding,) = batch_statistics(Context(built, World(size=2)))
    assert "statistics of 8 at" in finding.measured


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (1, ("train.batch_size=2",)),
        (2, ("train.batch_size=32",)),
        (2, ("train.batch_size=4", "distributed.sync_batch_norm=true")),
    ],
    ids=["one process", "sixteen each", "synchronised"],
)
def test_healthy_runs(size: int, overrides: tuple[str, ...], tmp_path: Path) -> None:
    assert batch_statistics(Context(make(tmp_path, *overrides), World(size=size))) == []
