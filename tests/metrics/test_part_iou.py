"""IoU of parts: hand-worked cases, an independent evaluation, the authors' numbers, any split the same bits."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.metrics import PartIoU
from sightline.metrics.base import State, make_state
from sightline.metrics.part_iou import count_parts, count_parts_reference
from tests.data.clouds.shapenet_part_writers import CATEGORIES
from tests.golden_parity import load_golden

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


def measured(metric: PartIoU, clouds: list[tuple[Tensor, Tensor, int]], batches: list[list[int]]) -> State:
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


def figures(clouds: list[tuple[Tensor, Tensor, int]]) -> dict[str, float]:
    metric = published_metric()
    return metric.compute(measured(metric, clouds, [list(range(len(clouds)))]))


# --- worked by hand ---------------------------------------------------------------------------------------------------


def test_a_part_that_nobody_has_counts_one() -> None:
    """A bag all of part 4, and so answered: IoU 1 of part 4, and 1 of the absent part 5."""
    assert figures([(sure_of([4, 4, 4]), torch.tensor([4, 4, 4]), BAG)])["instance_miou"] == 1.0


def test_a_part_that_is_only_answered_counts_zero() -> None:
    """One of four points of part 4 is answered 5: 3/4 of part 4, 0/1 of part 5."""
    found = figures([(sure_of([4, 4, 4, 5]), torch.tensor([4, 4, 4, 4]), BAG)])
    assert found["instance_miou"] == (0.75 + 0) / 2
    assert found["point_accuracy"] == 0.75


def test_answers_among_own_and_among_all_parts_differ() -> None:
    """The second point's most probable part is a cap's; among a bag's own it is 5, which is right."""
    probabilities = sure_of([4, 6])
    probabilities[1, 5] = 0.5
    found = figures([(probabilities, torch.tensor([4, 5]), BAG)])
    assert (found["instance_miou"], found["point_accuracy"]) == (1.0, 1.0)
    assert (found["instance_miou_all_parts"], found["point_accuracy_all_parts"]) == (0.5, 0.5)  # 1/1 and 0/1


def test_categories_weigh_alike_in_one_mean_and_shapes_in_the_other() -> None:
    """Two bags at 1 and one cap at 1/4 (of part 6: 1 of 2 points; of part 7: 0 of 1)."""
    bag = (sure_of([4, 5]), torch.tensor([4, 5]), BAG)
    cap = (sure_of([6, 7]), torch.tensor([6, 6]), CAP)
    found = figures([bag, cap, bag])
    assert found["instance_miou"] == (1 + 0.25 + 1) / 3
    assert found["class_miou"] == (1 + 0.25) / 2
    metric = published_metric()
    rows = metric.per_class(measured(metric, [bag, cap, bag], [[0, 1, 2]]))
    assert (rows["Bag"]["miou"], rows["Bag"]["count"], rows["Cap"]["miou"]) == (1.0, 2, 0.25)
    assert math.isnan(rows["Table"]["miou"])


def test_ties_go_to_the_lowest_part() -> None:
    even = torch.full((1, 50), 0.02)
    found = figures([(even, torch.tensor([6]), CAP)])
    assert (found["point_accuracy"], found["point_accuracy_all_parts"]) == (1.0, 0.0)


def test_no_shapes_are_no_number() -> None:
    metric = published_metric()
    assert all(map(math.isnan, metric.compute(make_state(metric)).values()))


# --- an independent evaluation ----------------------------------------------------------------------------------------


def random_clouds(seed: int, num_clouds: int = 20) -> list[tuple[Tensor, Tensor, int]]:
    """Clouds of 1 to 60 points whose answers are right about half of the time; values repeat, so that some tie."""
    random = np.random.default_rng(seed)
    clouds = []
    for _ in range(num_clouds):
        category = int(random.integers(16))
        size = int(random.integers(1, 61))
        target = random.choice(PARTS[category], size)
        scores = random.integers(0, 6, (size, 50)).astype(np.float32)
        scores[np.arange(size), target] += random.integers(0, 9, size)
        clouds.append((torch.from_numpy(scores), torch.from_numpy(target), category))
    return clouds


def independent(clouds: list[tuple[Tensor, Tensor, int]], *, among_all: bool) -> tuple[float, float, float]:
    """Instance and class mIoU and accuracy, a shape, a part and a point at a time."""
    by_category: dict[int, list[float]] = {}
    right = total = 0
    for scores, target, category in clouds:
        candidates = range(50) if among_all else PARTS[category]
        answers = [max(candidates, key=lambda part: (row[part], -part)) for row in scores.tolist()]
        ious = []
        for part in PARTS[category]:
            both = sum(a == part and t == part for a, t in zip(answers, target.tolist(), strict=True))
            either = sum(a == part or t == part for a, t in zip(answers, target.tolist(), strict=True))
            ious.append(both / either if either else 1.0)
        by_category.setdefault(category, []).append(sum(ious) / len(ious))
        right += sum(a == t for a, t in zip(answers, target.tolist(), strict=True))
        total += len(answers)
    every = [iou for ious in by_category.values() for iou in ious]
    return float(np.mean(every)), float(np.mean([np.mean(ious) for ious in by_category.values()])), right / total


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_an_independent_evaluation(seed: int) -> None:
    clouds = random_clouds(seed)
    found = figures(clouds)
    for suffix, among_all in (("", False), ("_all_parts", True)):
        instance, class_mean, accuracy = independent(clouds, among_all=among_all)
        # Sums of 20 numbers up to 1 in another order.
        assert found[f"instance_miou{suffix}"] == pytest.approx(instance, abs=1e-14)
        assert found[f"class_miou{suffix}"] == pytest.approx(class_mean, abs=1e-14)
        assert found[f"point_accuracy{suffix}"] == accuracy


@pytest.mark.shared
@pytest.mark.parametrize("case", [*(f"case{number}" for number in range(5)), "crafted"])
def test_agrees_with_the_authors_codes(shared: Path, case: str) -> None:
    """Both rules. `masked_cat` itself is NaN as soon as a category is absent; `masked_cat_present` is not."""
    golden = load_golden(shared, "fn_part_iou")
    given = {name: golden.tensor(f"{case}.{name}") for name in ("logits", "target", "category")}
    clouds = list(zip(given["logits"].softmax(dim=2), given["target"], given["category"].tolist(), strict=True))
    metric = published_metric()
    state = measured(metric, clouds, [list(range(len(clouds)))])
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


# --- split over batches and processes ---------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)), st.lists(st.integers(1, 11), max_size=5), st.integers(1, 3))
def test_any_order_batches_and_processes_give_the_same_bits(order: list[int], cuts: list[int], processes: int) -> None:
    clouds = random_clouds(7, num_clouds=12)
    metric = published_metric()
    whole = measured(metric, clouds, [list(range(12))])
    edges = sorted({0, 12, *cuts})
    batches = [list(order[start:end]) for start, end in itertools.pairwise(edges)]
    states = [measured(metric, clouds, batches[rank::processes]) for rank in range(processes)]
    summed = {name: torch.stack([state[name] for state in states]).sum(dim=0) for name in whole}
    for name, tensor in whole.items():
        assert torch.equal(summed[name], tensor)
        assert tensor.dtype == torch.int64
    assert metric.compute(summed) == metric.compute(whole)


def test_the_mean_of_batches_is_another_number() -> None:
    """What the users of other codes met: averages over batches depend on the batches."""
    clouds = random_clouds(7, num_clouds=12)
    uneven = [figures(clouds[:9])["class_miou"], figures(clouds[9:])["class_miou"]]
    assert abs(np.mean(uneven) - figures(clouds)["class_miou"]) > 1e-3


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
            figures([(right, torch.tensor(target), category)])
    for part in (4, 49):
        unknown = right.clone()
        unknown[1, part] = torch.nan
        with pytest.raises(ValueError, match="probabilities: 1 of 2 points are NaN, first in sample 0; find where"):
            figures([(unknown, torch.tensor([4, 5]), BAG)])


# --- the compiled counts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_compiled_counts_are_those_of_the_plain_form(dtype: torch.dtype, levels: int) -> None:
    """Few levels make ties of every kind; infinities stand where they may."""
    generator = torch.Generator().manual_seed(levels)
    sizes = torch.randint(1, 200, (40,), generator=generator)
    category = torch.randint(0, 16, (40,), generator=generator)
    probabilities = torch.randint(0, levels, (int(sizes.sum()), 50), generator=generator).to(dtype)
    probabilities[::7, 3] = -torch.inf
    probabilities[5::7, 20] = torch.inf
    target = torch.cat(
        [torch.tensor(PARTS[c])[torch.arange(n) % len(PARTS[c])] for c, n in zip(category, sizes, strict=True)]
    )
    given = (probabilities, target, torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]), category, PARTS)
    for found, expected in zip(count_parts(*given), count_parts_reference(*given), strict=True):
        assert torch.equal(found, expected)


def test_both_forms_find_the_first_fault_of_each_shape() -> None:
    probabilities = torch.rand(9, 50)
    probabilities[[4, 5], 49] = torch.nan
    probabilities[7, 4] = torch.nan
    given = (probabilities, torch.tensor([4, 5, 5, 4, 4, 4, 6, 6, -1]), torch.tensor([0, 3, 6, 9]))
    for form in (count_parts, count_parts_reference):
        assert form(*given, torch.tensor([BAG, BAG, CAP]), PARTS).faults.tolist() == [[-1, -1], [4, -1], [7, 8]]


def test_no_shapes_and_points_apart_in_memory_are_taken() -> None:
    nothing = (
        torch.zeros(0, 50),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor([0]),
        torch.zeros(0, dtype=torch.int64),
    )
    assert count_parts(*nothing, PARTS).predicted.shape == (0, 2, 50)
    given = (torch.rand(50, 80).T, torch.full((80,), 4), torch.tensor([0, 80]), torch.tensor([BAG]), PARTS)
    for found, expected in zip(count_parts(*given), count_parts_reference(*given), strict=True):
        assert torch.equal(found, expected)
