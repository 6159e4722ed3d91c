"""Launches of a training step on a GPU: at most 1.1 times those of the table of docs/inside/gpu_counts.md."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu_steps import RECIPE_STEPS, RecipeStep, read_launches
from sightline import ops
from sightline.ops.operator import OPERATORS
from sightline.ops.waits import call_on_host
from tests.cases import run_each
from tests.launches import Launches, _count_parts, count_real, count_small
from tests.marks import long_but
from tests.recipe_steps import RECIPES
from tests.waits import device_form

DAILY = [
    "boxes3d/synthetic_streets_pointpillars",
    *("classify/modelnet40_dgcnn", "classify/modelnet40_pct", "classify/synthetic_shapes_pointnet2"),
    *("classify/cloud_folder_pointnet", "contrast/synthetic_shapes_crosspoint", "detect/synthetic_crowds_retinanet"),
    *("detect/synthetic_crowds_yolox", "pose/synthetic_hands_v2v_small", "segment/synthetic_lidar_salsanext"),
    *("segment/shapenet_part_point_bert", "segment/synthetic_rooms_point_transformer"),
]
_TOLERANCE = 1.1


@pytest.mark.parametrize("recipe", long_but(DAILY, RECIPES))
def test_a_small_step_launches_what_the_table_says(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = count_small(recipe, tmp_path, monkeypatch)
    assert count.total() <= _TOLERANCE * read_launches()[recipe], count.most_common(10)


@pytest.mark.long
@pytest.mark.parametrize("step", RECIPE_STEPS, ids=[step.name for step in RECIPE_STEPS])
def test_a_step_launches_what_the_table_says(monkeypatch: pytest.MonkeyPatch, step: RecipeStep) -> None:
    count = count_real(step, monkeypatch)
    assert count.total() <= _TOLERANCE * read_launches()[step.name], count.most_common(10)


def test_launches_of_a_layer_are_those_counted_by_hand() -> None:
    """Forward: product, maximum, sum. Backward: ones, threshold, products of both factors, sum of the bias."""
    layer, values = nn.Linear(3, 4), torch.randn(5, 3, requires_grad=True)
    with Launches() as launches:
        layer(values).relu().sum().backward()
    named = Counter[str]()
    for (name, _), number in launches.count.items():
        named[name] += number
    forward = {"addmm": 1, "relu": 1}
    assert named == {**forward, "sum": 2, "ones_like": 1, "threshold_backward": 1, "mm": 2}


def test_an_operator_counts_as_declared_and_without_its_kernel_as_its_plain_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A choice of the plain form are nine launches and more; the check of the points and of the start is counted."""
    points, found = torch.randn(2, 40, 3), []
    for is_taken in (True, False):
        monkeypatch.setattr(OPERATORS["farthest_points"], "_takes", lambda *arguments, is_taken=is_taken: is_taken)
        with device_form(monkeypatch), Launches() as launches:
            index = ops.farthest_points(points, 20)
        assert torch.equal(index, ops.farthest_points(points, 20))
        found.append(launches.count)
    declared = [number for (name, _), number in found[0].items() if name == "farthest_points"]
    assert declared == [OPERATORS["farthest_points"].launches]
    assert found[0].total() < 20
    assert found[1].total() > 9 * 20


def test_what_the_host_computes_is_no_launch() -> None:
    def double(values: Tensor) -> Tensor:
        return values * 2 + 1

    with Launches() as launches:
        call_on_host(double, torch.ones(3), device=torch.device("cpu"))
    assert not [name for name, _ in launches.count if name in ("mul", "add")]


@run_each(
    "sizes, num_lists, expected",
    [
        ([5] * 110, 1, 1),
        ([5] * 111, 1, 2),
        ([5, 0, 5], 3, 1),
        ([5] * 73, 4, 3),  # 36 tensors each
        ([65536 * 320], 2, 1),
        ([65536 * 320 + 1], 2, 2),
        ([], 1, 0),
    ],
)
def test_lists_are_divided_as_torch_does(sizes: list[int], num_lists: int, expected: int) -> None:
    assert _count_parts(sizes, num_lists) == expected
