"""Labels from pixels to points: the published vote, hand-worked windows, both forms, and a projection's ceilings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.scans.projection_summary import mean_iou, upper_bound_confusions
from sightline.ops import numba_kernels
from sightline.ops.views.projection import RangeView, project_scans
from sightline.ops.voxels.lift import KNNVote, gaussian_window, lift_knn, lift_knn_reference, lift_nearest
from tests.cases import run_each
from tests.golden_parity import load_golden
from tests.ops.scans.lidar_scene import NAMES, cast_scan

FORMS = {"compiled": lift_knn, "plain": lift_knn_reference}
Given = dict[str, Tensor]
Lift = Callable[..., Tensor]


@pytest.fixture(params=FORMS)
def lift(request: pytest.FixtureRequest) -> Lift:
    return FORMS[request.param]


def one_window(ranges: list[list[float]], label: list[list[int]], *, pixel: int, own: float) -> Given:
    """One image and one point of it."""
    return {
        "label": torch.tensor([label]),
        "range_image": torch.tensor([ranges]),
        "pixel": torch.tensor([pixel]),
        "point_range": torch.tensor([own]),
        "offsets": torch.tensor([0, 1]),
    }


def random_images(*, seed: int, num_points: tuple[int, ...] = (300, 0, 500), has_ties: bool = False) -> Given:
    generator = torch.Generator().manual_seed(seed)
    shape, count = (len(num_points), 12, 40), sum(num_points)
    ranges = torch.rand(shape, generator=generator) * 8
    own = torch.rand(count, generator=generator) * 8
    if has_ties:
        ranges, own = ranges.round(), own.round()
    ranges[torch.rand(shape, generator=generator) < 0.3] = -1
    return {
        "label": torch.randint(0, 5, shape, generator=generator),
        "range_image": ranges,
        "pixel": torch.randint(0, 480, (count,), generator=generator),
        "point_range": own,
        "offsets": torch.tensor([0, *np.cumsum(num_points)]),
    }


# --- the published code -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(12))
def test_votes_are_those_of_the_published_code(shared: Path, lift: Lift, case: int) -> None:
    golden = load_golden(shared, "knn_postprocess", area="lidar")
    arrays = {key.split("/")[1]: value for key, value in golden.arrays.items() if key.startswith(f"case{case:02d}/")}
    params = golden.info["cases"][case]["params"]
    vote = KNNVote(
        window=params["search"],
        num_neighbours=params["knn"],
        sigma=params["sigma"],
        cutoff_m=params["cutoff"],
        is_circular=False,
        border="zero",
    )
    width = arrays["proj_range"].shape[1]
    found = lift(
        torch.from_numpy(arrays["proj_argmax"].astype(np.int64))[None],
        range_image=torch.from_numpy(arrays["proj_range"])[None],
        pixel=torch.from_numpy(arrays["py"].astype(np.int64) * width + arrays["px"]),
        point_range=torch.from_numpy(arrays["unproj_range"]),
        offsets=torch.tensor([0, len(arrays["px"])]),
        vote=vote,
    ).numpy()
    # The pixel of a point is never too far, so none voted where the answer is void; theirs is class 1 there.
    as_theirs = np.where(found == 0, 1, found)
    assert np.array_equal(as_theirs[~arrays["tie_at_k"]], arrays["out"][~arrays["tie_at_k"]])


def test_windows_are_those_of_the_published_code(shared: Path) -> None:
    arrays = load_golden(shared, "knn_postprocess", area="lidar").arrays
    windows = [key.removeprefix("gauss/") for key in arrays if key.startswith("gauss/")]
    assert len(windows) == 4
    for name in windows:
        search, sigma = name.split("_")
        found = gaussian_window(int(search), float(sigma))
        assert np.abs(found.numpy() - arrays[f"gauss/{name}"]).max() < 2**-24, "theirs is float32"
        assert found.sum().item() == pytest.approx(1, abs=1e-15)


# --- worked by hand ---------------------------------------------------------------------------------------------------


def test_near_ranges_outvote_the_pixel_of_a_shadow(lift: Lift) -> None:
    """The point lies 7 m behind what its pixel shows, and beside pixels of its own surface."""
    given = one_window(
        [[9.1, 2.0, 8.9], [9.05, 2.0, 9.2], [2.0, 2.0, -1.0]], [[5, 3, 5], [5, 3, 5], [3, 3, 7]], pixel=4, own=9
    )
    assert lift(**given, vote=KNNVote(window=3, num_neighbours=3, is_circular=False)).tolist() == [5]
    assert lift(**given, vote=KNNVote(window=3, num_neighbours=1, is_circular=False)).tolist() == [3]
    assert lift_nearest(given["label"], pixel=given["pixel"], offsets=given["offsets"]).tolist() == [3]


def test_of_equally_many_votes_the_lowest_class_is_taken(lift: Lift) -> None:
    given = one_window([[4.0, 4.0, 4.0]], [[9, 8, 7]], pixel=1, own=4)
    assert lift(**given, vote=KNNVote(window=3, num_neighbours=3, is_circular=False)).tolist() == [7]


def test_where_none_may_vote_the_pixel_answers(lift: Lift) -> None:
    vote = KNNVote(window=3, num_neighbours=3, void=2)
    assert lift(**one_window([[4.0, 4.0, 4.0]], [[2, 2, 2]], pixel=1, own=4), vote=vote).tolist() == [2]
    # class 1 lies too far away, so that the void pixel is not outvoted
    assert lift(**one_window([[9.0, 4.0, 9.0]], [[1, 2, 1]], pixel=1, own=4), vote=vote).tolist() == [2]
    assert lift(**one_window([[4.5, 4.0, 9.0]], [[1, 2, 1]], pixel=1, own=4), vote=vote).tolist() == [1]


@run_each("dtype, has_kernels", itertools.product((torch.uint8, torch.int8, torch.uint16, torch.int32), (True, False)))
def test_labels_of_few_bits_vote_as_those_of_int64(dtype: torch.dtype, has_kernels: bool) -> None:
    """255 in 8 bits votes, though torch takes it for -1, the class that does not."""
    vote, given = KNNVote(void=-1), random_images(seed=1)
    label = given["label"] * (25 if dtype == torch.int8 else 63 if dtype == torch.uint8 else 75)
    label[label == 252] = 255
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_kernels, "_has_numba", lambda: has_kernels)
        found = lift_knn(**given | {"label": label.to(dtype)}, vote=vote)
        assert torch.equal(found, lift_knn(**given | {"label": label}, vote=vote))


def test_the_last_column_lies_beside_the_first(lift: Lift) -> None:
    given = one_window([[2.0, 7.0, 7.0, 7.0, 5.0, 5.1]], [[3, 1, 1, 1, 4, 4]], pixel=0, own=5)
    assert lift(**given, vote=KNNVote(num_neighbours=3)).tolist() == [4]
    assert lift(**given, vote=KNNVote(num_neighbours=3, is_circular=False)).tolist() == [3]


# --- both forms -------------------------------------------------------------------------------------------------------


@run_each("has_ties", [False, True])
@run_each(
    "vote",
    [
        KNNVote(),
        KNNVote(window=3, num_neighbours=9, cutoff_m=0.0),
        KNNVote(window=7, num_neighbours=4, sigma=2.0, is_circular=False, border="zero", void=3),
        KNNVote(window=1, num_neighbours=1),
        KNNVote(window=5, num_neighbours=25, cutoff_m=3.0, is_circular=False),
    ],
)
def test_both_forms_give_the_same_labels(vote: KNNVote, has_ties: bool) -> None:
    given = random_images(seed=vote.window, has_ties=has_ties)
    assert torch.equal(lift_knn(**given, vote=vote), lift_knn_reference(**given, vote=vote))


def test_a_window_wider_than_the_image_wraps_around_it() -> None:
    given = one_window([[4.0, 4.4]], [[1, 2]], pixel=0, own=4.4)
    vote = KNNVote(window=7, num_neighbours=5)
    assert torch.equal(lift_knn(**given, vote=vote), lift_knn_reference(**given, vote=vote))


def test_scans_of_any_lengths_are_lifted_as_if_alone(lift: Lift) -> None:
    given, vote = random_images(seed=2), KNNVote()
    together = lift(**given, vote=vote)
    for scan, (first, last) in enumerate(((0, 300), (300, 300), (300, 800))):
        alone = {name: given[name][scan : scan + 1] for name in ("label", "range_image")}
        alone |= {name: given[name][first:last] for name in ("pixel", "point_range")}
        found = lift(**alone, offsets=torch.tensor([0, last - first]), vote=vote)
        assert torch.equal(together[first:last], found)


def test_wrong_votes_are_refused() -> None:
    for arguments, text in (
        ({"window": 4}, "odd"),
        ({"num_neighbours": 26}, "1 to 25"),
        ({"num_neighbours": 0}, "1 to 25"),
        ({"sigma": 0.0}, "must be positive"),
        ({"cutoff_m": -1.0}, "not negative"),
    ):
        with pytest.raises(ValueError, match=text):
            KNNVote(**arguments)  # type: ignore[arg-type]


# --- what a perfect network reaches -----------------------------------------------------------------------------------


def test_every_drawn_label_comes_back() -> None:
    scan = cast_scan(num_azimuths=256)
    offsets = torch.tensor([0, len(scan.points)])
    found = project_scans(scan.points, view=RangeView(64, 256, rows="ring"), offsets=offsets, ring=scan.ring)
    tables = upper_bound_confusions(
        scan.label, found, offsets=offsets, num_classes=len(NAMES), vote=KNNVote(cutoff_m=1e-9)
    )
    for table in tables.values():
        assert torch.equal(table, torch.diag(scan.label.bincount(minlength=len(NAMES))))
        assert mean_iou(table, ignore_index=0) == 1


def test_the_mean_leaves_out_classes_without_points_and_points_without_class() -> None:
    #       true:   0  1  2  3
    table = torch.tensor([[5, 1, 0, 0], [7, 3, 1, 0], [0, 0, 3, 0], [0, 0, 0, 0]])
    # class 1: 3 right, 4 true, 4 predicted among labelled points: 3 / 5; class 2: 3 of 4 true, 3 predicted: 3 / 4
    assert mean_iou(table, ignore_index=0) == pytest.approx((3 / 5 + 3 / 4) / 2)
    assert np.isnan(mean_iou(torch.zeros(3, 3, dtype=torch.int64), ignore_index=0))
