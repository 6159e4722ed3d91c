"""Batch norms over the few pairs that one process has of a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.engine.distributed import World
from sightline.workbench.check.checks.processes import batch_statistics
from sightline.workbench.check.context import Context
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import assert_complete, make


def test_two_pairs_a_process(tmp_path: Path) -> None:
    """The notes' own port: 12 pairs over 6 processes."""
    built = make_pairs(tmp_path, "train.batch_size=12")
    (finding,) = batch_statistics(Context(built, World(size=6)))
    assert (finding.severity, finding.cause) == ("warning", "dist.sync")
    assert "see 2 pairs on each of 6 processes" in finding.summary
    assert "12 pairs over 6 processes" in finding.measured
    assert "sync_batch_norm: true" in finding.action
    assert_complete(finding)


def test_with_micro_batches_it_is_what_one_process_sees_of_them(tmp_path: Path) -> None:
    """64 pairs in two micro-batches are 32 on one process, 8 on each of four."""
    built = make_pairs(tmp_path, "train.batch_size=64", "train.micro_batches=2")
    (finding,) = batch_statistics(Context(built, World(size=4)))
    assert "32 pairs over 4 processes: statistics of 8 at" in finding.measured
    assert "the 32 of one process" in finding.expected


def test_norms_of_frozen_modules_rest(tmp_path: Path) -> None:
    built = make_pairs(tmp_path, "train.batch_size=12")
    frozen = make_pairs(tmp_path, "train.batch_size=12", "optimizer.frozen=[{modules: points}]")
    names = [batch_statistics(Context(each, World(size=2)))[0].summary for each in (built, frozen)]
    assert int(names[0].split()[0]) > int(names[1].split()[0]) > 0


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (1, ("train.batch_size=4",)),
        (2, ("train.batch_size=32",)),
        (2, ("train.batch_size=4", "distributed.sync_batch_norm=true")),
    ],
    ids=["one process", "sixteen each", "synchronised"],
)
def test_healthy_runs(size: int, overrides: tuple[str, ...], tmp_path: Path) -> None:
    assert batch_statistics(Context(make_pairs(tmp_path, *overrides), World(size=size))) == []


def test_runs_that_compare_no_pairs_are_not_asked(tmp_path: Path) -> None:
    """A norm over points or voxels has thousands of rows of two samples."""
    assert batch_statistics(Context(make(tmp_path, "train.batch_size=4"), World(size=2))) == []
