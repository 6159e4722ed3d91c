"""Intervals of shares and of ratios of sums: SciPy's numbers, Student's t of a plain mean, and how often they hold."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import scipy.stats
import torch

from sightline.contract import registry
from sightline.contract.intervals import ratio_interval, student_t, wilson_interval
from sightline.contract.metric import Meter, SampleShares, SampleSums
from sightline.contract.types import ComponentConfig
from tests.cases import run_each


@run_each("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 100, 101])
def test_students_t_against_scipy(degrees: int) -> None:
    for confidence in (0.5, 0.95, 0.99):
        expected = scipy.stats.t.ppf((1 + confidence) / 2, degrees)
        assert student_t(degrees, confidence=confidence) == pytest.approx(expected, rel=1e-9)


@run_each("right, total", [(28, 40), (280, 400), (0, 1), (1, 1), (0, 7), (7, 7), (1, 2), (3, 1000), (999, 1000)])
def test_a_share_s_interval_is_scipy_s(right: int, total: int) -> None:
    expected = scipy.stats.binomtest(right, total).proportion_ci(method="wilson")
    assert wilson_interval(right, total) == pytest.approx((expected.low, expected.high), rel=1e-12, abs=1e-15)


def test_28_of_40_is_not_28_of_400() -> None:
    """By hand, of 28 of 40: p 0.7, z 1.96, middle (0.7 + 0.04802) / 1.09604 = 0.68248, half 0.13641."""
    shares = SampleShares(torch.tensor([28, 28, 0]), torch.tensor([40, 400, 0]), num_samples=440)
    few, many, none = shares.intervals()
    assert (few["low"], few["high"]) == pytest.approx((0.5457, 0.8193), abs=2e-4)
    assert (many["low"], many["high"]) == pytest.approx((0.0489, 0.0993), abs=2e-4)
    assert (none["low"], none["high"], none["num_samples"]) == (None, None, 0)


def test_of_equal_samples_the_interval_is_that_of_a_mean() -> None:
    values = np.array([0.2, 0.5, 0.9, 0.4, 0.35])
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ratio_interval(values, np.ones(5)) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_an_iou_s_interval_is_scipy_s_standard_error_times_students_t() -> None:
    """SciPy has no jackknife; its bootstrap of 4,000 drawings of 60 rooms has the same standard error within 5 %."""
    rng = np.random.default_rng(3)
    union = rng.integers(50, 4000, 60).astype(np.float64)
    common = np.floor(union * rng.beta(6, 3, 60))
    low, high = ratio_interval(common, union) or (math.nan, math.nan)
    drawn = scipy.stats.bootstrap(
        (common, union),
        lambda above, below, axis=-1: above.sum(axis=axis) / below.sum(axis=axis),
        paired=True,
        n_resamples=4000,
        rng=np.random.default_rng(0),
    )
    assert (low + high) / 2 == pytest.approx(common.sum() / union.sum(), rel=1e-12)
    assert (high - low) / 2 / student_t(59) == pytest.approx(drawn.standard_error, rel=0.05)
    assert (low, high) == pytest.approx(tuple(drawn.confidence_interval), abs=0.01)


def test_few_samples_give_an_interval_that_holds() -> None:
    """Of 2,000 draws of 4 rooms, the true ratio is inside in 91 % or more; a bootstrap's holds in less than 85 %."""
    rng = np.random.default_rng(1)
    union = rng.uniform(0.5, 1.5, (2000, 4))
    common = union * rng.beta(4, 2, (2000, 4))
    ends = [ratio_interval(above, below) or (math.nan, math.nan) for above, below in zip(common, union, strict=True)]
    assert np.mean([low <= 2 / 3 <= high for low, high in ends]) > 0.91
    drawn = rng.integers(4, size=(2000, 200, 4))
    ratios = np.take_along_axis(common[:, None], drawn, 2).sum(2) / np.take_along_axis(union[:, None], drawn, 2).sum(2)
    low, high = np.quantile(ratios, [0.025, 0.975], axis=1)
    assert np.mean((low <= 2 / 3) & (high >= 2 / 3)) < 0.85


@pytest.mark.parametrize(("name", "figures"), [("box_ap", ("ap", "ap50")), ("crowd_ap", ("crowd_ap", "mr2"))])
def test_a_detector_s_interval_is_that_of_the_metric_without_each_image(name: str, figures: tuple[str, ...]) -> None:
    """Pseudo-values of the metric of all images but one, and SciPy's interval of their mean about the figure."""
    rng, metric = np.random.default_rng(7), registry.metrics.build(ComponentConfig(name), facts={"class_names": ("a",)})
    images = [draw_image(rng, number) for number in range(9)]

    def measure(chosen: list[dict[str, torch.Tensor]]) -> Meter:
        meter = Meter(metric)
        for image in chosen:
            meter.update(**{key: image[key] for key in inspect.signature(metric.update).parameters if key in image})
        return meter

    whole, others = measure(images), [measure(images[:n] + images[n + 1 :]).compute() for n in range(9)]
    for figure in figures:
        (interval,) = metric.class_intervals(whole.state)[figure].intervals()
        value, without = whole.compute()[figure], np.array([other[figure] for other in others])
        expected = scipy.stats.ttest_1samp(9 * value - 8 * without, 0).confidence_interval(0.95)
        half = (expected.high - expected.low) / 2
        assert interval["num_samples"] == 9
        assert (interval["low"], interval["high"]) == pytest.approx((max(0, value - half), min(1, value + half)))
        assert interval["low"] < value < interval["high"]


def draw_image(rng: np.random.Generator, number: int) -> dict[str, torch.Tensor]:
    """Three people in a row, found more or less exactly or not at all, and a detection of nobody."""
    left, width = 60.0 * np.arange(3), rng.uniform(30, 50, 3)
    truth = np.stack([left, np.zeros(3), left + width, np.full(3, 90.0), np.zeros(3), 90 * width, np.zeros(3)], axis=1)
    found = np.concatenate([truth[:, :4], [[200.0, 0, 230, 90]]])[rng.random(4) < 0.8]
    found[:, :4] += rng.normal(0, 5, (len(found), 4))
    detections = np.concatenate([found, rng.random((len(found), 1)), np.zeros((len(found), 1))], axis=1)
    return {
        "detections": torch.from_numpy(detections),
        "detection_offsets": torch.tensor([0, len(detections)]),
        "truth": torch.from_numpy(truth),
        "truth_visible": torch.ones(3),
        "truth_offsets": torch.tensor([0, 3]),
        "file_px": torch.tensor([[100, 300]]),
        "sample_index": torch.tensor([number]),
    }


def test_each_class_has_the_samples_in_which_it_occurs() -> None:
    """One class in three samples, one in one, one in none; ends are within the bounds of the figure."""
    common = torch.tensor([[9, 0, 0], [2, 0, 0], [10, 4, 0], [0, 0, 0]])
    union = torch.tensor([[10, 0, 0], [10, 0, 0], [10, 8, 0], [0, 0, 0]])
    sums = SampleSums(common, union, bounds=(0.0, 1.0))
    three, one, none = sums.intervals()
    assert [row["num_samples"] for row in (three, one, none)] == [3, 1, 0]
    assert (three["low"], three["high"]) == (0.0, 1.0)  # 0.7 and Student's t of two degrees times 0.25
    assert [row["low"] for row in (one, none)] == [row["high"] for row in (one, none)] == [None, None]
    assert sums.num_samples == 3
