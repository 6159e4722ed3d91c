"""The loss of my_project, worked by hand."""

import math

import numpy as np
import torch


def test_the_loss_of_one_joint_by_hand(parts):
    """Equal numbers in eight cells are the probability 1/8; a joint that is not visible does not count."""
    likelihood, heatmaps = torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2)
    heatmaps[0, :, 0, 1, 1] = 0.7
    visible = torch.tensor([[True, False]])
    loss = parts.MyLoss()(likelihood=likelihood, heatmaps=heatmaps, visible=visible)
    assert math.isclose(loss.item(), math.log(8), rel_tol=1e-6)
    assert parts.MyLoss().count(visible=visible) == 1


def test_a_ball_is_as_near_as_its_front(parts):
    depth = parts.draw_balls(np.array([[0.0, 0.0, 400.0]]))
    assert depth[32, 32] == 360.0
    assert depth[0, 0] == 0.0
