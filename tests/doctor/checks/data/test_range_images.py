"""Range images with another scan's labels, with a part of the scan, or with other statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.scans.sets.kitti_object import PointsInBoxRule, image_size_px, read_frame
from sightline.contract.types import Sample
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.store.files.range_images import read_range_image
from sightline.workbench.check.checks.data.images import input_statistics
from sightline.workbench.check.checks.data.point_labels import mismatched_labels
from sightline.workbench.check.checks.data.projection_coverage import projection_coverage
from sightline.workbench.check.context import Context, Rule
from tests.doctor.planting import assert_complete
from tests.doctor.scanning import Edit, labels_of_next, make_scans, with_rows
from tests.marks import long_but

OURS = (mismatched_labels, projection_coverage, input_statistics)
FLIPPED_ALONE = tuple(f"transforms.train.{place}={{name: flip, axes: [y]}}" for place in (0, 1))
"""What sees a part of the turn must not be turned before the projection."""


def with_width(width: int) -> tuple[str, ...]:
    return tuple(f"transforms.{stage}.width={width}" for stage in ("train.2", "evaluate.0"))


def found(built: TrainingSetup, *checks: Rule) -> list[Finding]:
    return [finding for each in checks or OURS for finding in each(Context(built, World()))]


def the_only(built: TrainingSetup, check: Rule, cause: str) -> Finding:
    """The finding on the training part; the evaluated parts have the same."""
    findings = found(built)
    assert {each.code for each in findings} == {check.code}, "\n".join(map(str, findings))
    assert_complete(findings[0])
    assert (findings[0].cause, findings[0].severity) == (cause, "warning")
    return findings[0]


def relabelled(change: Callable[[Tensor], Tensor]) -> Edit:
    return lambda dataset, sample, key: {**sample, "label": change(sample["label"])}


def moved(change: Callable[[Tensor], Tensor]) -> Edit:
    return lambda dataset, sample, key: {**sample, "points": change(sample["points"])}


def shuffled(label: Tensor) -> Tensor:
    return label[torch.randperm(len(label), generator=torch.Generator().manual_seed(len(label)))]


class TestMismatchedLabels:
    @pytest.mark.parametrize("seed", [1, 2])
    @pytest.mark.parametrize(
        "edit",
        [
            labels_of_next,
            relabelled(shuffled),
            relabelled(lambda label: label.flip(0)),
            relabelled(lambda x: x.roll(40)),
        ],
        ids=["of the next scan", "in no order", "from the end", "40 points on"],
    )
    def test_are_found(self, monkeypatch: pytest.MonkeyPatch, edit: Edit, seed: int) -> None:
        built = make_scans(monkeypatch, f"data.data_seed={seed}", edit=edit)
        finding = the_only(built, mismatched_labels, "data.pairing")
        assert finding.where.dataset == "synthetic_lidar/train"

    def test_of_one_part_are_found_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As where one sequence's labels were written over: the test part alone is reported."""

        def edit(dataset, sample, key):
            return labels_of_next(dataset, sample, key) if len(dataset) == 3 else sample

        findings = found(make_scans(monkeypatch, edit=edit))
        assert [each.where.dataset for each in findings] == ["synthetic_lidar/test"]

    def test_are_found_before_a_training(self, monkeypatch: pytest.MonkeyPatch) -> None:
        context = Context(make_scans(monkeypatch, edit=labels_of_next), World(), 1.5)
        assert [each.where.dataset for each in mismatched_labels(context)] == [
            "synthetic_lidar/train",
            "synthetic_lidar/validation",
        ]


class TestProjectionCoverage:
    @pytest.mark.parametrize(
        ("edit", "facts", "words"),
        [
            (None, {"fov_deg": (0.05, -0.44)}, "radians"),
            (None, {"fov_deg": (-3.0, -12.0)}, "above or below"),
            (None, {"fov_deg": (25.0, -45.0)}, "rows of the image are always empty"),
            (None, {"azimuth_deg": (100.0, -100.0)}, "left or right of the image"),
            (moved(lambda p: p[:, [0, 2, 1]]), {}, "above or below"),
            (moved(lambda p: p[:, [2, 1, 0]]), {}, "above or below"),
            (moved(lambda p: p * torch.tensor([1.0, 1.0, -1.0])), {}, "above or below"),
        ],
        ids=["radians", "too narrow", "too wide", "azimuth", "y and z exchanged", "x and z exchanged", "z down"],
    )
    def test_of_images_by_pitch(
        self, monkeypatch: pytest.MonkeyPatch, edit: Edit | None, facts: dict, words: str
    ) -> None:
        statistics = {"input_mean": (0.0,) * 5, "input_std": (20.0,) * 4 + (1.0,)}
        built = make_scans(
            monkeypatch, *with_rows("pitch"), **({"edit": edit} if edit else {}), facts=statistics | facts
        )
        finding = the_only(built, projection_coverage, "data.projection")
        assert words in finding.summary

    def test_of_rings_that_count_from_the_lowest_beam(self, monkeypatch: pytest.MonkeyPatch) -> None:
        built = make_scans(monkeypatch, edit=lambda dataset, sample, key: {**sample, "ring": 63 - sample["ring"]})
        finding = the_only(built, projection_coverage, "data.projection")
        assert "a correlation of" in finding.measured

    @pytest.mark.parametrize(
        "is_missing",
        [lambda ring: ring % 4 == 0, lambda ring: ring % 2 == 1, lambda ring: (ring > 20) & (ring < 32)],
        ids=["every fourth", "every other", "a band"],
    )
    @pytest.mark.parametrize("seed", long_but([1], [1, 2, 3]))
    def test_of_missing_rings(self, monkeypatch: pytest.MonkeyPatch, is_missing: Callable, seed: int) -> None:
        def thin(dataset, sample, key):
            return {name: value[~is_missing(sample["ring"])] for name, value in sample.items()}

        finding = the_only(make_scans(monkeypatch, f"seed={seed}", edit=thin), projection_coverage, "data.sampling")
        assert "rings are missing" in finding.summary

    def test_of_beams_that_are_broken_or_see_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two single beams, and the lowest ones, as before the bonnet of a car."""

        def thin(dataset, sample, key):
            is_seen = (sample["ring"] < 44) & (sample["ring"] != 7) & (sample["ring"] != 30)
            return {name: value[is_seen] for name, value in sample.items()}

        assert found(make_scans(monkeypatch, edit=thin), projection_coverage) == []

    @pytest.mark.parametrize(("order", "name"), [([0, 2, 1], "y"), ([2, 1, 0], "x")])
    def test_of_exchanged_axes(self, monkeypatch: pytest.MonkeyPatch, order: list[int], name: str) -> None:
        built = make_scans(monkeypatch, edit=moved(lambda points: points[:, order]))
        finding, *_ = found(built, projection_coverage)
        assert (finding.cause, finding.summary.endswith(f"but with their {name}")) == ("data.layout", True)
        assert {each.cause for each in found(built, input_statistics)} <= {"data.layout"}

    def test_of_a_sensor_with_fewer_beams_than_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        built = make_scans(monkeypatch, "data.sensor={preset: vlp16}", *with_rows("pitch"))
        assert "48 of 64 rows" in the_only(built, projection_coverage, "data.projection").summary
        assert found(make_scans(monkeypatch, "data.sensor={preset: vlp16}", *with_rows("pitch", 16))) == []

    def test_of_a_sensor_with_half_as_many_beams_as_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Half of 64 rows are empty, every other one: the arguments that change the height can be appended."""
        built = make_scans(monkeypatch, "data.sensor={preset: hdl32}", *with_rows("pitch"))
        finding = the_only(built, projection_coverage, "data.projection")
        assert finding.summary == "32 of 64 rows of the image are always empty"
        assert "append transforms.train.2.height=32 transforms.evaluate.0.height=32" in finding.action
        assert found(make_scans(monkeypatch, "data.sensor={preset: hdl32}", *with_rows("pitch", 32))) == []

    @pytest.mark.parametrize("num_columns", [300, 512])
    def test_of_images_too_narrow_for_the_points(self, monkeypatch: pytest.MonkeyPatch, num_columns: int) -> None:
        built = make_scans(monkeypatch, f"data.num_columns={num_columns}")  # images have 128 columns
        finding = the_only(built, projection_coverage, "data.projection")
        assert "hidden by nearer ones in the same pixel" in finding.summary
        assert "`project` with width: 512 or more" in finding.action

    def test_of_a_sensor_that_sees_100_degrees(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def ahead(dataset, sample, key):
            is_ahead = sample["points"][:, 0] > sample["points"][:, 1].abs() * np.tan(np.deg2rad(40))
            return {name: value[is_ahead] for name, value in sample.items()}

        finding = the_only(make_scans(monkeypatch, *FLIPPED_ALONE, edit=ahead), projection_coverage, "data.projection")
        assert "columns" in finding.summary
        sensor = {"azimuth_deg": (50.0, -50.0)}
        assert found(make_scans(monkeypatch, *FLIPPED_ALONE, edit=ahead, facts=sensor)) == []


class TestInputStatistics:
    @pytest.mark.parametrize(
        ("edit", "facts"),
        [
            (None, {"input_mean": (10.88, 0.23, -1.04, 0.21, 12.12), "input_std": (11.47, 6.91, 0.86, 0.16, 12.32)}),
            (None, {"input_mean": (12.12, 10.88, 0.23, -1.04, 53.0), "input_std": (12.32, 11.47, 6.91, 0.86, 41.0)}),
            (lambda d, sample, k: {**sample, "remission": sample["remission"] / 255}, {}),
            (moved(lambda points: points / 1000), {}),
        ],
        ids=["order of the five", "remission to 255", "remission divided twice", "millimetres"],
    )
    def test_that_are_others(self, monkeypatch: pytest.MonkeyPatch, edit: Edit | None, facts: dict) -> None:
        built = make_scans(monkeypatch, **({"edit": edit} if edit else {}), facts=facts)
        the_only(built, input_statistics, "data.normalisation")

    def test_millimetres_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        built = make_scans(monkeypatch, edit=moved(lambda points: points * 1000))
        assert found(built, input_statistics)[0].summary.endswith(": coordinates look like millimetres")

    def test_files_without_remissions_are_no_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        edit: Edit = lambda dataset, sample, key: {**sample, "remission": sample["remission"] * 0}  # noqa: E731
        assert found(make_scans(monkeypatch, edit=edit)) == []


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        with_rows("pitch"),
        with_rows("scan"),
        ("data.sensor={preset: vlp16}", *with_rows("ring", 16)),
        ("data.sensor={preset: hdl32}", *with_rows("pitch", 32), *with_width(160), "data.num_columns=300"),
        ("data.num_columns=32",),
    ],
    ids=["rings", "pitch", "file order", "16 beams", "32 beams", "sparse"],
)
def test_sound_scans_are_not_reported(monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], seed: int) -> None:
    findings = found(make_scans(monkeypatch, *overrides, f"data.data_seed={seed}"))
    assert findings == [], list(map(str, findings))


@pytest.mark.parametrize("change", [lambda x: x.clamp(max=1), torch.zeros_like], ids=["one class", "none"])
def test_scans_of_one_class_or_none_are_not_reported(monkeypatch: pytest.MonkeyPatch, change: Callable) -> None:
    assert found(make_scans(monkeypatch, edit=relabelled(change))) == []


def _real_scans(shared: Path) -> list[Sample]:
    """The front views of SqueezeSeg, which have rings, and the scans of KITTI whose frames are whole."""
    images = sorted((shared / "data/squeezeseg_samples/data/samples").glob("*.npy"))
    scans = [read_range_image(path, height=64, width=512) for path in images]
    root = shared / "data/kitti_object_mini"
    for path in sorted((root / "velodyne").glob("*.bin")):
        label, calib = root / f"label_2/{path.stem}.txt", root / f"calib/{path.stem}.txt"
        image = root / f"image_2/{path.stem}.png"
        if label.exists() and calib.exists() and image.exists():
            size = image_size_px(image)
            scans.append(read_frame(path, label, calib, size_px=size, box_rule=PointsInBoxRule(), visible_only=True))
    return [
        {
            "points": torch.from_numpy(np.array(scan.points)),
            "remission": torch.from_numpy(np.array(scan.remission))[:, None],
            "label": torch.from_numpy(np.array(scan.ids)).clamp(max=8),
            "ring": torch.zeros(len(scan.points), dtype=torch.int64),
        }
        for scan in scans
    ]


@pytest.mark.parametrize("is_other", [False, True], ids=["their own labels", "those of the next"])
def test_real_scans(monkeypatch: pytest.MonkeyPatch, shared: Path, is_other: bool) -> None:
    """Front views of KITTI, four with the labels of SqueezeSeg, six with those of boxes; classes are types of boxes."""
    scans = _real_scans(shared)

    def edit(dataset, sample, key):
        real = scans[key.index % len(scans)]
        if not is_other:
            return real
        other = scans[(key.index + 1) % len(scans)]["label"]
        return {**real, "label": torch.cat([other, other])[: len(real["label"])]}

    statistics = {
        "input_mean": (12.12, 10.88, 0.23, -1.04, 0.21),
        "input_std": (12.32, 11.47, 6.91, 0.86, 0.16),
        "azimuth_deg": (45.0, -45.0),
        "ignore_index": 8,
    }
    width = 128 if is_other else 512  # the sensor measures 512 columns
    built = make_scans(
        monkeypatch, *FLIPPED_ALONE, *with_rows("pitch"), *with_width(width), edit=edit, facts=statistics
    )
    findings = found(built)
    expected = {"mismatched-labels", "projection-coverage"} if is_other else set()
    assert {each.code for each in findings} == expected, list(map(str, findings))
