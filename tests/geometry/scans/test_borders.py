"""Borders of classes: the published code's masks, and SciPy's erosions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from scipy import ndimage

from sightline.geometry.scans.projection import border_mask
from tests.cases import run_each
from tests.golden_parity import load_golden


@run_each("case", range(8))
def test_masks_are_those_of_the_published_code(shared: Path, case: int) -> None:
    golden = load_golden(shared, "border_mask", area="lidar")
    info = golden.info["cases"][case]
    label = torch.from_numpy(golden.arrays[f"case{case}/label"].astype(np.int64))[None]
    found = border_mask(
        label, size=info["border_size"], connectivity=info["connectivity"], background=info["background_class"]
    )
    assert np.array_equal(found[0], golden.arrays[f"case{case}/border"].astype(bool))


@pytest.mark.parametrize("connectivity", [4, 8])
def test_masks_are_what_erosions_take_away(connectivity: Literal[4, 8]) -> None:
    label = torch.randint(0, 3, (2, 4, 8), generator=torch.Generator().manual_seed(0))
    label = label.repeat_interleave(7, dim=1).repeat_interleave(7, dim=2)
    shape = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    found = border_mask(label, size=2, connectivity=connectivity)
    for image, mask in zip(label.numpy(), found.numpy(), strict=True):
        inside = [ndimage.binary_erosion(image == name, shape, iterations=2) for name in range(3)]
        assert np.array_equal(mask, ~np.any(inside, axis=0))
