"""The loss of my_project, worked by hand."""

import math

import torch


def test_the_loss_of_two_points_by_hand(parts):
    """Logits 0 and ln 3 are the probabilities 1/4 and 3/4; with gamma 1, a point counts (1 - p) (-ln p)."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    label = torch.tensor([0, 1])
    expected = 0.75 * math.log(4) + 0.25 * math.log(4 / 3)
    assert math.isclose(parts.MyLoss(gamma=1.0)(logits=logits, label=label).item(), expected, rel_tol=1e-6)
    assert parts.MyLoss().count(label=label) == 2
