"""How classes share the targets, and classes that are evaluated and never trained on."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.contract.types import Sample, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.classes import class_balance, name_unit, untrained_class
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.sample_statistics import collect_statistics
from sightline.workbench.check.suite import run_all, run_quick
from tests.doctor.detecting import make_crowds
from tests.doctor.planting import assert_complete, caught, make
from tests.doctor.segmenting import Edited, make_parts, make_rooms


def recoloured(source: int, to: int) -> Any:
    """The set where one class is always answered by the label of another."""

    def edit(sample: Sample, index: int) -> Sample:
        return {**sample, "label": torch.where(sample["label"] == source, to, sample["label"])}

    return lambda inner: Edited(inner, edit)


def without_class(built: TrainingSetup, label: int) -> TrainingSetup:
    """The run on a training part cut so that it lacks a class: as from a list sorted by class."""
    strata = built.data.train.dataset.strata
    kept = np.array([index for index in built.data.train.indices if strata[index] != label])
    data = dataclasses.replace(built.data, train=dataclasses.replace(built.data.train, indices=kept))
    plan = dataclasses.replace(built.job.stream.plan, indices=kept)
    job = dataclasses.replace(built.job, stream=dataclasses.replace(built.job.stream, plan=plan))
    return dataclasses.replace(built, data=data, job=job)


def test_a_class_of_samples_that_training_never_sees(tmp_path: Path) -> None:
    finding = caught(without_class(make(tmp_path), 3), "untrained-class", "data.split", "warning")
    assert "class 3 (chair): 0 of 198 training targets" in finding.measured
    assert finding.evidence["missing"] == [3]


def test_a_class_of_points_that_training_never_sees(tmp_path: Path) -> None:
    """Points of the test part in that class, and their share, are counted."""
    built = make_rooms(tmp_path, recoloured(3, 1), wrap_test=lambda inner: inner)
    finding = caught(built, "untrained-class", "data.split", "warning")
    test = built.data.test.dataset
    labels = torch.cat([test[key_of(index)]["label"] for index in range(12)])
    count, total = int((labels == 3).sum()), len(labels)
    assert f"{count} of {total} here" in finding.measured
    assert f"{count / total:.2%} of these targets" in finding.measured


def key_of(index: int) -> SampleKey:
    return SampleKey(index, 0, 0)


def test_a_training_part_not_wholly_counted_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start of a training some samples stand for all, and those tell of no absence; `check` counts on."""
    monkeypatch.setattr(
        "sightline.workbench.check.context.collect_statistics", partial(collect_statistics, most_samples=4)
    )
    built = make_rooms(tmp_path, recoloured(3, 1), wrap_test=lambda inner: inner)
    quick, slow = Context(built, World(), forward_s=1.5), Context(built, World())
    assert untrained_class(quick) == []
    assert [finding.cause for finding in untrained_class(slow)] == ["data.split"]


def test_the_report_counts_what_numpy_counts(tmp_path: Path) -> None:
    """Per class and part: points, and samples that show the class."""
    built = make_rooms(tmp_path)
    (finding,) = class_balance(Context(built, World()))
    assert_complete(finding)
    assert finding.severity == "note"
    for part, name in ((built.data.train, "train"), (built.data.test, "test")):
        labels = [part.dataset[key_of(index)]["label"].numpy() for index in range(len(part.dataset))]
        points = np.bincount(np.concatenate(labels), minlength=4)
        samples = [sum(number in label for label in labels) for number in range(4)]
        for number, row in enumerate(finding.evidence["classes"].values()):
            assert row[name] == [points[number], samples[number]]
    train = np.array([row["train"][0] for row in finding.evidence["classes"].values()])
    assert f"{train.min() / train.sum():.2%} to {train.max() / train.sum():.2%}" in finding.summary


def test_imbalance_is_a_fact(tmp_path: Path) -> None:
    """1 : 20 by construction; the counts are those of the strata, of all 240 samples."""
    built = make(tmp_path, "data.imbalance=20")
    (finding,) = class_balance(Context(built, World()))
    counts = np.bincount(built.data.train.dataset.strata[built.data.train.indices], minlength=12)
    assert [row["train"][0] for row in finding.evidence["classes"].values()] == counts.tolist()
    assert finding.severity == "note"


def test_classes_that_no_part_shows_are_named(tmp_path: Path) -> None:
    """As a beam in a room without any: no fault, for nobody asks for it."""
    built = make_rooms(tmp_path, recoloured(3, 1))
    (finding,) = class_balance(Context(built, World()))
    assert "train has no 3 (chair); test has no 3 (chair)" in finding.summary
    assert [each for each in run_all(built, World()) if each.severity != "note"] == []


def test_no_report_at_the_start_of_a_training(tmp_path: Path) -> None:
    assert not [each for each in run_quick(make_parts(tmp_path), World()) if each.code == "class-balance"]


def test_balanced_classes_are_not_reported(tmp_path: Path) -> None:
    built = make(tmp_path)
    counts = np.bincount(built.data.train.dataset.strata[built.data.train.indices])
    assert counts.max() < 1.1 * counts.min()
    assert class_balance(Context(built, World())) == []


def test_classes_of_boxes_are_counted_in_boxes() -> None:
    context = Context(make_crowds(), World())
    assert {name_unit(context, census) for census in context.class_counts if census is not None} == {"boxes"}
