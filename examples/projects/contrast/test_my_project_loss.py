"""The loss of my_project, worked by hand."""

import math

import torch


def test_the_loss_of_two_pairs_by_hand(parts):
    """Both rows of `second` are equal: each pair is as likely as the other."""
    first, second = torch.eye(2), torch.ones(2, 2)
    loss = parts.MyLoss()(first=first, second=second)
    assert torch.allclose(loss, torch.full((2,), math.log(2)))
    assert (parts.MyLoss()(first=first, second=first) < loss).all()
    assert torch.equal(parts.MyLoss()(first=second, second=first), loss)
