"""IoU of parts: the authors' numbers, refusals, and the compiled counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
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
