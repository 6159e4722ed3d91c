"""The script that measures wrong reference points moves them as far as it says."""

from __future__ import annotations

import torch

from sightline.areas.pose.sets.synthetic_hands import SyntheticHands
from sightline.contract.types import SampleKey
from tests.long.pose_centres import Moved


def test_points_are_moved_so_far_and_the_same_way_at_every_distance() -> None:
    hands = SyntheticHands(split="test", train_size=1, test_size=6)
    keys = [SampleKey(index, 0, 0) for index in range(6)]
    before = hands.get_batch(keys)
    near, far = (Moved(hands, by_mm).get_batch(keys) for by_mm in (10.0, 40.0))
    moved = near["reference"].double() - before["reference"].double()
    torch.testing.assert_close(moved.norm(dim=1), torch.full((6,), 10.0, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(far["reference"].double() - before["reference"].double(), 4 * moved, rtol=0, atol=1e-3)
    assert torch.unique(moved.round(decimals=2), dim=0).shape == (6, 3)
    assert all(torch.equal(near[name], before[name]) for name in before if name != "reference")
    assert torch.equal(Moved(hands, 10.0)[keys[3]]["reference"], near["reference"][3])
    assert torch.equal(Moved(hands, 0.0).get_batch(keys)["reference"], before["reference"])
