"""CrowdHuman's figures against its own evaluation, and numbers worked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline import numba_kernels
from sightline.metrics.base import State, append_rows, pool_states
from sightline.metrics.box_ap import BINS
from sightline.metrics.crowds import CrowdAp, _score, jaccard_counts, jaccard_index
from tests.metrics.box_references import Scene, state_of, toy

METRIC = CrowdAp(class_names=("person",))


def figures(scenes: list[Scene]) -> dict[str, float]:
    return METRIC.compute(state_of(METRIC, scenes))


def indices(state: State) -> np.ndarray:
    return jaccard_index(jaccard_counts(_score(state, 1).groups, 0, len(state["images"]), epsilon=1e-6))


def test_the_toy_of_the_spec() -> None:
    found = figures(toy())
    assert found["crowd_ap"] == pytest.approx(0.405556, abs=1e-6)
    assert found["mr2"] == found["mr2_clamped"] == pytest.approx(0.913837, abs=1e-6)
    expected = [*[0.5833] * 5, 0.3333, 0.1667, 0.1667, 0.25, 0]
    assert indices(state_of(METRIC, toy())) == pytest.approx(expected, abs=5e-5)
    assert found["ji"] == pytest.approx(0.583333, abs=1e-6)


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("case", range(26))
def test_equals_the_published_evaluation(
    shared: Path, case: int, has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    folder = shared / "golden" / "detect"
    arrays = np.load(folder / "eval_crowdhuman.npz", allow_pickle=False)
    scenes = []
    for name, width, height in json.loads((folder / "eval_crowdhuman.json").read_text())["cases"][case]["images"]:
        labels, found = (
            arrays[f"case{case:02d}/{name}/{kind}"].reshape(-1, 5) for kind in ("gt_xywh_ignore", "det_xywh_score")
        )
        labels, found = (
            np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4], rows[:, 4:]], axis=1) for rows in (labels, found)
        )
        scenes.append(Scene((height, width), np.column_stack([labels, np.full(len(labels), np.nan)]), found))
    state = state_of(METRIC, scenes)
    ours = METRIC.compute(state)
    theirs = arrays[f"case{case:02d}/AP_MR2_MR4"].copy()
    theirs[:] = np.nan if np.isnan(theirs).any() else theirs  # without labels their AP is 0, and ours no number
    assert [ours[name] for name in ("crowd_ap", "mr2", "mr4")] == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    curve, listed = _score(state, 1).curve(0), arrays[f"case{case:02d}/sorted_score_tp"]
    np.testing.assert_array_equal(curve.scores, listed[:, 0])
    np.testing.assert_array_equal(np.diff(curve.true_positives, prepend=0), listed[:, 1])
    counts = jaccard_counts(_score(state, 1).groups, 0, len(scenes), epsilon=1e-6)
    index, *numbers = arrays[f"case{case:02d}/JI_k_m_n_per_threshold"].T
    np.testing.assert_array_equal(counts.sum(axis=1)[:, [0, 2, 1]], np.transpose(numbers))
    assert jaccard_index(counts) == pytest.approx(index, abs=1e-12, nan_ok=True)


def test_a_perfect_detector() -> None:
    """Its first detection contributes nothing to the area: 1 - 1 / n."""
    scenes = [
        s._replace(detections=np.column_stack([s.labels[s.labels[:, 4] == 0, :4], [0.95] * k]))
        for s, k in ((s, int((s.labels[:, 4] == 0).sum())) for s in toy())
    ]
    found = figures(scenes)
    assert found["crowd_ap"] == pytest.approx(1 - 1 / 3)
    assert found["mr2"] == 0
    assert found["mr2_clamped"] == pytest.approx(1e-10)
    assert found["ji"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("has_numba", [True, False])
def test_limits_of_the_jaccard_index_have_to_be_exceeded(has_numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes whose overlap is one half, exactly, and scores that are a threshold: pairs, detections, labels by hand.

    The first label is half covered by a detection, the second and the detection on it lie by half in an ignored one.
    """
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    labels = [[0, 0, 8, 8, 0, 1.0], [20, 0, 28, 8, 0, 1], [24, 0, 40, 8, 1, 1]]
    boxes = [[0, 0, 4, 8, 0.95], [20, 12, 28, 20, 0.5], [36, 0, 44, 8, 0.95]]
    state = state_of(METRIC, [Scene((64, 64), np.array(labels), np.array(boxes))])
    counts = jaccard_counts(_score(state, 1).groups, 0, 1, epsilon=0.0)[:, 0]
    assert counts.tolist() == [[0, 3, 2]] * 5 + [[0, 2, 2]] * 5


def test_nothing_to_count_is_no_number_and_says_why() -> None:
    assert all(math.isnan(value) for value in METRIC.compute(METRIC.new_state()).values())
    tables = METRIC.tables(METRIC.new_state())
    assert tables["scored_boxes_crowd"]["undefined"]["all"] == "no label counts"
    unknown = [scene._replace(labels=scene.labels.copy()) for scene in toy()]
    for scene in unknown:
        scene.labels[:, 5] = np.nan
    undefined = METRIC.tables(state_of(METRIC, unknown))["scored_boxes_crowd"]["undefined"]
    assert undefined["visible < 0.2"] == "the set does not state it"
    assert undefined["height >= 150 px"] == "no label is in this range"


def test_bins_have_the_labels_of_their_range() -> None:
    """By hand: of four labels one stands alone, two overlap by 1/3, one is small; all but one are found."""
    labels = [[0, 0, 40, 100, 0, 1.0], [20, 0, 60, 100, 0, 0.3], [100, 0, 140, 160, 0, 0.7], [0, 120, 10, 140, 0, 0.1]]
    found = [[0, 0, 40, 100, 0.9], [20, 0, 60, 100, 0.8], [0, 120, 10, 140, 0.7], [200, 100, 210, 130, 0.6]]
    rows = METRIC.tables(state_of(METRIC, [Scene((200, 300), np.array(labels, dtype=float), np.array(found))]))[
        "crowd_bins"
    ]
    assert {name: row["count"] for name, row in rows.items()} == dict(
        zip(BINS, (2, 1, 1, 1, 2, 1, 2, 2, 0), strict=True)
    )
    assert {name: row["recall"] for name, row in rows.items() if row["count"]} == pytest.approx(
        dict(zip(list(BINS)[:-1], (0.5, 1, 1, 1, 1, 0, 0.5, 1), strict=True))
    )
    # the false positive is 30 px high: it counts among small labels, and not among those of 50 to 150 px
    assert rows["height 50 to 150 px"]["crowd_ap"] == pytest.approx(0.5)
    assert rows["height < 50 px"]["mr2"] == 0


def test_states_of_several_parts_keep_images_and_boxes_together() -> None:
    """A part's last images may have no detections, and its states still number the same samples alike."""
    parts = [toy(), toy(), toy()[::-1]]
    parts[0][1] = parts[0][1]._replace(detections=np.zeros((0, 5)))
    pooled = pool_states(METRIC, [state_of(METRIC, part) for part in parts])
    assert METRIC.compute(pooled) == figures([scene for part in parts for scene in part])
    state = METRIC.new_state()
    append_rows(state, "images", torch.tensor([0]), torch.tensor([[5, 5]]))
    assert pool_states(METRIC, [state, state])["images"][:, 0].tolist() == [0, 1]


def test_two_classes_have_means() -> None:
    metric = CrowdAp(class_names=("person", "rider"))
    state = {name: rows.clone() for name, rows in state_of(METRIC, toy()).items()}
    person = METRIC.compute(state)
    riders = {name: rows.clone() for name, rows in state.items()}
    riders["labels"][:, 5] = riders["detections"][:, 6] = 1
    riders["detections"] = riders["detections"][:1]
    both = {name: torch.cat([state[name], riders[name]]) for name in ("labels", "detections")}
    figures_of = metric.per_class({**both, "images": state["images"]})
    assert figures_of["person"]["crowd_ap"] == pytest.approx(person["crowd_ap"])
    assert figures_of["rider"] == {"crowd_ap": 0.0, "mr2": pytest.approx(2 / 3), "count": 3}
    assert metric.compute({**both, "images": state["images"]})["crowd_ap"] == pytest.approx(person["crowd_ap"] / 2)
