"""Squared distances against the published ones and against hand-worked cases where an expansion fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.geometry.distances import paired_squared_distances, squared_distances
from tests.golden_parity import load_golden


@pytest.mark.shared
@pytest.mark.parametrize("case", [f"case{number}" for number in range(5)])
def test_published_numbers(shared: Path, case: str) -> None:
    """Of every sampled centre to every point. Theirs is the expansion a^2 - 2ab + b^2: its rounding is the bound."""
    golden = load_golden(shared, "fn_pointnet_ops")
    points, chosen = golden.tensor(f"{case}.xyz"), golden.tensor(f"{case}.fps_idx")
    centres = points.gather(1, chosen[..., None].expand(-1, -1, 3))
    found = squared_distances(centres.permute(2, 0, 1), points.permute(2, 0, 1))
    expected = golden.tensor(f"{case}.sqdist")
    bound = 16 * 2.2e-16 * float(points.square().sum(dim=-1).max())  # eight roundings of terms up to 2 |p|^2
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    paired = paired_squared_distances(centres[:, :, None], points[:, None])
    assert torch.equal(paired, found)


def test_far_from_the_origin_nothing_is_lost() -> None:
    """(1e8, 0, 0) and (1e8 + 1, 2, 0): 5 exactly, where squares of 1e16 would leave no digit of it in float64."""
    points = torch.tensor([[[1e8, 0, 0], [1e8 + 1, 2, 0]]], dtype=torch.float64).permute(2, 0, 1)
    assert squared_distances(points, points).tolist() == [[[0, 5], [5, 0]]]
