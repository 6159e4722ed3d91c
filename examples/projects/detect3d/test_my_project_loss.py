"""The loss of my_project, worked by hand."""

import math

import torch


def test_the_loss_of_one_anchor_by_hand(parts):
    """A box one diagonal (5) further, twice as high, and turned by a quarter: 1 + ln 2 + 1; background is free."""
    anchors = torch.tensor([[0.0, 0, 1, 4, 3, 2, 0], [9.0, 0, 1, 4, 3, 2, 0]])
    boxes = torch.tensor([[[5.0, 0, 1, 4, 3, 4, math.pi / 2], [9.0, 0, 1, 4, 3, 2, 0]]])
    target = torch.tensor([[0, -1]])
    given = {"codes": torch.zeros(1, 2, 7), "anchors": anchors, "target": target, "matched_boxes": boxes}
    assert math.isclose(parts.MyLoss()(**given).item(), 2 + math.log(2), rel_tol=1e-6)
    assert parts.MyLoss().count(target=target) == 1
