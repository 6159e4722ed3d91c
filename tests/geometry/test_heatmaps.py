"""Heat maps against closed forms and reference implementations, and what is read from them against the truth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.geometry.volumes import (
    CubePlacement,
    decode,
    gaussian_heatmaps,
    gaussian_heatmaps_reference,
    one_hot_heatmaps,
    peaks,
    soft_cells,
    to_camera,
    to_voxels,
)
from tests.geometry.test_volumes import assert_golden_maps, of_golden
from tests.golden_parity import load_golden


def inner_joints(count: int = 40) -> Tensor:
    """Coordinates at least four spreads from every border of a map of 44 cells."""
    return torch.from_numpy(np.random.default_rng(2).uniform(7, 37, (count, 3, 3)))


def test_the_product_is_the_dense_exponential() -> None:
    joints = torch.from_numpy(np.random.default_rng(1).uniform(-6, 18, (4, 5, 3)))
    exact = gaussian_heatmaps_reference(joints, cells=12)
    torch.testing.assert_close(gaussian_heatmaps(joints, cells=12, dtype=torch.float64), exact, rtol=1e-13, atol=1e-15)
    # float32 rounds two factors and their product: three half units of the last place.
    torch.testing.assert_close(gaussian_heatmaps(joints, cells=12).double(), exact, rtol=2e-7, atol=1e-30)


def test_identities_of_a_joint_inside() -> None:
    """The sum of squares is (pi sigma^2)^(3/2), the sum (2 pi sigma^2)^(3/2): as integrals have it."""
    maps = gaussian_heatmaps(inner_joints(), cells=44, dtype=torch.float64)
    mean_square = maps.square().mean((2, 3, 4))
    expected = (math.pi * 1.7**2) ** 1.5 / 44**3
    assert expected == pytest.approx(3.2115e-4, abs=1e-8)
    assert (mean_square / expected - 1).abs().max() < 1e-4  # the tail outside, 4 spreads away
    assert (maps.sum((2, 3, 4)) / 77.38 - 1).abs().max() < 1e-3


@pytest.mark.parametrize(("joint", "mean_square"), [((0, 22, 22), 1.606e-4), ((0, 0, 0), 4.014e-5)])
def test_a_joint_on_a_border_keeps_what_reaches_in(joint: tuple[float, ...], mean_square: float) -> None:
    """Half of it on a face, an eighth in a corner."""
    maps = gaussian_heatmaps(torch.tensor([[joint]], dtype=torch.float64), cells=44, dtype=torch.float64)
    assert maps.square().mean().item() == pytest.approx(mean_square, rel=1e-3)


@pytest.mark.parametrize(
    ("decoding", "bound"),
    # The fit is exact for a Gaussian; the middle of a cell is off by half of it; a softmax of 50 times the map and the
    # cells above half of it are means over a few cells, off by less than a third of one.
    [("parabola", 1e-6), ("argmax", 0.5), ("soft", 0.3), ("centroid", 0.3)],
)
def test_a_joint_is_read_back(decoding: str, bound: float) -> None:
    joints = inner_joints()
    maps = gaussian_heatmaps(joints, cells=44, dtype=torch.float64)
    assert (decode(maps, decoding=decoding) - joints).abs().max() <= bound  # type: ignore[arg-type]


def test_parabola_of_float32_maps_is_as_good_as_their_rounding() -> None:
    joints = inner_joints()
    assert (decode(gaussian_heatmaps(joints, cells=44)) - joints).abs().max() < 1e-5


def test_parabola_stays_where_it_cannot_be_laid() -> None:
    """At a border, beside a cell that is not positive, and where nothing is higher than anything else."""
    maps = torch.zeros(1, 3, 5, 5, 5, dtype=torch.float64)
    maps[0, 0, 0, 2, 4] = 1.0
    maps[0, 1, 2, 2, 2], maps[0, 1, 1, 2, 2], maps[0, 1, 3, 2, 2] = 1.0, -0.5, 0.5
    expected = [[0.5, 2.5, 4.5], [2.5, 2.5, 2.5], [0.5, 0.5, 0.5]]
    assert decode(maps).tolist() == [expected]


def test_no_answer_leaves_its_cell() -> None:
    """Noise has parabolas that point far away; half a cell is as far as one may go."""
    maps = torch.rand(8, 4, 6, 5, 7, dtype=torch.float64)
    assert (decode(maps) - decode(maps, decoding="argmax")).abs().max() <= 0.5


def test_equal_maxima_give_the_first() -> None:
    maps = torch.zeros(1, 1, 4, 4, 4)
    maps[0, 0, 1, 2, 3] = maps[0, 0, 1, 3, 0] = 2.0
    assert decode(maps, decoding="argmax").tolist() == [[[1.5, 2.5, 3.5]]]
    assert peaks(maps).tolist() == [[2.0]]


def test_a_soft_coordinate_has_the_gradient_of_finite_differences() -> None:
    logits = torch.randn(1, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_cells, (logits,))


@pytest.mark.shared
@pytest.mark.parametrize("number", range(5))
def test_targets_agree_with_the_port(shared: Path, number: int) -> None:
    golden, case = load_golden(shared, "fn_heatmap", area="pose"), f"case{number}"
    placement, joints = of_golden(golden, case), golden.tensor(f"{case}.keypoints")[None]
    cells = to_voxels(joints, placement) / 2
    assert_golden_maps(golden, case, gaussian_heatmaps(cells, cells=placement.size // 2, dtype=torch.float64))
    if f"{case}.onehot_index" in golden.arrays:  # it stands for maps of 44 cells alone, and scales the other way round
        fields = [getattr(placement, name) for name in CubePlacement.__dataclass_fields__]
        fields[1] = 1 / placement.scale
        cells = to_voxels(joints, CubePlacement(*fields)) / 2
        expected = torch.zeros(5, 44, 44, 44)
        places = golden.tensor(f"{case}.onehot_index").long().T
        expected[tuple(places)] = golden.tensor(f"{case}.onehot_value").float()
        torch.testing.assert_close(one_hot_heatmaps(cells, cells=44)[0], expected, rtol=0, atol=1e-7)
        clipped = cells[0].clamp(0, 42)
        torch.testing.assert_close(clipped, golden.tensor(f"{case}.volume_coord"), rtol=0, atol=1e-9)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(3))
def test_decoding_agrees_with_the_port(shared: Path, number: int) -> None:
    golden, case = load_golden(shared, "fn_decode", area="pose"), f"case{number}"
    maps = golden.tensor(f"{case}.heat").requires_grad_()
    cells = decode(maps.detach(), decoding="argmax")
    assert torch.equal(cells, golden.tensor(f"{case}.cells"))
    # Its `evaluate` takes 88 voxels and two to a cell, whatever the map's size.
    cube = CubePlacement.identity(
        golden.tensor(f"{case}.refpoint")[:, 0], cube_mm=float(golden.arrays[f"{case}.cubic"]), size=88
    )
    torch.testing.assert_close(to_camera(cells * 2, cube), golden.tensor(f"{case}.world"), rtol=0, atol=1e-9)
    soft = soft_cells(maps)
    torch.testing.assert_close(soft, golden.tensor(f"{case}.soft_coord"), rtol=0, atol=1e-9)
    (soft * golden.tensor(f"{case}.soft_w")).sum().backward()
    torch.testing.assert_close(maps.grad, golden.tensor(f"{case}.soft_grad"), rtol=0, atol=1e-9)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(4))
def test_coordinates_agree_with_the_port(shared: Path, number: int) -> None:
    golden, case = load_golden(shared, "fn_decode", area="pose"), f"warp{number}"
    size = int(golden.arrays[f"{case}.crop"])
    reference = golden.tensor(f"{case}.refpoint")[None]
    cube = CubePlacement.identity(reference, cube_mm=float(golden.arrays[f"{case}.cubic"]), size=size)
    found = to_camera(golden.tensor(f"{case}.coord")[None], cube)
    torch.testing.assert_close(found[0], golden.tensor(f"{case}.world"), rtol=0, atol=1e-9)
