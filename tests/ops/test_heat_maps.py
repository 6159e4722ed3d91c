"""Heat maps of images: by hand, the way back, axes and middles, and what is refused. Those of volumes: test_volumes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sightline import ops
from tests.cases import run_each


def test_a_map_by_hand() -> None:
    """A joint in the middle of the second column of the first row: its neighbours are exp(-1 / 2) and exp(-1)."""
    near, apart = math.exp(-0.5), math.exp(-1)
    maps = ops.gaussian_heatmaps(torch.tensor([[[1.5, 0.5]]]), (2, 3), sigma=1.0)
    torch.testing.assert_close(maps, torch.tensor([[[[near, 1, near], [apart, near, apart]]]]))
    torch.testing.assert_close(
        ops.gaussian_heatmaps(torch.tensor([[[1.0, 0.0]]]), (2, 3), sigma=1.0, middle=0.0), maps, rtol=0, atol=0
    )
    turned = ops.gaussian_heatmaps(torch.tensor([[[1.5, 0.5]]]), (3, 2), sigma=1.0, axes="xy")
    torch.testing.assert_close(turned, maps.mT, rtol=0, atol=0)
    assert ops.gaussian_heatmaps(torch.rand(2), 4).shape == (4, 4), "a joint alone"
    assert ops.gaussian_heatmaps(torch.rand(0, 17, 2), (64, 48)).shape == (0, 17, 64, 48)


@run_each("axes", ["yx", "xy", "zyx", "xyz"])
@run_each("middle", [0.0, 0.5])
def test_what_was_drawn_is_found_again(axes: Any, middle: float) -> None:
    count, sizes = len(axes), {"x": 20, "y": 16, "z": 12}
    joints = 4 + torch.rand(3, 5, count, dtype=torch.float64) * torch.tensor([12.0, 8.0, 4.0])[:count]
    form: Any = {"axes": axes, "middle": middle}
    maps = ops.gaussian_heatmaps(joints, [sizes[axis] for axis in axes], sigma=1.5, dtype=torch.float64, **form)
    assert maps.shape == (3, 5, *(sizes[axis] for axis in axes))
    torch.testing.assert_close(ops.decode_heatmaps(maps, **form), joints)
    for decoding, bound in (("argmax", 0.5), ("soft", 0.4), ("centroid", 0.4)):
        found = ops.decode_heatmaps(maps, decoding=decoding, **form)  # type: ignore[arg-type]
        assert (found - joints).abs().max() <= bound + 1e-9
    assert torch.equal(
        ops.soft_argmax(50 * maps, axes=axes) + middle, ops.decode_heatmaps(maps, decoding="soft", **form)
    )
    assert (ops.heatmap_peaks(maps) > 0.7).all()
    if axes in ("yx", "zyx"):
        assert torch.equal(ops.decode_heatmaps(maps, middle=middle), ops.decode_heatmaps(maps, **form))


def test_coordinates_have_gradients() -> None:
    joints = torch.rand(1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda given: ops.gaussian_heatmaps(given * 5, (5, 6), dtype=given.dtype), (joints,)
    )
    maps = torch.rand(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.soft_argmax, (maps,))


@run_each(
    "call, message",
    [
        (
            lambda: ops.gaussian_heatmaps(torch.rand(3, 4), 8),
            r"joints: found the shape \(3, 4\), expected \(..., J, 2 or 3\)",
        ),
        (lambda: ops.gaussian_heatmaps(torch.rand(3, 2), (8, 8, 8)), r"size: found \(8, 8, 8\), .* of the axes yx"),
        (
            lambda: ops.gaussian_heatmaps(torch.rand(3, 2), 8, axes="xyz"),
            "axes: found 'xyz', allowed are 'yx' and 'xy'",
        ),
        (lambda: ops.gaussian_heatmaps(torch.rand(3, 2), 8, sigma=0.0), "sigma: found 0.0, allowed is"),
        (
            lambda: ops.decode_heatmaps(torch.rand(3, 8, 8)),
            r"heatmaps: found the shape \(3, 8, 8\), expected \(B, J, h",
        ),
        (lambda: ops.decode_heatmaps(torch.rand(1, 3, 8, 8), decoding="dark"), "decoding: found 'dark', allowed"),
    ],
)
def test_what_is_no_map_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
