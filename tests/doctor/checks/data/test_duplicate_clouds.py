"""The same cloud under two labels, or in training and in test."""

from __future__ import annotations

import shutil
from pathlib import Path

from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.data_mutation import duplicate_clouds
from sightline.workbench.check.context import Context
from tests.data.clouds.cloud_writers import prepare_folder, write_folder
from tests.doctor.planting import assert_complete, assert_healthy, caught, make


def built_on(folder: Path, source: Path) -> TrainingSetup:
    prepare_folder(source, folder / "set")
    return make(folder, f"data={{name: cloud_folder, root: {folder / 'set'}}}", "train.batch_size=8")


def test_a_set_without_copies_is_healthy(tmp_path: Path) -> None:
    assert_healthy(built_on(tmp_path, write_folder(tmp_path / "in")))


def test_sets_that_note_nothing_are_healthy(tmp_path: Path) -> None:
    assert duplicate_clouds(Context(make(tmp_path), World())) == []


def test_one_cloud_in_two_classes(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in")
    shutil.copy(source / "ball" / "ball_00.ply", source / "rod" / "another_name.ply")
    finding = caught(built_on(tmp_path, source), "duplicate-clouds", "data.label_mapping", "warning")
    assert finding.summary == "the same cloud is in several classes: 1 time"
    assert "ball/ball_00.ply" in finding.measured
    assert "rod/another_name.ply" in finding.measured


def test_one_cloud_in_two_parts(tmp_path: Path) -> None:
    """The same numbers are written for both parts."""
    for split, count in (("train", 6), ("test", 2)):
        write_folder(tmp_path / "in" / split, per_class=count)
    (finding,) = duplicate_clouds(Context(built_on(tmp_path, tmp_path / "in"), World()))
    assert (finding.severity, finding.cause) == ("warning", "data.split")
    assert finding.summary.endswith("6 times")
    assert finding.measured.endswith("and 3 more")
    assert_complete(finding)
