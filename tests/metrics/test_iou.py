"""IoU of classes of points: hand-worked, the authors' numbers without their quirks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.metrics import IoU, confusion_matrix
from sightline.metrics.base import State, make_state
from tests.golden_parity import load_golden

IGNORED = 255


def measured(metric: IoU, rooms: list[tuple[Tensor, Tensor]], batches: list[list[int]]) -> State:
    """The state after these rooms (answers, labels), in batches of their indices."""
    state = make_state(metric, num_samples=len(rooms))
    for indices in batches:
        chosen = [rooms[index] for index in indices]
        sizes = torch.tensor([0, *(len(label) for _, label in chosen)])
        metric.update(
            state,
            probabilities=torch.eye(metric.num_classes)[torch.cat([answer for answer, _ in chosen])],
            target=torch.cat([label for _, label in chosen]),
            cloud_offsets=sizes.cumsum(0),
            sample_index=torch.tensor(indices),
        )
    return state


def figures(rooms: list[tuple[Tensor, Tensor]], *, num_classes: int = 13) -> dict[str, float]:
    metric = IoU(num_classes=num_classes, ignore_index=IGNORED)
    return metric.compute(measured(metric, rooms, [list(range(len(rooms)))]))


def test_hand_worked_over_two_rooms() -> None:
    """Class a: 1 of 3 in the first room, 3 of 3 in the second, so 4 of 6 in all; b: 1/3 and none, so 1 of 3."""
    first = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    second = torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0])
    both = figures([first, second], num_classes=3)
    assert both["miou"] == (4 / 6 + 1 / 3) / 2
    assert both["overall_accuracy"] == 5 / 7
    assert both["mean_class_accuracy"] == (4 / 5 + 1 / 2) / 2
    alone = [figures([room], num_classes=3)["miou"] for room in (first, second)]
    assert alone == [1 / 3, 1.0]
    assert both["miou"] != np.mean(alone)


@pytest.mark.shared
@pytest.mark.parametrize("case", [f"case{number}" for number in range(6)])
def test_agrees_with_the_authors_code_but_for_absent_classes(shared: Path, case: str) -> None:
    """Theirs adds 1e-10 below every fraction, of which one over a single point then lacks 1e-10."""
    golden = load_golden(shared, "fn_s3dis_metrics")
    num_classes = int(golden.tensor(f"{case}.K"))
    pair = golden.tensor(f"{case}.pred"), golden.tensor(f"{case}.label")
    metric = IoU(num_classes=num_classes, ignore_index=IGNORED)
    state = measured(metric, [pair], [[0]])
    counts = state["confusion"]
    assert torch.equal(counts.diagonal(), golden.tensor(f"{case}.inter"))
    assert torch.equal(counts.sum(dim=1), golden.tensor(f"{case}.target"))
    assert torch.equal(counts.sum(dim=0) + counts.sum(dim=1) - counts.diagonal(), golden.tensor(f"{case}.union"))
    found = metric.compute(state)
    for name, stored in (("miou", "mIoU_corrected"), ("mean_class_accuracy", "mAcc_corrected")):
        expected = golden.tensor(f"{case}.{stored}").item()
        assert found[name] == pytest.approx(expected, abs=1.1e-10, nan_ok=True)
    if counts.sum():
        assert found["overall_accuracy"] == pytest.approx(golden.tensor(f"{case}.OA").item(), abs=1.1e-10)


@pytest.mark.shared
def test_three_rooms_are_one_evaluation_and_not_the_mean_of_three(shared: Path) -> None:
    golden = load_golden(shared, "fn_s3dis_metrics")
    rooms = [(golden.tensor(f"room{n}.pred"), golden.tensor(f"room{n}.label")) for n in range(3)]
    found = figures(rooms)
    assert found["miou"] == pytest.approx(golden.tensor("rooms_total.mIoU_corrected").item(), abs=1.1e-10)
    assert found["overall_accuracy"] == pytest.approx(golden.tensor("rooms_total.OA").item(), abs=1.1e-10)
    alone = [figures([room])["miou"] for room in rooms]
    for number, value in enumerate(alone):
        expected = golden.tensor(f"room{number}.room_mIoU_over_present").item()
        assert value == pytest.approx(expected, abs=1.1e-10)
    assert abs(np.mean(alone) - found["miou"]) > 1e-4


@pytest.mark.shared
def test_an_answer_that_is_no_class_is_refused_not_counted_as_the_last(shared: Path) -> None:
    golden = load_golden(shared, "fn_s3dis_metrics")
    answer, label = (golden.tensor(f"quirk_pred_equals_K.{name}") for name in ("pred", "label"))
    with pytest.raises(ValueError, match=r"prediction: found class 4, there are 4 \(0 \.\. 3\)"):
        confusion_matrix(answer, label, num_classes=4, ignore_index=IGNORED)


def test_nan_and_foreign_labels_are_refused() -> None:
    metric = IoU(num_classes=3, ignore_index=IGNORED)
    given_to = {"cloud_offsets": torch.tensor([0, 2]), "sample_index": torch.tensor([0])}
    state = make_state(metric, num_samples=1)
    with pytest.raises(ValueError, match="probabilities: 1 of 2 points are NaN"):
        metric.update(
            state, probabilities=torch.tensor([[0, 1, 0], [0, 0, torch.nan]]), target=torch.tensor([1, 1]), **given_to
        )
    with pytest.raises(ValueError, match=r"label: found class 3, there are 3 \(0 \.\. 2\)"):
        metric.update(state, probabilities=torch.eye(3)[:2], target=torch.tensor([1, 3]), **given_to)
    with pytest.raises(ValueError, match=r"probabilities: found the shape \(3, 3\) for 2 labels"):
        metric.update(state, probabilities=torch.eye(3), target=torch.tensor([1, 1]), **given_to)


# --- the evaluator of SemanticKITTI ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(8))
def test_the_counts_of_squeezeseg(shared: Path, case: int) -> None:
    """Nothing ignored; an absent class has an IoU of 0 there, and none here."""
    with np.load(shared / "golden" / "lidar" / "squeezeseg_iou.npz", allow_pickle=False) as golden:
        label, predicted, expected = (golden[f"case{case}/{name}"] for name in ("label", "pred", "iou_tp_fp_fn"))
    metric = IoU(num_classes=expected.shape[1])
    scans = [
        tuple(torch.from_numpy(each.ravel()).long() for each in pair) for pair in zip(predicted, label, strict=True)
    ]
    state = measured(metric, scans, [list(range(len(scans)))])
    confusion = state["confusion"].numpy()
    found = np.diag(confusion)
    np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_array_equal(confusion.sum(axis=0) - found, expected[2])
    np.testing.assert_array_equal(confusion.sum(axis=1) - found, expected[3])
    ious = np.array([row["iou"] for row in metric.per_class(state).values()])
    np.testing.assert_allclose(np.nan_to_num(ious), expected[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [3, 7, 11])
def test_several_ignored_classes_are_one_class_of_ours(shared: Path, case: int) -> None:
    """The evaluator ignores classes 0 and 2 of five there; a label map of ours makes one class of them.

    Where no point is labelled, or none of another class predicted, it gives 0 and we give no number.
    """
    with np.load(shared / "golden" / "lidar" / "iou_eval.npz", allow_pickle=False) as golden:
        names = ("pred", "target", "api_iou", "api_miou", "api_acc")
        predicted, target, ious, miou, accuracy = (golden[f"case{case:02d}/{name}"] for name in names)
    class_of = torch.tensor([0, 1, 0, 2, 3])
    metric = IoU(num_classes=4, ignore_index=0, absent="zero")
    scans = [
        (class_of[torch.from_numpy(answer).long()], class_of[torch.from_numpy(label).long()])
        for answer, label in zip(predicted, target, strict=True)
    ]
    state = measured(metric, scans, [[0], list(range(1, len(scans)))])
    found = metric.compute(state)
    is_labelled = any(bool((label > 0).any()) for _, label in scans)
    assert math.isnan(found["miou"]) != is_labelled
    for name, official in (("miou", miou), ("overall_accuracy", accuracy)):
        value = 0.0 if math.isnan(found[name]) else found[name]
        assert value == pytest.approx(float(official), abs=1e-12)
    for ours, theirs in ((1, 1), (2, 3), (3, 4)):
        iou = metric.per_class(state)[str(ours)]["iou"]
        assert (0.0 if math.isnan(iou) else iou) == pytest.approx(float(ious[theirs]), abs=1e-12)


@pytest.mark.parametrize("case", [0, 1, 2, 4, 5, 6, 8, 9, 10])
def test_the_official_evaluator_of_semantic_kitti(shared: Path, case: int) -> None:
    """The cases that ignore no class or class 0; among them absent classes, empty scans and predictions of class 0."""
    with np.load(shared / "golden" / "lidar" / "iou_eval.npz", allow_pickle=False) as golden:
        expected = {
            name: golden[f"case{case:02d}/{name}"] for name in ("pred", "target", "api_iou", "api_miou", "api_acc")
        }
    num_classes = len(expected["api_iou"])
    ignored = 0 if case % 4 in (0, 2) else None
    metric = IoU(num_classes=num_classes, ignore_index=ignored, absent="zero")
    scans = [
        (torch.from_numpy(answer).long(), torch.from_numpy(label).long())
        for answer, label in zip(expected["pred"], expected["target"], strict=True)
    ]
    state = measured(metric, scans, [[0], [1, 2]])
    found = metric.compute(state)
    ious = [row["iou"] for row in metric.per_class(state).values()]
    for number, iou in enumerate(ious):
        if number != ignored:
            official = pytest.approx(float(expected["api_iou"][number]), abs=1e-12)
            assert (0.0 if math.isnan(iou) else iou) == official
    if any(bool((label != -1 if ignored is None else label != ignored).any()) for _, label in scans):
        assert found["miou"] == pytest.approx(float(expected["api_miou"]), abs=1e-12)
    if not math.isnan(found["overall_accuracy"]):
        assert found["overall_accuracy"] == pytest.approx(float(expected["api_acc"]), abs=1e-12)


@pytest.mark.shared
@pytest.mark.parametrize("case", range(12))
def test_the_evaluator_of_lidar_bonnetal(shared: Path, case: int) -> None:
    """A point that is predicted as an ignored class is left out there: ours agrees once these points are gone.

    The cases ignore class 0, none, class 0, and classes 0 and 2 of five, in turn; the README of the files says so.
    """
    with np.load(shared / "golden" / "lidar" / "iou_eval.npz", allow_pickle=False) as golden:
        predicted, target, ious, miou, accuracy = (
            golden[f"case{case:02d}/{name}"] for name in ("pred", "target", "lb_iou", "lb_miou", "lb_acc")
        )
    ignored = ([0], [], [0], [0, 2])[case % 4]
    kept = [each for each in range(len(ious)) if each not in ignored]
    class_of = torch.zeros(len(ious), dtype=torch.int64)
    class_of[kept] = torch.arange(bool(ignored), len(kept) + bool(ignored))
    metric = IoU(num_classes=int(class_of.max()) + 1, ignore_index=0 if ignored else None, absent="zero")
    scans = []
    for answer, label in zip(predicted, target, strict=True):
        is_left = ~np.isin(answer, ignored)
        scans.append(tuple(class_of[torch.from_numpy(each[is_left]).long()] for each in (answer, label)))
    state = measured(metric, scans, [[0], list(range(1, len(scans)))])
    found, rows = metric.compute(state), list(metric.per_class(state).values())
    ours = np.nan_to_num([row["iou"] for row in rows])
    np.testing.assert_allclose(ours[class_of[kept].numpy() - (len(rows) < metric.num_classes)], ious[kept], atol=1e-12)
    np.testing.assert_allclose(np.nan_to_num([found["miou"], found["overall_accuracy"]]), [miou, accuracy], atol=1e-12)
