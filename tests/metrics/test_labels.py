"""Labels of clouds, points, parts, pixels: hand-worked cases, the authors' numbers without their quirks, refusals."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.scans.metrics import DistanceIoU, PixelIoU
from sightline.contract import registry
from sightline.contract.metric import Meter, State, make_state
from sightline.contract.types import ComponentConfig
from sightline.parts.metrics import Accuracy, IoU, PartIoU, confusion_matrix, mean_class_accuracy, overall_accuracy
from sightline.parts.metrics.confusion import class_ious
from sightline.parts.metrics.predicted_labels import predict_labels
from tests.cases import run_each
from tests.data.clouds.shapenet_part_writers import CATEGORIES
from tests.golden_parity import load_golden


def accuracy_state(metric: Accuracy, scores: Tensor, label: Tensor, *, parts: int = 1) -> dict[str, Tensor]:
    state = metric.new_state()
    for some_scores, some_labels in zip(scores.tensor_split(parts), label.tensor_split(parts), strict=True):
        metric.update(state, probabilities=some_scores, label=some_labels)
    return state


@pytest.mark.shared
@pytest.mark.parametrize("case", [f"case{number}" for number in range(4)])
def test_agrees_with_the_recorded_global_values(shared: Path, case: str) -> None:
    golden = load_golden(shared, "fn_cls_accuracy")
    scores, label = golden.tensor(f"{case}.scores"), golden.tensor(f"{case}.target")
    metric = Accuracy(num_classes=scores.shape[1])
    found = metric.compute(accuracy_state(metric, scores, label, parts=3))
    # Divisions and at most 10 additions of numbers up to 1.
    assert found["overall_accuracy"] == pytest.approx(golden.tensor(f"{case}.oa").item(), abs=1e-15)
    assert found["mean_class_accuracy"] == pytest.approx(golden.tensor(f"{case}.macc").item(), abs=2e-15)


def test_hand_worked_with_an_absent_class() -> None:
    """Labels a a a b; a is right twice, b once; c never occurs but is answered once: 3/4, and (2/3 + 1) / 2."""
    scores = torch.eye(3)[torch.tensor([0, 0, 2, 1])]
    metric = Accuracy(num_classes=3, class_names=("a", "b", "c"))
    state = accuracy_state(metric, scores, torch.tensor([0, 0, 0, 1]))
    assert metric.compute(state) == {"overall_accuracy": 0.75, "mean_class_accuracy": pytest.approx(5 / 6, abs=1e-15)}
    rows = metric.per_class(state)
    assert list(rows) == ["a", "b", "c"]
    assert rows["a"] == {"accuracy": pytest.approx(2 / 3, abs=1e-15), "count": 3}
    assert rows["b"] == {"accuracy": 1.0, "count": 1}
    assert math.isnan(rows["c"]["accuracy"])
    assert rows["c"]["count"] == 0
    assert state["confusion"].tolist() == [[2, 0, 1], [0, 1, 0], [0, 0, 0]]


DTYPES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.bool)


def fit_into(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """The labels as a user would store them in few bits: of those that do not fit, the remainder."""
    if dtype == torch.bool:
        return labels % 2 == 0
    return labels.to(dtype)


@run_each("dtype, num_classes, ignore_index", itertools.product(DTYPES, (2, 200, 256, 300), (None, -1, 0, 255)))
def test_labels_of_any_integer_dtype_are_those_of_int64(
    dtype: torch.dtype, num_classes: int, ignore_index: int | None
) -> None:
    """Counted pair by pair; 255 is not -1, 200 and 256 classes are more than int8 and uint8 have numbers for."""
    top = min(num_classes, {torch.int8: 128, torch.uint8: 256}.get(dtype, 300))
    label, answer = (fit_into(torch.randint(0, top, (50,)), dtype) for _ in range(2))
    expected = np.zeros((num_classes, num_classes), dtype=int)
    for true, found in zip(map(int, label.tolist()), map(int, answer.tolist()), strict=True):
        expected[true, found] += true != ignore_index
    table = confusion_matrix(answer, label, num_classes=num_classes, ignore_index=ignore_index)
    assert np.array_equal(table.numpy(), expected)


@run_each(
    "label, found",
    [
        (torch.tensor([0, 1, 255], dtype=torch.uint8), "class 255"),
        (torch.tensor([0, 1, 65535], dtype=torch.uint16), "class 65535"),
        (torch.tensor([0, 1, -2], dtype=torch.int8), "class -2"),
        (torch.tensor([0.0, 1.0, 1.0]), "torch.float32, expected whole numbers"),
    ],
)
def test_labels_that_are_no_class_are_refused(label: Tensor, found: str) -> None:
    """255 in 8 bits equals -1 by torch's rules, and was taken for the ignore index."""
    with pytest.raises(ValueError, match=f"label: found {found}"):
        confusion_matrix(torch.tensor([0, 1, 1]), label, num_classes=2, ignore_index=-1)


def test_functions_of_a_confusion_matrix_stand_alone() -> None:
    confusion = torch.tensor([[9, 1], [0, 0]])
    assert (overall_accuracy(confusion), mean_class_accuracy(confusion)) == (0.9, 0.9)


def test_one_prediction_is_not_taken_for_that_of_every_label() -> None:
    with pytest.raises(ValueError, match=r"prediction: found the shape \(1,\), labels have \(3,\)"):
        confusion_matrix(torch.tensor([0]), torch.tensor([0, 1, 1]), num_classes=2)


def test_facts_come_from_the_data_set() -> None:
    metric = registry.metrics.build(ComponentConfig("accuracy"), facts={"num_classes": 2, "class_names": ["x", "y"]})
    assert list(metric.per_class(metric.new_state())) == ["x", "y"]


def test_wrong_shape_names_both() -> None:
    with pytest.raises(ValueError, match=r"found the shape \(4, 2\) .*expected \(4, 3\)"):
        accuracy_state(Accuracy(num_classes=3), torch.rand(4, 2), torch.zeros(4, dtype=torch.int64))


# --- labels from probabilities ----------------------------------------------------------------------------------------


TABLE = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])


def test_a_sample_has_one_label() -> None:
    assert [int(answer) for answer in predict_labels({}, {"probabilities": TABLE}, {})] == [3, 0, 0]


def test_the_points_of_each_cloud_have_theirs() -> None:
    predictions = {"probabilities": TABLE, "cloud_offsets": torch.tensor([0, 1, 1, 3])}
    assert [answer.tolist() for answer in predict_labels({}, predictions, {})] == [[3], [], [0, 0]]


def test_parts_are_sought_among_those_of_the_cloud() -> None:
    predictions = {"probabilities": TABLE, "cloud_offsets": torch.tensor([0, 1, 3])}
    facts = {"parts_of_category": ((0, 1), (2, 3))}
    batch = {"category": torch.tensor([0, 1])}
    assert [answer.tolist() for answer in predict_labels(batch, predictions, facts)] == [[1], [2, 2]]
    # A set that knows parts, but whose batches are of no category, is answered among all.
    assert [answer.tolist() for answer in predict_labels({}, predictions, facts)] == [[3], [0, 0]]


# --- IoU of classes of points: hand-worked, the authors' numbers without their quirks ---


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
def test_an_answer_that_is_no_class_is_refused_not_counted_as_the_last(shared: Path) -> None:
    golden = load_golden(shared, "fn_s3dis_metrics")
    answer, label = (golden.tensor(f"quirk_pred_equals_K.{name}") for name in ("pred", "label"))
    with pytest.raises(ValueError, match=r"prediction: found class 4, there are 4 \(0 \.\. 3\)"):
        confusion_matrix(answer, label, num_classes=4, ignore_index=IGNORED)


@pytest.mark.shared
@run_each("case", ["plain", "absent", "ign", "void"])
def test_pointcept_counts_absent_classes_as_0_and_we_do_both(shared: Path, case: str) -> None:
    """Theirs adds 1e-10 below every fraction, and gives 0 where nothing counts, for which we give no number."""
    golden = load_golden(shared, "fn_miou", area="voxels")
    pair = golden.tensor(f"{case}.pred"), golden.tensor(f"{case}.target")
    ignored = int(golden.tensor(f"{case}.ignore"))
    metrics = {
        absent: IoU(num_classes=int(golden.tensor(f"{case}.K")), ignore_index=ignored, absent=absent)
        for absent in ("skipped", "zero", "both")
    }
    state = measured(metrics["both"], [pair], [[0]])
    counts = state["confusion"]
    assert torch.equal(counts.diagonal(), golden.tensor(f"{case}.inter"))
    assert torch.equal(counts.sum(dim=1), golden.tensor(f"{case}.tgt"))
    assert torch.equal(state["union"][0], golden.tensor(f"{case}.union"))
    for name in ("inter", "union", "tgt"):  # their variant on GPUs
        assert torch.equal(golden.tensor(f"{case}.gpu_{name}").long(), golden.tensor(f"{case}.{name}"))
    bound = {"abs": 1e-11, "nan_ok": True}
    rows = metrics["both"].per_class(state).values()
    for name, stored in (("iou", "iou"), ("accuracy", "acc")):
        found = np.nan_to_num([row[name] for row in rows])
        assert found == pytest.approx(golden.tensor(f"{case}.{stored}").numpy(), **bound)
    figures = {absent: metric.compute(state) for absent, metric in metrics.items()}
    for name, stored in (("miou", "mIoU"), ("mean_class_accuracy", "mAcc")):
        expected = {key: golden.tensor(f"{case}.{key}{stored}").item() for key in ("", "corrected_")}
        assert figures["skipped"][name] == pytest.approx(expected["corrected_"], **bound)
        assert np.nan_to_num(figures["zero"][name]) == pytest.approx(expected[""], **bound)
        assert figures["both"][name] == pytest.approx(expected["corrected_"], **bound)
        assert np.nan_to_num(figures["both"][f"{name}_absent_zero"]) == pytest.approx(expected[""], **bound)
        assert math.isnan(figures["zero"][name]) == (case == "void")
    overall = golden.tensor(f"{case}.allAcc").item()
    for found in figures.values():
        assert np.nan_to_num(found["overall_accuracy"]) == pytest.approx(overall, **bound)


@pytest.mark.shared
def test_pointcept_counts_a_prediction_beyond_the_classes_and_we_refuse_it(shared: Path) -> None:
    golden = load_golden(shared, "fn_miou", area="voxels")
    pair = golden.tensor("topbin.pred"), golden.tensor("topbin.target")
    with pytest.raises(ValueError, match=r"prediction: found class 4, there are 4 \(0 \.\. 3\)"):
        confusion_matrix(*pair, num_classes=4, ignore_index=-1)


def test_means_of_groups_of_classes_by_hand() -> None:
    """Of five classes d is ignored and e absent: a and b have 1/2, c has 1; the groups are head, head and tail."""
    groups = ("head", "head", "tail", "tail", "tail")
    room = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 0, 2, 3])
    expected = {"miou": (1 / 2 + 1 / 2 + 1) / 3, "miou_head": 1 / 2, "miou_tail": 1.0}
    zeroed = {"miou": (1 / 2 + 1 / 2 + 1) / 4, "miou_head": 1 / 2, "miou_tail": 1 / 2}
    for absent, means in (
        ("skipped", expected),
        ("zero", zeroed),
        ("both", expected | {f"{name}_absent_zero": value for name, value in zeroed.items()}),
    ):
        arguments = {"num_classes": 5, "ignore_index": 3, "class_groups": groups}
        metric = registry.metrics.build(ComponentConfig("iou", {"absent": absent}), facts=arguments)
        state = measured(metric, [room], [[0]])
        found = metric.compute(state)
        assert {name: value for name, value in found.items() if "miou" in name} == pytest.approx(means)
        assert metric.sums(state).keys() == means.keys()
    assert [name for name in IoU(num_classes=5).compute(state) if "miou" in name] == ["miou"]


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


def test_predictions_and_offsets_that_do_not_fit_are_refused() -> None:
    label = torch.tensor([[0, 1, 2], [0, 1, 1]])
    for prediction in (label[0], label[0, 0], label[:, :1]):  # which broadcast
        with pytest.raises(ValueError, match=r"prediction: found the shape \(.*\), labels have \(2, 3\)"):
            confusion_matrix(prediction, label, num_classes=3)
    parts = PartIoU(
        num_classes=3, parts_of_category=((0, 1, 2),), class_names=("a", "b", "c"), category_names=("thing",)
    )
    for metric, more in ((IoU(num_classes=3), {}), (parts, {"category": torch.tensor([0, 0])})):
        for bounds in ([0, 1, 2], [1, 3], [0, 2, 9], [0, 3], [0, 3, 2, 3]):
            batch = {"cloud_offsets": torch.tensor(bounds), "sample_index": torch.tensor([0, 1]), **more}
            with pytest.raises(
                ValueError, match=r"cloud_offsets: found \[.*\] for 3 points in 2 clouds; they start at"
            ):
                Meter(metric).update(probabilities=torch.eye(3), target=label[0], **batch)


# --- the evaluator of SemanticKITTI ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(12))
def test_the_official_evaluator_of_semantic_kitti(shared: Path, case: int) -> None:
    """Among the cases are absent classes, empty scans and predictions of the ignored class 0; one in four ignores none.

    One in four ignores the classes 0 and 2 of five, of which a label map of ours makes one class. Where no point is
    labelled, or none of another class predicted, the evaluator gives 0 and we give no number.
    """
    with np.load(shared / "golden" / "lidar" / "iou_eval.npz", allow_pickle=False) as golden:
        names = ("pred", "target", "api_iou", "api_miou", "api_acc")
        predicted, target, ious, miou, accuracy = (golden[f"case{case:02d}/{name}"] for name in names)
    theirs = [0, 1, 3, 4] if case % 4 == 3 else [*range(len(ious))]
    class_of = torch.tensor([0, 1, 0, 2, 3]) if case % 4 == 3 else torch.arange(len(ious))
    ignored = None if case % 4 == 1 else 0
    metric = IoU(num_classes=len(theirs), ignore_index=ignored, absent="zero")
    scans = [
        (class_of[torch.from_numpy(answer).long()], class_of[torch.from_numpy(label).long()])
        for answer, label in zip(predicted, target, strict=True)
    ]
    state = measured(metric, scans, [[0], list(range(1, len(scans)))])
    found = metric.compute(state)
    is_labelled = any({*label.flatten().tolist()} - {ignored} for _, label in scans)
    assert math.isnan(found["miou"]) != is_labelled
    for name, official in (("miou", miou), ("overall_accuracy", accuracy)):
        assert np.nan_to_num(found[name]) == pytest.approx(float(official), abs=1e-12)
    for number, row in zip(theirs, metric.per_class(state).values(), strict=True):
        if number != ignored:
            assert np.nan_to_num(row["iou"]) == pytest.approx(float(ious[number]), abs=1e-12)


def test_the_iou_of_squeezeseg_s_authors(shared: Path) -> None:
    """Right, wrongly predicted and missed pixels of each class; a class in neither has 0 there, and no number here."""
    with np.load(shared / "golden" / "lidar" / "squeezeseg_iou.npz", allow_pickle=False) as golden:
        for case in range(8):
            label, predicted, figures = (golden[f"case{case}/{name}"] for name in ("label", "pred", "iou_tp_fp_fn"))
            pixels = (torch.from_numpy(values.astype(np.int64)) for values in (predicted, label))
            confusion = confusion_matrix(*pixels, num_classes=figures.shape[1])
            right = confusion.diagonal()
            counts = (right, confusion.sum(dim=0) - right, confusion.sum(dim=1) - right)
            assert torch.stack(counts).tolist() == figures[1:].tolist()
            assert class_ious(confusion).nan_to_num(nan=0.0).numpy() == pytest.approx(figures[0], abs=1e-12)


# --- IoU by distance and of pixels: hand-worked, and refusals ---


def test_a_point_at_an_edge_belongs_to_the_farther_side() -> None:
    metric = DistanceIoU(num_classes=3, ignore_index=0, edges_m=(10.0, 20.0))
    state = metric.new_state()
    metric.update_labels(
        state,
        labels=torch.tensor([1, 2, 1, 2, 1, 1]),
        target=torch.tensor([1, 1, 1, 2, 2, 0]),
        point_range=torch.tensor([0.0, 9.99, 10.0, 20.0, 50.0, 5.0]),
    )
    found = metric.compute(state)
    assert found.keys() == {"miou_0_10m", "miou_10_20m", "miou_over_20m"}
    assert found["miou_0_10m"] == (1 / 2 + 0) / 2  # class 1: 1 of 2; class 2: predicted once, never right
    assert found["miou_10_20m"] == 1.0
    assert found["miou_over_20m"] == (0 + 1 / 2) / 2
    assert metric.tables(state)["by_distance"] == {
        "stretches": ["0_10m", "10_20m", "over_20m"],
        "iou": {"0": [None] * 3, "1": [0.5, 1.0, 0.0], "2": [0.0, None, 0.5]},
        "points": [2, 1, 2],
    }


def test_a_point_whose_distance_is_nan_counts_in_no_range() -> None:
    """By hand, as in SemanticKITTI's evaluator, which compares each range's two ends."""
    metric = DistanceIoU(num_classes=2, edges_m=(10.0, 20.0))
    state = metric.new_state()
    labels, target = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 1])
    point_range = torch.tensor([1.0, torch.nan, 10.0, torch.inf, torch.nan])
    metric.update_labels(state, labels=labels, target=target, point_range=point_range)
    assert state["confusion"].tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [1, 0]]]


def test_edges_must_rise() -> None:
    with pytest.raises(ValueError, match="give distances in rising order"):
        DistanceIoU(num_classes=2, edges_m=(10.0, 10.0))


def test_labels_that_are_no_image_are_refused() -> None:
    metric = PixelIoU(num_classes=3, ignore_index=0)
    with pytest.raises(ValueError, match=r"found the shape \(4,\); pixel_iou scores range images"):
        metric.update(metric.new_state(), seen=torch.zeros(4), label=torch.zeros(4))


# --- IoU of parts: the authors' numbers, refusals, and the compiled counts ---


PARTS = tuple(tuple(range(first, last + 1)) for _, first, last in CATEGORIES.values())
BAG, CAP = 1, 2


def published_metric() -> PartIoU:
    """The sixteen categories and fifty parts of ShapeNetPart."""
    return PartIoU(
        num_classes=50,
        parts_of_category=PARTS,
        class_names=tuple(map(str, range(50))),
        category_names=tuple(CATEGORIES),
    )


def sure_of(parts: list[int]) -> Tensor:
    """Probabilities (P, 50) of these answers."""
    return torch.eye(50)[torch.tensor(parts)]


def part_state(metric: PartIoU, clouds: list[tuple[Tensor, Tensor, int]], batches: list[list[int]]) -> State:
    """The state after these clouds (probabilities, target, category), in batches of their indices."""
    state = make_state(metric, num_samples=len(clouds))
    for indices in batches:
        chosen = [clouds[index] for index in indices]
        sizes = torch.tensor([0, *(len(target) for _, target, _ in chosen)])
        metric.update(
            state,
            probabilities=torch.cat([probabilities for probabilities, _, _ in chosen]),
            target=torch.cat([target for _, target, _ in chosen]),
            cloud_offsets=sizes.cumsum(0),
            category=torch.tensor([category for _, _, category in chosen]),
            sample_index=torch.tensor(indices),
        )
    return state


def part_figures(clouds: list[tuple[Tensor, Tensor, int]]) -> dict[str, float]:
    metric = published_metric()
    return metric.compute(part_state(metric, clouds, [list(range(len(clouds)))]))


@pytest.mark.shared
@pytest.mark.parametrize("case", [*(f"case{number}" for number in range(5)), "crafted"])
def test_agrees_with_the_authors_codes(shared: Path, case: str) -> None:
    """Both rules. `masked_cat` itself is NaN as soon as a category is absent; `masked_cat_present` is not."""
    golden = load_golden(shared, "fn_part_iou")
    given = {name: golden.tensor(f"{case}.{name}") for name in ("logits", "target", "category")}
    clouds = list(zip(given["logits"].softmax(dim=2), given["target"], given["category"].tolist(), strict=True))
    metric = published_metric()
    state = part_state(metric, clouds, [list(range(len(clouds)))])
    found, rows = metric.compute(state), metric.per_class(state)
    ious = metric.per_sample(state)
    if case == "crafted":  # the file's note gives the masked ones, and its text the whole
        assert ious.tolist() == [1.0, 1.0]
        assert found["instance_miou_all_parts"] == golden.tensor("crafted.argmax50_shape_iou").mean()
        return
    bound = {"rtol": 0, "atol": 1e-14}  # at most 30 additions of numbers up to 1
    torch.testing.assert_close(ious, golden.tensor(f"{case}.masked_shape_iou"), **bound)
    names = {"": ("masked_ins", "masked_cat_present", "masked_acc"), "_all_parts": ("ins", "cat", "acc")}
    for suffix, stored in names.items():
        for figure, name in zip(("instance_miou", "class_miou", "point_accuracy"), stored, strict=True):
            key = name if suffix == "" else f"argmax50_{name}"
            assert found[f"{figure}{suffix}"] == pytest.approx(golden.tensor(f"{case}.{key}").item(), abs=1e-14), key
        expected = golden.tensor(f"{case}.{'masked' if suffix == '' else 'argmax50'}_cat_iou")
        told = torch.tensor([row[f"miou{suffix}"] for row in rows.values()], dtype=torch.float64)
        torch.testing.assert_close(told, expected, equal_nan=True, **bound)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_labels_answers_and_categories_out_of_place_are_named() -> None:
    right = sure_of([4, 5])
    for target, category, fault in (
        ([4, 6], BAG, r"label: sample 0 of category Bag has part 6, its parts are \[4, 5\]"),
        ([4, 50], BAG, "label: sample 0 of category Bag has part 50"),
        ([4, -1], BAG, "label: sample 0 of category Bag has part -1"),
        ([4, 5], 16, r"category: found 16, there are 16 \(0 \.\. 15\)"),
        ([4, 5, 5], BAG, r"probabilities: found the shape \(2, 50\) for 3 labels, expected \(3, 50\)"),
    ):
        with pytest.raises(ValueError, match=fault):
            part_figures([(right, torch.tensor(target), category)])
    for part in (4, 49):
        unknown = right.clone()
        unknown[1, part] = torch.nan
        with pytest.raises(ValueError, match="probabilities: 1 of 2 points are NaN, first in sample 0; find where"):
            part_figures([(unknown, torch.tensor([4, 5]), BAG)])


# --- the compiled counts ----------------------------------------------------------------------------------------------


@run_each("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32])
def test_labels_of_few_bits_are_counted_as_those_of_many(dtype: torch.dtype) -> None:
    """Of the fifty parts those from 6 on had other rows in the confusion matrix: 6 x 50 does not fit into 8 bits."""
    parts = torch.tensor([6, 7, 6, 4, 5])
    states = []
    for labels in (parts, parts.to(dtype)):
        states.append(make_state(published_metric(), num_samples=2))
        published_metric().update(
            states[-1],
            probabilities=sure_of([7, 7, 6, 5, 5]),
            target=labels,
            cloud_offsets=torch.tensor([0, 3, 5]),
            category=torch.tensor([CAP, BAG]).to(labels.dtype),
            sample_index=torch.tensor([0, 1]),
        )
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert int(states[1]["confusion"][6, 7]) == 1
