"""The shipped cases agree at small sizes, and the usual networks give what ours do."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch

from benchmarks import networks
from benchmarks.case import BenchmarkCase
from benchmarks.networks import IN_FLOAT64, make_parts
from benchmarks.suites import find_case, list_cases, select_cases
from benchmarks.textbook import TextbookPointTransformer
from tests.marks import long_but

# --- the shipped cases ------------------------------------------------------------------------------------------------


CHEAP = [case for case in list_cases() if case.suite in ("geometry", "data", "compress")]
DETECTION = [case for case in list_cases() if case.name.startswith(("metrics/box_ap", "train/detection"))]


def names(cases: list[BenchmarkCase]) -> list[str]:
    return [case.name for case in cases]


def test_names_are_unique_and_so_are_those_of_forms() -> None:
    everything = names(list_cases())
    assert len(everything) == 79
    assert len(set(everything)) == len(everything)
    for case in list_cases():
        forms = [form.name for form in case.forms]
        assert len(set(forms)) == len(forms)
        assert "sightline" in {form.split("_bf16")[0] for form in forms}


def test_cases_are_chosen_by_suite_and_pattern() -> None:
    assert names(select_cases((), None)) == names(list_cases()) == names(select_cases(("all",), None))
    assert {case.suite for case in select_cases(("data", "geometry", "data"), None)} == {"geometry", "data"}
    assert names(select_cases(("all",), "knn_8x1024x64*")) == ["geometry/knn_8x1024x64_k20"]
    assert names(select_cases((), "geometry/knn_8x1024x64*")) == ["geometry/knn_8x1024x64_k20"]


_SLOW = ("train/detection_photos_4x320", "compress/kmeans_1000000_to_16")
KEPT = [case for case in (*CHEAP, *DETECTION) if case.name not in _SLOW]


@pytest.mark.parametrize("case", long_but(KEPT, [*CHEAP, *DETECTION]), ids=names([*CHEAP, *DETECTION]))
def test_forms_of_a_case_agree(case: BenchmarkCase) -> None:
    small = case.smaller()
    inputs = small.inputs()
    with ExitStack() as stack:
        runs = {form.name: stack.enter_context(form.open(inputs))() for form in small.forms if form.is_present}
    if small.baseline.name not in runs:
        pytest.skip(f"{small.baseline.needs} is not installed")
    expected = runs.pop(small.baseline.name)
    for form in small.variants:
        if form.name in runs:
            assert form.compare(inputs, expected, runs[form.name]) is None, form.name


@pytest.mark.parametrize("case", CHEAP[:5], ids=names(CHEAP[:5]))
def test_a_wrong_answer_is_found(case: BenchmarkCase) -> None:
    """Two neighbouring places of one answer change hands."""
    small = case.smaller()
    inputs = small.inputs()
    with small.baseline.open(inputs) as run:
        expected = run()
    found = expected.clone()
    found[0, -1, ...] = expected[0, -2, ...]
    assert case.variants[0].compare(inputs, expected, found) is not None


def test_metrics_are_those_of_the_usual_loop_and_a_wrong_one_is_found() -> None:
    case = find_case("metrics/part_iou_2874x2048").smaller()
    inputs = case.inputs()
    expected, found = (form.open(inputs) for form in case.forms)
    with expected as by_shape, found as by_counts:
        figures, ours = by_shape(), by_counts()
    agrees = case.variants[0].compare
    assert agrees(inputs, figures, ours) is None
    assert agrees(inputs, figures, ours | {"class_miou": ours["class_miou"] + 1e-9}) is not None
    assert agrees(inputs, figures, ours | {"class_miou": float("nan")}) is not None


def test_inputs_are_the_same_every_time() -> None:
    for case in CHEAP:
        drawn = (case.smaller().inputs() for _ in range(2))
        first, second = (vars(inputs) if is_dataclass(inputs) else inputs for inputs in drawn)
        names = ("points", "cells", "capsules", "depth", "volume", "boxes", "weights", "codes", "src")
        name = next(name for name in names if name in first)
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("case", CHEAP[:4], ids=names(CHEAP[:4]))
def test_distances_between_rounded_points_are_exact(case: BenchmarkCase) -> None:
    """The expansion in float32 equals the sum of squares in float64, bit for bit: rounding decides no neighbour."""
    points = case.smaller().inputs()["points"]
    squares = (points**2).sum(-1)
    expanded = squares[:, :, None] + squares[:, None] - 2 * points @ points.mT
    exact = (points.double()[:, :, None] - points.double()[:, None]).square().sum(-1)
    assert torch.equal(expanded.double(), exact)


def test_no_third_point_of_interpolation_ties_with_a_fourth() -> None:
    """Where they tie, either may be taken, and the features of the two have nothing in common."""
    inputs = find_case("geometry/interpolate_32x128_to_512_c256").inputs()
    points, queries = inputs["points"].double(), inputs["queries"].double()
    distances = (queries[:, :, None] - points[:, None]).square().sum(-1).topk(4, largest=False).values
    assert (distances[..., 2] < distances[..., 3]).all()


# --- the usual networks give what ours do: they are what speed is told against ----------------------------------------


@pytest.mark.parametrize(
    ("name", "points"), long_but([("dgcnn", 64)], [("dgcnn", 64), ("pct", 512), ("pointnet2", 512)])
)
def test_networks_agree_with_ours_in_float64(name: str, points: int) -> None:
    """Logits in training, where batch norm sees the batch; the benchmark compares gradients as well."""
    kind, theirs = networks.MODELS[name]
    inputs: dict[str, Any] = IN_FLOAT64.narrow(networks.make_inputs(kind)(batch=2, points=points))
    with torch.no_grad():
        found, expected = (
            build(inputs["model"]).train()(points=inputs["points"])["logits"] for build in (theirs, copy.deepcopy)
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.long
def test_the_point_transformer_agrees_with_ours_in_float64() -> None:
    """Logits in training, and the gradient of every weight, parameters in the same order."""
    inputs = IN_FLOAT64.narrow(make_parts(batch=2, points=512))
    forms = [build(inputs["model"]).train() for build in (TextbookPointTransformer, copy.deepcopy)]
    found, expected = (form(points=inputs["points"])["logits"] for form in forms)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.detach().abs().max()))
    for logits in (found, expected):
        logits.square().sum().backward()
    largest = max(float(each.grad.abs().max()) for each in forms[1].parameters() if each.grad is not None)
    for one, two in zip(*(form.parameters() for form in forms), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-9 * largest)


def test_parameters_stand_in_the_same_order() -> None:
    """So the gradients are compared pair by pair."""
    for kind, theirs in networks.MODELS.values():
        ours = kind(num_classes=4, in_channels=3)
        pairs = zip(ours.parameters(), theirs(ours).parameters(), strict=True)
        assert all(torch.equal(one.flatten(), two.flatten()) for one, two in pairs)
