"""V2V on the published volume of 88 voxels a side, in float64: its first convolution alone unfolds into 1.9 GB.

The suite compares the same layers, gradients and statistics with the port on volumes of 16 voxels a side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.pose.v2v import V2V
from sightline.published.translation import convert_state_dict
from tests.golden_parity import assert_near_largest, load_golden
from tests.models.test_v2v import LAYOUT


@pytest.mark.shared
def test_the_published_volume_agrees_with_the_port(shared: Path) -> None:
    """All 88 voxels a side, in evaluation mode."""
    golden = load_golden(shared, "v2v_s88_j21", area="pose")
    model = V2V(num_joints=21).double().eval()
    model.load_state_dict(convert_state_dict(golden.state(), LAYOUT))
    volume = torch.zeros(1, 1, 88, 88, 88, dtype=torch.float64)
    volume[(0, 0, *golden.tensor("in.occupied").long().T)] = 1.0
    front: list[Tensor] = []
    model.front.register_forward_hook(lambda module, given, value: front.append(value))
    with torch.no_grad():
        maps = model(volume=volume)["likelihood"][0]
    flat = maps.flatten(1)
    found = {
        "heat_strided": maps[:, 1::4, 1::4, 1::4],
        "joint_mean": flat.mean(1),
        "joint_std": flat.std(1, correction=0),
        "joint_max": flat.amax(1),
        "joint_min": flat.amin(1),
        "joint_sumsq": flat.square().sum(1),
        "corner_4": maps[:, :4, :4, :4],
    }
    for name, value in found.items():
        assert_near_largest(value, golden.tensor(f"eval.out.{name}"), 1e-9, name)
    places = np.stack(np.unravel_index(flat.argmax(1).numpy(), maps.shape[1:]), axis=1)
    assert np.array_equal(places, golden.arrays["eval.out.joint_argmax"])
    assert_near_largest(front[0][0, :, 2::8, 2::8, 2::8], golden.tensor("eval.mid.front_strided"), 1e-9, "front")
