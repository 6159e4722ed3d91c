"""The shipped cases: their names, what patterns choose, and that their forms agree at the sizes of a smoke test."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from benchmarks.suites import LIBRARY
from sightline.bench import suites as installed
from sightline.bench.case import BenchmarkCase
from sightline.errors import UserError
from tests.marks import long_but

CHEAP = [case for case in LIBRARY.all_cases() if case.suite in ("geometry", "data", "compress")]
DETECTION = [case for case in LIBRARY.all_cases() if case.name.startswith(("metrics/box_ap", "train/detection"))]


def names(cases: list[BenchmarkCase]) -> list[str]:
    return [case.name for case in cases]


def test_the_sizes_of_the_bars_are_there() -> None:
    assert {
        "compress/kmeans_1000000_to_16",
        "geometry/knn_32x1024x3_k20",
        "geometry/knn_8x1024x64_k20",
        "geometry/knn_1x8192x3_k20",
        "geometry/knn_1x65536x3_k20",
        "geometry/fps_32x1024_to_512",
        "geometry/fps_8x8192_to_1024",
        "geometry/fps_1x65536_to_4096",
        "geometry/project_64x1900_to_2048",
        "geometry/lift_knn_64x1900_from_2048",
        "geometry/box_iou_10000x1000",
        "geometry/suppress_greedy_10000",
        "geometry/suppress_soft_linear_1000",
        "geometry/suppress_soft_gaussian_1000",
        "geometry/assign_max_iou_300_to_100000",
        "geometry/assign_fcos_300_to_100000",
        "geometry/assign_atss_300_to_100000",
        "metrics/box_ap_5000x100",
        "train/detection_targets_4x320",
        "train/detection_photos_4x320",
        "models/recipe_retinanet_step_8",
        "models/dgcnn_step_32x1024",
        "models/dgcnn_step_bf16_32x1024",
        "models/pct_step_32x1024",
        "models/pointnet2_step_32x1024",
        "models/point_transformer_dense_step_2x1024",
        "models/point_transformer_step_16x1024",
        "models/point_transformer_scene_forward_80000",
    } <= set(names(LIBRARY.all_cases()))


def test_names_are_unique_and_so_are_those_of_forms() -> None:
    everything = names(LIBRARY.all_cases())
    assert len(set(everything)) == len(everything)
    for case in LIBRARY.all_cases():
        forms = [form.name for form in case.forms]
        assert len(set(forms)) == len(forms)
        assert "sightline" in {form.split("_bf16")[0] for form in forms}


def test_a_checkout_has_all_cases_and_the_package_those_without_a_textbook() -> None:
    everything = {case.name: case for case in LIBRARY.all_cases()}
    assert len(everything) == 65
    ours = installed.LIBRARY.all_cases()
    assert len(ours) == 27
    assert {case.name for case in ours} < everything.keys()
    assert LIBRARY.suites.keys() == installed.LIBRARY.suites.keys()
    for case in ours:
        assert [form.name for form in case.forms] == [form.name for form in everything[case.name].forms]
        assert not {form.needs for form in case.forms} - {None}
        assert not case.baseline.name.startswith("textbook")


def test_cases_are_chosen_by_suite_and_pattern() -> None:
    assert names(LIBRARY.select((), None)) == names(LIBRARY.all_cases()) == names(LIBRARY.select(("all",), None))
    assert {case.suite for case in LIBRARY.select(("data", "geometry", "data"), None)} == {"geometry", "data"}
    assert names(LIBRARY.select(("all",), "knn_8x*")) == ["geometry/knn_8x1024x64_k20"]
    assert names(LIBRARY.select((), "geometry/knn_8x*")) == ["geometry/knn_8x1024x64_k20"]
    with pytest.raises(UserError, match=r"there is no suite 'geometri'.*geometry"):
        LIBRARY.select(("geometri",), None)
    with pytest.raises(UserError, match="no case of data fits --case knn_"):
        LIBRARY.select(("data",), "knn_*")


KEPT = [case for case in (*CHEAP, *DETECTION) if case.name != "train/detection_photos_4x320"]


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
    case = LIBRARY.find("metrics/part_iou_2874x2048").smaller()
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
        first, second = case.smaller().inputs(), case.smaller().inputs()
        names = ("points", "capsules", "depth", "volume", "boxes", "weights", "codes")
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
    inputs = LIBRARY.find("geometry/interpolate_32x128_to_512_c256").inputs()
    points, queries = inputs["points"].double(), inputs["queries"].double()
    distances = (queries[:, :, None] - points[:, None]).square().sum(-1).topk(4, largest=False).values
    assert (distances[..., 2] < distances[..., 3]).all()


def test_growing_cases_are_found_by_name_and_have_no_peers() -> None:
    for case in [grown.case for grown in LIBRARY.grown_cases((), "all", is_quick=False)]:
        assert [form.name for form in case.variants] == ["sightline"]
        assert LIBRARY.find(case.name).size == case.size
