"""Training and evaluation sets that differ in up axis, scale or channels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.contract.types import DataInfo, Field, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import BatchReader, NamedTransform
from sightline.workbench.check.checks.data import dataset_mismatch as module
from sightline.workbench.check.checks.data.dataset_mismatch import compare_sets, dataset_mismatch, sample_clouds
from sightline.workbench.check.context import Context
from sightline.workbench.check.suite import run_all
from tests.doctor.planting import Wrapped, assert_complete, assert_healthy, caught, make, with_data
from tests.doctor.segmenting import Edited, make_parts, make_rooms

MANY = "data.test_size=120"
"""Enough clouds that an exchange cannot be put down to chance."""


def on_test(built: TrainingSetup, wrap: Callable[[Any], Any]) -> TrainingSetup:
    """The run with another test set."""
    dataset = wrap(built.data.test.dataset)
    part = dataclasses.replace(built.data.test, dataset=dataset, reader=BatchReader(dataset))
    return dataclasses.replace(built, data=dataclasses.replace(built.data, test=part))


def turned(*axes: int, fields: tuple[str, ...] = ("points",), **info: Any) -> Callable[[Any], Any]:
    """The set with the axes of these fields in another order."""
    return lambda inner: Wrapped(
        inner, lambda batch, keys: {**batch, **{name: batch[name][..., list(axes)] for name in fields}}, **info
    )


def unbounded(inner: Any, **more: Any) -> dict[str, Any]:
    """Fields of a set whose coordinates promise no range, as in metres of a site."""
    points = dataclasses.replace(inner.info.fields["points"], unit="m", low=None, high=None)
    return {**inner.info.fields, "points": points, **more}


def scaled(factor: float, unit: str = "m") -> Callable[[Any], Any]:
    def wrap(inner: Any) -> Any:
        fields = unbounded(inner)
        fields["points"] = dataclasses.replace(fields["points"], unit=unit)
        return Wrapped(inner, lambda batch, keys: {**batch, "points": batch["points"] * factor}, fields=fields)

    return wrap


def in_metres(built: TrainingSetup) -> TrainingSetup:
    """The run with a training set that promises no range."""
    return with_data(built, scaled(1.0))


def finding_of(built: TrainingSetup) -> Any:
    """The one finding of this check."""
    (finding,) = dataset_mismatch(Context(built, World()))
    assert_complete(dataclasses.replace(finding, phase="preflight"))
    return finding


# --- healthy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("normals", ["none", "file", "estimated"])
def test_healthy_runs_are_not_flagged(tmp_path: Path, seed: int, normals: str) -> None:
    built = make(tmp_path, MANY, f"data.data_seed={seed}", f"seed={seed}", f"data.normals={normals}")
    assert dataset_mismatch(Context(built, World())) == []


def test_a_turn_about_up_is_no_fault(tmp_path: Path) -> None:
    """Exchanging x and y of shapes that are turned about z anyway says nothing about a set."""
    built = on_test(make(tmp_path, MANY), turned(1, 0, 2))
    findings = dataset_mismatch(Context(built, World()))
    assert all("z, " not in finding.summary for finding in findings)


def test_random_scaling_in_training_is_no_fault(tmp_path: Path) -> None:
    built = make(tmp_path, MANY, "transforms.train=[{name: scale}, {name: rotate}, {name: translate}]")
    assert dataset_mismatch(Context(built, World())) == []


def test_a_noisier_and_sparser_test_set_is_no_fault(tmp_path: Path) -> None:
    def noisy(inner: Any) -> Any:
        return Wrapped(inner, lambda batch, keys: {**batch, "points": batch["points"] + 0.02 * torch.randn(1)})

    assert dataset_mismatch(Context(on_test(make(tmp_path, MANY), noisy), World())) == []


def test_one_set_for_both_is_not_compared(tmp_path: Path) -> None:
    built = make(tmp_path)
    data = dataclasses.replace(built.data, selection=built.data.train, test=built.data.train)
    assert dataset_mismatch(Context(dataclasses.replace(built, data=data), World())) == []


# --- planted ----------------------------------------------------------------------------------------------------------


def test_y_up_for_z_up_is_seen_in_the_clouds(tmp_path: Path) -> None:
    finding = caught(on_test(make(tmp_path, MANY), turned(0, 2, 1)), "dataset-mismatch", "cfg.axis_swap", "warning")
    assert "axes in the order x, z, y" in finding.summary
    assert finding.where.dataset == "synthetic_shapes/test"
    assert "120 clouds" in finding.evidence["looked_at"]


def test_y_up_for_z_up_with_normals(tmp_path: Path) -> None:
    swap = turned(0, 2, 1, fields=("points", "normals"))
    finding = finding_of(on_test(make(tmp_path, MANY, "data.normals=file"), swap))
    assert finding.cause == "cfg.axis_swap"
    assert "normals as they are" not in finding.summary


def test_normals_that_were_not_turned_with_the_points(tmp_path: Path) -> None:
    finding = finding_of(on_test(make(tmp_path, MANY, "data.normals=file"), turned(0, 2, 1)))
    assert finding.cause == "cfg.axis_swap"
    assert "normals as they are" in finding.summary


@pytest.mark.parametrize("seed", range(3))
def test_a_start_finds_what_few_clouds_of_a_slow_set_show(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of these shapes an exchange of axes needs some hundred clouds, which half a second never gave; a unit does not.

    The clock stands for a set of which 16 clouds take 0.13 s.
    """
    clock = itertools.count(step=0.13)
    monkeypatch.setattr(module, "compute_seconds", lambda: next(clock))
    built = on_test(in_metres(make(tmp_path, MANY, f"data.data_seed={seed}", f"seed={seed}")), scaled(1000.0))
    (finding,) = dataset_mismatch(Context(built, World(), 1.5))
    assert finding.cause == "data.normalisation"
    assert finding.evidence["looked_at"] == "30 clouds of synthetic_shapes/test, 32 of synthetic_shapes/train"


@pytest.mark.parametrize("seed", range(3))
def test_another_up_axis_of_a_quick_set_is_seen_at_the_start(tmp_path: Path, seed: int) -> None:
    built = on_test(make(tmp_path, MANY, f"data.data_seed={seed}", f"seed={seed}"), turned(0, 2, 1))
    whole, quick = (dataset_mismatch(Context(built, World(), limit_s)) for limit_s in (math.inf, 1.5))
    assert [finding.summary for finding in whole] == [finding.summary for finding in quick]


def test_a_start_makes_no_remark_on_few_clouds(tmp_path: Path) -> None:
    context = Context(on_test(make(tmp_path, "data.test_size=22"), turned(0, 2, 1)), World(), 1.5)
    assert dataset_mismatch(context) == []
    assert context.examination.gaps[0].startswith("too few clouds of synthetic_shapes/test to decide")


def test_declared_up_axes_that_differ(tmp_path: Path) -> None:
    built = on_test(make(tmp_path), turned(0, 1, 2, facts={"up_axis": "y"}))
    finding = caught(built, "dataset-mismatch", "cfg.axis_swap")
    assert finding.measured == "the up axis: y in synthetic_shapes/test"
    assert finding.expected.startswith("z, as in synthetic_shapes/train")


@pytest.mark.parametrize(
    ("factor", "words"), [(1000.0, "millimetres against metres"), (0.01, "centimetres against metres")]
)
def test_millimetres_for_metres(tmp_path: Path, factor: float, words: str) -> None:
    built = on_test(in_metres(make(tmp_path, MANY)), scaled(factor))
    finding = caught(built, "dataset-mismatch", "data.normalisation", "warning")
    assert words in finding.summary
    measured = float(finding.summary.partition(" are ")[2].split()[0])
    assert math.isclose(measured, factor, rel_tol=0.05)  # the clouds of either set differ a little in size


def test_declared_units_that_differ(tmp_path: Path) -> None:
    built = on_test(in_metres(make(tmp_path)), scaled(1000.0, unit="mm"))
    finding = caught(built, "dataset-mismatch", "data.normalisation")
    assert finding.measured.endswith("mm in synthetic_shapes/test")


def test_normalising_only_one_set(tmp_path: Path) -> None:
    """Evaluation normalises, training does not: the model meets clouds of another size."""
    built = on_test(with_data(make(tmp_path, MANY), scaled(30.0)), scaled(1.0))
    assert finding_of(built).cause == "data.normalisation"


def test_missing_normals(tmp_path: Path) -> None:
    built = make(tmp_path, "data.normals=file")
    finding = caught(
        on_test(built, turned(0, 1, 2, features=(), facts={"in_channels": 3})), "dataset-mismatch", "cfg.contract"
    )
    assert finding.measured == "the features: none in synthetic_shapes/test"
    assert finding.expected.startswith("normals, as in")


def test_points_and_normals_exchanged(tmp_path: Path) -> None:
    def exchange(inner: Any) -> Any:
        return Wrapped(inner, lambda b, k: {**b, "points": b["normals"], "normals": b["points"]})

    finding = finding_of(on_test(make(tmp_path, MANY, "data.normals=file"), exchange))
    assert finding.cause == "data.layout"
    assert "points and normals exchanged" in finding.summary


def with_channels(*order: int) -> Callable[[Any], Any]:
    """The set with two channels of other distributions, in this order."""

    def edit(batch: dict[str, Any], keys: Any) -> dict[str, Any]:
        height = batch["points"][..., 2:] + 1
        light = 0.5 + 0.1 * batch["normals"][..., :1]
        return {**batch, "channels": torch.cat([height, light], dim=2)[..., list(order)]}

    def wrap(inner: Any) -> Any:
        fields = {**inner.info.fields, "channels": Field("points 2", "float32")}
        return Wrapped(inner, edit, fields=fields, features=("channels",), facts={"in_channels": 5})

    return wrap


@pytest.mark.parametrize(("order", "is_told"), [((0, 1), False), ((1, 0), True)])
def test_channels_in_another_order(tmp_path: Path, order: tuple[int, ...], is_told: bool) -> None:
    built = on_test(with_data(make(tmp_path, MANY), with_channels(0, 1)), with_channels(*order))
    findings = dataset_mismatch(Context(built, World()))
    assert bool(findings) == is_told
    if is_told:
        assert findings[0].cause == "data.layout"
        assert "channels 3 and 4 exchanged" in findings[0].summary


def test_a_cloud_outside_its_range_is_told_once(tmp_path: Path) -> None:
    """The promise of the field is the cause; that the sets differ follows from it."""
    built = on_test(
        make(tmp_path, MANY), lambda inner: Wrapped(inner, lambda b, k: {**b, "points": b["points"] * 1000})
    )
    (finding,) = [f for f in run_all(built, World()) if f.severity != "note"]
    assert finding.code == "channel-contract"
    assert any("dataset-mismatch" in line for line in finding.evidence["explains"])


def test_too_few_clouds_to_tell_are_said_to_be(tmp_path: Path) -> None:
    """Of n clouds for one order chance makes 2^-n, times five orders of the axes: 1e-6 needs 23."""
    for size, is_enough in ((22, False), (23, True)):
        built = on_test(make(tmp_path, f"data.test_size={size}"), turned(0, 2, 1))
        notes = [finding for finding in dataset_mismatch(Context(built, World())) if finding.severity == "note"]
        assert bool(notes) != is_enough
        if notes:
            finding = finding_of(built)
            assert finding.cause == "cfg.axis_swap"
            assert finding.summary.startswith("too few clouds of synthetic_shapes/test to decide")
            assert finding.measured.startswith("22 clouds")
            assert finding.expected.startswith("23 or more")


# --- what is compared -------------------------------------------------------------------------------------------------


def test_augmentation_does_not_hide_how_clouds_lie(tmp_path: Path) -> None:
    built = make(tmp_path, MANY, "transforms.train=[{name: rotate, axis: any}]")
    assert finding_of(on_test(built, turned(0, 2, 1))).cause == "cfg.axis_swap"


def test_without_clouds_what_is_declared_is_compared(tmp_path: Path) -> None:
    built = make(tmp_path)
    ours = sample_clouds(built.data.train, built.config)._replace(clouds=(), labels=(), sizes=())
    other = sample_clouds(built.data.test, built.config)
    context = Context(built, World())
    assert compare_sets(ours, other, place=context.place) == []
    info: DataInfo = dataclasses.replace(other.info, facts={**other.info.facts, "up_axis": "x"})
    (finding,) = compare_sets(ours, other._replace(info=info), place=context.place)
    assert (finding.severity, finding.cause) == ("error", "cfg.axis_swap")


def test_the_sign_test_is_the_binomial_tail() -> None:
    """Against SciPy: all trials won, none, and one in between."""
    from scipy.stats import binom

    from sightline.workbench.check.checks.data.dataset_mismatch import _upper_tail

    for wins, trials in [(20, 20), (0, 7), (70, 120), (200, 256)]:
        assert math.isclose(_upper_tail(wins, trials), binom.sf(wins - 1, trials, 0.5), rel_tol=1e-9)


# --- sets whose points are labelled -----------------------------------------------------------------------------------


def rooms_scaled(factor: float) -> Callable[[Any], Any]:
    """Rooms in another unit, which promise no range."""

    def wrap(inner: Any) -> Any:
        points = dataclasses.replace(inner.info.fields["points"], low=None, high=None)
        fields = {**inner.info.fields, "points": points}
        return Edited(inner, lambda sample, index: {**sample, "points": sample["points"] * factor}, fields=fields)

    return wrap


def test_ragged_clouds_are_looked_at_one_by_one(tmp_path: Path) -> None:
    """Points and features of each cloud as it is, and no class where labels are of points."""
    built = make_rooms(tmp_path)
    found = sample_clouds(built.data.train, built.config)
    sizes = [len(built.data.train.dataset[SampleKey(index, 0, 0)]["points"]) for index in range(24)]
    assert sorted(len(cloud) for cloud in found.clouds) == sorted(sizes)
    assert {cloud.shape[1] for cloud in found.clouds} == {4}
    assert set(found.labels) == {0}


def test_clouds_with_parts_are_compared_within_their_category(tmp_path: Path) -> None:
    built = make_parts(tmp_path)
    assert set(sample_clouds(built.data.train, built.config).labels) == set(range(12))
    assert_healthy(built)


def test_rooms_in_another_unit(tmp_path: Path) -> None:
    built = make_rooms(tmp_path, rooms_scaled(1.0), wrap_test=rooms_scaled(1000.0))
    finding = caught(built, "dataset-mismatch", "data.normalisation", "warning")
    assert "millimetres against metres" in finding.summary


def test_crops_of_scenes_are_no_other_scale(tmp_path: Path) -> None:
    """Trained on crops of a tenth, evaluated on whole rooms: the sets are in one unit."""

    class Crop:
        def __call__(self, draws: Any, *, points: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"points": points * 0.1}

    built = make_rooms(tmp_path, rooms_scaled(1.0), transforms=[NamedTransform("crop", Crop())])
    assert [f for f in run_all(built, World()) if f.code == "dataset-mismatch" and f.severity != "note"] == []
